"""Laws of gathering features: neither batches nor their order nor the number of processes change what is gathered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import together
from torch import Tensor

from nextscale import images
from nextscale.errors import InputError
from nextscale.evaluation.distances import spatial_features
from nextscale.evaluation.gathering import Gathered, Gathering, eight_bits, gather, kept, shares
from nextscale.evaluation.statistics import RunningGaussian
from nextscale.features import FeatureNetwork


@pytest.fixture(scope="module")
def pictures(levels: Tensor) -> Tensor:
    """24 of 8x8 pixels, in [-1, 1]."""
    return images.from_uint8(levels)


def gathered(pictures: Tensor, network: FeatureNetwork, batch: int, keep: int = 50_000) -> Gathered:
    batches = ((indices, pictures[indices.start : indices.stop]) for indices in shares(len(pictures), batch))
    return gather(batches, network, total=len(pictures), keep=keep)


def test_what_is_gathered_is_what_the_network_sees(pictures: Tensor, glance: FeatureNetwork) -> None:
    """Features of each picture in its place, and the Gaussians of features and of spatial ones."""
    seen = gathered(pictures, glance, 5)
    assert (seen.count, seen.size) == (24, (8, 8))
    torch.testing.assert_close(seen.features, glance(pictures))
    assert seen.spatial is not None
    for gaussian, features in (
        (seen.gaussian, glance(pictures)),
        (seen.spatial, spatial_features(glance.features_and_map(pictures)[1])),
    ):
        torch.testing.assert_close(gaussian.mean, features.double().mean(dim=0), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(gaussian.covariance, features.double().T.cov(), rtol=1e-5, atol=1e-7)


def test_spatial_features_are_kept_where_they_are_asked_for(pictures: Tensor, glance: FeatureNetwork) -> None:
    """Of the same pictures."""
    parts = [(indices, pictures[indices.start : indices.stop]) for indices in shares(24, 5)]
    seen = gather(parts, glance, total=24, keep=9, keep_spatial=True)
    assert seen.spatial_features is not None
    expected = spatial_features(glance.features_and_map(pictures)[1])[kept(24, 9)]
    torch.testing.assert_close(seen.spatial_features, expected)
    assert gather(parts, glance, total=24, keep=9).spatial_features is None


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 30), seed=st.integers(0, 9), keep=st.integers(1, 30))
def test_neither_batches_nor_their_order_matter(
    pictures: Tensor, glance: FeatureNetwork, batch: int, seed: int, keep: int
) -> None:
    """Down to 1e-6."""
    whole = gathered(pictures, glance, 24, keep)
    gathering, parts = Gathering(glance, total=24, keep=keep), list(shares(24, batch))
    for index in torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed)).tolist():
        gathering.update(parts[index], pictures[parts[index].start : parts[index].stop])
    seen = gathering.gathered()
    torch.testing.assert_close(seen.features, whole.features, rtol=1e-6, atol=1e-6)
    for ours, right in zip(seen.gaussian, whole.gaussian, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-6, atol=1e-6)


def test_batches_give_their_features_back(pictures: Tensor, glance: FeatureNetwork) -> None:
    """For a classifier that goes on from there."""
    features = Gathering(glance, total=4).update(range(4), pictures[:4])
    torch.testing.assert_close(features, glance(pictures[:4]))


@settings(max_examples=30, deadline=None)
@given(total=st.integers(1, 300), keep=st.integers(1, 100))
def test_features_that_are_kept_are_drawn_from_all(total: int, keep: int) -> None:
    """As many as asked for, each once, in order, always the same ones."""
    chosen = kept(total, keep)
    assert len(chosen) == min(total, keep)
    assert (chosen.diff() > 0).all()
    assert 0 <= int(chosen.min()) <= int(chosen.max()) < total
    assert torch.equal(chosen, kept(total, keep))


@pytest.mark.parametrize("labels", [torch.arange(10_000) // 1000, torch.arange(10_000) % 10], ids=["sorted", "round"])
def test_features_that_are_kept_are_of_all_classes(labels: Tensor) -> None:
    """Whether pictures are sorted by class or classes go round: 200 of each in expectation."""
    counts = labels[kept(10_000, 2000)].bincount(minlength=10)
    assert counts.min() > 150
    assert counts.max() < 250


def test_kept_features_stand_where_their_pictures_are(pictures: Tensor, glance: FeatureNetwork) -> None:
    """Seven of 24; the Gaussian is of all."""
    few, all_of_them = gathered(pictures, glance, 5, keep=7), gathered(pictures, glance, 5)
    assert torch.equal(few.features, all_of_them.features[kept(24, 7)])
    assert torch.equal(few.gaussian.covariance, all_of_them.gaussian.covariance)


def test_a_network_without_inner_maps_has_no_spatial_gaussian(pictures: Tensor, glance: FeatureNetwork) -> None:
    """And the others as before."""
    blind = type("Blind", (type(glance),), {"channels": ()})()
    seen = gathered(pictures, blind, 24)
    assert seen.spatial is None
    assert torch.equal(seen.gaussian.mean, gathered(pictures, glance, 24).gaussian.mean)


def test_one_process_has_gathered_everything(pictures: Tensor, glance: FeatureNetwork) -> None:
    """To the last bit, and it stays what it was."""
    mine = RunningGaussian(7)
    for part in glance(pictures).split(5):
        mine.update(part)
    whole = mine.over_processes()
    assert whole.count == mine.count == 24
    assert torch.equal(whole.mean_D, mine.mean_D)
    assert torch.equal(whole.scatter_DD, mine.scatter_DD)
    whole.update(glance(pictures))
    assert mine.count == 24


def test_one_process_takes_all_batches() -> None:
    """The last one may be smaller."""
    assert list(shares(7, 3)) == [range(3), range(3, 6), range(6, 7)]
    assert list(shares(0, 3)) == []
    with pytest.raises(InputError, match="batch: expected at least 1, got 0"):
        list(shares(7, 0))


def test_other_pictures_than_announced_are_refused(pictures: Tensor, glance: FeatureNetwork) -> None:
    """Too few, none, or of two sizes."""
    with pytest.raises(InputError, match="expected 25 pictures, got 24"):
        gather([(range(24), pictures)], glance, total=25)
    with pytest.raises(InputError, match="expected 1 pictures, got 0"):
        gather([], glance, total=0)
    with pytest.raises(InputError, match="pictures of 8x8 pixels, got 8x6"):
        gather([(range(2), pictures[:2]), (range(2, 4), pictures[2:4, :, :, :6])], glance, total=4)


def test_two_processes_gather_what_one_does(tmp_path: Path) -> None:
    """See `two_processes.py`: features, Gaussians, a reference and its cache, and what is refused."""
    done = together(Path(__file__).with_name("two_processes.py"), tmp_path)
    assert done.returncode == 0, done.stderr


def test_pictures_that_are_not_finite_are_refused() -> None:
    """8 bits have no NaN: black would be left, which a black original is the best copy of."""
    with pytest.raises(InputError, match="expected finite pictures from the model, got NaN"):
        eight_bits(torch.full((1, 3, 4, 4), torch.nan))
    assert (eight_bits(torch.full((1, 3, 4, 4), 1.7)) == 1).all()
