"""Laws of the order of pictures and of random streams: functions of the seed and the step, nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.data.windows import Windows
from nextscale.training.order import batch_indices, generator, next_shards, views


@given(count=st.integers(1, 40), batch=st.integers(1, 60), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_each_epoch_shows_each_picture_once(count: int, batch: int, seed: int) -> None:
    """Whether the batch divides the number of pictures, does not, or is larger."""
    steps = -(-3 * count // batch)
    shown = torch.cat([batch_indices(count, batch, step, seed) for step in range(steps)])
    assert shown.shape == (steps * batch,)
    for epoch in shown[: 3 * count].split(count):
        assert epoch.sort().values.tolist() == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    """30! orders do not meet by chance."""
    orders = [batch_indices(30, 30, epoch, seed).tolist() for epoch in range(3) for seed in range(3)]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_a_step_sees_the_same_whatever_came_before(untouched) -> None:
    """Asked for backwards, twice, or alone; torch's own random numbers are neither used nor changed."""
    forwards = [batch_indices(17, 5, step, 3).tolist() for step in range(12)]
    torch.rand(100)
    with untouched():
        backwards = [batch_indices(17, 5, step, 3).tolist() for step in reversed(range(12))]
    assert backwards[::-1] == forwards


@given(data=st.data(), width=st.integers(1, 4), batch=st.integers(1, 9), seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_goes_through_windows_of_shards(data: st.DataObject, width: int, batch: int, seed: int) -> None:
    """Each picture once; each shard in one window alone; and what the next window needs is known in this one."""
    shards = np.array(data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=40)), dtype=np.int64)
    windows, count = Windows(shards=shards, width=width), len(shards)
    steps = -(-3 * count // batch)
    shown = torch.cat([batch_indices(count, batch, step, seed, windows) for step in range(steps)])
    for epoch in shown[: 3 * count].split(count):
        assert epoch.sort().values.tolist() == list(range(count))
        seen = shards[epoch.numpy()]
        spans = {shard: (int(np.argmax(seen == shard)), count - int(np.argmax(seen[::-1] == shard))) for shard in seen}
        for place in range(count):
            assert sum(first <= place < end for first, end in spans.values()) <= width
    for step in range(steps - 1):
        following = next_shards(windows, batch, step, seed)
        assert 0 < len(following) <= width


def test_the_shards_of_the_next_window_are_told() -> None:
    """Of this epoch, and of the next one in the last window."""
    windows = Windows(shards=np.repeat(np.arange(6), 4), width=2)
    for step in range(18):  # of a window are eight pictures
        told = set(next_shards(windows, 4, step, 5))
        first = (step // 2 + 1) * 2
        coming = torch.cat([batch_indices(24, 4, later, 5, windows) for later in (first, first + 1)])
        assert told == set(windows.shards[coming.numpy()].tolist())


def test_windows_change_the_order_alone_where_they_are_asked_for() -> None:
    """All shards in one window are the order without windows."""
    windows = Windows(shards=np.arange(30) % 5, width=5)
    assert all(batch_indices(30, 7, step, 2, windows).equal(batch_indices(30, 7, step, 2)) for step in range(10))


def test_different_places_give_different_streams() -> None:
    """Also where the parts of a place read the same when joined, or differ in type alone."""
    places = [
        (0,),
        (1,),
        ("0",),
        (0, "crops", 1),
        (0, "crops", 2),
        (0, "labels", 1),
        (1, 23),
        (12, 3),
        ("a", "b"),
        ("ab",),
    ]
    draws = [tuple(torch.rand(4, generator=generator(*place)).tolist()) for place in places]
    assert len(set(draws)) == len(places)


def test_the_same_place_gives_the_same_stream() -> None:
    """From its beginning, each time."""
    assert torch.equal(torch.rand(9, generator=generator(7, "x")), torch.rand(9, generator=generator(7, "x")))


@pytest.mark.parametrize(
    ("place", "seed"),
    [((0, "order", 0), 1645728143368831539), ((1, "crops", 100), 14149241322646061702)],
    ids=["order", "crops"],
)
def test_places_keep_their_seeds(place: tuple[int | str, ...], seed: int) -> None:
    """Golden: a run begun with an older release goes on with the same numbers."""
    assert generator(*place).initial_seed() == seed


def test_crops_are_the_numbers_they_have_always_been() -> None:
    """A run begun before pictures could be mirrored goes on unchanged, mirrored or not."""
    crops = torch.rand((6, 2), generator=generator(3, "crops", 9))
    for flip in (False, True):
        assert torch.equal(views(6, 9, 3, flip=flip)[:, :2], crops)


def test_half_of_the_pictures_are_mirrored_if_asked() -> None:
    """Others at another step and another seed; otherwise none."""
    assert views(400, 0, 0)[:, 2].eq(0).all()
    mirrored = [views(400, step, seed, flip=True)[:, 2] for step in (0, 1) for seed in (0, 1)]
    for column in mirrored:
        assert set(column.tolist()) == {0.0, 0.5}
        assert 150 < column.eq(0.5).sum() < 250
    assert len({tuple(column.tolist()) for column in mirrored}) == 4


def test_a_mirrored_picture_is_cropped_like_any_other() -> None:
    """Whether it is mirrored agrees with either number of its crop, or with the numbers in order, half of the time."""
    seen = views(400, 0, 0, flip=True)
    mirrored, crops = seen[:, 2] > 0, seen[:, :2] < 0.5
    for numbers in (crops[:, 0], crops[:, 1], crops.flatten()[:400]):
        assert 150 < (mirrored == numbers).sum() < 250
