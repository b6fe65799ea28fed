"""Laws of reading ahead: the same batches in the same order, faults where they belong, and nothing left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from data.noise import data_set
from PIL import Image
from torch import Tensor

from nextscale import data
from nextscale.data import reading
from nextscale.data.ahead import Ahead
from nextscale.data.pictures import Split
from nextscale.data.reading import OnDemand, Size
from nextscale.training.order import announced, batch_indices, views

CPU, BATCH, SEED = torch.device("cpu"), 4, 3
Wanted = list[tuple[Tensor, Tensor]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], data.DataSet]:
    """Twenty pictures that are decoded when a batch wants them."""
    for index in range(20):
        noise = np.random.default_rng(index).integers(0, 256, (12, 11, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{index:02}.png")
    monkeypatch.setattr(reading, "MEMORY", 0)
    return lambda: data.load(tmp_path, height=8, width=8)


def wanted(split: Split, *, step: int = 0, parts: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    size = BATCH // parts
    slices = [slice(start, start + size) for start in range(0, BATCH, size)]
    return announced(split, BATCH, SEED, flip=True, parts=slices, step=step)


def same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> bool:
    return all(map(torch.equal, ours, theirs))


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("nextscale-reading")]


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: float, read: Callable[[int], object] = lambda index: None) -> None:
    """Every picture takes so long; `read` is called with its index before."""
    plain = OnDemand.read

    def slow(self: OnDemand, index: int) -> Tensor | str:
        read(index)
        time.sleep(seconds)
        return plain(self, index)

    monkeypatch.setattr(OnDemand, "read", slow)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_batches_are_those_that_the_source_gives(folder, parts: int) -> None:
    """In their order, over more than an epoch, whole or in parts; also tokens, and what was not announced."""
    split = folder().train
    ahead, asked = Ahead(split, CPU), list(islice(wanted(split, parts=parts), 12 * parts))
    with ahead.reading(iter(asked), parts + 1):
        assert readers()
        for number, (indices, seen) in enumerate(asked):
            assert same(ahead.batch(indices, views=seen), split.batch(indices, views=seen))
            if number % 3 == 0:
                assert same(ahead.batch([1, 2, 1]), split.batch([1, 2, 1]))
    assert same(ahead.batch([0]), split.batch([0]))


def test_steps_are_announced_as_they_will_ask() -> None:
    """Indices and views are functions of the step, from whatever step a run goes on."""
    split = data_set().train
    for step, (indices, seen) in zip(range(7, 12), wanted(split, step=7), strict=False):
        assert torch.equal(indices, batch_indices(len(split), BATCH, step, SEED))
        assert torch.equal(seen, views(BATCH, step, SEED, flip=True))


def test_what_is_in_memory_is_not_read_ahead() -> None:
    """On a CPU it would gain nothing."""
    split = data_set().train
    ahead = Ahead(split, CPU)
    with ahead.reading(wanted(split), 2):
        indices, seen = next(wanted(split))
        assert same(ahead.batch(indices, views=seen), split.batch(indices, views=seen))
        assert not readers()


@pytest.mark.slow
def test_a_slow_reader_is_hidden_behind_the_steps(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 ms a picture, four of them a step of 150 ms: after the first, a batch is there when it is wanted."""
    split = folder().train
    slowed(monkeypatch, 0.05)
    ahead, asked, waited = Ahead(split, CPU), list(islice(wanted(split), 8)), list[float]()
    with ahead.reading(iter(asked), 2):
        for indices, seen in asked:
            before = time.monotonic()
            ahead.batch(indices, views=seen)
            waited.append(time.monotonic() - before)
            time.sleep(0.15)
    assert sorted(waited[1:])[3] < 0.02  # the median: a busy machine may hold up some


def test_no_more_is_read_than_was_allowed(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches beside the one that is asked for, however long the step takes."""
    split, read = folder().train, list[int]()
    slowed(monkeypatch, 0.0, read.append)
    ahead, asked = Ahead(split, CPU), list(islice(wanted(split), 8))
    with ahead.reading(iter(asked), 2):
        for number, (indices, seen) in enumerate(asked[:4], start=1):
            ahead.batch(indices, views=seen)
            time.sleep(0.05)
            assert len(read) <= BATCH * (number + 2)


def test_an_exception_of_the_reader_is_raised_by_the_batch_that_wants_it(
    folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the ones before, though it is long known then."""
    split = folder().train
    asked = list(islice(wanted(split), 4))
    (bad,) = (
        set(asked[2][0].tolist()) - set(torch.cat([asked[0][0], asked[1][0]]).tolist()) - set(asked[2][0][1:].tolist())
    )

    def fail(index: int) -> None:
        if index == bad:
            raise RuntimeError("a bug of the reader")

    slowed(monkeypatch, 0.0, fail)
    ahead = Ahead(split, CPU)
    with ahead.reading(iter(asked), 3):
        for indices, seen in asked[:2]:
            ahead.batch(indices, views=seen)
            time.sleep(0.05)
        with pytest.raises(RuntimeError, match="a bug of the reader"):
            ahead.batch(asked[2][0], views=asked[2][1])
    assert not readers()


def test_unreadable_pictures_are_found_in_the_step_that_wants_them(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ones stand in, the same are named, by the caller's thread and no sooner than without reading ahead."""
    found: list[tuple[list[bytes], list[list[str]]]] = []
    broken = {3, 4, 11}
    decode = Size.decode

    def spoilt(self: Size, item: reading.Item) -> Tensor | str:
        return "spoilt" if int(item.name[:2]) in broken else decode(self, item)

    for count in (0, 3):
        loaded = folder()
        monkeypatch.setattr(Size, "decode", spoilt)
        split, pictures, named = loaded.train, list[bytes](), list[list[str]]()
        ahead, asked = Ahead(split, CPU), list(islice(wanted(split), 6))
        with ahead.reading(iter(asked), count):
            for indices, seen in asked:
                time.sleep(0.02)
                named.append(list(loaded.unreadable))
                pictures.append(ahead.batch(indices, views=seen)[0].numpy().tobytes())
        found.append((pictures, named))
        monkeypatch.setattr(Size, "decode", decode)
    assert found[0] == found[1]
    assert found[0][1][0] == []
    assert len(found[0][1][-1]) >= 2


def test_leaving_waits_for_no_more_than_a_picture(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by an exception; what was waiting to be read is dropped, and no thread is left."""
    split = folder().train
    slowed(monkeypatch, 0.1)
    ahead = Ahead(split, CPU)
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ahead.reading(wanted(split), 50):
        raise KeyboardInterrupt
    assert time.monotonic() - before < 1
    assert not readers()
