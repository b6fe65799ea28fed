"""Laws of judging real pictures, through benchmarks/damage.py: what is worse is further away."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale import data, features
from nextscale.evaluation.statistics import Gaussian, frechet_distance

DAMAGE = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "damage.py"))
See = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def see() -> See:
    """What the packaged network sees, looking at 64 pixels to be quick."""
    network = features.load()
    network.side = 64
    found: See = DAMAGE["seen_by"](network)
    return found


@pytest.fixture(scope="module")
def two_halves() -> tuple[Tensor, Tensor, Tensor]:
    """400 embedded pictures of 32 pixels, their classes, and 400 others to compare with."""
    split = data.load("emoji", height=32, width=32).train
    ours, theirs = DAMAGE["halves"](split.labels, 800)
    assert not set(ours.tolist()) & set(theirs.tolist())
    assert split.labels[ours].unique().tolist() == list(range(9))
    return split.batch(ours)[0], split.labels[ours], split.batch(theirs)[0]


@pytest.fixture(scope="module")
def reference(two_halves: tuple[Tensor, Tensor, Tensor], see: See) -> Gaussian:
    found: Gaussian = DAMAGE["gaussian"](see(two_halves[2]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "amounts"), [("noisy", (0.05, 0.1, 0.2)), ("blurred", (1, 2, 4))])
def test_distance_rises_with_noise_and_with_blur(
    two_halves: tuple[Tensor, Tensor, Tensor], reference: Gaussian, see: See, damage: str, amounts: tuple[float, ...]
) -> None:
    """By at least a twentieth with each step, from what undamaged pictures have."""
    clean = frechet_distance(DAMAGE["gaussian"](see(two_halves[0])), reference)
    found = DAMAGE["damage_distances"](two_halves[0], reference, see, DAMAGE[damage], amounts)
    assert all(1.05 * less < more for less, more in pairwise([clean, *found])), (clean, found)


@pytest.mark.slow
@pytest.mark.parametrize("order", [0, 2])
def test_distance_rises_with_every_class_that_is_missing(
    two_halves: tuple[Tensor, Tensor, Tensor], reference: Gaussian, see: See, order: int
) -> None:
    """One to eight of nine, as many pictures as before."""
    pictures, labels, _ = two_halves
    found = DAMAGE["missing_distances"](see(pictures), labels, reference, order=order)
    assert len(found) == 9
    assert all(less < more for less, more in pairwise(found)), found
    assert found[-1] > 1.5 * found[0]


def test_classes_that_are_missing_are_replaced() -> None:
    """As many pictures, none of those classes, every other one still there."""
    labels = torch.arange(6).repeat(5)
    rows = DAMAGE["without"](labels, [1, 4], seed=3)
    assert len(rows) == 30
    assert labels[rows].unique().tolist() == [0, 2, 3, 5]
    assert set(rows[:20].tolist()) == {i for i in range(30) if labels[i] not in (1, 4)}


def test_blur_keeps_a_flat_picture_and_spreads_a_point() -> None:
    """By a Gaussian: the centre of a point keeps the square of the weight at 0."""
    flat: Any = torch.full((1, 3, 9, 9), 0.25)
    torch.testing.assert_close(DAMAGE["blurred"](flat, 1.5), flat)
    point = torch.zeros(1, 3, 9, 9)
    point[..., 4, 4] = 1
    spread = DAMAGE["blurred"](point, 0.7)
    weights = torch.exp(-0.5 * (torch.arange(-3.0, 4) / 0.7) ** 2)
    assert float(spread[0, 0, 4, 4]) == pytest.approx(float(1 / weights.sum()) ** 2, rel=1e-5)
    assert float(spread.sum()) == pytest.approx(3, rel=1e-5)
