"""Classes that do not come from folders: from a table, or none at all. Opens no picture.

The table (`nextscale.data.tables`) has the columns `file` and `label`. Every picture has one row. Classes are sorted by
name, whole numbers as numbers and before other names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nextscale.data import tables
from nextscale.data.tables import plain
from nextscale.errors import InputError

NONE = "none"  # one class; `./none` is a file of that name

Labels = str | Path
Groups = Mapping[str, Sequence[str]]  # names of pictures by class, the classes in their order
WHOLE = re.compile("-?[0-9]{1,18}")


def no_classes(labels: Labels | None, *, of: str) -> bool:
    """Whether none are wanted, where no table can be had. Raises `InputError` for a table."""
    if labels is not None and labels != NONE:
        raise InputError(f"expected {NONE} as labels of {of}, which no table can name, got {labels}")
    return labels == NONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of the table; `line` is where it ends, from 1."""

    file: str
    label: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Table:
    """The classes of the pictures below `root`, by their names there as `plain` gives them."""

    path: Path
    rows: Mapping[str, Row]
    notes: tuple[str, ...] = ()

    def covers_any(self, names: Sequence[str]) -> bool:
        """Whether there is a row for one of the pictures."""
        return any(plain(name) in self.rows for name in names)

    def __call__(self, names: Sequence[str]) -> Groups:
        """Pictures by class. Raises `InputError` when some have no row."""
        if missing := [name for name in names if plain(name) not in self.rows]:
            raise InputError(
                f"expected a row in {self.path} for each of {len(names)} pictures, "
                f"{len(missing)} {'have' if len(missing) > 1 else 'has'} none, such as {missing[0]}"
            )
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(self.rows[plain(name)].label, []).append(name)
        return {label: groups[label] for label in sorted(groups, key=numbers_first)}


def numbers_first(name: str) -> tuple[bool, int, str]:
    """A sorting key: whole numbers by their size, then other names by theirs."""
    return (False, int(name), name) if WHOLE.fullmatch(name) else (True, 0, name)


def read_table(path: Path, root: Path) -> Table:
    """The table in a CSV file about the pictures below `root`.

    Raises `InputError`, naming file and line, for a file that is missing, not CSV or not UTF-8, columns that are
    missing, a row without file or label, a second row for a file, and a row whose picture is not there.
    """
    rows: dict[str, Row] = {}
    for row in _rows(path):
        if (before := rows.get(plain(row.file))) is not None:
            raise InputError(
                f"{path}, line {row.line}: expected every picture once, got {row.file!r} as in line {before.line}"
            )
        rows[plain(row.file)] = row
    if not rows:
        raise InputError(f"{path}: expected a row for each picture, found none")
    tables.check_pictures(((row.file, row.line) for row in rows.values()), path, root)
    labels, notes = _one_spelling(rows.values(), path)
    return Table(path=path, rows={key: replace(row, label=labels[row.label]) for key, row in rows.items()}, notes=notes)


def _one_spelling(rows: Collection[Row], path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The class that each label means, and what there is to say of it: 1.0 is 1 where all labels are whole numbers."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.label, row)
    floats = [label for label in first if re.fullmatch(r"-?[0-9]{1,18}\.0*", label)]
    if floats and all(re.fullmatch(r"-?[0-9]{1,18}(\.0*)?", label) for label in first):
        whole = {label: str(int(label.partition(".")[0])) for label in first}
        return whole, (f"labels such as {floats[0]} in {path} are taken as the whole numbers that they are",)
    spelled: dict[str, str] = {}
    labels = {label: spelled.setdefault(plain(label), label) for label in first}
    _refuse_two_ways(first, path)
    return labels, ()


def _refuse_two_ways(first: Mapping[str, Row], path: Path) -> None:
    """Raise `InputError` where two labels are the same number, such as 7 and 007: one class, or two?"""
    numbers: dict[int, str] = {}
    for label in filter(WHOLE.fullmatch, first):
        other = numbers.setdefault(int(label), label)
        if other != label:
            raise InputError(
                f"{path}, line {first[label].line}: expected every number written in one way, "
                f"got {label} and, in line {first[other].line}, {other}"
            )


def _rows(path: Path) -> Iterator[Row]:
    for file, label, line in tables.read(path, column="label", expected=f"{NONE} or a CSV file of labels"):
        where = f"{path}, line {line}"
        if not file or not label:
            raise InputError(f"{where}: expected a file and a label, got {f'{file},{label}'[:60]!r}")
        if label.casefold() == "nan":
            raise InputError(f"{where}: expected a label, got {label}, which is how a missing one is written")
        if not label.isprintable():
            raise InputError(f"{where}: expected a label that can be printed, got {label[:60]!r}")
        yield Row(file=file, label=label, line=line)
