"""How wide the interval of a Fréchet distance is, beside how far the distance moves when other pictures are drawn.

    python benchmarks/frechet_interval.py [--repetitions 300] [--dimensions 64]

Features are normal in so many dimensions, sets of N are compared with one large reference. Printed is the width of the
interval over 2 x 1.96 standard deviations of the distances of many sets: 1 is right, above it is too wide. "Alike" are
sets of the reference's own law, "apart" such whose mean is moved by half a standard deviation in each dimension; their
spreads are equal in all dimensions or fall over two orders of magnitude. Ends with status 1 when an interval is too
narrow, by more than chance of so many repetitions. Takes about a minute on one core.
"""

from __future__ import annotations

import argparse
import math
import sys

import torch
from torch import Tensor

from nextscale.evaluation.intervals import frechet_changes, interval
from nextscale.evaluation.statistics import Gaussian, RunningGaussian, frechet_distance

SHARES = (0.25, 0.5, 1, 2, 5, 20)  # N / D
REFERENCE = 4000  # pictures
WIDTHS = 20  # intervals whose widths are averaged


def gaussian(features_ND: Tensor) -> Gaussian:
    running = RunningGaussian(features_ND.shape[1])
    running.update(features_ND)
    return running.gaussian()


def ratio(count: int, scales_D: Tensor, *, shift: float, repetitions: int) -> float:
    """Width of the interval over the width that the distances themselves have."""

    def draw(number: int, seed: int) -> Tensor:
        return torch.randn(number, len(scales_D), generator=torch.Generator().manual_seed(seed)) * scales_D

    reference = gaussian(draw(REFERENCE, 1))
    sets = [draw(count, 2 + seed) + shift * scales_D for seed in range(repetitions)]
    distances = torch.tensor([frechet_distance(gaussian(each), reference) for each in sets])
    generator = torch.Generator().manual_seed(0)
    ends = [interval(frechet_changes(each, reference), generator=generator) for each in sets[:WIDTHS]]
    width = sum(high - low for low, high in ends) / WIDTHS
    return width / (2 * 1.96 * float(distances.std()))


def main() -> None:
    """Print the table; status 1 where an interval is too narrow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=300, help="sets of each cell (default: 300)")
    parser.add_argument("--dimensions", type=int, default=64, help="D (default: 64)")
    asked = parser.parse_args()
    even = torch.ones(asked.dimensions)
    falling = torch.logspace(0, -2, asked.dimensions)
    print("| N / D | alike, even | alike, falling | apart, even | apart, falling |\n| --- | --- | --- | --- | --- |")
    least = math.inf
    for share in SHARES:
        cells = [
            ratio(round(share * asked.dimensions), scales_D, shift=shift, repetitions=asked.repetitions)
            for shift in (0.0, 0.5)
            for scales_D in (even, falling)
        ]
        least = min(least, *cells)
        print(f"| {share:g} | {' | '.join(f'{cell:.2f}' for cell in cells)} |", flush=True)
    sys.exit(least < 1 - 4 / math.sqrt(2 * asked.repetitions))


if __name__ == "__main__":
    main()
