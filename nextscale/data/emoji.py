"""The embedded data set: 3,777 emoji in two drawing styles, nine Unicode groups as classes.

The pack beside this file holds 64 px WebP pictures and an index; `scripts/make_emoji_pack.py` made it and its README
says how the split was drawn. This room decodes the pack at one size. Crops shift a picture by at most 1/16 of its
side. Letters and flags have a right way round, so views of them are better not mirrored.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from nextscale import images
from nextscale.data.captions import Captioning, Captions, counted, no_table
from nextscale.data.labels import NONE, Labels, no_classes
from nextscale.data.pictures import DataSet, Split, fingerprint, from_memory, in_threads

PACK = Path(__file__).with_name("emoji_pack")
SPLIT = "the set's own split, by subject"
SHIFT = 16  # the largest shift is the side divided by this


@dataclass(frozen=True)
class Entry:
    """One row of the index, its columns in order: `subject` and `family` are code points joined by dashes."""

    subject: str
    style: str
    name: str
    group: str
    family: str
    split: str
    bytes: int

    def captions(self) -> tuple[str, str]:
        """What the picture shows, and in which style; a second drawing has the captions of the first."""
        shown = self.name.removesuffix(")").rpartition(" (")[0]
        return shown, f"{shown}, in the style of {self.style}"


@cache
def entries() -> tuple[Entry, ...]:
    """The index of the pack, in the order of the pictures."""
    _header, *rows = (PACK / "index.tsv").read_text(encoding="utf-8").splitlines()
    return tuple(_entry(*row.split("\t")) for row in rows)


def _entry(subject: str, style: str, name: str, group: str, family: str, split: str, length: str) -> Entry:
    return Entry(subject, style, name, group, family, split, int(length))


def classes() -> tuple[str, ...]:
    """The nine groups, in Unicode's order."""
    return tuple(dict.fromkeys(entry.group for entry in entries()))


def load(*, height: int, width: int, labels: Labels | None = None, captions: Captioning | None = None) -> DataSet:
    """The embedded pictures at any size; where that is not square, the picture stands in the middle of white.

    `labels` may be "none": one class instead of the groups. `captions`, "own" or "names", are what each picture shows,
    by itself and in the words of its style.
    """
    alike = no_classes(labels, of="the embedded emoji")
    captioned = no_table(captions, of="the embedded emoji") is not None
    stored = decoded(height, width)
    train, validation = (_split(name, stored, height=height, width=width) for name in ("train", "validation"))
    if alike:
        train, validation = _in_one_class(train), _in_one_class(validation)
    if captioned:
        train, validation = _with_captions(train, "train"), _with_captions(validation, "validation")
    return DataSet(
        train=train,
        validation=validation,
        classes=train.classes,
        unreadable=[],
        held_out=SPLIT,
        notes=counted(train.captions, validation.captions),
    )


def _in_one_class(split: Split) -> Split:
    labels = torch.zeros_like(split.labels)
    return replace(split, classes=("emoji",), labels=labels, fingerprint=fingerprint([split.fingerprint, NONE]))


def _with_captions(split: Split, name: str) -> Split:
    return replace(split, captions=Captions(entry.captions() for entry in entries() if entry.split == name))


@lru_cache(maxsize=4)
def decoded(height: int, width: int) -> Tensor:
    """All pictures, (N, 3, H + 2·(H // 16), W + 2·(W // 16)) uint8, with the white border that shifts need."""
    packed = (PACK / "pictures.bin").read_bytes()
    ends = accumulate((entry.bytes for entry in entries()), initial=0)
    blobs = [packed[start:end] for start, end in pairwise(ends)]
    return torch.stack(list(in_threads(partial(_decode, height=height, width=width), blobs)))


def _decode(blob: bytes, *, height: int, width: int) -> Tensor:
    side = min(height, width)
    small = images.open_rgb(io.BytesIO(blob)).resize((side, side), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (width + 2 * (width // SHIFT), height + 2 * (height // SHIFT)), "white")
    sheet.paste(small, (width // SHIFT + (width - side) // 2, height // SHIFT + (height - side) // 2))
    return images.uint8_from_pil(sheet)


def _split(name: str, stored: Tensor, *, height: int, width: int) -> Split:
    chosen = [index for index, entry in enumerate(entries()) if entry.split == name]
    groups = classes()
    return Split(
        classes=groups,
        labels=torch.tensor([groups.index(entries()[index].group) for index in chosen]),
        names=tuple(entries()[index].name for index in chosen),
        fingerprint=fingerprint(["emoji", name, height, width, _pack_hash()]),
        fetch=from_memory(list(stored[chosen])),
        height=height,
        width=width,
    )


@cache
def _pack_hash() -> str:
    return fingerprint((PACK / name).read_bytes() for name in ("index.tsv", "pictures.bin"))
