"""A listing of pictures as a data set: the reading, which is the same wherever the bytes lie.

The short side is scaled with Lanczos to 1.125 times the target, which leaves random crops their room; of those longer
than 1:16 the ends are cut off (`images.resize_to_cover`). What fits in 2 GiB is decoded once and kept; a larger set is
decoded batch by batch, after the headers were checked. Whatever goes wrong with a picture, a lack of memory included,
makes it an unreadable one: it is left out or replaced, counted and named, and the run goes on.
"""

from __future__ import annotations

import io
import math
import unicodedata
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor

from nextscale import images
from nextscale.data.captions import Captions
from nextscale.data.labels import WHOLE
from nextscale.data.listing import Examined, Item, Items, Listing, by_hash
from nextscale.data.names import row_of
from nextscale.data.pictures import DataSet, Fetch, Progress, Split, fingerprint, from_memory, in_threads
from nextscale.data.windows import Windows
from nextscale.errors import InputError, printable
from nextscale.files.remote import UnreachableError

Broken = Callable[[str, str], None]  # called with the name of an unreadable picture and the reason

MARGIN = 1.125
MEMORY = 2 * 2**30  # bytes
SHOWN = 4  # groups of names in a note
PIECE = 1 << 16  # pictures that are Python objects at a time

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a picture becomes: the size asked for."""

    height: int
    width: int

    def decode(self, item: Item) -> Tensor | str:
        """One picture as (3, h, w) uint8 covering 1.125 times the size, or why it cannot be read."""

        def scaled(stream: BinaryIO) -> Tensor:
            picture = images.open_covering(stream, height=self.height, width=self.width, margin=MARGIN)
            return images.uint8_from_pil(picture)

        return _tried(scaled, item)

    def decoded_bytes(self, stored: tuple[int, int]) -> int:
        """What `decode` will take of a picture of some height and width."""
        return 3 * math.prod(images.kept_size(stored, height=self.height, width=self.width, margin=MARGIN))

    def fit(self, examined: Examined, most: int) -> bool:
        """Whether all that can be read takes at most so many bytes; of a larger set few need to be counted."""
        readable_N, needed = np.ones(len(examined.sizes), dtype=bool), 0
        readable_N[list(examined.reasons)] = False
        for some in _pieces(len(readable_N)):
            sizes_n2 = examined.sizes[some][readable_N[some]].astype(np.int64)
            sizes, counts = np.unique(sizes_n2[:, 0] << 32 | sizes_n2[:, 1], return_counts=True)
            each = (self.decoded_bytes(divmod(size, 1 << 32)) for size in sizes.tolist())
            needed += sum(count * one for count, one in zip(counts.tolist(), each, strict=True))
            if needed > most:
                return False
        return True


def _tried(function: Callable[[BinaryIO], _Result], item: Item) -> _Result | str:
    """What the function makes of a picture's bytes, or in a few words why it could not."""
    try:
        with item.open() as stream:
            return function(stream)
    except UnreachableError:  # nothing is wrong with the picture: without its shard there is no going on
        raise
    except (InputError, OSError, MemoryError) as error:
        return images.reason(error)


@dataclass(frozen=True, kw_only=True, eq=False)
class OnDemand:
    """Decodes pictures when a batch asks; where one fails only then, the next readable one stands in."""

    items: Sequence[Item]
    size: Size
    report: Broken
    failed: set[int] = field(default_factory=set)
    stand_ins: dict[int, int] = field(default_factory=dict)
    """The index that is shown in place of each that failed, as far as is known by now."""

    def __call__(self, wanted: list[int]) -> tuple[list[int], list[Tensor]]:
        """See `nextscale.data.pictures.Fetch`. Raises `InputError` when the whole split has become unreadable."""
        once = list(dict.fromkeys(wanted))
        return self.settled(wanted, dict(zip(once, in_threads(self.read, once), strict=True)))

    def read(self, index: int) -> Tensor | str:
        """See `nextscale.data.pictures.PictureByPicture`."""
        return self.size.decode(self.items[index])

    def settled(self, wanted: list[int], tried: Mapping[int, Tensor | str]) -> tuple[list[int], list[Tensor]]:
        """See `nextscale.data.pictures.PictureByPicture`."""
        found = {
            index: (index, picture) if isinstance(picture, Tensor) else self._next_after(index, picture)
            for index, picture in tried.items()
        }
        return [found[index][0] for index in wanted], [found[index][1] for index in wanted]

    def _next_after(self, index: int, why: str) -> tuple[int, Tensor]:
        self._report(index, why)
        for candidate in (*range(index + 1, len(self.items)), *range(index)):
            if candidate not in self.failed:
                picture = self.size.decode(self.items[candidate])
                if isinstance(picture, Tensor):
                    self.stand_ins[index] = candidate
                    return candidate, picture
                self._report(candidate, picture)
        raise InputError(f"expected a readable picture among {len(self.items)} such as {self.items[0].name}, got none")

    def _report(self, index: int, why: str) -> None:
        if index not in self.failed:
            self.failed.add(index)
            self.report(self.items[index].name, why)


def load(
    listing: Listing,
    *,
    height: int,
    width: int,
    max_broken: float = 0.01,
    broken: Broken | None = None,
    progress: Progress | None = None,
) -> DataSet:
    """The pictures of a listing; `nextscale.data.load` tells arguments and errors.

    `progress` runs through the pictures once while headers are checked, and again while a small set is decoded.
    """
    size, listing = Size(height=height, width=width), opened(listing, progress=progress)
    items, examined = listing.items, listing.examined
    assert examined is not None, "it is opened"
    reasons = dict(examined.reasons)
    decoded: dict[int, Tensor] | None = None
    if size.fit(examined, MEMORY):
        decoded = {}
        good_M = _without(reasons, items)
        pictures = in_threads(size.decode, items.chosen(good_M), progress=progress)
        for place, picture in zip(good_M.tolist(), pictures, strict=True):
            if isinstance(picture, str):
                reasons[place] = picture
            else:
                decoded[place] = picture
    report = Report([], broken)
    told = [(items[place].name, reasons[place]) for place in sorted(reasons)]
    for name, why in told:
        report(name, why)
    _refuse_too_many(told, listing, max_broken=max_broken)

    def split(name: str, side: Side) -> Split:
        on_demand = OnDemand(items=side.items, size=size, report=report)
        fetch: Fetch = on_demand if decoded is None else from_memory([decoded[place] for place in side.places])
        captions = _captions(side, listing, on_demand.stand_ins)
        return _split(name, side, listing=listing, size=size, fetch=fetch, captions=captions)

    sides = _two_sides(_without(reasons, items), listing)
    train, validation = (Side.of(places_M, items, examined) for places_M in sides)
    return DataSet(
        train=split("train", train),
        validation=split("validation", validation),
        classes=listing.classes,
        unreadable=report.unreadable,
        held_out=listing.held_out,
        left_out=listing.left_out,
        notes=(*listing.notes, *_alike(listing.classes), *_copies(train, validation)),
    )


@dataclass(frozen=True)
class Report:
    """Keeps the names of unreadable pictures, and tells each with the reason, if there is anybody to tell."""

    unreadable: list[str]
    broken: Broken | None

    def __call__(self, name: str, why: str) -> None:
        self.unreadable.append(printable(name))
        if self.broken is not None:
            self.broken(printable(name), why)

    def __reduce__(self) -> tuple[object, ...]:
        """In another process nobody sees what is kept there: one that turns out unreadable is a warning."""
        return Report, (self.unreadable, _warn)


def _warn(name: str, why: str) -> None:
    warnings.warn(f"{name} cannot be read ({why}): another picture is shown in its place", stacklevel=3)


def opened(listing: Listing, *, progress: Progress | None = None) -> Listing:
    """The listing with what opening every picture once tells."""
    if listing.examined is not None:
        return listing
    looks = in_threads(look, listing.items, progress=progress)
    return replace(listing, examined=Examined.of(looks, len(listing.items)))


def look(item: Item) -> tuple[tuple[int, int], bytes] | str:
    """The size of a picture, and its mark; or why it is unreadable."""
    return _tried(lambda stream: (images.stored_size(stream), _mark(stream)), item)


def _without(reasons: Collection[int], items: Items) -> np.ndarray:
    """The places of all pictures but for some, (M,) int64."""
    good_N = np.ones(len(items), dtype=bool)
    good_N[list(reasons)] = False
    return np.flatnonzero(good_N)


def _refuse_too_many(unreadable: Sequence[tuple[str, str]], listing: Listing, *, max_broken: float) -> None:
    """Pictures that cannot be read come with the reasons."""
    count = len(listing.items)
    share = len(unreadable) / count
    if share > max_broken:
        some = ", ".join(name for name, _ in unreadable[:3]) + (", …" if len(unreadable) > 3 else "")
        raise InputError(
            f"expected at most {max_broken:.1%} unreadable pictures in {listing.root}, "
            f"got {len(unreadable)} of {count} ({share:.1%}): {some}; the first: {unreadable[0][1]}"
        )


def _two_sides(good_M: np.ndarray, listing: Listing) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out pictures, by place. Where broken ones left one side empty, one of the other moves over."""
    if len(good_M) < 2:
        raise InputError(
            f"expected at least 2 readable pictures in {listing.root}, one to train on and one held out, "
            f"got {len(good_M)}"
        )
    held_out_M = listing.items.held_out[good_M]
    train, validation = good_M[~held_out_M], good_M[held_out_M]
    if not len(train):
        return validation[:1], validation[1:]
    if not len(validation):
        chosen = min(range(len(train)), key=lambda index: by_hash(listing.items[train[index]].name))
        return np.delete(train, chosen), train[[chosen]]
    return train, validation


@dataclass(frozen=True, kw_only=True)
class Side:
    """The pictures of one split: their places in the listing, and the mark of each, (M,) of 16 bytes."""

    places: np.ndarray
    items: Items
    marks: np.ndarray

    @classmethod
    def of(cls, places_M: np.ndarray, listed: Items, examined: Examined) -> Side:
        """Those at some places of a listing."""
        row = row_of(places_M)
        marks = examined.marks[places_M if row is None else row]
        return cls(places=places_M, items=listed.chosen(places_M), marks=marks)


def _alike(classes: Sequence[str]) -> list[str]:
    """That classes are the same word but for case, blanks or leading zeros, if some are."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        word = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        groups.setdefault(str(int(word)) if WHOLE.fullmatch(word) else word, []).append(name)
    twice = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    more = f", and {len(twice) - SHOWN} more" if len(twice) > SHOWN else ""
    return [f"classes that differ in spelling alone: {', '.join(twice[:SHOWN])}{more}"] if twice else []


def _copies(train: Side, validation: Side) -> list[str]:
    """That held-out pictures are trained on as well, if some are: by a link, or as a copy."""
    shared = _shared(train.marks, validation.marks)
    if not len(shared):
        return []
    count = int(np.isin(validation.marks, shared).sum())
    mark = train.marks[np.isin(train.marks, shared).argmax()]
    held_out, trained = (side.items[int(np.flatnonzero(side.marks == mark)[-1])].name for side in (validation, train))
    return [
        f"{count} of {len(validation.items)} held-out pictures look like copies of some that are trained on (length, "
        f"first and last 4 KiB are the same), such as {printable(held_out)} of {printable(trained)}"
    ]


def _shared(one_M: np.ndarray, other_N: np.ndarray) -> np.ndarray:
    """The marks that stand in both, sorted; their first halves are compared first, which is much faster."""
    halves_N = np.unique(_halves(other_N))
    pieces = (one_M[some] for some in _pieces(len(one_M)))
    near = [piece[np.isin(_halves(piece), halves_N)] for piece in pieces]
    return np.intersect1d(np.concatenate([np.empty(0, dtype="S16"), *near]), other_N)


def _halves(marks_M: np.ndarray) -> np.ndarray:
    """The first half of each, (M,) uint64."""
    return np.ascontiguousarray(marks_M).view(np.uint64)[::2]


def _captions(side: Side, listing: Listing, stand_ins: Mapping[int, int]) -> Captions | None:
    """Those of one side of a listing."""
    if listing.captions is None:
        return None
    return listing.captions.chosen(side.places, stand_ins=stand_ins)


def _split(name: str, side: Side, *, listing: Listing, size: Size, fetch: Fetch, captions: Captions | None) -> Split:
    """One side, ready to be shown."""
    labels = side.items.labels
    numbers = [b"%d\0" % number for number in range(len(listing.classes))]
    texts = (b"".join([numbers[label] for label in labels[some].tolist()]) for some in _pieces(len(labels)))
    marks = (side.marks[some].astype("S17").tobytes() for some in _pieces(len(labels)))  # 16 digits, and a zero
    every = chain(side.items.names.joined(), texts, marks)
    return Split(
        classes=listing.classes,
        labels=torch.from_numpy(labels),
        names=side.items.names.printable(),
        fingerprint=fingerprint([listing.kind, name, size, MARGIN, *listing.classes], every),
        fetch=fetch,
        height=size.height,
        width=size.width,
        captions=captions,
        windows=_windows(listing, side, at_hand=not isinstance(fetch, OnDemand)),
    )


def _windows(listing: Listing, side: Side, *, at_hand: bool) -> Windows | None:
    """Those of one side."""
    if listing.windows is None:
        return None
    windows = listing.windows.chosen(side.places)
    return windows.at_hand() if at_hand else windows


def _pieces(count: int) -> Iterator[slice]:
    """So many places, some at a time."""
    return (slice(first, min(first + PIECE, count)) for first in range(0, count, PIECE))


def _mark(stream: BinaryIO) -> bytes:
    """Tells an edited picture from the old one without reading all of it: its length, and 4 KiB from either end."""
    length = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    start = stream.read(4096)
    stream.seek(max(0, length - 4096))
    return fingerprint([length, start, stream.read(4096)]).encode()
