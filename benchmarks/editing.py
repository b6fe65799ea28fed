"""Our way to edit beside the release's: held-out pictures, masks of three kinds, before kept pixels are put back.

    python benchmarks/editing.py MODEL [--count 100] [--sheet edits.png]

For each way: the error of what should have been kept (root mean square of [0, 1]), the energy of the seam (mean square
of the steps from a kept pixel to a repainted neighbour; that of the pictures themselves stands beside it), and in how
many cases the result changes when nothing but what is hidden does. Ends with status 1 if something leaks through ours.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nextscale import Pipeline, data, images

WAYS: dict[str, dict[str, bool]] = {
    "ours": {},
    "ours, hidden part shown": {"leak_free": False},
    "the release's": {"leak_free": False, "copy": True},
}
SHOWN = 10


def main() -> int:
    options = _options()
    pipe = Pipeline.load(options.model, precision="fp32")
    size = pipe.tokenizer.config
    held_out = data.load(options.data, height=size.height, width=size.width).validation
    indices = list(range(0, len(held_out), max(1, len(held_out) // options.count)))[: options.count]
    signed, numbers = held_out.batch(indices)
    pictures, labels = images.to_unit(signed), numbers.tolist()
    masks = torch.stack([mask(number, size.height, size.width) for number in range(len(pictures))])
    results = {name: _all(pipe, pictures, masks, labels, way) for name, way in WAYS.items()}
    other = torch.where(masks[:, None], pictures.flip(0), pictures)
    changed = {name: _all(pipe, other, masks, labels, way) for name, way in WAYS.items()}
    print(
        f"{len(pictures)} pictures of {options.data}, seam energy of their own {1e3 * seam(pictures, masks):.2f}e-3\n"
    )
    print(f"{'way':26}{'error of what is kept':>22}{'seam energy':>14}{'leaks':>8}")
    for name, result in results.items():
        leaks = sum(not torch.equal(one, two) for one, two in zip(result, changed[name], strict=True))
        print(f"{name:26}{kept_error(result, pictures, masks):22.4f}{1e3 * seam(result, masks):11.2f}e-3{leaks:8}")
    if options.sheet:
        _sheet(options.sheet, pictures, masks, results)
    return int(not torch.equal(results["ours"], changed["ours"]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", default="emoji")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--sheet", type=Path)
    return parser.parse_args()


def _all(pipe: Pipeline, pictures: Tensor, masks: Tensor, labels: list[int], way: dict[str, bool]) -> Tensor:
    """One result each, as the decoder paints it; of a number at a time, each with seed 0, 1, 2 ..."""
    parts = range(0, len(pictures), 25)
    done: list[Tensor] = []
    for start in parts:
        part = slice(start, start + 25)
        done.append(pipe.edit(pictures[part], masks[part], labels[part], start, composite=False, **way).images)
    return torch.cat(done)


# ---- masks -----------------------------------------------------------------------------------------------------------


def mask(number: int, height: int, width: int) -> Tensor:
    """(H, W) bool: a box, an ellipse, or all but a box, in turn; a fifth to a half of the picture."""
    numbers = torch.Generator().manual_seed(number)
    share, down, across, shape = torch.rand(4, generator=numbers).tolist()
    area = 0.2 + 0.3 * share
    tall = min(1.0, math.sqrt(area) * 2 ** (shape - 0.5))
    wide = area / tall
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    v, u = (y - down * (1 - tall)) / tall * 2 - 1, (x - across * (1 - wide)) / wide * 2 - 1
    box = (v.abs() <= 1) & (u.abs() <= 1)
    kinds: list[Callable[[], Tensor]] = [lambda: box, lambda: v**2 + u**2 <= 1, lambda: ~box]
    return kinds[number % 3]()


# ---- figures ---------------------------------------------------------------------------------------------------------


def kept_error(painted: Tensor, pictures: Tensor, masks: Tensor) -> float:
    """Root mean square of what should have been kept."""
    keep = ~masks[:, None].expand_as(painted)
    return float((painted - pictures)[keep].square().mean().sqrt())


def seam(painted: Tensor, masks: Tensor) -> float:
    """Mean square of the steps over the border, down and across."""
    steps: list[Tensor] = []
    for dim in (-1, -2):
        crosses = masks.diff(dim=dim)[:, None].expand(-1, 3, -1, -1)
        steps.append(painted.diff(dim=dim)[crosses])
    return float(torch.cat(steps).square().mean())


def _sheet(file: Path, pictures: Tensor, masks: Tensor, results: dict[str, Tensor]) -> None:
    """Ten rows: the picture, what is hidden, and each way before and after what is kept is put back."""
    rows: list[Tensor] = []
    for number in range(min(SHOWN, len(pictures))):
        hidden = pictures[number] * (1 - 0.75 * masks[number].float())
        rows += [pictures[number], hidden]
        for result in results.values():
            rows += [result[number], torch.where(masks[number], result[number], pictures[number])]
    sheet = images.grid(torch.stack(rows), columns=2 + 2 * len(results))
    images.save(file, images.from_unit(sheet).repeat_interleave(3, -1).repeat_interleave(3, -2))


if __name__ == "__main__":
    sys.exit(main())
