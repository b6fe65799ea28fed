"""Power laws of the loss over a model's size, or over the compute that it took: fits, intervals, predictions.

    L(N) = L_inf + (beta N)^alpha        alpha < 0; Tian et al. 2024, section 4.1, equations 5 and 6

L_inf is the irreducible loss, given or fitted. This module sees points only; the caller reads and shows them. Shapes:
n points, B resamples, G trial exponents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextscale.errors import InputError
from nextscale.evaluation.intervals import Interval

BILLION, PETA = 1e9, 1e15  # the paper's units of size and compute
RESAMPLES = 1000
STEEPEST, FLATTEST = -3.0, -0.005  # exponents that are tried
GRID, ZOOMS = 100, 5  # of them at a time; how often the grid is laid anew around the best
LARGEST = 700.0  # exponents that floats hold
WIDE = 10.0  # smaller spans of sizes say little of an exponent


@dataclass(frozen=True)
class Law:
    """L(x) = irreducible + (beta x)^alpha."""

    alpha: float
    log_beta: float
    irreducible: float

    @property
    def beta(self) -> float:
        """Of a flat curve it may be any number; at most e^700, the largest that can be told."""
        return math.exp(max(-LARGEST, min(LARGEST, self.log_beta)))

    def __call__(self, x: float) -> float:
        """The loss at a size, in the unit of the fit's."""
        return self.irreducible + math.exp(min(LARGEST, self.alpha * (self.log_beta + math.log(x))))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted law with its intervals, and warnings where the points do not support it."""

    law: Law
    given: bool
    """Whether the irreducible loss was given, not fitted."""
    pearson: float
    """Correlation of log x and log(L - irreducible)."""
    deviation: float
    """Root mean square of L / L(x) - 1 over the points, with the degrees of freedom counted."""
    intervals: dict[str, Interval]
    """95 %, of alpha, beta and, where it was fitted, irreducible."""
    warnings: tuple[str, ...]
    """A sentence for each reason why the points do not support the law."""
    draws: tuple[Law, ...]
    """Laws of resampled points."""
    errors: tuple[float, ...]
    """L / L(x) - 1 of the points, scaled up for the degrees of freedom."""

    def predict(self, x: float) -> tuple[float, Interval]:
        """The loss at another size, and the 95 % interval of a single model's loss there."""
        numbers = torch.Generator().manual_seed(0)
        losses = torch.tensor([law(x) for law in self.draws], dtype=torch.float64)
        own = torch.tensor(self.errors, dtype=torch.float64)
        return self.law(x), _middle(losses * (1 + own[torch.randint(len(own), losses.shape, generator=numbers)]))


def fit(
    x: Sequence[float], losses: Sequence[float], *, irreducible: float | None = None, resamples: int = RESAMPLES
) -> Fit:
    """The law of points (x, L), with bootstrapped intervals of its relative errors.

    With the irreducible loss given, a straight line through the logarithms, as in the paper; otherwise least squares of
    relative errors.

    Arguments:
        x: sizes, in any unit; a size may occur several times.
        losses: one per size, more than 0.
        irreducible: L_inf; None fits it, to 0 or more.

    Raises `InputError` for fewer than three sizes, four where the irreducible loss is to be found too, for values that
    are not finite and positive, and for losses that are not above the irreducible one.
    """
    x_n, losses_n = (torch.tensor(values, dtype=torch.float64) for values in (x, losses))
    _check(x_n, losses_n, irreducible)
    unit = float(x_n.log().mean().exp())  # so that powers are about 1
    (law,) = _laws(x_n / unit, losses_n[None], irreducible)
    freedom = len(x_n) - (2 if irreducible is not None else 3)
    expected_n = torch.tensor([law(each) for each in (x_n / unit).tolist()], dtype=torch.float64)
    errors_n = (losses_n / expected_n - 1) * math.sqrt(len(x_n) / max(freedom, 1))
    numbers = torch.Generator().manual_seed(0)
    chosen_Bn = errors_n[torch.randint(len(x_n), (resamples, len(x_n)), generator=numbers)]
    drawn_Bn = expected_n * (1 + chosen_Bn)
    if irreducible is not None:
        drawn_Bn = drawn_Bn.clamp(min=irreducible * (1 + 1e-9) + 1e-12)
    draws = [_in_units(each, unit) for each in _laws(x_n / unit, drawn_Bn, irreducible)]
    law = _in_units(law, unit)
    names = ("alpha", "beta") if irreducible is not None else ("alpha", "beta", "irreducible")
    columns = {name: torch.tensor([getattr(each, name) for each in draws], dtype=torch.float64) for name in names}
    intervals = {name: _middle(values_B) for name, values_B in columns.items()}
    deviation = float(errors_n.square().mean().sqrt())
    return Fit(
        law=law,
        given=irreducible is not None,
        pearson=_pearson(x_n.log(), (losses_n - law.irreducible).clamp(min=1e-12).log()),
        deviation=deviation,
        intervals=intervals,
        warnings=tuple(_warnings(x_n, losses_n, law, intervals, deviation)),
        draws=tuple(draws),
        errors=tuple(errors_n.tolist()),
    )


def frontier(compute: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Indices of the points with a lower loss than every cheaper one, from the cheapest on."""
    best, kept = math.inf, []
    for place in sorted(range(len(compute)), key=lambda each: (compute[each], losses[each])):
        if losses[place] < best:
            best = losses[place]
            kept.append(place)
    return kept


# ---- least squares ---------------------------------------------------------------------------------------------------


def _laws(x_n: Tensor, losses_Bn: Tensor, irreducible: float | None) -> list[Law]:
    """Of each row of losses, x about 1."""
    found = _lines(x_n, losses_Bn - irreducible) if irreducible is not None else _curves(x_n, losses_Bn)
    alpha_B, factor_B, floor_B = found[0], found[1], found[2] if irreducible is None else [irreducible] * len(found[0])
    return [
        Law(float(alpha), math.log(float(factor)) / float(alpha), float(floor))
        for alpha, factor, floor in zip(alpha_B, factor_B, floor_B, strict=True)
    ]


# log (L - L_inf) = log f + alpha log x
def _lines(x_n: Tensor, reducible_Bn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Straight lines through logarithms, as the paper fits: exponents (B,), factors (B,), and zeros."""
    across_n, up_Bn = x_n.log(), reducible_Bn.log()
    centred_n, mean_B = across_n - across_n.mean(), up_Bn.mean(dim=1)
    alpha_B = (up_Bn @ centred_n) / centred_n.square().sum()
    alpha_B = alpha_B.where(alpha_B.abs() > 1e-9, torch.full_like(alpha_B, -1e-9))
    return alpha_B, (mean_B - alpha_B * across_n.mean()).exp(), torch.zeros_like(alpha_B)


# for each alpha the best of sum_i ((L_inf + f x_i^alpha) / L_i - 1)^2 is linear in L_inf >= 0 and f >= 0
def _curves(x_n: Tensor, losses_Bn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Exponents, factors and irreducible losses, (B,) each: by a grid of exponents, laid anew around the best."""
    low_B = torch.full((len(losses_Bn),), math.log(-FLATTEST), dtype=torch.float64)
    high_B = torch.full_like(low_B, math.log(-STEEPEST))
    for _ in range(1 + ZOOMS):
        steps_G = torch.linspace(0, 1, GRID, dtype=torch.float64)
        logs_BG = low_B[:, None] + (high_B - low_B)[:, None] * steps_G
        errors_BG, factors_BG, floors_BG = _linear(x_n, losses_Bn, -logs_BG.exp())
        best_B1 = errors_BG.argmin(dim=1, keepdim=True)
        middle_B, reach_B = logs_BG.gather(1, best_B1).squeeze(1), (high_B - low_B) / GRID
        low_B = (middle_B - 2 * reach_B).clamp(min=math.log(-FLATTEST))
        high_B = (middle_B + 2 * reach_B).clamp(max=math.log(-STEEPEST))
    factor_B, floor_B = (each.gather(1, best_B1).squeeze(1) for each in (factors_BG, floors_BG))
    return -middle_B.exp(), factor_B.clamp(min=1e-300), floor_B


def _linear(x_n: Tensor, losses_Bn: Tensor, alpha_BG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared errors, factors and irreducible losses, (B, G) each."""
    one_B1n = (1 / losses_Bn)[:, None]
    power_BGn = (alpha_BG[..., None] * x_n.log()).exp() * one_B1n
    aa, ab, bb = one_B1n.square().sum(-1), (one_B1n * power_BGn).sum(-1), power_BGn.square().sum(-1)
    ya, yb, count = one_B1n.sum(-1), power_BGn.sum(-1), losses_Bn.shape[1]
    below = (aa * bb - ab.square()).clamp(min=1e-300)
    floor, factor = (ya * bb - yb * ab) / below, (yb * aa - ya * ab) / below
    floor, factor = torch.where(floor < 0, 0, floor), torch.where(floor < 0, yb / bb, factor)
    floor, factor = torch.where(factor < 0, ya / aa, floor), factor.clamp(min=0)
    squares = count + floor.square() * aa + factor.square() * bb + 2 * floor * factor * ab
    return squares - 2 * floor * ya - 2 * factor * yb, factor, floor


def _in_units(law: Law, unit: float) -> Law:
    """The same law of x where it was fitted of x / unit."""
    return Law(law.alpha, law.log_beta - math.log(unit), law.irreducible)


# ---- what is said of it ----------------------------------------------------------------------------------------------


def _check(x_n: Tensor, losses_n: Tensor, irreducible: float | None) -> None:
    if len(x_n) != len(losses_n):
        raise InputError(f"law: expected a loss for each size, got {len(losses_n)} for {len(x_n)}")
    for name, values in (("sizes", x_n), ("losses", losses_n)):
        if not (values.isfinite() & (values > 0)).all():
            raise InputError(f"law: expected {name} that are finite and more than 0, got others")
    sizes, least = len(x_n.unique()), 4 if irreducible is None else 3
    if sizes < least:
        more = ", or 3 with the irreducible loss given" if irreducible is None else ""
        raise InputError(f"law: expected points of at least {least} sizes{more}, got {sizes}")
    if irreducible is not None and not 0 <= irreducible < float(losses_n.min()):
        raise InputError(
            f"law: expected an irreducible loss of 0 or more, below all losses ({float(losses_n.min()):g}), "
            f"got {irreducible:g}"
        )


def _warnings(x_n: Tensor, losses_n: Tensor, law: Law, intervals: dict[str, Interval], deviation: float) -> list[str]:
    told = []
    if (span := float(x_n.max() / x_n.min())) < WIDE:
        told.append(
            f"the largest size is {span:.1f} times the smallest: less than {WIDE:g} hardly constrains an exponent"
        )
    fallen = law(float(x_n.min())) - law(float(x_n.max()))
    flattest = 1.01 * FLATTEST if "irreducible" in intervals else 0.0
    if intervals["alpha"].high >= flattest or fallen < 2 * deviation * float(losses_n.mean()):
        told.append("the curve is flat: the loss does not fall with size by more than its scatter")
    elif "irreducible" in intervals:
        low, high = intervals["irreducible"]
        if high - low > 0.5 * float(losses_n.min()):
            told.append(
                f"the irreducible loss is not determined, {low:.3g} to {high:.3g}, and the exponent depends on it: "
                "give one that is known, or add sizes"
            )
    return told


def _pearson(x_n: Tensor, y_n: Tensor) -> float:
    """Correlation; 0 where either does not vary."""
    x_n, y_n = x_n - x_n.mean(), y_n - y_n.mean()
    below = float(x_n.norm() * y_n.norm())
    return float(x_n @ y_n) / below if below else 0.0


def _middle(values_B: Tensor) -> Interval:
    """Where 95 % of them are."""
    low, high = values_B.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(low, high)
