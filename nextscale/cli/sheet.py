"""Pictures side by side with names beside and over them, large enough to be looked at.

Knows how a sheet looks, not where pictures come from. A `Row` is also what the report page shows. Shapes: B pictures of
a row, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nextscale import images
from nextscale.errors import printable
from nextscale.scales import Scales

SIDE = 128  # pixels that the short side of smaller pictures is enlarged to, at least, by a whole number
GAP = 4  # pixels between pictures, and between pictures and names
TEXT, LINE = 14, 20  # pixels: size of the letters, height of a line of them
MARGIN = 240  # pixels that names beside rows have at most


@dataclass(frozen=True)
class Row:
    """Pictures side by side behind a name."""

    name: str
    pictures: Tensor
    """(B, 3, H, W) in [-1, 1], on the CPU."""
    over: Sequence[str] = ()
    """A name over each picture, from the left."""


def drawn(rows: Sequence[Row]) -> Image.Image:
    """The rows below each other on white, all of pictures of one size, each pixel drawn as zoom x zoom.

    Names that are too long for their place are cut.
    """
    sides = rows[0].pictures.shape[2:]
    zoom, margin = -(-SIDE // min(sides)), _margin(rows)
    height, width = (side * zoom for side in sides)
    heights = [height + (LINE if row.over else 0) for row in rows]
    across = max(len(row.pictures) for row in rows) * (width + GAP) - GAP
    sheet = Image.new("RGB", (margin + across, sum(heights) + GAP * (len(rows) - 1)), "white")
    bottom = -GAP
    for row, high in zip(rows, heights, strict=True):
        bottom += high + GAP
        _draw(sheet, row, left=margin, top=bottom - height, size=(width, height))
    return sheet


def _draw(sheet: Image.Image, row: Row, *, left: int, top: int, size: tuple[int, int]) -> None:
    """A row whose pictures begin at `left`, `top`; names are before and above."""
    pen, (width, height) = ImageDraw.Draw(sheet), size
    starts = [left + column * (width + GAP) for column in range(len(row.pictures))]
    pen.text((left - 2 * GAP, top + height // 2), _cut(row.name, MARGIN), "black", font(), anchor="rm")
    for start, picture in zip(starts, row.pictures, strict=True):
        sheet.paste(images.to_pil(picture).resize(size, Image.Resampling.NEAREST), (start, top))
    for start, name in zip(starts, row.over, strict=False):
        pen.text((start + width // 2, top - LINE // 2), _cut(name, width), "black", font(), anchor="mm")


def scale_names(scales: Scales) -> list[str]:
    """What stands over a strip of scales: 1x1, 2x2 …"""
    return [f"{h}x{w}" for h, w in scales]


@cache
def font() -> ImageFont.FreeTypeFont:
    """matplotlib's, which has more letters than Pillow's own: Greek, Cyrillic, accents of any kind."""
    found = find_spec("matplotlib")  # its folder alone: importing it takes 0.1 s
    assert found is not None
    assert found.origin is not None
    return ImageFont.truetype(str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"), TEXT)


def _margin(rows: Sequence[Row]) -> int:
    widest = max(font().getlength(_cut(row.name, MARGIN)) for row in rows)
    return round(widest) + 3 * GAP if widest else 0


def _cut(name: str, width: int) -> str:
    """What of a name fits."""
    name = printable(name)
    if font().getlength(name) <= width:
        return name
    while name and font().getlength(f"{name}…") > width:
        name = name[:-1]
    return f"{name}…"
