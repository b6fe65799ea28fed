"""What every source of pictures says of itself: which pictures, of which class, in which split. Opens no picture.

`nextscale.data.folder` and `nextscale.data.shards` make listings, `nextscale.data.reading` turns one into a data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from nextscale.errors import InputError

VALIDATION = ("val", "validation", "test")  # what the held-out part may be called; the first that is there is taken
HELD_OUT = 0.05


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


def hold_out(names: Sequence[str], *, root: Path) -> set[int]:
    """Indices of the 5 %, at least one, that come first by hash: a new name moves few others to the other side."""
    if len(names) < 2:
        raise InputError(f"expected at least 2 pictures in {root}, one to train on and one held out, got {len(names)}")
    order = sorted(range(len(names)), key=lambda index: by_hash(names[index]))
    return set(order[: max(1, round(HELD_OUT * len(names)))])


def by_hash(name: str) -> str:
    """A sorting key without any order that a person or a camera gave."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
