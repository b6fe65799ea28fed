"""The files inside an uncompressed tar, by the places of their bytes: listed once, then read in any order.

Every stream has a file handle of its own, so that threads never move each other's position. Nothing here knows what
the files mean.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from nextscale.errors import InputError
from nextscale.images import foreign


class Member(NamedTuple):
    """One file in a tar: its name there, and the place of its bytes."""

    tar: Path
    name: str
    offset: int
    size: int

    def open(self) -> BinaryIO:
        """Its bytes alone. Raises `OSError` where the tar is gone."""
        return window(self.tar, offset=self.offset, size=self.size)


def window(path: Path, *, offset: int, size: int) -> BinaryIO:
    """Some bytes of a file as a file of their own. Raises `OSError` where it is gone."""
    return io.BufferedReader(_Window(path.open("rb", buffering=0), start=offset, length=size))


def members(path: Path, left: Counter[str] | None = None) -> Iterator[Member]:
    """The regular files of a tar, in the order they lie there; only headers are read. `left` counts what else there is.

    Raises `InputError` for a tar that is missing, empty, compressed, cut short or damaged.
    """
    left, place = Counter() if left is None else left, -1
    try:
        with tarfile.TarFile(path, encoding="utf-8") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all, a kilobyte each
                if info.offset_data <= place or info.size < 0:
                    raise tarfile.ReadError(f"damaged at byte {info.offset}")
                place = info.offset_data
                if info.isreg() and not info.issparse():
                    yield Member(path, info.name.removeprefix("./"), info.offset_data, info.size)
                else:
                    left[_kind(info)] += 1
            _check_end(path, tar.offset)
            if behind := _behind(path, tar.offset):
                left["byte{s} behind the end of a shard"] += behind
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"expected a whole, uncompressed tar, got {path}: {foreign_kind(path) or error}") from error


def foreign_kind(path: Path) -> str | None:
    """What a file is that is often there instead of an archive; None for any other."""
    try:
        with path.open("rb") as stream:
            return foreign(stream.read(64))
    except OSError:
        return None


def _kind(info: tarfile.TarInfo) -> str:
    if info.isdir():
        return "folder entr{y} in shards"
    return "link{s} in shards" if info.issym() or info.islnk() else "special file{s} in shards"


def _behind(path: Path, offset: int) -> int:
    """How many bytes follow the zeros that end a tar, such as another tar that `cat` put there."""
    with path.open("rb") as stream:
        stream.seek(offset)
        while chunk := stream.read(1 << 20):
            if rest := chunk.lstrip(b"\0"):
                return os.fstat(stream.fileno()).st_size - (stream.tell() - len(rest))
    return 0


def _check_end(path: Path, offset: int) -> None:
    """`tarfile` takes a damaged header for the end, and a missing one too; a whole tar ends with a block of zeros."""
    with path.open("rb") as stream:
        stream.seek(offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"damaged or cut short at byte {offset}")


class _Window(io.RawIOBase):
    """`length` bytes of a file from `start` on, as a file of their own. Closes the file."""

    def __init__(self, file: io.FileIO, *, start: int, length: int) -> None:
        self._file, self._start, self._length, self._position = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if position < 0:
            raise ValueError(f"expected a place in the file, got {position}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        room = max(0, min(len(buffer), self._length - self._position))
        self._file.seek(self._start + self._position)
        count = self._file.readinto(memoryview(buffer)[:room])
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
