"""Draw the figures of docs/concepts.md with the package's own geometry, mask and schedules.

    python scripts/draw_figures.py [--out docs/figures] [--model runs/demo --label 3]

No trained model is needed: in the pyramid the pixels themselves stand for the features, and every code is exact. With
`--model`, growing.png shows a picture that this model paints.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
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
from torch import Tensor

from nextscale import Pipeline, Scales, images, presets
from nextscale.data import emoji
from nextscale.sampling import guidance

SUBJECT, SIDE = "parrot (fluent)", 64
PYRAMID = Scales([1, 2, 4, 8, 16, 32])
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


def growing(pipe: Pipeline, label: int | str) -> Figure:
    """What the stream of a model shows, scale by scale."""
    steps = [step.preview() for step in pipe.stream(label, seeds=0)]
    figure, axes = plt.subplots(1, len(steps), figsize=(9, 1.9))
    for k, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        axis.imshow(step[0].movedim(0, 2).numpy(), interpolation="nearest")
        axis.set_title(f"{k + 1}", fontsize=9)
    _bare(axes)
    return figure


def _bare(axes: Iterable[Axes]) -> None:
    """Pictures without ticks and frames."""
    for axis in axes:
        axis.tick_params(length=0, labelleft=False, labelbottom=False)
        axis.spines[:].set_visible(False)


def write(out: Path, model: str | None = None, label: int | str = 0) -> list[Path]:
    """All of them; their paths."""
    out.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        figures = {"scales": scales(), "pyramid": pyramid(), "mask": mask(), "guidance": guided()}
        if model is not None:
            figures["growing"] = growing(Pipeline.load(model), label)
    for name, figure in figures.items():
        figure.tight_layout(pad=0.5, w_pad=0.6)
        figure.savefig(out / f"{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)
    return [out / f"{name}.png" for name in figures]


def run() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "figures")
    options.add_argument("--model", help="also draw growing.png, a picture that this model paints")
    options.add_argument("--label", default=0, help="its class, by name or number")
    given = options.parse_args()
    label = int(given.label) if str(given.label).isdigit() else given.label
    for path in write(given.out, given.model, label):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run()
