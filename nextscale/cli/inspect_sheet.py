"""What a model thinks of one picture, on one sheet: what each scale painted, surprise, entropy, neighbours, classes.

Knows how it looks and nothing of models. Shapes: K scales, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from nextscale import images
from nextscale.cli.sheet import GAP, LINE, Row, drawn, font
from nextscale.errors import printable
from nextscale.scales import Scales

EDGE = 12  # pixels of white around everything
NAME, BAR = 240, 420  # pixels: names of classes, and the longest bar
CLASSES = 10  # the likeliest that are shown
BLUE, GREY = (56, 108, 176), (225, 225, 225)


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A training picture."""

    name: str
    distance: float
    """Between features."""
    decibels: float
    """PSNR between the two pictures: a copy has more than 30."""
    image: Tensor
    """(3, H, W) in [-1, 1]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """What is drawn of a picture."""

    lines: Sequence[str]
    """Above all else, the first larger."""
    stages: Tensor
    """(1 + K, 3, H, W) in [-1, 1]: the picture, and what is painted through each scale."""
    sizes: Scales
    surprise: Sequence[Tensor]
    """K maps (h_k, w_k): -log p of each token, in nats."""
    entropy: Sequence[Tensor]
    """Likewise, what it was expected to be."""
    most: float
    """Nats of a token that a model which knows nothing spends: the top of the colours."""
    neighbours: Sequence[Neighbour] = ()
    classes: Sequence[tuple[str, float]] = ()
    """Names and probabilities, the likeliest first."""


def painted(sheet: Sheet) -> Image.Image:
    """The whole of it, on white."""
    body = drawn([*_rows(sheet)])
    parts = [_heading(sheet.lines), body, _ramp(sheet.most)]
    parts += [_bars(sheet.classes[:CLASSES])] if sheet.classes else []
    width = max(part.width for part in parts) + 2 * EDGE
    whole = Image.new("RGB", (width, sum(part.height + EDGE for part in parts) + EDGE), "white")
    top = EDGE
    for part in parts:
        whole.paste(part, (EDGE, top))
        top += part.height + EDGE
    return whole


def _rows(sheet: Sheet) -> list[Row]:
    picture, sizes = sheet.stages[0], [f"{h}x{w}" for h, w in sheet.sizes]
    rows = [Row("painted", sheet.stages, ["picture", *sizes])]
    for name, maps in (("surprise", sheet.surprise), ("entropy", sheet.entropy)):
        whole = density(maps, picture.shape[1:])
        shown = [
            _coloured(whole, float(whole.max()), picture),
            *(_coloured(each, sheet.most, picture) for each in maps),
        ]
        told = [f"{float(sum(each.sum() for each in maps)):.0f} nats", *(f"{float(each.mean()):.2f}" for each in maps)]
        rows.append(Row(name, torch.stack(shown), told))
    if sheet.neighbours:
        shown = [neighbour.image for neighbour in sheet.neighbours]
        over = [f"{neighbour.distance:.2f}  {neighbour.name}" for neighbour in sheet.neighbours]
        rows.append(Row("nearest trained on", torch.stack(shown), over))
    return rows


def density(maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Nats a pixel, (H, W): those of each token spread evenly over the pixels that it stands for, of all scales."""
    height, width = size
    total = torch.zeros(height, width, dtype=torch.float64)
    for each in maps:
        area = height * width / each.numel()
        place = torch.nn.functional.interpolate(each[None, None].double().cpu(), (height, width), mode="nearest")
        total += place[0, 0] / area
    return total


def _coloured(map_hw: Tensor, top: float, picture_3HW: Tensor) -> Tensor:
    height, width = picture_3HW.shape[1:]
    return images.tinted(images.heat(map_hw[None].cpu(), top=top, height=height, width=width), picture_3HW)[0]


def _heading(lines: Sequence[str]) -> Image.Image:
    lines = [printable(line) for line in lines]
    width = math.ceil(max(font().getlength(line) for line in lines))
    heading = Image.new("RGB", (width, LINE * len(lines)), "white")
    pen = ImageDraw.Draw(heading)
    for number, line in enumerate(lines):
        pen.text((0, number * LINE + LINE // 2), line, "black" if number == 0 else "dimgray", font(), anchor="lm")
    return heading


def _ramp(most: float) -> Image.Image:
    """What the colours mean."""
    told = (
        "nats a token: 0",
        f"{most:.1f}, of a model that knows nothing; the first of each row: of all scales, a pixel",
    )
    lengths = [math.ceil(font().getlength(text)) for text in told]
    strip = images.heat(torch.linspace(0, 1, BAR // 2)[None, None], top=1.0, height=LINE - 6, width=BAR // 2)[0]
    legend = Image.new("RGB", (lengths[0] + BAR // 2 + lengths[1] + 4 * GAP, LINE), "white")
    pen = ImageDraw.Draw(legend)
    pen.text((0, LINE // 2), told[0], "dimgray", font(), anchor="lm")
    legend.paste(images.to_pil(strip), (lengths[0] + 2 * GAP, 3))
    pen.text((lengths[0] + BAR // 2 + 4 * GAP, LINE // 2), told[1], "dimgray", font(), anchor="lm")
    return legend


def _bars(classes: Sequence[tuple[str, float]]) -> Image.Image:
    """A bar a class, its name before and its probability behind it."""
    chart = Image.new("RGB", (NAME + BAR + 80, LINE * len(classes)), "white")
    pen = ImageDraw.Draw(chart)
    for number, (name, probability) in enumerate(classes):
        middle = number * LINE + LINE // 2
        pen.text((NAME - 2 * GAP, middle), _short(name), "black", font(), anchor="rm")
        pen.rectangle((NAME, middle - 7, NAME + BAR, middle + 6), GREY)
        pen.rectangle((NAME, middle - 7, NAME + round(BAR * probability), middle + 6), BLUE)
        pen.text((NAME + BAR + 2 * GAP, middle), f"{probability:.1%}", "black", font(), anchor="lm")
    return chart


def _short(name: str) -> str:
    name = printable(name)
    while name and font().getlength(name) > NAME - 4 * GAP:
        name = f"{name[:-2]}…"
    return name
