"""How tokens are chosen, as callers of a pipeline say it: one value for all scales, or one a scale.

Here the values are checked and dealt out to the scales; what they do is `guidance` and `loop`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    told: dict[str, Any]
    """The settings again, as numbers, and tuples of K numbers where they differ: what a picture tells of itself."""


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
        return Dealt(weights, choices, {"guidance": self._guidance_told(weights), **told})

    def _guidance_told(self, weights: Sequence[float]) -> float | tuple[float, ...]:
        several = callable(self.guidance) or is_listed(self.guidance)
        return tuple(weights) if several else float(self.guidance)  # type: ignore[arg-type]


def _of_each(name: str, value: Any, scales: int) -> list[Any]:
    """K values."""
    values = [*value] if is_listed(value) else [value] * scales
    if len(values) != scales:
        raise InputError(f"{name}: expected one value, or one a scale, {scales}, got {len(values)}")
    return values
