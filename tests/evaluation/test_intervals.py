"""Laws of intervals: as wide as theory and plain resampling say."""

from __future__ import annotations

import math
import runpy
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nextscale.errors import InputError
from nextscale.evaluation import intervals
from nextscale.evaluation.distances import Spread, kernel_distance
from nextscale.evaluation.intervals import (
    Interval,
    frechet_changes,
    frechet_shares,
    interval,
    kernel_changes,
    kernel_interval,
)
from nextscale.evaluation.statistics import Gaussian, RunningGaussian, frechet_distance

KERNEL = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "kernel_distance.py"))


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(count: int, dimensions: int, seed: int = 0) -> Tensor:
    mixing = torch.randn(dimensions, dimensions, generator=chance(99)) / math.sqrt(dimensions)
    return torch.randn(count, dimensions, generator=chance(seed)) @ mixing


def gaussian(features_ND: Tensor) -> Gaussian:
    running = RunningGaussian(features_ND.shape[1])
    running.update(features_ND)
    return running.gaussian()


# ---- means -----------------------------------------------------------------------------------------------------------


def test_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    """1.96 s / sqrt N to either side, for many values."""
    values = torch.randn(5000, generator=chance()).double() * 3 + 7
    low, high = interval(values, generator=chance(1), resamples=2000)
    half = 1.96 * float(values.std()) / math.sqrt(5000)
    assert low == pytest.approx(float(values.mean()) - half, abs=half / 10)
    assert high == pytest.approx(float(values.mean()) + half, abs=half / 10)


def test_intervals_hold_what_they_are_for_as_often_as_they_say() -> None:
    """In about 95 of 100 repetitions the mean that the values were drawn from, here 1/2."""
    repetitions = (
        interval(torch.rand(60, generator=chance(s)), generator=chance(s), resamples=200) for s in range(300)
    )
    assert 0.91 <= sum(low <= 0.5 <= high for low, high in repetitions) / 300 <= 0.98


def test_interval_is_that_of_a_thousand_means_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their 2.5 and 97.5 % points, by numpy, from one draw after another; how many are drawn together is nothing."""
    values = torch.rand(9, generator=chance())
    generator = chance(1)
    draws = [torch.randint(9, (9,), generator=generator) for _ in range(1000)]
    means = [values[chosen].double().mean().item() for chosen in draws]
    expected = np.percentile(means, [2.5, 97.5])
    for together in (1, 13, 9 * 64, 2**18):
        monkeypatch.setattr(intervals, "DRAWN", together)
        assert interval(values, generator=chance(1)) == pytest.approx(tuple(expected), rel=1e-12)
    fewer = np.percentile(means[:7], [2.5, 97.5])
    assert interval(values, generator=chance(1), resamples=7) == pytest.approx(tuple(fewer), rel=1e-12)


def test_interval_of_equal_values_is_a_point() -> None:
    """Also of one value."""
    for count in (1, 10):
        assert interval(torch.full((count,), 0.25), generator=chance()) == (0.25, 0.25)


def test_interval_without_values_is_refused() -> None:
    """And of a table."""
    for wrong in (torch.zeros(0), torch.zeros(3, 2)):
        with pytest.raises(InputError, match="at least one value, in one row"):
            interval(wrong, generator=chance())


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_interval_of_what_is_not_finite_is_refused(wrong: float) -> None:
    """Its ends would be NaN, and the larger of 0 and NaN is 0."""
    with pytest.raises(InputError, match="expected finite values, got NaN or infinity"):
        interval(torch.tensor([0.5, wrong]), generator=chance())


# ---- the Fréchet distance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "others"), [(200, 300), (5, 300), (200, 5), (5, 5), (1, 1)])
def test_mean_of_the_shares_is_the_distance(count: int, others: int) -> None:
    """Also where covariances are singular."""
    features, other = draw(count, 20, 1), gaussian(draw(others, 20, 2) * 1.5 + 0.3)
    shares = frechet_shares(features, other)
    assert shares.shape == (count,)
    assert float(shares.mean()) == pytest.approx(frechet_distance(gaussian(features), other), rel=1e-9)


def test_shares_are_what_a_picture_changes() -> None:
    """The distance with one picture given a little more weight, by its slope."""
    features, other = draw(80, 6, 1).double(), gaussian(draw(90, 6, 2) * 1.4 + 0.5)
    shares = frechet_shares(features, other)
    for i in (0, 7, 50):
        weights = torch.full((80,), (1 - 1e-5) / 80, dtype=torch.float64)
        weights[i] += 1e-5
        mean = weights @ features
        centred = features - mean
        weighted = Gaussian(mean, (centred.T * weights) @ centred)
        centred = features - features.mean(dim=0)
        plain = Gaussian(features.mean(dim=0), centred.T @ centred / 80)
        slope = (frechet_distance(weighted, other) - frechet_distance(plain, other)) / 1e-5
        assert float(shares[i] - shares.mean()) == pytest.approx(slope, rel=0.03, abs=0.02)


def test_shares_do_not_depend_on_how_many_pictures_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on the format they are in, but for what it cannot hold."""
    features, other = draw(30, 5, 1).bfloat16(), gaussian(draw(60, 5, 2) + 0.5)
    expected = frechet_shares(features.double(), other)
    for together in (1, 7, 4096):
        monkeypatch.setattr(intervals, "BLOCK", together)
        torch.testing.assert_close(frechet_shares(features, other), expected, rtol=1e-9, atol=1e-9)


def test_changes_are_the_formula_in_one_dimension() -> None:
    """d^2 = (m - n)^2 + (s - t)^2: a picture at x changes it by 2 (m - n)(x - m) + (1 - t / s)((x - m)^2 - s^2)."""
    features, other = draw(20, 1, 1).double() * 3, gaussian(draw(30, 1, 2).double() + 2)
    m, n, t = float(features.mean()), float(other.mean), float(other.covariance) ** 0.5
    s = float(features.var()) ** 0.5
    x = features[:, 0] - m
    plain = 2 * (m - n) * x + (1 - t / s) * x.square()
    torch.testing.assert_close(frechet_changes(features, other), plain - plain.mean(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_shares_have_the_unit_of_features_squared(unit: float) -> None:
    """What counts as rounding goes by the largest of the spreads."""
    features, others = draw(30, 5, 1).double(), draw(60, 5, 2).double() + 0.5
    expected = unit**2 * frechet_shares(features, gaussian(others))
    torch.testing.assert_close(frechet_shares(unit * features, gaussian(unit * others)), expected, rtol=1e-9, atol=0)


def test_sets_that_spread_at_right_angles_have_shares() -> None:
    """Neither's spread overlaps the other's: their variances, 2 and 8, add up, and each picture has the same share."""
    features = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    assert frechet_shares(features, gaussian(torch.tensor([[0.0, -2.0], [0.0, 2.0]]))).tolist() == [10, 10]


def test_interval_of_the_distance_is_as_wide_as_resampling_makes_it() -> None:
    """And about the distance itself, where that of resampled sets lies too high: a resample has fewer pictures."""
    features, other = draw(1500, 6, 1), gaussian(draw(1500, 6, 2) * 1.2 + 0.2)
    low, high = interval(frechet_shares(features, other), generator=chance(3))
    distance = frechet_distance(gaussian(features), other)
    draws = (torch.randint(1500, (1500,), generator=chance(seed)) for seed in range(150))
    resampled = torch.tensor([frechet_distance(gaussian(features[chosen]), other) for chosen in draws])
    assert high - low == pytest.approx(2 * 1.96 * float(resampled.std()), rel=0.2)
    assert low < distance < high
    assert float(resampled.mean()) > distance


def test_interval_of_a_distance_tells_what_other_pictures_would_give() -> None:
    """Sets drawn anew, compared with the same others: 95 of 100 distances lie in an interval about their own mean."""
    other = gaussian(draw(3000, 4, 2) + 0.5)
    sets = [draw(400, 4, seed) for seed in range(10, 110)]
    distances = torch.tensor([frechet_distance(gaussian(features), other) for features in sets])
    widths = [high - low for low, high in (interval(frechet_shares(f, other), generator=chance()) for f in sets[:10])]
    assert sum(widths) / 10 == pytest.approx(2 * 1.96 * float(distances.std()), rel=0.25)


def test_a_set_and_itself_have_no_interval() -> None:
    """To first order nothing changes where the distance is least."""
    features = draw(50, 8)
    low, high = interval(frechet_shares(features, gaussian(features)), generator=chance())
    assert (low, high) == pytest.approx((0, 0), abs=1e-9)


def test_shares_of_what_is_no_gaussian_are_refused() -> None:
    """A covariance with an eigenvalue of -1; a mean of NaN makes shares that no interval takes."""
    other = Gaussian(torch.zeros(2, dtype=torch.float64), torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64))
    with pytest.raises(InputError, match="positive semidefinite"):
        frechet_changes(draw(9, 2), other)
    changes = frechet_changes(draw(9, 2), Gaussian(other.mean * math.nan, torch.eye(2, dtype=torch.float64)))
    with pytest.raises(InputError, match="expected finite values"):
        interval(changes, generator=chance())


def test_constants_have_shares() -> None:
    """No spread to carry: 9 each."""
    shares = frechet_shares(torch.full((4, 1), 5.0), gaussian(torch.full((3, 1), 2.0)))
    assert shares.tolist() == pytest.approx([9] * 4)


def test_features_of_another_network_are_refused() -> None:
    """With both numbers."""
    with pytest.raises(InputError, match=r"expected shape \(pictures, 3\).*got \(9, 4\)"):
        frechet_shares(draw(9, 4), gaussian(draw(9, 3)))


def test_changes_are_shares_about_the_distance() -> None:
    """For whoever knows the distance already."""
    features, other = draw(40, 5, 1), gaussian(draw(60, 5, 2) + 0.5)
    shares = frechet_shares(features, other)
    torch.testing.assert_close(frechet_changes(features, other), shares - shares.mean())


def test_changes_of_pairs_tell_what_other_pairs_would_give() -> None:
    """Each with its own noise: both sets move together, and their distance by much less than either alone would."""

    def pairs(seed: int) -> tuple[Tensor, Tensor]:
        clean = draw(600, 4, seed)
        return clean, 1.3 * clean + 0.1 * draw(600, 4, seed + 500) + 0.4

    drawn = [pairs(seed) for seed in range(60)]
    distances = torch.tensor([frechet_distance(gaussian(noisy), gaussian(clean)) for clean, noisy in drawn])
    both, alone = [], []
    for clean, noisy in drawn[:8]:
        ours, theirs = frechet_changes(noisy, gaussian(clean)), frechet_changes(clean, gaussian(noisy))
        both.append(width(interval(ours + theirs, generator=chance())))
        alone.append(width(interval(ours, generator=chance())))
    assert sum(both) / 8 == pytest.approx(2 * 1.96 * float(distances.std()), rel=0.3)
    assert sum(alone) > 2 * sum(both)


# ---- the kernel distance ---------------------------------------------------------------------------------------------


def unbiased(features: Tensor, others: Tensor, *, paired: bool) -> float:
    """The kernel distance of whole sets."""
    size = min(len(features), len(others))
    return kernel_distance(features, others, generator=chance(), subsets=1, size=size, paired=paired).mean


def width(ends: Interval) -> float:
    return ends.high - ends.low


def known(distances: list[float]) -> float:
    """How wide the interval of a figure should be that came out like this in many repetitions."""
    return 2 * 1.96 * float(torch.tensor(distances).std())


def mean_width(sets: Sequence[tuple[Tensor, Tensor]], *, paired: bool) -> float:
    return sum(width(interval(kernel_changes(*each, paired=paired), generator=chance())) for each in sets) / len(sets)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_interval_of_the_kernel_distance_tells_what_other_pictures_would_give(shift: float) -> None:
    """Compared with the same others, which are taken as given; also where the distance is none."""
    others = draw(400, 4, 2).tanh() + shift
    sets = [(draw(400, 4, seed).tanh(), others) for seed in range(10, 160)]
    assert mean_width(sets[:30], paired=False) == pytest.approx(
        known([unbiased(*each, paired=False) for each in sets]), rel=0.25
    )


@pytest.mark.parametrize(("scale", "noise"), [(1.2, 0.1), (1.0, 1.0), (2.0, 0.5)])
def test_interval_of_the_kernel_distance_of_pairs_is_theirs(scale: float, noise: float) -> None:
    """Sets that move together."""

    def pairs(seed: int) -> tuple[Tensor, Tensor]:
        clean = draw(300, 4, seed).tanh()
        return scale * clean + noise * draw(300, 4, seed + 500), clean

    sets = [pairs(seed) for seed in range(150)]
    expected = known([unbiased(*each, paired=True) for each in sets])
    assert mean_width(sets[:30], paired=True) == pytest.approx(expected, rel=0.25)


def test_interval_of_two_independent_samples_of_one_law_is_not_too_wide() -> None:
    """Where plain resampling of pairs would be wider by the root of three; as pairs that have nothing in common."""
    sets = [(draw(300, 4, seed).tanh(), draw(300, 4, seed + 500).tanh()) for seed in range(150)]
    assert mean_width(sets[:30], paired=True) == pytest.approx(
        known([unbiased(*each, paired=True) for each in sets]), rel=0.25
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "given", "repetitions"),
    [
        ("reconstructions", {"distance": 0.0005, "common": 0.9, "count": 60}, 100),
        ("generation", {"distance": 0.0, "count": 100}, 60),
    ],
)
def test_kernel_distance_and_its_interval_hold_the_truth(kind: str, given: dict[str, Any], repetitions: int) -> None:
    """In 90 to 99 of 100 repetitions, the mean within four standard errors; the true distance is known in closed form.

    What benchmarks/kernel_distance.py shows of larger sets. Without the rules for pairs and for subsets, 0 and 80 do.
    """
    simulated = KERNEL[kind](**given)
    assert KERNEL["seen"](simulated, KERNEL["after"], repetitions).agrees(simulated.truth)


@pytest.mark.parametrize("paired", [True, False])
def test_kernel_changes_are_the_obvious_loop_s(paired: bool) -> None:
    """In proportion, pair by pair; the tiles do not matter."""
    ours, theirs = draw(7, 3, 1).double() + 1, draw(7, 3, 2).double()

    def pair(i: int, j: int) -> float:
        if paired:
            within = kernel(ours[i], ours[j]) + kernel(theirs[i], theirs[j])
            return within - kernel(ours[i], theirs[j]) - kernel(theirs[i], ours[j])
        return kernel(ours[i], ours[j]) - sum(kernel(ours[i], y) + kernel(ours[j], y) for y in theirs) / 7

    means = torch.tensor([sum(pair(i, j) for j in range(7) if i != j) / 6 for i in range(7)], dtype=torch.float64)
    plain = 2 * (means - means.mean())
    for block in (2, 3, 100):
        found = kernel_changes(ours, theirs, paired=paired, block=block)
        torch.testing.assert_close(found / found.norm(), plain / plain.norm())
        torch.testing.assert_close(found, kernel_changes(ours, theirs, paired=paired))


def hoeffding(h_NN: Tensor) -> float:
    """The variance of a mean over i != j of h_ij: (4 (N - 2) z + 2 v) / N (N - 1), by loops."""
    n = len(h_NN)
    pairs = [float(h_NN[i, j]) for i, j in permutations(range(n), 2)]
    means = [sum(float(h_NN[i, j]) for j in range(n) if i != j) / (n - 1) for i in range(n)]
    middle = sum(pairs) / len(pairs)
    v = sum(h * h for h in pairs) / len(pairs) - middle**2
    of_means = sum((mean - middle) ** 2 for mean in means) / (n - 1)
    z = max(0.0, (of_means - v / (n - 1)) * (n - 1) / (n - 2))
    return (4 * (n - 2) * z + 2 * v) / (n * (n - 1))


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("count", "shift"), [(3, 1.0), (7, 0.0), (7, 1.0), (12, 3.0)])
def test_kernel_changes_have_the_variance_of_the_distance(paired: bool, count: int, shift: float) -> None:
    """Resampled, their mean varies as Hoeffding's formula says of the mean of h_ij, whether means differ or not."""
    ours, theirs = draw(count, 3, 1).double() + shift, draw(count, 3, 2).double()

    def across(x: Tensor, y: Tensor) -> Tensor:
        return torch.tensor([[kernel(a, b) for b in y] for a in x], dtype=torch.float64)

    if paired:
        h_NN = across(ours, ours) + across(theirs, theirs) - across(ours, theirs) - across(theirs, ours)
    else:
        near = across(ours, theirs).mean(dim=1)
        h_NN = across(ours, ours) - near[:, None] - near
    for block in (2, 1024):
        changes = kernel_changes(ours, theirs, paired=paired, block=block)
        assert float(changes.mean()) == pytest.approx(0, abs=1e-9 * float(changes.abs().max()))
        assert float(changes.square().mean()) / count == pytest.approx(hoeffding(h_NN), rel=1e-9)


def test_kernel_changes_are_computed_in_float64() -> None:
    """Whatever the format; of fewer than three vectors they cannot be told."""
    ours, theirs = draw(7, 3, 1).bfloat16(), draw(5, 3, 2).bfloat16()
    changes = kernel_changes(ours, theirs)
    assert changes.dtype == torch.float64
    with torch.device("meta"):  # where torch would make other tensors
        assert torch.equal(changes, kernel_changes(ours.double(), theirs.double()))
    with pytest.raises(InputError, match=r"features: expected shape \(at least 3, features\)"):
        kernel_changes(ours[:2], theirs)


@pytest.mark.parametrize("paired", [True, False])
def test_interval_of_a_kernel_distance_adds_the_draw_of_its_subsets(paired: bool) -> None:
    """1.96 standard errors of the mean of 100 subsets, at right angles to what other pictures would change."""
    ours, theirs = draw(40, 3, 1) + 0.5, draw(40, 3, 2)
    low, high = interval(kernel_changes(ours, theirs, paired=paired), generator=chance())
    exact = kernel_interval(ours, theirs, Spread(0.25, 0.0), generator=chance(), paired=paired)
    assert exact == pytest.approx((0.25 + low, 0.25 + high), rel=1e-12)
    found = kernel_interval(ours, theirs, Spread(0.25, 0.7), generator=chance(), paired=paired)
    unless_told = kernel_interval(ours, theirs, Spread(0.25, 0.7), generator=chance())
    assert (unless_told == found) is not paired
    draws = 1.96 * 0.7 / math.sqrt(99)
    assert found.low == pytest.approx(0.25 - math.sqrt(low**2 + draws**2), rel=1e-12)
    assert found.high == pytest.approx(0.25 + math.sqrt(high**2 + draws**2), rel=1e-12)


def test_where_no_picture_differs_from_another_there_are_no_kernel_changes() -> None:
    """The corners of a square: pairs differ, but each corner has the same ones."""
    corners = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert kernel_changes(corners, torch.zeros(3, 2)).tolist() == [0, 0, 0, 0]


def test_constant_features_have_no_kernel_changes() -> None:
    """Nothing could be drawn but the same."""
    assert not kernel_changes(torch.full((5, 2), 3.0), torch.full((4, 2), 1.0)).any()


def kernel(x: Tensor, y: Tensor) -> float:
    return float(x @ y / 3 + 1) ** 3
