"""The one training loop: both stages are run by it, and it knows neither.

A stage makes a step, validates, shows and exports; the loop owns the run directory, the checkpoints and the moment to
stop. It yields after every step, so that whoever watches decides what to
print. A run continues from its directory bit for bit: everything random is a function of the step (`order`).
"""

from __future__ import annotations

import dataclasses
import math
import signal
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from nextscale.data import DataSet
from nextscale.data.tokens import TokenSet
from nextscale.errors import InputError
from nextscale.files import lock
from nextscale.machine import distributed
from nextscale.training.optimization import Outcome
from nextscale.training.rundir import RunDirectory, State, Stateful

SKIPS = 10  # steps in a row without a finite gradient, after which more of them would not help
TRIAL_STEPS = 20  # steps timed before a budget in minutes becomes a number of steps
SHARE_FOR_STEPS = 0.93  # of that budget; the rest is for validation, pictures and checkpoints


@dataclass(frozen=True)
class Health:
    """How a run is, in lines for people."""

    table: tuple[str, ...] = ()
    """At most 80 columns wide."""
    warnings: tuple[str, ...] = ()
    """Each a sentence or two: what is wrong, and what to try."""


class Stage(Protocol):
    """What a training stage tells the loop."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> DataSet | TokenSet: ...

    @property
    def recipe(self) -> Any:
        """A dataclass of `recipes`, which says whether a run can be made longer (`endless`)."""
        ...

    @property
    def batch(self) -> int:
        """Images a step."""
        ...

    @property
    def settings(self) -> Mapping[str, object]:
        """JSON values that make this run this run, beside the recipe. A directory with others is not continued."""
        ...

    @property
    def state(self) -> Mapping[str, Stateful]:
        """All that changes along the run: models, optimisers, averages."""
        ...

    def prepare(self) -> None:
        """Called once, before the first step of a run."""
        ...

    def update(self, step: int, total: int | None) -> Outcome:
        """Make a step: everything random in it is a function of `step`."""
        ...

    def inputs(self, step: int) -> Tensor:
        """The pictures of a step, (B, 3, H, W) in [-1, 1], for inspection."""
        ...

    def validate(self) -> dict[str, float]:
        """Figures on held-out data."""
        ...

    def score(self, validation: Mapping[str, float]) -> float:
        """Of these figures the one that tells the best checkpoint; lower is better."""
        ...

    def health(
        self,
        validation: Mapping[str, float],
        figures: Sequence[Mapping[str, float]],
        history: Sequence[Mapping[str, float]],
    ) -> Health:
        """How the run is, by held-out figures, those of the steps since the last ones, and the held-out ones before."""
        ...

    def pictures(self) -> Tensor:
        """One picture (3, H, W) in [-1, 1] that shows how far training has come."""
        ...

    def export(self, directory: Path) -> None:
        """Write the model so that it can be loaded and used."""
        ...


@runtime_checkable
class Gathering(Protocol):
    """What a stage has too if several processes may hold its model in shards."""

    def gather(self) -> None:
        """Called in all of them before the first one alone validates, shows and exports: bring it what that takes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long to train: a number of steps, or minutes, which become steps once the first have been timed."""

    steps: int | None = None
    minutes: float | None = None
    share: float = 1.0
    """Of the minutes, for a run that shares them with others."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise InputError("length of training: expected either steps or minutes")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps: expected at least 1, got {self.steps}")
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"minutes: expected more than 0, got {self.minutes}")
        if self.minutes == float("inf"):
            raise InputError("minutes: expected a finite number, got inf")


@dataclass(frozen=True)
class Event:
    """What the loop yields after a step."""

    step: int
    """Steps done."""
    total: int | None
    """Steps in all; None while a budget in minutes is being turned into steps."""
    figures: dict[str, float]
    """Loss, learning rate, gradient norm, images a second, and the stage's own."""
    validation: dict[str, float] = field(default_factory=dict)
    """Figures on held-out data, after the steps that validated."""
    health: Health = field(default_factory=Health)
    """A table and warnings, after those steps."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop (Ctrl-C, SIGTERM) and has saved itself; the same command continues it."""


def train(stage: Stage, directory: Path, length: Length, *, seed: int, checks: int = 20) -> Iterator[Event]:
    """Train `stage` in `directory`, from where its last checkpoint stands; yields after every step.

    Arguments:
        length: in steps or minutes; a run of fewer steps is made longer where its recipe is endless.
        seed: recorded with the run.
        checks: how many times along the run to validate, show pictures and save.

    Over several processes, each runs this on its own stage; the first one writes and validates. A network whose
    gradient is not finite stays as it is, and the step is counted ("skipped").

    Raises `InputError` when the directory holds another run, is in use by another process or cannot be written,
    `Stopped` after a signal (the run is saved by then), `FloatingPointError` after `SKIPS` steps in a row that were not
    finite (the last checkpoint stays, and the pictures of the last such step lie beside it).
    """
    settings = {
        "stage": stage.name,
        "seed": seed,
        "length": vars(length),
        "recipe": dataclasses.asdict(stage.recipe),
    }
    with lock.held(directory):
        run = RunDirectory.open(directory, settings | dict(stage.settings), endless=stage.recipe.endless)
        run.describe(stage.data)
        run.require_room(stage)
        yield from _continued(stage, run, length, checks)


def _continued(stage: Stage, run: RunDirectory, length: Length, checks: int) -> Iterator[Event]:
    """From the last checkpoint to the end."""
    state = run.restore(stage)
    if distributed.any_of(state.step != distributed.from_first(state.step)):
        raise InputError(f"expected one {run.path} that all processes read, got checkpoints of different steps")
    if state.total is None or length.steps is not None:
        state.total = length.steps  # more than the checkpoint's where the run was made longer
    if state.step == 0:
        stage.prepare()
    if isinstance(stage, Gathering):
        stage.gather()
    if state.step != state.total:
        yield from _steps(stage, run, state, length, checks)
    elif distributed.is_first():
        stage.export(run.path)  # whatever has become of the files since
    run.finish(state)


def _steps(stage: Stage, run: RunDirectory, state: State, length: Length, checks: int) -> Iterator[Event]:
    """The steps that are left."""
    started, durations, since = time.monotonic(), list[float](), list[dict[str, float]]()
    with run.logging(state.step), _stop_requests() as stop:
        while state.step != state.total:
            before = time.monotonic()
            figures = _update(stage, run, state)
            durations.append(time.monotonic() - before)
            since.append(figures)
            figures["images_per_second"] = stage.batch / statistics.median(durations[-20:])
            if state.total is None:
                elapsed = time.monotonic() - started
                assert length.minutes is not None
                minutes = length.minutes * length.share
                state.total = distributed.from_first(_plan(minutes, state.step, durations, elapsed))
            checked, stopping = _is_check(state.step, state.total, checks), distributed.any_of(stop.is_set())
            if (checked or stopping) and isinstance(stage, Gathering):
                stage.gather()
            validation, health = _check(stage, run, state, since) if checked else ({}, Health())
            run.log(state.step, figures, validation)
            if checked or stopping:
                run.save(state, stage)
            if checked:
                since.clear()
            yield Event(state.step, state.total, figures, validation, health)
            if stopping:
                raise Stopped


def _update(stage: Stage, run: RunDirectory, state: State) -> dict[str, float]:
    """One step; stops the run when too many in a row came to nothing."""
    figures, finite = stage.update(state.step, state.total)
    state.skipped_in_row = 0 if finite else state.skipped_in_row + 1
    state.skipped += not finite
    if state.skipped_in_row == SKIPS:
        where = run.keep(state.step, stage.inputs(state.step))
        raise FloatingPointError(
            f"{stage.name}: no finite gradient in {SKIPS} steps in a row up to step {state.step + 1} "
            f"(loss {figures['loss']:g}); the pictures of the last one are in {where}"
        )
    state.step += 1
    return figures | {"skipped": float(state.skipped)}


def _check(
    stage: Stage, run: RunDirectory, state: State, since: Sequence[dict[str, float]]
) -> tuple[dict[str, float], Health]:
    """Validate, show, and keep the best; the history also takes the loss of the step."""
    if not distributed.is_first():
        return {}, Health()
    validation = stage.validate()
    scores = [stage.score(entry) for entry in state.history]
    best = min((score for score in scores if math.isfinite(score)), default=math.inf)
    health = stage.health(validation, since, state.history)
    losses = [figures["loss"] for figures in since if math.isfinite(figures["loss"])]  # JSON knows no others
    state.history.append({"step": state.step, **({"loss": losses[-1]} if losses else {}), **validation})
    run.show(state.step, stage.pictures())
    if stage.score(validation) <= best:
        stage.export(run.path / "best")
    return validation, health


def _plan(minutes: float, step: int, durations: list[float], elapsed: float) -> int | None:
    """The number of steps in all, as soon as it can be known; `durations` and `elapsed` are of this process alone."""
    left = minutes * 60 * SHARE_FOR_STEPS - elapsed
    if len(durations) < TRIAL_STEPS and left > 0:
        return None
    return step + max(int(left / statistics.median(durations)), 0)


def _is_check(step: int, total: int | None, checks: int) -> bool:
    """Whether one of `checks` parts of the run, all as long as whole steps allow, ends with `step`."""
    return total is not None and step * checks // total > (step - 1) * checks // total


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one ends the process as it always would."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def request(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in signals:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number in signals:
            signal.signal(number, before[number])
