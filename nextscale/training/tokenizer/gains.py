"""The gains of fixed codes: the size of the residuals that each scale quantizes, as measured.

Fixed codes cover a fixed range, while residuals shrink from scale to scale, through pooling as well as through what
coarser scales have painted. Of a few multiples of its residuals' size, a scale's gain is the one that leaves the
smallest error; it is measured before the first step and then follows as a running average.

Shapes: N residuals of a scale, C channels, K scales, M candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nextscale.machine import distributed
from nextscale.tokenizer.quantizer import MultiScaleQuantizer

MULTIPLES = tuple(2 ** (step / 4) for step in range(-8, 9))  # of residuals' mean length, in units of the longest code's
LEAST = 1e-6  # of a gain: a blank picture leaves nothing
MEMORY = 0.99  # decay of the running averages that gains are
SETTLED = 0.9  # share of a run after which they stay as they are


def follows(step: int, total: float | None) -> bool:
    """Whether the gains still move after 0-based `step` of `total`."""
    return total is None or step < SETTLED * total


@torch.no_grad()
def measure(quantizer: MultiScaleQuantizer, f_BCHW: Tensor) -> None:
    """Set the gains by the residuals of features, coarse to fine: each residual depends on the gains before it."""
    for k in range(len(quantizer.scales)):
        quantizer.gain_K[k] = best(quantizer, quantizer(f_BCHW).residuals[k])


@torch.no_grad()
def follow(quantizer: MultiScaleQuantizer, residuals: Sequence[Tensor]) -> None:
    """Fold in what would have been best for a batch."""
    best_K = torch.stack([best(quantizer, z_NC) for z_NC in residuals])
    quantizer.gain_K.lerp_(best_K, 1 - MEMORY)


# argmin_g sum |z - g code(z / g)|^2
def best(quantizer: MultiScaleQuantizer, z_NC: Tensor) -> Tensor:
    """The gain, a scalar above 0, with the smallest error over the residuals of all processes."""
    codes = quantizer.codebook
    energy, count = distributed.summed(torch.stack([z_NC.square().sum(), z_NC.new_tensor(len(z_NC))]))
    size = (energy / count).sqrt().clamp_min(LEAST) / quantizer.reach
    gains_M = size * z_NC.new_tensor(MULTIPLES)
    left = [(z_NC - gain * codes(codes.nearest(z_NC / gain))).square().sum() for gain in gains_M]
    return gains_M[distributed.summed(torch.stack(left)).argmin()]
