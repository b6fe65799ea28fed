"""Laws of cells: never made twice, never mixed up, one that fails keeps no other back, a stopped study goes on."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nextscale.errors import InputError
from nextscale.files import lock
from nextscale.machine import distributed
from nextscale.studies import cells
from nextscale.studies.cells import Cell, Clock, Event, outcomes, run
from nextscale.training.loop import Stopped

CELLS = [Cell(name=name, settings={"size": size}) for size, name in enumerate(["small", "large", "huge"])]


def figures(value: float) -> dict[str, Any]:
    return {"figures": {"size": {"value": value}}}


class Made:
    """Work that remembers what it was asked for, and fails or stops where it is told to."""

    def __init__(self, **errors: BaseException) -> None:
        self.names, self.errors = list[str](), errors

    def __call__(self, cell: Cell, folder: Path) -> Mapping[str, Any]:
        self.names.append(cell.name)
        assert json.loads((folder / cells.CELL).read_text())["name"] == cell.name
        if cell.name in self.errors:
            raise self.errors[cell.name]
        return figures(cell.settings["size"])


def events(root: Path, work: Made, wanted: list[Cell] = CELLS) -> list[Event]:
    return [*run(root, "sizes", wanted, work, estimate=lambda cell: 60.0)]


def test_a_cell_is_made_once(root: Path) -> None:
    """The second time all are there; what is yielded tells so, and the results are those of the first."""
    first, second = Made(), Made()
    assert [event.state for event in events(root, first)] == ["begins", "done"] * 3
    again = events(root, second)
    assert [event.state for event in again] == ["kept"] * 3
    assert [event.outcome.results for event in again] == [figures(size) for size in range(3)]
    assert (first.names, second.names) == (["small", "large", "huge"], [])


@pytest.mark.parametrize("change", [{"settings": {"size": 7}}, {"seed": 1}, {"name": "tiny"}])
def test_another_setting_is_another_cell(root: Path, change: dict[str, Any]) -> None:
    """In a folder of its own: what was there stays."""
    events(root, Made())
    other = dataclasses.replace(CELLS[0], **change)
    assert other.fingerprint != CELLS[0].fingerprint
    assert [event.state for event in events(root, Made(), [other, CELLS[0]])] == ["begins", "done", "kept"]


def test_another_judge_asks_for_the_work_again_in_the_same_folder(root: Path) -> None:
    """So that what has been made can be found there."""
    events(root, Made())
    judged = dataclasses.replace(CELLS[0], judging={"count": 9})
    assert judged.folder == CELLS[0].folder
    work = Made()
    events(root, work, [judged])
    assert work.names == ["small"]
    assert outcomes(root, [judged])[0].results is not None
    assert outcomes(root, [CELLS[0]])[0].results is None


def test_a_cell_that_fails_is_told_and_the_others_go_on(root: Path) -> None:
    """The reason in a line and Python's traceback are kept; the next call tries again."""
    broken = Made(large=RuntimeError("no\nmemory"), huge=InputError("expected 1, got 2"))
    states = [(event.outcome.cell.name, event.state) for event in events(root, broken) if event.state != "begins"]
    assert states == [("small", "done"), ("large", "failed"), ("huge", "failed")]
    assert [outcome.failure for outcome in outcomes(root, CELLS)] == [
        "",
        "RuntimeError: no memory",
        "expected 1, got 2",
    ]
    text = (root / cells.CELLS / CELLS[1].folder / cells.FAILURE).read_text()
    assert "Traceback" in text
    work = Made()
    assert [event.state for event in events(root, work)] == ["kept", "begins", "done", "begins", "done"]
    assert work.names == ["large", "huge"]
    assert not any(outcome.failure for outcome in outcomes(root, CELLS))


@pytest.mark.parametrize("stop", [Stopped(saved=True), KeyboardInterrupt()])
def test_a_study_that_is_stopped_goes_on(root: Path, stop: BaseException) -> None:
    """Neither counts as a failure; the cell that was being made is made the next time, those before are kept."""
    with pytest.raises(type(stop)):
        events(root, Made(large=stop))
    assert [outcome.failure for outcome in outcomes(root, CELLS)] == ["", "", ""]
    work = Made()
    events(root, work)
    assert work.names == ["large", "huge"]


def test_the_time_left_is_scaled_by_what_cells_have_taken(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of a minute each, as estimated; the first takes two."""
    now = itertools.count(step=120)
    monkeypatch.setattr(cells.time, "monotonic", lambda: next(now))
    left = [event.left for event in events(root, Made())]
    assert left == [180, 240, 240, 120, 120, 0]
    assert [event.left for event in events(root, Made())] == [0, 0, 0]


def test_a_directory_of_something_else_is_refused(root: Path, tmp_path: Path) -> None:
    """Another study, other files; hidden ones are none."""
    events(root, Made())
    with pytest.raises(InputError, match=r"holds another study \(sizes there, shapes here\): choose another --out"):
        next(run(root, "shapes", CELLS, Made(), estimate=lambda cell: 1.0))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(InputError, match="expected a new or empty directory, or this study, got one of other files"):
        events(tmp_path / "photos", Made())


def test_two_processes_do_not_work_on_one_study(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they know of each other or not."""
    with lock.held(root), pytest.raises(InputError, match="is in use by"):
        events(root, Made())
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(InputError, match="study: expected one process, got 2"):
        events(root, Made())


def test_the_time_of_parts_adds_up_over_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written down now and then, so that a kill loses little, and at the end whatever happens."""
    now = [0.0]
    monkeypatch.setattr(cells.time, "monotonic", lambda: now[0])

    def kept() -> dict[str, float]:
        return json.loads((tmp_path / cells.SECONDS).read_text())

    clock = Clock(tmp_path)
    with clock.running("tokenizer") as tick:
        now[0] = 19.0
        tick()
        assert not (tmp_path / cells.SECONDS).exists()
        now[0] = 21.0
        tick()
        assert kept() == {"tokenizer": 21.0}
    again = Clock(tmp_path)
    with suppress(KeyboardInterrupt), again.running("tokenizer"):
        now[0] = 30.0
        raise KeyboardInterrupt
    with again.running("transformer"):
        now[0] = 31.0
    assert kept() == {"tokenizer": 30.0, "transformer": 1.0}
    assert Clock(tmp_path).total == 31.0
