"""Which pictures a step sees, and its random numbers: pure functions of the seed and the step.

Nothing here has a state, so a run that continues after a kill sees exactly what it would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sized
from functools import lru_cache

import torch
from torch import Tensor


def generator(*place: int | str) -> torch.Generator:
    """A CPU generator seeded by a place, such as (seed, "crops", step); different places give unrelated streams."""
    digest = hashlib.sha256(repr(place).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    """(count,) int64: the order of an epoch; of a million pictures it takes 20 ms to draw."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))


def batch_indices(count: int, batch: int, step: int, seed: int) -> Tensor:
    """(batch,) int64: the pictures of `step`, out of `count`; an epoch shows each once, in an order of its own."""
    first = step * batch
    epochs = range(first // count, (first + batch - 1) // count + 1)
    orders = torch.cat([_order(count, seed, epoch) for epoch in epochs])
    start = first - epochs.start * count
    return orders[start : start + batch]


def views(batch: int, step: int, seed: int, *, flip: bool = False) -> Tensor:
    """(batch, 3) float32: how `step` sees its pictures, as `Pictures.batch` takes it; with `flip` half are mirrored."""
    crops = torch.rand((batch, 2), generator=generator(seed, "crops", step))
    mirrored = torch.zeros(batch, 1)
    if flip:
        mirrored[torch.rand(batch, generator=generator(seed, "flips", step)) < 0.5] = 0.5
    return torch.cat([crops, mirrored], dim=1)


def spread(pictures: Sized, count: int) -> range:
    """At most `count` indices of a split, evenly spread over it."""
    return range(0, len(pictures), max(-(-len(pictures) // count), 1))
