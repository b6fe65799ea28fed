"""Map-style data sets of PyTorch as a listing: whatever has a length and gives items by number.

An item is a pair: a picture (a Pillow image, a tensor or an array, `nextscale.images.as_uint8`) and what is known of
it: its class as a whole number, a caption or several in text, a mapping that holds either under the names that
`nextscale.data.metadata` knows, or None. Every item is read once at the start, for its class, size and mark, and its
picture again when a batch wants it; never by two threads at a time, since few data sets are made for that.
"""

from __future__ import annotations

import errno
import io
import operator
import reprlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import numpy as np
from torch import Tensor

from nextscale import images
from nextscale.data.captions import Captions, cleaned, counted
from nextscale.data.labels import numbers_first
from nextscale.data.listing import Examined, Items, Listing, hold_out, told_apart
from nextscale.data.metadata import CAPTIONS, LABELS
from nextscale.data.names import Names
from nextscale.data.pictures import Progress, fingerprint
from nextscale.data.walk import LeftOut
from nextscale.errors import InputError

BY_NUMBER = "5 % by hash of the number"
AGAIN = 8  # items that are read twice, to see whether they stay the same
WANTED = "a pair of a picture and its class, caption, a mapping of both, or None"
_alone = threading.Lock()  # while an item is read

Class = int | str | None


class Item(NamedTuple):
    """One picture, (3, H, W) uint8, and what is told of it."""

    picture: Tensor
    label: Class
    captions: Sequence[object]


@dataclass(frozen=True, kw_only=True, eq=False)
class Wrapped:
    """The store of one data set or two, the second behind the first."""

    parts: tuple[Any, ...]
    starts: tuple[int, ...]
    names: Names

    def where(self, place: int) -> str:
        """What messages call an item."""
        return f"item {self.names[place]} of {_called(self.parts[0])}"

    def item(self, place: int) -> Item:
        """Raises `InputError` for what is no pair or no picture, `OSError` where the data set itself fails."""
        part = int(np.searchsorted(self.starts, place, side="right")) - 1
        try:
            with _alone:
                given = self.parts[part][place - self.starts[part]]
        except Exception as error:  # it is somebody else's code
            raise OSError(errno.EIO, f"{type(error).__name__}: {images.reason(error)}") from error
        return _item(given, self.where(place))

    def open(self, place: int) -> BinaryIO:
        """See `nextscale.data.walk.Store`."""
        picture = self.item(place).picture
        header = b"P6 %d %d 255\n" % (picture.shape[2], picture.shape[1])
        return io.BytesIO(header + picture.permute(1, 2, 0).numpy().tobytes())


def _called(dataset: object) -> str:
    return type(dataset).__name__


# ---- one item --------------------------------------------------------------------------------------------------------


def _item(given: object, where: str) -> Item:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise InputError(f"{where}: expected {WANTED}, got {reprlib.repr(given)}")
    picture, told = given
    try:
        pixels = images.as_uint8(picture)
    except InputError as error:
        raise InputError(f"{where}: {str(error).removeprefix('images: ')}") from None
    return Item(pixels, *_told(told, where))


def _told(told: object, where: str) -> tuple[Class, Sequence[object]]:
    """The class and the captions."""
    if isinstance(told, Mapping):
        label, caption = (next((told[key] for key in keys if key in told), None) for keys in (LABELS, CAPTIONS))
        return _label(label, where), _captions(caption)
    if isinstance(told, str) or (isinstance(told, list | tuple) and all(isinstance(each, str) for each in told)):
        return None, _captions(told)
    return _label(told, where), ()


def _captions(given: object) -> Sequence[object]:
    return () if given is None else list(given) if isinstance(given, list | tuple) else [given]


def _label(given: Any, where: str) -> Class:
    if given is None or isinstance(given, str):
        return given
    try:
        return operator.index(given)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{where}: expected a class as a whole number or a name, got {reprlib.repr(given)}") from None


# ---- the listing -----------------------------------------------------------------------------------------------------


def survey(
    dataset: Any,
    validation: Any | None = None,
    *,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Listing:
    """The items of a data set, and held-out ones of another; `nextscale.data.wrap` tells arguments and errors."""
    parts = (dataset,) if validation is None else (dataset, validation)
    counts, root = [_length(part) for part in parts], Path(_called(dataset))
    names = Names(f"{'validation/' * side}{place}" for side, count in enumerate(counts) for place in range(count))
    held_out_N = hold_out(names, root=root) if validation is None else np.arange(len(names)) >= counts[0]
    store = Wrapped(parts=parts, starts=(0, counts[0])[: len(parts)], names=names)
    bad: Counter[str] = Counter()
    seen = _seen(store, bad, progress)
    _check_same(store, seen.examined)
    known = _classes(seen.labels[: counts[0]], dataset, classes)
    return Listing(
        kind="wrapped",
        root=root,
        items=Items(names=names, labels=_numbers(seen, known, store), held_out=held_out_N, store=store),
        classes=told_apart(known.names),
        held_out=BY_NUMBER if validation is None else f"the {counts[1]:,} items of {_called(validation)}",
        left_out=LeftOut(bad),
        notes=(*known.notes, *counted(seen.captions)),
        captions=seen.captions,
        examined=seen.examined,
    )


def _length(dataset: Any) -> int:
    try:
        count = len(dataset)
        has_items = hasattr(type(dataset), "__getitem__")
    except (TypeError, NotImplementedError):
        has_items = False
    if not has_items:
        raise InputError(f"expected a map-style data set, with len() and items by number, got {_called(dataset)}")
    return count


class Seen(NamedTuple):
    """What reading every item told, in their order; the class of one that cannot be read is None, too."""

    examined: Examined
    labels: list[Class]
    captions: Captions | None


def _seen(store: Wrapped, bad: Counter[str], progress: Progress | None) -> Seen:
    labels: list[Class] = []
    captions: list[tuple[str, ...]] = []

    def looks() -> Iterator[tuple[tuple[int, int], bytes] | str]:
        for place in range(len(store.names)):
            item = _tried(store, place)
            labels.append(None if isinstance(item, str) else item.label)
            captions.append(() if isinstance(item, str) else cleaned(item.captions, bad))
            yield item if isinstance(item, str) else (_size(item.picture), _mark(item.picture))
            if progress is not None:
                progress(place + 1, len(store.names))

    examined = Examined.of(looks(), len(store.names))
    return Seen(examined, labels, Captions(captions) if any(captions) else None)


def _tried(store: Wrapped, place: int) -> Item | str:
    """An item, or why the data set cannot give it."""
    try:
        return store.item(place)
    except (OSError, MemoryError) as error:
        return images.reason(error)


def _size(picture: Tensor) -> tuple[int, int]:
    _, height, width = picture.shape
    return height, width


def _mark(picture: Tensor) -> bytes:
    return fingerprint([tuple(picture.shape), picture.contiguous().numpy().tobytes()]).encode()


def _check_same(store: Wrapped, examined: Examined) -> None:
    """Raise `InputError` where an item changes from one time to the next: no run could be continued."""
    for place in range(min(AGAIN, len(store.names))):
        again = _tried(store, place)
        if not isinstance(again, str) and examined.marks[place] != _mark(again.picture):
            raise InputError(
                f"{store.where(place)}: expected the same picture each time, got two: leave out transforms that draw "
                "random numbers (crops and mirrored pictures are the trainer's)"
            )


# ---- which class -----------------------------------------------------------------------------------------------------


class Classes(NamedTuple):
    """Their names, the number of each way to tell one, and what there is to say of them."""

    names: tuple[str, ...]
    numbers: Mapping[Class, int]
    notes: tuple[str, ...] = ()

    @classmethod
    def named(cls, names: Sequence[str], *notes: str) -> Classes:
        """Told by their places in a list, or by name."""
        numbers: dict[Class, int] = {name: number for number, name in enumerate(names)}
        return cls(tuple(names), numbers | {number: number for number in range(len(names))}, notes)


def _classes(labels: Sequence[Class], dataset: object, given: Sequence[str] | None) -> Classes:
    """By the names that the caller gives or the data set has, or else in the order of what the items tell."""
    if given is not None:
        if not _are_names(given):
            raise InputError(f"classes: expected their names in a list, got {reprlib.repr(given)}")
        return Classes.named(given)
    values = {label for label in labels if label is not None}
    if not values:
        return Classes((_called(dataset),), {None: 0})
    own = getattr(dataset, "classes", None)
    if _are_names(own) and all(isinstance(value, int) for value in values):
        return Classes.named(own, f"the names of classes are those of {_called(dataset)}.classes")
    names = sorted(set(map(str, values)), key=numbers_first)
    return Classes(tuple(names), {value: names.index(str(value)) for value in values})


def _are_names(given: object) -> TypeGuard[Sequence[str]]:
    return isinstance(given, list | tuple) and bool(given) and all(isinstance(each, str) and each for each in given)


def _numbers(seen: Seen, classes: Classes, store: Wrapped) -> np.ndarray:
    """(N,) int64; 0 of items that cannot be read. Raises `InputError` for a class that is none of them."""
    numbers_N = np.zeros(len(seen.labels), dtype=np.int64)
    for place, label in enumerate(seen.labels):
        if place in seen.examined.reasons:
            continue
        if label not in classes.numbers:
            got = "none" if label is None else repr(label)
            raise InputError(f"{store.where(place)}: expected one of {len(classes.names)} classes, got {got}")
        numbers_N[place] = classes.numbers[label]
    return numbers_N
