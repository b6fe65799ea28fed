"""Is the kernel distance right, and does its interval hold the truth in 95 of 100 repetitions? A simulation.

    python benchmarks/kernel_distance.py [--repetitions 100]

Features are normal in 64 dimensions, for which the true distance is known in closed form. *Reconstructions* are pairs
that have a share of their numbers in common; a pair is drawn together. *Generation* compares a set that is drawn anew
with a reference that stays, in the proportions of 10,000 pictures and 100 subsets of 1,000, at a tenth of the size.
"Before" is what the package did at first: every vector against every other, its own partner included, and an interval
without the chance of the subsets. Ends with status 1 unless, after, the mean of the values is the truth within four of
its standard errors and 90 to 99 of 100 intervals hold it. Takes about two minutes on one core.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nextscale.evaluation.distances import kernel_distance
from nextscale.evaluation.intervals import Interval, interval, kernel_changes, kernel_interval

D = 64  # dimensions
PAIRS = 200
SET = 1000  # vectors; 100 subsets have a tenth each


class Estimate(NamedTuple):
    """Of one repetition."""

    value: float
    ends: Interval


Estimator = Callable[..., Estimate]  # `before` or `after`


@dataclass(frozen=True)
class Simulated:
    """A row of the table."""

    name: str
    truth: float
    draw: Callable[[int], tuple[Tensor, Tensor]]
    """Seed -> features and others."""
    size: int
    """Vectors in a subset."""
    paired: bool


def chance(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- what is known ---------------------------------------------------------------------------------------------------


# MMD^2 = sum_p C(3, p) |E x^p - E y^p|^2 / D^p, x^p the p-fold outer product;  x ~ N(0, I),  y ~ N(d 1, I)
# E y y^T - E x x^T = d^2 1 1^T;  (E y y y - E x x x)_ijk = d ([i=j] + [j=k] + [i=k]) + d^3
def true_distance(d: float) -> float:
    """The kernel distance of two normal distributions whose means differ by d in each dimension."""
    third = D * (3 * d + d**3) ** 2 + 3 * D * (D - 1) * (d + d**3) ** 2 + D * (D - 1) * (D - 2) * d**6
    return 3 * d**2 + 3 * d**4 + third / D**3


# E_x k(x, y) = a^3 + 3 a |y|^2 / D^2,  a = 1 + d sum(y) / D;  q = d^2
# E k(x, x')  = (1 + q)^3 + 3 (1 + q) q / D + 3 ((1 + q) D + q D (1 + q) + 2 q) / D^2
def true_distance_from(y_MD: Tensor, d: float) -> float:
    """The same from vectors that are given, for x ~ N(d 1, I): what `kernel_distance` is of very many x."""
    q, y_MD = d * d, y_MD.double()
    among_x = (1 + q) ** 3 + 3 * (1 + q) * q / D + 3 * ((1 + q) * D + q * D * (1 + q) + 2 * q) / D**2
    k_MM = (y_MD @ y_MD.T / D + 1) ** 3
    among_y = float(k_MM.sum() - k_MM.trace()) / (len(y_MD) * (len(y_MD) - 1))
    a_M = 1 + d * y_MD.sum(dim=1) / D
    across = float((a_M**3 + 3 * a_M * y_MD.square().sum(dim=1) / D**2).mean())
    return among_x + among_y - 2 * across


def shift_of(distance: float) -> float:
    """d of a `true_distance`, by bisection."""
    low, high = 0.0, 10.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if true_distance(middle) < distance else (low, middle)
    return low


# ---- before and after ------------------------------------------------------------------------------------------------


def before(x_ND: Tensor, y_MD: Tensor, seed: int, *, size: int, paired: bool) -> Estimate:
    """All vectors of one set against all of the other; the interval of the distance of whole sets."""
    value = kernel_distance(x_ND, y_MD, generator=chance(seed), size=size).mean
    low, high = interval(kernel_changes(x_ND, y_MD, paired=paired), generator=chance(seed))
    return Estimate(value, Interval(value + low, value + high))


def after(x_ND: Tensor, y_MD: Tensor, seed: int, *, size: int, paired: bool) -> Estimate:
    """As `nextscale.evaluation.judging` does it."""
    found = kernel_distance(x_ND, y_MD, generator=chance(seed), size=size, paired=paired)
    return Estimate(found.mean, kernel_interval(x_ND, y_MD, found, generator=chance(seed), paired=paired))


# ---- what is simulated -----------------------------------------------------------------------------------------------


def reconstructions(distance: float, common: float, *, count: int = PAIRS) -> Simulated:
    """Pairs whose numbers correlate by `common`; y is x again where that is 1 and the distance 0."""
    d = shift_of(distance)

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        x_ND, noise_ND = torch.randn(2, count, D, generator=chance(seed), dtype=torch.float64)
        return common * x_ND + math.sqrt(1 - common**2) * noise_ND + d, x_ND

    return Simulated(f"reconstructions, correlation {common:g}", distance, draw, size=count, paired=True)


def generation(distance: float, *, count: int = SET) -> Simulated:
    """A set drawn anew, and a reference that stays, in subsets of a tenth."""
    d, y_MD = shift_of(distance), torch.randn(count, D, generator=chance(12345), dtype=torch.float64)

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        return torch.randn(count, D, generator=chance(seed), dtype=torch.float64) + d, y_MD

    name = f"generation, {distance:g} from the law of the reference"
    return Simulated(name, true_distance_from(y_MD, d), draw, size=count // 10, paired=False)


def simulations() -> list[Simulated]:
    """The rows."""
    pairs = ((0.0, 1.0), (0.0005, 0.999), (0.0005, 0.9), (0.0005, 0.5), (0.0, 0.9), (0.01, 0.9))
    return [*(reconstructions(*each) for each in pairs), *(generation(distance) for distance in (0.0, 0.0005, 0.01))]


# ---- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """Of one estimator in all repetitions."""

    mean: float
    deviation: float
    held: int
    """Intervals with the truth inside."""
    of: int

    def agrees(self, truth: float) -> bool:
        """Whether the mean is the truth to four standard errors, and 90 to 99 of 100 intervals hold it, or none has
        any width because there is no chance at all."""
        right = abs(self.mean - truth) <= 4 * self.deviation / math.sqrt(self.of) + 1e-12
        return right and (0.9 * self.of <= self.held <= 0.99 * self.of or self.deviation < 1e-12)


def seen(simulated: Simulated, estimator: Estimator, repetitions: int) -> Seen:
    """Repeat it."""
    how = {"size": simulated.size, "paired": simulated.paired}
    found = [estimator(*simulated.draw(seed), seed, **how) for seed in range(repetitions)]
    values = torch.tensor([each.value for each in found], dtype=torch.float64)
    slack = 1e-12  # of rounding, where the distance is 0 by itself
    held = sum(each.ends.low - slack <= simulated.truth <= each.ends.high + slack for each in found)
    return Seen(float(values.mean()), float(values.std()), held, repetitions)


def row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print the table; status 1 where a law is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=100, help="of each row (default: 100)")
    repetitions = parser.parse_args().repetitions
    print(row(("sets", "truth", "before", "held", "after", "held")), row(["---"] * 6), sep="\n", flush=True)
    broken = 0
    for simulated in simulations():
        found = [seen(simulated, each, repetitions) for each in (before, after)]
        cells = [f"{each.mean:.6f} ± {each.deviation:.6f} | {each.held} of {each.of}" for each in found]
        print(row((simulated.name, f"{simulated.truth:.6f}", *cells)), flush=True)
        broken += not found[1].agrees(simulated.truth)
    print(f"{broken} rows break the law")
    sys.exit(broken > 0)


if __name__ == "__main__":
    main()
