"""What every source of pictures says of itself: which pictures, of which class, in which split. Opens no picture.

`nextscale.data.folder` and `nextscale.data.shards` make listings, `nextscale.data.reading` turns one into a data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from nextscale.data.captions import Captions
from nextscale.data.walk import LeftOut
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


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All pictures of a source, in an order that does not depend on the machine; `kind` goes into fingerprints."""

    kind: str
    root: Path
    items: Sequence[Item]
    classes: tuple[str, ...]
    held_out: str
    """How the held-out part came about."""
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: tuple[str, ...] = ()
    """What else should be known of classes and captions, a sentence each."""
    captions: Captions | None = None
    """Of the items in their order; None where none are wanted."""


def hold_out(names: Sequence[str], *, root: Path) -> set[int]:
    """Indices of the 5 %, at least one, that come first by hash: a new name moves few others to the other side."""
    if len(names) < 2:
        raise InputError(f"expected at least 2 pictures in {root}, one to train on and one held out, got {len(names)}")
    count = max(1, round(HELD_OUT * len(names)))
    marks = np.array([by_hash(name) for name in names], dtype="S32")
    return set(np.argpartition(marks, count - 1)[:count].tolist())


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
