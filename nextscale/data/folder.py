"""A folder of pictures as a data set. Nothing to prepare: point at it; `nextscale.data.listing` tells the layouts.

The short side is scaled with Lanczos to 1.125 times the target, which leaves random crops their room. What fits in
2 GiB is decoded once and kept; a larger folder is decoded batch by batch, after its headers were checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nextscale import images
from nextscale.data.listing import File, by_hash, survey
from nextscale.data.pictures import DataSet, Fetch, Progress, Split, fingerprint, from_memory, in_threads
from nextscale.errors import InputError

MARGIN = 1.125
MEMORY = 2 * 2**30  # bytes


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a picture becomes: the size asked for."""

    height: int
    width: int

    def decode(self, path: Path) -> Tensor | None:
        """One file as (3, h, w) uint8 covering 1.125 times the size, or None if it cannot be read."""
        try:
            picture = images.open_rgb(path)
        except InputError:
            return None
        scaled = images.resize_to_cover(picture, height=self.height, width=self.width, margin=MARGIN)
        return images.uint8_from_pil(scaled)

    def decoded_bytes(self, path: Path) -> int | None:
        """What `decode` will take, by the header alone; None if that is unreadable."""
        try:
            stored = images.stored_size(path)
        except InputError:
            return None
        tall, wide = images.cover_size(stored, height=self.height, width=self.width, margin=MARGIN)
        return 3 * tall * wide


@dataclass(frozen=True, kw_only=True, eq=False)
class OnDemand:
    """Decodes pictures when a batch asks; where a file fails only then, the next readable one stands in."""

    files: tuple[File, ...]
    size: Size
    unreadable: list[str]
    failed: set[int] = field(default_factory=set)

    def __call__(self, wanted: list[int]) -> tuple[list[int], list[Tensor]]:
        """See `nextscale.data.pictures.Fetch`. Raises `InputError` when the whole split has become unreadable."""
        first_tries = in_threads(lambda index: self.size.decode(self.files[index].path), wanted)
        found = [
            (index, picture) if picture is not None else self._next_after(index)
            for index, picture in zip(wanted, first_tries, strict=True)
        ]
        return [index for index, _ in found], [picture for _, picture in found]

    def _next_after(self, index: int) -> tuple[int, Tensor]:
        self._report(index)
        for candidate in (*range(index + 1, len(self.files)), *range(index)):
            if candidate not in self.failed:
                picture = self.size.decode(self.files[candidate].path)
                if picture is not None:
                    return candidate, picture
                self._report(candidate)
        raise InputError(f"expected a readable picture among {len(self.files)} such as {self.files[0].path}, got none")

    def _report(self, index: int) -> None:
        self.failed.add(index)
        self.unreadable.append(self.files[index].name)


def load(root: Path, *, height: int, width: int, max_broken: float = 0.01, progress: Progress | None = None) -> DataSet:
    """The pictures under `root`; `nextscale.data.load` tells arguments and errors.

    `progress` runs through the files once while headers are checked, and again while a small folder is decoded.
    """
    listing, size = survey(root), Size(height=height, width=width)
    needed = list(in_threads(size.decoded_bytes, [file.path for file in listing.files], progress=progress))
    good = [file for file, count in zip(listing.files, needed, strict=True) if count is not None]
    decoded: dict[str, Tensor] | None = None
    if sum(count or 0 for count in needed) <= MEMORY:
        decoded = dict(_decode_all(good, size, progress=progress))
        good = [file for file in good if file.name in decoded]
    readable = {file.name for file in good}
    unreadable = [file.name for file in listing.files if file.name not in readable]
    _refuse_too_many(unreadable, len(listing.files), max_broken=max_broken, root=root)

    def split(name: str, files: tuple[File, ...]) -> Split:
        on_demand = OnDemand(files=files, size=size, unreadable=unreadable)
        fetch: Fetch = on_demand if decoded is None else from_memory([decoded[file.name] for file in files])
        return _split(name, files, classes=listing.classes, size=size, fetch=fetch)

    train, validation = _two_sides(good, root=root)
    return DataSet(
        train=split("train", train),
        validation=split("validation", validation),
        classes=listing.classes,
        unreadable=unreadable,
    )


def _decode_all(files: list[File], size: Size, *, progress: Progress | None) -> Iterator[tuple[str, Tensor]]:
    pictures = in_threads(size.decode, [file.path for file in files], progress=progress)
    for file, picture in zip(files, pictures, strict=True):
        if picture is not None:
            yield file.name, picture


def _refuse_too_many(unreadable: list[str], count: int, *, max_broken: float, root: Path) -> None:
    share = len(unreadable) / count
    if share > max_broken:
        some = ", ".join(unreadable[:3]) + (", …" if len(unreadable) > 3 else "")
        raise InputError(
            f"expected at most {max_broken:.1%} unreadable pictures in {root}, "
            f"got {len(unreadable)} of {count} ({share:.1%}): {some}"
        )


def _two_sides(good: list[File], *, root: Path) -> tuple[tuple[File, ...], tuple[File, ...]]:
    """Training and held-out files. Where broken files left one side empty, one picture of the other moves over."""
    if len(good) < 2:
        raise InputError(
            f"expected at least 2 readable pictures in {root}, one to train on and one held out, got {len(good)}"
        )
    validation = {file for file in good if file.held_out} or {min(good, key=lambda file: by_hash(file.name))}
    train = [file for file in good if file not in validation] or good[:1]
    return tuple(train), tuple(file for file in good if file in validation and file not in train)


def _split(name: str, files: tuple[File, ...], *, classes: tuple[str, ...], size: Size, fetch: Fetch) -> Split:
    names = tuple(file.name for file in files)
    labels = [file.label for file in files]
    marks = in_threads(_mark, [file.path for file in files])
    return Split(
        classes=classes,
        labels=torch.tensor(labels, dtype=torch.int64),
        names=names,
        fingerprint=fingerprint(["folder", name, size, MARGIN, *classes, *names, *labels, *marks]),
        fetch=fetch,
        height=size.height,
        width=size.width,
    )


def _mark(path: Path) -> str:
    """Tells an edited file from the old one without reading all of it: its length, and 4 KiB from either end."""
    length = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(4096)
        stream.seek(max(0, length - 4096))
        return fingerprint([length, start, stream.read(4096)])
