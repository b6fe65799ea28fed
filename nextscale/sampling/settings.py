"""How tokens are chosen, as callers of a pipeline say it: one value for all scales, or one a scale.

Here the values are checked and dealt out to the scales; what they do is `guidance` and `loop`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nextscale.checks import fits
from nextscale.errors import InputError
from nextscale.sampling.guidance import Guidance, is_listed, weights_of
from nextscale.sampling.loop import Choice

DRAWN = ("top_k", "top_p", "temperature")  # fields of `Choice` that may differ from scale to scale


class Dealt(NamedTuple):
    """The settings of K scales."""

    weights: list[float]
    """t of guidance at each scale."""
    choices: list[Choice]
    """How tokens are drawn at each scale."""
    step_weights: list[float]
    """beta of guidance by the scale before, at each scale."""
    reach: int | None
    """How many scales a token attends to."""
    told: dict[str, Any]
    """The settings again, as numbers, and tuples of K numbers where they differ: what a picture tells of itself."""

    @property
    def takes(self) -> dict[str, Any]:
        """What of this costs memory, as `memory.image_bytes` takes it."""
        return {"guided": any(self.weights), "step_guided": any(self.step_weights), "reach": self.reach}


@dataclass(frozen=True)
class Settings:
    """What `Pipeline.generate` takes; a sequence has one value a scale."""

    guidance: float | Sequence[float] | Guidance = 1.5
    """A number grows linearly from 0 at the first scale to itself at the last; or a schedule."""
    top_k: int | Sequence[int] = 900
    """See `loop.Choice`, as of the three below."""
    top_p: float | Sequence[float] = 0.96
    temperature: float | Sequence[float] = 1.0
    smooth: bool = False
    step_guidance: float | Sequence[float] = 0.0
    """beta of guidance by the scale before (`step_guidance`); one number is that of all scales but the first."""
    reach: int | None = None
    """How many scales a token attends to, its own and those before it; None: to all so far, as in training."""

    def dealt(self, scales: int) -> Dealt:
        """For K scales. Raises `InputError` for values out of range, and for another number of them than K."""
        weights, drawn = weights_of(self.guidance, scales), {name: getattr(self, name) for name in DRAWN}
        listed = [name for name, value in drawn.items() if is_listed(value)]
        if listed:
            columns = {name: _of_each(name, value, scales) for name, value in drawn.items()}
            choices = [Choice(**{name: columns[name][k] for name in DRAWN}, smooth=self.smooth) for k in range(scales)]
        else:
            choices = [Choice(**drawn, smooth=self.smooth)] * scales
        told = vars(choices[0]) | {name: tuple(getattr(choice, name) for choice in choices) for name in listed}
        step_weights = self._step_weights(scales)
        told = {"guidance": self._guidance_told(weights), **told, **self._others_told(step_weights)}
        return Dealt(weights, choices, step_weights, self._reach(), told)

    def _step_weights(self, scales: int) -> list[float]:
        betas = _of_each("step_guidance", self.step_guidance, scales)
        for beta in betas:
            if not fits(beta, float) or not math.isfinite(beta):
                raise InputError(f"step_guidance: expected a finite number, got {beta!r}")
        return [*map(float, betas)]

    def _reach(self) -> int | None:
        if self.reach is None:
            return None
        if not fits(self.reach, int) or self.reach < 1:
            raise InputError(f"reach: expected 1 scale or more, got {self.reach!r}")
        return operator.index(self.reach)

    def _others_told(self, step_weights: Sequence[float]) -> dict[str, Any]:
        """What differs from the usual: of nothing else have pictures of earlier versions told."""
        betas = tuple(step_weights) if is_listed(self.step_guidance) else step_weights[0]
        told = {"step_guidance": betas if any(step_weights) else None, "reach": self._reach()}
        return {name: value for name, value in told.items() if value is not None}

    def _guidance_told(self, weights: Sequence[float]) -> float | tuple[float, ...]:
        several = callable(self.guidance) or is_listed(self.guidance)
        return tuple(weights) if several else float(self.guidance)  # type: ignore[arg-type]


def _of_each(name: str, value: Any, scales: int) -> list[Any]:
    """K values."""
    values = [*value] if is_listed(value) else [value] * scales
    if len(values) != scales:
        raise InputError(f"{name}: expected one value, or one a scale, {scales}, got {len(values)}")
    return values
