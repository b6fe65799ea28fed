"""Laws of the statistics of features: exact answers where there are some, independent computations elsewhere."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextscale.errors import InputError
from nextscale.evaluation import statistics
from nextscale.evaluation.statistics import Gaussian, RunningGaussian, covariance_root, frechet_distance


def draw(count: int, dimensions: int, seed: int = 0) -> Tensor:
    """Correlated float32 features whose spreads differ by a factor of 100."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=generator) * torch.logspace(0, -2, dimensions)
    return torch.randn(count, dimensions, generator=generator) @ mixing + torch.randn(dimensions, generator=generator)


def gathered(features_ND: Tensor, batch: int = 7) -> RunningGaussian:
    running = RunningGaussian(features_ND.shape[1])
    for part in features_ND.split(batch):
        running.update(part)
    return running


def distance(one_ND: Tensor, other_ND: Tensor) -> float:
    return frechet_distance(gathered(one_ND).gaussian(), gathered(other_ND).gaussian())


def diagonal(mean: list[float], deviations: list[float]) -> Gaussian:
    return Gaussian(
        torch.tensor(mean, dtype=torch.float64), torch.tensor(deviations, dtype=torch.float64).square().diag()
    )


# ---- gathering -------------------------------------------------------------------------------------------------------


def test_mean_and_covariance_are_those_of_numpy() -> None:
    """In float64, whatever the batches."""
    features_ND = draw(100, 12)
    mean_D, covariance_DD = gathered(features_ND).gaussian()
    np.testing.assert_allclose(mean_D, features_ND.double().numpy().mean(axis=0), rtol=0, atol=1e-13)
    np.testing.assert_allclose(covariance_DD, np.cov(features_ND.double().numpy().T), rtol=1e-12, atol=1e-14)


def test_a_small_spread_about_a_large_mean_survives() -> None:
    """Sums of raw squares would lose it: 1e8 squared leaves float64 steps of 2, and the variance is 1/4."""
    offsets_N1 = (torch.arange(1000) % 2).double().view(-1, 1)
    _, covariance_DD = gathered(offsets_N1 + 1e8).gaussian()
    assert covariance_DD.item() == pytest.approx(250 / 999, rel=1e-6)


def test_float32_features_are_summed_in_float64() -> None:
    """Half a million times 0.1: in float32 the mean would be off in the fifth digit."""
    running = gathered(torch.full((500_000, 1), 0.1), batch=1000)
    assert running.mean_D.item() == pytest.approx(float(np.float32(0.1)), rel=1e-14)
    assert running.gaussian().covariance.item() < 1e-28


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 5))
def test_neither_batches_nor_order_matter(count: int, batch: int, seed: int) -> None:
    """Down to rounding."""
    features_ND = draw(count, 5, seed)
    shuffled = features_ND[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]
    one, other = gathered(features_ND, count), gathered(shuffled, batch)
    assert one.count == other.count == count
    for whole, parts in zip(one.gaussian(), other.gaussian(), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cut", [0, 1, 30, 59, 60])
def test_merging_two_is_gathering_both(cut: int) -> None:
    """Also where one of them saw nothing; the one that is taken in stays as it is."""
    features_ND = draw(60, 6)
    left, right = gathered(features_ND[:cut]), gathered(features_ND[cut:])
    before = (right.count, right.mean_D.clone(), right.scatter_DD.clone())
    left.merge(right)
    assert left.count == 60
    for merged, whole in zip(left.gaussian(), gathered(features_ND).gaussian(), strict=True):
        torch.testing.assert_close(merged, whole, rtol=1e-12, atol=1e-12)
    assert right.count == before[0]
    assert torch.equal(right.mean_D, before[1])
    assert torch.equal(right.scatter_DD, before[2])


class Group:
    """Processes that add up what they have, as threads; the one that waits for the others in vain fails."""

    def __init__(self, size: int) -> None:
        self.shares: list[Tensor] = [torch.zeros(())] * size
        self.meeting = threading.Barrier(size, timeout=10)
        self.rank = threading.local()

    def summed(self, tensor: Tensor) -> Tensor:
        self.shares[self.rank.number] = tensor
        self.meeting.wait()
        total = sum(self.shares, torch.zeros_like(tensor))
        self.meeting.wait()
        return total

    def over(self, parts: list[RunningGaussian]) -> list[RunningGaussian]:
        def of(rank: int) -> RunningGaussian:
            self.rank.number = rank
            return parts[rank].over_processes()

        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(of, range(len(parts))))


@pytest.mark.parametrize("cuts", [(30, 10), (0, 39), (39, 0)])
def test_what_processes_gathered_together_is_what_one_would_have(
    cuts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On each of them; also where one saw nothing. What they gathered themselves stays as it is."""
    features_ND = draw(60, 6) + 5
    parts = [gathered(part) for part in features_ND.tensor_split([cuts[0], sum(cuts)])]
    before = [(part.count, part.mean_D.clone(), part.scatter_DD.clone()) for part in parts]
    group = Group(len(parts))
    monkeypatch.setattr(statistics, "summed", group.summed)
    for whole in group.over(parts):
        assert whole.count == 60
        for together, alone in zip(whole.gaussian(), gathered(features_ND).gaussian(), strict=True):
            torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    for part, (count, mean_D, scatter_DD) in zip(parts, before, strict=True):
        assert (part.count, part.mean_D.tolist(), part.scatter_DD.tolist()) == (
            count,
            mean_D.tolist(),
            scatter_DD.tolist(),
        )


def test_processes_that_saw_nothing_have_gathered_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than NaN."""
    group = Group(2)
    monkeypatch.setattr(statistics, "summed", group.summed)
    for whole in group.over([RunningGaussian(3), RunningGaussian(3)]):
        assert whole.count == 0
        assert not whole.mean_D.any()


def test_a_single_vector_has_a_covariance_of_zero_and_two_have_their_own() -> None:
    """Unbiased: of two half of the squared step between them."""
    assert not gathered(draw(1, 3)).gaussian().covariance.any()
    two = draw(2, 3).double()
    step = two[1] - two[0]
    torch.testing.assert_close(gathered(two).gaussian().covariance, step.outer(step) / 2)


def test_what_was_handed_out_does_not_change_later() -> None:
    """A Gaussian is a snapshot."""
    running = gathered(draw(10, 3))
    mean_D, covariance_DD = running.gaussian()
    kept = mean_D.clone(), covariance_DD.clone()
    running.update(draw(10, 3, seed=1))
    assert torch.equal(mean_D, kept[0])
    assert torch.equal(covariance_DD, kept[1])


@pytest.mark.parametrize(
    ("features", "told"),
    [
        (torch.zeros(2, 4), r"expected shape \(pictures, 3\), floating point, got \(2, 4\) float32"),
        (torch.zeros(3), r"got \(3,\) float32"),
        (torch.zeros(2, 3, dtype=torch.int64), r"got \(2, 3\) int64"),
        (torch.full((2, 3), math.nan), "expected finite numbers"),
        (torch.full((2, 3), math.inf), "expected finite numbers"),
        (torch.full((2, 3), -math.inf, dtype=torch.float16), "expected finite numbers, .* got inf"),
        (torch.full((2, 3), 1e30), r"at most 1e\+24 in size, got 1e\+30"),
        (torch.tensor([[0.0, 1.0, math.nan]]), "got NaN"),
    ],
)
def test_other_features_are_refused(features: Tensor, told: str) -> None:
    """And leave what was gathered as it was."""
    running = gathered(draw(10, 3))
    with pytest.raises(InputError, match=told):
        running.update(features)
    assert running.count == 10


def test_numbers_up_to_1e24_are_taken() -> None:
    """Their squares are finite, and so is what is made of them; larger ones are called features."""
    running = gathered(torch.full((2, 3), 1e24, dtype=torch.float64))
    assert running.mean_D.tolist() == [1e24] * 3
    with pytest.raises(InputError, match=r"^features: expected finite numbers"):
        running.update(torch.full((2, 3), 1.1e24, dtype=torch.float64))


def test_nothing_has_no_gaussian() -> None:
    """Rather than NaN."""
    with pytest.raises(InputError, match="at least one picture, got none"):
        RunningGaussian(3).gaussian()


# ---- the distance ----------------------------------------------------------------------------------------------------


def test_of_gaussians_that_commute_the_distance_is_that_of_means_and_deviations() -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2: 9 + 16 + 1 + 4."""
    one, other = diagonal([0, 0], [1, 2]), diagonal([3, 4], [2, 4])
    assert frechet_distance(one, other) == pytest.approx(30, rel=1e-14)


@pytest.mark.parametrize("angle", [0.1, 0.7, math.pi / 2])
def test_of_gaussians_that_do_not_commute_it_is_the_closed_form_of_two_dimensions(angle: float) -> None:
    """tr (S1 S2)^1/2 = sqrt(tr S1 S2 + 2 sqrt det S1 S2) for 2x2 matrices."""
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    one = diagonal([0, 0], [1, 3])
    turned = turn @ one.covariance @ turn.T
    product = one.covariance @ turned
    expected = 20 - 2 * math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    assert frechet_distance(one, Gaussian(one.mean, turned)) == pytest.approx(expected, rel=1e-12)


def test_of_full_covariances_it_is_what_the_textbook_formula_gives() -> None:
    """Roots of the eigenvalues of S1 S2, by numpy, where that is well conditioned."""
    (m1, s1), (m2, s2) = (gathered(draw(500, 10, seed)).gaussian() for seed in (1, 2))
    roots = np.sqrt(np.linalg.eigvals((s1 @ s2).numpy())).real
    expected = float((m1 - m2).square().sum() + s1.trace() + s2.trace()) - 2 * roots.sum()
    assert frechet_distance(Gaussian(m1, s1), Gaussian(m2, s2)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [1, 2, 20, 500], ids=lambda count: f"N={count}")
def test_of_a_set_and_itself_it_is_zero(count: int) -> None:
    """Also where the covariance of 64 features is singular, and in another order."""
    features_ND = draw(count, 64)
    assert distance(features_ND, features_ND.flip(0)) == pytest.approx(0, abs=1e-10)


def test_of_fewer_pictures_than_features_it_is_exact() -> None:
    """Points on a line in 64 dimensions, spread by 2 and by 5: 3 * 3, and 4 * 4 for the means.

    The roots of the eigenvalues of a product of the two singular matrices are zeros that rounding has made 1e-8.
    """
    along_64 = draw(1, 64)[0].double()
    along_64 /= along_64.norm()
    points_N = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    one = (2 * points_N).outer(along_64)
    other = (5 * points_N + 4).outer(along_64)
    assert distance(one, other) == pytest.approx(25, abs=1e-12)


def test_of_singular_covariances_it_is_the_distance_in_the_space_they_span() -> None:
    """Eight features, turned into 256 dimensions: an orthogonal map leaves distances as they are."""
    basis = torch.linalg.qr(draw(256, 8, seed=9).double()).Q
    one, other = draw(100, 8, seed=1).double(), draw(100, 8, seed=2).double()
    assert distance(one @ basis.T, other @ basis.T) == pytest.approx(distance(one, other), rel=1e-10)


def test_of_constants_it_is_the_squared_distance_of_the_two() -> None:
    """No spread at all: 4 * 4 a dimension."""
    assert distance(torch.full((10, 3), 1.0), torch.full((5, 3), 5.0)) == pytest.approx(48, abs=1e-12)


def test_of_a_constant_and_a_spread_the_variance_is_added() -> None:
    """Mean 0 and variance 2 against a point at 3: 9 + 2."""
    spread = torch.tensor([[-1.0], [1.0]])
    assert distance(spread, torch.full((4, 1), 3.0)) == pytest.approx(11, abs=1e-12)


def test_a_constant_feature_changes_nothing() -> None:
    """As networks have that are blind to a set of pictures."""
    one, other = draw(50, 6, seed=1), draw(50, 6, seed=2)
    padded = [torch.cat([features, torch.full((50, 2), 0.3)], dim=1) for features in (one, other)]
    assert distance(*padded) == pytest.approx(distance(one, other), rel=1e-10)


@settings(max_examples=20, deadline=None)
@given(one=st.integers(1, 30), other=st.integers(1, 30), seed=st.integers(0, 9))
def test_it_is_symmetric_and_never_negative(one: int, other: int, seed: int) -> None:
    """For any counts."""
    features, others = draw(one, 12, seed), draw(other, 12, seed + 1)
    there, back = distance(features, others), distance(others, features)
    assert there >= 0
    assert there == pytest.approx(back, rel=1e-9, abs=1e-9)


def test_different_numbers_of_features_are_refused() -> None:
    """They come from different networks."""
    with pytest.raises(InputError, match="as many in both sets, got 3 and 4"):
        frechet_distance(gathered(draw(9, 3)).gaussian(), gathered(draw(9, 4)).gaussian())


@pytest.mark.parametrize("count", [1, 2, 6, 40])
def test_the_root_of_a_covariance_has_as_many_rows_as_there_are_directions(count: int) -> None:
    """Six pictures in 64 dimensions span five; what rounding leaves of the others is no row."""
    covariance = gathered(draw(count, 64)).gaussian().covariance
    root = covariance_root(covariance)
    assert root.shape == (count - 1, 64)
    torch.testing.assert_close(root.T @ root, covariance, rtol=1e-10, atol=1e-12)


# ---- what is no Gaussian ---------------------------------------------------------------------------------------------


def broken(place: str, value: float) -> Gaussian:
    """A mean of 0 and a covariance of 1, but for one number."""
    mean, covariance = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    {"mean": mean, "diagonal": covariance[1], "corner": covariance[0]}[place][1] = value
    if place == "corner":
        covariance[1, 0] = value
    return Gaussian(mean, covariance)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("mean", math.nan, "expected finite means"),
        ("mean", math.inf, "expected finite means"),
        ("mean", 1e200, "expected finite means"),
        ("diagonal", math.nan, "covariance: expected finite numbers"),
        ("diagonal", math.inf, "covariance: expected finite numbers"),
        ("corner", math.nan, "covariance: expected finite numbers"),
        ("diagonal", -0.5, "positive semidefinite"),
        ("corner", 1.5, "positive semidefinite"),
        ("corner", -1.001, "positive semidefinite"),
    ],
)
def test_what_is_no_gaussian_has_no_distance(place: str, value: float, told: str) -> None:
    """On either side; a distance of NaN was taken for 0, the best there is."""
    sound = broken("mean", 0.0)
    for pair in ((broken(place, value), sound), (sound, broken(place, value))):
        with pytest.raises(InputError, match=told):
            frechet_distance(*pair)


def test_a_covariance_without_variances_is_refused() -> None:
    """Zeros on the diagonal and something beside it: eigenvalues 1 and -1."""
    with pytest.raises(InputError, match="positive semidefinite"):
        covariance_root(torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64))


def test_singular_gaussians_that_were_stored_in_float32_are_taken() -> None:
    """Rounding makes some of their zero eigenvalues negative; the distance stays to a millionth."""
    one, other = (gathered(draw(20, 64, seed)).gaussian() for seed in (1, 2))
    stored = [Gaussian(each.mean.float().double(), each.covariance.float().double()) for each in (one, other)]
    assert torch.linalg.eigvalsh(stored[0].covariance)[0] < 0
    assert frechet_distance(*stored) == pytest.approx(frechet_distance(one, other), rel=1e-6)
