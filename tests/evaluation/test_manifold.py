"""Laws of precision, recall, density and coverage: the definitions in a slow loop, and sets whose figures are known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextscale.errors import InputError
from nextscale.evaluation.manifold import Manifold, manifold, members


def draw(count: int, dimensions: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def squared(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).square().sum())


def by_loops(features: Tensor, others: Tensor, k: int) -> Manifold:
    """One pair after the other."""

    def reach(rows: Tensor, i: int) -> float:
        return sorted(squared(rows[i], row) for j, row in enumerate(rows) if j != i)[k - 1]

    def held(points: Tensor, rows: Tensor) -> list[list[bool]]:
        reaches = [reach(rows, i) for i in range(len(rows))]
        return [[squared(x, y) <= r for y, r in zip(rows, reaches, strict=True)] for x in points]

    in_others, in_features = held(features, others), held(others, features)
    return Manifold(
        precision=sum(map(any, in_others)) / len(features),
        recall=sum(map(any, in_features)) / len(others),
        density=sum(map(sum, in_others)) / (k * len(features)),
        coverage=sum(map(any, zip(*in_others, strict=True))) / len(others),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 0.5, 50.0])
def test_figures_are_those_of_the_definition(k: int, shift: float) -> None:
    """For float32 features, near each other and far apart."""
    features, others = draw(40, 6, 1) + shift, draw(33, 6, 2) * 1.3
    assert manifold(features, others, k=k, block=16) == pytest.approx(by_loops(features, others, k), rel=1e-12)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 3), block=st.integers(1, 9))
def test_figures_are_right_where_distances_are_equal_and_vectors_too(seed: int, k: int, block: int) -> None:
    """Points of a 3x3 grid far from the origin: nearly all distances tie, and many points are there twice."""
    generator = torch.Generator().manual_seed(seed)
    features, others = (torch.randint(3, (n, 2), generator=generator).float() + 1000 for n in (9, 8))
    assert manifold(features, others, k=k, block=block) == pytest.approx(by_loops(features, others, k), rel=1e-12)


@pytest.mark.parametrize("k", [1, 3])
def test_of_a_set_and_itself_all_is_one(k: int) -> None:
    """In another order; density counts a vector among its own k neighbours, which is why it is above 1."""
    features = draw(60, 12)
    precision, recall, density, coverage = manifold(features, features.flip(0), k=k, block=7)
    assert precision == recall == coverage == 1
    assert density == pytest.approx((k + 1) / k)


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4], ids=str)
def test_a_constant_and_itself_are_the_same(offset: float) -> None:
    """All distances are zero, which rounding must not deny; far from the origin, either."""
    constant = torch.full((10, 2048), 0.1) + offset
    assert manifold(constant, constant[:6]) == (1, 1, 2, 1)


def test_vectors_that_differ_by_rounding_are_the_same() -> None:
    """As features of one picture do that was seen in batches of different sizes."""
    once = draw(20, 64).repeat(4, 1)
    again = once * (1 + 1e-7 * draw(80, 64, 1))
    precision, recall, _, coverage = manifold(again, once, k=3)
    assert (precision, recall, coverage) == (1, 1, 1)


def test_of_sets_far_apart_all_is_zero() -> None:
    """And so it is for constants that differ by little."""
    assert manifold(draw(30, 5), draw(20, 5) + 100) == (0, 0, 0, 0)
    assert manifold(torch.full((9, 5), 1.0), torch.full((9, 5), 1.0001)) == (0, 0, 0, 0)


def test_half_of_a_set_is_precise_and_recalls_half() -> None:
    """Two clusters far apart, of which the features know one."""
    here, there = draw(50, 4), draw(50, 4, 1) + 1000
    precision, recall, _, coverage = manifold(here, torch.cat([here, there]))
    assert (precision, recall, coverage) == (1, 0.5, 0.5)


def test_two_halves_of_one_set_are_alike() -> None:
    """Density and coverage are near 1 and 1 - 2^-k then; the same in both directions, within chance."""
    whole = draw(800, 2)
    precision, recall, density, coverage = manifold(whole[:400], whole[400:])
    assert precision > 0.9
    assert recall > 0.9
    assert density == pytest.approx(1, abs=0.1)
    assert coverage == pytest.approx(1 - 2**-3, abs=0.07)


@pytest.mark.slow
def test_neither_order_nor_blocks_matter() -> None:
    """Exactly: all figures are counts."""
    features, others = draw(70, 8, 1), draw(50, 8, 2)
    whole = manifold(features, others)
    for block in (1, 13, 50, 64):
        shuffled = features[torch.randperm(70, generator=torch.Generator().manual_seed(block))]
        assert manifold(shuffled, others.flip(0), block=block) == pytest.approx(whole, abs=1e-12)


def test_figures_are_the_means_of_what_every_picture_adds() -> None:
    """From which intervals are made; each stands where its picture does."""
    near, far = draw(20, 3), draw(5, 3) + 100
    parts = members(torch.cat([near, far]), near)
    assert parts.precise.tolist() == [1.0] * 20 + [0.0] * 5
    assert parts.recalled.tolist() == parts.covered.tolist() == [1.0] * 20
    assert manifold(torch.cat([near, far]), near) == pytest.approx([float(values.mean()) for values in parts])


@pytest.mark.parametrize(
    ("features", "others", "wrong", "told"),
    [
        (torch.zeros(3, 2), torch.zeros(9, 2), {}, r"features: expected shape \(at least 4, features\).*got \(3, 2\)"),
        (torch.zeros(9, 2), torch.zeros(5, 2), {"k": 5}, r"others: expected shape \(at least 6, features\)"),
        (torch.zeros(9, 2), torch.zeros(9, 3), {}, "as many in both sets, got 2 and 3"),
        (torch.full((9, 2), math.inf), torch.zeros(9, 2), {}, "expected finite numbers"),
        (torch.zeros(9, 2), torch.zeros(9, 2), {"k": 0}, "at least 1 neighbour"),
        (torch.zeros(9, 2), torch.zeros(9, 2), {"block": 0}, "a block of at least 1"),
    ],
)
def test_sets_too_small_or_of_different_features_are_refused(
    features: Tensor, others: Tensor, wrong: dict[str, int], told: str
) -> None:
    """With what was expected."""
    with pytest.raises(InputError, match=told):
        manifold(features, others, **wrong)
