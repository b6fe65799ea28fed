"""Guidance by the step before (SSG): what a scale says beyond the coarser one is said louder.

After "Scaled Spatial Guidance for Multi-Scale Visual Autoregressive Generation" (arXiv:2602.05534), without any
training: the logits of the scale before, enlarged, are what was to be expected; a scale's own are led away from them.

Shapes: B batch, l tokens of a scale, m of the scale before, V codes; n, c sides of maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from nextscale.scales import Scales, Size


# l'_k = l_k + beta_k (l_k - prior_k)
class StepGuidance:
    """For one walk, as it remembers the logits of the scale before, as they came: guided, and not led away themselves.

    Arguments:
        scales: of the transformer.
        betas: of each scale, 0 for none; the first scale has none before it.
    """

    def __init__(self, scales: Scales, betas: Sequence[float]) -> None:
        self.scales, self.betas = scales, betas
        self._before: Tensor | None = None

    def __call__(self, k: int, logits_BlV: Tensor) -> Tensor:
        """The logits of scale k, called scale by scale, (B, l, V) float32."""
        before_BmV, self._before = self._before, logits_BlV if any(self.betas[k + 1 : k + 2]) else None
        if before_BmV is None or not self.betas[k]:
            return logits_BlV
        enlarging_lm = enlarging(self.scales.sizes[k - 1], self.scales.sizes[k]).to(logits_BlV.device)
        prior_BlV = enlarging_lm @ before_BmV
        return logits_BlV + self.betas[k] * (logits_BlV - prior_BlV)


# prior = D^-1 [ sqrt(l / m) D coarse in the low block; D U coarse in the rest ]
#       = U coarse + D^-1 P (sqrt(l / m) D coarse - P^T D U coarse)
@lru_cache(maxsize=64)
def enlarging(coarse: Size, fine: Size) -> Tensor:
    """What makes a fine map of a coarse one, (l, m) float32 on the CPU; rows sum to 1.

    The low frequencies are the coarse map's own, those it has none of are linear interpolation's (U). The cosine
    transforms D are orthonormal, so that a coarse map's coefficients are sqrt(l / m) too small for a fine one.
    """
    pairs = [*zip(coarse, fine, strict=True)]
    smooth, own, replaced = (torch.kron(*(part(c, n) for c, n in pairs)) for part in (interpolation, _own, _replaced))
    return (smooth + own - replaced).float()


def cosines(n: int) -> Tensor:
    """D, the orthonormal cosine transform (DCT-II) of n values: (n, n) float64."""
    numbers_n = torch.arange(n, dtype=torch.float64, device="cpu")
    waves_nn = (math.pi / n * numbers_n[:, None] * (numbers_n + 0.5)).cos() * math.sqrt(2 / n)
    waves_nn[0] /= math.sqrt(2)
    return waves_nn


def interpolation(c: int, n: int) -> Tensor:
    """U, linear interpolation of c values to n, which are the middles of equal parts: (n, c) float64."""
    places_n = ((torch.arange(n, dtype=torch.float64, device="cpu") + 0.5) * c / n - 0.5).clamp(0, c - 1)
    return (1 - (places_n[:, None] - torch.arange(c, device="cpu")).abs()).clamp(min=0)


def _own(c: int, n: int) -> Tensor:
    """The low frequencies of n values, taken from c: (n, c)."""
    return math.sqrt(n / c) * cosines(n)[:c].T @ cosines(c)


def _replaced(c: int, n: int) -> Tensor:
    """The same frequencies, as interpolation has them: (n, c)."""
    low_cn = cosines(n)[:c]
    return low_cn.T @ low_cn @ interpolation(c, n)
