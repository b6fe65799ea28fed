"""Single values of a parquet column of bytes, by the page that each lies in.

pyarrow reads whole row groups, which of pictures are some 100 MB; a page is one, and may be unpacked alone. What a page
holds is told by headers in the file, in Thrift's compact protocol. Followed is the Apache Parquet specification, as far
as writers use it for bytes: columns without repetition, plain or through a dictionary, data pages of both versions.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DATA, DICTIONARY, DATA_2 = 0, 2, 3  # kinds of pages
PLAIN, OLD_DICTIONARY, BY_DICTIONARY, RUNS = 0, 2, 8, 3  # encodings: of values, and RUNS of levels
CODECS = {  # by parquet's names pyarrow's
    "UNCOMPRESSED": None,
    "SNAPPY": "snappy",
    "GZIP": "gzip",
    "BROTLI": "brotli",
    "ZSTD": "zstd",
    "LZ4": "lz4_raw",
}
HEADER = 1 << 13  # bytes that are read for a header at first; statistics may make it long
MOST_HEADER = 1 << 20
MOST_BYTES = 2**31  # of a page
MOST_VALUES = 2**24  # of a page

Value = bytes | None


class UnknownLayoutError(Exception):
    """The column is written in a way that is not read here."""


class Chunk(NamedTuple):
    """The pages of one row group: where they begin and end, how they are packed, and the levels above "nothing"."""

    start: int
    end: int
    codec: str | None
    levels: int


@dataclass(frozen=True)
class Page:
    """A page by its header: its kind, where its bytes lie, how many it unpacks to, its values and their encoding."""

    kind: int
    start: int
    packed: int
    unpacked: int
    values: int
    encoding: int
    levels: int
    """Bytes of levels that stand in front and are not packed."""
    is_packed: bool


@dataclass(frozen=True)
class Pages:
    """A column of a file; `codecs` unpacks bytes: (codec, bytes, unpacked size) -> bytes."""

    path: Path
    chunks: Sequence[Chunk]
    codecs: Any

    @cached_property
    def _pages(self) -> list[tuple[Chunk, Page | None, Page]]:
        """Each page of values with its row group and the dictionary of that."""
        found = []
        with self.path.open("rb") as file:
            for chunk in self.chunks:
                at, dictionary = chunk.start, None
                while at < chunk.end:
                    page = _page(file.fileno(), at)
                    if page.kind == DICTIONARY:
                        dictionary = page
                    elif page.kind in (DATA, DATA_2):
                        _check(page, dictionary)
                        found.append((chunk, dictionary, page))
                    at = page.start + page.packed
        return found

    @cached_property
    def starts(self) -> np.ndarray:
        """The first row of each page, and behind them the number of rows.

        Raises `UnknownLayoutError`, `OSError`, and `ValueError` for a damaged file.
        """
        return np.concatenate([[0], np.cumsum([page.values for _, _, page in self._pages], dtype=np.int64)])

    @cached_property
    def largest(self) -> int:
        """Bytes that are unpacked for a single value, at most."""
        sizes = (page.unpacked + (dictionary.unpacked if dictionary else 0) for _, dictionary, page in self._pages)
        return max(sizes, default=0)

    def read(self, number: int) -> list[Value]:
        """The values of a page, None where there is none. Raises `OSError`, and `ValueError` for a damaged one."""
        chunk, dictionary, page = self._pages[number]
        levels, content = self._unpacked(chunk, page)
        present = [level == chunk.levels for level in levels] if levels is not None else [True] * page.values
        if page.encoding == PLAIN:
            values: list[bytes] = _plain(content, sum(present))
        else:
            assert dictionary is not None, "checked when pages were listed"
            known = _plain(self._unpacked(chunk, dictionary)[1], dictionary.values)
            values = [known[place] for place in _runs(content[1:], content[0], sum(present))]
        rest = iter(values)
        return [next(rest) if there else None for there in present]

    def _unpacked(self, chunk: Chunk, page: Page) -> tuple[list[int] | None, bytes]:
        """The levels of a page's values, None where there is but one, and the bytes of the values."""
        with self.path.open("rb") as file:
            stored = _stored(file.fileno(), page.packed, page.start)
        front, rest = stored[: page.levels], stored[page.levels :]
        if page.is_packed and chunk.codec is not None:
            rest = self.codecs(chunk.codec, rest, page.unpacked - page.levels)
        if page.kind == DICTIONARY or not chunk.levels:
            return None, rest
        width = chunk.levels.bit_length()
        if page.kind == DATA_2:
            return _runs(front, width, page.values), rest
        (length,) = struct.unpack_from("<I", rest)
        return _runs(rest[4 : 4 + length], width, page.values), rest[4 + length :]


def _check(page: Page, dictionary: Page | None) -> None:
    if page.encoding not in (PLAIN, OLD_DICTIONARY, BY_DICTIONARY) or page.values > MOST_VALUES:
        raise UnknownLayoutError(f"encoding {page.encoding}")
    if page.encoding != PLAIN and dictionary is None:
        raise ValueError("no dictionary in front of its page")


# ---- what is in a page -----------------------------------------------------------------------------------------------


def _plain(content: bytes, count: int) -> list[bytes]:
    """Values with their lengths in front, in four bytes."""
    values, at = [], 0
    for _ in range(count):
        (length,) = struct.unpack_from("<I", content, at)
        if at + 4 + length > len(content):
            raise ValueError("a value behind the end of its page")
        values.append(content[at + 4 : at + 4 + length])
        at += 4 + length
    return values


def _runs(content: bytes, width: int, count: int) -> list[int]:
    """Numbers of `width` bits: runs of one of them, and groups of eight packed bit by bit, the lowest first."""
    numbers: list[int] = []
    at, size = 0, (width + 7) // 8
    if width > 32:
        raise ValueError(f"numbers of {width} bits")
    while len(numbers) < count:
        head, at = _varint(content, at)
        if head & 1:
            length = (head >> 1) * width
            bits = np.unpackbits(np.frombuffer(content[at : at + length], np.uint8), bitorder="little")
            places = 1 << np.arange(width, dtype=np.int64)
            numbers += (bits.reshape(-1, width) @ places).tolist() if width else [0] * (8 * (head >> 1))
            at += length
        else:
            value = int.from_bytes(content[at : at + size], "little")
            numbers += [value] * min(head >> 1, count - len(numbers))
            at += size
        if at > len(content):
            raise ValueError("numbers behind the end of their page")
    return numbers[:count]


# ---- headers ---------------------------------------------------------------------------------------------------------


def _page(file: int, at: int) -> Page:
    """The page whose header stands at a place. Raises `ValueError` for what is none."""
    fields, length = _header(file, at)
    kind, unpacked, packed = (fields.get(number) for number in (1, 2, 3))
    about = fields.get({DATA: 5, DICTIONARY: 7, DATA_2: 8}.get(kind or 0, 0), {})
    if not all(isinstance(size, int) and 0 <= size < MOST_BYTES for size in (packed, unpacked, about.get(1, 0))):
        raise ValueError(f"no header of a page at byte {at}")
    levels = about.get(5, 0) + about.get(6, 0) if kind == DATA_2 else 0
    if kind == DATA and about.get(3, RUNS) != RUNS:
        raise UnknownLayoutError(f"levels of encoding {about[3]}")
    return Page(
        kind=int(kind or 0),
        start=at + length,
        packed=int(packed or 0),
        unpacked=int(unpacked or 0),
        values=int(about.get(1, 0)),
        encoding=int(about.get(4 if kind == DATA_2 else 2, 0)),
        levels=levels,
        is_packed=bool(about.get(7, True)) if kind == DATA_2 else True,
    )


def _header(file: int, at: int) -> tuple[dict[int, Any], int]:
    size = HEADER
    while True:
        content = os.pread(file, size, at)
        try:
            return _fields(content, 0, 0)
        except IndexError:
            if len(content) < size or size >= MOST_HEADER:
                raise ValueError(f"no header of a page at byte {at}") from None
            size *= 8


def _stored(file: int, size: int, at: int) -> bytes:
    content = os.pread(file, size, at)
    if len(content) < size:
        raise ValueError(f"cut short at byte {at + len(content)}")
    return content


def _fields(content: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol: its fields by number, and the place behind it."""
    fields, number = dict[int, Any](), 0
    if depth > 4:
        raise ValueError("structs in structs")
    while (head := content[at]) != 0:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(content, at)
        fields[number], at = _value(content, at, head & 15, depth)
    return fields, at + 1


def _value(content: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return content[at], at + 1
    if kind in (4, 5, 6):
        return _integer(content, at)
    if kind in (7, 8):  # a fraction or statistics, of no use here
        length, at = (8, at) if kind == 7 else _varint(content, at)
        if at + length > len(content):
            raise IndexError
        return None, at + length
    if kind == 12:
        return _fields(content, at, depth + 1)
    raise ValueError(f"a field of kind {kind}")


def _integer(content: bytes, at: int) -> tuple[int, int]:
    """Zigzag: 0, -1, 1, -2 ..."""
    value, at = _varint(content, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first. Raises `IndexError` behind the end."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
