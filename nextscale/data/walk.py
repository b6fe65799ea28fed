"""Walking a folder of pictures: their names, in an order that no disk decides, and what is left out on the way.

Opens no picture and asks the system nothing about a file that its folder's listing tells. Names are strings below the
root, with forward slashes. Hidden files are ignored; links are followed, but never into a folder they lie in; what
nextscale itself wrote (runs, token caches, models, samples) is left out. A `Tree` is anything that holds pictures in
folders, `Folder` one on disk.
"""

from __future__ import annotations

import errno
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Protocol, Self

import numpy as np

from nextscale.data.names import Names
from nextscale.errors import InputError
from nextscale.images import SUFFIXES

RUN, CACHE, MODEL, SAMPLES = OURS = ("run{s} of nextscale", "token cache{s}", "model{s}", "folder{s} of samples")
SAMPLE = re.compile(r"\d+-(?:.*-)?seed-?\d+(?:-\d+)?(?:-growing)?\.png")  # as `nextscale sample` names a picture
COMPANIONS = frozenset(  # what usually lies beside pictures, none of it one
    (".txt", ".json", ".jsonl", ".cls", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".html", ".db", ".npy", ".npz")
)
SYSTEM = frozenset(  # folders that network disks and systems put among others, some of them full of small copies
    (
        "@eaDir",
        "#recycle",
        "#snapshot",
        "@Recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "__MACOSX",
    )
)
SHOWN = 4  # suffixes that are told one by one
_SUFFIXES = frozenset(SUFFIXES)


@dataclass(frozen=True)
class LeftOut:
    """What is not trained on, and is no unreadable picture: how often each kind; `{s}` in a kind makes it plural."""

    counts: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """`18 .heic, 30 links to nothing`; empty if there is nothing."""
        kinds = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        suffixes = [kind for kind, _ in kinds if kind.startswith(".")]
        told = [f"{count:,} {in_number(kind, count)}" for kind, count in kinds if kind not in suffixes[SHOWN:]]
        rest = sum(self.counts[suffix] for suffix in suffixes[SHOWN:])
        return ", ".join([*told, f"and {in_number(f'{rest:,} other{{s}}', rest)}"] if rest else told)


def in_number(kind: str, count: int) -> str:
    """A kind in singular or plural."""
    one = count == 1
    ends = {"{s}": ("", "s"), "{y}": ("y", "ies"), "{es}": ("", "es")}
    for mark, (singular, plural) in ends.items():
        kind = kind.replace(mark, singular if one else plural)
    return kind


@dataclass(frozen=True)
class Inside:
    """What lies directly in a folder, by name and sorted; `ours` says what of nextscale it is, if it is any."""

    pictures: list[str]
    folders: list[str]
    others: list[str]
    """Files of other kinds."""
    gone: Counter[str]
    """What is no file and no folder."""
    ours: str | None

    @property
    def left(self) -> Counter[str]:
        """All that is neither a picture nor a folder."""
        return self.gone + Counter(map(kind_of, self.others))


def inside(folder: str) -> Inside:
    """One folder. Raises `InputError` if it may not be read."""
    pictures: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    gone: Counter[str] = Counter()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if is_picture(name) and entry.is_file(follow_symlinks=False):
                    pictures.append(name)
                elif not name.startswith("."):
                    _put(entry, pictures, folders, others, gone)
    except OSError as error:
        raise InputError(f"expected a folder that may be read, got {folder} ({error.strerror})") from None
    return Inside(sorted(pictures), sorted(folders), sorted(others), gone, _ours(folder, pictures, others))


def _put(
    entry: os.DirEntry[str], pictures: list[str], folders: list[str], others: list[str], gone: Counter[str]
) -> None:
    """One entry to where it belongs; a link costs a question to the system, other entries none."""
    try:
        if entry.is_file():
            (pictures if is_picture(entry.name) else others).append(entry.name)
        elif entry.is_dir():
            if entry.name in SYSTEM:
                gone["folder{s} of the system"] += 1
            else:
                folders.append(entry.name)
        else:
            gone["link{s} to nothing" if entry.is_symlink() else "special file{s}"] += 1
    except OSError as error:
        circle = error.errno == errno.ELOOP
        gone["link{s} in a circle" if circle else "entr{y} that may not be looked at"] += 1


def is_picture(name: str) -> bool:
    """By the suffix; hidden files are none."""
    return name[name.rfind(".") :].lower() in _SUFFIXES and name[0] != "."


def kind_of(name: str) -> str:
    """How a file that is no picture is counted: by its suffix if that is a rare sight beside pictures."""
    suffix = os.path.splitext(name)[1].lower()
    plain = suffix[1:].isalnum() and suffix not in COMPANIONS and len(suffix) <= 8
    return suffix if plain else "other file{s}"


def _ours(folder: str, pictures: list[str], others: list[str]) -> str | None:
    """What nextscale wrote is known by the files that it writes."""
    if "run.json" in others and _tells_settings(f"{folder}/run.json"):
        return RUN
    if "tokens.json" in others and _tells_settings(f"{folder}/tokens.json"):
        return CACHE
    if "config.json" in others and any(name.endswith(".safetensors") for name in others):
        return MODEL
    sampled = "grid.png" in pictures and all(name == "grid.png" or SAMPLE.fullmatch(name) for name in pictures)
    return SAMPLES if sampled and len(pictures) > 1 else None


def _tells_settings(file: str) -> bool:
    try:
        with open(file, "rb") as stream:
            return b'"settings"' in stream.read(4096)
    except OSError:
        return False


@dataclass
class _Visit:
    """A folder on the way: its name below the root, where it really lies, and what is left of it to see."""

    below: str
    place: str
    rest: Iterator[list[str] | str]  # pictures in a row, or the name of a folder


def _in_order(folder: Inside) -> Iterator[list[str] | str]:
    """Pictures and folders by name: pictures in lists, as many as stand together."""
    folders, row = set(folder.folders), list[str]()
    for name in sorted([*folder.pictures, *folder.folders]) if folders else ():
        if name not in folders:
            row.append(name)
            continue
        yield row
        yield name
        row = []
    yield row if folders else folder.pictures


class Store(Protocol):
    """Where the pictures of a listing lie. It can be pickled, and read by several threads and processes."""

    def open(self, place: int) -> BinaryIO:
        """The bytes of the picture at a place of the listing, as a stream that no other thread shares.

        Raises `OSError` where they are gone.
        """
        ...


class Entries(Store, Protocol):
    """A store of which some files can be chosen."""

    def chosen(self, places_M: np.ndarray) -> Self:
        """Those at some places, in that order."""
        ...


class Tree(ABC):
    """The folders below a root; `below` is a folder's name there with a slash behind it, the root's own is empty."""

    def __init__(self, root: str | Path) -> None:
        """`root` is what messages call it."""
        self.root = Path(root)
        self._seen: dict[str, Inside] = {}  # of folders above those of classes, which are looked at again

    @property
    @abstractmethod
    def name(self) -> str:
        """The root's own, which a single class has."""

    @abstractmethod
    def look(self, below: str) -> Inside:
        """What lies directly in a folder. Raises `InputError` if it may not be read."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """The bytes of a file. Raises `OSError`, of a file that is not there `FileNotFoundError`."""

    @abstractmethod
    def holds(self, name: str) -> bool:
        """Whether there is a file of that very name."""

    @abstractmethod
    def store(self, names: Names) -> Entries:
        """What opens these files by their places in the list, and keeps nothing else of the tree."""

    def where(self, below: str, above: Sequence[str]) -> str:
        """Where a folder really lies, below those `above`: a link may lead back to one of these."""
        return below

    def inside(self, below: str = "") -> Inside:
        """What lies directly in a folder, looked at once."""
        if below not in self._seen:
            self._seen[below] = self.look(below)
        return self._seen[below]

    def rows(self, below: str, left: Counter[str]) -> Iterator[list[str]]:
        """Names of all pictures at any depth, in lists; what is not among them is counted in `left`."""
        above = self._above(below)
        way = [visit] if (visit := self._enter(below, above, left)) else []
        while way:
            here = way[-1]
            found = next(here.rest, None)
            if found is None:
                way.pop()
            elif isinstance(found, list):
                yield [f"{here.below}{name}" for name in found]
            elif visit := self._enter(f"{here.below}{found}/", [*above, *(each.place for each in way)], left):
                way.append(visit)

    def names(self, below: str = "") -> tuple[list[str], Counter[str]]:
        """All of `rows`, and what was left out."""
        left: Counter[str] = Counter()
        return [name for row in self.rows(below, left) for name in row], left

    def has_pictures(self, below: str = "") -> bool:
        """Whether there is one at any depth; looks no further than the first."""
        return any(self.rows(below, Counter()))

    def _above(self, below: str) -> list[str]:
        """Where the folders above one really lie, from the root on."""
        places: list[str] = []
        for end, letter in enumerate(below):
            if letter == "/":
                places.append(self.where(below[: below.rfind("/", 0, end) + 1], places))
        return places

    def _enter(self, below: str, above: list[str], left: Counter[str]) -> _Visit | None:
        """The visit to a folder, unless it is one of those above or nextscale's own."""
        place = self.where(below, above)
        if place in above:
            left["link{s} in a circle"] += 1
            return None
        found = self._seen.get(below) or self.look(below)
        if below and found.ours:
            left[found.ours] += 1
            return None
        left.update(found.left)
        return _Visit(below, place, _in_order(found))


class Folder(Tree):
    """A folder on disk; names may also be absolute paths, which lie outside of it."""

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self._root, self._place = str(root), os.path.realpath(root)

    @property
    def name(self) -> str:
        """See `Tree`."""
        return self.root.resolve().name

    def look(self, below: str) -> Inside:
        """See `Tree`."""
        return inside(self._path(below))

    def open(self, name: str) -> BinaryIO:
        """See `Tree`."""
        return open(path_of(self._root, name), "rb")

    def holds(self, name: str) -> bool:
        """See `Tree`."""
        return os.path.isfile(path_of(self._root, name))

    def store(self, names: Names) -> Entries:
        """See `Tree`."""
        return Files(self._root, names)

    def where(self, below: str, above: Sequence[str]) -> str:
        """See `Tree`."""
        if not below:
            return self._place
        path = self._path(below)
        return os.path.realpath(path) if os.path.islink(path) else f"{above[-1]}/{os.path.basename(path)}"

    def _path(self, below: str) -> str:
        return f"{self._root}/{below}"[:-1]


@dataclass(frozen=True)
class Files:
    """The store of a folder."""

    root: str
    names: Names

    def open(self, place: int) -> BinaryIO:
        """See `Store`."""
        return open(path_of(self.root, self.names[place]), "rb")

    def chosen(self, places_M: np.ndarray) -> Self:
        """Those at some places, in that order."""
        return replace(self, names=self.names.chosen(places_M))


def path_of(root: str, name: str) -> str:
    """The path of a file below a folder, or of one that has an absolute name."""
    return name if os.path.isabs(name) else f"{root}/{name}"


def pictures_below(folder: Path) -> Iterator[Path]:
    """The picture files at any depth."""
    return (folder / name for row in Folder(folder).rows("", Counter()) for name in row)


def visible(folder: Path) -> list[Path]:
    """What lies directly in a folder, sorted, without hidden files. Raises `InputError` if it may not be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"expected a folder that may be read, got {folder} ({error.strerror})") from None
