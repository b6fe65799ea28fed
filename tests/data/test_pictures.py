"""Laws of batches, whatever the pictures come from: views are the caller's, and a batch may be read in parts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale import images
from nextscale.data.pictures import Split, from_memory
from nextscale.errors import InputError
from nextscale.training.order import views

STORED = [
    torch.randint(0, 256, (3, 8 + index % 3, 10 + index % 4), generator=torch.Generator().manual_seed(index)).byte()
    for index in range(9)
]
SPLIT = Split(
    classes=("even", "odd"),
    labels=torch.arange(9) % 2,
    names=tuple(str(index) for index in range(9)),
    fingerprint="nine",
    fetch=from_memory(STORED),
    height=8,
    width=9,
)


@given(count=st.integers(1, 30), start=st.integers(0, 30), stop=st.integers(0, 30), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_a_part_of_a_batch_is_the_same_as_in_the_whole(count: int, start: int, stop: int, seed: int) -> None:
    """A slice of the indices with the same slice of the views: so processes share a batch, each reading its part."""
    indices = torch.arange(count) * 5 % 9
    seen = views(count, 0, seed, flip=True)
    whole, labels = SPLIT.batch(indices, views=seen)
    part, part_labels = SPLIT.batch(indices[start:stop], views=seen[start:stop])
    assert torch.equal(part, whole[start:stop])
    assert torch.equal(part_labels, labels[start:stop])


def test_a_view_says_where_the_crop_sits_and_whether_it_is_mirrored() -> None:
    """Down, right, mirrored from 0.5 on: the two corners, and the first of them the other way round."""
    expected = torch.stack([STORED[5][:, :8, :9], STORED[5][:, 2:, 2:], STORED[5][:, :8, :9].flip(-1)])
    seen = torch.tensor([[0.0, 0.0, 0.49], [0.99, 0.99, 0.0], [0.0, 0.0, 0.5]])
    assert torch.equal(SPLIT.batch([5, 5, 5], views=seen)[0], images.from_uint8(expected))


def test_without_views_crops_are_centred() -> None:
    """And nothing is mirrored."""
    centred = images.center_crop(STORED[5], height=8, width=9)
    assert torch.equal(SPLIT.batch([5])[0][0], images.from_uint8(centred))


def test_no_random_numbers_are_drawn(untouched) -> None:
    """Torch's own are neither used nor changed."""
    with untouched():
        SPLIT.batch([1, 2], views=views(2, 0, 0, flip=True))


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (3,)])
def test_views_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    """One row of three a picture."""
    with pytest.raises(InputError, match=r"views of shape \(3, 3\), got \("):
        SPLIT.batch([0, 1, 2], views=torch.zeros(shape))
