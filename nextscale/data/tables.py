"""CSV tables about the pictures below a folder: which rows there are, and whether each picture is.

A table is a file in UTF-8 whose first line names its columns; `file` (a picture's path below the folder, with forward
slashes) and one more must be among them, others are not looked at. What a row means is the caller's.
"""

from __future__ import annotations

import csv
import io
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nextscale.data.walk import Tree, is_picture
from nextscale.errors import InputError
from nextscale.images import KINDS


class Cells(NamedTuple):
    """What a row says; `line` is where it ends, from 1."""

    file: str
    cell: str
    line: int


def plain(name: str) -> str:
    """A name as names are compared: macOS writes the é of a file name as two characters (NFD), keyboards as one."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def read(path: Path, *, column: str, expected: str) -> Iterator[Cells]:
    """The rows of a table, files as they are compared with names but for `plain`; either cell may be empty.

    Raises `InputError`, naming file and line, for a file that is missing (`expected` tells what could be there), not
    CSV or not UTF-8, columns that are missing, and rows of another length.
    """
    text = _text(path, expected)
    lines = _lines(path, text)
    _, header = next(lines, (0, []))
    columns = ("file", column)
    if not set(columns) <= set(header):
        got = ",".join(header)[:60]
        raise InputError(f"{path}: expected a first line with the columns {','.join(columns)}, got {got!r}")
    if twice := next((name for name in columns if header.count(name) > 1), None):
        raise InputError(f"{path}: expected one column {twice}, got {header.count(twice)}")
    places = [header.index(name) for name in columns]
    for line, cells in lines:
        if len(cells) != len(header):
            raise InputError(f"{path}, line {line}: expected {len(header)} columns, got {len(cells)}")
        file = cells[places[0]]
        yield Cells(PurePosixPath(file).as_posix() if file else "", " ".join(cells[places[1]].split()), line)


def _text(path: Path, expected: str) -> str:
    if not os.path.exists(path):  # unlike `Path.exists`, also of names that are too long
        raise InputError(f"expected {expected}, found nothing at {path}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"expected {expected}, cannot read {path}: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: expected text in UTF-8, got other bytes") from None


def _lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers, as cells without the blanks around them."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        with _cells_of_any_length():
            for cells in reader:
                if cells:
                    yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: expected CSV, got something else ({error})") from None


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Inside, a cell may be longer than 131,072 characters, which it takes a caller to judge."""
    was = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(was)


def check_pictures(rows: Iterable[tuple[str, int]], path: Path, root: Path) -> None:
    """Raise `InputError` for a row, file and line, that no picture below `root` can belong to."""
    known: set[str] | None = None
    for file, line in rows:
        where, inside = f"{path}, line {line}", PurePosixPath(file)
        if inside.is_absolute() or ".." in inside.parts:
            raise InputError(f"{where}: expected a path below {root}, got {file!r}")
        if not is_picture(inside.name):
            raise InputError(f"{where}: expected a picture ({KINDS}), got {file!r}")
        if os.path.isfile(f"{root}/{file}"):
            continue
        known = {plain(name) for name in Tree(root).names()[0]} if known is None else known
        if plain(file) not in known:
            raise InputError(f"{where}: expected a picture below {root}, found nothing at {file!r}")
