"""pyarrow where it is installed: the columns of parquet files as Python values, and what `datasets` notes in a schema.

The library weighs 170 MB, so it comes with the extra `[hub-data]`; a line says so where it is missing. Nothing here
knows what columns mean.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from nextscale.errors import InputError

EXTRA = "pip install 'nextscale[hub-data]'"
MOST_BYTES = 2**31  # of the unpacked columns that are read in one go
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


class Rows:
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
