"""Tables about the pictures below a folder, in CSV, JSON lines or parquet: their rows, and whether each is a picture's.

A CSV table is a file in UTF-8 whose first line names its columns; a line of JSON is an object, whose keys are columns.
One column names files, by their paths with forward slashes: `file`, `file_name`, or what alone ends in `_file_name`.
What the others mean is the caller's.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from nextscale.checks import check_fields
from nextscale.data import arrow
from nextscale.data.walk import Folder, Tree, is_picture
from nextscale.errors import InputError
from nextscale.images import KINDS

FILE, FILE_NAME = "file", "file_name"
OUTSIDE = "--outside-files takes others, too"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of tables and parquet files say what; None is found by name and type."""

    image: str | None = None
    """The pictures, or the names of their files."""
    label: str | None = None
    """Their classes."""
    caption: str | None = None
    """What they show, in words."""
    outside: bool = False
    """Whether a table may name files outside of the folder, by absolute paths and by .. in them."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def options(self) -> list[str]:
        """The options of the command line that ask for these."""
        named = {"--image-column": self.image, "--label-column": self.label, "--caption-column": self.caption}
        words = [word for option, name in named.items() if name is not None for word in (option, name)]
        return [*words, "--outside-files"] if self.outside else words

    def refuse(self, of: str) -> None:
        """Raise `InputError` where some are asked for of data that has none."""
        if options := " ".join(self.options):
            raise InputError(f"{options}: expected data with columns (metadata or parquet files), got {of}")


class Cells(NamedTuple):
    """What a row says; `line` is where it ends, from 1."""

    file: str
    cell: Any
    line: int


class Rows(NamedTuple):
    """A table: its columns, and its rows by some of them, with the number of each; messages call one a `unit`."""

    where: str
    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[tuple[int, list[Any]]]]
    unit: str = "line"

    @property
    def at(self) -> str:
        """What stands before the number of a row in messages."""
        return f"{self.where}, {self.unit}"

    def column(self, asked: str | None, *usual: str) -> str | None:
        """The one that is asked for, or else the first of the usual names that there is."""
        if asked is not None and asked not in self.columns:
            raise InputError(f"{self.where}: expected a column {asked}, got {','.join(self.columns)[:200]!r}")
        found = asked or next((name for name in usual if name in self.columns), None)
        if found is not None and (count := self.columns.count(found)) > 1:
            raise InputError(f"{self.where}: expected one column {found}, got {count}")
        return found

    def of_files(self, asked: str | None, *usual: str) -> str | None:
        """The column that names the files. Raises `InputError` where it may be one of several."""
        if found := self.column(asked, *usual):
            return found
        others = [name for name in self.columns if name.endswith(f"_{FILE_NAME}")]
        if len(others) > 1:
            raise InputError(
                f"{self.where}: expected one column of files, got {', '.join(others)}: --image-column names one"
            )
        return self.column(*others) if others else None


def plain(name: str) -> str:
    """A name as names are compared: macOS writes the é of a file name as two characters (NFD), keyboards as one."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


class Source(NamedTuple):
    """Two columns of a table, what stands before the number of a row in messages, and the folder of the table's names.

    Names of files begin from that folder in the tree of the pictures: it is empty, or ends with a slash.
    """

    cells: Iterable[Cells]
    at: str
    home: str


def read(path: Path, *, column: str, asked: str | None, expected: str, columns: Columns) -> Source:
    """The rows of a table, files as they are compared with names but for `plain`; either cell may be empty.

    The column is called `asked`, or `column` where that is None.

    Raises `InputError`, naming file and line, for a file that is missing (`expected` tells what could be there), of
    another kind or not UTF-8, columns that are missing, and rows of another length.
    """
    if not os.path.exists(path):  # unlike `Path.exists`, also of names that are too long
        raise InputError(f"expected {expected}, found nothing at {path}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"expected {expected}, cannot read {path}: {error.strerror}") from None
    table = of_bytes(content, where=str(path))
    files = table.of_files(columns.image, FILE, FILE_NAME)
    found = table.column(asked, column)
    if files is None or found is None:
        got = ",".join(table.columns)[:60]
        wanted = f"{columns.image or FILE},{asked or column}"
        raise InputError(f"{path}: expected a first line with the columns {wanted}, got {got!r}")
    return Source(cells(table, files, found), table.at, "")


def cells(table: Rows, files: str, column: str) -> Iterator[Cells]:
    """Two columns of a table, the names of files in one spelling. Raises `InputError` for those that are no text."""
    for line, (file, cell) in table.rows([files, column]):
        if not isinstance(file, str | None):
            raise InputError(f"{table.at} {line}: expected the name of a file as text, got {str(file)[:60]!r}")
        yield Cells(PurePosixPath(file).as_posix() if file else "", cell, line)


def of_bytes(content: bytes, *, where: str) -> Rows:
    """The table in a file, of the kind that its name says. Raises `InputError` for one that is damaged."""
    if where.lower().endswith(".parquet"):
        table = arrow.Table(content, where=where)
        return Rows(where, table.columns, table.rows, "row")
    text = _text(content, where)
    return _of_json(text, where) if where.lower().endswith((".jsonl", ".ndjson")) else _of_csv(text, where)


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{where}, line {line}: expected text in UTF-8, got other bytes") from None


# ---- CSV -------------------------------------------------------------------------------------------------------------


def _of_csv(text: str, where: str) -> Rows:
    _, header = next(_csv_lines(where, text), (0, []))

    def rows(columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        places = [header.index(name) for name in columns]
        lines = _csv_lines(where, text)
        next(lines)
        for line, row in lines:
            if len(row) != len(header):
                raise InputError(f"{where}, line {line}: expected {len(header)} columns, got {len(row)}")
            yield line, [row[place] for place in places]

    return Rows(where, tuple(header), rows)


def _csv_lines(where: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers, as cells without the blanks around them."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        with _cells_of_any_length():
            for row in reader:
                if row:
                    yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise InputError(f"{where}, line {reader.line_num}: expected CSV, got something else ({error})") from None


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Inside, a cell may be longer than 131,072 characters, which it takes a caller to judge."""
    was = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(was)


# ---- JSON lines ------------------------------------------------------------------------------------------------------


def _of_json(text: str, where: str) -> Rows:
    """Columns are the keys of all lines; a line without one of them has nothing there."""
    columns = dict.fromkeys(key for _, entries in _json_lines(where, text) for key in entries)

    def rows(columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        for line, entries in _json_lines(where, text):
            yield line, [entries.get(column) for column in columns]

    return Rows(where, tuple(columns), rows)


def _json_lines(where: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            entries = json.loads(line)
        except (ValueError, RecursionError):
            entries = None
        if not isinstance(entries, dict):
            raise InputError(f"{where}, line {number}: expected an object in JSON, got {line.strip()[:60]!r}")
        yield number, entries


# ---- which pictures --------------------------------------------------------------------------------------------------


def name_of(file: str, tree: Tree, *, home: str = "", columns: Columns, where: str) -> str:
    """What a tree calls a file that a table in its folder `home` names; an absolute path if it lies outside.

    Raises `InputError` for one outside unless `columns` take that, and for what is no picture by its suffix.
    """
    path = PurePosixPath(file)
    if not is_picture(path.name):
        raise InputError(f"{where}: expected a picture ({KINDS}), got {file!r}")
    if not path.is_absolute() and ".." not in path.parts:
        return f"{home}{file}"
    if not columns.outside or not isinstance(tree, Folder):
        more = f"; {OUTSIDE}" if isinstance(tree, Folder) else ""
        raise InputError(f"{where}: expected a path below {tree.root}, got {file!r}{more}")
    root = os.path.abspath(tree.root)
    place = os.path.normpath(os.path.join(root, home, file))
    return os.path.relpath(place, root) if place.startswith(f"{root}{os.sep}") else place


def check_there(names: Iterable[tuple[str, str]], tree: Tree) -> None:
    """Raise `InputError` for a name that no picture of a tree can belong to; each comes with what names it."""
    known: set[str] | None = None
    for name, where in names:
        if tree.holds(name):
            continue
        known = {plain(name) for name in tree.names()[0]} if known is None else known
        if plain(name) not in known:
            raise InputError(f"{where}: expected a picture below {tree.root}, found nothing at {name!r}")
