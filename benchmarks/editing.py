"""Our way to edit beside the release's: held-out pictures, masks of three kinds.

    python benchmarks/editing.py MODEL [--count 100] [--sheet edits.png]

For each way: the error of what should have been kept (root mean square of [0, 1]); the energy of the seam, the mean
square of the steps from a kept pixel to a repainted neighbour, as painted, and once kept pixels are put back; that of
the steps inside, between repainted pixels at most four from the seam; and in how many cases the result changes when
nothing but what is hidden does. What the pictures themselves and the tokenizer alone have stands above. Ends with
status 1 if something leaks through ours.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import Pipeline, data, images
from nextscale.cli import sheet
from nextscale.sampling import editing

WAYS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, all shown": {"leak_free": False},
    "the release's": {"leak_free": False, "copy": True},
}
SHOWN = 10
INSIDE = 4  # pixels from the seam: the side of a token of the presets for 32 pixels


def main() -> int:
    options = _options()
    pipe = Pipeline.load(options.model, precision="fp32")
    pictures, holes, labels = _cases(pipe, options.data, options.count)
    filled = editing.filled(pictures, holes[:, None])
    print(f"{len(pictures)} pictures of {options.data}; energies in thousandths\n")
    print(f"{'':26}{'error of what is kept':>22}{'seam':>8}{'put back':>10}{'inside':>8}{'leaks':>8}")
    for name, painted in (("the pictures", pictures), ("with holes filled", filled)):
        print(f"{name:26}{figures(painted, pictures, holes)}{'-':>8}")
        print(f"{'  encoded and decoded':26}{figures(pipe.reconstruct(painted), pictures, holes)}{'-':>8}")
    results = {name: _all(pipe, pictures, holes, labels, way) for name, way in WAYS.items()}
    other = torch.where(holes[:, None], pictures.roll(1, 0), pictures)
    leaks = {}
    for name, painted in results.items():
        changed = _all(pipe, other, holes, labels, WAYS[name])
        leaks[name] = sum(not torch.equal(one, two) for one, two in zip(painted, changed, strict=True))
        print(f"{name:26}{figures(painted, pictures, holes)}{leaks[name]:8}")
    if options.sheet:
        _sheet(options.sheet, pictures, holes, results)
    return int(leaks["ours"] > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", default="emoji")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--sheet", type=Path)
    return parser.parse_args()


def _cases(pipe: Pipeline, source: str, count: int) -> tuple[Tensor, Tensor, list[int]]:
    """Held-out pictures in [0, 1], spread over the split, a hole each, (N, H, W) bool, and their classes."""
    height, width = pipe.tokenizer.config.height, pipe.tokenizer.config.width
    held_out = data.load(source, height=height, width=width).validation
    signed, labels = held_out.batch(range(0, len(held_out), max(1, len(held_out) // count))[:count])
    holes = [hole(number, height=height, width=width) for number in range(len(signed))]
    return images.to_unit(signed), torch.stack(holes), labels.tolist()


def hole(number: int, *, height: int, width: int) -> Tensor:
    """(H, W) bool: a box, an ellipse, in a fifth to a half of the picture, or all but such a box, in turn."""
    numbers = torch.Generator().manual_seed(number)
    share, down, across, shape = torch.rand(4, generator=numbers).tolist()
    area = 0.2 + 0.3 * share
    tall = min(1.0, math.sqrt(area) * 2 ** (shape - 0.5))
    wide = area / tall
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    v, u = (y - down * (1 - tall)) / tall * 2 - 1, (x - across * (1 - wide)) / wide * 2 - 1
    within = (v.abs() <= 1) & (u.abs() <= 1)
    return (within, v**2 + u**2 <= 1, ~within)[number % 3]


def _all(pipe: Pipeline, pictures: Tensor, holes: Tensor, labels: list[int], way: dict[str, Any]) -> Tensor:
    """One result each, as the decoder paints it; of a number at a time, each with seed 0, 1, 2 ..."""
    parts = range(0, len(pictures), 25)
    done: list[Tensor] = []
    for start in parts:
        part = slice(start, start + 25)
        done.append(pipe.edit(pictures[part], holes[part], labels[part], start, composite=False, **way).images)
    return torch.cat(done)


# ---- figures ---------------------------------------------------------------------------------------------------------


def figures(painted: Tensor, pictures: Tensor, holes: Tensor) -> str:
    """A row of the table."""
    put_back = torch.where(holes[:, None], painted, pictures)
    energies = ((seam(painted, holes), 8), (seam(put_back, holes), 10), (inside(painted, holes), 8))
    told = "".join(f"{1e3 * energy:{width}.1f}" for energy, width in energies)
    return f"{kept_error(painted, pictures, holes):22.3f}{told}"


def kept_error(painted: Tensor, pictures: Tensor, holes: Tensor) -> float:
    """Root mean square of what should have been kept."""
    keep = ~holes[:, None].expand_as(painted)
    return float((painted - pictures)[keep].square().mean().sqrt())


def seam(painted: Tensor, holes: Tensor) -> float:
    """Mean square of the steps over the border, down and across."""
    return _energy(painted, holes.diff(dim=-2), holes.diff(dim=-1))


def inside(painted: Tensor, holes: Tensor) -> float:
    """Mean square of the steps between pixels of the holes that are at most `INSIDE` from the border."""
    near = F.max_pool2d((~holes).float(), 2 * INSIDE + 1, stride=1, padding=INSIDE) > 0
    ring = holes & near
    return _energy(painted, ring[:, 1:] & ring[:, :-1], ring[..., 1:] & ring[..., :-1])


def _energy(painted: Tensor, down: Tensor, across: Tensor) -> float:
    """Mean square of the steps from pixels to those below them and to their right, of those that are marked."""
    steps = [painted.diff(dim=dim)[here[:, None].expand(-1, 3, -1, -1)] for dim, here in ((-2, down), (-1, across))]
    return float(torch.cat(steps).square().mean())


def _sheet(file: Path, pictures: Tensor, holes: Tensor, results: dict[str, Tensor]) -> None:
    """Ten cases: the picture, what is hidden, and each way before and after what is kept is put back."""
    rows: list[sheet.Row] = []
    over = ("picture", "hidden", *(name for way in results for name in (way, "put back")))
    for number in range(0, len(pictures), -(-len(pictures) // SHOWN)):
        row = [pictures[number], pictures[number] * (1 - 0.75 * holes[number].float())]
        for result in results.values():
            row += [result[number], torch.where(holes[number], result[number], pictures[number])]
        rows.append(sheet.Row("", 2 * torch.stack(row) - 1, () if number else over))
    sheet.drawn(rows).quantize(256).save(file, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
