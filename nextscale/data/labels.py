"""Classes that do not come from folders: from a table, or none at all. Opens no picture.

The table (`nextscale.data.tables`) has the columns `file` and `label`. Every picture has one row; where metadata beside
pictures (`nextscale.data.metadata`) is the table, those without one are left out. Classes are sorted by name, whole
numbers as numbers and before other names.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

from nextscale.data import tables
from nextscale.data.tables import Columns, Source, plain
from nextscale.data.walk import Tree
from nextscale.errors import InputError

NONE, FOLDERS = "none", "folders"  # one class; those of the folders; `./none` is a file of that name

Labels = str | Path
Groups = Mapping[str, Sequence[str]]  # names of pictures by class, the classes in their order
WHOLE = re.compile("-?[0-9]{1,18}")
LONGEST = 255  # characters of a class in shards and parquet files
MISSING = frozenset(("nan", "nat", "null", "n/a", "#n/a", "<na>"))  # how programs write that there is no value


def no_classes(labels: Labels | None, *, of: str) -> bool:
    """Whether none are wanted, where neither folders nor a table can be had. Raises `InputError` for these."""
    if labels is not None and labels != NONE:
        why = "which lie in no folders of classes" if labels == FOLDERS else "which no table can name"
        raise InputError(f"expected {NONE} as labels of {of}, {why}, got {labels}")
    return labels == NONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of a table: the picture as the tree calls it, its class, and where it stands (`tables.Rows.at`, line)."""

    file: str
    label: str
    at: str
    line: int

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"{self.at} {self.line}"

    def seen_from(self, other: Row) -> str:
        """The same in a message about another row."""
        return self.where.rpartition(", ")[2] if self.at == other.at else self.where


@dataclass(frozen=True, kw_only=True)
class Table:
    """The classes of the pictures below a root, by their names there as `plain` gives them."""

    told: str
    """What messages call it."""
    rows: Mapping[str, Row]
    notes: tuple[str, ...] = ()
    outside: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of pictures outside of the root, by the folder in it whose table names them."""
    partial: bool = False
    """Whether pictures without a row are left out, and not refused."""

    def covers_any(self, names: Sequence[str]) -> bool:
        """Whether there is a row for one of the pictures."""
        return any(plain(name) in self.rows for name in names)

    def noting(self, note: str) -> Table:
        """The same with something to be known of the classes."""
        return replace(self, notes=(*self.notes, note))

    def named_in(self, below: str) -> list[str]:
        """The pictures outside of the root that tables below a folder name."""
        return [name for home, names in self.outside.items() if home.startswith(below) for name in names]

    def __call__(self, names: Sequence[str], left: Counter[str]) -> Groups:
        """Pictures by class. Those without a row are counted in `left`, or else an `InputError` is raised."""
        missing = [name for name in names if plain(name) not in self.rows]
        if missing and not self.partial:
            raise InputError(
                f"expected a row in {self.told} for each of {len(names)} pictures, "
                f"{len(missing)} {'have' if len(missing) > 1 else 'has'} none, such as {missing[0]}"
            )
        if missing:
            left[f"picture{{s}} without a row in {self.told}"] += len(missing)
        groups: dict[str, list[str]] = {}
        for name in names:
            if (row := self.rows.get(plain(name))) is not None:
                groups.setdefault(row.label, []).append(name)
        return {label: groups[label] for label in sorted(groups, key=numbers_first)}


def numbers_first(name: str) -> tuple[bool, int, str]:
    """A sorting key: whole numbers by their size, then other names by theirs."""
    return (False, int(name), name) if WHOLE.fullmatch(name) else (True, 0, name)


def read_table(path: Path, tree: Tree, columns: Columns) -> Table:
    """The table in a file about the pictures of a tree.

    Raises `InputError`, naming file and line, for a file that is missing, of another kind or not UTF-8, columns that
    are missing, a row without file or label, a second row for a file, and a row whose picture is not there.
    """
    found = tables.read(
        path,
        column="label",
        asked=columns.label,
        expected=f"{NONE}, {FOLDERS} or a file of labels (CSV, JSON lines or parquet)",
        columns=columns,
    )
    return of_rows([found], tree, columns, told=str(path))


def of_rows(sources: Sequence[Source], tree: Tree, columns: Columns, *, told: str, partial: bool = False) -> Table:
    """The table that some files are together. Raises `InputError` likewise."""
    rows: dict[str, Row] = {}
    outside: dict[str, list[str]] = {}
    for source in sources:
        for row in _rows(source, tree, columns):
            if (before := rows.get(plain(row.file))) is not None:
                raise InputError(
                    f"{row.where}: expected every picture once, got {row.file!r} as in {before.seen_from(row)}"
                )
            rows[plain(row.file)] = row
            if os.path.isabs(row.file):
                outside.setdefault(source.home, []).append(row.file)
    if not rows:
        raise InputError(f"{told}: expected a row for each picture, found none")
    tables.check_there(((row.file, row.where) for row in rows.values()), tree)
    labels, notes = _one_spelling(rows.values(), told)
    spelled = {key: replace(row, label=labels[row.label]) for key, row in rows.items()}
    return Table(told=told, rows=spelled, notes=notes, outside=outside, partial=partial)


def _one_spelling(rows: Collection[Row], told: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The class that each label means, and what there is to say of it: 1.0 is 1 where all labels are whole numbers."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.label, row)
    whole, note = whole_numbers(first, where=told)
    if note:
        return whole, (note,)
    if twice := one_number(first):
        other, label = twice
        raise InputError(
            f"{first[label].where}: expected every number written in one way, "
            f"got {label} and, in {first[other].seen_from(first[label])}, {other}"
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


def text_of(cell: object, *, where: str) -> str:
    """A label as text, empty where there is none. Raises `InputError` for what is neither text nor a number."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return " ".join(cell.split())
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, int | float):
        return str(cell)
    raise InputError(f"{where}: expected a label, text or a number, got {str(cell)[:60]!r}")


def _rows(source: Source, tree: Tree, columns: Columns) -> Iterator[Row]:
    for file, cell, line in source.cells:
        where = f"{source.at} {line}"
        label = text_of(cell, where=where)
        if not file or not label:
            raise InputError(f"{where}: expected a file and a label, got {f'{file},{label}'[:60]!r}")
        if not label.isprintable():
            raise InputError(f"{where}: expected a label that can be printed, got {label[:60]!r}")
        check_label(label, where=where)
        name = tables.name_of(file, tree, home=source.home, columns=columns, where=where)
        yield Row(file=name, label=label, at=source.at, line=line)
