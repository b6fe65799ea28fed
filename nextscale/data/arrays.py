"""Arrays of pictures as a listing: .npy and .npz files, MNIST's idx files, CIFAR's python batches.

Pictures are (N, H, W, 3), (N, H, W, 1) or (N, H, W) bytes; (N, 3, H, W) is taken as well, and told. Classes are an
array of as many whole numbers or texts. The keys of an .npz, the names of .npy files in one folder and those of idx
files say which belong together, and to which split (`nextscale.data.splits`): `x_train` and `y_train`, `val_images` and
`val_labels`, `arr_0` and `arr_1`. Without splits 5 % is held out by the hash of name and place.

Stored arrays are mapped from their files; packed ones (`savez_compressed`, .gz) are unpacked into memory, up to 4 GiB.
A picture is handed on as a file in PPM or PGM, its bytes behind a line of numbers. No object is unpickled.
"""

from __future__ import annotations

import errno
import gzip
import io
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from nextscale.data import cifar, stated, zips
from nextscale.data.captions import Captioning
from nextscale.data.labels import NONE, Labels, no_classes
from nextscale.data.listing import Items, Listing, hold_out, told_apart
from nextscale.data.names import Names
from nextscale.data.pictures import Progress
from nextscale.data.splits import Role, Sides, counted, role_of_word, words_of
from nextscale.data.stated import Stated
from nextscale.data.tables import Columns
from nextscale.data.walk import LeftOut, inside, kind_of, pictures_below
from nextscale.errors import InputError

SUFFIXES = (".npy", ".npz")
IDX = re.compile(r"(.+?)[-._]idx[0-9][-._]ubyte(?:\.gz)?", re.IGNORECASE)
BYTES = 8  # the type of an idx file that holds them
BY_PLACE = "5 % by hash of name and place"
MOST_UNPACKED = 2**32  # bytes
USUAL = frozenset(("label", "labels", "y", "target", "targets", "class", "classes", "cls"))  # words of names of labels
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
WANTED = "pictures as uint8, (N, H, W, 3), (N, H, W, 1) or (N, H, W)"


@dataclass(frozen=True)
class Stored:
    """An array in a file, from a byte on; `order` is C or F."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    kind: str
    order: str

    @cached_property
    def array(self) -> np.ndarray:
        """The array, mapped. Raises `OSError`, or `ValueError` for a file that has become shorter."""
        if not math.prod(self.shape):
            return np.empty(self.shape, dtype=self.kind)
        return np.memmap(self.path, np.dtype(self.kind), "r", self.offset, self.shape, self.order)  # type: ignore[call-overload]

    def __reduce__(self) -> tuple[object, ...]:
        return Stored, (self.path, self.offset, self.shape, self.kind, self.order)


@dataclass(frozen=True, eq=False)
class Unpacked:
    """An array in memory."""

    array: np.ndarray


Array = Stored | Unpacked


@dataclass(frozen=True, kw_only=True)
class Block:
    """Pictures with what may be their labels, by name; `classes` are the names that belong to some of these."""

    name: str
    role: Role | None
    pictures: Array
    labels: Mapping[str, np.ndarray]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The arrays of a data set."""

    root: Path
    blocks: tuple[Block, ...]
    left: Counter[str] = field(default_factory=Counter)
    """What is there beside them and not looked at."""


# ---- which files -----------------------------------------------------------------------------------------------------


def find(source: str | Path, columns: Columns) -> Found | None:
    """The arrays in a file; None if it is of another kind. Raises `InputError` for a file that is not there."""
    path = Path(source)
    if path.suffix.lower() not in SUFFIXES or path.is_dir():
        return None
    if not path.is_file():
        raise InputError(f"expected a file of arrays, found nothing at {path}")
    return _found(path, _arrays_in(path, ""), Counter(), columns)


def find_in(root: Path, columns: Columns) -> Found | None:
    """Those in a folder, or in the only folder in it; None if there are none, or pictures beside them."""
    here = inside(str(root))
    while not here.others and len(here.folders) == 1 and not here.pictures:
        root = root / here.folders[0]
        here = inside(str(root))
    files = [name for name in here.others if name.lower().endswith(SUFFIXES)]
    idx = [name for name in here.others if IDX.fullmatch(name)]
    batches = [name for name in here.others if name in cifar.NAMES]
    if not (files or idx or batches) or next(pictures_below(root), None) is not None:
        return None
    left = here.gone + Counter(kind_of(name) for name in here.others if name not in {*files, *idx, *batches})
    if batches:
        return _of_cifar(root, batches, left)
    arrays = dict(item for name in files for item in _arrays_in(root / name, _prefix(root / name, files)).items())
    arrays |= {IDX.sub(r"\1", name): _of_idx(root / name) for name in idx}
    return _found(root, arrays, left, columns)


def _prefix(path: Path, files: Sequence[str]) -> str:
    """What stands before the keys of an .npz: its name, if there are others beside it."""
    return f"{path.stem}/" if len(files) > 1 and path.suffix.lower() == ".npz" else ""


def _arrays_in(path: Path, prefix: str) -> dict[str, Array]:
    try:
        if path.suffix.lower() == ".npz":
            return {f"{prefix}{name}": array for name, array in _of_npz(path)}
        with path.open("rb") as file:
            return {f"{prefix}{path.stem}": _stored(file, path, 0, os.path.getsize(path))}
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise InputError(f"expected arrays as NumPy saves them, got {path}: {why}") from None


def _of_npz(path: Path) -> Iterator[tuple[str, Array]]:
    infos = [info for info in zips.listed(path) if info.filename.endswith(".npy")]
    zipped = zips.Zipped.of(path, infos)
    zips.check_places(zipped)
    for place, info in enumerate(infos):
        with zipped.open(place) as stream:
            offset = zipped.stored_at(place)
            found = _packed(stream) if offset is None else _stored(stream, path, offset, info.file_size)
        yield info.filename.removesuffix(".npy"), found


def _stored(stream: BinaryIO, path: Path, offset: int, size: int) -> Array:
    """The array in a file of so many bytes that begins at an offset."""
    shape, by_columns, kind = _header(stream)
    begin = stream.tell()
    if math.prod(shape) * kind.itemsize > size - begin:
        raise ValueError(f"cut short: {size - begin:,} bytes for an array of {shape}")
    return Stored(path, offset + begin, shape, kind.str, "F" if by_columns else "C")


def _packed(stream: BinaryIO) -> Array:
    shape, by_columns, kind = _header(stream)
    content = _exactly(stream, math.prod(shape) * kind.itemsize)
    return Unpacked(np.frombuffer(content, dtype=kind).reshape(shape, order="F" if by_columns else "C"))


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise ValueError(f"version {version} of the format")
    try:
        shape, by_columns, kind = HEADERS[version](stream)
    except Exception as error:  # it is parsed as Python, and a damaged one can raise anything
        raise ValueError(f"a damaged header ({type(error).__name__})") from None
    if kind.hasobject or kind.names or min(shape, default=0) < 0:
        raise ValueError(f"an array of {kind}, which is not read")
    return shape, by_columns, kind


def _exactly(stream: IO[bytes] | gzip.GzipFile, size: int) -> bytes:
    """So many bytes that are unpacked."""
    if size > MOST_UNPACKED:
        raise ValueError(f"{size:,} bytes, of more than {MOST_UNPACKED:,} only those that are not packed are read")
    content = stream.read(size)
    if len(content) != size or stream.read(1):
        raise ValueError(f"other than the {size:,} bytes that it declares")
    return content


def _of_idx(path: Path) -> Array:
    """MNIST's format: two zeros, a type, the number of sides, and each side in four bytes; then the bytes."""
    is_packed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if is_packed else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] != BYTES:
                raise ValueError("no array of bytes")
            sides = np.frombuffer(file.read(4 * head[3]), dtype=">u4")
            shape = tuple(map(int, sides))
            if len(shape) < head[3]:
                raise ValueError("cut short")
            if isinstance(file, gzip.GzipFile):
                content = _exactly(file, math.prod(shape))
                return Unpacked(np.frombuffer(content, dtype=np.uint8).reshape(shape))
    except (OSError, ValueError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"expected an idx file of bytes, got {path}: {why}") from None
    offset = 4 + 4 * len(shape)
    if os.path.getsize(path) - offset != math.prod(shape):
        raise InputError(f"expected {math.prod(shape):,} bytes behind {offset} in {path}, got another number")
    return Stored(path, offset, shape, "|u1", "C")


def _of_cifar(root: Path, names: list[str], left: Counter[str]) -> Found:
    train, test, classes = cifar.batches(root, names)
    sides: dict[Role, list[cifar.Batch]] = {"train": train, "test": test}
    blocks = [
        Block(name=each.name, role=role, pictures=Unpacked(each.pictures), labels=each.labels, classes=classes)
        for role, some in sides.items()
        for each in some
    ]
    if not blocks:
        raise InputError(f"expected batches of CIFAR in {root}, got {', '.join(names)} alone")
    return Found(root=root, blocks=tuple(blocks), left=left)


# ---- which arrays belong together ------------------------------------------------------------------------------------


def _found(root: Path, arrays: Mapping[str, Array], left: Counter[str], columns: Columns) -> Found:
    """Arrays of pictures, one a split, each with those of its split that may be its labels."""
    pictures = {
        name: array for name, array in arrays.items() if _are_pictures(array) and name == (columns.image or name)
    }
    if not pictures:
        got = ", ".join(f"{name} {_shown(array)}" for name, array in arrays.items())[:300]
        raise InputError(f"expected {columns.image or 'an array'} of {WANTED}, in {root}, got {got or 'none'}")
    blocks, used = [], set(pictures)
    for role in dict.fromkeys(map(_role, pictures)):
        names = [name for name in pictures if _role(name) == role]
        if len(names) > 1:
            raise InputError(
                f"expected one array of pictures in {root}, got {', '.join(names)}: --image-column names one"
            )
        count = len(pictures[names[0]].array)
        labels = {name: array.array for name, array in arrays.items() if _role(name) == role and _fit(array, count)}
        blocks.append(Block(name=names[0], role=role, pictures=pictures[names[0]], labels=labels))
        used |= labels.keys()
    if other := len(arrays.keys() - used):
        left["array{s} of other kinds"] += other
    return Found(root=root, blocks=tuple(blocks), left=left)


def _role(name: str) -> Role | None:
    """What a name says of its split; MNIST calls its test t10k."""
    roles = {role_of_word(word) for word in words_of(name.replace("t10k", "test"))} - {None}
    return roles.pop() if len(roles) == 1 else None


def _are_pictures(array: Array) -> bool:
    found = array.array
    return found.dtype == np.uint8 and (found.ndim == 3 or (found.ndim == 4 and _channels_at(found.shape) is not None))


def _channels_at(shape: tuple[int, ...]) -> int | None:
    """The axis of the channels, the last if it can be."""
    return next((axis for axis in (3, 1) if shape[axis] in (1, 3)), None) if len(shape) == 4 else None


def _fit(array: Array, count: int) -> bool:
    """Whether these may be the labels of so many pictures."""
    found = array.array
    return found.dtype.kind in "iubSU" and found.shape in ((count,), (count, 1))


def _shown(array: Array) -> str:
    return f"{array.array.dtype} {array.array.shape}"


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Pictures by the array, as a number of `arrays`, and the place in it; (N,) int32 and int64."""

    arrays: tuple[Array, ...]
    blocks: np.ndarray
    places: np.ndarray

    def open(self, place: int) -> BinaryIO:
        """See `nextscale.data.walk.Store`."""
        try:
            array = self.arrays[self.blocks[place]].array
            picture = np.asarray(array[self.places[place]])
        except ValueError as error:
            raise OSError(errno.EIO, f"cut short since it was listed ({error})") from None
        if picture.ndim == 3 and _channels_at(array.shape) == 1:
            picture = picture.transpose(1, 2, 0)
        colours = b"P6" if picture.ndim == 3 and picture.shape[2] == 3 else b"P5"
        header = b"%s %d %d 255\n" % (colours, picture.shape[1], picture.shape[0])
        return io.BytesIO(header + picture.tobytes())


# ---- the listing -----------------------------------------------------------------------------------------------------


def survey(
    found: Found,
    *,
    labels: Labels | None = None,
    captions: Captioning | None = None,
    columns: Columns | None = None,
    progress: Progress | None = None,
) -> Listing:
    """The pictures of the arrays in their order; there is no `progress`, since nothing is read.

    `labels` may be "none": one class. `columns` may name arrays. Raises `InputError` for classes that are missing,
    unknown or no class, arrays that are not there or may be several, captions and tables.
    """
    asked = columns or Columns()
    alike = no_classes(labels, of=f"the arrays in {found.root}")
    if captions is not None or asked.caption or asked.outside:
        raise InputError(f"expected no captions and no files outside of the arrays in {found.root}, which have none")
    if alike and asked.label:
        raise InputError(f"--label-column {asked.label}: expected no other labels, got {NONE}")
    said = {block.name: _stated_in(block, asked, found.root, alike=alike) for block in found.blocks}
    sides = _sides(found.blocks, said)
    train, held_out = ([said[name] for name in side] for side in (sides.train, sides.held_out))
    named = any(block.classes for block in found.blocks)
    classes, numbers = stated.together(train, held_out, named=named, where=str(found.root))
    blocks = [block for name in (*sides.train, *sides.held_out) for block in found.blocks if block.name == name]
    counts = [len(block.pictures.array) for block in blocks]
    names = Names(
        f"{block.name}/{place}" for block, count in zip(blocks, counts, strict=True) for place in range(count)
    )
    trained = sum(counts[: len(sides.train)])
    chosen_N = np.arange(len(names)) >= trained if sides.held_out else hold_out(names, root=found.root)
    store = Pictures(
        arrays=tuple(block.pictures for block in blocks),
        blocks=np.repeat(np.arange(len(blocks), dtype=np.int32), counts),
        places=np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
    )
    return Listing(
        kind="arrays",
        root=found.root,
        items=Items(names=names, labels=numbers, held_out=chosen_N, store=store),
        classes=told_apart(classes if classes != ("",) else [_own_name(found.root)]),
        held_out=sides.told,
        left_out=LeftOut(found.left),
        notes=tuple(_notes(blocks, asked, found.root, alike=alike)),
    )


def _own_name(root: Path) -> str:
    return root.resolve().stem if root.suffix else root.resolve().name


def _notes(blocks: Sequence[Block], asked: Columns, root: Path, *, alike: bool) -> Iterator[str]:
    """Which arrays are used, and that channels stand in front."""
    pairs = [(block.name, None if alike else _label(block, asked, root)) for block in blocks]
    labels = list(dict.fromkeys(label for _, label in pairs if label is not None))
    told = f"pictures are {counted([name for name, _ in pairs])}"
    yield told + (f", classes {counted(labels)}" if labels else "")
    for block in blocks:
        shape = block.pictures.array.shape
        if isinstance(block.pictures, Stored) and _channels_at(shape) == 1:
            yield f"{block.name} has its channels in front of rows and columns: {shape}"


# ---- classes and splits ----------------------------------------------------------------------------------------------


def _label(block: Block, asked: Columns, root: Path) -> str | None:
    """The array that holds the classes, None if there is none."""
    names = list(block.labels)
    if asked.label is not None:
        if found := next((name for name in names if asked.label in (name, _bare(name))), None):
            return found
        raise InputError(
            f"expected {asked.label} with a class for each of {block.name} in {root}, got {names or 'none'}"
        )
    usual = [name for name in names if USUAL & set(words_of(name))]
    if len(names) > 1 and len(usual) != 1:
        told = ", ".join(usual or names)
        raise InputError(
            f"expected one array of classes for {block.name} in {root}, got {told}: --label-column names one"
        )
    return next(iter(usual or names), None)


def _bare(name: str) -> str:
    """A name without the word of its split: `train_fine_labels` is `fine_labels`."""
    return "_".join(word for word in name.replace("-", "_").split("_") if role_of_word(word.lower()) is None)


def _stated_in(block: Block, asked: Columns, root: Path, *, alike: bool) -> Stated:
    count, label = len(block.pictures.array), None if alike else _label(block, asked, root)
    if label is None:
        return stated.unlabelled(block.name, count)
    where, values_N = f"{label} in {root}", block.labels[label].reshape(-1)
    if block.classes:
        return stated.of_names(block.name, block.classes.get(label, ()), values_N.astype(np.int64), where=where)
    values, places_N = np.unique(values_N, return_inverse=True)
    return stated.of_values(block.name, [_plain(value) for value in values.tolist()], places_N, where=where)


def _plain(value: object) -> object:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _sides(blocks: Sequence[Block], said: Mapping[str, Stated]) -> Sides:
    """The names of the arrays of the two splits."""
    roles = {role: [block.name for block in blocks if block.role == role] for role in ("train", "validation", "test")}
    held_out = roles["validation"] or roles["test"]
    train = roles["train"] or [block.name for block in blocks]
    if not roles["train"] or not held_out:
        told = [f"{counted(held_out)} trained on as well, as nothing is called train"] if held_out else []
        return Sides(tuple(train), (), "; ".join([BY_PLACE, *_unused(blocks, train), *told]))
    if all(said[name].is_unlabelled for name in held_out) and not all(said[name].is_unlabelled for name in train):
        return Sides(tuple(train), (), f"{BY_PLACE}; {counted(held_out)} has no classes and is not used")
    return Sides(tuple(train), tuple(held_out), "; ".join([counted(held_out), *_unused(blocks, [*train, *held_out])]))


def _unused(blocks: Sequence[Block], used: Sequence[str]) -> list[str]:
    rest = [block.name for block in blocks if block.name not in used]
    return [f"{counted(rest)} not used"] if rest else []
