"""Classes that do not come from folders: from a table, or none at all. Opens no picture.

The table (`nextscale.data.tables`) has the columns `file` and `label`. Every picture has one row. Classes are sorted by
name, whole numbers as numbers and before other names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

from nextscale.data import tables
from nextscale.data.tables import plain
from nextscale.errors import InputError

NONE = "none"  # one class; `./none` is a file of that name

Labels = str | Path
Groups = Mapping[str, Sequence[str]]  # names of pictures by class, the classes in their order
WHOLE = re.compile("-?[0-9]{1,18}")
MISSING = frozenset(("nan", "nat", "null", "n/a", "#n/a", "<na>"))  # how programs write that there is no value


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
    whole, told = whole_numbers(first, where=str(path))
    if told:
        return whole, (told,)
    if twice := one_number(first):
        other, label = twice
        raise InputError(
            f"{path}, line {first[label].line}: expected every number written in one way, "
            f"got {label} and, in line {first[other].line}, {other}"
        )
    spelled: dict[str, str] = {}
    return {label: spelled.setdefault(plain(label), label) for label in first}, ()


def whole_numbers(labels: Collection[str], *, where: str) -> tuple[dict[str, str], str]:
    """Each label as a whole number, and a sentence that says so; empty unless all are and some are written as 1.0."""
    floats = [label for label in labels if re.fullmatch(r"-?[0-9]{1,18}\.0*", label)]
    if not floats or not all(re.fullmatch(r"-?[0-9]{1,18}(\.0*)?", label) for label in labels):
        return {}, ""
    whole = {label: str(int(label.partition(".")[0])) for label in labels}
    return whole, f"labels such as {floats[0]} in {where} are taken as the whole numbers that they are"


def one_number(labels: Iterable[str]) -> tuple[str, str] | None:
    """Two labels that are the same number, such as 7 and 007 or 1 and 1e0: one class, or two?"""
    numbers: dict[Decimal, str] = {}
    for label in labels:
        number = _number(label)
        if number is not None and (other := numbers.setdefault(number, label)) != label:
            return other, label
    return None


def _number(label: str) -> Decimal | None:
    try:
        number = Decimal(label)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def check_label(label: str, *, where: str) -> None:
    """Raise `InputError` for what stands for no label, and for bytes that are none."""
    if label.casefold() in MISSING:
        raise InputError(f"{where}: expected a label, got {label}, which is how a missing one is written")
    if "\0" in label:
        raise InputError(f"{where}: expected a label in text, got the bytes {label[:20]!r}")


def _rows(path: Path) -> Iterator[Row]:
    for file, label, line in tables.read(path, column="label", expected=f"{NONE} or a CSV file of labels"):
        where = f"{path}, line {line}"
        if not file or not label:
            raise InputError(f"{where}: expected a file and a label, got {f'{file},{label}'[:60]!r}")
        if not label.isprintable():
            raise InputError(f"{where}: expected a label that can be printed, got {label[:60]!r}")
        check_label(label, where=where)
        yield Row(file=file, label=label, line=line)
