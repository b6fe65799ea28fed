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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, TypeVar

import torch
from torch import Tensor

from nextscale import images
from nextscale.data.captions import Captions
from nextscale.data.labels import WHOLE
from nextscale.data.listing import Item, Listing, by_hash
from nextscale.data.pictures import DataSet, Fetch, Progress, Split, fingerprint, from_memory, in_threads
from nextscale.errors import InputError, printable

Broken = Callable[[str, str], None]  # called with the name of an unreadable picture and the reason

MARGIN = 1.125
MEMORY = 2 * 2**30  # bytes
GONE = "gone"
SHOWN = 4  # groups of names in a note

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

    def decoded_bytes(self, item: Item) -> int | str:
        """What `decode` will take, by the header alone; or why that is unreadable."""

        def needed(stream: BinaryIO) -> int:
            stored = images.stored_size(stream)
            return 3 * math.prod(images.kept_size(stored, height=self.height, width=self.width, margin=MARGIN))

        return _tried(needed, item)


def _tried(function: Callable[[BinaryIO], _Result], item: Item) -> _Result | str:
    """What the function makes of a picture's bytes, or in a few words why it could not."""
    try:
        with item.open() as stream:
            return function(stream)
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
        first_tries = in_threads(lambda index: self.size.decode(self.items[index]), once)
        found = {
            index: (index, picture) if isinstance(picture, Tensor) else self._next_after(index, picture)
            for index, picture in zip(once, first_tries, strict=True)
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
    size = Size(height=height, width=width)
    needed = list(in_threads(size.decoded_bytes, listing.items, progress=progress))
    reasons = _reasons(listing.items, needed)
    good = [item for item in listing.items if item.name not in reasons]
    decoded: dict[str, Tensor] | None = None
    if sum(count for count in needed if isinstance(count, int)) <= MEMORY:
        pictures = list(in_threads(size.decode, good, progress=progress))
        decoded = {item.name: one for item, one in zip(good, pictures, strict=True) if isinstance(one, Tensor)}
        reasons |= _reasons(good, pictures)
        good = [item for item in good if item.name in decoded]
    unreadable: list[str] = []

    def report(name: str, why: str) -> None:
        unreadable.append(printable(name))
        if broken is not None:
            broken(printable(name), why)

    told = [(item.name, reasons[item.name]) for item in listing.items if item.name in reasons]
    for name, why in told:
        report(name, why)
    _refuse_too_many(told, listing, max_broken=max_broken)

    def split(name: str, side: Side) -> Split:
        on_demand = OnDemand(items=side.items, size=size, report=report)
        fetch: Fetch = on_demand if decoded is None else from_memory([decoded[item.name] for item in side.items])
        captions = _captions(side.items, listing, on_demand.stand_ins)
        return _split(name, side, listing=listing, size=size, fetch=fetch, captions=captions)

    train, validation = (Side.of(items) for items in _two_sides(good, listing))
    return DataSet(
        train=split("train", train),
        validation=split("validation", validation),
        classes=listing.classes,
        unreadable=unreadable,
        held_out=listing.held_out,
        left_out=listing.left_out,
        notes=(*listing.notes, *_alike(listing.classes), *_copies(train, validation)),
    )


def _reasons(items: Sequence[Item], found: Sequence[object]) -> dict[str, str]:
    """By name why pictures cannot be read: of those for which a reason was found in place of what was wanted."""
    return {item.name: reason for item, reason in zip(items, found, strict=True) if isinstance(reason, str)}


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


def _two_sides(good: list[Item], listing: Listing) -> tuple[list[Item], list[Item]]:
    """Training and held-out pictures. Where broken ones left one side empty, one of the other moves over."""
    if len(good) < 2:
        raise InputError(
            f"expected at least 2 readable pictures in {listing.root}, one to train on and one held out, "
            f"got {len(good)}"
        )
    train = [item for item in good if not item.held_out]
    validation = [item for item in good if item.held_out]
    if not train:
        train.append(validation.pop(0))
    elif not validation:
        chosen = min(range(len(train)), key=lambda index: by_hash(train[index].name))
        validation.append(train.pop(chosen))
    return train, validation


@dataclass(frozen=True, kw_only=True)
class Side:
    """The pictures of one split, each with its mark (`_mark`)."""

    items: Sequence[Item]
    marks: Sequence[str]

    @classmethod
    def of(cls, items: Sequence[Item]) -> Side:
        """Opens every file."""
        return cls(items=items, marks=list(in_threads(_mark, items)))


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
    held_out = {mark: item.name for item, mark in zip(validation.items, validation.marks, strict=True) if mark != GONE}
    known = {mark: item.name for item, mark in zip(train.items, train.marks, strict=True) if mark in held_out}
    if not known:
        return []
    count = sum(mark in known for mark in validation.marks)
    mark, name = next(iter(known.items()))
    return [
        f"{count} of {len(validation.items)} held-out pictures look like copies of some that are trained on (length, "
        f"first and last 4 KiB are the same), such as {printable(held_out[mark])} of {printable(name)}"
    ]


def _captions(items: Sequence[Item], listing: Listing, stand_ins: Mapping[int, int]) -> Captions | None:
    """Those of some items of a listing."""
    if listing.captions is None:
        return None
    places = {item.name: place for place, item in enumerate(listing.items)}
    return listing.captions.chosen((places[item.name] for item in items), stand_ins=stand_ins)


def _split(name: str, side: Side, *, listing: Listing, size: Size, fetch: Fetch, captions: Captions | None) -> Split:
    names = tuple(item.name for item in side.items)
    labels = [item.label for item in side.items]
    return Split(
        classes=listing.classes,
        labels=torch.tensor(labels, dtype=torch.int64),
        names=tuple(map(printable, names)),
        fingerprint=fingerprint([listing.kind, name, size, MARGIN, *listing.classes, *names, *labels, *side.marks]),
        fetch=fetch,
        height=size.height,
        width=size.width,
        captions=captions,
    )


def _mark(item: Item) -> str:
    """Tells an edited picture from the old one without reading all of it: its length, and 4 KiB from either end."""
    try:
        with item.open() as stream:
            length = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            start = stream.read(4096)
            stream.seek(max(0, length - 4096))
            return fingerprint([length, start, stream.read(4096)])
    except OSError:
        return GONE  # since it was listed; a batch that wants it finds that too, and names it
