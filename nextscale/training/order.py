"""Which pictures a step sees, and its random numbers: pure functions of the seed and the step.

Nothing here has a state, so a run that continues after a kill sees exactly what it would have seen. Pictures that lie
in shards elsewhere are seen in windows of shards (`nextscale.data.windows`), all others in any order.

Letters of shapes: N pictures of a split, S shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence, Sized
from functools import lru_cache
from itertools import count
from typing import Any

import torch
from torch import Tensor

from nextscale.data.windows import Windows


def generator(*place: int | str) -> torch.Generator:
    """A CPU generator seeded by a place, such as (seed, "crops", step); different places give unrelated streams."""
    digest = hashlib.sha256(repr(place).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    """(count,) int64: the order of an epoch; of a million pictures it takes 20 ms to draw."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))


@lru_cache(maxsize=4)
def _shard_order(windows: Windows, seed: int, epoch: int) -> Tensor:
    """(S,) int64: the shards in the order in which an epoch comes to them."""
    return torch.randperm(windows.count, generator=generator(seed, "shards", epoch))


@lru_cache(maxsize=4)
def _order_in_windows(windows: Windows, seed: int, epoch: int) -> Tensor:
    """(N,) int64: the order of an epoch that is through with a window of shards before it begins the next."""
    order_N = _order(len(windows.shards), seed, epoch)
    window_S = _shard_order(windows, seed, epoch).argsort() // windows.width
    window_N = window_S[torch.from_numpy(windows.shards)]
    return order_N[window_N[order_N].argsort(stable=True)]


def batch_indices(count: int, batch: int, step: int, seed: int, windows: Windows | None = None) -> Tensor:
    """(batch,) int64: the pictures of `step`, out of `count`; an epoch shows each once, in an order of its own.

    With `windows`, those of all `count` pictures, the epoch goes through windows of shards.
    """
    first = step * batch
    epochs = range(first // count, (first + batch - 1) // count + 1)
    orders = torch.cat([_epoch(count, seed, epoch, windows) for epoch in epochs])
    start = first - epochs.start * count
    return orders[start : start + batch]


def _epoch(count: int, seed: int, epoch: int, windows: Windows | None) -> Tensor:
    return _order(count, seed, epoch) if windows is None else _order_in_windows(windows, seed, epoch)


def next_shards(windows: Windows, batch: int, step: int, seed: int) -> list[int]:
    """The shards of the window after the one that `step` begins in, in the order in which the epoch comes to them.

    Not the one it ends in: what is fetched then would take the place of shards that the step still reads.
    """
    epoch, place = divmod(step * batch, len(windows.shards))
    here = _order_in_windows(windows, seed, epoch)[place]
    at = int((_shard_order(windows, seed, epoch) == windows.shards[here]).nonzero()) // windows.width + 1
    following = _shard_order(windows, seed, epoch)[at * windows.width : (at + 1) * windows.width]
    return (following if len(following) else _shard_order(windows, seed, epoch + 1)[: windows.width]).tolist()


def batch_of(pictures: Sized, batch: int, step: int, seed: int) -> Tensor:
    """`batch_indices` of a split; what the next window needs is fetched meanwhile, where it lies elsewhere."""
    windows: Windows | None = getattr(pictures, "windows", None)
    if windows is not None and windows.ahead is not None:
        windows.ahead(next_shards(windows, batch, step, seed))
    return batch_indices(len(pictures), batch, step, seed, windows)


def announced(
    pictures: Sized, batch: int, seed: int, *, flip: bool, parts: Sequence[slice], step: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices and views, as `batch_of` and `views` tell them, of each part of the batch of `step` and of all after."""
    windows: Windows | None = getattr(pictures, "windows", None)
    for later in count(step):
        indices = batch_indices(len(pictures), batch, later, seed, windows)
        seen = views(batch, later, seed, flip=flip)
        yield from ((indices[part], seen[part]) for part in parts)


def order_of(pictures: Sized) -> dict[str, Any]:
    """What of the order belongs to a run's settings: the window, where there is one."""
    windows: Windows | None = getattr(pictures, "windows", None)
    return {} if windows is None else {"window": windows.width}


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
