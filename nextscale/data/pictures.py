"""What every data set gives: two splits of pictures at one size, handed out in batches.

Crops are cut here, once for all data sets: a picture is kept a little larger than asked for, and a batch takes the
centre, or the windows that the caller has drawn. Nothing here reads files or draws random numbers, so that processes
which share a batch each read their part of it alone.

Shapes: N pictures of a split, n of a batch, H height, W width in pixels.
"""

from __future__ import annotations

import hashlib
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nextscale import images
from nextscale.data.ahead import Begun
from nextscale.data.captions import Captions
from nextscale.data.walk import LeftOut, in_number
from nextscale.data.windows import Windows
from nextscale.errors import InputError

Progress = Callable[[int, int], None]  # called with (done, total)
# indices -> the indices shown, (3, h, w) uint8 of each; the same picture for an index that stands twice
Fetch = Callable[[list[int]], tuple[list[int], list[Tensor]]]


@runtime_checkable
class PictureByPicture(Protocol):
    """A `Fetch` in two parts: `settled(wanted, {index: read(index)})` is what the whole gives."""

    def read(self, index: int) -> Tensor | str:
        """One picture, (3, h, w) uint8, or why it cannot be read; a pure function, for any thread."""
        ...

    def settled(self, wanted: list[int], tried: Mapping[int, Tensor | str]) -> tuple[list[int], list[Tensor]]:
        """See `Fetch`: with others in the place of those that cannot be read, which are reported."""
        ...


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
CENTRED = (0.5, 0.5, 0.0)  # a view: halfway down, halfway right, not mirrored
_CHUNK = 1024  # items handed to the threads at a time: a million waiting jobs would take a gigabyte


class Pictures(Protocol):
    """One split of a data set at one size.

    `labels` is (N,) int64, `names` one name a picture; `fingerprint` is a hex string that changes when the pictures,
    their size or the split change. `captions` are those of each picture, None for a data set without any; `fingerprint`
    does not depend on them, they have their own.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def captions(self) -> Captions | None: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int] | Tensor, *, views: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images (n, 3, H, W) float32 in [-1, 1] and labels (n,) int64.

        `views`, (n, 3) float32 in [0, 1), tells how each picture is seen: how far down and how far right its crop sits
        (`images.crop`), and whether it is mirrored, from 0.5 on. Without it crops are centred and nothing is mirrored.
        Raises `InputError` for another shape.
        """
        ...


@dataclass(frozen=True, kw_only=True, repr=False)
class DataSet:
    """Two splits without a picture in common; `unreadable` grows if a large folder turns out to hold broken files."""

    train: Pictures
    validation: Pictures
    classes: tuple[str, ...]
    unreadable: list[str]
    held_out: str = ""
    """How the held-out part came about."""
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: tuple[str, ...] = ()
    """What else should be known, a sentence each."""

    @property
    def told(self) -> list[str]:
        """What a run should say of its data, beside how much there is: a line each."""
        held_out = [f"held out: {self.held_out}"] if self.held_out else []
        return [*held_out, *self.notes, *([f"left out: {self.left_out}"] if self.left_out.counts else [])]

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of the pictures that could not be read, as far as is known by now."""
        return tuple(sorted(set(self.unreadable)))

    def __repr__(self) -> str:
        sizes = f"{len(self.train):,} pictures to train on, {len(self.validation):,} held out"
        return f"DataSet({sizes}, {in_number(f'{len(self.classes):,} class{{es}}', len(self.classes))})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Split(Dataset[tuple[Tensor, int]]):
    """`Pictures` whose reading is left to `fetch`: the pictures of some indices, each at least height × width.

    Also a map-style data set for torch's `DataLoader` and others: `split[i]` is a picture, (3, H, W) float32 in
    [-1, 1], cropped to its middle, and its class. It can be pickled, and read by forked and spawned processes.
    """

    classes: tuple[str, ...]
    labels: Tensor
    names: Sequence[str]
    fingerprint: str
    fetch: Fetch
    height: int
    width: int
    captions: Captions | None = None
    windows: Windows | None = None
    """How a training should go through them; None: in any order."""

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices: Sequence[int] | Tensor, *, views: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Pictures.batch`."""
        wanted = in_range(indices, len(self))
        views = torch.tensor(CENTRED).expand(len(wanted), 3) if views is None else views
        check_views(views, len(wanted))
        shown, pictures = self.fetch(wanted.tolist())
        return windows(pictures, views, height=self.height, width=self.width), self.labels[shown]

    def begin(self, indices: Tensor, views: Tensor, pool: Executor, *, device: torch.device) -> Begun | None:
        """See `nextscale.data.ahead.Beginning`: where `fetch` reads picture by picture, or for a GPU."""
        if not isinstance(self.fetch, PictureByPicture):
            gains = isinstance(self.fetch, InMemory) and device.type == "cuda"
            read = partial(self.batch, indices, views=views)
            return Begun(pool.submit(read), read) if gains else None
        wanted = indices.tolist()
        tried = {index: pool.submit(self.fetch.read, index) for index in dict.fromkeys(wanted)}

        def of(shown: list[int], pictures: list[Tensor]) -> tuple[Tensor, Tensor]:
            return windows(pictures, views, height=self.height, width=self.width), self.labels[shown]

        def whole() -> tuple[Tensor, Tensor] | None:
            """Waits for jobs that came before it, so that one of the threads has each of them already."""
            pictures = [tried[index].result() for index in wanted]
            read = [picture for picture in pictures if isinstance(picture, Tensor)]
            return of(wanted, read) if len(read) == len(wanted) else None

        fetch = self.fetch
        return Begun(
            pool.submit(whole),
            lambda: of(*fetch.settled(wanted, {index: each.result() for index, each in tried.items()})),
        )

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One picture and its class. Raises `InputError` for what is no integer, `IndexError` for one out of range."""
        pictures, labels = self.batch([index])
        return pictures[0], int(labels[0])

    def __repr__(self) -> str:
        classes = in_number(f"{len(self.classes):,} class{{es}}", len(self.classes))
        return f"Split({len(self):,} pictures of {self.height}×{self.width}, {classes})"


def in_range(indices: Sequence[int] | Tensor, count: int) -> Tensor:
    """Indices of `count` pictures, (n,) int64, from 0 on; negative ones count from the end, as in lists.

    Raises `InputError` for what is no list of integers, `IndexError` for an index out of range.
    """
    try:
        wanted_n = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        wanted_n = torch.empty(())  # none of these is a list of numbers
    if wanted_n.ndim != 1 or (len(wanted_n) and wanted_n.dtype not in INTEGERS):
        raise InputError(f"indices: expected a list of integers, got {reprlib.repr(indices)}")
    wanted_n = wanted_n.to("cpu", torch.int64)
    outside_n = (wanted_n < -count) | (wanted_n >= count)
    if outside_n.any():
        raise IndexError(f"indices: expected some below {count}, got {wanted_n[outside_n][0]}")
    return wanted_n.where(wanted_n >= 0, wanted_n + count)


def check_views(views: Tensor, count: int) -> None:
    """Raise `InputError` unless views are (count, 3)."""
    if not isinstance(views, Tensor) or views.shape != (count, 3):
        got = tuple(views.shape) if isinstance(views, Tensor) else reprlib.repr(views)
        raise InputError(f"expected views of shape ({count}, 3), got {got}")


@dataclass(frozen=True, eq=False)
class InMemory:
    """A `Fetch` of pictures that are all decoded, (3, h, w) uint8 each."""

    stored: Sequence[Tensor]

    def __call__(self, wanted: list[int]) -> tuple[list[int], list[Tensor]]:
        return wanted, [self.stored[index] for index in wanted]

    def __reduce__(self) -> tuple[object, ...]:
        """As arrays: of every tensor that is sent to another process a file stays open, and there may be thousands."""
        return _of_arrays, ([picture.numpy() for picture in self.stored],)


def _of_arrays(stored: Sequence[np.ndarray]) -> InMemory:
    return InMemory(list(map(torch.from_numpy, stored)))


def from_memory(stored: Sequence[Tensor]) -> Fetch:
    """A `fetch` for pictures that are all decoded."""
    return InMemory(stored)


def windows(pictures: Sequence[Tensor], views: Tensor, *, height: int, width: int) -> Tensor:
    """One window of each (3, h, w) uint8 picture, by its row of `views`: (n, 3, height, width) float32 in [-1, 1]."""
    cut = torch.empty((len(pictures), 3, height, width), dtype=torch.uint8)
    for window, picture, (down, right, mirror) in zip(cut, pictures, views.tolist(), strict=True):
        seen = images.crop(picture, height=height, width=width, position=(down, right))
        window.copy_(seen.flip(-1) if mirror >= 0.5 else seen)
    return images.from_uint8(cut)


def in_threads(
    function: Callable[[_Item], _Result], items: Sequence[_Item], *, progress: Progress | None = None
) -> Iterator[_Result]:
    """`map` over a pool of threads; results keep the order of the items. Pillow decodes without holding the lock."""
    done, waiting = 0, iter(items)
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(waiting, _CHUNK)):
            for result in pool.map(function, chunk):
                done += 1
                if progress is not None:
                    progress(done, len(items))
                yield result


def fingerprint(parts: Iterable[object], joined: Iterable[bytes] = ()) -> str:
    """A hex string of 16 digits that changes with any of the parts; more may be `joined`, a zero behind each."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape"))
        digest.update(b"\0")
    for piece in joined:
        digest.update(piece)
    return digest.hexdigest()[:16]
