"""Metadata beside pictures: `metadata.csv`, `metadata.jsonl` or `metadata.parquet` tells of what lies in its folder.

The convention of the `datasets` library: a column `file_name` (or one that ends in `_file_name`) names files below the
folder that the table lies in; here a class may stand under `label`, `class` or `cls`, and captions under `caption`,
`captions`, `text` or `prompt`, a text or a list of texts. Opens no picture.

The `dataset.json` of StyleGAN's and EDM's tools is read likewise: {"labels": [[name, class], ...]} or null, where the
class is a whole number or a vector with a single one; without any there is one class.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nextscale.data import captions, labels, tables
from nextscale.data.labels import Table
from nextscale.data.tables import FILE_NAME, Columns, Rows, Source
from nextscale.data.walk import Tree
from nextscale.errors import InputError

DATASET = "dataset.json"
FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", DATASET)
LABELS = ("label", "class", "cls")
CAPTIONS = ("caption", "captions", "text", "prompt")


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """A metadata file: its name below the root, the folder it lies in, its rows, and the columns that say something."""

    name: str
    home: str
    table: Rows
    file: str | None
    label: str | None
    caption: str | None

    @property
    def classes(self) -> bool:
        """Whether it tells any."""
        return self.file is not None and self.label is not None

    @property
    def classless(self) -> bool:
        """Whether it tells that there are none."""
        return self.file is not None and self.name.endswith(DATASET) and self.label is None

    @property
    def lacks(self) -> str:
        """What it should have to be used."""
        return "labels" if self.name.endswith(DATASET) else f"column {FILE_NAME}"

    @property
    def captions(self) -> bool:
        """Whether it tells any."""
        return self.file is not None and self.caption is not None


def is_in(tree: Tree, home: str) -> bool:
    """Whether there is a metadata file in a folder."""
    return any(name in FILES for name in tree.inside(home).others)


def find(tree: Tree, homes: Iterable[str], columns: Columns) -> list[Metadata]:
    """The metadata files in some folders of a tree.

    Raises `InputError` for two in one folder, for damaged ones, and for columns that are asked for and not there.
    """
    return [_in(tree, home, columns) for home in dict.fromkeys(homes) if is_in(tree, home)]


def _in(tree: Tree, home: str, columns: Columns) -> Metadata:
    names = [f"{home}{name}" for name in tree.inside(home).others if name in FILES]
    if len(names) > 1:
        raise InputError(f"expected one metadata file a folder in {tree.root}, got {names[0]} and {names[1]}")
    where = f"{tree.root}/{names[0]}"
    try:
        with tree.open(names[0]) as stream:
            content = stream.read()
    except OSError as error:
        raise InputError(f"expected a metadata file, cannot read {where}: {error.strerror or error}") from None
    table = _of_dataset(content, where) if names[0].endswith(DATASET) else tables.of_bytes(content, where=where)
    return Metadata(
        name=names[0],
        home=home,
        table=table,
        file=table.of_files(columns.image, FILE_NAME),
        label=table.column(columns.label, *LABELS),
        caption=table.column(columns.caption, *CAPTIONS),
    )


def classes(found: Sequence[Metadata], tree: Tree, columns: Columns) -> Table | None:
    """The classes that metadata tells, None if it tells none. Raises like `labels.read_table`."""
    telling = [one for one in found if one.classes]
    if not telling:
        return None
    sources = [_source(one, one.label) for one in telling]
    told = _together(telling)
    table = labels.of_rows(sources, tree, columns, told=told, partial=True)
    return table.noting(f"classes are the column {telling[0].label} of {told}")


def captioning(
    found: Sequence[Metadata], tree: Tree, columns: Columns, bad: Counter[str]
) -> tuple[Mapping[str, tuple[str, ...]], str] | None:
    """The captions that metadata tells, by picture, and how that is said; None if it tells none. Raises likewise."""
    telling = [one for one in found if one.captions]
    if not telling:
        return None
    every = captions.of_rows([_source(one, one.caption) for one in telling], tree, columns, bad)
    return every, f"captions are the column {telling[0].caption} of {_together(telling)}"


def _source(one: Metadata, column: str | None) -> Source:
    return Source(tables.cells(one.table, str(one.file), str(column)), one.table.at, one.home)


def _together(found: Sequence[Metadata]) -> str:
    return found[0].name + (f" and {len(found) - 1} more" if len(found) > 1 else "")


# ---- dataset.json ----------------------------------------------------------------------------------------------------


def _of_dataset(content: bytes, where: str) -> Rows:
    """A table with the columns of `metadata`: no label where there are no classes, nothing in anyone else's file."""
    try:
        given = json.loads(content)
        known = isinstance(given, dict) and "labels" in given
        pairs = [(name, label) for name, label in (known and given["labels"]) or ()]
    except (TypeError, ValueError, RecursionError):
        raise InputError(f'{where}: expected {{"labels": [[name, class], ...]}}, got {content[:60]!r}') from None
    if all(label is None for _, label in pairs):
        return Rows(where, (FILE_NAME,) if known else (), lambda columns: iter(()), "entry")

    def rows(columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        for number, (name, label) in enumerate(pairs, start=1):
            yield number, [name, _class(label, where=f"{where}, entry {number}")]

    return Rows(where, (FILE_NAME, LABELS[0]), rows, "entry")


def _class(label: object, *, where: str) -> object:
    """The class that a vector with a single one stands for; anything else stays."""
    if not isinstance(label, list):
        return label
    ones = [place for place, value in enumerate(label) if value == 1]
    if len(ones) != 1 or any(value not in (0, 1) for value in label):
        raise InputError(f"{where}: expected a class or a vector with a single one, got {str(label)[:60]}")
    return ones[0]
