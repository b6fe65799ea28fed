"""Draw the figures of the documentation: geometry, mask and schedules, and what the default model paints.

    python scripts/draw_figures.py [--out docs/figures] [--only NAME ...]

In the pyramid the pixels themselves stand for the features, and every code is exact. Pictures of the default model are
not picked: seeds count up from 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from nextscale import Pipeline, Scales, images, presets
from nextscale.cli.sheet import Row, drawn, scale_names
from nextscale.data import emoji
from nextscale.sampling import guidance

SUBJECT, SIDE = "parrot (fluent)", 64
PYRAMID = Scales([1, 2, 4, 8, 16, 32])
PROMPTS = ("cat face", "red heart", "rocket", "mushroom", "house", "soccer ball", "rainbow", "hamburger")
UNDRAWN = ("purple mushroom", "cat in a box", "purple house", "black apple", "green star face", "purple apple")
STYLES = ("fluent flat", "noto", "twemoji", "emojione", "icon park", "flat color")
INK, ACCENT, COLOURS = "#333333", "#3f51b5", ("#3f51b5", "#e4572e", "#2a9d8f", "#8d6a9f")
STYLE = {"font.size": 10, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "figure.facecolor": "white"}


def subject() -> Tensor:
    """One of the embedded pictures, (1, 3, H, W) in [-1, 1]."""
    entries = emoji.entries()
    place = next(index for index, entry in enumerate(entries) if entry.name == SUBJECT)
    decoded = images.from_uint8(emoji.decoded(height=SIDE, width=SIDE)[place : place + 1])
    return images.center_crop(decoded, height=SIDE, width=SIDE)


def pooled(picture_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Each cell the mean of its area, as the quantizer looks at features."""
    return F.interpolate(picture_BCHW, size, mode="area")


def enlarged(map_BChw: Tensor) -> Tensor:
    """As the quantizer spreads codes over the canvas."""
    return F.interpolate(map_BChw, (SIDE, SIDE), mode="bicubic")


def pixels(picture_1CHW: Tensor) -> np.ndarray:
    """(H, W, 3) in [0, 1], for matplotlib."""
    return images.to_unit(picture_1CHW[0]).clamp(0, 1).movedim(0, 2).numpy()


# ---- the figures -----------------------------------------------------------------------------------------------------


def scales() -> Figure:
    """The token maps of a preset: how many cells each has, and how much of a picture so many can say."""
    maps, picture = presets.get("emoji-64").tokenizer.scales, subject()
    figure, axes = plt.subplots(1, len(maps) + 1, figsize=(9, 1.9))
    for k, (axis, (height, width)) in enumerate(zip(axes, maps.sizes, strict=False)):
        axis.imshow(pixels(pooled(picture, (height, width))), extent=(0, width, height, 0))
        axis.set_xticks(range(width + 1))
        axis.set_yticks(range(height + 1))
        axis.grid(color="#bbbbbb", linewidth=0.6)
        axis.set_title(f"scale {k + 1}\n{height}×{width}", fontsize=9)
        axis.set_xlabel(f"{height * width} token{'s' if height * width > 1 else ''}", fontsize=9)
    axes[-1].imshow(pixels(picture))
    axes[-1].set_title("the picture\n", fontsize=9)
    axes[-1].set_xlabel(f"{maps.total} tokens in all", fontsize=9)
    _bare(axes)
    return figure


def pyramid() -> Figure:
    """Algorithm 1: what is left, the map of the scale, and the canvas, whose columns are a picture growing."""
    picture = subject()
    canvas = torch.zeros_like(picture)
    names = ("what is left", "the scale's map", "the canvas")
    figure, axes = plt.subplots(3, len(PYRAMID), figsize=(9, 4.9))
    for k, size in enumerate(PYRAMID.sizes):
        left = picture - canvas
        codes = pooled(left, size)
        canvas = canvas + enlarged(codes)
        for axis, shown in zip(axes[:, k], (left, codes, canvas), strict=True):
            axis.imshow(pixels(shown), interpolation="nearest")
        axes[0, k].set_title(f"scale {k + 1}: {size[0]}×{size[1]}", fontsize=9)
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name, fontsize=9)
    _bare(axes.flat)
    return figure


def mask() -> Figure:
    """Which tokens attend to which."""
    maps = Scales([1, 2, 3, 4])
    figure, axis = plt.subplots(figsize=(4.6, 4.6))
    axis.imshow(
        maps.block_causal_mask().numpy(),
        cmap=matplotlib.colors.ListedColormap(["white", "#c5cae9"]),
        interpolation="nearest",
    )
    edges = [*maps.offsets, maps.total]
    middles = [(start + stop - 1) / 2 for start, stop in pairwise(edges)]
    names = [f"{height}×{width}" for height, width in maps.sizes]
    for edge in edges:
        axis.axhline(edge - 0.5, color=ACCENT, linewidth=0.8)
        axis.axvline(edge - 0.5, color=ACCENT, linewidth=0.8)
    axis.set_xticks(middles, names)
    axis.set_yticks(middles, names)
    axis.set_xlabel("tokens that are looked at")
    axis.set_ylabel("tokens that look")
    axis.tick_params(length=0, labelsize=8)
    return figure


def guided() -> Figure:
    """The weight of guidance at each scale, and what it does to one token's probabilities."""
    count = 10
    schedules = {
        "linear": guidance.linear_guidance(1.5),
        "constant": guidance.constant_guidance(1.5),
        "cosine": guidance.cosine_guidance(1.5),
        "interval 4 … 7": guidance.interval_guidance(1.5, first=3, last=6),
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(1, 1.2))
    for colour, (name, schedule) in zip(COLOURS, schedules.items(), strict=True):
        weights = guidance.weights_of(schedule, count)
        left.plot(range(1, count + 1), weights, ".-", color=colour, label=name)
    left.set_xlabel("scale")
    left.set_ylabel("weight t")
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.45, 1.22), ncols=4, columnspacing=0.8, handlelength=1)
    conditional, unconditional = torch.tensor([2.0, 1.7, 0.6, 0.2, -0.4]), torch.tensor([1.0, 1.9, 0.8, 0.4, 0.0])
    for number, (colour, t) in enumerate(zip(COLOURS, (0.0, 1.5, 4.0), strict=False)):
        chances = ((1 + t) * conditional - t * unconditional).softmax(0).tolist()
        places = [code + 0.27 * (number - 1) for code in range(len(chances))]
        right.bar(places, chances, width=0.25, color=colour, label=f"t = {t:g}")
    right.set_xlabel("code")
    right.set_ylabel("probability")
    right.set_xticks(range(5), "ABCDE")
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


# ---- what the default model paints -----------------------------------------------------------------------------------


def growing(pipe: Pipeline) -> Image.Image:
    """Pictures after each scale, a row each."""
    over = scale_names(pipe.transformer.config.scales)
    asked = {"labels": list(STYLES[:3]), "prompts": list(PROMPTS[:3]), "seeds": 0}
    steps = torch.stack([images.from_unit(step.preview()) for step in pipe.stream(**asked)], dim=1)
    return drawn([Row(prompt, row, over) for prompt, row in zip(PROMPTS, steps, strict=False)])


def sheet(pipe: Pipeline, prompts: Sequence[str], styles: Sequence[str], seeds: Sequence[int]) -> Image.Image:
    """A column a prompt; a row a style and seed."""
    rows = []
    for style in styles:
        for seed in seeds:
            painted = pipe.generate(style, [seed] * len(prompts), prompts=[*prompts]).images
            name = style if len(seeds) == 1 else f"{style}, seed {seed}"
            rows.append(Row(name, images.from_unit(painted), () if rows else prompts))
    return drawn(rows)


def paintings() -> dict[str, Callable[[Pipeline], Image.Image]]:
    """Those of the default model by name."""
    return {
        "growing": growing,
        "prompts": lambda pipe: sheet(pipe, PROMPTS, STYLES, [0]),
        "undrawn": lambda pipe: sheet(pipe, UNDRAWN, STYLES, [0]),
        "seeds": lambda pipe: sheet(pipe, PROMPTS, STYLES[:2], range(4)),
    }


def _bare(axes: Iterable[Axes]) -> None:
    """Pictures without ticks and frames."""
    for axis in axes:
        axis.tick_params(length=0, labelleft=False, labelbottom=False)
        axis.spines[:].set_visible(False)


PLOTS: dict[str, Callable[[], Figure]] = {"scales": scales, "pyramid": pyramid, "mask": mask, "guidance": guided}


def write(out: Path, only: Collection[str] = ()) -> list[Path]:
    """All of them, or some; their paths."""
    out.mkdir(parents=True, exist_ok=True)
    names = [name for name in (*PLOTS, *paintings()) if not only or name in only]
    with plt.rc_context(STYLE):
        for name in filter(PLOTS.__contains__, names):
            figure = PLOTS[name]()
            figure.tight_layout(pad=0.5, w_pad=0.6)
            figure.savefig(out / f"{name}.png", dpi=110, metadata={"Software": None})
            plt.close(figure)
    for name in filter(paintings().__contains__, names):
        paintings()[name](Pipeline.load()).save(out / f"{name}.webp", quality=85, method=6)
    return [out / f"{name}.{'png' if name in PLOTS else 'webp'}" for name in names]


def run() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "figures")
    options.add_argument("--only", nargs="*", default=(), choices=[*PLOTS, *paintings()], help="some of them")
    given = options.parse_args()
    for path in write(given.out, given.only):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run()
