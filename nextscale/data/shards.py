"""WebDataset shards as a listing: tar files in which files with one key, such as 1.jpg and 1.cls, are a sample.

Headers are scanned once and pictures then read in any order by their places, so that what a step sees stays a function
of seed and step, and a run that was killed continues bit for bit. The `webdataset` package streams and shuffles in a
buffer, which cannot promise that, and is not used.

The key is the name up to the first dot of its last part, the folder in front included; what has more dots
(`1.left.jpg`) is a named field of the sample and left out. The picture has one of the suffixes of `nextscale.images`.
The class is the text of `.cls`, or else what `.json` holds under "label", "class" or "cls" (the first that is there): a
whole number or a name; without any there is one class, named as the folder. `classes.txt` (a name a line) or
`classes.json` (a list, or an object from numbers to names) beside the shards names the numbers and fixes the order;
without it numbers are their own names, sorted as such before other names. Captions, where they are wanted, are the
lines of `.txt` and what `.json` holds under "caption".

Shards called `train` and `val` or `test` (as a word: `train-000.tar`, `photos-val.tar`, `train/000.tar`; other usual
names in `nextscale.data.splits`) are the splits, and others beside them are not read; otherwise 5 % of the samples, at
least one, is held out by the hash of their keys. A sample without a picture counts as an unreadable one.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from nextscale.data.captions import (
    LONG,
    MOST_BYTES,
    NAMES,
    OWN,
    Captioning,
    Captions,
    no_table,
    of_json,
    of_lines,
    of_name,
    told,
)
from nextscale.data.labels import LONGEST, Labels, check_label, no_classes, one_number, whole_numbers
from nextscale.data.listing import BY_KEY, Examined, Items, Listed, Listing, hold_out, told_apart
from nextscale.data.names import Names
from nextscale.data.patterns import LETTERS, matches
from nextscale.data.pictures import Progress, in_threads
from nextscale.data.reading import look
from nextscale.data.splits import roles_of_folders, sides_of
from nextscale.data.tables import Columns
from nextscale.data.tar import Member, members, window
from nextscale.data.walk import LeftOut, inside, is_picture, kind_of, pictures_below
from nextscale.data.windows import Windows
from nextscale.errors import InputError
from nextscale.images import KINDS, SUFFIXES

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
STATED = (".cls", ".json")  # the files that may state a class
CAPTIONED = (".txt", ".json")  # those that may hold captions
MOST_TEXT = 2**24  # bytes of a file that states one
LABEL_KEYS = ("label", "class", "cls")
LISTS = ("classes.txt", "classes.json")

Class = int | str
Look = tuple[tuple[int, int], bytes] | str  # as `Examined.of` takes it
Local = Callable[[Path], AbstractContextManager[Path]]  # path -> where the file lies here, as long as a block runs


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The tar files of a data set; `root` is the folder above all of them, where a list of the classes may lie."""

    root: Path
    paths: tuple[Path, ...]
    left: Counter[str] = field(default_factory=Counter)
    """What lies beside them and is not looked at."""
    local: Local = nullcontext
    """Of paths that stand for shards elsewhere (`nextscale.data.remote`)."""
    ahead: Callable[[Sequence[Path]], None] | None = None
    """Lets such shards be fetched before they are needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A sample of one shard, before the others are known."""

    key: str
    name: str
    picture: Member
    stated: Class | None
    captions: tuple[str, ...]
    look: Look | None = None
    """What opening the picture told, if it was opened."""


@dataclass(frozen=True, kw_only=True)
class Members:
    """Pictures by the shard that each lies in, as a number of `paths`, and the place of its bytes; -1 of them are none.

    `shards` is (N,) int32, `offsets` and `sizes` are (N,) int64.
    """

    paths: tuple[Path, ...]
    shards: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    local: Local = nullcontext

    @classmethod
    def of(cls, members: Sequence[Member], local: Local = nullcontext) -> Members:
        """The places of these."""
        paths = {path: number for number, path in enumerate(dict.fromkeys(member.tar for member in members))}
        return cls(
            paths=tuple(paths),
            shards=np.array([paths[member.tar] for member in members], dtype=np.int32),
            offsets=np.array([member.offset for member in members], dtype=np.int64),
            sizes=np.array([member.size for member in members], dtype=np.int64),
            local=local,
        )

    def chosen(self, places_M: np.ndarray) -> Self:
        """Those at some places, in that order."""
        shards, offsets, sizes = (array[places_M] for array in (self.shards, self.offsets, self.sizes))
        return replace(self, shards=shards, offsets=offsets, sizes=sizes)

    def open(self, place: int) -> BinaryIO:
        """See `nextscale.data.walk.Store`."""
        size = int(self.sizes[place])
        if size < 0:
            raise FileNotFoundError(errno.ENOENT, "a sample without a picture of its own")
        with self.local(self.paths[self.shards[place]]) as path:
            return window(path, offset=int(self.offsets[place]), size=size)


@dataclass(frozen=True)
class Ahead:
    """Shards that are needed next, by their numbers."""

    paths: tuple[Path, ...]
    fetch: Callable[[Sequence[Path]], None]

    def __call__(self, numbers: Sequence[int]) -> None:
        self.fetch([self.paths[number] for number in numbers])


# ---- which files -----------------------------------------------------------------------------------------------------


def find(source: str | Path) -> Shards | None:
    """The shards that a folder or a pattern stands for; None if it is a folder of pictures, or nothing known here.

    Raises `InputError` for compressed shards, missing ones, and pictures directly beside shards.
    """
    if os.path.isdir(source):
        return _in_folder(Path(source))
    if str(source).endswith(COMPRESSED):
        raise _compressed(str(source))
    known = str(source).lower().endswith(".tar") or (not os.path.exists(source) and bool(set(str(source)) & LETTERS))
    return _of_pattern(str(source)) if known else None


def _in_folder(root: Path) -> Shards | None:
    """The tars of a folder, unless its folders hold pictures: then they are what they were unpacked from."""
    here = _beside(root)
    if not here.paths and (here.pictures or not (here.packed or here.folders)):
        return None
    if next(pictures_below(root), None) is not None:
        if here.paths and here.pictures:
            raise InputError(
                f"expected either pictures or shards in {root}, got {here.pictures[0]} beside {here.paths[0].name}"
            )
        return None
    return _together(*_unwrapped(root, here))


class Beside(NamedTuple):
    """What lies directly in a folder."""

    paths: list[Path]
    packed: list[Path]
    folders: list[Path]
    pictures: list[str]
    left: Counter[str]


def _beside(folder: Path) -> Beside:
    here = inside(str(folder))
    tars = [name for name in here.others if name.lower().endswith(".tar")]
    packed = [name for name in here.others if name.endswith(COMPRESSED)]
    known = {*tars, *LISTS}
    rest = [name for name in here.others if name not in known]
    tar_paths, packed_paths, folders = ([folder / name for name in names] for names in (tars, packed, here.folders))
    return Beside(tar_paths, packed_paths, folders, here.pictures, here.gone + Counter(map(kind_of, rest)))


def _unwrapped(root: Path, here: Beside) -> tuple[Path, Beside]:
    """Further in while a folder holds one folder and no shards; a link that leads back ends the way."""
    seen = {os.path.realpath(root)}
    while not here.paths and not here.packed and len(here.folders) == 1:
        if (place := os.path.realpath(here.folders[0])) in seen:
            break
        seen.add(place)
        root, here = here.folders[0], _beside(here.folders[0])
    return root, here


def _together(root: Path, here: Beside) -> Shards | None:
    """The tars of a folder or, if there are none, those one level further down."""
    inner = [] if here.paths or here.packed else [_beside(folder) for folder in here.folders]
    packed = [*here.packed, *(path for each in inner for path in each.packed)]
    if packed:
        raise _compressed(str(packed[0]))
    paths = [*here.paths, *(path for each in inner for path in each.paths)]
    left = sum((each.left for each in inner), Counter(here.left))
    unseen = here.folders if here.paths else [folder for each in inner for folder in each.folders]
    if unseen:
        left["folder{s} beside the shards"] += len(unseen)
    return Shards(root=root, paths=tuple(paths), left=left) if paths else None


def _of_pattern(pattern: str) -> Shards:
    paths = matches(pattern, ".tar shards")
    missing = [path for path in paths if not os.path.isfile(path)]
    if folders := list(filter(os.path.isdir, missing)):
        raise InputError(f"expected .tar shards as {pattern} says, got the folder {folders[0]}")
    if missing:
        raise InputError(f"expected {len(paths)} shards as {pattern} says, found nothing at {missing[0]}")
    if other := next((path for path in paths if path.suffix.lower() != ".tar"), None):
        raise (
            _compressed(str(other))
            if other.name.endswith(COMPRESSED)
            else InputError(f"expected .tar shards as {pattern} says, got {other}")
        )
    return Shards(root=Path(os.path.commonpath([path.parent for path in paths])), paths=paths)


def _compressed(name: str) -> InputError:
    return InputError(f"expected uncompressed .tar shards, got {name}: unpack it first (gunzip, unxz, unzstd)")


# ---- which samples ---------------------------------------------------------------------------------------------------


def survey(
    shards: Shards,
    *,
    labels: Labels | None = None,
    captions: Captioning | None = None,
    columns: Columns | None = None,
    progress: Progress | None = None,
    window: int | None = None,
) -> Listing:
    """The samples of the shards in the order they lie there; `progress` runs through the shards.

    With `window`, a training goes through so many shards at a time (`nextscale.data.windows`).

    `labels` may be "none": one class, whatever the samples say. `captions` may be "own", what `.txt` and `.json` hold,
    or "names", the words of the keys; there are no `columns`.

    Raises `InputError` for a damaged shard, a key with the same file twice or with two pictures, shards without
    samples, classes that are missing, unknown or no class, no captions where some are wanted, and tables.
    """
    (columns or Columns()).refuse(f"the shards in {shards.root}")
    alike = no_classes(labels, of=f"the shards in {shards.root}")
    how = no_table(captions, of=f"the shards in {shards.root}")
    wanted = Wanted(root=shards.root, classes=not alike, captions=how, local=shards.local)
    left = Counter(shards.left)
    read = partial(_read, wanted=wanted, left=left, progress=progress)
    paths = {_name(path, shards.root): path for path in shards.paths}
    sides = sides_of(list(paths), share=BY_KEY, one="shard")
    train = read([paths[name] for name in sides.train])
    if sides.held_out:
        found = train + read([paths[name] for name in sides.held_out])
        chosen_N = np.arange(len(found)) >= len(train)
    else:
        found, chosen_N = train, hold_out([sample.key for sample in train], root=shards.root)
    found, notes = _one_spelling(found, root=shards.root)
    classes, numbers = _labels(found, found[: len(train)], shards)
    every = None if how is None else Captions(sample.captions for sample in found)
    of_captions = () if every is None else told(every, left, root=shards.root, how=str(how))
    store = Members.of([sample.picture for sample in found], shards.local)
    return Listing(
        kind="shards",
        root=shards.root,
        items=Items(
            names=Names(sample.name for sample in found),
            labels=np.array(numbers, dtype=np.int64),
            held_out=chosen_N,
            store=store,
        ),
        classes=told_apart(classes),
        held_out=sides.told,
        left_out=LeftOut(left),
        notes=(*notes, *_folders_inside(found), *of_captions),
        captions=every,
        examined=_examined(found),
        windows=None if window is None else _windows(store, window, shards),
    )


def _windows(store: Members, width: int, shards: Shards) -> Windows:
    ahead = None if shards.ahead is None else Ahead(store.paths, shards.ahead)
    return Windows(shards=store.shards.astype(np.int64), width=width, ahead=ahead)


def _examined(found: Sequence[Found]) -> Examined | None:
    """What is known of pictures that were all opened."""
    looks = [sample.look for sample in found if sample.look is not None]
    return Examined.of(looks, len(found)) if len(looks) == len(found) else None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is read of samples beside the places of their pictures; `captions` is "own", "names" or None."""

    root: Path
    classes: bool
    captions: str | None
    local: Local = nullcontext

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of files that are looked at."""
        stated = STATED if self.classes else ()
        return tuple(dict.fromkeys((*SUFFIXES, *stated, *(CAPTIONED if self.captions == OWN else ()))))


def _read(paths: Sequence[Path], *, wanted: Wanted, left: Counter[str], progress: Progress | None) -> list[Found]:
    found: list[Found] = []
    for samples, gone in in_threads(partial(_samples, wanted=wanted), paths, progress=progress):
        found += samples
        left.update(gone)
    if not any(sample.picture.size > 0 for sample in found):
        some = f"{paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        told = f" ({LeftOut(left)})" if left else ""
        raise InputError(f"expected samples with a picture ({KINDS}) in {some}, found none{told}")
    return found


def _samples(path: Path, *, wanted: Wanted) -> tuple[list[Found], Counter[str]]:
    """Those of one shard, which is needed here as long as that takes."""
    with wanted.local(path) as here:
        found, left = _samples_in(here, path, wanted)
        if here == path:
            return found, left
        return [_once(sample, path) for sample in found], left


def _once(sample: Found, path: Path) -> Found:
    """A sample of a shard that is called `path`, with all there is to know of its picture while the shard is here."""
    here = Members.of([sample.picture])
    return replace(sample, picture=sample.picture._replace(tar=path), look=look(Listed("", 0, False, here, 0)))


def _samples_in(here: Path, path: Path, wanted: Wanted) -> tuple[list[Found], Counter[str]]:
    """Those of a shard that lies `here` and is called `path`."""
    suffixes = wanted.suffixes
    groups: dict[str, dict[str, Member]] = {}
    named: list[str] = []  # keys of fields with names
    left: Counter[str] = Counter()
    for member in members(here, left):
        key, suffix = _split(member.name)
        if suffix in suffixes:
            files = groups.setdefault(key, {})
            if suffix in files:
                raise InputError(f"expected every key once in {path}, got {member.name} twice")
            files[suffix] = member
        elif suffix and is_picture(member.name):
            named.append(key)
        elif suffix and suffix not in STATED:
            left[kind_of(member.name)] += 1
    _count_named(named, groups, left)
    return [_found(key, files, left, path=path, wanted=wanted) for key, files in groups.items()], left


def _count_named(named: Sequence[str], groups: Mapping[str, Mapping[str, Member]], left: Counter[str]) -> None:
    """`1.left.jpg` beside `1.jpg` is more of a sample that is read; alone it is one that is not."""
    for key in named:
        beside = any(suffix in SUFFIXES for suffix in groups.get(key, ()))
        left["picture{s} in named fields of samples" if beside else "picture{s} with dots in their keys"] += 1


def _split(name: str) -> tuple[str, str]:
    """Key and suffix of a member; the suffix is empty for hidden files, which are none of a sample's."""
    above, slash, last = name.rpartition("/")
    stem, dot, rest = last.partition(".")
    return above + slash + stem, (dot + rest).lower() if stem else ""


def _found(key: str, files: dict[str, Member], left: Counter[str], *, path: Path, wanted: Wanted) -> Found:
    pictures = [files[suffix] for suffix in SUFFIXES if suffix in files]
    if len(pictures) > 1:
        raise InputError(f"expected one picture a key in {path}, got {pictures[0].name} and {pictures[1].name}")
    picture = pictures[0] if pictures else Member(path, key, 0, -1)  # nothing to read, and so unreadable
    return Found(
        key=key,
        name=f"{_name(path, wanted.root)}/{picture.name}",
        picture=picture,
        stated=_stated(files) if wanted.classes else None,
        captions=_captions(key, files, left, how=wanted.captions),
    )


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


# ---- which captions --------------------------------------------------------------------------------------------------


def _captions(key: str, files: Mapping[str, Member], left: Counter[str], *, how: str | None) -> tuple[str, ...]:
    """What `.txt` and `.json` say of a sample, or its key; what is of no use is counted."""
    if how is None:
        return ()
    if how == NAMES:
        return of_name(key)
    found: dict[str, None] = {}
    for suffix, of in ((".txt", of_lines), (".json", of_json)):
        if suffix in files:
            found |= dict.fromkeys(_of_member(files[suffix], of, left))
    return tuple(found)


def _of_member(
    member: Member, of: Callable[[bytes, Counter[str]], tuple[str, ...]], left: Counter[str]
) -> tuple[str, ...]:
    if member.size > MOST_BYTES:
        left[LONG] += 1
        return ()
    with member.open() as stream:
        return of(stream.read(), left)


# ---- which class -----------------------------------------------------------------------------------------------------


def _stated(files: dict[str, Member]) -> Class | None:
    """What a sample says of its class: a number, a name, or nothing."""
    if ".cls" in files:
        return _class(_text(files[".cls"]), files[".cls"])
    if ".json" not in files:
        return None
    entries = _json(_text(files[".json"]), f"{files['.json'].name} in {files['.json'].tar}")
    given = [entries[key] for key in LABEL_KEYS if key in entries] if isinstance(entries, dict) else []
    return _class(given[0], files[".json"]) if given else None


def _class(value: Any, member: Member) -> Class:
    if isinstance(value, str) and value.strip():
        name = value.strip()
        if len(name) > LONGEST:
            raise InputError(
                f"expected a class of at most {LONGEST} characters in {member.name} of {member.tar}, got {len(name):,}"
            )
        check_label(name, where=f"{member.name} of {member.tar}")
        return int(name) if re.fullmatch(r"[+-]?[0-9]+", name) else name
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise InputError(f"expected a class, a whole number or a name, in {member.name} of {member.tar}, got {value!r}")


def _text(member: Member) -> str:
    if member.size > MOST_TEXT:
        raise InputError(
            f"expected at most {MOST_TEXT:,} bytes of text in {member.name} of {member.tar}, got {member.size:,}"
        )
    try:
        with member.open() as stream:
            return stream.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"expected text in {member.name} of {member.tar}, got other bytes") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"expected JSON, got {where}, which is something else") from None


def _one_spelling(found: list[Found], *, root: Path) -> tuple[list[Found], tuple[str, ...]]:
    """The samples with each class in one spelling: 1.0 is 1 where all are whole numbers, which is said.

    Raises `InputError` where a number is written in two ways.
    """
    first: dict[str, Found] = {}
    for sample in found:
        if sample.stated is not None:
            first.setdefault(str(sample.stated), sample)
    whole, told = whole_numbers(first, where=str(root))
    if told:
        return [replace(sample, stated=_whole(sample.stated, whole)) for sample in found], (told,)
    if twice := one_number(first):
        one, other = twice
        raise InputError(
            f"expected every number written in one way, got {other} in {first[other].name} and {one} in "
            f"{first[one].name}"
        )
    return found, ()


def _whole(stated: Class | None, whole: Mapping[str, str]) -> Class | None:
    return None if stated is None else int(whole[str(stated)])


def _folders_inside(found: Sequence[Found]) -> tuple[str, ...]:
    """That the folders inside shards mean nothing, if they look as if they did."""
    folders = {sample.key.partition("/")[0] for sample in found if "/" in sample.key}
    classless = bool(folders) and all(sample.stated is None for sample in found)
    splits = len(set(roles_of_folders(folders).values())) > 1
    if not classless and not splits:
        return ()
    some = " and ".join(f"{folder}/" for folder in sorted(folders)[:2])
    return (f"folders inside the shards, such as {some}, are neither classes nor splits: .cls or .json tells a class",)


def _labels(found: Sequence[Found], train: Sequence[Found], shards: Shards) -> tuple[tuple[str, ...], list[int]]:
    """The names of the classes, and the number of each sample's."""
    root = shards.root
    unlabelled = [sample for sample in found if sample.stated is None]
    if len(unlabelled) == len(found):
        return (root.resolve().name,), [0] * len(found)
    if unlabelled:
        raise InputError(
            f"expected a class (.cls or .json) for each of the {len(found)} samples in {root} or for none, "
            f"{len(unlabelled)} are without, such as {unlabelled[0].name}"
        )
    names, numbers = _numbering((sample.stated for sample in train), shards)
    for sample in found:
        if sample.stated not in numbers:
            raise InputError(f"expected one of the {len(names)} classes in {sample.name}, got {sample.stated!r}")
    return names, [numbers[sample.stated] for sample in found]


def _numbering(stated: Iterable[Class | None], shards: Shards) -> tuple[tuple[str, ...], dict[Class | None, int]]:
    """Class names, and the number of every way to state one: by the list beside the shards, or in their own order."""
    listed = _listed(shards)
    if listed is not None:
        numbers: dict[Class | None, int] = {number: number for number in range(len(listed))}
        for number, name in enumerate(listed):
            numbers.setdefault(name, number)  # of two classes with one name the first
        return listed, numbers
    values = sorted({value for value in stated if value is not None}, key=_numbers_first)
    return tuple(map(str, values)), {value: number for number, value in enumerate(values)}


def _numbers_first(value: Class) -> tuple[bool, int, str]:
    return (False, value, "") if isinstance(value, int) else (True, 0, value)


def _listed(shards: Shards) -> tuple[str, ...] | None:
    """The class names that `classes.txt` or `classes.json` gives, in order."""
    for name, read in (("classes.txt", _lines), ("classes.json", _entries)):
        with shards.local(shards.root / name) as here:
            text = here.read_bytes() if here.is_file() else None
        if text is not None:
            return _names(text, read, where=shards.root / name)
    return None


def _names(text: bytes, read: Callable[[str], tuple[str, ...]], *, where: Path) -> tuple[str, ...]:
    try:
        names = read(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        names = ()
    if not names or not all(isinstance(entry, str) and entry for entry in names):
        raise InputError(f"expected the names of the classes, one for each number from 0 on, in {where}")
    return names


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _entries(text: str) -> tuple[str, ...]:
    """A list of names, or an object whose keys are 0, 1, …; `ValueError` otherwise."""
    entries = json.loads(text)
    if isinstance(entries, dict) and set(entries) == {str(number) for number in range(len(entries))}:
        return tuple(entries[str(number)] for number in range(len(entries)))
    if isinstance(entries, list):
        return tuple(entries)
    raise ValueError(f"expected a list or an object, got {text[:40]}")
