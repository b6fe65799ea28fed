"""The one training loop: both stages are run by it, and it knows neither.

A stage makes a step, validates, shows and exports; the loop owns the run directory, the checkpoints and the moment to
stop. It yields after every step, so that whoever watches decides what to
print. A run continues from its directory bit for bit: everything random is a function of the step (`order`).
"""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from nextscale.data import DataSet
from nextscale.data.tokens import TokenSet
from nextscale.errors import InputError
from nextscale.files import lock, remote
from nextscale.machine import distributed
from nextscale.training import mirror as mirrors
from nextscale.training.optimization import Outcome
from nextscale.training.pace import TARGET, Pace, Plan, Record
from nextscale.training.recipes import OF_THE_FALL, Recipe, recorded
from nextscale.training.rundir import RunDirectory, State, Stateful, all_finite

SKIPS = 10  # steps in a row without a finite gradient, after which more of them would not help
MOST_CHECKS = 20  # of a run for which no number is given
STEPS_A_CHECK = 10  # at least, of such a run
UNSOUND = (
    "the held-out metrics or the weights are not finite: nothing is saved, the last checkpoint stays; the training may "
    "have diverged"
)


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

    def update(self, step: int, total: float | None) -> Outcome:
        """Make a step: everything random in it is a function of `step`.

        `total` is what schedules take for the number of steps, None while there is none: in a run that keeps to a
        budget of minutes it may change from step to step, and need not be whole (`pace`).
        """
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

    def sound(self) -> bool:
        """Whether the model that learns, as it is, gives finite numbers for some held-out pictures.

        All processes call it, before every checkpoint; it is to be quick.
        """
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


@runtime_checkable
class Prefetching(Protocol):
    """What a stage has too if the data of its next steps can be read while the device computes."""

    def prefetching(self, step: int) -> AbstractContextManager[None]:
        """Open while steps are made, the next of which is `step`; what reads ahead ends with it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long to train: a number of steps, or minutes, which become steps once the first have been timed, and others
    when the pace changes (`pace`)."""

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

    @property
    def seconds(self) -> float | None:
        """Of the minutes, those of this run; None for a number of steps."""
        return None if self.minutes is None else 60 * self.minutes * self.share


@dataclass(frozen=True)
class Event:
    """What the loop yields after a step."""

    step: int
    """Steps done."""
    total: int | None
    """Steps in all, as far as is known now; None while a budget in minutes is being turned into steps."""
    figures: dict[str, float]
    """Loss, learning rate, gradient norm, images a second, and the stage's own."""
    validation: dict[str, float] = field(default_factory=dict)
    """Figures on held-out data, after the steps that validated."""
    health: Health = field(default_factory=Health)
    """A table and warnings, after those steps."""
    notes: tuple[str, ...] = ()
    """What else should be told of the step, a line each: that the number of steps has changed, and why."""


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """How often a run checks, saves and keeps its model. The weights that come out do not depend on it."""

    checks: int | None = None
    """How many times to validate, show pictures and save: in even steps, the last time at the end. None takes one in
    `STEPS_A_CHECK` steps, and `MOST_CHECKS` at most."""
    checkpoint_minutes: float = 15.0
    """Save, without validation, when the last checkpoint is as old as that."""
    keep: int = 0
    """How many times to export the model to `milestones/`: in even steps, the last time at the end."""

    def __post_init__(self) -> None:
        if self.checks is not None and self.checks < 1:
            raise InputError(f"checks: expected at least 1, got {self.checks}")
        if not 0 < self.checkpoint_minutes < math.inf:
            raise InputError(f"checkpoint minutes: expected more than 0, got {self.checkpoint_minutes:g}")
        if self.keep < 0:
            raise InputError(f"keep: expected 0 or more, got {self.keep}")

    def is_check(self, step: int, plan: Plan) -> bool:
        """Whether to validate after `step`."""
        return _ends_part(step, plan, *self._checks(step, plan))

    def is_kept(self, step: int, plan: Plan) -> bool:
        """Whether to keep the model of this step."""
        return _ends_part(step, plan, 0, self.keep)

    def checks_left(self, step: int, plan: Plan) -> int:
        """How many times to validate from `step` on, it included, as far as is known."""
        since, checks = self._checks(step, plan)
        return checks - _parts_over(step - 1, plan, since, checks) if checks else 0

    def _checks(self, step: int, plan: Plan) -> tuple[int, int]:
        """Since which step, and how many from there to the end."""
        total = plan.total(step)
        if total is None:
            return 0, 0
        return plan.decided_checks(step) or (0, self.checks or _default_checks(total))


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop (Ctrl-C, SIGTERM, torchrun gone); the same command continues it.

    It has saved itself, unless its weights were not finite (`saved`).
    """

    def __init__(self, *, saved: bool) -> None:
        super().__init__()
        self.saved = saved


def train(
    stage: Stage,
    directory: Path,
    length: Length,
    *,
    seed: int,
    rhythm: Rhythm = Rhythm(),
    plateau: Path | None = None,
    mirror: str | None = None,
) -> Iterator[Event]:
    """Train `stage` in `directory`, from where its last checkpoint stands; yields after every step.

    Arguments:
        length: in steps or minutes; a run of fewer steps is made longer where its recipe is endless.
        seed: recorded with the run.
        rhythm: how often it validates and saves.
        plateau: directory of the same run but for its length and fall, whose rate has not begun to fall: where this one
            has no checkpoint of its own yet, it goes on from there, and ends as if it had made those steps itself.
        mirror: address in a bucket where every checkpoint is copied to in the background (`nextscale.training.mirror`).
            Where `directory` is new, the run goes on from there.

    Over several processes, each runs this on its own stage; the first one writes and validates. A network whose
    gradient is not finite stays as it is, and the step is counted ("skipped"). Nothing is saved or exported whose
    held-out figures or weights are not finite.

    Raises `InputError` when the directory holds another run, is in use by another process or cannot be written, when
    `plateau` is another run, or too far, or the course of this one would not leave its steps as they are,
    `Stopped` after a signal, or in ranks whose torchrun is gone, `FloatingPointError` after `SKIPS` steps in a row that
    were not finite (the pictures of the last such step lie in the directory), and when the last step leaves nothing
    that can be saved. The last checkpoint stays in all of these.
    """
    settings = {
        "stage": stage.name,
        "seed": seed,
        "length": vars(length),
        "recipe": recorded(stage.recipe),
    }
    with lock.held(directory):
        if mirror is not None:
            _restore(mirror, directory)
        run = RunDirectory.open(
            directory,
            settings | dict(stage.settings),
            held_out=stage.data.validation.fingerprint,
            endless=stage.recipe.endless,
        )
        run.describe(stage.data)
        run.require_room(stage)
        with _mirrored(run, mirror):
            yield from _continued(stage, run, length, rhythm, plateau)


def _restore(address: str, directory: Path) -> None:
    """Begin where a mirror is, which is said."""
    remote.check_writable(address)
    if distributed.is_first() and (step := mirrors.restore(address, directory)) is not None:
        warnings.warn(f"{directory} was made again from {address}, at step {step}", stacklevel=2)
    distributed.barrier()


@contextmanager
def _mirrored(run: RunDirectory, address: str | None) -> Iterator[None]:
    """Copy checkpoints away while the block runs; the first process does it."""
    if address is None or not distributed.is_first():
        yield
        return
    with mirrors.Mirror.open(address, run.path, run.settings) as mirror:
        run.mirror = mirror
        yield


def _continued(
    stage: Stage, run: RunDirectory, length: Length, rhythm: Rhythm, plateau: Path | None
) -> Iterator[Event]:
    """From the last checkpoint to the end."""
    state = run.restore(stage)
    if plateau is not None and state.step == 0:
        state = _forked(stage, run, plateau, length)
    if distributed.any_of(state.step != distributed.from_first(state.step)):
        raise InputError(f"expected one {run.path} that all processes read, got checkpoints of different steps")
    known, notes = _planned(run, state, length)
    pace = Pace(stage.batch, length.seconds, known.seconds)
    if state.step == 0:
        stage.prepare()
    if isinstance(stage, Gathering):
        stage.gather()
    if state.step != known.plan.total(state.step):
        yield from _steps(stage, run, state, known.plan, pace, rhythm, notes)
    elif distributed.is_first():
        stage.export(run.path)  # whatever has become of the files since
    run.finish(state)


def _planned(run: RunDirectory, state: State, length: Length) -> tuple[Record, list[str]]:
    """How many steps the run is to make, and what of its budget is spent, as far as it is known; and what to say."""
    if length.seconds is None:
        return Record(Plan.of(length.steps)), []  # more than the checkpoint's where the run was made longer
    if state.step == 0:
        run.remember(Record())  # in place of what an attempt without a checkpoint may have left
        return Record(), []
    found = run.remembered()
    if found is not None or state.total is None:
        return found or Record(), []
    spent = TARGET * length.seconds * state.step / state.total  # by a version that kept no record, or it was removed
    note = (
        f"no record of the minutes spent so far: {spent / 60:.3g} are assumed, by the share of the steps that is done"
    )
    return Record(Plan.of(state.total), spent), [note]


def _forked(stage: Stage, run: RunDirectory, plateau: Path, length: Length) -> State:
    """The state of another run, whose steps are those that this one would have made."""
    ours: Recipe = stage.recipe.optimization
    if not stage.recipe.open_ended or length.steps is None:
        raise InputError(
            "plateau: expected a run in steps whose course before the fall does not depend on its length (warmup=0, "
            "final_weight_decay=1, progressive=0), got another"
        )
    state, settings = run.fork(plateau, stage, [f"recipe.optimization.{name}" for name in OF_THE_FALL])
    told = settings["recipe"]["optimization"]
    theirs = dataclasses.replace(ours, **{name: told[name] for name in OF_THE_FALL})
    flat = theirs.plateau(state.total or state.step)
    if state.step > flat:
        raise InputError(f"{plateau}: expected a run on its plateau, got one whose rate falls since step {flat}")
    if state.step > ours.plateau(length.steps):
        raise InputError(
            f"steps: expected a cooldown that begins at step {state.step} or later, where {plateau} is, got one of "
            f"{length.steps} steps that begins at {ours.plateau(length.steps)}"
        )
    state.total = length.steps
    if isinstance(stage, Gathering):
        stage.gather()
    run.save(state, stage)  # from now on this run needs the other one no more
    return state


class _Moment(NamedTuple):
    """What there is to do after a step, in all processes."""

    check: bool
    keep: bool
    save: bool
    """Because time has come, or the run is to stop."""
    stop: bool


class _Found(NamedTuple):
    """What is known of the model of a step."""

    validation: dict[str, float]
    health: Health
    sound: bool
    """Whether it may be saved."""


def _steps(
    stage: Stage, run: RunDirectory, state: State, plan: Plan, pace: Pace, rhythm: Rhythm, notes: list[str]
) -> Iterator[Event]:
    """The steps that are left; `notes` are told with the first."""
    since, found = list[dict[str, float]](), _Found({}, Health(), sound=True)
    saved = time.monotonic()
    reading = stage.prefetching(state.step) if isinstance(stage, Prefetching) else nullcontext()
    with run.logging(state.step), _stop_requests() as stop, reading:
        while state.step != plan.total(state.step):
            figures = pace.timed(partial(_update, stage, run, state, plan.horizon(state.step)))
            since.append(figures)
            asked = _asked(pace.due(state.step, plan), rhythm, saved, stop.is_set() or distributed.orphaned())
            if asked.look:
                before, plan = plan, _replanned(run, state.step, plan, pace, rhythm)
                notes = [*notes, *pace.changed(before, plan, state.step)]
            state.total = plan.total(state.step)
            moment = _moment(state.step, plan, rhythm, asked)
            found = _look(stage, run, state, since, moment)
            run.log(state.step, figures, found.validation)
            if any(moment) and found.sound:
                _save(stage, run, state, pace.record(plan), moment)
                saved = time.monotonic()
            if moment.check:
                since.clear()
                pace.checked()
            if state.step == state.total:
                notes = [*notes, *pace.missed()]
            yield Event(state.step, state.total, figures, found.validation, found.health, tuple(notes))
            notes = []
            if moment.stop:
                raise Stopped(saved=found.sound)
    if not found.sound:
        raise FloatingPointError(
            f"{stage.name}: the weights of the last step, {state.step}, give metrics that are not finite"
        )


def _save(stage: Stage, run: RunDirectory, state: State, record: Record | None, moment: _Moment) -> None:
    if moment.keep:
        run.keep_model(state.step, stage)
    if record is not None:
        run.remember(record)
    run.save(state, stage)


class _Asked(NamedTuple):
    """What is asked for after a step, in all processes."""

    look: bool
    """At the clock."""
    save: bool
    stop: bool


def _asked(look: bool, rhythm: Rhythm, saved: float, stop: bool) -> _Asked:
    """`saved` is when the last checkpoint was written, by the clock of this process; the first one's counts."""
    first = distributed.is_first()
    old = first and time.monotonic() - saved >= 60 * rhythm.checkpoint_minutes
    return _Asked(*distributed.any_of_each(first and look, stop or old, stop))


def _replanned(run: RunDirectory, step: int, plan: Plan, pace: Pace, rhythm: Rhythm) -> Plan:
    """The plan after a look at the first process's clock, recorded before anyone follows it."""
    if distributed.is_first():
        plan = pace.planned(step, plan, rhythm.checks_left(step, plan), due=rhythm.is_check(step, plan))
        run.remember(pace.record(plan) or Record())
    return distributed.from_first(plan)


def _moment(step: int, plan: Plan, rhythm: Rhythm, asked: _Asked) -> _Moment:
    return _Moment(rhythm.is_check(step, plan), rhythm.is_kept(step, plan), asked.save, asked.stop)


def _look(stage: Stage, run: RunDirectory, state: State, since: Sequence[dict[str, float]], moment: _Moment) -> _Found:
    """At the model, if there is anything to do with it."""
    if not any(moment):
        return _Found({}, Health(), sound=True)
    if isinstance(stage, Gathering):
        stage.gather()
    sound = stage.sound() and all_finite(stage)
    sound = not distributed.any_of(not sound)
    return _check(stage, run, state, since, sound) if moment.check else _Found({}, Health(), sound)


def _update(stage: Stage, run: RunDirectory, state: State, total: float | None) -> dict[str, float]:
    """One step of as many as schedules are told; stops the run when too many in a row came to nothing."""
    figures, finite = stage.update(state.step, total)
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


def _check(stage: Stage, run: RunDirectory, state: State, since: Sequence[dict[str, float]], sound: bool) -> _Found:
    """Validate; what is sound, the weights included, is shown, remembered and if there was none better the best."""
    validation, health = dict[str, float](), Health()
    if distributed.is_first():
        validation = stage.validate()
        health = stage.health(validation, since, state.history)
        sound = sound and math.isfinite(stage.score(validation)) and not any(map(math.isnan, validation.values()))
        if sound:
            _keep_check(stage, run, state, since, validation)
        else:
            health = Health(health.table, (*health.warnings, UNSOUND))
        run.tell([*health.table, *health.warnings])
    return _Found(validation, health, distributed.from_first(sound))


def _keep_check(
    stage: Stage, run: RunDirectory, state: State, since: Sequence[dict[str, float]], validation: dict[str, float]
) -> None:
    """Into the history, as pictures, and if there was none better as the best."""
    best = min((stage.score(entry) for entry in state.history), default=math.inf)
    losses = [figures["loss"] for figures in since if math.isfinite(figures["loss"])]
    state.history.append({"step": state.step, **({"loss": losses[-1]} if losses else {}), **validation})
    run.show(state.step, stage.pictures())
    if stage.score(validation) <= best:
        stage.export(run.path / "best")


def _ends_part(step: int, plan: Plan, since: int, parts: int) -> bool:
    """Whether one of so many parts of the run since a step, all as long as whole steps allow, ends with `step`."""
    if plan.total(step) is None:
        return False
    return _parts_over(step, plan, since, parts) > _parts_over(step - 1, plan, since, parts)


def _parts_over(step: int, plan: Plan, since: int, parts: int) -> int:
    return math.floor(plan.share(step, since) * parts)


def _default_checks(total: int) -> int:
    return max(1, min(MOST_CHECKS, total // STEPS_A_CHECK))


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
