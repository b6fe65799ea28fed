"""Classes that do not come from folders: from a table, or none at all. Opens no picture.

The table is a CSV file in UTF-8 whose first line names its columns; `file` (a picture's path below the folder, with
forward slashes) and `label` must be among them, others are not looked at. Every picture has one row. Classes are sorted
by name, whole numbers as numbers and before other names.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nextscale.errors import InputError
from nextscale.images import SUFFIXES

NONE = "none"  # one class; `./none` is a file of that name
COLUMNS = ("file", "label")

Labels = str | Path
Groups = Mapping[str, Sequence[Path]]  # pictures by class, the classes in their order
Grouping = Callable[[Sequence[Path]], Groups]


def no_classes(labels: Labels | None, *, of: str) -> bool:
    """Whether none are wanted, where no table can be had. Raises `InputError` for a table."""
    if labels is not None and labels != NONE:
        raise InputError(f"expected {NONE} as labels of {of}, which no table can name, got {labels}")
    return labels == NONE


def one_class(name: str) -> Grouping:
    """Everything in one class."""
    return lambda paths: {name: paths} if paths else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of the table; `line` is where it ends, from 1."""

    file: str
    label: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Table:
    """The classes of the pictures below `root`, by their paths there."""

    path: Path
    root: Path
    rows: Mapping[str, Row]

    def __call__(self, paths: Sequence[Path]) -> Groups:
        """Pictures by class. Raises `InputError` when some have no row."""
        names = [path.relative_to(self.root).as_posix() for path in paths]
        if missing := [name for name in names if name not in self.rows]:
            raise InputError(
                f"expected a row in {self.path} for each of {len(names)} pictures, "
                f"{len(missing)} {'have' if len(missing) > 1 else 'has'} none, such as {missing[0]}"
            )
        groups: dict[str, list[Path]] = {}
        for path, name in zip(paths, names, strict=True):
            groups.setdefault(self.rows[name].label, []).append(path)
        return {label: groups[label] for label in sorted(groups, key=_in_order)}


def _in_order(name: str) -> tuple[bool, int, str]:
    """A sorting key: whole numbers by their size, then other names by theirs."""
    return (False, int(name), name) if re.fullmatch("-?[0-9]{1,18}", name) else (True, 0, name)


def read_table(path: Path, root: Path) -> Table:
    """The table in a CSV file about the pictures below `root`.

    Raises `InputError`, naming file and line, for a file that is missing, not CSV or not UTF-8, columns that are
    missing, a row without file or label, a second row for a file, and a row whose picture is not there.
    """
    rows: dict[str, Row] = {}
    for row in _rows(path, _text(path)):
        if row.file in rows:
            before = rows[row.file].line
            raise InputError(
                f"{path}, line {row.line}: expected every picture once, got {row.file!r} as in line {before}"
            )
        rows[row.file] = row
    if not rows:
        raise InputError(f"{path}: expected a row for each picture, found none")
    for row in rows.values():
        _check_picture(row, path, root)
    return Table(path=path, root=root, rows=rows)


def _text(path: Path) -> str:
    if not path.exists():
        raise InputError(f"expected {NONE} or a CSV file of labels, found nothing at {path}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"expected {NONE} or a CSV file of labels, cannot read {path}: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: expected text in UTF-8, got other bytes") from None


def _rows(path: Path, text: str) -> Iterator[Row]:
    lines = _lines(path, text)
    _, header = next(lines, (0, []))
    if not set(COLUMNS) <= set(header):
        got = ",".join(header)[:60]
        raise InputError(f"{path}: expected a first line with the columns {','.join(COLUMNS)}, got {got!r}")
    places = [header.index(column) for column in COLUMNS]
    for line, cells in lines:
        where = f"{path}, line {line}"
        if len(cells) != len(header):
            raise InputError(f"{where}: expected {len(header)} columns, got {len(cells)}")
        file, label = cells[places[0]], " ".join(cells[places[1]].split())
        if not file or not label:
            raise InputError(f"{where}: expected a file and a label, got {','.join(cells)[:60]!r}")
        if not label.isprintable():
            raise InputError(f"{where}: expected a label that can be printed, got {label[:60]!r}")
        yield Row(file=PurePosixPath(file).as_posix(), label=label, line=line)


def _lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers, as cells without the blanks around them."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: expected CSV, got something else ({error})") from None


def _check_picture(row: Row, path: Path, root: Path) -> None:
    """Refuse a row that no picture below `root` can belong to."""
    where, inside = f"{path}, line {row.line}", PurePosixPath(row.file)
    if inside.is_absolute() or ".." in inside.parts:
        raise InputError(f"{where}: expected a path below {root}, got {row.file!r}")
    if inside.suffix.lower() not in SUFFIXES:
        raise InputError(f"{where}: expected a picture ({', '.join(SUFFIXES)}), got {row.file!r}")
    if not (root / row.file).is_file():
        raise InputError(f"{where}: expected a picture below {root}, found nothing at {row.file!r}")
