"""A zip archive of a folder of pictures, stored or deflated, read in place and in any order.

The list at its end is read once; what it declares is checked and bounds what is unpacked, and nothing is written. What
the pictures mean is told by `nextscale.data.folder`, as of a folder of the same files.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from nextscale.data.archive import INSIDE, Archive, Inflated
from nextscale.data.tar import foreign_kind, window
from nextscale.errors import InputError

HEADER = struct.Struct("<4s22xHH")  # of a file: a signature, and behind 22 bytes the lengths of its name and its notes
SIGNATURE = b"PK\3\4"
LOCKED = 1  # the flag of a file that needs a password
OTHERS = {9: "deflate64", zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "LZMA", 93: "Zstandard", 95: "XZ"}
MOST_DEFLATED = 1032  # bytes that one byte can become


@dataclass(frozen=True, kw_only=True)
class Zipped:
    """Files of a zip by the places of their headers; all arrays are (N,) int64 and hold what the archive declares."""

    path: Path
    offsets: np.ndarray
    packed: np.ndarray
    sizes: np.ndarray
    sums: np.ndarray
    methods: np.ndarray
    flags: np.ndarray

    @classmethod
    def of(cls, path: Path, infos: Sequence[zipfile.ZipInfo]) -> Zipped:
        """What the list of an archive says of some files."""
        fields = ("header_offset", "compress_size", "file_size", "CRC", "compress_type", "flag_bits")
        columns = [np.array([getattr(info, field) for info in infos], dtype=np.int64) for field in fields]
        offsets, packed, sizes, sums, methods, flags = columns
        return cls(path=path, offsets=offsets, packed=packed, sizes=sizes, sums=sums, methods=methods, flags=flags)

    def chosen(self, places_M: np.ndarray) -> Self:
        """See `nextscale.data.walk.Entries`."""
        fields = ("offsets", "packed", "sizes", "sums", "methods", "flags")
        return replace(self, **{field: getattr(self, field)[places_M] for field in fields})

    def open(self, place: int) -> BinaryIO:
        """See `nextscale.data.walk.Store`."""
        packed, size, method = (int(array[place]) for array in (self.packed, self.sizes, self.methods))
        if self.flags[place] & LOCKED:
            raise OSError(errno.EACCES, "needs a password")
        if method == zipfile.ZIP_STORED and packed == size:
            return self._bytes(place)
        if method != zipfile.ZIP_DEFLATED:
            raise OSError(errno.ENOTSUP, f"packed by {OTHERS.get(method, f'method {method}')}, not stored or deflated")
        if size > MOST_DEFLATED * packed:
            raise OSError(errno.EIO, f"{size:,} bytes declared, more than {packed:,} deflated ones can hold")
        return io.BufferedReader(Inflated(self._bytes(place), size=size, crc32=int(self.sums[place])))

    def stored_at(self, place: int) -> int | None:
        """Where in the archive a file begins that is stored as it is; None for one that is packed."""
        is_stored = self.methods[place] == zipfile.ZIP_STORED and not self.flags[place] & LOCKED
        return self._begin(place) if is_stored else None

    def _bytes(self, place: int) -> BinaryIO:
        """Those in the archive."""
        return window(self.path, offset=self._begin(place), size=int(self.packed[place]))

    def _begin(self, place: int) -> int:
        """Where they begin, behind a header."""
        offset = int(self.offsets[place])
        with self.path.open("rb") as stream:
            stream.seek(offset)
            header = stream.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(SIGNATURE):
            raise OSError(errno.EIO, f"damaged in the archive at byte {offset}")
        _, name, notes = HEADER.unpack(header)
        return offset + HEADER.size + int(name) + int(notes)


def tree(path: Path) -> Archive:
    """The files of an archive.

    Raises `InputError` for one that is missing, no zip, cut short or damaged, or whose files overlap.
    """
    left: Counter[str] = Counter()
    infos = [info for info in listed(path) if _is_kept(info, left)]
    zipped = Zipped.of(path, infos)
    check_places(zipped)
    return Archive(path, [info.filename.removeprefix("./") for info in infos], zipped, left)


def listed(path: Path) -> list[zipfile.ZipInfo]:
    """What the list at the end of an archive says. Raises like `tree`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except FileNotFoundError:
        raise InputError(f"expected a zip archive, found nothing at {path}") from None
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, struct.error) as error:
        why = f"cut short or damaged ({error})" if _begins_so(path) else foreign_kind(path) or error
        raise InputError(f"expected a whole zip archive, got {path}: {why}") from None


def _begins_so(path: Path) -> bool:
    """Whether it is one at its beginning; the list of its files stands at its end."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False


def _is_kept(info: zipfile.ZipInfo, left: Counter[str]) -> bool:
    """Whether an entry is a file to be walked over; others are counted, but for folders."""
    parts = info.filename.split("/")
    if info.is_dir():
        return False
    if os.path.isabs(info.filename) or ".." in parts:
        left[INSIDE] += 1
        return False
    if stat.S_ISLNK(info.external_attr >> 16):
        left["link{s} in the archive"] += 1
        return False
    return True


def check_places(zipped: Zipped) -> None:
    """Raise `InputError` where files share bytes, as in archives made to unpack to much more than they hold."""
    order_N = np.argsort(zipped.offsets)
    ends_N = (zipped.offsets + HEADER.size + zipped.packed)[order_N]
    if len(order_N) and (
        (ends_N[:-1] > zipped.offsets[order_N][1:]).any() or ends_N[-1] > os.path.getsize(zipped.path)
    ):
        raise InputError(f"expected a whole zip archive, got {zipped.path}: the places of its files overlap")
