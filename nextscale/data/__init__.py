"""Data: where training pictures come from, behind one small interface.

`load` gives a `DataSet` of two splits, `train` and `validation`; each hands out batches of one size. The embedded emoji
need no files; a folder of pictures and WebDataset shards need no preparation. `wrap` takes data sets of PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from nextscale import hub
from nextscale.checks import checked
from nextscale.data import arrays, emoji, figures, folder, imagenet, parquet, reading, remote, shards, wrapped, zips
from nextscale.data.captions import NAMES, OWN, Captioning, Captions
from nextscale.data.index import Asked as Indexed
from nextscale.data.index import kept
from nextscale.data.labels import FOLDERS, NONE, Labels
from nextscale.data.listing import Listing
from nextscale.data.pictures import DataSet, Pictures, Progress
from nextscale.data.reading import Broken
from nextscale.data.tables import Columns
from nextscale.data.windows import WIDTH
from nextscale.errors import InputError
from nextscale.files.cache import Cache
from nextscale.files.remote import is_address

LARGEST = 1 << 14  # pixels a side: scaled to cover 1 × 16,384, a square picture takes a gigabyte

__all__ = ["Cache", "Captions", "Columns", "DataSet", "Labels", "Pictures", "Progress", "load", "wrap"]


@checked
def load(
    source: str | Path,
    *,
    height: int,
    width: int,
    labels: Labels | None = None,
    captions: Captioning | None = None,
    columns: Columns | None = None,
    index: str | Path | None = None,
    max_broken: float = 0.01,
    broken: Broken | None = None,
    progress: Progress | None = None,
    cache: Cache | None = None,
    window: int | None = None,
) -> DataSet:
    """The data set called `source`, at one size in pixels.

    `"emoji"` is the embedded set, `"figures"` are drawn as `nextscale.data.figures` says, with the extra `[figures]`
    (`./emoji` and `./figures` are folders of those names). A folder of pictures, or a .zip of one, is read as
    `nextscale.data.folder` says; a folder of .tar shards, or a pattern such as `shards/train-{000..099}.tar`, as
    `nextscale.data.shards` says; parquet and Arrow files likewise, as `nextscale.data.parquet` says; arrays of NumPy,
    MNIST's and CIFAR's files as `nextscale.data.arrays` says; ImageNet as `nextscale.data.imagenet` says. A data set of
    the hub, `hf://datasets/owner/name[@revision][/folder]`, is fetched to the hub's local cache first
    (`nextscale.hub`).
    Shards, parquet files and a .zip at an address, `s3://bucket/train-{000..099}.tar`, come into `cache`, by default
    64 GB in the user's cache directory (`nextscale.data.remote`).
    `progress(done, total)` is called while files are listed and while pictures are read. Unreadable pictures are left
    out and named in `DataSet.broken`; `broken(name, reason)` is called for each, before too many of them are refused,
    and for those that turn out so when a batch is read. What else was left out, and how the held-out part came about,
    is in `DataSet.told`.

    `labels` is the path of a table with the columns `file,label` (CSV, JSON lines or parquet, `nextscale.data.labels`)
    that tells the classes of a folder's pictures; `"none"`: one class, for data of any kind; or `"folders"`. None
    leaves it to metadata beside the pictures (`nextscale.data.metadata`), to folders and shards.

    `captions` is `"own"` (what comes with the pictures: metadata, or else text files beside them, `.txt` and `.json` in
    shards, the names of the emoji), `"names"` (the words of file names), or the path of a table with the columns
    `file,caption`, any number of rows a picture of a folder (`nextscale.data.captions`). With None none are read, and
    `Pictures.captions` is None. Fingerprints of splits do not depend on it. Captions of no use (empty, not UTF-8,
    longer than 10,000 characters) are counted in `DataSet.told`, as is how many there are.

    `window` is the number of shards that a training chooses pictures from at a time: by default 16 of those at an
    address, and all of those on this machine.

    `index` is a file for what listing and opening the pictures told (`nextscale.data.index`); of 10,000 pictures and
    more it is kept in the user's cache directory without being asked for.

    `columns` names columns of tables and metadata that are called otherwise; one of captions makes `captions` `"own"`.

    Raises `InputError` for anything else, a missing or empty folder, a damaged or compressed shard, fewer than two
    pictures, labels or captions that do not fit the pictures, columns that are not there, no captions where some are
    wanted, a size below one pixel or above 16,384, or a larger share of unreadable pictures than `max_broken`.
    """
    _check(height, width, max_broken)
    if window is not None and window < 1:
        raise InputError(f"window: expected at least 1 shard, got {window}")
    if str(source).startswith("hf://") and not str(source).lower().endswith(remote.SUFFIXES):
        source = hub.data_set(str(source))
    asked = columns or Columns()
    if asked.caption is not None and captions is None:
        captions = OWN
    if source in ("emoji", "figures") and window is not None:
        raise InputError(f"window: expected .tar shards, got {source}")
    if source == "emoji":
        _refuse_index(index, "the embedded emoji")
        asked.refuse("the embedded emoji")
        return emoji.load(height=height, width=width, labels=labels, captions=captions)
    if source == "figures":
        if Path(source).is_dir():
            raise InputError("expected the figures or a folder, got figures, which is both: the folder is ./figures")
        _refuse_index(index, "the figures")
        asked.refuse("the figures")
        return figures.load(height=height, width=width, labels=labels, captions=captions)
    wanted = _Asked(labels=labels, captions=captions, columns=asked, progress=progress)
    listing = _opened(source, wanted, cache or Cache(), window, index)
    if window is not None and listing.windows is None:
        raise InputError(f"window: expected .tar shards, got {source}")
    return reading.load(listing, height=height, width=width, max_broken=max_broken, broken=broken, progress=progress)


@checked
def wrap(
    dataset: object,
    *,
    height: int,
    width: int,
    validation: object | None = None,
    classes: Sequence[str] | None = None,
    max_broken: float = 0.01,
    broken: Broken | None = None,
    progress: Progress | None = None,
) -> DataSet:
    """A map-style data set of PyTorch, or anything else with a length and items by number, as a data set at one size.

    An item is a pair: a picture of any size, upright, and what is known of it. Pictures are Pillow images, tensors
    ((3, H, W) or grey, uint8 or floats in [0, 1]) or arrays likewise, their channels last or first. Known is a class,
    a whole number; a caption or several, in text; a mapping with a class (a number or a name, under `label`, `class` or
    `cls`) and captions (`caption`, `captions`, `text` or `prompt`); or None.

    `classes` are the names of classes that items tell by number, by default those of `dataset.classes` or else the
    numbers themselves. `validation` is another such data set, which is held out; without it 5 % of the items are, by
    the hash of their numbers. The other arguments are those of `load`.

    Items are read one at a time: each once for its class and fingerprint, and again when it is wanted, a small set all
    at once. They must stay the same: transforms that crop, mirror or normalise belong to the trainer. An item whose
    reading fails is an unreadable picture.

    Raises `InputError` for anything without length or items, items of another form or that change from one time to the
    next, some without a class among others, fewer than two, and as `load` does.
    """
    _check(height, width, max_broken)
    listing = wrapped.survey(dataset, validation, classes=classes, progress=progress)
    return reading.load(listing, height=height, width=width, max_broken=max_broken, broken=broken, progress=progress)


def _check(height: int, width: int, max_broken: float) -> None:
    if not 1 <= min(height, width) <= max(height, width) <= LARGEST:
        raise InputError(f"expected a picture size from 1 to {LARGEST:,} pixels a side, got {height}×{width}")
    if not 0 <= max_broken <= 1:
        raise InputError(f"max_broken: expected a share from 0 to 1, got {max_broken:g}")


class _Asked(TypedDict):
    """What `load` passes on."""

    labels: Labels | None
    captions: Captioning | None
    columns: Columns
    progress: Progress | None


def _refuse_index(index: str | Path | None, of: str) -> None:
    if index is not None:
        raise InputError(f"--index: expected no index of {of}, got {index}")


def _opened(source: str | Path, asked: _Asked, cache: Cache, window: int | None, at: str | Path | None) -> Listing:
    """The listing with what opening its pictures told, from an index if one counts."""

    def make() -> Listing:
        return reading.opened(_survey(source, asked, cache, window), progress=asked["progress"])

    labels, captions, columns = asked["labels"], asked["captions"], asked["columns"]
    if why := _why_no_index(source, columns, window):
        _refuse_index(at, why)
        return make()
    tables = [Path(one) for one in (labels, captions) if one is not None and one not in (NONE, FOLDERS, OWN, NAMES)]
    words = repr((labels and str(labels), captions and str(captions), columns))
    wanted = Indexed(source=str(source), how=words, tables=tuple(tables))
    return kept(wanted, make, at=None if at is None else Path(at))


def _why_no_index(source: str | Path, columns: Columns, window: int | None) -> str:
    """Of what there can be none; empty if there can."""
    if is_address(source):
        return f"what lies at an address, {source}"
    if columns.outside:
        return "pictures that a table may name anywhere (--outside-files)"
    return "shards that are read in windows" if window is not None else ""


def _survey(source: str | Path, asked: _Asked, cache: Cache, window: int | None) -> Listing:
    """What lies in a folder or file, here or at an address, in whatever format."""
    if is_address(source):
        there = remote.find(str(source), cache, window or WIDTH)
        if isinstance(there, shards.Shards):
            return shards.survey(there, **asked, window=window or WIDTH)
        source = there
    if _is_zip(source):
        return folder.survey(imagenet.arranged(zips.tree(Path(source))), **asked)
    if tree := imagenet.find(source, progress=asked["progress"]):
        return folder.survey(tree, **asked)
    if rows := parquet.find(source):
        return parquet.survey(rows, **asked)
    if found := arrays.find(source, asked["columns"]):
        return arrays.survey(found, **asked)
    if tars := shards.find(source):
        return shards.survey(tars, **asked, window=window)
    if os.path.isdir(source) and (rows := parquet.find_in(Path(source))):
        return parquet.survey(rows, **asked)
    if os.path.isdir(source) and (found := arrays.find_in(Path(source), asked["columns"])):
        return arrays.survey(found, **asked)
    return folder.survey(imagenet.arranged(folder.on_disk(Path(source))), **asked)


def _is_zip(source: str | Path) -> bool:
    return str(source).lower().endswith(".zip") and not os.path.isdir(source)
