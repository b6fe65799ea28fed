"""Laws of judging two sets: what an interval is made of, and which sets are compared how."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nextscale.evaluation.gathering import Gathered
from nextscale.evaluation.judging import Figure, compared
from nextscale.evaluation.reference import ReferenceFeatures
from nextscale.evaluation.statistics import Gaussian, RunningGaussian
from nextscale.features import FeatureNetwork

Judge = Callable[..., dict[str, Figure]]


def gaussian(features_ND: Tensor) -> Gaussian:
    running = RunningGaussian(features_ND.shape[1])
    running.update(features_ND)
    return running.gaussian()


def draw(count: int, seed: int) -> Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def judge(glance: FeatureNetwork) -> Judge:
    """`judge(ours, theirs, paired=True)`: all figures of features (N, 7), `count` pictures of which they are some."""

    def figures(ours: Tensor, theirs: Tensor, *, count: int | None = None, paired: bool = False) -> dict[str, Figure]:
        size = (8, 8)
        seen = Gathered(
            gaussian=gaussian(ours), spatial=None, features=ours, count=len(ours) if count is None else count, size=size
        )
        reference = ReferenceFeatures(
            name="normal",
            fingerprint="",
            gaussian=gaussian(theirs),
            spatial=None,
            features=theirs,
            labels=None,
            count=len(theirs),
            size=size,
        )
        return compared(seen, reference, glance, paired=paired)

    return figures


def width(figure: Figure) -> float:
    assert figure.low is not None
    assert figure.high is not None
    return figure.high - figure.low


def test_pairs_that_differ_by_a_constant_have_a_distance_without_width(judge: Judge) -> None:
    """Whichever are drawn, their means differ by it: 7 x 0.5^2; as sets of their own they would move."""
    theirs = draw(60, 1)
    ours = theirs + 0.5
    together, apart = (judge(ours, theirs, paired=paired)["frechet_distance"] for paired in (True, False))
    assert (together.value, together.low, together.high) == pytest.approx((1.75, 1.75, 1.75), rel=1e-5)
    assert width(apart) > 0.5


def test_an_interval_is_narrower_by_the_root_of_the_pictures_that_were_not_kept(judge: Judge) -> None:
    """Four times as many pictures as features that were kept: half the width, about the same distance."""
    ours, theirs = draw(80, 1) + 1, draw(90, 2)
    all_kept, quarter_kept = (judge(ours, theirs, count=count)["frechet_distance"] for count in (80, 320))
    assert quarter_kept.value == all_kept.value
    assert all_kept.low is not None
    assert all_kept.low > 0
    assert width(quarter_kept) == pytest.approx(width(all_kept) / 2, rel=1e-12)


def test_the_interval_of_a_distance_ends_at_zero(judge: Judge) -> None:
    """There is none below: of a set and nearly itself, whose interval would reach further down than the distance."""
    ours = draw(50, 1)
    figure = judge(ours, ours + 0.02 * draw(50, 2))["frechet_distance"]
    assert figure.low == 0
    assert 0 < figure.value < width(figure)


def test_kernel_distances_of_pairs_are_not_those_of_sets(judge: Judge) -> None:
    """A set and itself: 0 without any chance as pairs, and below 0 as two sets that happen to be alike."""
    features = draw(40, 3)
    pairs, sets = (judge(features, features.clone(), paired=paired)["kernel_distance"] for paired in (True, False))
    assert (pairs.value, pairs.low, pairs.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert sets.value < -0.01
