"""What is said about the pictures of a split: for each none, one or several captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload


class Captions(Sequence[tuple[str, ...]]):
    """For picture i its captions, in order; an empty tuple where it has none."""

    def __init__(self, captions: Iterable[Iterable[str]]) -> None:
        self._captions = tuple(map(tuple, captions))

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> Captions: ...

    def __getitem__(self, index: int | slice) -> tuple[str, ...] | Captions:
        if isinstance(index, slice):
            return Captions(self._captions[index])
        return self._captions[index]

    def __len__(self) -> int:
        return len(self._captions)
