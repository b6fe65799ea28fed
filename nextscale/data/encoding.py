"""The writing of token caches (`nextscale.data.tokens`): pictures in, files of tokens out.

A file is written whole or not at all, then remembered under parts/ with its checksum. So the work can be killed at any
moment and goes on with the files that are left; the same work on a finished cache makes a damaged file again. Several
processes share the files. How pictures become tokens is the caller's.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale.data.captions import Captions
from nextscale.data.pictures import CENTRED, DataSet, Pictures, Progress, fingerprint
from nextscale.data.tokens import INDEX, SPLITS, Meta
from nextscale.data.walk import visible
from nextscale.errors import InputError
from nextscale.files import lock
from nextscale.files.checkpoint import read_json, write_json
from nextscale.files.durable import write_beside
from nextscale.files.stamps import Stamp
from nextscale.machine import distributed

Encode = Callable[[Tensor], Tensor]  # images (n, 3, H, W) float32 in [-1, 1] -> tokens (n, L) int64
PARTS = "parts"
SHARD = 4096  # rows a file: 6 MB at 256 px, and never more than so many rows lost to a kill
# How far crop and mirror move from view to view, modulo 1. The first two are powers of the plastic number's inverse,
# whose multiples fill the square evenly however many they are; the third makes every other view a mirrored one.
STEP = (0.7548777, 0.5698403, 0.5)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The pictures of a split that share a file."""

    split: str
    number: int
    pictures: range
    views: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05}"

    @property
    def rows(self) -> int:
        """Pictures times views."""
        return len(self.pictures) * self.views


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is remembered of a part that is written."""

    stamp: Stamp
    labels: list[int]
    unreadable: list[str]
    settings: str
    """Fingerprint of what the cache is made of."""
    stand_ins: dict[str, int] = dataclasses.field(default_factory=dict)
    """By number the picture that was shown in place of one that could not be read."""


def write(
    directory: str | Path,
    data: DataSet,
    encode: Encode,
    meta: Meta,
    *,
    batch: int = 64,
    progress: Progress | None = None,
) -> int:
    """Make the cache of `data` in `directory`, or what is left of it to make; how many rows that was.

    Arguments:
        encode: the tokenizer's.
        meta: what the cache is made of; it must tell of `data` and of `encode`.
        batch: rows encoded at a time. Another one changes nothing but rounding.
        progress: called with (rows done, rows in all) over all processes.

    A picture that turns out unreadable is replaced as `data` replaces it, and named in the cache. Over several
    processes each writes its share of the files, which must be in one place. Raises `InputError` when the directory
    holds another cache, with the differences, is in use by another process, or cannot be written.
    """
    if batch < 1:
        raise InputError(f"batch: expected at least 1, got {batch}")
    with lock.held(Path(directory)):
        return _write(Path(directory), data, encode, meta, batch, progress)


def _write(directory: Path, data: DataSet, encode: Encode, meta: Meta, batch: int, progress: Progress | None) -> int:
    if distributed.is_first():
        _claim(directory, meta)
    distributed.barrier()
    parts = [part for split in SPLITS for part in _parts(split, data, meta)]
    mine = [part for part in parts[distributed.rank() :: distributed.world()] if _record(directory, part, meta) is None]
    total = sum(part.rows for part in parts)
    left = int(distributed.summed(torch.tensor(sum(part.rows for part in mine))))
    if left == 0 and distributed.from_first(distributed.is_first() and _is_finished(directory)):
        return 0
    done = total - left
    for rows in _in_step(rows for part in mine for rows in _write_part(directory, part, data, encode, meta, batch)):
        done += rows
        if progress is not None:
            progress(done, total)
    if distributed.is_first():
        _finish(directory, parts, data, meta)
    distributed.barrier()
    return left


# ---- which files -----------------------------------------------------------------------------------------------------


def _claim(directory: Path, meta: Meta) -> None:
    """Begin or continue; what holds no finished file may be replaced, for there is nothing to lose.

    An index that is damaged or gone is made again, if the files that are there tell that they are of this cache.
    """
    file, wanted = directory / INDEX, meta.to_json()
    stored, begun = _json_or_none(file), [*(directory / PARTS).glob("*.json")]
    if isinstance(stored, dict) and (begun or stored.get("finished")):
        _refuse_other_cache(directory, stored.get("settings"), wanted)
        return
    for values in map(_json_or_none, begun):
        if isinstance(values, dict) and values.get("settings") != _settings(meta):
            raise InputError(f"{directory} holds another token cache, which lost its {INDEX}: choose another --out")
    if not begun and not file.exists() and directory.is_dir() and visible(directory):
        raise InputError(f"{directory}: expected a new or empty directory, or this token cache, got one of other files")
    write_json(file, {"settings": wanted, "finished": False})


def _json_or_none(file: Path) -> Any:
    try:
        return read_json(file)
    except InputError:
        return None


def _settings(meta: Meta) -> str:
    return fingerprint([json.dumps(meta.to_json(), sort_keys=True)])


def _refuse_other_cache(directory: Path, stored: Any, wanted: dict[str, Any]) -> None:
    if not isinstance(stored, dict):
        raise InputError(f"{directory / INDEX}: expected the settings of a token cache, got something else")
    names = [name for name in wanted | stored if wanted.get(name) != stored.get(name)]
    if names:
        shown = "; ".join(f"{name} is {stored.get(name)} there, {wanted.get(name)} here" for name in names[:4])
        raise InputError(f"{directory} holds another token cache ({shown}): choose another --out, or ask for the same")


def _parts(split: str, data: DataSet, meta: Meta) -> Iterator[Part]:
    pictures, views = len(_pictures(data, split)), meta.views_of(split)
    size = max(1, meta.shard // views)
    for number, start in enumerate(range(0, pictures, size)):
        yield Part(split=split, number=number, pictures=range(start, min(start + size, pictures)), views=views)


def _pictures(data: DataSet, split: str) -> Pictures:
    return data.train if split == "train" else data.validation


def _record(directory: Path, part: Part, meta: Meta) -> Record | None:
    """What is remembered of a part of this cache, if its file is still what was written."""
    try:
        values = read_json(directory / PARTS / f"{part.name}.json")
        record = Record(**{**values, "stamp": Stamp(**values["stamp"])})
        fault = record.stamp.fault_inside(directory)
    except (InputError, LookupError, TypeError):
        return None
    return record if not fault and record.settings == _settings(meta) else None


def _is_finished(directory: Path) -> bool:
    """Whether everything but the parts is there, too."""
    try:
        index = read_json(directory / INDEX)
        for split in SPLITS:
            for stamp in (index["files"][split][0], *index.get("captions", {}).get(split, [])):
                if Stamp(**stamp).fault_inside(directory):
                    return False
    except (InputError, LookupError, TypeError):
        return False
    return index.get("finished") is True


# ---- a part ----------------------------------------------------------------------------------------------------------


def _write_part(directory: Path, part: Part, data: DataSet, encode: Encode, meta: Meta, batch: int) -> Iterator[int]:
    """Encode the rows of a part in their order, write the file, then its record; yields rows as they are done."""
    known = len(data.unreadable)
    tokens_RL = np.empty((part.rows, meta.scales.total), dtype=np.uint16)
    labels = np.empty(len(part.pictures), dtype=np.int64)
    for rows, images, labels_n in _batches(part, _pictures(data, part.split), meta, batch):
        tokens_nL = torch.cat([encode(some) for some in images.split(batch)]).cpu().numpy()
        assert 0 <= tokens_nL.min() <= tokens_nL.max() < meta.codebook_size, "16 bits would hold something else"
        tokens_RL[rows.start : rows.stop] = tokens_nL
        labels[np.arange(rows.start, rows.stop) // part.views] = labels_n.numpy()
        yield len(rows)
    tokens_nVL = tokens_RL.reshape(len(part.pictures), part.views, -1)
    stamp = _write_array(directory, f"{part.name}.npy", tokens_nVL)
    unreadable = sorted(set(data.unreadable[known:]))
    record = Record(
        stamp=stamp,
        labels=labels.tolist(),
        unreadable=unreadable,
        settings=_settings(meta),
        stand_ins=_stand_ins(part, data),
    )
    write_json(directory / PARTS / f"{part.name}.json", dataclasses.asdict(record))


def _stand_ins(part: Part, data: DataSet) -> dict[str, int]:
    """Which other pictures were shown in a part; needed, and known, where there are captions."""
    captions = _pictures(data, part.split).captions
    known = {} if captions is None else captions.stand_ins
    return {str(index): known[index] for index in part.pictures if index in known}


def _batches(part: Part, pictures: Pictures, meta: Meta, batch: int) -> Iterator[tuple[range, Tensor, Tensor]]:
    """Rows with their images and labels. The next batch is read while the caller works on this one.

    All views of a picture are in one, even if that is more than `batch`: where a picture is lost while others are
    read, the one that stands in for it, whose label is taken, stands in for all of its views.
    """
    offsets_N3 = torch.rand((len(pictures), 3), generator=torch.Generator().manual_seed(meta.seed % 2**63))
    size = max(1, batch // part.views) * part.views
    chunks = [range(start, min(start + size, part.rows)) for start in range(0, part.rows, size)]

    def read(rows: range) -> tuple[range, Tensor, Tensor]:
        row_n = torch.arange(rows.start, rows.stop)
        index_n, view_n = part.pictures.start + row_n // part.views, row_n % part.views
        return rows, *pictures.batch(index_n, views=stored_views(offsets_N3[index_n], view_n, flip=meta.flip))

    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting = reader.submit(read, chunks[0])
        for following in (*chunks[1:], None):
            ready = waiting.result()
            if following is not None:
                waiting = reader.submit(read, following)
            yield ready


def stored_views(offsets_n3: Tensor, view_n: Tensor, *, flip: bool) -> Tensor:
    """How view number `view_n` (n,) int64 of each picture is seen: (n, 3) float32 as `Pictures.batch` takes it.

    View 0 is the centred one. The others begin at the picture's own random offsets, (n, 3) float32 in [0, 1), and go on
    in even steps, so that few views already show different parts of a picture.
    """
    seen_n3 = (offsets_n3 + view_n[:, None] * torch.tensor(STEP)) % 1
    if not flip:
        seen_n3[:, 2] = 0
    seen_n3[view_n == 0] = torch.tensor(CENTRED)
    return seen_n3


def _write_array(directory: Path, name: str, array: np.ndarray) -> Stamp:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    view = content.getbuffer()
    write_beside(directory / name, lambda sibling: sibling.write_bytes(view))
    return Stamp(file=name, bytes=len(view), crc32=zlib.crc32(view))


# ---- all of them -----------------------------------------------------------------------------------------------------


def _in_step(work: Iterator[int]) -> Iterator[int]:
    """The sum over processes of what each yields, until all are through.

    In step, so that no process waits longer than a batch for another: at the end that could be hours, and those who
    wait give up (`distributed.TIMEOUT`). When torchrun is gone all end, by `KeyboardInterrupt`.
    """
    while True:
        rows = next(work, None)
        ours = [rows or 0, int(rows is not None), int(distributed.orphaned())]
        done, working, orphaned = distributed.summed(torch.tensor(ours)).tolist()
        if orphaned:
            raise KeyboardInterrupt
        if not working:
            return
        yield done


def _finish(directory: Path, parts: Sequence[Part], data: DataSet, meta: Meta) -> None:
    """Write labels and captions and, as the last thing, that the cache is finished."""
    files: dict[str, list[dict[str, Any]]] = {}
    captions: dict[str, list[dict[str, Any]]] = {}
    unreadable = set(data.unreadable)
    for split in SPLITS:
        records = [_record(directory, part, meta) for part in parts if part.split == split]
        if None in records:
            raise InputError(f"expected one {directory} that all processes write to, found files missing")
        whole = [record for record in records if record is not None]
        labels = np.array([label for record in whole for label in record.labels], dtype=np.int64)
        stamps = [_write_array(directory, f"{split}-labels.npy", labels), *(record.stamp for record in whole)]
        files[split] = [dataclasses.asdict(stamp) for stamp in stamps]
        unreadable |= {name for record in whole for name in record.unreadable}
        if (own := _pictures(data, split).captions) is not None:
            captions[split] = [dataclasses.asdict(stamp) for stamp in _write_captions(directory, split, own, whole)]
    index: dict[str, Any] = {"settings": meta.to_json(), "finished": True, "classes": list(data.classes)}
    index |= {"captions": captions} if captions else {}
    write_json(directory / INDEX, {**index, "unreadable": sorted(unreadable), "files": files})


def _write_captions(directory: Path, split: str, captions: Captions, records: Sequence[Record]) -> Iterator[Stamp]:
    """Those of the pictures that were encoded: where another one stood in, its captions."""
    shown = np.arange(len(captions))
    for record in records:
        for index, other in record.stand_ins.items():
            shown[int(index)] = other
    told = captions.chosen(shown.tolist())
    for name, array in (("captions", told.text_B), ("caption-ends", told.ends_C), ("caption-firsts", told.firsts_N)):
        yield _write_array(directory, f"{split}-{name}.npy", array)
