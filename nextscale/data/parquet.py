"""Parquet and Arrow files as the `datasets` library writes them, as a listing: a picture a row.

Files of the hub (`train-00000-of-00040.parquet`), folders of `save_to_disk`, and what others write with the same types.
The pictures are a column of bytes, or of `bytes` and `path` together. Classes are the column that a schema calls so
(`ClassLabel`), or one called `label`, `class` or `cls`, of numbers or texts; captions one of texts or of lists of them.
Where it may be one of several, the user names it (`nextscale.data.Columns`).

Files whose names say `train` and `val` or `test` are the splits; otherwise 5 % of the rows, at least one, is held out
by the hash of their names.
"""

from __future__ import annotations

import errno
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nextscale.data import arrow, stated
from nextscale.data.arrow import KIND, MEMORY, Cells, File
from nextscale.data.captions import OWN, Captioning, Captions, cleaned, each_of, no_table, of_name, told
from nextscale.data.labels import NONE, Labels, no_classes
from nextscale.data.listing import Items, Listing, hold_out, told_apart
from nextscale.data.metadata import CAPTIONS, LABELS
from nextscale.data.metadata import FILES as METADATA
from nextscale.data.names import Names
from nextscale.data.patterns import LETTERS, matches
from nextscale.data.pictures import Progress
from nextscale.data.splits import Sides, counted, sides_of
from nextscale.data.stated import ABSENT, Stated
from nextscale.data.tables import OUTSIDE, Columns
from nextscale.data.walk import LeftOut, inside, kind_of, pictures_below
from nextscale.errors import InputError

SUFFIXES = (".parquet", ".arrow")
BY_ROW = "5 % by hash of file and row"
STATE, DATASET = "state.json", "dataset_info.json"  # what `save_to_disk` writes beside the rows
DEEPEST = 4  # folders below the one that is named
LARGE = 2**24  # bytes that are unpacked for a picture, from which on that is told


@dataclass(frozen=True, kw_only=True)
class Found:
    """The files of a data set, by their names below the folder above all of them."""

    root: Path
    names: tuple[str, ...]
    left: Counter[str] = field(default_factory=Counter)
    """What lies beside them and is not looked at."""


# ---- which files -----------------------------------------------------------------------------------------------------


def find(source: str | Path) -> Found | None:
    """The files that a path or a pattern stands for, None if it is of another kind; `find_in` looks into folders.

    Raises `InputError` for files that are not there.
    """
    text = str(source)
    if not text.lower().endswith(SUFFIXES) or os.path.isdir(source):
        return None
    paths = matches(text, f"{KIND}s") if set(text) & LETTERS else (Path(source),)
    if missing := next((path for path in paths if not path.is_file()), None):
        raise InputError(f"expected a {KIND}, found nothing at {missing}")
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    return Found(root=root, names=tuple(path.absolute().relative_to(root).as_posix() for path in paths))


def find_in(root: Path) -> Found | None:
    """The files in a folder and those in it, None if there are none, or pictures beside them."""
    left: Counter[str] = Counter()
    names = list(_below(root, "", left))
    if not names or next(pictures_below(root), None) is not None:
        return None
    return Found(root=root, names=tuple(names), left=left)


def _below(root: Path, below: str, left: Counter[str]) -> Iterator[str]:
    here = inside(f"{root}/{below}"[:-1] if below else str(root))
    names = [name for name in here.others if name.endswith(SUFFIXES) and name not in METADATA]
    written = _written(root / below / STATE) if STATE in here.others else names
    known = {*names, STATE, DATASET, "dataset_dict.json"}
    left.update(here.gone + Counter(kind_of(name) for name in here.others if name not in known))
    if unused := len(names) - len(written):
        left["file{s} of a cache"] += unused
    yield from (f"{below}{name}" for name in written)
    for folder in here.folders if below.count("/") < DEEPEST else ():
        yield from _below(root, f"{below}{folder}/", left)


def _written(path: Path) -> list[str]:
    """The files that `save_to_disk` wrote, in their order; others beside them are caches of what was done since."""
    try:
        return [str(PurePosixPath(entry["filename"]).name) for entry in json.loads(path.read_text())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"expected the names of files as save_to_disk writes them in {path}") from None


# ---- which columns ---------------------------------------------------------------------------------------------------


class Used(NamedTuple):
    """Columns by name; `names` are those of the classes by number, where the schema tells them."""

    image: str
    label: str | None
    caption: str | None
    names: tuple[str, ...] | None


def _used(file: File, columns: Columns, *, classes: bool, captions: bool) -> Used:
    schema, noted = file.schema, arrow.features(file.schema)
    named = arrow.class_names(schema, where=file.where) if classes else {}
    image = _one(file, "pictures", "--image-column", columns.image, _images(schema, noted))
    label = _one(file, "classes", "--label-column", columns.label, _labels(schema, named)) if classes else None
    texts = [name for name in _texts(schema) if name not in (image, label)] if captions else []
    usual = [name for name in CAPTIONS if name in texts][:1]
    caption = _one(file, "captions", "--caption-column", columns.caption, usual or texts) if captions else None
    if image is None:
        raise InputError(f"{file.where}: expected a column of pictures as bytes, got {', '.join(schema.names)[:200]}")
    if captions and caption is None:
        raise InputError(f"{file.where}: expected a column of captions, got {', '.join(schema.names)[:200]}")
    return Used(image, label, caption, named.get(label or ""))


def _one(file: File, what: str, option: str, asked: str | None, found: Sequence[str]) -> str | None:
    """The column that is asked for, or the only one that it can be."""
    if asked is not None:
        if file.schema.names.count(asked) != 1:
            raise InputError(f"{file.where}: expected a column {asked}, got {', '.join(file.schema.names)[:200]}")
        return asked
    if len(found) > 1:
        raise InputError(f"{file.where}: expected one column of {what}, got {', '.join(found)}: {option} names one")
    return found[0] if found else None


def _images(schema: Any, noted: Any) -> list[str]:
    """Those that `datasets` calls pictures; otherwise all of bytes."""
    called = [name for name in schema.names if noted.get(name, {}).get("_type") == "Image"]
    return called or [each.name for each in schema if _holds_bytes(each.type)]


def _holds_bytes(kind: Any) -> bool:
    types = arrow.library(KIND).types
    if types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_bytes(kind.field(at).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _labels(schema: Any, named: Any) -> list[str]:
    """Those that `datasets` calls classes, or the first that is called as usual and holds numbers or texts."""
    types = arrow.library(KIND).types
    plain = (types.is_integer, types.is_boolean, types.is_string, types.is_large_string, types.is_floating)
    usual = [name for name in LABELS if name in schema.names and any(is_(schema.field(name).type) for is_ in plain)]
    return [name for name in schema.names if name in named] or usual[:1]


def _texts(schema: Any) -> list[str]:
    """Those of texts or of lists of them."""
    types = arrow.library(KIND).types

    def is_text(kind: Any) -> bool:
        if types.is_list(kind) or types.is_large_list(kind):
            return is_text(kind.value_type)
        return bool(types.is_string(kind) or types.is_large_string(kind))

    return [each.name for each in schema if is_text(each.type)]


# ---- reading them ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Pictures by the file, as a number of `paths`, and the row that each stands in; (N,) int32 and int64."""

    paths: tuple[Path, ...]
    column: str
    outside: bool
    files: np.ndarray
    rows: np.ndarray
    cells: Cells = field(default_factory=Cells, repr=False)

    def open(self, place: int) -> BinaryIO:
        """See `nextscale.data.walk.Store`."""
        path = self.paths[self.files[place]]
        cell = self.cells(path, self.column, int(self.rows[place]))
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if isinstance(content, bytes):
            return io.BytesIO(content)
        name = cell.get("path") if isinstance(cell, dict) else cell
        if not isinstance(name, str) or not name:
            raise FileNotFoundError(errno.ENOENT, "a row without a picture")
        if not self.outside and (os.path.isabs(name) or ".." in PurePosixPath(name).parts):
            raise PermissionError(errno.EACCES, f"a path out of the folder ({OUTSIDE})")
        return open(os.path.join(path.parent, name), "rb")


# ---- the listing -----------------------------------------------------------------------------------------------------


def survey(
    found: Found,
    *,
    labels: Labels | None = None,
    captions: Captioning | None = None,
    columns: Columns | None = None,
    progress: Progress | None = None,
) -> Listing:
    """The rows of the files in the order they stand there; `progress` runs through the files.

    `labels` may be "none": one class. `captions` may be "own", a column, or "names", the words of the pictures' paths.

    Raises `InputError` for damaged files, files of other columns, no rows, columns that are missing or may be several,
    classes that are missing, unknown or no class, no captions where some are wanted, and tables.
    """
    asked, what = columns or Columns(), f"the files in {found.root}"
    alike, how = no_classes(labels, of=what), no_table(captions, of=what)
    _check_asked(asked, alike=alike, captions=how)
    files = {name: File(found.root / name) for name in found.names}
    used = _used(files[found.names[0]], asked, classes=not alike, captions=how == OWN)
    _check_alike(list(files.values()), used)
    said = {name: _stated_in(name, file, used) for name, file in _told_of(files.items(), progress)}
    sides = _labelled(sides_of(found.names, share=BY_ROW, one="file"), said)
    train, held_out = ([said[name] for name in side] for side in (sides.train, sides.held_out))
    named, where = used.names is not None, f"{used.label} of {found.root}"
    classes, numbers = stated.together(train, held_out, named=named, where=where)
    left, used_files = Counter(found.left), [files[each.file] for each in (*train, *held_out)]
    names = Names(f"{each.file}/{row}" for each in (*train, *held_out) for row in range(len(each.numbers)))
    trained = sum(len(each.numbers) for each in train)
    chosen_N = np.arange(len(names)) >= trained if sides.held_out else hold_out(names, root=found.root)
    every = None if how is None else Captions(_captions(used_files, used, left))
    return Listing(
        kind="rows",
        root=found.root,
        items=Items(names=names, labels=numbers, held_out=chosen_N, store=_store(used_files, used, asked)),
        classes=told_apart(classes if used.label else [found.root.resolve().name]),
        held_out=sides.told,
        left_out=LeftOut(left),
        notes=(*_notes(used, used_files), *(() if every is None else told(every, left, root=found.root, how=str(how)))),
        captions=every,
    )


def _check_asked(asked: Columns, *, alike: bool, captions: str | None) -> None:
    """Raise `InputError` for a column that is asked for and not wanted."""
    if asked.label and alike:
        raise InputError(f"--label-column {asked.label}: expected no other labels, got {NONE}")
    if asked.caption and captions != OWN:
        raise InputError(f"--caption-column {asked.caption}: expected no other captions, got {captions}")


def _check_alike(files: Sequence[File], used: Used) -> None:
    """Raise `InputError` for a file of other columns than the first."""
    wanted = [name for name in (used.image, used.label, used.caption) if name is not None]
    first = [files[0].schema.field(name).type for name in wanted]
    for file in files[1:]:
        if missing := next((name for name in wanted if file.schema.names.count(name) != 1), None):
            raise InputError(f"{file.where}: expected a column {missing} as in {files[0].where}, got none")
        for name, kind in zip(wanted, first, strict=True):
            if (other := file.schema.field(name).type) != kind:
                raise InputError(
                    f"{file.where}: expected {name} of the type {kind} as in {files[0].where}, got {other}"
                )
        if used.names and arrow.class_names(file.schema, where=file.where).get(used.label or "") != used.names:
            raise InputError(f"{file.where}: expected the classes of {used.label} as in {files[0].where}, got others")


def _told_of(items: Iterable[tuple[str, File]], progress: Progress | None) -> Iterator[tuple[str, File]]:
    every = list(items)
    for done, item in enumerate(every, start=1):
        yield item
        if progress is not None:
            progress(done, len(every))


def _store(files: Sequence[File], used: Used, asked: Columns) -> Rows:
    counts = [file.rows for file in files]
    return Rows(
        paths=tuple(file.path for file in files),
        column=used.image,
        outside=asked.outside,
        files=np.repeat(np.arange(len(files), dtype=np.int32), counts),
        rows=np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
    )


def _notes(used: Used, files: Sequence[File]) -> list[str]:
    """Which columns are used, and what reading at random will cost."""
    columns = {"pictures are the column": used.image, "classes": used.label, "captions": used.caption}
    told = ", ".join(f"{what} {name}" for what, name in columns.items() if name is not None)
    pieces, sizes = zip(*(file.costs(used.image) for file in files), strict=True)
    slow = max(pieces) > LARGE and sum(sizes) > MEMORY
    cost = f"{max(pieces) / 1e6:.0f} MB are unpacked to read a picture: smaller row groups, or shards, are faster"
    return [told, cost] if slow else [told]


# ---- captions --------------------------------------------------------------------------------------------------------


def _captions(files: Sequence[File], used: Used, bad: Counter[str]) -> Iterator[tuple[str, ...]]:
    """Those of each row; without a column of them the words of the pictures' paths."""
    for file in files:
        if used.caption is None:
            yield from (of_name(path) if isinstance(path, str) else () for path in _cells(file.paths(used.image)))
        else:
            yield from (cleaned(each_of(cell), bad) for cell in _cells(file.column(used.caption)))


def _cells(column: Any) -> Iterator[Any]:
    """As Python values, some at a time."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), 4096):
            yield from chunk.slice(start, 4096).to_pylist()


# ---- classes ---------------------------------------------------------------------------------------------------------


def _stated_in(name: str, file: File, used: Used) -> Stated:
    if used.label is None:
        return stated.unlabelled(name, file.rows)
    pyarrow = arrow.library(file.where)
    column = file.column(used.label)
    with arrow.told(file.where, KIND):
        if used.names is not None:
            numbers_N = column.cast(pyarrow.int64()).fill_null(ABSENT).to_numpy()
            return stated.of_names(name, used.names, numbers_N, where=file.where)
        coded = pyarrow.chunked_array(column.chunks, column.type).combine_chunks().dictionary_encode()
        places_N = coded.indices.fill_null(ABSENT).to_numpy(zero_copy_only=False).astype(np.int64)
        return stated.of_values(name, coded.dictionary.to_pylist(), places_N, where=file.where)


def _labelled(sides: Sides, found: Mapping[str, Stated]) -> Sides:
    """The sides, but for a held-out one whose classes nobody tells, as those of tests on the hub."""
    if not sides.held_out or not all(found[name].is_empty for name in sides.held_out):
        return sides
    return Sides(sides.train, (), f"{BY_ROW}; {counted(sides.held_out)} has no classes and is not used")
