"""What archives have in common: files with names in folders, walked like those on disk, and bytes read in place.

Knows no kind of archive (`nextscale.data.zips` and `nextscale.data.imagenet` do).
"""

from __future__ import annotations

import errno
import io
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nextscale.data.names import Names
from nextscale.data.walk import SYSTEM, Entries, Inside, Tree, is_picture
from nextscale.errors import InputError

INSIDE = "entr{y} with an absolute name or .. in it"
_CHUNK = 1 << 16  # bytes that are unpacked at a time


class Archive(Tree):
    """The files of an archive, (N,) by name; `left` counts what else is in it."""

    def __init__(self, root: Path, names: Iterable[str], entries: Entries, left: Counter[str]) -> None:
        """Raises `InputError` for a name that stands twice."""
        super().__init__(root)
        given = list(names)
        order_N = np.array(sorted(range(len(given)), key=given.__getitem__), dtype=np.int64)
        self.names_N = Names(given[place] for place in order_N)
        if twice := next((a for a, b in zip(self.names_N, self.names_N[1:], strict=False) if a == b), None):
            raise InputError(f"expected every name once in {root}, got {twice} twice")
        self._entries, self._left = entries.chosen(order_N), left

    @property
    def name(self) -> str:
        """See `Tree`."""
        return self.root.stem

    def look(self, below: str) -> Inside:
        """See `Tree`; what is in the archive and no file lies in its root."""
        here = Inside([], [], [], Counter() if below else Counter(self._left), None)
        place, end = self._first(below), self._behind(below)
        while place < end:
            name, slash, _ = self.names_N[place][len(below) :].partition("/")
            if not slash:
                place += 1
            else:
                place = self._behind(f"{below}{name}/")
            if name.startswith("."):
                continue
            if slash and name in SYSTEM:
                here.gone["folder{s} of the system"] += 1
            else:
                (here.folders if slash else here.pictures if is_picture(name) else here.others).append(name)
        here.folders.sort()  # by their names: with a slash behind them, a-b comes before a
        return here

    def _first(self, name: str) -> int:
        return bisect_left(self.names_N, name)

    def _behind(self, below: str) -> int:
        """The place behind the last name in a folder."""
        return self._first(f"{below[:-1]}0") if below else len(self.names_N)  # 0 comes behind the slash

    def open(self, name: str) -> BinaryIO:
        """See `Tree`."""
        place = self._first(name)
        if place == len(self.names_N) or self.names_N[place] != name:
            raise FileNotFoundError(errno.ENOENT, "no such file in the archive")
        return self._entries.open(place)

    def holds(self, name: str) -> bool:
        """See `Tree`."""
        place = self._first(name)
        return place < len(self.names_N) and self.names_N[place] == name

    def store(self, names: Names) -> Entries:
        """See `Tree`."""
        places = {name: place for place, name in enumerate(self.names_N)}
        return self._entries.chosen(np.fromiter(map(places.__getitem__, names), dtype=np.int64, count=len(names)))


class Inflated(io.RawIOBase):
    """What deflated bytes hold, unpacked as it is read and never beyond the size that was declared.

    Going back begins anew. Raises `OSError` for bytes that hold more, less or something else than was declared. Closes
    `packed`.
    """

    def __init__(self, packed: BinaryIO, *, size: int, crc32: int) -> None:
        self._packed, self._size, self._crc32 = packed, size, crc32
        self._position = 0
        self._begin()

    def _begin(self) -> None:
        self._packed.seek(0)
        self._unpacker, self._rest, self._at, self._sum = zlib.decompressobj(-zlib.MAX_WBITS), b"", 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"expected a place in the file, got {position}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        if self._position < self._at:
            self._begin()
        while self._at < min(self._position, self._size):
            self._unpack(min(_CHUNK, self._position - self._at))
        content = self._unpack(min(len(buffer), _CHUNK)) if self._position < self._size else b""
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def _unpack(self, most: int) -> bytes:
        """The next bytes, one at least."""
        content = b""
        while not content:
            packed = self._rest or self._packed.read(_CHUNK)
            try:
                content = self._unpacker.decompress(packed, most)
            except zlib.error as error:
                raise OSError(errno.EIO, f"damaged in the archive ({error})") from None
            self._rest = self._unpacker.unconsumed_tail
            if not content and (self._unpacker.eof or not packed):
                raise OSError(errno.EIO, "cut short in the archive")
        self._at, self._sum = self._at + len(content), zlib.crc32(content, self._sum)
        if self._at > self._size or (self._at == self._size and self._sum != self._crc32):
            raise OSError(errno.EIO, "other bytes than the archive declares")
        return content

    def close(self) -> None:
        self._packed.close()
        super().close()
