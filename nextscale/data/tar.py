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


def members(tar: Path | Member, left: Counter[str] | None = None) -> Iterator[Member]:
    """The regular files of a tar, in the order they lie there; only headers are read. `left` counts what else there is.

    A tar inside another is a member of that; its files are members of the outer one. Raises `InputError` for a tar that
    is missing, empty, compressed, cut short or damaged.
    """
    left, place = Counter() if left is None else left, -1
    path, start, where = (
        (tar, 0, f"{tar}") if isinstance(tar, Path) else (tar.tar, tar.offset, f"{tar.name} in {tar.tar}")
    )
    try:
        with _opened(tar) as stream, tarfile.TarFile(fileobj=stream, encoding="utf-8") as opened:
            while (info := opened.next()) is not None:
                opened.members.clear()  # type: ignore[attr-defined]  # it would keep them all, a kilobyte each
                if info.offset_data <= place or info.size < 0:
                    raise tarfile.ReadError(f"damaged at byte {info.offset}")
                place = info.offset_data
                if info.isreg() and not info.issparse():
                    yield Member(path, info.name.removeprefix("./"), start + info.offset_data, info.size)
                else:
                    left[_kind(info)] += 1
            _check_end(stream, opened.offset)
            if behind := _behind(stream, opened.offset):
                left["byte{s} behind the end of a shard"] += behind
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"expected a whole, uncompressed tar, got {where}: {_foreign(tar) or error}") from error


def _opened(tar: Path | Member) -> BinaryIO:
    return tar.open("rb") if isinstance(tar, Path) else tar.open()


def foreign_kind(path: Path) -> str | None:
    """What a file is that is often there instead of an archive; None for any other."""
    try:
        with path.open("rb") as stream:
            return foreign(stream.read(64))
    except OSError:
        return None


def _foreign(tar: Path | Member) -> str | None:
    return foreign_kind(tar) if isinstance(tar, Path) else None


def _kind(info: tarfile.TarInfo) -> str:
    if info.isdir():
        return "folder entr{y} in shards"
    return "link{s} in shards" if info.issym() or info.islnk() else "special file{s} in shards"


def _behind(stream: BinaryIO, offset: int) -> int:
    """How many bytes follow the zeros that end a tar, such as another tar that `cat` put there."""
    stream.seek(offset)
    while chunk := stream.read(1 << 20):
        if rest := chunk.lstrip(b"\0"):
            at = stream.tell() - len(rest)
            return stream.seek(0, os.SEEK_END) - at
    return 0


def _check_end(stream: BinaryIO, offset: int) -> None:
    """`tarfile` takes a damaged header for the end, and a missing one too; a whole tar ends with a block of zeros."""
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
