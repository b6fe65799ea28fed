"""Features of all pictures of a split, with a bar; seen before, they are in the cache of references."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nextscale.cli.output import bar

if TYPE_CHECKING:
    from torch import Tensor

    from nextscale.data import Pictures
    from nextscale.features import FeatureNetwork


class Seen(NamedTuple):
    """Of N pictures."""

    features: Tensor
    """(N, D) float32."""
    labels: Tensor
    """(N,) int64, by the data's numbers."""


def seen(network: FeatureNetwork, pictures: Pictures, name: str, *, batch: int) -> Seen:
    """What the network sees in all of them."""
    from nextscale.evaluation.judging import KEPT
    from nextscale.evaluation.reference import of_split

    keep = max(KEPT, len(pictures))  # all; as many as `evaluate generation` keeps, so that either finds the other's
    with bar(f"features, {name}") as told:
        found = of_split(pictures, name=name).features(network, batch=batch, keep=keep, progress=told)
    assert found.features is not None
    return Seen(found.features, pictures.labels)
