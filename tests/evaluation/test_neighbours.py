"""Laws of neighbours: the nearest by a plain search, a copy at no distance, and where a distance stands."""

from __future__ import annotations

import pytest
import torch

from nextscale.evaluation import neighbours
from nextscale.evaluation.neighbours import nearest, share_below


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_the_nearest_are_found_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Against all distances one by one."""
    monkeypatch.setattr(neighbours, "BLOCK", block)
    training = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    asked = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    found = nearest(asked, training, k=4)
    for row in range(3):
        distances = [float((asked[row].double() - one.double()).norm()) for one in training]
        order = sorted(range(20), key=lambda index, distances=distances: distances[index])[:4]
        assert found.indices[row].tolist() == order
        assert found.distances[row].tolist() == pytest.approx([distances[index] for index in order])


def test_a_copy_is_at_distance_zero_and_the_first_of_several() -> None:
    """Exactly, however far from the origin it lies; no more neighbours than there are pictures."""
    training = torch.randn(6, 300, generator=torch.Generator().manual_seed(0)) + 1e3
    training[4] = training[2]
    found = nearest(training[2:3], training, k=9)
    assert found.indices[0, :2].tolist() == [2, 4]
    assert found.distances[0, :2].tolist() == [0, 0]
    assert found.indices.shape == (1, 6)


def test_of_several_views_the_nearer_counts() -> None:
    """For each training picture by itself."""
    training = torch.tensor([[0.0], [10.0], [4.0]])
    found = nearest(torch.tensor([[[1.0], [9.5]]]), training, k=3)
    assert found.indices.tolist() == [[1, 0, 2]]
    assert found.distances.tolist() == [[0.5, 1.0, 3.0]]


def test_a_value_stands_among_others() -> None:
    """Equal ones count half."""
    others = torch.tensor([1.0, 2.0, 2.0, 5.0])
    assert [share_below(value, others) for value in (0.0, 2.0, 3.0, 9.0)] == [0, 0.5, 0.75, 1]
