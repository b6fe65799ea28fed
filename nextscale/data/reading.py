"""A listing of pictures as a data set: the reading, which is the same wherever the bytes lie.

The short side is scaled with Lanczos to 1.125 times the target, which leaves random crops their room. What fits in
2 GiB is decoded once and kept; a larger set is decoded batch by batch, after the headers were checked.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nextscale import images
from nextscale.data.listing import Item, Listing, by_hash
from nextscale.data.pictures import DataSet, Fetch, Progress, Split, fingerprint, from_memory, in_threads
from nextscale.errors import InputError, printable

Broken = Callable[[str, str], None]  # called with the name of an unreadable picture and the reason

MARGIN = 1.125
MEMORY = 2 * 2**30  # bytes


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a picture becomes: the size asked for."""

    height: int
    width: int
    reasons: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Why pictures cannot be read, by their names; not in `repr`, which fingerprints hold."""

    def decode(self, item: Item) -> Tensor | None:
        """One picture as (3, h, w) uint8 covering 1.125 times the size, or None if it cannot be read."""
        try:
            with item.open() as stream:
                picture = images.open_rgb(stream)
        except (InputError, OSError) as error:
            self.reasons[item.name] = printable(str(error))
            return None
        scaled = images.resize_to_cover(picture, height=self.height, width=self.width, margin=MARGIN)
        return images.uint8_from_pil(scaled)

    def decoded_bytes(self, item: Item) -> int | None:
        """What `decode` will take, by the header alone; None if that is unreadable."""
        try:
            with item.open() as stream:
                stored = images.stored_size(stream)
        except (InputError, OSError) as error:
            self.reasons[item.name] = printable(str(error))
            return None
        tall, wide = images.cover_size(stored, height=self.height, width=self.width, margin=MARGIN)
        return 3 * tall * wide


@dataclass(frozen=True, kw_only=True, eq=False)
class OnDemand:
    """Decodes pictures when a batch asks; where one fails only then, the next readable one stands in."""

    items: Sequence[Item]
    size: Size
    report: Callable[[str], None]
    failed: set[int] = field(default_factory=set)

    def __call__(self, wanted: list[int]) -> tuple[list[int], list[Tensor]]:
        """See `nextscale.data.pictures.Fetch`. Raises `InputError` when the whole split has become unreadable."""
        first_tries = in_threads(lambda index: self.size.decode(self.items[index]), wanted)
        found = [
            (index, picture) if picture is not None else self._next_after(index)
            for index, picture in zip(wanted, first_tries, strict=True)
        ]
        return [index for index, _ in found], [picture for _, picture in found]

    def _next_after(self, index: int) -> tuple[int, Tensor]:
        self._report(index)
        for candidate in (*range(index + 1, len(self.items)), *range(index)):
            if candidate not in self.failed:
                picture = self.size.decode(self.items[candidate])
                if picture is not None:
                    return candidate, picture
                self._report(candidate)
        raise InputError(f"expected a readable picture among {len(self.items)} such as {self.items[0].name}, got none")

    def _report(self, index: int) -> None:
        if index not in self.failed:
            self.failed.add(index)
            self.report(self.items[index].name)


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
    good = [item for item, count in zip(listing.items, needed, strict=True) if count is not None]
    decoded: dict[str, Tensor] | None = None
    if sum(count or 0 for count in needed) <= MEMORY:
        decoded = dict(_decode_all(good, size, progress=progress))
        good = [item for item in good if item.name in decoded]
    readable = {item.name for item in good}
    unreadable: list[str] = []

    def report(name: str) -> None:
        unreadable.append(printable(name))
        if broken is not None:
            broken(printable(name), size.reasons[name])

    for item in listing.items:
        if item.name not in readable:
            report(item.name)
    _refuse_too_many(unreadable, listing, max_broken=max_broken)

    def split(name: str, items: Sequence[Item]) -> Split:
        on_demand = OnDemand(items=items, size=size, report=report)
        fetch: Fetch = on_demand if decoded is None else from_memory([decoded[item.name] for item in items])
        return _split(name, items, listing=listing, size=size, fetch=fetch)

    train, validation = _two_sides(good, listing)
    return DataSet(
        train=split("train", train),
        validation=split("validation", validation),
        classes=listing.classes,
        unreadable=unreadable,
        held_out=listing.held_out,
        left_out=listing.left_out,
        notes=listing.notes,
    )


def _decode_all(items: Sequence[Item], size: Size, *, progress: Progress | None) -> Iterator[tuple[str, Tensor]]:
    pictures = in_threads(size.decode, items, progress=progress)
    for item, picture in zip(items, pictures, strict=True):
        if picture is not None:
            yield item.name, picture


def _refuse_too_many(unreadable: list[str], listing: Listing, *, max_broken: float) -> None:
    count = len(listing.items)
    share = len(unreadable) / count
    if share > max_broken:
        some = ", ".join(unreadable[:3]) + (", …" if len(unreadable) > 3 else "")
        raise InputError(
            f"expected at most {max_broken:.1%} unreadable pictures in {listing.root}, "
            f"got {len(unreadable)} of {count} ({share:.1%}): {some}"
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


def _split(name: str, items: Sequence[Item], *, listing: Listing, size: Size, fetch: Fetch) -> Split:
    names = tuple(item.name for item in items)
    labels = [item.label for item in items]
    marks = in_threads(_mark, items)
    return Split(
        classes=listing.classes,
        labels=torch.tensor(labels, dtype=torch.int64),
        names=tuple(map(printable, names)),
        fingerprint=fingerprint([listing.kind, name, size, MARGIN, *listing.classes, *names, *labels, *marks]),
        fetch=fetch,
        height=size.height,
        width=size.width,
    )


def _mark(item: Item) -> str:
    """Tells an edited picture from the old one without reading all of it: its length, and 4 KiB from either end."""
    with item.open() as stream:
        length = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        start = stream.read(4096)
        stream.seek(max(0, length - 4096))
        return fingerprint([length, start, stream.read(4096)])
