"""Data sets at addresses: which objects they are, and where these lie on this machine while they are read.

Shards come into a cache (`nextscale.files.cache`) and go again, so that a data set may be larger than a disk; the
pictures of a run are chosen from a window of shards (`nextscale.data.windows`). Parquet files and zip archives are read
at random: all of them are fetched at the start, and stay in the cache as long as the process runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nextscale.data import parquet, tokens
from nextscale.data.patterns import expand
from nextscale.data.pictures import in_threads
from nextscale.data.shards import COMPRESSED, LISTS, Shards
from nextscale.errors import InputError
from nextscale.files import remote
from nextscale.files.cache import Ahead, Cache
from nextscale.files.remote import Object

SUFFIXES = (".tar", *parquet.SUFFIXES, ".zip")
EXPECTED = (
    "expected an address of .tar shards, parquet or Arrow files or a zip, such as s3://bucket/train-{000..099}.tar"
)


@dataclass(frozen=True)
class Remote:
    """The objects of a data set by the paths that stand for their addresses, and the cache that they come into."""

    objects: Mapping[Path, Object]
    cache: Cache
    fetch_ahead: Ahead

    def ahead(self, paths: Sequence[Path]) -> None:
        """Fetch some in the background, in that order."""
        self.fetch_ahead([self.objects[path] for path in paths])

    @contextmanager
    def local(self, path: Path) -> Iterator[Path]:
        """Where an object lies on this machine as long as the block runs; a path that is none of them stays."""
        if (wanted := self.objects.get(path)) is None:
            yield path
            return
        with self.cache.held(wanted) as copy:
            try:
                yield copy
            except InputError as error:
                raise InputError(str(error).replace(str(copy), wanted.address)) from None


def find(address: str, cache: Cache, window: int) -> Shards | Path:
    """The shards at an address or a pattern of addresses, or the path here of what had to be fetched whole.

    Raises `InputError` for addresses of anything else, that nothing is at, or that run programs or hold secrets, and
    for files that do not fit into the cache.
    """
    addresses = list(dict.fromkeys(expand(address)))
    for each in addresses:
        remote.check(each)
    suffixes = {PurePosixPath(each).suffix.lower() for each in addresses}
    if any(each.endswith(COMPRESSED) for each in addresses):
        raise InputError(f"expected uncompressed .tar shards, got {address}")
    if suffixes == {".tar"}:
        return _shards(addresses, cache, window)
    if suffixes <= set(parquet.SUFFIXES) or (suffixes == {".zip"} and len(addresses) == 1):
        return _fetched(addresses, cache)
    raise InputError(f"{EXPECTED}, got {address}")


def token_cache(address: str, cache: Cache) -> Path | None:
    """The folder here of a token cache at an address, fetched whole; None where there is none.

    Raises `InputError` for one that is not finished, does not fit into the cache, or is out of reach.
    """
    name = PurePosixPath(address).name
    try:
        index = remote.find(remote.joined(address, tokens.INDEX))
    except remote.AbsentError:
        return None
    files = tokens.files_of(cache.folder(name, {tokens.INDEX: index}))
    found = in_threads(lambda file: remote.find(remote.joined(address, file)), files)
    return cache.folder(name, dict(zip(files, found, strict=True)))


def _shards(addresses: Sequence[str], cache: Cache, window: int) -> Shards:
    objects = {Path(wanted.address): wanted for wanted in in_threads(remote.find, addresses)}
    _check_room([wanted.size for wanted in objects.values()], cache, window)
    root = Path(os.path.commonpath([path.parent for path in objects]))
    lists = {Path(wanted.address): wanted for wanted in _lists(_folder(addresses))}
    every = Remote({**objects, **lists}, cache, Ahead(cache))
    return Shards(root=root, paths=tuple(objects), local=every.local, ahead=every.ahead)


def _check_room(sizes: Sequence[int], cache: Cache, window: int) -> None:
    """Raise `InputError` unless the cache holds two windows, one that is used and one that is fetched meanwhile."""
    needed = sum(sorted(sizes)[-2 * window :])
    if needed > cache.size:
        raise InputError(
            f"expected a cache that holds two windows of {window} shards, {needed:,} bytes, got one of {cache.size:,}: "
            "a larger --cache-size, or a smaller --window"
        )


def _lists(folder: str) -> Iterator[Object]:
    """Those that name classes."""
    for name in LISTS:
        try:
            yield remote.find(remote.joined(folder, name))
        except remote.AbsentError:
            continue


def _folder(addresses: Sequence[str]) -> str:
    """The address above all of some."""
    protocol = addresses[0].partition("://")[0]
    above = [each.partition("://")[2].rpartition("/")[0] for each in addresses]
    return f"{protocol}://{os.path.commonpath(above)}"


def _fetched(addresses: Sequence[str], cache: Cache) -> Path:
    """The folder of some objects here; of one alone, the file in it."""
    folder = _folder(addresses)
    objects = list(in_threads(remote.find, addresses))
    files = {wanted.address.removeprefix(f"{folder}/"): wanted for wanted in objects}
    here = cache.folder(folder.rpartition("/")[2], files)
    return here / objects[0].name if len(objects) == 1 else here
