"""WebDataset shards as a listing: tar files in which files with one key, such as 1.jpg and 1.cls, are a sample.

Headers are scanned once and pictures then read in any order by their places, so that what a step sees stays a function
of seed and step, and a run that was killed continues bit for bit. The `webdataset` package streams and shuffles in a
buffer, which cannot promise that, and is not used.

The key is the name up to the first dot of its last part, the folder in front included. The picture is `.jpg`, `.jpeg`,
`.png` or `.webp`. The class is the text of `.cls`, or else what `.json` holds under "label", "class" or "cls" (the
first that is there): a whole number or a name; without any there is one class, named as the folder. `classes.txt` (a
name a line) or `classes.json` (a list, or an object from numbers to names) beside the shards names the numbers and
fixes the order; without it numbers are their own names, sorted as such before other names.

Shards called `train` and one of `val`, `validation`, `test` (as a word: `train-000.tar`, `photos-val.tar`) are the
splits, and others beside them are not read; otherwise 5 % of the samples, at least one, is held out by the hash of
their keys. A sample without a picture counts as an unreadable one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from nextscale.data.folder import pictures_below, visible
from nextscale.data.labels import Labels, no_classes
from nextscale.data.listing import VALIDATION, Listing, hold_out
from nextscale.data.pictures import Progress, in_threads
from nextscale.data.tar import Member, members
from nextscale.errors import InputError
from nextscale.images import SUFFIXES

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
STATED = (".cls", ".json")  # the files that may state a class
LABEL_KEYS = ("label", "class", "cls")
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")

Class = int | str


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The tar files of a data set; `root` is the folder above all of them, where a list of the classes may lie."""

    root: Path
    paths: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A sample of one shard, before the others are known."""

    key: str
    name: str
    picture: Member
    stated: Class | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One picture in a shard; `name` is the shard's path below the root, a slash, and the member's name."""

    name: str
    label: int
    held_out: bool
    picture: Member

    def open(self) -> BinaryIO:
        """See `nextscale.data.listing.Item`."""
        return self.picture.open()


# ---- which files -----------------------------------------------------------------------------------------------------


def find(source: str | Path) -> Shards | None:
    """The shards that a folder or a pattern stands for; None if it is a folder of pictures, or nothing known here.

    Raises `InputError` for compressed shards, missing ones, and pictures directly beside shards.
    """
    if Path(source).is_dir():
        return _in_folder(Path(source))
    if str(source).endswith(COMPRESSED):
        raise _compressed(str(source))
    return _of_pattern(str(source)) if str(source).endswith(".tar") else None


def _in_folder(root: Path) -> Shards | None:
    """The tars directly in a folder, unless its folders hold pictures: then they are what they were unpacked from."""
    files = [path for path in visible(root) if path.is_file()]
    tars = tuple(path for path in files if path.name.endswith(".tar"))
    packed = [path for path in files if path.name.endswith(COMPRESSED)]
    if not tars and not packed:
        return None
    if (picture := next(pictures_below(root), None)) is not None:
        if tars and picture.parent == root:
            raise InputError(f"expected either pictures or shards in {root}, got {picture.name} beside {tars[0].name}")
        return None
    if packed:
        raise _compressed(str(packed[0]))
    return Shards(root=root, paths=tars)


def _of_pattern(pattern: str) -> Shards:
    paths = tuple(dict.fromkeys(map(Path, expand(pattern))))
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"expected {len(paths)} shards as {pattern} says, found nothing at {missing[0]}")
    return Shards(root=Path(os.path.commonpath([path.parent for path in paths])), paths=paths)


def expand(pattern: str) -> list[str]:
    """What braces stand for, as in a shell: `a-{08..10}.tar` is a-08, a-09 and a-10; `{a,b}.tar` is a and b."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    first, last, listed = braces.groups()
    parts = listed.split(",") if listed is not None else _range(first, last)
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [before + part + rest for part in parts for rest in expand(after)]


def _range(first: str, last: str) -> list[str]:
    if int(first) > int(last):
        raise InputError(f"expected a range that rises, got {{{first}..{last}}}")
    padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]


def _compressed(name: str) -> InputError:
    return InputError(f"expected uncompressed .tar shards, got {name}: unpack it first (gunzip, unxz, unzstd)")


# ---- which samples ---------------------------------------------------------------------------------------------------


def survey(shards: Shards, *, labels: Labels | None = None, progress: Progress | None = None) -> Listing:
    """The samples of the shards in the order they lie there; `progress` runs through the shards.

    `labels` may be "none": one class, whatever the samples say.

    Raises `InputError` for a damaged shard, a key with the same file twice or with two pictures, shards without
    samples, classes that are missing, unknown or no class, and a table of labels.
    """
    alike = no_classes(labels, of=f"the shards in {shards.root}")
    read = partial(_read, root=shards.root, suffixes=SUFFIXES if alike else (*SUFFIXES, *STATED), progress=progress)
    train_paths, held_out_paths = _sides(shards)
    train = read(train_paths)
    if held_out_paths:
        found = train + read(held_out_paths)
        chosen = set(range(len(train), len(found)))
    else:
        found, chosen = train, hold_out([sample.key for sample in train], root=shards.root)
    classes, numbers = _labels(found, train, root=shards.root)
    samples = [
        Sample(name=sample.name, label=label, held_out=index in chosen, picture=sample.picture)
        for index, (sample, label) in enumerate(zip(found, numbers, strict=True))
    ]
    return Listing(kind="shards", root=shards.root, items=samples, classes=classes)


def _sides(shards: Shards) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Shards to train on, and held-out ones; all of them and none, unless the names tell both."""
    words = {path: set(re.split(r"[^a-z]+", _name(path, shards.root).lower())) for path in shards.paths}
    train = tuple(path for path in shards.paths if "train" in words[path] and words[path].isdisjoint(VALIDATION))
    held_out = [tuple(path for path in shards.paths if word in words[path]) for word in VALIDATION]
    first = next((paths for paths in held_out if paths), ())
    return (train, first) if train and first else (shards.paths, ())


def _read(paths: Sequence[Path], *, root: Path, suffixes: tuple[str, ...], progress: Progress | None) -> list[Found]:
    parts = in_threads(partial(_samples, root=root, suffixes=suffixes), paths, progress=progress)
    found = [sample for part in parts for sample in part]
    if not any(sample.picture.size for sample in found):
        some = f"{paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        raise InputError(f"expected samples with a picture ({', '.join(SUFFIXES)}) in {some}, found none")
    return found


def _samples(path: Path, *, root: Path, suffixes: tuple[str, ...]) -> list[Found]:
    groups: dict[str, dict[str, Member]] = {}
    for member in members(path):
        key, suffix = _split(member.name)
        if suffix in suffixes:
            files = groups.setdefault(key, {})
            if suffix in files:
                raise InputError(f"expected every key once in {path}, got {member.name} twice")
            files[suffix] = member
    return [_found(key, files, path=path, shard=_name(path, root)) for key, files in groups.items()]


def _split(name: str) -> tuple[str, str]:
    """Key and suffix of a member; the suffix is empty for hidden files, which are none of a sample's."""
    above, slash, last = name.rpartition("/")
    stem, dot, rest = last.partition(".")
    return above + slash + stem, (dot + rest).lower() if stem else ""


def _found(key: str, files: dict[str, Member], *, path: Path, shard: str) -> Found:
    pictures = [files[suffix] for suffix in SUFFIXES if suffix in files]
    if len(pictures) > 1:
        raise InputError(f"expected one picture a key in {path}, got {pictures[0].name} and {pictures[1].name}")
    picture = pictures[0] if pictures else Member(path, key, 0, 0)  # nothing to read, and so unreadable
    return Found(key=key, name=f"{shard}/{picture.name}", picture=picture, stated=_stated(files))


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


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
        return int(name) if re.fullmatch(r"-?[0-9]+", name) else name
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise InputError(f"expected a class, a whole number or a name, in {member.name} of {member.tar}, got {value!r}")


def _text(member: Member) -> str:
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


def _labels(found: Sequence[Found], train: Sequence[Found], *, root: Path) -> tuple[tuple[str, ...], list[int]]:
    """The names of the classes, and the number of each sample's."""
    unlabelled = [sample for sample in found if sample.stated is None]
    if len(unlabelled) == len(found):
        return (root.resolve().name,), [0] * len(found)
    if unlabelled:
        raise InputError(
            f"expected a class (.cls or .json) for each of the {len(found)} samples in {root} or for none, "
            f"{len(unlabelled)} are without, such as {unlabelled[0].name}"
        )
    names, numbers = _numbering((sample.stated for sample in train), root)
    for sample in found:
        if sample.stated not in numbers:
            raise InputError(f"expected one of the {len(names)} classes in {sample.name}, got {sample.stated!r}")
    return names, [numbers[sample.stated] for sample in found]


def _numbering(stated: Iterable[Class | None], root: Path) -> tuple[tuple[str, ...], dict[Class | None, int]]:
    """Class names, and the number of every way to state one: by the list beside the shards, or in their own order."""
    listed = _listed(root)
    if listed is not None:
        numbers: dict[Class | None, int] = {number: number for number in range(len(listed))}
        for number, name in enumerate(listed):
            numbers.setdefault(name, number)  # of two classes with one name the first
        return listed, numbers
    values = sorted({value for value in stated if value is not None}, key=_numbers_first)
    return tuple(map(str, values)), {value: number for number, value in enumerate(values)}


def _numbers_first(value: Class) -> tuple[bool, int, str]:
    return (False, value, "") if isinstance(value, int) else (True, 0, value)


def _listed(root: Path) -> tuple[str, ...] | None:
    """The class names that `classes.txt` or `classes.json` gives, in order."""
    for name, read in (("classes.txt", _lines), ("classes.json", _entries)):
        if (root / name).is_file():
            try:
                names = read((root / name).read_text(encoding="utf-8-sig"))
            except ValueError:
                names = ()
            if not names or not all(isinstance(entry, str) for entry in names):
                raise InputError(f"expected the names of the classes, one for each number from 0 on, in {root / name}")
            return names
    return None


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
