"""What every source of pictures says of itself: which pictures, of which class, in which split. Opens no picture.

A listing is a few arrays with a place for each picture, and a store that opens the picture at a place: a million take
some megabytes. `nextscale.data.folder` and `nextscale.data.shards` make listings, `nextscale.data.reading` turns one
into a data set.

Letters of shapes: N pictures of a listing, M of them chosen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, overload

import numpy as np

from nextscale.data.captions import Captions
from nextscale.data.names import Names, row_of
from nextscale.data.walk import Files, LeftOut, Store
from nextscale.data.windows import Windows
from nextscale.errors import InputError, printable

HELD_OUT = 0.05
BY_HASH, BY_KEY = "5 % by hash of the name", "5 % by hash of the key"


class Item(Protocol):
    """One picture; `name` tells where it lies and is its own within a listing."""

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> int: ...

    @property
    def held_out(self) -> bool: ...

    def open(self) -> BinaryIO:
        """The bytes of the picture, as a stream that no other thread shares. Raises `OSError` where they are gone."""
        ...


@dataclass(frozen=True)
class Chosen:
    """Those at some places, (M,) int64 or a range, of another store."""

    store: Store
    places: np.ndarray | range

    def open(self, place: int) -> BinaryIO:
        """See `Store`."""
        return self.store.open(int(self.places[place]))


class Listed(NamedTuple):
    """An `Item` of a listing."""

    name: str
    label: int
    held_out: bool
    store: Store
    place: int

    def open(self) -> BinaryIO:
        """See `Item`."""
        return self.store.open(self.place)


@dataclass(frozen=True, kw_only=True, eq=False)
class Items(Sequence[Listed]):
    """Pictures in an order that does not depend on the machine; `labels` is (N,) int64, `held_out` (N,) bool."""

    names: Names
    labels: np.ndarray
    held_out: np.ndarray
    store: Store

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Listed: ...

    @overload
    def __getitem__(self, index: slice) -> Items: ...

    def __getitem__(self, index: int | slice) -> Listed | Items:
        if isinstance(index, slice):
            return self.chosen(np.arange(len(self))[index])
        place = range(len(self))[index]
        label, held_out = int(self.labels[place]), bool(self.held_out[place])
        return Listed(self.names[place], label, held_out, self.store, place)

    def chosen(self, places: np.ndarray) -> Items:
        """Those at some places, in that order; a row of neighbours is no copy."""
        row = row_of(places)
        key = places if row is None else row
        return Items(
            names=self.names.chosen(places),
            labels=self.labels[key],
            held_out=self.held_out[key],
            store=Chosen(self.store, places if row is None else range(row.start, row.stop)),
        )

    def reordered(self, order_N: np.ndarray) -> Items:
        """All of them in another order, in arrays of their own."""
        names = self.names.chosen(order_N)
        return Items(
            names=names,
            labels=self.labels[order_N],
            held_out=self.held_out[order_N],
            store=_reordered(self.store, names, order_N),
        )


def _reordered(store: Store, names: Names, order_N: np.ndarray) -> Store:
    """Copies what tells the places, where a store has such arrays."""
    if isinstance(store, Files):
        return Files(store.root, names)
    chosen = getattr(store, "chosen", None)
    return Chosen(store, order_N) if chosen is None else chosen(order_N)


@dataclass(frozen=True, kw_only=True, eq=False)
class Examined:
    """What opening each picture of a listing told.

    `sizes` is (N, 2) int32, height and width as stored; `marks` is (N,) of 16 bytes, which change with the picture.
    `reasons` says by place why some are unreadable, which have neither.
    """

    sizes: np.ndarray
    marks: np.ndarray
    reasons: Mapping[int, str]

    @classmethod
    def of(cls, looks: Iterable[tuple[tuple[int, int], bytes] | str], count: int) -> Examined:
        """What was seen of so many pictures: the size and the mark, or why one is unreadable."""
        sizes_N2, marks_N = np.zeros((count, 2), dtype=np.int32), np.zeros(count, dtype="S16")
        reasons: dict[int, str] = {}
        for place, look in enumerate(looks):
            if isinstance(look, str):
                reasons[place] = look
            else:
                sizes_N2[place], marks_N[place] = look
        return cls(sizes=sizes_N2, marks=marks_N, reasons=reasons)

    def chosen(self, places_M: np.ndarray) -> Examined:
        """Of those at some places, in that order."""
        found = {place: self.reasons[old] for place, old in enumerate(places_M.tolist()) if old in self.reasons}
        return Examined(sizes=self.sizes[places_M], marks=self.marks[places_M], reasons=found)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All pictures of a source; `kind` goes into fingerprints."""

    kind: str
    root: Path
    items: Items
    classes: tuple[str, ...]
    held_out: str
    """How the held-out part came about."""
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: tuple[str, ...] = ()
    """What else should be known of classes and captions, a sentence each."""
    captions: Captions | None = None
    """Of the items in their order; None where none are wanted."""
    examined: Examined | None = None
    """Of the items; None where none was opened yet."""
    windows: Windows | None = None
    """Of the items; None where they are chosen at random out of all."""


def side_by_side(listing: Listing, examined: Examined) -> Listing:
    """The listing with the pictures to train on first, then the held-out ones, then those that cannot be read.

    Each of the three keeps its order. Both splits are then rows of neighbours, which are not copied.
    """
    items = listing.items
    ranks_N = items.held_out.astype(np.int8)
    ranks_N[list(examined.reasons)] = 2
    order_N = np.argsort(ranks_N, kind="stable")
    captions = None if listing.captions is None else listing.captions.chosen(order_N)
    return replace(listing, items=items.reordered(order_N), captions=captions, examined=examined.chosen(order_N))


def hold_out(names: Sequence[str], *, root: Path) -> np.ndarray:
    """(N,) bool, true for the 5 %, at least one, that come first by hash: a new name moves few to the other side."""
    if len(names) < 2:
        raise InputError(f"expected at least 2 pictures in {root}, one to train on and one held out, got {len(names)}")
    count = max(1, round(HELD_OUT * len(names)))
    marks = np.fromiter(map(by_hash, names), dtype="S32", count=len(names))
    chosen_N = np.zeros(len(names), dtype=bool)
    chosen_N[np.argpartition(marks, count - 1)[:count]] = True
    return chosen_N


def by_hash(name: str) -> bytes:
    """A sorting key without any order that a person or a camera gave."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def told_apart(names: Iterable[str]) -> tuple[str, ...]:
    """Class names that can be printed and saved, each its own: of equal ones the second has `~2` behind it."""
    listed = list(map(printable, names))
    given, told = set(listed), dict[str, None]()
    for name in listed:
        others = (f"{name}~{number}" for number in count(2))
        own = name if name not in told else next(other for other in others if other not in given | told.keys())
        told[own] = None
    return tuple(told)
