"""`nextscale encode`: the tokens of a data set, made once for every training on them."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nextscale.cli import models
from nextscale.cli.data import (
    BROKEN,
    CacheDir,
    CacheSize,
    Captioned,
    Column,
    IndexFile,
    Labelling,
    ListBroken,
    MaxBroken,
    cache_of,
    check_outside,
    columns_of,
    load_data,
)
from nextscale.cli.options import Count, Directory, Precision, TokenizerSource, TokenMaps
from nextscale.cli.output import at_least, at_most, directory, progress, say
from nextscale.cli.training import together
from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.data import DataSet
    from nextscale.data.encoding import Encode as Encoding
    from nextscale.data.tokens import Meta

MOST_BATCH = 1 << 20
Data = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Encode a data set into a token cache, for `train transformer --data`.

    The same command continues it; docs/token-cache.md describes the format.
    """

    data: Data = "emoji"
    """emoji (embedded), figures (drawn, extra figures), a folder of pictures (DIR/class/picture or flat), a zip of one,
    WebDataset shards, parquet files; docs/data.md lists all formats."""
    labels: Labelling = None
    """Classes of a folder's pictures: a table with the columns file and label (CSV, JSON lines, parquet), folders, or
    none (default: metadata beside them, or else its folders)."""
    captions: Captioned = None
    """Captions: own (metadata or .txt files beside the pictures, .txt and .json in shards), names (the words of file
    names), or a table with the columns file and caption (default: none)."""
    image_column: Column = None
    """Column of metadata or parquet files with the pictures or their names (default: found by name and type)."""
    label_column: Column = None
    """Column of the classes (default: found by name and type)."""
    caption_column: Column = None
    """Column of the captions; implies --captions own (default: found by name and type)."""
    outside_files: bool = False
    """Allow tables to name pictures outside the folder, by absolute paths or through parent folders (..)."""
    max_broken: MaxBroken = BROKEN
    """Largest share of unreadable pictures to leave out; with more, the data are refused."""
    list_broken: ListBroken = None
    """File for the list of unreadable pictures, name and reason, one per line."""
    index: IndexFile = None
    """File for the index of the pictures (default: in the user's cache, for 10,000 pictures or more)."""
    cache_dir: CacheDir = None
    """Cache for files at an address (default: nextscale/remote in the user's cache directory)."""
    cache_size: CacheSize = None
    """Largest size of that cache, such as 500GB (default: 64GB)."""
    tokenizer: TokenizerSource = Path("runs/tokenizer")
    """Run directory of the tokenizer, a model directory, or the public release's tokenizer file; default is the
    packaged one, for icons of 64 px."""
    scales: TokenMaps = ()
    """Token maps of such a file, as in 1 2 3 4x6 (default: for ten, the release's for 256 px)."""
    out: Directory = Path("runs/tokens")
    """Directory of the cache; one with the same settings is continued."""
    views: int = 1
    """Crops per training picture: one centred, the others elsewhere."""
    flip: bool = False
    """Mirror half of the other crops."""
    batch: int = 64
    """Pictures at a time."""
    seed: int = 0
    """Seed of the crops."""
    shard: Count = None
    """Rows (one crop of a picture each) per file (default: 4096). A kill loses at most one file."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available, under torchrun one GPU per process."""
    precision: Precision = "fp32"
    """Precision of the encoder; bf16 is faster and changes a tenth of the finest tokens."""

    def run(self) -> None:
        with together(self.device) as device:
            self._encode(device)

    def _encode(self, device: str) -> None:
        import torch

        from nextscale.data.encoding import SHARD
        from nextscale.files.remote import is_address
        from nextscale.machine.precision import find_dtype
        from nextscale.training.transformer.tokens import encoding_of, meta_of

        self._check()
        check_outside(self.out, self.data)
        place = torch.device(device)
        dtype = find_dtype(self.precision, place)
        tokenizer = models.tokenizer_alone(self.tokenizer, self.scales).requires_grad_(False)
        directory("--out", self.out)
        data = load_data(
            self.data,
            height=tokenizer.config.height,
            width=tokenizer.config.width,
            labels=self.labels,
            captions=self.captions,
            columns=columns_of(self),
            index=self.index,
            max_broken=self.max_broken,
            list_broken=self.list_broken,
            cache=cache_of(self),
            window=1 if is_address(self.data) else None,  # they are read in their order
        )
        meta = meta_of(
            tokenizer, data, dtype, views=self.views, flip=self.flip, seed=self.seed, shard=self.shard or SHARD
        )
        rows, seconds = self._write(data, encoding_of(tokenizer.to(place), dtype), meta)
        self._tell(rows, seconds)

    def _check(self) -> None:
        """Raise `InputError` for numbers that cannot be, before pictures are read."""
        from nextscale.data.tokens import MOST_VIEWS

        at_least("--batch", 1, self.batch)
        at_most("--batch", MOST_BATCH, self.batch)
        at_least("--views", 1, self.views)
        at_most("--views", MOST_VIEWS, self.views)
        at_least("--shard", 1, 1 if self.shard is None else self.shard)
        if self.flip and self.views == 1:
            raise InputError("--flip: expected with --views 2 or more, since the first view is never mirrored, got 1")

    def _write(self, data: DataSet, encode: Encoding, meta: Meta) -> tuple[int, float]:
        """Rows made now, and the seconds it took."""
        from nextscale.data import encoding

        start = time.monotonic()
        try:
            with progress() as bar:
                task = bar.add_task("encoding", total=None)
                rows = encoding.write(
                    self.out,
                    data,
                    encode,
                    meta,
                    batch=self.batch,
                    progress=lambda done, total: bar.update(task, completed=done, total=total),
                )
        except KeyboardInterrupt:
            say(f"encode: stopped; {self.out} keeps the files that are whole, the same command continues")
            raise
        return rows, time.monotonic() - start

    def _tell(self, rows: int, seconds: float) -> None:
        """What the cache holds, how fast it was made, and what comes next."""
        from nextscale.data import tokens

        cache = tokens.load(self.out, verify=False)
        if not rows:
            say(f"encode: {self.out} is finished already, nothing to do")
        pictures, held_out, meta = len(cache.train), len(cache.validation), cache.meta
        count = (pictures * meta.views + held_out) * meta.scales.total
        speed = f", {rows / seconds:,.0f} pictures/s" if rows else ""
        views = f" in {meta.views} views" if meta.views > 1 else ""
        say(
            f"encode: {pictures:,} pictures{views} and {held_out:,} held out, {count:,} tokens, "
            f"{2 * count / 1e6:,.1f} MB in {self.out}{speed}"
        )
        if cache.broken:
            say(f"encode: {len(cache.broken)} pictures cannot be read; {tokens.INDEX} in {self.out} names them")
        command = ["nextscale", "train", "transformer", "--data", str(self.out), "--tokenizer", str(self.tokenizer)]
        print(shlex.join([*command, *(["--scales", *self.scales] if self.scales else [])]))
