"""A folder of pictures as a listing. Nothing to prepare: point at it.

Layouts: `DIR/class/…/*.jpg` (the class is the first folder, classes sorted by name, or as numbers if all are whole
numbers), or pictures directly in `DIR` (one class, named as the folder). A folder around these, as in `PetImages/Cat`,
changes nothing. Folders called like splits, `train` beside `val` or `test` (`nextscale.data.splits`), are the splits;
otherwise 5 %, at least one, is held out by the hash of the path below `DIR`: the same files at every size and on every
machine. Where a table, metadata beside the pictures or "none" gives the classes (`nextscale.data.labels`,
`nextscale.data.metadata`), pictures may lie at any depth, with the same splits. The folder may be one on disk or the
inside of an archive (`nextscale.data.walk.Tree`).
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from nextscale.data import metadata
from nextscale.data.captions import (
    GONE,
    LONG,
    MOST_BYTES,
    NAMES,
    OWN,
    Captioning,
    Captions,
    captions_in,
    of_lines,
    of_name,
)
from nextscale.data.captions import told as told_of
from nextscale.data.labels import FOLDERS, NONE, WHOLE, Groups, Labels, Table, numbers_first, read_table
from nextscale.data.listing import BY_HASH, Items, Listing, hold_out, told_apart
from nextscale.data.metadata import Metadata
from nextscale.data.names import Names
from nextscale.data.pictures import Progress, in_threads
from nextscale.data.splits import Role, first_choice, roles_of_folders, tells_no_class
from nextscale.data.tables import Columns, plain
from nextscale.data.walk import OURS, Folder, LeftOut, Tree, kind_of
from nextscale.errors import InputError
from nextscale.images import KINDS

EMPTY = "folder{s} without pictures"
EVERY = 10_000  # pictures between two calls of `progress`


@dataclass(frozen=True)
class Part:
    """The pictures below one folder by class; `flat` where they lie in no folder of a class."""

    groups: Groups
    left: Counter[str] = field(default_factory=Counter)
    flat: bool = False
    notes: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """All of them, class after class."""
        return [name for names in self.groups.values() for name in names]


class Reader(Protocol):
    """What finds the pictures below a folder and tells their classes."""

    def __call__(self, below: str) -> Part: ...

    def why_not(self, held_out: Part, train: Part) -> str:
        """Why a part cannot be the held-out one of another; empty if it can."""
        ...


@dataclass(frozen=True)
class Sides:
    """The folders of the splits, with a slash behind them; `unused` are others beside them."""

    train: str
    held_out: str
    unused: tuple[str, ...]


def survey(
    place: Path | Tree,
    *,
    labels: Labels | None = None,
    captions: Captioning | None = None,
    columns: Columns | None = None,
    progress: Progress | None = None,
) -> Listing:
    """The picture files in a folder, in the order of their classes and names.

    `labels`, `captions` and `columns` are those of `nextscale.data.load`. Raises `InputError` unless it is a folder
    with pictures in one of the layouts, and for labels and captions that do not fit them.
    """
    tree, asked = place if isinstance(place, Tree) else on_disk(place), columns or Columns()
    with _without_collection():
        told = _told(tree, labels, captions, asked)
        listing = _survey(tree, labels, told, progress)
    return listing if captions is None else _captioned(listing, tree, captions, told, progress)


def on_disk(root: Path) -> Folder:
    """A folder on disk. Raises `InputError` for anything else."""
    if not os.path.exists(root):  # unlike `Path.exists`, also of names that are too long
        raise InputError(f"expected a folder of pictures, found nothing at {root}; .tar shards would do as well")
    if not root.is_dir():
        raise InputError(f"expected a folder of pictures, got the file {root}; .tar shards would do as well")
    return Folder(root)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Inside, Python does not look for garbage: among a million new names there is none, and it takes half the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Told(NamedTuple):
    """What metadata in the folder tells, and which columns of tables are asked for."""

    metadata: list[Metadata]
    classes: Table | None
    by_metadata: bool
    """Whether classes are wanted of it."""
    captions: bool
    """Whether they are."""
    columns: Columns

    def used(self, one: Metadata) -> bool:
        """Whether a file of metadata tells what is wanted."""
        return (self.classes is not None and one.classes) or (self.captions and one.captions) or one in self.classless

    @property
    def classless(self) -> list[Metadata]:
        """The files that tell that there are no classes, unless others tell some."""
        return [one for one in self.metadata if self.by_metadata and self.classes is None and one.classless]

    @property
    def notes(self) -> list[str]:
        """Which files of metadata are not used, though they may have been meant to be; that there are no classes."""
        unused = [f"{one.name} has no {one.lacks} and is not used" for one in self.metadata if one.file is None]
        return [*(f"{one.name} tells no classes: there is one" for one in self.classless), *unused]


def _told(tree: Tree, labels: Labels | None, captions: Captioning | None, columns: Columns) -> Told:
    """What is told beside pictures. Raises `InputError` for columns of tables that are not there or not wanted."""
    if (ours := tree.inside().ours) in OURS[:2]:
        raise InputError(f"expected a folder of pictures, got {tree.root}, which is a {ours.replace('{s}', '')}")
    if columns.label and labels in (NONE, FOLDERS):
        raise InputError(f"--label-column {columns.label}: expected no other labels, got {labels}")
    if columns.caption and captions == NAMES:
        raise InputError(f"--caption-column {columns.caption}: expected no other captions, got {captions}")
    wanted = labels is None or captions == OWN
    found = metadata.find(tree, _homes(tree, columns), columns) if wanted else []
    if not found and labels in (None, NONE, FOLDERS) and captions in (None, OWN, NAMES):
        columns.refuse(f"{tree.root} without any")
    classes = metadata.classes(found, tree, columns) if labels is None else None
    return Told(found, classes, labels is None, captions == OWN, columns)


def _homes(tree: Tree, columns: Columns) -> list[str]:
    """Where metadata is looked for: the root, the folders around everything, and the splits that are used."""
    place = _unwrapped(tree, "")
    sides = _sides(tree, place, by_folder=False, outside=columns.outside)
    splits = [sides.train, sides.held_out] if sides else []
    return [*_way(place), *splits]


def _way(place: str, start: str = "") -> Iterator[str]:
    """The folders from one to a deeper one."""
    steps = place[len(start) :].split("/")[:-1]
    return accumulate(steps, lambda way, step: f"{way}{step}/", initial=start)


def _survey(tree: Tree, labels: Labels | None, told: Told, progress: Progress | None) -> Listing:
    read = _reader(tree, labels, told, progress)
    place = _unwrapped(tree, "")
    by_folder = isinstance(read, ByFolder)
    sides = _sides(tree, place, by_folder=by_folder, outside=told.columns.outside)
    listing = _one_folder(tree, read("")) if sides is None else _two_folders(tree, place, sides, read)
    left = Counter(listing.left_out.counts)
    left.subtract(kind_of(one.name) for one in told.metadata if told.used(one))
    return replace(listing, left_out=LeftOut(+left), notes=(*listing.notes, *told.notes))


# ---- which captions --------------------------------------------------------------------------------------------------


def _captioned(listing: Listing, tree: Tree, captions: Captioning, told: Told, progress: Progress | None) -> Listing:
    """The listing with captions; files that hold them are no longer counted among what is left out."""
    left, notes, names = Counter(listing.left_out.counts), listing.notes, listing.items.names
    found: Iterable[tuple[str, ...]]
    if captions == NAMES:
        found = map(of_name, names)
    elif captions != OWN:
        table = captions_in(Path(captions), tree, told.columns, left)
        found = (table.get(plain(name), ()) for name in names)
    elif beside := metadata.captioning(told.metadata, tree, told.columns, left):
        found, notes = (beside[0].get(plain(name), ()) for name in names), (*notes, beside[1])
    else:
        found = _in_files(tree, names, left, progress)
    every = Captions(found)
    notes = (*notes, *told_of(every, left, root=listing.root, how=captions))
    return replace(listing, captions=every, left_out=LeftOut(+left), notes=notes)


def _in_files(
    tree: Tree, names: Sequence[str], left: Counter[str], progress: Progress | None
) -> Iterator[tuple[str, ...]]:
    for those, gone in in_threads(partial(_beside, tree), names, progress=progress):
        left.update(gone)
        yield those


def _beside(tree: Tree, name: str) -> tuple[tuple[str, ...], Counter[str]]:
    """The captions in the text file beside a picture, and what that changes in the count of what is left out."""
    left: Counter[str] = Counter()
    path = f"{name[: name.rfind('.')]}.txt"
    try:
        with tree.open(path) as stream:
            content = stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return (), left
    except OSError:
        left[GONE] += 1
        return (), left
    left[kind_of(path)] -= 1
    if len(content) > MOST_BYTES:
        left[LONG] += 1
        return (), left
    return of_lines(content, left), left


# ---- which classes ---------------------------------------------------------------------------------------------------


def _reader(tree: Tree, labels: Labels | None, told: Told, progress: Progress | None) -> Reader:
    if labels == NONE or told.classless:
        return InOne(tree, tree.name)
    if labels not in (None, FOLDERS):
        return ByTable(tree, read_table(Path(labels), tree, told.columns))
    return ByFolder(tree, tree.name, progress) if told.classes is None else ByTable(tree, told.classes)


@dataclass(frozen=True)
class InOne:
    """Everything in one class."""

    tree: Tree
    name: str

    def __call__(self, below: str) -> Part:
        """See `Reader`."""
        names, left = self.tree.names(below)
        return Part({self.name: names} if names else {}, left)

    def why_not(self, held_out: Part, train: Part) -> str:
        """See `Reader`."""
        return ""


@dataclass(frozen=True)
class ByTable:
    """Classes by the rows of a table."""

    tree: Tree
    table: Table

    def __call__(self, below: str) -> Part:
        """See `Reader`; of a folder without any row there are no groups."""
        found, left = self.tree.names(below)
        names = [*found, *self.table.named_in(below)]
        covered = not below or self.table.covers_any(names)
        return Part(self.table(names, left) if covered else {}, left, notes=self.table.notes)

    def why_not(self, held_out: Part, train: Part) -> str:
        """See `Reader`."""
        return "" if held_out.groups else f"has no row in {self.table.told}"


@dataclass(frozen=True)
class ByFolder:
    """Classes by the folders that the pictures lie in."""

    tree: Tree
    flat_name: str
    progress: Progress | None

    def __call__(self, below: str) -> Part:
        """See `Reader`."""
        place = _unwrapped(self.tree, below)
        here, left = self.tree.inside(place), _left_around(self.tree, below, place)
        nested = dict(self._nested(place, here.folders, left))
        if here.pictures and nested:
            raise InputError(
                f"expected pictures either in class folders or directly in {self.tree.root}/{place}, got both: "
                f"{here.pictures[0]} beside {next(iter(nested))}/"
            )
        if here.pictures:
            return Part({self.flat_name: [f"{place}{name}" for name in here.pictures]}, left, flat=True)
        numbers = all(map(WHOLE.fullmatch, nested))
        order = sorted(nested, key=numbers_first if numbers else None)
        notes = (f"classes are the folders in {place}",) if place != below else ()
        return Part({folder: nested[folder] for folder in order}, left, notes=notes)

    def _nested(self, place: str, folders: Sequence[str], left: Counter[str]) -> Iterator[tuple[str, list[str]]]:
        told = due = 0
        for done, folder in enumerate(folders, start=1):
            names, gone = self.tree.names(f"{place}{folder}/")
            left.update(gone)
            if names:
                self._refuse_splits_inside(f"{place}{folder}/", names)
                yield folder, names
            elif gone.keys().isdisjoint(OURS):
                left[EMPTY] += 1
            told += len(names)
            if self.progress is not None and told // EVERY > due:
                due = told // EVERY
                self.progress(done, len(folders))

    def _refuse_splits_inside(self, below: str, names: Sequence[str]) -> None:
        """Raise `InputError` where what would be one class is a data set with splits of its own."""
        if "/" not in names[0][len(below) :]:
            return
        inner = {name[len(below) :].partition("/")[0] for name in names}
        splits = roles_of_folders(sorted(inner))
        if len(set(splits.values())) > 1:
            one, other, *_ = splits
            raise InputError(
                f"expected folders of classes in {self.tree.root}, got {below} with the splits {one}/ and {other}/ in "
                "it: name the folder that holds the splits"
            )

    def why_not(self, held_out: Part, train: Part) -> str:
        """See `Reader`; all held-out pictures may lie in one folder `images`, as in Tiny ImageNet."""
        only = "".join(held_out.groups) if len(held_out.groups) == 1 else ""
        loose = held_out.flat or (only not in train.groups and tells_no_class(only))
        return "has no folders of classes" if loose and not train.flat else ""


def _unwrapped(tree: Tree, below: str) -> str:
    """Where folders of classes or splits begin: further in while a folder holds one with pictures and no picture."""
    place = below
    while not tree.inside(place).pictures:
        found = list(islice(_with_pictures(tree, place), 2))
        if len(found) != 1:
            return place
        place += f"{found[0]}/"
    return below  # they lie in no folders of classes


def _with_pictures(tree: Tree, below: str) -> Iterator[str]:
    return (folder for folder in tree.inside(below).folders if tree.has_pictures(f"{below}{folder}/"))


def _left_around(tree: Tree, below: str, place: str) -> Counter[str]:
    """What lies beside the folders on the way from one to a deeper one, and in that."""
    left: Counter[str] = Counter()
    for way in _way(place, below):
        here = tree.inside(way)
        left.update(here.left)
        if way != place and len(here.folders) > 1:
            left[EMPTY] += len(here.folders) - 1
    return left


# ---- which splits ----------------------------------------------------------------------------------------------------


def _sides(tree: Tree, place: str, *, by_folder: bool, outside: bool) -> Sides | None:
    """The folders of the splits; None where none are called so. Raises `InputError` if they may be classes as well.

    Of pictures that lie `outside`, a folder may hold the metadata alone.
    """
    folders = tree.inside(place).folders
    roles = roles_of_folders(folders)
    if not roles or roles_of_folders(place.split("/")):
        return None
    train, validation, test = (first_choice(roles, role) for role in ("train", "validation", "test"))
    train = [folder for folder in train if _has_any(tree, f"{place}{folder}/", outside)]
    candidates = [*validation, *test]
    held_out = next((folder for folder in candidates if _has_any(tree, f"{place}{folder}/", outside)), None)
    if by_folder and (train or held_out):
        _refuse_classes_called_splits(tree, place, roles, train, held_out)
    if not train or held_out is None:
        return None
    if len(train) > 1 and train[0] != "train":
        raise InputError(f"expected one folder to train on in {tree.root}, got {train[0]}/ and {train[1]}/")
    unused = [*train[1:], *(folder for folder in candidates if folder != held_out)]
    beside = [folder for folder in _with_pictures(tree, place) if folder not in roles]
    return Sides(f"{place}{train[0]}/", f"{place}{held_out}/", (*unused, *beside))


def _has_any(tree: Tree, below: str, outside: bool) -> bool:
    return tree.has_pictures(below) or (outside and metadata.is_in(tree, below))


def _refuse_classes_called_splits(
    tree: Tree, place: str, roles: Mapping[str, Role], train: Sequence[str], held_out: str | None
) -> None:
    """Raise `InputError` where a folder may be a split or a class.

    `train` in whose folders lie pictures is a split, and so it is beside `val`; flat beside flat others it is a class.
    """
    called = next(iter(train), held_out)
    both = bool(train) and held_out is not None
    others = (folder for folder in _with_pictures(tree, place) if (folder not in roles if both else folder != called))
    other = next(others, None)
    if other is None or tree.inside(place).pictures:
        return
    flat = bool(train) and bool(tree.inside(f"{place}{train[0]}/").pictures)
    clear = not flat if both else flat and len(train) == 1
    if not clear:
        raise InputError(
            f"expected folders of splits (train beside val or test) or of classes in {tree.root}/{place}, got "
            f"{called}/ beside {other}/, which may be either: rename one, or name the folder to train on"
        )


def _two_folders(tree: Tree, place: str, sides: Sides, read: Reader) -> Listing:
    """Splits of their own; where the held-out one cannot be used, a share of the other is held out."""
    train, held_out = read(sides.train), read(sides.held_out)
    left = _left_around(tree, "", place) + train.left
    if loose := tree.inside(place).pictures:
        left["picture{s} beside the splits"] += len(loose)
    unused = [f"{folder}/ not used" for folder in sides.unused]
    if why := read.why_not(held_out, train):
        told = [f"5 % of {sides.train} by hash of the name", f"{sides.held_out} {why} and is not used", *unused]
        return _listing(tree, train, None, told="; ".join(told), left=left)
    known = {*train.groups, *map(plain, train.groups)}
    if unknown := sorted(group for group in held_out.groups if group not in known and plain(group) not in known):
        raise InputError(
            f"expected the held-out classes of {tree.root} among those of its train folder, got {unknown[0]!r}"
        )
    told = [sides.held_out, *unused]
    return _listing(tree, train, held_out, told="; ".join(told), left=left + held_out.left)


def _one_folder(tree: Tree, part: Part) -> Listing:
    """A tree with a share held out by the hash of the names, so that a new file moves few others."""
    if not part.groups:
        left = f" ({told})" if (told := str(LeftOut(part.left))) else ""
        raise InputError(f"expected pictures ({KINDS}) or .tar shards in {tree.root}, found none{left}")
    return _listing(tree, part, None, told=BY_HASH, left=part.left)


def _listing(tree: Tree, train: Part, held_out: Part | None, *, told: str, left: Counter[str]) -> Listing:
    numbers = {plain(group): number for number, group in enumerate(train.groups)}
    numbers |= {group: number for number, group in enumerate(train.groups)}  # where two differ in spelling alone
    trained = train.names()
    chosen_N = hold_out(trained, root=tree.root) if held_out is None else np.zeros(len(trained), dtype=bool)
    labels = [numbers[group] for group, names in train.groups.items() for _ in names]
    names = list(trained)
    for group, more in held_out.groups.items() if held_out else ():
        names += more
        labels += [numbers[group if group in numbers else plain(group)]] * len(more)
    files = Names(names)
    items = Items(
        names=files,
        labels=np.array(labels, dtype=np.int64),
        held_out=np.pad(chosen_N, (0, len(files) - len(chosen_N)), constant_values=True),
        store=tree.store(files),
    )
    return Listing(
        kind="folder",
        root=tree.root,
        items=items,
        classes=told_apart(train.groups),
        held_out=told,
        left_out=LeftOut(left),
        notes=train.notes,
    )
