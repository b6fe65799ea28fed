"""Laws of runs whose pictures are read ahead: it shows in no result, and ends with the run, however that ends."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from nextscale import data
from nextscale.data import DataSet, reading
from nextscale.data.reading import OnDemand
from nextscale.training import loop
from nextscale.training.loop import Event, Length, Rhythm, Stopped, train
from nextscale.training.tokenizer.stage import TokenizerStage


@pytest.fixture
def on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], DataSet]:
    """Pictures of two classes that are decoded when a batch wants them."""
    for index in range(24):
        noise = np.random.default_rng(index).integers(0, 256, (12, 11, 3), dtype=np.uint8)
        file = tmp_path / "pictures" / "ab"[index % 2] / f"{index:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(file)
    monkeypatch.setattr(reading, "MEMORY", 0)
    return lambda: data.load(tmp_path / "pictures", height=8, width=8)


@runtime_checkable
class Never(Protocol):
    """What no stage has."""

    def nothing_of_this_name(self) -> None: ...


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("nextscale-reading")]


def run(stage: Any, directory: Path, cut: int | None = None) -> list[Event]:
    events = train(stage, directory, Length(steps=4), seed=0, rhythm=Rhythm(checks=2))
    return list(itertools.islice(events, cut))


@pytest.mark.slow
def test_reading_ahead_does_not_show_in_the_result(
    make_stage, on_demand, tmp_path: Path, left_behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with a batch in parts; also of a run that was cut short in between."""
    parts = {"accumulate": 2}
    run(make_stage(on_demand(), **parts), tmp_path / "ahead")
    run(make_stage(on_demand(), **parts), tmp_path / "cut", 3)
    run(make_stage(on_demand(), **parts), tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Prefetching", Never)
        run(make_stage(on_demand(), **parts), tmp_path / "plain")
    expected = left_behind(tmp_path / "plain")
    assert left_behind(tmp_path / "ahead") == left_behind(tmp_path / "cut") == expected
    assert not readers()


def slow(monkeypatch: pytest.MonkeyPatch, stage: TokenizerStage, at: int, then: Callable[[], object]) -> None:
    """A reader that takes a tenth of a second a picture, and something that happens in the middle of a step."""
    plain, update = OnDemand.read, stage.update

    def slowly(self: OnDemand, index: int) -> Tensor | str:
        time.sleep(0.1)
        return plain(self, index)

    def updated(step: int, total: float | None) -> Any:
        done = update(step, total)
        assert readers()
        if step == at:
            then()
        return done

    monkeypatch.setattr(OnDemand, "read", slowly)
    monkeypatch.setattr(stage, "update", updated)


@pytest.mark.slow
def test_a_signal_ends_a_run_and_its_reading(first_stage, on_demand, tmp_path: Path, monkeypatch) -> None:
    """Saved, within a second of the step's end but for the saving, and no thread is left."""
    stage, since = first_stage(on_demand()), list[float]()
    monkeypatch.setattr(stage, "sound", lambda: True)
    slow(monkeypatch, stage, 1, lambda: (since.append(time.monotonic()), signal.raise_signal(signal.SIGINT)))
    save = loop.RunDirectory.save

    def saved(*given: Any) -> None:
        save(*given)
        since.append(time.monotonic())

    monkeypatch.setattr(loop.RunDirectory, "save", saved)
    with pytest.raises(Stopped):
        run(stage, tmp_path / "run")
    assert time.monotonic() - since[-1] < 1
    assert not readers()


@pytest.mark.slow
def test_a_failure_ends_the_reading(first_stage, on_demand, tmp_path: Path, monkeypatch) -> None:
    """An exception in the middle of a step goes through."""

    def fail() -> None:
        raise RuntimeError("a bug in a step")

    stage = first_stage(on_demand())
    slow(monkeypatch, stage, 1, fail)
    with pytest.raises(RuntimeError, match="a bug in a step"):
        run(stage, tmp_path / "run")
    assert not readers()
