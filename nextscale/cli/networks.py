"""What `--perceptual` names: a network to measure distances of pictures with, and perhaps learned heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.features import PerceptualDistance


def perceptual(named: Sequence[str], *, device: str) -> PerceptualDistance | None:
    """The distance of a network and at most one file of heads; None where nothing is named."""
    from nextscale import features

    if not named:
        return None
    name, *heads = named
    if len(heads) > 1:
        raise InputError(f"--perceptual: expected a network and at most one file of heads, got {len(heads)} of them")
    network = features.load(name, device=device)
    return features.PerceptualDistance(network, heads=features.read_heads(heads[0]) if heads else None).to(device)
