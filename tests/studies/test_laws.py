"""Laws of fits of power laws: what is put in comes out, and what points cannot tell is said."""

from __future__ import annotations

import math

import pytest
import torch

from nextscale.errors import InputError
from nextscale.studies.laws import Law, fit, frontier

SIZES = [0.018 * (2.0 / 0.018) ** (place / 11) for place in range(12)]  # billions: the paper's smallest to largest
PAPER = {  # alpha, beta, irreducible
    "loss of the last scale": (-0.23, 2.0, 4.5),
    "loss of all": (-0.20, 2.5, 5.0),
    "errors of the last scale": (-0.016, 4.9e2, 0.0),
    "errors of all": (-0.010, 6.5e2, 0.0),
}


def points(alpha: float, beta: float, irreducible: float, noise: float, seed: int = 0) -> list[float]:
    numbers = torch.Generator().manual_seed(seed)
    scatter = 1 + noise * torch.randn(len(SIZES), generator=numbers, dtype=torch.float64)
    law = Law(alpha, math.log(beta), irreducible)
    return [law(size) * each for size, each in zip(SIZES, scatter.tolist(), strict=True)]


@pytest.mark.parametrize("name", PAPER)
def test_the_constants_of_the_paper_come_out_of_its_points(name: str) -> None:
    """With the irreducible loss given: exactly without noise, and within the interval with 0.1 % of it."""
    alpha, beta, floor = PAPER[name]
    exact = fit(SIZES, points(alpha, beta, floor, 0.0), irreducible=floor, resamples=10)
    assert exact.law.alpha == pytest.approx(alpha)
    assert exact.law.beta == pytest.approx(beta)
    assert exact.pearson == pytest.approx(-1)
    noisy = fit(SIZES, points(alpha, beta, floor, 0.0003), irreducible=floor)
    low, high = noisy.intervals["alpha"]
    assert low <= alpha <= high
    assert not noisy.warnings


@pytest.mark.parametrize("name", ["loss of the last scale", "loss of all"])
def test_the_irreducible_loss_is_found_too(name: str) -> None:
    """By the curve of the points alone; the interval is wider for it."""
    alpha, beta, floor = PAPER[name]
    exact = fit(SIZES, points(alpha, beta, floor, 0.0), resamples=10)
    assert (exact.law.alpha, exact.law.beta) == (pytest.approx(alpha, rel=1e-4), pytest.approx(beta, rel=1e-3))
    assert exact.law.irreducible == pytest.approx(floor, rel=1e-4)
    losses = points(alpha, beta, floor, 0.001)
    found, given = fit(SIZES, losses), fit(SIZES, losses, irreducible=floor)
    assert found.intervals["irreducible"].low <= floor <= found.intervals["irreducible"].high
    assert found.intervals["alpha"].low <= given.intervals["alpha"].low
    assert found.intervals["alpha"].high >= given.intervals["alpha"].high


def test_units_do_not_matter() -> None:
    """In parameters, beta is a billionth of what it is in billions; the rest is the same."""
    losses = points(-0.23, 2.0, 4.5, 0.001)
    ours = fit(SIZES, losses, resamples=50)
    theirs = fit([1e9 * size for size in SIZES], losses, resamples=50)
    assert theirs.law.alpha == pytest.approx(ours.law.alpha, rel=1e-5)
    assert 1e9 * theirs.law.beta == pytest.approx(ours.law.beta, rel=1e-4)
    assert theirs.predict(4e9)[0] == pytest.approx(ours.predict(4.0)[0])


@pytest.mark.slow
@pytest.mark.parametrize(("irreducible", "least"), [(4.5, 32), (None, 32)])
def test_intervals_hold_the_truth_as_often_as_is_said(irreducible: float | None, least: int) -> None:
    """In about nine of ten experiments with 0.2 % of noise, exponents and predictions of twice the size alike."""
    truth, hits, told = Law(-0.23, math.log(2.0), 4.5)(4.0), 0, 0
    for seed in range(40):
        found = fit(SIZES, points(-0.23, 2.0, 4.5, 0.002, seed), irreducible=irreducible, resamples=300)
        hits += found.intervals["alpha"].low <= -0.23 <= found.intervals["alpha"].high
        _, (low, high) = found.predict(4.0)
        told += low <= truth <= high
    assert hits >= least
    assert told >= least


def test_what_points_cannot_tell_is_said() -> None:
    """A flat curve, sizes that are close to each other, an irreducible loss that is left open."""
    numbers = torch.Generator().manual_seed(0)
    flat = (5 + 0.02 * torch.randn(12, generator=numbers, dtype=torch.float64)).tolist()
    assert any("flat" in warning for warning in fit(SIZES, flat).warnings)
    close = [1.0, 1.2, 1.5, 2.0]
    assert "2.0 times the smallest" in fit(close, [6.0, 5.5, 5.0, 4.5], irreducible=0).warnings[0]
    open_ended = [3.0 * size**-0.05 for size in SIZES[::3]]
    scattered = [loss * each for loss, each in zip(open_ended, [1.01, 0.99, 1.01, 0.99], strict=True)]
    assert any("not determined" in warning for warning in fit(SIZES[::3], scattered).warnings)


@pytest.mark.parametrize(
    ("x", "losses", "irreducible", "told"),
    [
        (
            [1, 2, 3],
            [3, 2, 1],
            None,
            "expected points of at least 4 sizes, or 3 with the irreducible loss given, got 3",
        ),
        ([1, 2, 2], [3, 2, 1], 0.5, "expected points of at least 3 sizes, got 2"),
        ([1, 2, 3, 4], [3, 2, 1], None, "expected a loss for each size, got 3 for 4"),
        ([1, 2, 3, 0], [4, 3, 2, 1], None, "expected sizes that are finite and more than 0"),
        ([1, 2, 3, 4], [4, 3, 2, math.nan], None, "expected losses that are finite and more than 0"),
        ([1, 2, 3, 4], [4, 3, 2, 1], 1.0, r"below all losses \(1\), got 1"),
    ],
)
def test_points_that_no_law_fits_are_refused(x, losses, irreducible, told: str) -> None:
    """With what was expected and what came."""
    with pytest.raises(InputError, match=told):
        fit(x, losses, irreducible=irreducible)


def test_the_frontier_is_what_no_other_point_reaches_as_cheaply() -> None:
    """By hand: dearer points that are no better are left out, equal ones once."""
    assert frontier([1, 2, 3, 4, 2, 5], [9.0, 7.0, 8.0, 6.0, 7.5, 6.0]) == [0, 1, 3]
