"""pyarrow where it is installed: tables in parquet, columns and cells of files, what `datasets` notes in a schema.

The library weighs 170 MB, so it comes with the extra `[hub-data]`; a line says so where it is missing. Parquet is read
a page or a row group at a time, Arrow files are mapped. Nothing here knows what columns mean.
"""

from __future__ import annotations

import errno
import io
import json
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any, NamedTuple

import numpy as np

from nextscale.data.pages import CODECS, Chunk, Pages, UnknownLayoutError
from nextscale.errors import InputError

EXTRA = "pip install 'nextscale[hub-data]'"
KIND = "parquet or Arrow file"
MOST_BYTES = 2**31  # of the unpacked columns of a table that is read in one go
MEMORY = 2**28  # bytes of pieces that are kept
PAGE, GROUP, MAPPED = "page", "group", "mapped"  # kinds of pieces
READERS = 2  # row groups that are read at a time: each may take a gigabyte
_ROWS = 4096  # that are Python objects at a time


def library(what: str) -> Any:
    """The module pyarrow, with its parquet reader. Raises `InputError` that tells how to get it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"expected pyarrow, which reads {what}, found none: {EXTRA}") from None
    return pyarrow


@contextmanager
def told(what: str, kind: str) -> Iterator[None]:
    """Inside, what pyarrow raises of a damaged file becomes an `InputError` that names it, and what it should be."""
    try:
        yield
    except InputError:
        raise
    except (library(what).ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        told = " ".join(str(error).split())[:200]
        raise InputError(f"expected a whole {kind}, got {what}: {told}") from None


def features(schema: Any) -> Mapping[str, Mapping[str, Any]]:
    """By column the type that `datasets` notes, such as {"_type": "Image"}; empty where it wrote nothing."""
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return {name: it for name, it in noted.items() if isinstance(it, dict)} if isinstance(noted, dict) else {}


def class_names(schema: Any, *, where: str) -> dict[str, tuple[str, ...]]:
    """The names of the classes by column. Raises `InputError` where they are no list of texts."""
    found = {}
    for column, feature in features(schema).items():
        if feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
                raise InputError(
                    f"{where}: expected the names of the classes of {column} as a list, got {str(names)[:60]}"
                )
            found[column] = tuple(names)
    return found


class Table:
    """A parquet file in memory: its columns, and its rows as Python values; classes come as their names."""

    def __init__(self, content: bytes, *, where: str) -> None:
        """Raises `InputError` for a damaged file, one that unpacks to more than 2 GiB, and where pyarrow is missing."""
        self.where = where
        pyarrow = library(where)
        with told(where, "parquet file"):
            self._file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
            self.columns = tuple(self._file.schema_arrow.names)
            self.classes = class_names(self._file.schema_arrow, where=where)
            meta = self._file.metadata
            size = sum(meta.row_group(group).total_byte_size for group in range(meta.num_row_groups))
        if size > MOST_BYTES:
            raise InputError(f"{where}: expected a table of at most {MOST_BYTES:,} bytes unpacked, got {size:,}")

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        """The number of each row from 1 on, and its cells."""
        numbers = count(1)
        with told(self.where, "parquet file"):
            for batch in self._file.iter_batches(batch_size=_ROWS, columns=list(columns)):
                cells = [self._named(column, batch.column(column).to_pylist()) for column in columns]
                yield from ((next(numbers), list(row)) for row in zip(*cells, strict=True))

    def _named(self, column: str, cells: list[Any]) -> list[Any]:
        names = self.classes.get(column)
        if names is None:
            return cells
        return [names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else None for cell in cells]


@dataclass(frozen=True)
class File:
    """A file: its schema, its row groups by the rows before each, and its columns."""

    path: Path

    @property
    def where(self) -> str:
        """What messages call it."""
        return str(self.path)

    @cached_property
    def _mapped(self) -> Any:
        """The table of an Arrow file, None of a parquet file."""
        if self.path.suffix == ".parquet":
            return None
        pyarrow = library(self.where)
        with told(self.where, "Arrow file"):
            stream = pyarrow.memory_map(self.where)
            whole = stream.read(6) == b"ARROW1"
            stream.seek(0)
            return (pyarrow.ipc.open_file if whole else pyarrow.ipc.open_stream)(stream).read_all()

    @cached_property
    def _meta(self) -> Any:
        with told(self.where, "parquet file"):
            return library(self.where).parquet.read_metadata(self.where)

    @cached_property
    def schema(self) -> Any:
        """Its Arrow schema. Raises `InputError` for a damaged file."""
        return self._meta.schema.to_arrow_schema() if self._mapped is None else self._mapped.schema

    @cached_property
    def starts(self) -> np.ndarray:
        """The first row of each group, and behind them the number of all rows."""
        if self._mapped is not None:
            rows = [len(batch) for batch in self._mapped.to_batches()]
        else:
            rows = [self._meta.row_group(group).num_rows for group in range(self._meta.num_row_groups)]
        return np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self.starts[-1])

    def costs(self, column: str) -> tuple[int, int]:
        """Bytes that are unpacked for a single cell of a column, at most, and those of all of it."""
        if self._mapped is not None:
            return 0, 0
        groups = map(self._meta.row_group, range(self._meta.num_row_groups))
        chunks = ([group.column(place) for place in range(group.num_columns)] for group in groups)
        sizes = [
            sum(each.total_uncompressed_size for each in group if each.path_in_schema.split(".")[0] == column)
            for group in chunks
        ]
        pages = self.pages(column)
        return max(sizes, default=0) if pages is None else pages.largest, sum(sizes)

    def column(self, name: str) -> Any:
        """All of it, as pyarrow has it. Raises `InputError` for a damaged file."""
        with told(self.where, KIND):
            if self._mapped is not None:
                return self._mapped.column(name)
            return library(self.where).parquet.ParquetFile(self.where).read([name]).column(name.split(".")[0])

    def paths(self, column: str) -> Any:
        """What stands under `path` in a column of pictures, nothing where there is none."""
        pyarrow = library(self.where)
        kind = self.schema.field(column).type
        if not pyarrow.types.is_struct(kind) or kind.get_field_index("path") < 0:
            return pyarrow.chunked_array([pyarrow.nulls(self.rows)])
        read = self.column(column if self._mapped is not None else f"{column}.path")
        return pyarrow.chunked_array([chunk.field("path") for chunk in read.chunks], pyarrow.string())

    def pieces(self, column: str) -> Pieces:
        """What of a column of pictures is read in one go. Raises `InputError` for a damaged file."""
        if self._mapped is not None:
            return Pieces(self.starts, self._mapped.column(column).chunk, MAPPED)
        if (pages := self.pages(column)) is not None:
            return Pieces(pages.starts, pages.read, PAGE)
        return self.groups(column)

    def groups(self, column: str) -> Pieces:
        """The same by row groups, which hold all that a cell does."""
        return Pieces(self.starts, partial(self._group, column=column), GROUP)

    def pages(self, column: str) -> Pages | None:
        """Those of a column's bytes; None of an Arrow file, and of one that is written as pyarrow alone reads it."""
        if self._mapped is not None:
            return None
        try:
            groups = map(self._meta.row_group, range(self._meta.num_row_groups))
            pages = Pages(self.path, [self._chunk(group, column) for group in groups], _unpacked)
            if pages.starts[-1] != self.rows:
                raise ValueError(f"{pages.starts[-1]} rows in its pages, {self.rows} in its list")
        except UnknownLayoutError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"expected a whole parquet file, got {self.where}: {error}") from None
        return pages

    def _chunk(self, group: Any, column: str) -> Chunk:
        """Where the bytes of a column lie in a row group. Raises `UnknownLayoutError` where that is not told."""
        for place in range(group.num_columns):
            found, kind = group.column(place), self._meta.schema.column(place)
            if found.path_in_schema not in (column, f"{column}.bytes"):
                continue
            if found.compression not in CODECS or found.physical_type != "BYTE_ARRAY" or kind.max_repetition_level:
                raise UnknownLayoutError(found.compression)
            start = min(filter(None, (found.data_page_offset, found.dictionary_page_offset)))
            codec = CODECS[found.compression]
            return Chunk(start, start + found.total_compressed_size, codec, kind.max_definition_level)
        raise UnknownLayoutError(column)

    def _group(self, number: int, column: str) -> Any:
        """A column of one row group. Raises `OSError` for one that is damaged or gone."""
        pyarrow = library(self.where)
        try:
            with pyarrow.parquet.ParquetFile(self.where, metadata=self._meta) as file:
                return file.read_row_group(number, columns=[column], use_threads=False).column(column).combine_chunks()
        except (pyarrow.ArrowException, ValueError, LookupError) as error:
            raise OSError(errno.EIO, f"damaged ({' '.join(str(error).split())[:100]})") from None


def _unpacked(codec: str, content: bytes, size: int) -> bytes:
    """Bytes by one of pyarrow's codecs. Raises `ValueError`, as all of pyarrow's errors here are, and `OSError`."""
    return library(KIND).Codec(codec).decompress(content, decompressed_size=size, asbytes=True)


class Pieces(NamedTuple):
    """A column in pieces: the first row of each, and behind them the number of rows; what reads one; and of which kind.

    What is read gives a cell by its place: bytes, None, or a scalar of pyarrow.
    """

    starts: np.ndarray
    read: Callable[[int], Any]
    kind: str


class Cells:
    """Files that were opened and pieces that were read last, for all threads of a process; pickled it is empty."""

    def __init__(self) -> None:
        self._lock, self._reading = Lock(), BoundedSemaphore(READERS)
        self._pieces: dict[tuple[Path, str, str], Pieces] = {}
        self._kept: OrderedDict[tuple[Path, str, str, int], _Slot] = OrderedDict()

    def __reduce__(self) -> tuple[type[Cells], tuple[()]]:
        return Cells, ()

    def __call__(self, path: Path, column: str, row: int) -> Any:
        """What stands in a row, as a Python value: bytes, or what else there is. Raises `OSError` if it is damaged."""
        found = self._cell(path, column, row, PAGE)
        return self._cell(path, column, row, GROUP) if found is None else found

    def _cell(self, path: Path, column: str, row: int, kind: str) -> Any:
        with self._lock:
            if (key := (path, column, kind)) not in self._pieces:
                self._pieces[key] = _opened(File(path), column, kind)
            pieces = self._pieces[key]
        number = int(np.searchsorted(pieces.starts, row, side="right")) - 1
        try:
            value = self._piece(key, pieces, number)[row - int(pieces.starts[number])]
        except (ValueError, LookupError, struct.error) as error:
            raise OSError(errno.EIO, f"damaged ({error})") from None
        return value if isinstance(value, bytes | None) else value.as_py()

    def _piece(self, key: tuple[Path, str, str], pieces: Pieces, number: int) -> Any:
        if pieces.kind == MAPPED:
            return pieces.read(number)
        with self._lock:
            slot = self._kept.setdefault((*key, number), _Slot())
            self._kept.move_to_end((*key, number))
        with slot.lock:
            if slot.piece is None:
                with self._reading if pieces.kind == GROUP else nullcontext():
                    slot.put(pieces.read(number))
                self._forget()
        return slot.piece

    def _forget(self) -> None:
        """Drop the least recently used pieces until the rest fits into `MEMORY`; the newest always stays."""
        with self._lock:
            taken = sum(slot.bytes for slot in self._kept.values())
            while taken > MEMORY and len(self._kept) > 1:
                taken -= self._kept.popitem(last=False)[1].bytes


def _opened(file: File, column: str, kind: str) -> Pieces:
    """Raises `OSError` where the file cannot be read any more."""
    try:
        return file.groups(column) if kind == GROUP else file.pieces(column)
    except InputError as error:
        raise OSError(errno.EIO, str(error)) from None


class _Slot:
    """A piece that is read or about to be, and the bytes that it takes."""

    def __init__(self) -> None:
        self.lock, self.bytes = Lock(), 0
        self.piece: Any = None

    def put(self, piece: Any) -> None:
        """What was read."""
        self.bytes = sum(map(len, filter(None, piece))) if isinstance(piece, list) else int(piece.nbytes)
        self.piece = piece
