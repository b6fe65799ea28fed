"""Pictures in windows of shards: what lets a run that chooses at random do with some shards at a time.

An epoch goes through the shards in an order of its own, some of them at a time, which are a window; within a window
pictures come in any order (`nextscale.training.order` draws both). So each shard is needed once an epoch, and which
shards the next window wants is known before it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

WIDTH = 16  # shards of a window


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """How the pictures of a split lie in shards: `shards` is (N,) int64, a number of a shard for each picture."""

    shards: np.ndarray
    width: int
    """Shards of a window."""
    ahead: Callable[[Sequence[int]], None] | None = None
    """Called with the shards of the next window while this one is used, again and again; None for those at hand."""

    def chosen(self, places_M: np.ndarray) -> Windows:
        """Those of some pictures."""
        return replace(self, shards=self.shards[places_M])

    def at_hand(self) -> Windows:
        """The same order of pictures that need not be fetched."""
        return replace(self, ahead=None)

    @property
    def count(self) -> int:
        """One more than the largest number of a shard."""
        return int(self.shards.max()) + 1
