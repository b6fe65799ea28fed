"""What samplers share that look at a whole map in every step: class and text, guidance, and how often they may look.

Shapes: B batch, R rows (B, or 2 B with guidance), L tokens, C code channels, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nextscale.checks import fits
from nextscale.errors import InputError
from nextscale.sampling.guidance import Guidance, guided_scales, weights_of
from nextscale.sampling.loop import Process, conditioned, guided, processed
from nextscale.text.prompts import Prompts
from nextscale.tokenizer.quantizer import MultiScaleQuantizer
from nextscale.transformer import VAR

MOST_STEPS = 10_000  # far more than make any sampler better


def require_steps(steps: Any) -> None:
    """Raise `InputError` unless it is a number of steps."""
    if not fits(steps, int) or not 1 <= steps <= MOST_STEPS:
        raise InputError(f"steps: expected 1 .. {MOST_STEPS}, got {steps!r}")


class Guided:
    """A transformer as a sampler asks it, step by step: under class and text, guided, and processed.

    Arguments:
        labels, prompts, negative, guidance, process: as of `loop.generate`.
        steps: how many there will be.
    """

    def __init__(
        self,
        transformer: VAR,
        labels: Sequence[int],
        prompts: Prompts | None,
        negative: Prompts | None,
        *,
        guidance: Guidance,
        steps: int,
        process: Process | None = None,
    ) -> None:
        self.transformer, self.batch, self.process = transformer, len(labels), process
        self.weights = weights_of(guidance, steps)
        self.until = guided_scales(self.weights)
        self.condition = conditioned(transformer, labels, prompts, negative, guided=self.until > 0)

    def __call__(self, k: int, seen: tuple[Tensor, ...]) -> Tensor:
        """What the head says at step k of what is seen of the B pictures, (B, L, V) float32; step after step."""
        if k == self.until > 0:  # no step looks at the second rows again
            self.condition = self.condition.first(self.batch)
        times = len(self.condition.embedding) // self.batch
        inputs = type(seen)(*(each.repeat(times, *[1] * (each.ndim - 1)) for each in seen))
        said_RLV = self.transformer.through_head(self.transformer.states(inputs, self.condition))
        said_BLV = guided(said_RLV, self.batch, self.weights[k])
        groups = self.transformer.config.groups
        return processed(self.process, k, said_BLV, groups=groups) if self.process else said_BLV


def codes_of(quantizer: MultiScaleQuantizer, tokens_BL: Tensor) -> Tensor:
    """Tokens of one map (B, L) int64 -> their codes (B, L, C) float32, in the same order."""
    (tokens_BHW,) = quantizer.scales.split(tokens_BL)
    return quantizer.lookup(tokens_BHW).flatten(2).transpose(1, 2)


def canvas_of(quantizer: MultiScaleQuantizer, tokens_BL: Tensor) -> Tensor:
    """What tokens of one map paint, (B, C, H, W) float32."""
    (tokens_BHW,) = quantizer.scales.split(tokens_BL)
    return quantizer.contribution(quantizer.lookup(tokens_BHW), 0)
