"""Token caches: pictures that a tokenizer has turned into tokens once and for all, read in any order.

tokens.json            what the cache was made of, and a checksum of every file with tokens or labels
train-00000.npy, ...   (n, V, L) uint16: n pictures of the split, each in V views; mapped into memory, never read whole
train-labels.npy       (N,) int64
validation-...         the held-out split, in one view
train-captions.npy     (B,) uint8, and -caption-ends.npy, -caption-firsts.npy: `Captions`, of a data set with captions
parts/                 what `nextscale.data.encoding`, which writes all of this, remembers of each file

Nothing here knows the tokenizer but by its fingerprint. Shapes: N pictures of a split, n of a batch or of a file, V
views, L tokens of all scales.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nextscale.data.ahead import Begun
from nextscale.data.captions import Captions
from nextscale.data.pictures import Progress, check_views, fingerprint, in_range, in_threads
from nextscale.errors import InputError
from nextscale.files.checkpoint import read_json
from nextscale.files.stamps import Stamp
from nextscale.scales import Scales

INDEX = "tokens.json"
SPLITS = ("train", "validation")
MOST_VIEWS = 1024  # of a picture, which are read together
CODES = 2**16  # that uint16 can tell apart


class Tokens(Protocol):
    """One split of a data set, as tokens.

    `labels` is (N,) int64; `fingerprint` is a hex string that changes when the tokens, the labels or the split change.
    `captions` are those of each picture, None for a data set without any.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def captions(self) -> Captions | None: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int] | Tensor, *, views: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (n, L) int64, wherever they come to be, and labels (n,) int64 on the CPU.

        `views`, (n, 3) float32 in [0, 1), tells how each picture is seen, as in `Pictures.batch`; without it crops are
        centred and nothing is mirrored. Raises `InputError` for another shape, `IndexError` for an index out of range.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """Two splits without a picture in common; `unreadable` are the pictures that could not be encoded."""

    train: Tokens
    validation: Tokens
    classes: tuple[str, ...]
    unreadable: list[str]

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of the pictures that could not be read, as far as is known by now."""
        return tuple(sorted(set(self.unreadable)))


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What a cache was made of."""

    tokenizer: str
    """`checkpoint.fingerprint` of the tokenizer's state dict."""
    scales: Scales
    codebook_size: int
    height: int
    """Of the pictures, in pixels."""
    width: int
    data: str
    """Fingerprint of the training pictures."""
    held_out: str
    """Fingerprint of the held-out ones."""
    precision: str
    """What the encoder computed in, such as "float32"."""
    views: int
    """Of each training picture; the first is the centred one. Held-out pictures have that one alone."""
    flip: bool
    """Whether half of the other views are mirrored."""
    seed: int
    """Of these views."""
    shard: int
    """Rows (a picture in one view) a file."""
    captions: str | None = None
    """Fingerprint of the captions of both splits; None where there are none."""

    def __post_init__(self) -> None:
        if not 1 <= self.codebook_size <= CODES:
            raise InputError(f"expected a codebook of 1 .. {CODES} codes, which 16 bits hold, got {self.codebook_size}")
        for name in ("views", "shard"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.views > MOST_VIEWS:
            raise InputError(f"views: expected at most {MOST_VIEWS}, got {self.views}")
        if self.flip and self.views < 2:
            raise InputError("flip: expected with 2 views or more, since the first is never mirrored, got 1")

    def views_of(self, split: str) -> int:
        """How many views a picture of "train" or "validation" has."""
        return self.views if split == "train" else 1

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        values = dataclasses.asdict(self) | {"scales": self.scales.to_list()}
        if self.captions is None:
            del values["captions"]  # so that caches without captions stay what they were
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Meta:
        """The reverse. Raises `TypeError` or `KeyError` for something else."""
        return cls(**{**values, "scales": Scales(values["scales"])})


def _check(directory: Path, stamp: Stamp, fault: str | None) -> None:
    """Raise `InputError` if there is a fault of a file of a cache."""
    if fault:
        raise _damaged(directory / stamp.file, fault)


def _damaged(path: Path, found: str) -> InputError:
    return InputError(f"{path}: expected a file of a token cache, {found}; re-run the command that encoded it")


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedTokens:
    """One split of a cache. All files but the last hold as many pictures."""

    classes: tuple[str, ...]
    labels: Tensor
    fingerprint: str
    shards: Sequence[np.ndarray]
    """(n, V, L) uint16 each, mapped."""
    captions: Captions | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int] | Tensor, *, views: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Tokens.batch`. The first number of a view chooses among the V stored ones: floor(V times it)."""
        wanted_n = in_range(indices, len(self))
        view_n = self._stored_view(views, len(wanted_n))
        shard_n, row_n = np.divmod(wanted_n.numpy(), len(self.shards[0]))
        tokens_nL = np.empty((len(wanted_n), self.shards[0].shape[2]), dtype=np.int64)
        for number in np.unique(shard_n):
            here_n = shard_n == number
            tokens_nL[here_n] = self.shards[number][row_n[here_n], view_n[here_n]]
        return torch.from_numpy(tokens_nL), self.labels[wanted_n]

    def begin(self, indices: Tensor, views: Tensor, pool: Executor, *, device: torch.device) -> Begun:
        """See `nextscale.data.ahead.Beginning`: a page that is not in memory yet is waited for elsewhere."""
        read = partial(self.batch, indices, views=views)
        return Begun(pool.submit(read), read)

    def _stored_view(self, views: Tensor | None, count: int) -> np.ndarray:
        if views is None:
            return np.zeros(count, dtype=np.int64)
        check_views(views, count)
        stored = self.shards[0].shape[1]
        return (views[:, 0].double() * stored).long().clamp(0, stored - 1).numpy()


@dataclass(frozen=True, kw_only=True)
class TokenCache(TokenSet):
    """A finished cache: its two splits, and what it was made of."""

    meta: Meta


def is_cache(path: str | Path) -> bool:
    """Whether `path` is a directory of tokens, finished or not."""
    return (Path(path) / INDEX).is_file()


def load(
    directory: str | Path, *, tokenizer: str | None = None, verify: bool = True, progress: Progress | None = None
) -> TokenCache:
    """The finished cache in `directory`.

    Arguments:
        tokenizer: fingerprint of the tokenizer whose tokens are wanted; None takes any.
        verify: read every file once and compare its checksum; the sizes are compared in any case. It takes as long as
            reading the cache from the disk does, and leaves it in memory for what comes.
        progress: called with (files verified, files in all).

    Raises `InputError` for no cache, an unfinished one, another tokenizer's, and a file that is missing or damaged.
    """
    directory = Path(directory)
    index, meta = _read_index(directory)
    if tokenizer is not None and tokenizer != meta.tokenizer:
        raise InputError(
            f"{directory}: expected tokens of tokenizer {tokenizer}, got those of tokenizer {meta.tokenizer}; "
            "take that tokenizer, or encode the pictures with this one"
        )
    stamps, captions = (_stamps(index, key) for key in ("files", "captions"))
    every = [stamp for those in (stamps, captions) for split in those for stamp in those[split]]
    for stamp in every:
        _check(directory, stamp, stamp.fault(directory))
    if verify:
        inside = in_threads(lambda stamp: stamp.fault_inside(directory), every, progress=progress)
        for stamp, fault in zip(every, inside, strict=True):
            _check(directory, stamp, fault)
    classes = tuple(index["classes"])
    train, validation = (
        _split(directory, split, stamps[split], captions.get(split), meta=meta, classes=classes) for split in SPLITS
    )
    return TokenCache(train=train, validation=validation, classes=classes, unreadable=index["unreadable"], meta=meta)


def files_of(directory: str | Path) -> list[str]:
    """The names of all files of a finished cache, by its index. Raises `InputError` like `load`."""
    index, _ = _read_index(Path(directory))
    every = (_stamps(index, key) for key in ("files", "captions"))
    return [INDEX, *(stamp.file for those in every for split in those for stamp in those[split])]


def _stamps(index: Mapping[str, Any], key: str) -> dict[str, list[Stamp]]:
    """The stamps of each split's files; none where there are no such files."""
    given = index[key] if key == "files" else index.get(key, {})
    return {split: [Stamp(**stamp) for stamp in given[split]] for split in given}


def _read_index(directory: Path) -> tuple[dict[str, Any], Meta]:
    """A finished cache's tokens.json, and the part of it that tells what the cache was made of."""
    if not is_cache(directory):
        raise InputError(f"expected a token cache, found no {INDEX} in {directory}")
    index = read_json(directory / INDEX)
    try:
        meta = Meta.from_json(index["settings"])
        if not index["finished"]:
            raise InputError(f"{directory}: expected a finished token cache; the command that began it will finish it")
        for split in SPLITS:
            _stamps(index, "files")[split][1]  # at least the labels and one file of tokens
            if meta.captions is not None:
                _stamps(index, "captions")[split][2]
        index["classes"], index["unreadable"]
    except (LookupError, TypeError):
        raise InputError(f"{directory / INDEX}: expected the index of a token cache, got something else") from None
    return index, meta


def _split(
    directory: Path,
    split: str,
    stamps: Sequence[Stamp],
    captions: Sequence[Stamp] | None,
    *,
    meta: Meta,
    classes: tuple[str, ...],
) -> CachedTokens:
    labels, *shards = (_mapped(directory / stamp.file) for stamp in stamps)
    row = (meta.views_of(split), meta.scales.total)
    fits = all(shard.dtype == np.uint16 and shard.shape[1:] == row for shard in shards)
    fits = fits and all(len(shard) == len(shards[0]) for shard in shards[:-1])
    if not fits or labels.shape != (sum(map(len, shards)),):
        raise InputError(f"{directory}: expected {split} tokens of shape (pictures, {row[0]}, {row[1]}), got others")
    return CachedTokens(
        classes=classes,
        labels=torch.from_numpy(np.array(labels)),
        fingerprint=fingerprint([split, meta.to_json(), *classes, *(stamp.crc32 for stamp in stamps)]),
        shards=shards,
        captions=None if captions is None else _captions(directory, captions, pictures=len(labels)),
    )


def _captions(directory: Path, stamps: Sequence[Stamp], *, pictures: int) -> Captions:
    paths = [directory / stamp.file for stamp in stamps]
    text_B, ends_C, firsts_N = map(_mapped, paths)
    try:
        captions = Captions.mapped(text_B, ends_C, firsts_N)
    except (ValueError, TypeError) as error:
        raise _damaged(paths[0], f"got something else ({error})") from None
    if len(captions) != pictures:
        raise _damaged(paths[0], f"got captions of {len(captions)} pictures for {pictures}")
    return captions


def _mapped(path: Path) -> np.ndarray:
    """An array in a file, as plain array that is read when looked at."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, f"got something else ({error})") from None
