"""The cells of a study: what each is made of, where its results are kept, and the walk over all of them.

OUT/study.json                         which study this is
OUT/cells/NAME-seedSEED-FINGERPRINT/   a cell:
    cell.json                          what it is made of
    result.json                        its results, and what they were judged by
    failure.txt                        or why it failed, with Python's traceback
    seconds.json                       the time it has taken so far, part by part
    ...                                what else its work writes: runs, caches

A cell is known by all that its results depend on: it is never made twice, and one with another setting is another cell,
in a folder of its own. What a cell does is a function (`Work`). One that fails is told, and the others go on.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nextscale.data.walk import visible
from nextscale.errors import InputError
from nextscale.files import lock
from nextscale.files.checkpoint import read_json, write_json
from nextscale.files.durable import write_beside
from nextscale.machine import distributed
from nextscale.training.loop import Stopped

STUDY, CELLS = "study.json", "cells"
CELL, RESULT, FAILURE, SECONDS = "cell.json", "result.json", "failure.txt", "seconds.json"
FLUSHED = 20.0  # seconds of work after which the time taken is written down


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing that is made and judged."""

    name: str
    """Of its row in the table; a row has a cell for each seed."""
    settings: Mapping[str, Any]
    """JSON values: all that what is made depends on, but for the seed."""
    judging: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: what is made is judged anew, and not made anew, when these change."""
    seed: int = 0

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with what is made."""
        return fingerprint([self.name, self.settings, self.seed])

    @property
    def folder(self) -> str:
        """Its name in `CELLS`."""
        return f"{self.name}-seed{self.seed}-{self.fingerprint[:8]}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        made = {"name": self.name, "seed": self.seed, "fingerprint": self.fingerprint}
        return {**made, "settings": dict(self.settings), "judging": dict(self.judging)}


def fingerprint(values: Any) -> str:
    """16 hex digits that change with any of some JSON values."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


Work = Callable[[Cell, Path], Mapping[str, Any]]
"""(cell, its folder) -> results, JSON values; "figures" are what tables show (`tables`). What it finds in the folder it
continues."""


@dataclass(frozen=True)
class Outcome:
    """What has become of a cell so far."""

    cell: Cell
    results: Mapping[str, Any] | None = None
    """None while there are none."""
    failure: str = ""
    """In a line, where the last attempt failed."""


@dataclass(frozen=True)
class Event:
    """What `run` yields before and after each cell."""

    number: int
    """Of the cell, from 1."""
    total: int
    outcome: Outcome
    state: Literal["kept", "begins", "done", "failed"]
    """Kept: its results were there already."""
    left: float
    """Seconds that the cells which are not done yet will take, this one included where it begins."""


def run(
    root: Path, study: str, cells: Sequence[Cell], work: Work, *, estimate: Callable[[Cell], float]
) -> Iterator[Event]:
    """Do the work of every cell without results; yields before and after each.

    Arguments:
        root: OUT; made if need be.
        study: its name.
        work: what a cell does.
        estimate: seconds that a cell will take. What is told of the time left is scaled by how long the cells that are
            done have really taken.

    An exception of `work` makes the cell a failed one, to be tried again the next time; a stopped run (`loop.Stopped`)
    and Ctrl-C go through. Raises `InputError` where `root` holds anything else, is in use by another process or cannot
    be written, and behind torchrun.
    """
    with held(root, study):
        before = outcomes(root, cells)
        clock = _Left([outcome.cell for outcome in before if outcome.results is None], estimate)
        for number, outcome in enumerate(before, start=1):
            if outcome.results is not None:
                yield Event(number, len(cells), outcome, "kept", clock.left)
                continue
            yield Event(number, len(cells), outcome, "begins", clock.left)
            with clock.doing(outcome.cell):
                outcome = _done(root, outcome.cell, work)
            yield Event(number, len(cells), outcome, "failed" if outcome.failure else "done", clock.left)


@contextmanager
def held(root: Path, study: str) -> Iterator[None]:
    """Inside, `root` is this study's, and no other process works there; the errors are those of `run`."""
    if distributed.world() > 1:
        raise InputError(f"study: expected one process, got {distributed.world()}")
    with lock.held(root):
        _claim(root, study)
        yield


def outcomes(root: Path, cells: Sequence[Cell]) -> list[Outcome]:
    """What is known of each cell."""
    return [_outcome(root / CELLS / cell.folder, cell) for cell in cells]


def _outcome(folder: Path, cell: Cell) -> Outcome:
    """Results that were judged otherwise are none."""
    if (folder / RESULT).exists():
        stored = read_json(folder / RESULT)
        if stored["cell"] == json.loads(json.dumps(cell.to_json())):
            return Outcome(cell, stored["results"])
    failure = folder / FAILURE
    return Outcome(cell, failure=failure.read_text("utf-8").partition("\n")[0] if failure.exists() else "")


def _claim(root: Path, study: str) -> None:
    """Begin or continue. Raises `InputError` for a directory that holds another study, or anything else."""
    file = root / STUDY
    if not file.exists():
        if visible(root):
            raise InputError(f"{root}: expected a new or empty directory, or this study, got one of other files")
        write_json(file, {"study": study})
    stored = read_json(file)
    found = stored.get("study") if isinstance(stored, dict) else None
    if found != study:
        raise InputError(f"{root} holds another study ({found} there, {study} here): choose another --out")


def _done(root: Path, cell: Cell, work: Work) -> Outcome:
    """Its results or its failure, written down."""
    folder = root / CELLS / cell.folder
    write_json(folder / CELL, cell.to_json())
    (folder / FAILURE).unlink(missing_ok=True)
    try:
        results = work(cell, folder)
    except Stopped:
        raise
    except Exception as error:  # whatever it is, the others go on
        return _failed(folder, cell, error)
    write_json(folder / RESULT, {"cell": cell.to_json(), "results": results})
    return Outcome(cell, results)


def _failed(folder: Path, cell: Cell, error: Exception) -> Outcome:
    told = " ".join(str(error).split())
    line = told if isinstance(error, InputError) else f"{type(error).__name__}: {told}"
    text = "\n".join([line, "", *traceback.format_exception(error)])
    write_beside(folder / FAILURE, lambda beside: beside.write_text(text, encoding="utf-8"))
    return Outcome(cell, failure=line)


# -- time --------------------------------------------------------------------------------------------------------------


class _Left:
    """The time that cells will take, by their estimates and by how wrong these were so far."""

    def __init__(self, cells: Sequence[Cell], estimate: Callable[[Cell], float]) -> None:
        self.waiting = {cell.folder: estimate(cell) for cell in cells}
        self.expected = self.taken = 0.0

    @property
    def left(self) -> float:
        """Seconds."""
        wrong = self.taken / self.expected if self.expected else 1.0
        return wrong * sum(self.waiting.values())

    @contextmanager
    def doing(self, cell: Cell) -> Iterator[None]:
        """Inside, a cell is being made."""
        before = time.monotonic()
        yield
        self.taken += time.monotonic() - before
        self.expected += self.waiting.pop(cell.folder)


class Clock:
    """How long the parts of a cell have taken, over all attempts; written down now and then.

    Arguments:
        folder: of the cell.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / SECONDS
        self.seconds: dict[str, float] = read_json(self.file) if self.file.exists() else {}
        self._since = 0.0

    @property
    def total(self) -> float:
        """Of all parts."""
        return sum(self.seconds.values())

    @contextmanager
    def running(self, part: str) -> Iterator[Callable[[], None]]:
        """Inside, time is that of a part. What it gives is to be called now and then: a kill loses what came after."""
        self._since = time.monotonic()
        try:
            yield lambda: self._tick(part)
        finally:
            self._write(part)

    def _tick(self, part: str) -> None:
        if time.monotonic() - self._since >= FLUSHED:
            self._write(part)

    def _write(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now
        write_json(self.file, self.seconds)
