"""Guidance schedules: how strongly each scale is pulled towards its class (classifier-free guidance).

A schedule is a function (scale k, number of scales K) -> t; logits are (1 + t) * conditional - t * unconditional.
These, or any function of that form. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from nextscale.checks import checked, fits
from nextscale.errors import InputError

Guidance = Callable[[int, int], float]
"""(scale k, 0-based; number of scales K) -> the weight t of that scale."""

CLASS, PROMPT = 1.5, 6.0  # weights


def linear_guidance(guidance: float) -> Guidance:
    """The release's schedule: t = guidance * k / (K - 1), 0 at the first scale. Raises `InputError` unless finite."""
    _check(guidance)
    return lambda k, scales: guidance * k / max(scales - 1, 1)


def constant_guidance(guidance: float) -> Guidance:
    """t = guidance at every scale. Raises `InputError` unless finite."""
    _check(guidance)
    return lambda k, scales: guidance


def usual_guidance(*, prompted: bool) -> float | Guidance:
    """The default: the release's for classes, which grows linearly to `CLASS`; for prompts `PROMPT` at every scale.

    The coarse scales decide what a picture shows, and without guidance there a prompt says little.
    """
    return constant_guidance(PROMPT) if prompted else CLASS


def cosine_guidance(guidance: float) -> Guidance:
    """t = guidance * (1 - cos(pi * k / (K - 1))) / 2: flat at both ends, steepest in the middle.

    Raises `InputError` unless finite.
    """
    _check(guidance)
    return lambda k, scales: guidance * (1 - math.cos(math.pi * k / max(scales - 1, 1))) / 2


def interval_guidance(guidance: float, first: int, last: int) -> Guidance:
    """t = guidance at scales first .. last (0-based, both counted), 0 at the others.

    After "Applying guidance in a limited interval" (Kynkaanniemi et al. 2024), scales in place of noise levels.

    Raises `InputError` unless finite and in order, and when asked about a pyramid that ends before `last`.
    """
    _check(guidance)
    if not (fits(first, int) and fits(last, int) and 0 <= first <= last):
        raise InputError(f"guidance: expected scales in order, 0 <= first <= last, got {first!r} and {last!r}")

    def weight(k: int, scales: int) -> float:
        if last >= scales:
            raise InputError(f"guidance: expected an interval within scales 0 .. {scales - 1}, got {first} .. {last}")
        return guidance if first <= k <= last else 0.0

    return weight


@checked
def listed_guidance(weights: Sequence[float]) -> Guidance:
    """One weight a scale. Raises `InputError` unless all are finite, and when asked about another number of scales."""
    listed = [*weights]
    for one in listed:
        _check(one)

    def weight(k: int, scales: int) -> float:
        if scales != len(listed):
            raise InputError(f"guidance: expected one weight a scale, {scales}, got {len(listed)}")
        return listed[k]

    return weight


def guidance_until(guidance: float | Sequence[float] | Guidance, end: int) -> Guidance:
    """t of another schedule at scales 0 .. end - 1, and 0 from scale `end` on, which then cost no second row.

    Raises `InputError` unless `end` is 0 or more, and when asked about a pyramid of fewer scales.
    """
    if not (fits(end, int) and end >= 0):
        raise InputError(f"guidance_until: expected a scale, 0 or more, got {end!r}")

    def weight(k: int, scales: int) -> float:
        if end > scales:
            raise InputError(f"guidance_until: expected a scale, 0 .. {scales}, got {end}")
        return weights_of(guidance, scales)[k] if k < end else 0.0

    return weight


def weights_of(guidance: float | Sequence[float] | Guidance, scales: int) -> list[float]:
    """The weights of all scales; a number means the linear schedule that ends there, a sequence has one a scale.

    Raises `InputError` for what is none of these, and for a schedule that does not fit the pyramid or gives a weight
    that is not finite.
    """
    schedule = _schedule(guidance)
    weights = [schedule(k, scales) for k in range(scales)]
    for weight in weights:
        _check(weight)
    return [*map(float, weights)]


def _schedule(guidance: float | Sequence[float] | Guidance) -> Guidance:
    if callable(guidance):
        return guidance
    if is_listed(guidance):
        return listed_guidance(guidance)
    return linear_guidance(guidance)  # type: ignore[arg-type]  # a number; all else is refused


def is_listed(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether there is a value for each scale, rather than one for all."""
    return fits(value, Sequence[Any]) and hasattr(value, "__len__")


def guided_scales(weights: Sequence[float]) -> int:
    """How many scales need a second row: all up to the last whose weight is not 0."""
    return max((k + 1 for k, weight in enumerate(weights) if weight), default=0)


def _check(weight: float) -> None:
    try:
        finite = math.isfinite(weight)
    except (TypeError, ValueError, OverflowError):
        finite = False
    if not finite:
        raise InputError(f"guidance: expected a finite number, got {weight}")
