"""What listing and opening many pictures told, kept in a file: the next start maps it instead of doing that again.

An index holds a listing whose pictures have been opened once: names, classes, sizes, marks, captions, and where the
bytes lie; below 200 bytes a picture beside captions. It counts while the names, sizes and dates of all files of the
data are what they were (`Snapshot`); otherwise it is made anew. One process of a node looks or makes it, behind a lock;
those that waited for that take what it left. Sets of few pictures are listed each time, which takes no longer.

An index is a safetensors file: arrays, and in its metadata JSON that says what they are. No code is stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nextscale import __version__
from nextscale.data import imagenet
from nextscale.data.captions import Captions
from nextscale.data.listing import Chosen, Examined, Items, Listing, side_by_side
from nextscale.data.names import Names
from nextscale.data.parquet import Rows
from nextscale.data.patterns import LETTERS, matches
from nextscale.data.shards import LISTS, Members
from nextscale.data.walk import Files, LeftOut
from nextscale.data.zips import Zipped
from nextscale.errors import InputError
from nextscale.files import durable

FORMAT = "nextscale index 1"
MANY = 10_000  # pictures from which on an index is kept unasked
LARGE = 2**28  # bytes of files with many pictures each, which may be as many
SETTLED = 2.0  # seconds: what has changed within them may change again without another date
KEPT_DAYS = 90  # since an index was last used
TYPES = {kind.__name__: kind for kind in (Listing, Items, Examined, LeftOut, Files, Chosen, Members, Zipped, Rows)}

Make = Callable[[], Listing]


class NotKeptError(Exception):
    """A listing of a kind that is not kept; the message says which."""


# ---- whether anything has changed ------------------------------------------------------------------------------------


class Snapshot(NamedTuple):
    """A digest of the names, sizes and dates of files, how many they are and how large, and when the last changed."""

    digest: str
    files: int
    bytes: int
    newest: float

    @classmethod
    def of(cls, source: str, tables: tuple[Path, ...]) -> Snapshot:
        """Of a folder with all that is in it, or of files with what else is read beside them; and of some `tables`."""
        digest, files, total, newest = hashlib.sha256(), 0, 0, 0
        for below, rows in _rows(source, tables):
            names, sizes, dates = zip(*sorted(rows), strict=True) if rows else ((), (), ())
            digest.update("\0".join((below, *names, "")).encode("utf-8", "surrogateescape"))
            digest.update(np.array([sizes, dates], dtype=np.int64).tobytes())
            files, total = files + len(rows), total + sum(sizes)
            newest = max(newest, *dates) if dates else newest
        return cls(digest.hexdigest(), files, total, newest / 1e9)

    @property
    def is_large(self) -> bool:
        """Whether there may be many pictures."""
        return self.files >= MANY or self.bytes >= LARGE


_Row = tuple[str, int, int]  # name, bytes and date in nanoseconds


def _rows(source: str, tables: tuple[Path, ...]) -> Iterator[tuple[str, list[_Row]]]:
    """Folders, each with the files directly in it."""
    if os.path.isdir(source):
        yield from _below(source, "", ())
        tables = (*tables, *imagenet.beside(Path(source)))
    else:
        files = [path.absolute() for path in _files(source)]
        beside = {path.parent / name for path in files for name in (*LISTS, *imagenet.BESIDE)}
        tables = (*tables, *files, *sorted(beside))
    yield "", [_row(str(table), partial(os.stat, table)) for table in dict.fromkeys(tables)]


def _files(source: str) -> tuple[Path, ...]:
    """Those of a pattern; of one for nothing none, which is told when it is read."""
    try:
        return matches(source, "files") if set(source) & LETTERS else (Path(source),)
    except InputError:
        return ()


def _below(root: str, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, list[_Row]]]:
    """A folder and those in it; a link back to one `above` is not followed."""
    files, folders = _inside(f"{root}/{below}")
    yield below, files
    try:
        here = os.stat(f"{root}/{below}")
    except OSError:
        return
    if (place := (here.st_dev, here.st_ino)) not in above:
        for folder in sorted(folders):
            yield from _below(root, f"{below}{folder}/", (*above, place))


def _inside(folder: str) -> tuple[list[_Row], list[str]]:
    """The files and the folders in one, without hidden ones."""
    files: list[_Row] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                else:
                    files.append(_row(entry.name, entry.stat))
    except OSError as error:
        files.append((folder, -(error.errno or 1), 0))
    return files, folders


def _row(name: str, stat: Callable[[], os.stat_result]) -> _Row:
    try:
        found = stat()
    except OSError as error:
        return name, -(error.errno or 1), 0
    return name, found.st_size, found.st_mtime_ns


# ---- one that is kept ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which listing is wanted: of what source, how (in words that change with it), and by which tables."""

    source: str
    how: str
    tables: tuple[Path, ...] = ()

    @property
    def key(self) -> str:
        """A hex string that changes with any of it; a listing holds its source as it was given."""
        words = "\0".join((FORMAT, __version__, self.source, os.path.realpath(self.source), self.how))
        return hashlib.sha256(words.encode("utf-8", "surrogateescape")).hexdigest()[:24]

    def snapshot(self) -> Snapshot:
        """Of all files that it depends on."""
        return Snapshot.of(self.source, self.tables)


def kept(asked: Asked, make: Make, *, at: Path | None = None) -> Listing:
    """The listing, from its index if that counts, or else made and, of many pictures, kept; all have been opened.

    `at` is a file for the index, which is then kept of any number of pictures. Raises `InputError` where that cannot be
    written, or holds something else; that no index could be kept elsewhere is noted in the listing.
    """
    began = time.time()
    if at is not None:
        _check_place(at, asked.source)
    path = default(asked) if at is None else at
    if at is None and not path.exists() and not asked.snapshot().is_large:
        return make()
    try:
        lock = _locked(path)
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        found = read(path, asked.key, asked.snapshot().digest)
        return found or _noted(make(), path, at, getattr(error, "strerror", None) or str(error))
    try:
        return _found(path, asked, began) or _made(path, asked, make, at=at)
    finally:
        lock.release()


def _check_place(at: Path, source: str) -> None:
    """Raise `InputError` for an index among the data, which would change them, and for another file."""
    inner, outer = os.path.realpath(at), os.path.realpath(source)
    if os.path.isdir(source) and os.path.commonpath([inner, outer]) == outer:
        raise InputError(f"--index: expected a file outside of the data in {source}, got {at}")
    is_empty = os.path.isfile(at) and not os.path.getsize(at)
    if os.path.exists(at) and not is_empty and _metadata(at).get("format") != FORMAT:
        raise InputError(f"--index: expected an index or no file, got {at}, which is something else")


def _locked(path: Path) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    lock.acquire()
    return lock


def _noted(listing: Listing, path: Path, at: Path | None, why: str) -> Listing:
    """The listing, with a note that it is not kept. Raises `InputError` where that was asked for."""
    if at is not None:
        raise InputError(f"--index: expected a file to write, got {at} ({why})")
    return replace(listing, notes=(*listing.notes, f"no index of the pictures is kept in {path.parent} ({why})"))


def default(asked: Asked) -> Path:
    """A file among `indexes` in the user's cache."""
    return durable.user_cache("indexes") / f"{asked.key}.safetensors"


def _found(path: Path, asked: Asked, began: float) -> Listing | None:
    """What the index holds, if it counts. One that was looked over since `began`, while this process waited, does."""
    try:
        is_fresh = path.stat().st_mtime >= began
    except OSError:
        return None
    listing = read(path, asked.key, None if is_fresh else asked.snapshot().digest)
    if listing is not None and not is_fresh:
        with suppress(OSError):
            os.utime(path)
    return listing


def _made(path: Path, asked: Asked, make: Make, *, at: Path | None) -> Listing:
    snapshot = asked.snapshot()
    listing = make()
    assert listing.examined is not None, "its pictures have been opened"
    if at is None and len(listing.items) < MANY:
        return listing
    if time.time() - snapshot.newest < SETTLED:
        note = f"no index is kept, as files have changed within the last {SETTLED:.0f} seconds"
        return replace(listing, notes=(*listing.notes, note))
    try:
        write(path, side_by_side(listing, listing.examined), key=asked.key, digest=snapshot.digest)
    except NotKeptError as error:
        return listing if at is None else _noted(listing, path, at, f"{error} are not kept in one")
    except (OSError, InputError) as error:
        if at is not None:
            raise
        return _noted(listing, path, at, getattr(error, "strerror", None) or str(error))
    if at is None:
        _remove_old(path.parent)
    return read(path, asked.key, snapshot.digest) or listing


def _remove_old(folder: Path) -> None:
    """Indexes, and locks of such, that nobody has used for long."""
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.lock")]:
        with suppress(OSError):  # another process was quicker
            if time.time() - path.stat().st_mtime > KEPT_DAYS * 86_400:
                path.unlink()


# ---- on disk ---------------------------------------------------------------------------------------------------------


def write(path: Path, listing: Listing, *, key: str, digest: str) -> None:
    """Raises `OSError`, and `InputError` where the file cannot be written."""
    arrays: dict[str, np.ndarray] = {}
    skeleton = json.dumps(_packed(listing, arrays, {}))
    metadata = {"format": FORMAT, "key": key, "digest": digest, "listing": skeleton}
    durable.write_beside(path, lambda written: save_file(arrays, written, metadata))


def read(path: Path, key: str, digest: str | None) -> Listing | None:
    """The listing in an index, mapped; None if it is of other data, of other files than the digest's, or damaged."""
    metadata = _metadata(path)
    if (metadata.get("format"), metadata.get("key")) != (FORMAT, key):
        return None
    if digest is not None and metadata.get("digest") != digest:
        return None
    try:
        with safe_open(path, framework="pt") as file:
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
        listing = _unpacked(json.loads(metadata["listing"]), arrays)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return listing if isinstance(listing, Listing) else None


def _metadata(path: Path) -> Mapping[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _packed(value: Any, arrays: dict[str, np.ndarray], known: dict[int, str]) -> Any:
    """A listing, or a part of one, as JSON and arrays; an array that stands twice is kept once."""

    def each(values: Any) -> list[Any]:
        return [_packed(one, arrays, known) for one in values]

    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, np.ndarray):
        return {"array": _kept_array(value, arrays, known), "kind": value.dtype.str}
    if isinstance(value, Names):
        return {"type": "Names", "of": each([value.text_B, value.ends_N])}
    if isinstance(value, Captions):
        return {"type": "Captions", "of": each([value.text_B, value.ends_C, value.firsts_N])}
    if isinstance(value, Path):
        return {"type": "Path", "of": [str(value)]}
    if isinstance(value, range):
        return {"type": "range", "of": [value.start, value.stop]}
    if isinstance(value, tuple):
        return {"type": "tuple", "of": each(value)}
    if isinstance(value, Mapping):
        return {"type": type(value).__name__, "of": [each(item) for item in value.items()]}
    if is_dataclass(value) and type(value).__name__ in TYPES:
        told = [part for part in fields(value) if part.repr and getattr(value, part.name) is not part.default]
        parts = {part.name: _packed(getattr(value, part.name), arrays, known) for part in told}
        return {"type": type(value).__name__, "fields": parts}
    raise NotKeptError("arrays")


def _kept_array(array: np.ndarray, arrays: dict[str, np.ndarray], known: dict[int, str]) -> str:
    if id(array) not in known:
        known[id(array)] = str(len(arrays))
        plain = np.ascontiguousarray(array)
        if array.dtype.kind == "S":
            plain = plain.view(np.uint8).reshape(len(array), array.dtype.itemsize)
        arrays[known[id(array)]] = plain
    return known[id(array)]


def _unpacked(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Raises `ValueError`, `KeyError` or `TypeError` for what `_packed` never makes."""
    if not isinstance(value, dict):
        return value
    if "array" in value:
        array = arrays[value["array"]]
        return array.view(value["kind"]).reshape(len(array)) if value["kind"].startswith("|S") else array
    if "fields" in value:
        parts = {name: _unpacked(part, arrays) for name, part in value["fields"].items()}
        return TYPES[value["type"]](**parts)
    return MAKERS[value["type"]]([_unpacked(part, arrays) for part in value["of"]])


MAKERS: Mapping[str, Callable[[list[Any]], Any]] = {
    "Names": lambda parts: Names.mapped(*parts),
    "Captions": lambda parts: Captions.mapped(*parts),
    "Path": lambda parts: Path(*parts),
    "range": lambda parts: range(*parts),
    "tuple": tuple,
    "dict": dict,
    "Counter": lambda parts: Counter(dict(parts)),
}
