"""The one training loop: both stages are run by it, and it knows neither.

A stage says what a step's loss is, how to validate, what to show and how to export; the loop owns the optimiser, the
schedule, the run directory and the moment to stop. It yields after every step, so that whoever watches decides what to
print. A run continues from its directory bit for bit: everything random is a function of the step (`order`).
"""

from __future__ import annotations

import signal
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from nextscale.data import DataSet
from nextscale.errors import InputError
from nextscale.training.optimization import Recipe, make_optimizer
from nextscale.training.rundir import RunDirectory, State

TRIAL_STEPS = 20  # steps timed before a budget in minutes becomes a number of steps
SHARE_FOR_STEPS = 0.93  # of that budget; the rest is for validation, pictures and checkpoints


class Stage(Protocol):
    """What a training stage tells the loop."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def data(self) -> DataSet: ...

    @property
    def recipe(self) -> Recipe: ...

    @property
    def settings(self) -> Mapping[str, object]:
        """JSON values that make this run this run, beside the recipe. A directory with others is not continued."""
        ...

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of a step's batch, and figures to log."""
        ...

    def validate(self) -> dict[str, float]:
        """Figures on held-out data."""
        ...

    def pictures(self) -> Tensor:
        """One picture (3, H, W) in [-1, 1] that shows how far training has come."""
        ...

    def export(self, directory: Path) -> None:
        """Write the model so that it can be loaded and used."""
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


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop (Ctrl-C, SIGTERM) and has saved itself; the same command continues it."""


def train(stage: Stage, directory: Path, length: Length, *, seed: int, checks: int = 20) -> Iterator[Event]:
    """Train `stage` in `directory`, from where its last checkpoint stands; yields after every step.

    Arguments:
        length: in steps or minutes.
        seed: recorded with the run.
        checks: how many times along the run to validate, show pictures and save.

    Raises `InputError` when the directory holds another run or cannot be written, `Stopped` after a signal (the run is
    saved by then), `FloatingPointError` when the loss stops being finite (the last checkpoint stays).
    """
    settings = {"stage": stage.name, "seed": seed, "length": vars(length), "recipe": vars(stage.recipe)}
    run = RunDirectory.open(directory, settings | dict(stage.settings))
    run.describe(stage.data)
    optimizer = make_optimizer(stage.model, stage.recipe)
    state = run.restore(stage.model, optimizer)
    if state.step != state.total:
        yield from _steps(stage, run, optimizer, state, length, checks)
    run.finish(state)


def _steps(
    stage: Stage, run: RunDirectory, optimizer: torch.optim.Optimizer, state: State, length: Length, checks: int
) -> Iterator[Event]:
    """The steps that are left."""
    started, durations = time.monotonic(), list[float]()
    with run.logging(state.step), _stop_requests() as stop:
        while state.step != state.total:
            before = time.monotonic()
            figures = _update(stage, optimizer, state)
            state.step += 1
            durations.append(time.monotonic() - before)
            figures["images_per_second"] = stage.recipe.batch / statistics.median(durations[-20:])
            if state.total is None:
                state.total = _plan(length, state.step, durations, time.monotonic() - started)
            checked = _is_check(state.step, state.total, checks)
            validation = _check(stage, run, state, figures["loss"]) if checked else {}
            run.log(state.step, figures, validation)
            if checked or stop.is_set():
                run.save(state, stage, optimizer)
            yield Event(state.step, state.total, figures, validation)
            if stop.is_set():
                raise Stopped


def _update(stage: Stage, optimizer: torch.optim.Optimizer, state: State) -> dict[str, float]:
    """One step of the optimiser."""
    rate = stage.recipe.rate(state.step, state.total)
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss, figures = stage.loss(state.step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(stage.model.parameters(), stage.recipe.clip)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"{stage.name}: the gradient of step {state.step} is not finite (loss {loss.item()})")
    optimizer.step()
    values = {"loss": loss.detach(), **figures, "gradient_norm": norm}
    return {name: float(value) for name, value in values.items()} | {"learning_rate": rate}


def _check(stage: Stage, run: RunDirectory, state: State, loss: float) -> dict[str, float]:
    """Validate and show; the history also takes the loss of the step's batch."""
    validation = stage.validate()
    state.history.append({"step": state.step, "loss": loss, **validation})
    run.show(state.step, stage.pictures())
    return validation


def _plan(length: Length, step: int, durations: list[float], elapsed: float) -> int | None:
    """The number of steps in all, as soon as it can be known; `durations` and `elapsed` are of this process alone."""
    if length.steps is not None:
        return length.steps
    assert length.minutes is not None
    left = length.minutes * length.share * 60 * SHARE_FOR_STEPS - elapsed
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
