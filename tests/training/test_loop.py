"""Laws of the training loop: what stops it, what it goes on from, and that none of it shows in the result."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import runpy
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from training.slope import Slope

from nextscale import images
from nextscale.data import DataSet
from nextscale.errors import InputError
from nextscale.files import durable
from nextscale.training.loop import SKIPS, Event, Length, Rhythm, Stopped, train
from nextscale.training.pace import Plan


def stop_at(step: int, number: int = signal.SIGINT) -> Callable[[int], None]:
    """For `Slope.before_step`: a signal in the middle of that step."""
    return lambda now: signal.raise_signal(number) if now == step else None


# ---- continuing ------------------------------------------------------------------------------------------------------


def begin(stage: Any, run: Path, *, steps: int = 4, checks: int = 2) -> Iterator[Event]:
    return train(stage, run, Length(steps=steps), seed=0, rhythm=Rhythm(checks=checks))


@pytest.mark.slow
def test_a_run_cut_short_after_any_step_continues_bit_for_bit(make_stage, tmp_path: Path, left_behind) -> None:
    """Weights, optimiser, history, exported model and sample pictures are those of a run that was left alone."""
    list(begin(make_stage(), tmp_path / "whole"))
    expected = left_behind(tmp_path / "whole")
    for done in range(1, 4):
        run = tmp_path / f"cut after {done}"
        list(itertools.islice(begin(make_stage(), run), done))
        assert [event.step for event in begin(make_stage(), run)][-1] == 4
        assert left_behind(run) == expected


@pytest.mark.slow
def test_a_run_cut_short_between_any_two_writes_continues_bit_for_bit(
    make_stage, tmp_path: Path, left_behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is renamed into place, so what lies there before each renaming is all the states a kill can leave."""
    whole, states, rename = tmp_path / "whole", list[Path](), os.replace

    def replace(source: str, target: str) -> None:
        states.append(shutil.copytree(whole, tmp_path / f"killed after {len(states)} writes"))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        list(begin(make_stage(), whole, steps=2))
    assert len(states) > 10
    expected = left_behind(whole)
    for state in states:
        assert any(file.name.startswith(".") for file in state.rglob("*")), "the file that was about to be renamed"
        list(begin(make_stage(), state, steps=2))
        assert left_behind(state) == expected, state.name
        assert not any(file.name.startswith(".") for file in state.rglob("*"))


POWER_CUTS = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "power_cuts.py"))


def cuts(toy: DataSet, work: Path, *, flushes: bool, count: int) -> Iterator[Path]:
    """What so many power failures may leave of a run of two checks, spread over its writing."""
    work.mkdir()
    disk = POWER_CUTS["Disk"](work)
    with disk.recording(flushes=flushes):
        list(begin(Slope(toy), work / "run"))
    for number, moment in enumerate(disk.moments[:: len(disk.moments) // count]):
        for way in ("torn", "any"):
            yield moment.disk(work.with_name(f"{work.name} {number} {way}"), way, number) / "run"


@pytest.mark.slow
def test_a_run_cut_short_by_a_power_failure_continues_bit_for_bit(
    toy: DataSet, tmp_path: Path, left_behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what was flushed is on the disk then, and of the rest any part; were nothing flushed, it would show."""
    monkeypatch.setattr(durable, "WORD", "0123456789abcdef")
    for flushes in (True, False):
        whole, different = tmp_path / f"{flushes}", 0
        for left in cuts(toy, whole, flushes=flushes, count=10 if flushes else 3):
            monkeypatch.setattr(durable, "WORD", "fedcba9876543210")
            try:
                list(begin(Slope(toy), left))
                same = left_behind(left) == left_behind(whole / "run") and not [*left.rglob(".*")]
            except (InputError, OSError):
                same = False
            different += not same
        assert (different == 0) is flushes


@pytest.mark.slow
def test_the_optimiser_is_restored_exactly(make_stage, tmp_path: Path, left_behind) -> None:
    """Every moment and step count of AdamW is in the comparison that the laws above make."""
    list(begin(make_stage(), tmp_path))
    state = left_behind(tmp_path)["state"]
    parameters = len(list(make_stage().model.parameters()))
    for name in ("step", "exp_avg", "exp_avg_sq"):
        assert sum(key.endswith(f"/{name}") and "/optimizer/state/" in key for key in state) == parameters


@pytest.mark.slow
def test_a_finished_run_is_left_alone(make_stage, tmp_path: Path, left_behind) -> None:
    """No step, no new log, not a byte; its weights are in the stage afterwards."""
    first, second = make_stage(), make_stage()
    list(begin(first, tmp_path))
    before, logs = left_behind(tmp_path), list((tmp_path / "tensorboard").iterdir())
    assert list(begin(second, tmp_path)) == []
    assert left_behind(tmp_path) == before
    assert list((tmp_path / "tensorboard").iterdir()) == logs
    for name, weight in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], weight)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(make_stage, tmp_path: Path, left_behind) -> None:
    """And another seed another one."""
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        list(begin(make_stage(seed=seed), tmp_path / name))
    assert left_behind(tmp_path / "one") == left_behind(tmp_path / "two")
    assert left_behind(tmp_path / "one")["state"] != left_behind(tmp_path / "other")["state"]


def test_training_leaves_torch_as_it_was(make_stage, tmp_path: Path, untouched) -> None:
    """Its random numbers above all: a caller's own program must not depend on having trained something."""
    with untouched():
        list(begin(make_stage(), tmp_path))


def test_a_directory_is_trained_in_by_one_run_at_a_time(toy: DataSet, tmp_path: Path) -> None:
    """The second is refused before it has written anything; afterwards, and after a run that failed, it may."""

    def written() -> dict[Path, int]:
        """When each file was written, but for the log, which a thread of its own writes."""
        return {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != "tensorboard"}

    with contextlib.closing(begin(Slope(toy), tmp_path)) as running:
        next(running)
        before = written()
        with pytest.raises(InputError, match=f"in use by process {os.getpid()} on "):
            next(begin(Slope(toy), tmp_path))
        assert written() == before
    stage = Slope(toy)
    stage.before_step = stop_at(1)
    with pytest.raises(Stopped):
        list(begin(stage, tmp_path))
    assert [event.step for event in begin(Slope(toy), tmp_path)] == [3, 4]
    assert not list(tmp_path.glob(".lock"))


# ---- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_after_the_step_and_saves_it(toy: DataSet, tmp_path: Path, number: int) -> None:
    """The step is finished and reported, the checkpoint is of that step, and the process keeps its own handlers."""
    before = signal.getsignal(number)
    stage, seen = Slope(toy), []
    stage.before_step = stop_at(6, number)
    with pytest.raises(Stopped):
        seen.extend(event.step for event in begin(stage, tmp_path, steps=50, checks=1))
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 7
    assert (tmp_path / "slope.safetensors").exists()
    assert signal.getsignal(number) is before


def test_a_stopped_run_continues(toy: DataSet, tmp_path: Path) -> None:
    """At the next step, to the same end."""
    stage = Slope(toy)
    stage.before_step = stop_at(6)
    with pytest.raises(Stopped):
        list(begin(stage, tmp_path, steps=50))
    assert [event.step for event in begin(Slope(toy), tmp_path, steps=50)] == list(range(8, 51))


def test_a_second_interrupt_is_not_held_back(toy: DataSet, tmp_path: Path) -> None:
    """Whoever presses Ctrl-C twice means it."""
    stage = Slope(toy)
    first, second = stop_at(0), stop_at(0)
    stage.before_step = lambda step: (first(step), second(step))[1]
    with pytest.raises(KeyboardInterrupt):
        list(begin(stage, tmp_path))
    assert not (tmp_path / "state.pt").exists()


def test_training_works_outside_the_main_thread(toy: DataSet, tmp_path: Path) -> None:
    """Where Python allows no signal handlers."""
    steps: list[int] = []
    thread = threading.Thread(target=lambda: steps.extend(event.step for event in begin(Slope(toy), tmp_path)))
    thread.start()
    thread.join()
    assert steps == [1, 2, 3, 4]


# ---- steps and minutes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "either steps or minutes"),
        ({"steps": 5, "minutes": 1.0}, "either steps or minutes"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"minutes": 0.0}, "minutes: expected more than 0, got 0.0"),
        ({"minutes": float("nan")}, "minutes: expected more than 0, got nan"),
        ({"minutes": float("inf")}, "minutes: expected a finite number, got inf"),
    ],
)
def test_a_length_is_steps_or_minutes(given: dict[str, Any], told: str) -> None:
    """One of them, and positive."""
    with pytest.raises(InputError, match=told):
        Length(**given)


@pytest.mark.parametrize(("total", "checks"), [(1, 20), (7, 20), (20, 20), (39, 20), (59, 20), (60, 7), (5, 1)])
def test_checks_are_spread_evenly_and_one_is_the_last_step(
    toy: DataSet, tmp_path: Path, total: int, checks: int
) -> None:
    """As many as asked for, or one a step in shorter runs; the gaps differ by one step at most."""
    events = list(begin(Slope(toy), tmp_path, steps=total, checks=checks))
    assert [event.step for event in events] == list(range(1, total + 1))
    assert {event.total for event in events} == {total}
    checked = [event.step for event in events if event.validation]
    assert len(checked) == min(total, checks)
    assert checked[-1] == total
    gaps = [after - before for before, after in itertools.pairwise([0, *checked])]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("steps", "checks"), [(1, 1), (9, 1), (20, 2), (59, 5), (200, 20), (5000, 20)])
def test_a_short_run_is_checked_every_ten_steps_and_a_long_one_twenty_times(steps: int, checks: int) -> None:
    """Where no number is given; a run of twenty steps prints two tables."""
    plan = Plan.of(steps)
    assert sum(Rhythm().is_check(step, plan) for step in range(1, steps + 1)) == checks
    assert Rhythm().is_check(steps, plan)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"checks": 0}, "checks: expected at least 1, got 0"),
        ({"checks": -3}, "checks: expected at least 1, got -3"),
        ({"checkpoint_minutes": 0.0}, "checkpoint minutes: expected more than 0, got 0"),
        ({"checkpoint_minutes": math.nan}, "checkpoint minutes: expected more than 0, got nan"),
        ({"checkpoint_minutes": math.inf}, "checkpoint minutes: expected more than 0, got inf"),
        ({"keep": -1}, "keep: expected 0 or more, got -1"),
    ],
)
def test_a_rhythm_that_makes_no_sense_is_refused(given: dict[str, Any], told: str) -> None:
    """With what was given."""
    with pytest.raises(InputError, match=f"^{told}$"):
        Rhythm(**given)


def test_minutes_become_a_number_of_steps(clocked, tmp_path: Path) -> None:
    """93 % of a minute at half a second a step: 112, known after a tenth of it, 12 steps."""
    events = list(train(clocked(0.5), tmp_path, Length(minutes=1.0), seed=0))
    assert [event.total for event in events] == [None] * 11 + [112] * (112 - 11)
    assert [event.step for event in events if event.validation][-1] == 112
    assert not any(event.notes for event in events)


def test_of_a_long_budget_twenty_steps_are_timed(clocked, tmp_path: Path) -> None:
    """A tenth of it would be 120."""
    with contextlib.closing(train(clocked(0.5), tmp_path, Length(minutes=10.0), seed=0)) as events:
        assert [event.total for event in itertools.islice(events, 20)] == [None] * 19 + [1116]


def test_a_run_saves_by_time_between_its_checks(clocked, tmp_path: Path) -> None:
    """Steps of half a minute: a checkpoint every six of them, none sooner after a check, without validation."""
    steps, checked = [], []
    for event in train(
        clocked(30.0), tmp_path, Length(steps=20), seed=0, rhythm=Rhythm(checks=2, checkpoint_minutes=3)
    ):
        steps.append(torch.load(tmp_path / "state.pt", weights_only=True)["step"] if event.step > 5 else None)
        checked += [event.step] if event.validation else []
    assert steps == [None] * 5 + [6] * 4 + [10] * 6 + [16] * 4 + [20]
    assert checked == [10, 20]


@pytest.mark.slow
def test_how_often_a_run_saves_does_not_show_in_the_result(make_stage, tmp_path: Path, left_behind) -> None:
    """Neither by time, after every step, nor by what is kept on the way."""
    often = Rhythm(checks=2, checkpoint_minutes=1e-9, keep=3)
    list(train(make_stage(), tmp_path / "often", Length(steps=4), seed=0, rhythm=often))
    list(begin(make_stage(), tmp_path / "seldom"))
    ours, theirs = left_behind(tmp_path / "often"), left_behind(tmp_path / "seldom")
    assert ours["state"] == theirs["state"]
    kept = {name: file for name, file in ours["files"].items() if not name.startswith("milestones/")}
    assert kept == theirs["files"]


def test_milestones_are_the_models_of_their_steps(toy: DataSet, tmp_path: Path) -> None:
    """Three of seven steps, the last one among them; a run cut short makes the same."""
    rhythm = Rhythm(checks=1, keep=3)
    stage, weights = Slope(toy), dict[int, float]()
    for event in train(stage, tmp_path / "whole", Length(steps=7), seed=0, rhythm=rhythm):
        weights[event.step] = float(stage.model.weight.detach().sum())
    kept = {
        int(file.parent.name.removeprefix("step-")): float(safetensors.torch.load_file(file)["weight"].sum())
        for file in (tmp_path / "whole" / "milestones").glob("*/slope.safetensors")
    }
    assert kept == {step: weights[step] for step in (3, 5, 7)}
    list(itertools.islice(train(Slope(toy), tmp_path / "cut", Length(steps=7), seed=0, rhythm=rhythm), 4))
    list(train(Slope(toy), tmp_path / "cut", Length(steps=7), seed=0, rhythm=rhythm))
    for file in (tmp_path / "whole" / "milestones").rglob("*.safetensors"):
        assert (tmp_path / "cut" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()


def test_runs_can_share_the_minutes(clocked, tmp_path: Path) -> None:
    """A fifth of five minutes is as long as one."""
    events = list(train(clocked(0.5), tmp_path / "alone", Length(minutes=1.0), seed=0))
    shared = list(train(clocked(0.5), tmp_path / "shared", Length(minutes=5.0, share=0.2), seed=0))
    assert len(shared) == len(events)


def test_a_budget_of_few_steps_is_kept(clocked, tmp_path: Path) -> None:
    """Steps of ten seconds: the sixth ends a minute."""
    events = list(train(clocked(10.0), tmp_path, Length(minutes=1.0), seed=0))
    assert [event.total for event in events] == [None, 6, 6, 6, 6, 6]
    assert events[-1].validation


def test_a_run_that_goes_on_on_a_slower_machine_keeps_its_minutes(clocked, tmp_path: Path) -> None:
    """Twenty seconds are spent; steps of two seconds fit into the rest eighteen times."""
    rhythm = Rhythm(checks=14)
    with contextlib.closing(train(clocked(0.5), tmp_path, Length(minutes=1.0), seed=0, rhythm=rhythm)) as begun:
        list(itertools.islice(begun, 40))
    events = list(train(clocked(2.0), tmp_path, Length(minutes=1.0), seed=0, rhythm=rhythm))
    assert events[0].step == 41
    assert [event.notes for event in events if event.notes] == [
        ("58 steps instead of 112, to end within 1 min: a step takes 2 s, at first 2 s",)
    ]
    assert events[-1].step == 58


@pytest.mark.parametrize("seconds", [0.5, 1000.0])
def test_a_run_stopped_while_it_is_timed_still_ends_properly(clocked, tmp_path: Path, seconds: float) -> None:
    """What was spent before counts."""
    stage = clocked(0.5)
    tick, stop = stage.before_step, stop_at(9)
    stage.before_step = lambda step: (tick(step), stop(step))[1]
    with pytest.raises(Stopped):
        list(train(stage, tmp_path, Length(minutes=1.0), seed=0))
    events = list(train(clocked(seconds), tmp_path, Length(minutes=1.0), seed=0))
    assert events[-1].step == events[-1].total == (112 if seconds == 0.5 else 11)
    assert events[-1].validation
    assert list(train(clocked(0.5), tmp_path, Length(minutes=1.0), seed=0)) == []


# ---- a step ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clip", "share"), [(100.0, 1.0), (5.0, 1.0), (1.0, 0.2)])
def test_a_gradient_longer_than_the_clip_is_scaled_down(
    toy: DataSet, tmp_path: Path, clip: float, share: float
) -> None:
    """The first moment is (1 - beta_1) times the gradient (3, 4) used; the norm that is told is the one before."""
    (event,) = begin(Slope(toy, clip=clip), tmp_path, steps=1)
    parts = torch.load(tmp_path / "state.pt", weights_only=True)["parts"]
    moment = parts["optimizer"]["state"][0]["exp_avg"]
    torch.testing.assert_close(moment, 0.1 * share * torch.tensor([[3.0, 4.0]]), rtol=1e-4, atol=0)
    assert event.figures["gradient_norm"] == pytest.approx(5.0)


def test_steps_follow_the_learning_rate(toy: DataSet, tmp_path: Path) -> None:
    """Adam under a constant gradient goes one learning rate a step in each direction."""
    stage = Slope(toy, warmup_steps=4, final_rate=0.5)
    rates = [event.figures["learning_rate"] for event in begin(stage, tmp_path, steps=8)]
    assert rates == [stage.recipe.rate(step, 8) for step in range(8)]
    torch.testing.assert_close(stage.model.weight, torch.full((1, 2), -sum(rates)), rtol=1e-4, atol=0)


def test_a_warm_up_by_share_begins_with_the_first_step(toy: DataSet, tmp_path: Path) -> None:
    """Steps are known from the start; minutes are not, and until they are the rate stays where it rises from."""
    share = {"warmup_steps": 0, "warmup": 0.5, "first_rate": 0.1}
    stage = Slope(toy, **share)
    rates = [event.figures["learning_rate"] for event in begin(stage, tmp_path / "steps", steps=8)]
    assert rates == [stage.recipe.rate(step, 8) for step in range(8)]
    events = train(Slope(toy, **share), tmp_path / "minutes", Length(minutes=1.0), seed=0)
    event = next(events)
    assert event.total is None
    assert event.figures["learning_rate"] == pytest.approx(0.1 * stage.recipe.learning_rate)
    events.close()


def poisoned(toy: DataSet, *steps: int) -> Slope:
    """A stage whose gradient is not a number in these steps."""
    stage = Slope(toy)
    stage.before_step = lambda step: setattr(stage, "factor", float("nan") if step in steps else 1.0)
    return stage


def test_a_gradient_that_is_not_finite_skips_the_step(toy: DataSet, tmp_path: Path) -> None:
    """The others are as if it had not been: as many updates less, and the figures count it from then on."""
    stage = poisoned(toy, 2, 5)
    events = list(begin(stage, tmp_path / "poisoned", steps=8))
    assert [event.figures["skipped"] for event in events] == [0, 0, 1, 1, 1, 2, 2, 2]
    healthy = Slope(toy)
    list(begin(healthy, tmp_path / "healthy", steps=6))
    assert torch.equal(stage.model.weight, healthy.model.weight)
    state = torch.load(tmp_path / "poisoned" / "state.pt", weights_only=True)
    assert (state["step"], state["skipped"], state["skipped_in_row"]) == (8, 2, 0)


def test_a_run_goes_on_as_long_as_some_step_succeeds(toy: DataSet, tmp_path: Path) -> None:
    """One step fewer in a row than would stop it, again and again; also when it is cut short in between."""
    stage, bad = Slope(toy), [step for step in range(3 * SKIPS) if step % SKIPS]
    stage = poisoned(toy, *bad)
    list(itertools.islice(begin(stage, tmp_path, steps=3 * SKIPS, checks=3 * SKIPS), SKIPS + 5))
    *_, last = begin(poisoned(toy, *bad), tmp_path, steps=3 * SKIPS, checks=3 * SKIPS)
    assert (last.step, last.figures["skipped"]) == (3 * SKIPS, 3 * (SKIPS - 1))


def test_too_many_skipped_steps_in_a_row_end_the_run(toy: DataSet, tmp_path: Path, left_behind) -> None:
    """The last checkpoint stays as it was, and holds numbers; the pictures of the last step lie beside it."""
    ended = 5 + SKIPS
    with pytest.raises(FloatingPointError) as caught:  # noqa: PT012 - what was there before is looked at on the way
        for _ in begin(poisoned(toy, *range(5, ended)), tmp_path, steps=20, checks=20):
            before = str(left_behind(tmp_path)["state"])  # as text, in which nan is nan
    pictures = tmp_path / f"not-finite-step-{ended:07d}.png"
    told = f"slope: no finite gradient in {SKIPS} steps in a row up to step {ended} (loss nan)"
    assert str(caught.value) == f"{told}; the pictures of the last one are in {pictures}"
    assert tuple(images.open_rgb(pictures).size) == (2 * 4 + 2, 4)
    kept = safetensors.torch.load_file(pictures.with_suffix(".safetensors"))
    assert torch.equal(kept["images"], Slope(toy).inputs(ended - 1))
    assert str(left_behind(tmp_path)["state"]) == before
    assert torch.load(tmp_path / "state.pt", weights_only=True)["parts"]["model"]["weight"].isfinite().all()


def test_a_run_that_ended_so_goes_on_from_its_checkpoint(toy: DataSet, tmp_path: Path) -> None:
    """Where it ends again while the cause is there, and goes on once it is mended."""
    bad = range(3, 3 + SKIPS)
    for stage in (poisoned(toy, *bad), poisoned(toy, *bad)):
        with pytest.raises(FloatingPointError, match=f"up to step {3 + SKIPS}"):
            list(begin(stage, tmp_path, steps=30, checks=30))
    events = list(begin(Slope(toy), tmp_path, steps=30, checks=30))
    assert [event.step for event in events] == list(range(3 + SKIPS, 31))
    assert events[-1].figures["skipped"] == SKIPS - 1


# ---- checks ----------------------------------------------------------------------------------------------------------


def test_a_stage_is_prepared_once(toy: DataSet, tmp_path: Path) -> None:
    """Before the first step of a run, not before those of a continuation."""
    first, second = Slope(toy), Slope(toy)
    list(itertools.islice(begin(first, tmp_path), 2))
    list(begin(second, tmp_path))
    assert (first.prepared, second.prepared) == (1, 0)


def test_best_is_the_export_of_the_check_with_the_lowest_score(toy: DataSet, tmp_path: Path) -> None:
    """Heights 5, 2, 4, 2, 3: the later of two equals; also when the run is cut short after it."""
    heights = [5.0, 2.0, 4.0, 2.0, 3.0]

    def exported(run: Path) -> float:
        return float(safetensors.torch.load_file(run / "best" / "slope.safetensors")["weight"].sum())

    def rugged() -> Slope:
        stage = Slope(toy)
        stage.validate = lambda: {"height": heights[at[0]]}  # type: ignore[method-assign]
        stage.before_step = lambda step: at.__setitem__(0, step)
        return stage

    at, seen, weights = [0], list[float](), list[float]()
    stage = rugged()
    for _ in begin(stage, tmp_path / "whole", steps=5, checks=5):
        seen.append(exported(tmp_path / "whole"))
        weights.append(float(stage.model.weight.detach().sum()))
    assert seen == [weights[best] for best in (0, 1, 1, 3, 3)]
    list(itertools.islice(begin(rugged(), tmp_path / "cut", steps=5, checks=5), 3))
    list(begin(rugged(), tmp_path / "cut", steps=5, checks=5))
    assert exported(tmp_path / "cut") == weights[3]


def heights_along(toy: DataSet, heights: list[float]) -> Slope:
    """A stage with these held-out figures, one a step."""
    stage, at = Slope(toy), [0]
    stage.validate = lambda: {"height": heights[at[0]]}  # type: ignore[method-assign]
    stage.before_step = lambda step: at.__setitem__(0, step)
    return stage


def test_a_check_whose_figures_are_not_finite_saves_nothing(toy: DataSet, tmp_path: Path) -> None:
    """No checkpoint, no model, not as the best; it is told, is not in the history, and later checks are as ever."""
    stage = heights_along(toy, [math.nan, 3.0, math.inf, 5.0])
    saved = []
    for event in begin(stage, tmp_path, steps=4, checks=4):
        state = tmp_path / "state.pt"
        saved.append(torch.load(state, weights_only=True)["step"] if state.exists() else None)
        told = any("not finite: nothing is saved" in text for text in event.health.warnings)
        assert told is not math.isfinite(event.validation["height"])
        assert (tmp_path / "best" / "slope.safetensors").exists() is (event.step > 1)
    assert saved == [None, 2, 2, 4]
    history = json.loads((tmp_path / "history.json").read_text(), parse_constant=pytest.fail)
    assert [entry["step"] for entry in history] == [2, 4]
    assert len(list((tmp_path / "samples").iterdir())) == 2


def test_a_figure_that_is_no_number_keeps_a_check_from_saving(toy: DataSet, tmp_path: Path) -> None:
    """Though it is not the score, which is good."""
    stage = Slope(toy)
    stage.validate = lambda: {"height": 1.0, "psnr": math.nan}  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="the last step, 4, give metrics that are not finite"):
        list(begin(stage, tmp_path))
    assert not (tmp_path / "state.pt").exists()
    assert not (tmp_path / "slope.safetensors").exists()


def test_a_figure_may_be_infinite_where_it_is_not_the_score(toy: DataSet, tmp_path: Path) -> None:
    """The PSNR of a perfect reconstruction is; JSON knows no such number, so it is left out there."""
    stage = Slope(toy)
    stage.validate = lambda: {"height": 1.0, "psnr": math.inf}  # type: ignore[method-assign]
    assert [event.step for event in begin(stage, tmp_path)] == [1, 2, 3, 4]
    history = json.loads((tmp_path / "history.json").read_text(), parse_constant=pytest.fail)
    assert [sorted(entry) for entry in history] == [["height", "loss", "step"]] * 2


SPOIL: dict[str, Callable[[Slope], object]] = {
    "the weights": lambda stage: stage.model.weight.data.fill_(math.inf),
    "a moment": lambda stage: next(iter(stage.optimization.optimizer.state.values()))["exp_avg"].fill_(math.nan),
    "what comes of them": lambda stage: setattr(stage, "sound", lambda: False),
}


def diverging(toy: DataSet, after: int, spoil: Callable[[Slope], object]) -> Slope:
    """From step `after` on no gradient is finite, nor is something else; the held-out figures, of an average, are."""
    stage = poisoned(toy, *range(after, after + SKIPS))
    poison = stage.before_step
    stage.before_step = lambda step: (poison(step), spoil(stage) if step == after else None)[0]
    stage.validate = lambda: {"height": 1.0}  # type: ignore[method-assign]
    return stage


def saved(run: Path) -> dict[str, bytes]:
    """What a run goes on with, and what others load."""
    files = (run / "state.pt", run / "slope.safetensors", run / "best" / "slope.safetensors", run / "history.json")
    return {str(file): file.read_bytes() for file in files}


@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL)
@pytest.mark.parametrize("rhythm", [Rhythm(checks=4), Rhythm(checks=1, checkpoint_minutes=1e-9, keep=8)], ids=str)
def test_a_diverged_run_leaves_the_last_good_checkpoint(
    toy: DataSet, tmp_path: Path, spoil: Callable[[Slope], object], rhythm: Rhythm
) -> None:
    """Whichever of checks, time and milestones would have saved; its end is a failure, and no finished run."""
    before: dict[str, bytes] = {}
    with pytest.raises(FloatingPointError, match="the weights of the last step, 8, give metrics that are not finite"):  # noqa: PT012
        for event in train(diverging(toy, 4, spoil), tmp_path, Length(steps=8), seed=0, rhythm=rhythm):
            if event.step == 4:
                before = saved(tmp_path) if rhythm.checks == 4 else {"": (tmp_path / "state.pt").read_bytes()}
    assert before == (saved(tmp_path) if rhythm.checks == 4 else {"": (tmp_path / "state.pt").read_bytes()})
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4
    assert json.loads((tmp_path / "run.json").read_text())["finished"] is False
    assert len(list(tmp_path.glob("milestones/*"))) == (4 if rhythm.keep else 0)
    assert [event.step for event in begin(Slope(toy), tmp_path, steps=8)] == [5, 6, 7, 8]


def test_a_step_skipped_at_the_end_of_a_good_run_is_no_failure(toy: DataSet, tmp_path: Path) -> None:
    """The weights are those of the step before."""
    *_, last = begin(poisoned(toy, 7), tmp_path, steps=8)
    assert (last.step, last.figures["skipped"]) == (8, 1)
    assert json.loads((tmp_path / "run.json").read_text())["finished"] is True


def test_a_stop_of_a_diverged_run_saves_nothing(toy: DataSet, tmp_path: Path) -> None:
    """And says so to whoever catches it."""
    stage = diverging(toy, 4, SPOIL["the weights"])
    diverge, stop = stage.before_step, stop_at(5)
    stage.before_step = lambda step: (diverge(step), stop(step))[0]
    with pytest.raises(Stopped) as caught:
        list(begin(stage, tmp_path, steps=8, checks=8))
    assert caught.value.saved is False
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4


def test_health_is_told_with_the_figures_since_the_last_check(toy: DataSet, tmp_path: Path) -> None:
    """And the checks before; the last check's stays in the run."""
    events = list(begin(Slope(toy), tmp_path, steps=5, checks=2))
    assert (tmp_path / "health.txt").read_text() == "2 steps\nafter 1 checks\n"
    assert [event.health.table for event in events] == [(), (), ("3 steps",), (), ("2 steps",)]
    assert [event.health.warnings for event in events if event.validation] == [("after 0 checks",), ("after 1 checks",)]


def test_every_event_tells_loss_rate_norm_and_speed(make_stage, tmp_path: Path) -> None:
    """As plain finite numbers."""
    for event in begin(make_stage(), tmp_path):
        assert {"loss", "learning_rate", "gradient_norm", "images_per_second"} <= event.figures.keys()
        assert all(type(value) is float and abs(value) < float("inf") for value in event.figures.values())
