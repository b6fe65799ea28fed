"""Laws of the kernel distance, of the score, and of spatial features."""

from __future__ import annotations

import math
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from nextscale import features
from nextscale.errors import InputError
from nextscale.evaluation.distances import SPATIAL, divergences, kernel_distance, score, spatial_features
from nextscale.features import FeatureNetwork


def draw(count: int, dimensions: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- kernel distance -------------------------------------------------------------------------------------------------


def kernel(x: Tensor, y: Tensor) -> float:
    return (float(x.double() @ y.double()) / len(x) + 1) ** 3


def test_kernel_distance_of_whole_sets_is_the_mean_over_pairs() -> None:
    """The definition, pair by pair; a set that is taken whole is the same set in every draw."""
    one, other = draw(9, 4, 1), draw(9, 4, 2)
    within = [sum(kernel(x, y) for x, y in permutations(rows, 2)) / (9 * 8) for rows in (one, other)]
    across = sum(kernel(x, y) for x, y in product(one, other)) / 81
    mean, deviation = kernel_distance(one, other, generator=chance(), subsets=3)
    assert mean == pytest.approx(sum(within) - 2 * across, rel=1e-12)
    assert deviation == pytest.approx(0, abs=1e-12)


def test_kernel_distance_of_pairs_leaves_out_a_vector_s_own_partner() -> None:
    """The definition, pair by pair: mean over i != j of k(x, x') + k(y, y') - k(x, y') - k(y, x')."""
    one, other = draw(9, 4, 1), draw(9, 4, 2)
    distances = [
        kernel(one[i], one[j]) + kernel(other[i], other[j]) - kernel(one[i], other[j]) - kernel(other[i], one[j])
        for i, j in permutations(range(9), 2)
    ]
    found = kernel_distance(one, other, generator=chance(), subsets=3, paired=True)
    assert found == pytest.approx((sum(distances) / 72, 0), rel=1e-12, abs=1e-12)


def test_kernel_distance_of_pairs_draws_the_same_rows_of_both_sets() -> None:
    """A set and itself are at distance 0 in every subset; drawn apart, subsets of it are not."""
    whole = draw(60, 5)
    together = kernel_distance(whole, whole.clone(), generator=chance(), subsets=5, size=10, paired=True)
    assert together == pytest.approx((0, 0), abs=1e-12)
    assert kernel_distance(whole, whole, generator=chance(), subsets=5, size=10).deviation > 0.01


def test_kernel_distance_of_pairs_wants_a_partner_for_each() -> None:
    """As many vectors in both sets."""
    with pytest.raises(InputError, match="as many vectors in both sets of pairs, got 5 and 4"):
        kernel_distance(torch.zeros(5, 3), torch.zeros(4, 3), generator=chance(), paired=True)


def test_deviation_of_a_kernel_distance_is_that_of_its_subsets() -> None:
    """Divided by their number: of two subsets half of what lies between them, of one none at all."""
    one, other = draw(50, 4, 1), draw(60, 4, 2)
    generator = chance(3)
    singles = [kernel_distance(one, other, generator=generator, subsets=1, size=10) for _ in range(2)]
    assert [single.deviation for single in singles] == [0, 0]
    both = kernel_distance(one, other, generator=chance(3), subsets=2, size=10)
    first, second = (single.mean for single in singles)
    assert both == pytest.approx(((first + second) / 2, abs(first - second) / 2), rel=1e-12)


def test_kernel_distance_of_points_that_coincide_is_known() -> None:
    """All at x and all at y of one dimension: k(x, x) + k(y, y) - 2 k(x, y) = 8 + 125 - 2 * 27."""
    mean, deviation = kernel_distance(torch.full((5, 1), 1.0), torch.full((7, 1), 2.0), generator=chance())
    assert (mean, deviation) == (8 + 125 - 2 * 27, 0)


def test_kernel_distance_of_a_constant_and_itself_is_zero() -> None:
    """Exactly."""
    assert kernel_distance(torch.ones(4, 3), torch.ones(6, 3), generator=chance()) == (0, 0)


def test_kernel_distance_is_unbiased() -> None:
    """Of two halves of one set it is zero within its error, and from small subsets what it is from large ones."""
    whole = draw(4000, 8)
    apart = whole[2000:] * 1.2
    near = kernel_distance(whole[:2000], whole[2000:], generator=chance(), subsets=50, size=100)
    assert abs(near.mean) < 3 * near.deviation / math.sqrt(20)
    small, large = (
        kernel_distance(whole[:2000], apart, generator=chance(), subsets=n, size=2000 // n) for n in (40, 1)
    )
    assert small.mean == pytest.approx(large.mean, abs=4 * small.deviation / math.sqrt(40))
    assert small.deviation > 0


def test_kernel_distance_is_decided_by_its_generator() -> None:
    """And by nothing else that is random."""
    one, other = draw(50, 4, 1), draw(60, 4, 2)
    first, again, different = (kernel_distance(one, other, generator=chance(s), subsets=4, size=10) for s in (3, 3, 4))
    assert first == again != different


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3), r"features: expected shape \(at least 2, features\).*got \(1, 3\)"),
        (torch.zeros(5, 3), torch.zeros(5), r"others: expected shape .* got \(5,\)"),
        (torch.zeros(5, 3), torch.zeros(5, 4), "as many in both sets, got 3 and 4"),
        (torch.zeros(5, 3).long(), torch.zeros(5, 3), "floating point, got .* int64"),
        (torch.full((5, 3), math.nan), torch.zeros(5, 3), "expected finite numbers"),
        (
            torch.zeros(5, 3),
            torch.full((5, 3), 1e60, dtype=torch.float64),
            r"others: expected finite numbers, at most 1e\+24",
        ),
    ],
)
def test_kernel_distance_refuses_sets_that_do_not_compare(one: Tensor, other: Tensor, told: str) -> None:
    """With what was expected."""
    with pytest.raises(InputError, match=told):
        kernel_distance(one, other, generator=chance())


def test_kernel_distance_draws_100_subsets_of_1000_unless_told() -> None:
    """As is usual; from smaller sets subsets of all there are."""
    one, other = draw(1002, 1, 1), draw(1001, 1, 2)
    found = kernel_distance(one, other, generator=chance(), subsets=2)
    assert found == kernel_distance(one, other, generator=chance(), subsets=2, size=1000)
    assert found != kernel_distance(one, other, generator=chance(), subsets=2, size=1001)
    few, others = draw(5, 1, 1), draw(3, 1, 2)
    usual = kernel_distance(few, others, generator=chance())
    assert usual == kernel_distance(few, others, generator=chance(), subsets=100, size=3)
    assert usual != kernel_distance(few, others, generator=chance(), subsets=101, size=3)


def test_subsets_of_two_are_large_enough_and_one_subset_is() -> None:
    """The mean of k(x, x') + k(y, y') less all four across."""
    one, other = draw(2, 3, 1), draw(2, 3, 2)
    across = sum(kernel(x, y) for x, y in product(one, other)) / 4
    expected = kernel(*one) + kernel(*other) - 2 * across
    assert kernel_distance(one, other, generator=chance(), subsets=1).mean == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_of_pairs_draws_as_many_subsets_as_are_asked_for() -> None:
    """Their mean and the deviation from one to another; sets that are taken whole are looked at once."""
    one, other = draw(30, 3, 1), draw(30, 3, 2)
    generator = chance(3)
    drawn = [kernel_distance(one, other, generator=generator, subsets=1, size=6, paired=True).mean for _ in range(4)]
    found = kernel_distance(one, other, generator=chance(3), subsets=4, size=6, paired=True)
    assert found.mean == pytest.approx(sum(drawn) / 4, rel=1e-12)
    assert found.deviation == pytest.approx(float(torch.tensor(drawn).double().std(unbiased=False)), rel=1e-6)
    assert found.deviation > 0
    generator = chance(3)
    kernel_distance(one, other, generator=generator, subsets=4)
    assert torch.equal(torch.rand(3, generator=generator), after_drawing(30, 2))


def after_drawing(count: int, orders: int) -> Tensor:
    """What a generator gives after so many orders of so many vectors."""
    generator = chance(3)
    for _ in range(orders):
        torch.randperm(count, generator=generator)
    return torch.rand(3, generator=generator)


def test_kernel_distance_is_computed_in_float64() -> None:
    """Of features in half precision exactly what the same numbers give in double."""
    one, other = draw(40, 6, 1).bfloat16(), draw(40, 6, 2).bfloat16()
    for paired in (False, True):
        low, exact = (
            kernel_distance(a, b, generator=chance(), subsets=2, size=9, paired=paired)
            for a, b in ((one, other), (one.double(), other.double()))
        )
        assert low == exact


def test_kernel_distance_refuses_subsets_that_have_no_pairs() -> None:
    """One vector has none."""
    for wrong in ({"size": 1}, {"subsets": 0}):
        with pytest.raises(InputError, match="a subset of at least 2 vectors"):
            kernel_distance(torch.zeros(5, 3), torch.zeros(5, 3), generator=chance(), **wrong)


# ---- score -----------------------------------------------------------------------------------------------------------


def sure_of(classes: Tensor, count: int) -> Tensor:
    """Logits that leave no doubt."""
    return torch.full((len(classes), count), -torch.inf).scatter(1, classes[:, None], 0.0)


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_score_of_certain_and_even_answers_is_the_number_of_classes(classes: int) -> None:
    """And that of doubt is one."""
    certain = sure_of(torch.arange(7 * classes) % classes, 7)
    assert score(certain, splits=1).mean == pytest.approx(classes, rel=1e-12)
    assert score(torch.zeros(20, 7), splits=4) == pytest.approx((1, 0), abs=1e-12)


def test_score_is_the_exponential_of_the_mean_divergence() -> None:
    """By the definition, picture by picture."""
    p = draw(12, 5).double().softmax(dim=1)
    marginal = p.mean(dim=0)
    each = [sum(float(q * (q / m).log()) for q, m in zip(row, marginal, strict=True)) for row in p]
    torch.testing.assert_close(divergences(p.log()), torch.tensor(each, dtype=torch.float64))
    assert score(p.log(), splits=1).mean == pytest.approx(math.exp(sum(each) / 12), rel=1e-12)


def test_deviation_of_a_score_is_that_of_its_splits() -> None:
    """Divided by their number: of two splits, half of what lies between them, and of one none at all."""
    logits = draw(13, 5)
    shuffled = logits[torch.randperm(13, generator=chance(0))]
    first, second = (float(divergences(part).mean().exp()) for part in (shuffled[:7], shuffled[7:]))
    assert score(logits, splits=2) == pytest.approx(((first + second) / 2, abs(first - second) / 2), rel=1e-12)
    assert score(logits, splits=1).deviation == 0


def test_score_does_not_see_that_pictures_are_sorted_by_class() -> None:
    """Splits cut off in the given order would see one class each: a score of 1 instead of nearly 10."""
    mean, deviation = score(sure_of(torch.arange(1000) // 100, 10), splits=10)
    assert mean > 9.3
    assert 0 < deviation < 0.5


def test_score_has_ten_splits_unless_told() -> None:
    """As is usual."""
    logits = draw(33, 4)
    assert score(logits) == score(logits, splits=10) != score(logits, splits=11)
    assert score(logits, splits=33) == pytest.approx((1, 0), abs=1e-12)  # each alone is like all of its split


def test_score_is_computed_in_float64() -> None:
    """Whatever the format of the answers."""
    logits = draw(30, 4).bfloat16()
    assert score(logits, splits=2) == score(logits.double(), splits=2)


def test_score_refuses_more_splits_than_pictures() -> None:
    """And what is no table of scores."""
    for logits, splits in ((torch.zeros(3, 2), 4), (torch.zeros(3, 2), 0), (torch.zeros(3), 1)):
        with pytest.raises(InputError, match=r"expected scores \(N, classes\) for"):
            score(logits, splits=splits)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_score_of_what_is_not_finite_is_refused(wrong: float) -> None:
    """And that of a picture that is of no class at all."""
    for row in ([0.0, wrong], [-math.inf, -math.inf]):
        with pytest.raises(InputError, match="score: expected finite scores"):
            score(torch.tensor([[1.0, 0.0], row]), splits=1)


# ---- spatial features ------------------------------------------------------------------------------------------------


class Places(FeatureNetwork):
    """Its map are the pixels, given `channels` times."""

    name, dimensions, channels = "Places", 3, (3,)

    def __init__(self, side: int, times: int) -> None:
        super().__init__(mean=(0.5, 0.5, 0.5), deviation=(0.5, 0.5, 0.5))
        self.side, self.times = side, times

    def embed(self, pixels_B3HW: Tensor) -> Tensor:
        return pixels_B3HW.mean(dim=(2, 3))

    def activations(self, pixels_B3HW: Tensor) -> list[Tensor]:
        return [pixels_B3HW[:, :1], pixels_B3HW.repeat(1, self.times, 1, 1)]


def spatial(network: FeatureNetwork, pictures: torch.Tensor) -> torch.Tensor:
    """Of the network's own walk."""
    return spatial_features(network.features_and_map(pictures)[1])


@pytest.mark.parametrize(("side", "expected"), [(3, 9 * 30), (14, 196 * 10), (17, 289 * 7), (32, 289 * 7)])
def test_spatial_features_are_as_many_whole_channels_as_fit(side: int, expected: int) -> None:
    """All 30 of a 3x3 map; of 17x17 the seven that sFID has; of larger maps as many as of 17x17."""
    pictures = torch.rand(2, 3, 20, 24, generator=chance()) * 2 - 1
    seen = spatial(Places(side, 10), pictures)
    assert seen.shape == (2, expected)
    assert expected <= SPATIAL


@pytest.mark.slow
def test_spatial_features_are_laid_out_place_by_place() -> None:
    """As stored statistics have them: all channels of the first cell, then of the next in its row."""
    pictures = torch.rand(2, 3, 4, 4, generator=chance()) * 2 - 1
    seen = spatial(Places(4, 1), pictures)
    torch.testing.assert_close(seen[1, :6], torch.cat([pictures[1, :, 0, 0], pictures[1, :, 0, 1]]))


def test_spatial_features_tell_where_and_features_do_not() -> None:
    """A picture that is mirrored has the same colours elsewhere."""
    network, pictures = Places(8, 1), torch.rand(1, 3, 8, 8, generator=chance()) * 2 - 1
    torch.testing.assert_close(network(pictures), network(pictures.flip(-1)))
    assert not torch.allclose(spatial(network, pictures), spatial(network, pictures.flip(-1)))


def test_spatial_features_of_the_packaged_network_do_not_depend_on_the_batch() -> None:
    """Ten channels of 14x14."""
    network, pictures = features.load(), torch.rand(3, 3, 16, 16, generator=chance()) * 2 - 1
    with torch.no_grad():
        together = spatial(network, pictures)
        torch.testing.assert_close(spatial(network, pictures[1:2]), together[1:2], rtol=1e-4, atol=1e-4)
    assert together.shape == (3, 1960)
