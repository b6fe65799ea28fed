"""Laws of a budget in minutes: it is kept, its record is followed to the bit, and no schedule jumps."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from training.slope import STEADY

from nextscale.errors import InputError
from nextscale.training.loop import Length, Rhythm, train
from nextscale.training.pace import Decision, Plan, Record

a_few = settings(max_examples=30, deadline=None)
MINUTE, TWICE = Length(minutes=1.0), Rhythm(checks=2)


@some.composite
def plans(draw: some.DrawFn) -> Plan:
    """A number of steps that becomes another one up to four times along the way."""
    step = draw(some.integers(1, 20))
    plan = Plan().with_total(step, step + draw(some.integers(0, 50)), 0.0)
    for _ in range(draw(some.integers(0, 4))):
        total = plan.total(step)
        assert total is not None
        if total - step < 2:
            break
        step = draw(some.integers(step + 1, total - 1))
        checks = draw(some.none() | some.integers(1, 2))
        plan = plan.with_total(step, step + draw(some.integers(1, 50)), 0.0, checks)
    return plan


def end(plan: Plan) -> int:
    return plan.decisions[-1].total


# ---- the plan --------------------------------------------------------------------------------------------------------


@a_few
@given(plans())
def test_progress_rises_from_nothing_to_the_whole(plan: Plan) -> None:
    """With every step, exactly from 0 to 1, wherever the number of steps has changed."""
    course = [plan.progress(step) for step in range(end(plan) + 1)]
    assert (course[0], course[-1]) == (0, 1)
    assert all(before < after for before, after in itertools.pairwise(course))


@a_few
@given(plans())
def test_a_decision_moves_no_schedule_at_its_own_step(plan: Plan) -> None:
    """What schedules are told there, and before, is what they would have been told without it."""
    before = Plan(plan.decisions[:-1])
    for step in range(plan.last + 1) if before.decisions else ():
        assert plan.horizon(step) == before.horizon(step) or step == plan.last
        assert plan.progress(step) == before.progress(step)


@a_few
@given(plans(), some.sampled_from(["linear", "cosine", "sqrt"]), some.sampled_from([0.0, 0.3]))
def test_a_rate_falls_evenly_whatever_the_plan(plan: Plan, fall: str, flat: float) -> None:
    """From the peak to where it is to end; never up again, and no further in a step than its progress allows."""
    recipe = STEADY.__class__(**{**vars(STEADY), "fall": fall, "flat": flat, "final_rate": 0.1})
    steps = range(plan.decisions[0].step, end(plan))
    rates = [recipe.rate(step, plan.horizon(step)) / recipe.learning_rate for step in steps]
    for step, (before, after) in zip(steps, itertools.pairwise(rates), strict=False):
        moved = float(plan.progress(step + 1) - plan.progress(step)) / (1 - flat) + 1 / plan.horizon(step)  # type: ignore[operator]
        most = {"linear": moved, "cosine": 1.6 * moved, "sqrt": moved**0.5}[fall]
        assert -1e-9 - (flat > 0) / plan.horizon(step) <= before - after <= most + 1e-9  # type: ignore[operator]


def test_a_number_of_steps_stays_a_whole_number() -> None:
    """So that runs of so many steps are what they were, and those in minutes whose number has not changed."""
    for plan in (Plan.of(77), Plan().with_total(20, 77, 1.0)):
        assert {(plan.horizon(step), type(plan.horizon(step))) for step in range(20, 77)} == {(77, int)}
    assert Plan().total(5) is Plan().horizon(5) is None


@a_few
@given(plans(), some.floats(0, 1e6))
def test_a_record_is_read_as_it_was_written(plan: Plan, seconds: float) -> None:
    """Through JSON."""
    record = Record(plan, seconds)
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


@a_few
@given(plans(), some.integers(1, 30))
def test_every_part_of_a_run_has_its_check(plan: Plan, checks: int) -> None:
    """The last at the end, and at any step no more of them left than `checks_left` tells, nor than were decided on."""
    rhythm, steps = Rhythm(checks=checks), range(plan.decisions[0].step, end(plan) + 1)
    checked = [step for step in steps if rhythm.is_check(step, plan)]
    assert checked[-1] == end(plan)
    decided = [decision for decision in plan.decisions if decision.checks is not None]
    for step in steps[decided[-1].step + 1 - steps[0] if decided else 0 :]:
        assert len([one for one in checked if one >= step]) <= rhythm.checks_left(step, plan)
    assert all(rhythm.checks_left(one.step + 1, plan) == one.checks for one in decided[-1:])


# ---- the clock -------------------------------------------------------------------------------------------------------


def slower(at: float, by: float) -> Callable[[float], float]:
    """Half a second a step, and from some second on so many times as much."""
    return lambda seconds: 0.5 if seconds < at else 0.5 * by


@pytest.mark.parametrize("check", [0.0, 4.0])
@pytest.mark.parametrize(
    ("at", "by"), [(15, 3), (20, 8), (30, 1.3), (30, 6), (45, 3), (0, 20), (20, 0.5), (40, 0.4), (15, 1)]
)
def test_a_budget_is_kept_at_whatever_pace(clocked, tmp_path: Path, at: float, by: float, check: float) -> None:
    """Within a tenth, with checks that take time, without a word of missing it; the last step is checked."""
    stage = clocked(slower(at, by), check=check)
    *events, last = train(stage, tmp_path, MINUTE, seed=0, rhythm=Rhythm(checks=3))
    spent = json.loads((tmp_path / "plan.json").read_text())["seconds"]
    assert 0.9 <= spent / 60 <= 1.1
    assert last.validation
    assert last.step == last.total
    assert not any("took" in note for event in (*events, last) for note in event.notes)


@pytest.mark.parametrize(("at", "by"), [(0, 1), (15, 3), (30, 4)])
def test_dear_checks_are_left_out_before_steps(clocked, tmp_path: Path, at: float, by: float) -> None:
    """Six checks of 9 seconds would leave 6 of a minute: there are fewer, which is told; most of the time is steps'."""
    events = list(train(clocked(slower(at, by), check=9.0), tmp_path, MINUTE, seed=0, rhythm=Rhythm(checks=6)))
    spent = json.loads((tmp_path / "plan.json").read_text())["seconds"]
    assert 0.9 <= spent / 60 <= 1.1
    checks = sum(bool(event.validation) for event in events)
    assert 1 < checks <= 3
    assert 9 * checks <= 0.5 * spent
    assert any("of whose checks 1 is left" in note for event in events for note in event.notes)


def test_a_steady_run_keeps_its_number_of_steps(clocked, tmp_path: Path) -> None:
    """One decision, and nothing to tell."""
    events = list(train(clocked(0.5, check=1.0), tmp_path, MINUTE, seed=0, rhythm=TWICE))
    assert len(json.loads((tmp_path / "plan.json").read_text())["decisions"]) == 1
    assert not any(event.notes for event in events)


def test_a_change_is_told_in_one_line(clocked, tmp_path: Path) -> None:
    """What it is now, what it was, and what it comes from."""
    events = list(train(clocked(slower(30, 4)), tmp_path, MINUTE, seed=0, rhythm=TWICE))
    (first, *_) = [note for event in events for note in event.notes]
    assert first == "92 steps instead of 112, to end within 1 min: a step takes 0.8 s, at first 0.5 s, a check 0 s"


def test_a_budget_that_cannot_be_kept_is_told_at_the_end(clocked, tmp_path: Path) -> None:
    """The last check alone takes as long as half of it."""
    *_, last = train(clocked(0.5, check=30.0), tmp_path, MINUTE, seed=0, rhythm=Rhythm(checks=1))
    assert last.notes == ("took 1.43 min, not 1 min: a step takes 0.5 s, at first 0.5 s, a check 30 s",)


def test_a_rate_does_not_jump_where_the_number_of_steps_changes(clocked, tmp_path: Path) -> None:
    """A run that slows to an eighth: the rate falls all along, to where it was to end."""
    stage = clocked(slower(20, 8), final_rate=0.1)
    events = list(train(stage, tmp_path, MINUTE, seed=0, rhythm=TWICE))
    rates = [event.figures["learning_rate"] / stage.recipe.learning_rate for event in events]
    assert len({event.total for event in events[20:]}) > 1
    assert all(0 <= before - after < 0.1 for before, after in itertools.pairwise(rates))
    assert rates[-1] == pytest.approx(0.1, abs=0.1)


# ---- the record ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [12, 30, 41])
def test_a_run_that_was_killed_follows_its_record_bit_for_bit(clocked, tmp_path: Path, left_behind, cut: int) -> None:
    """Whatever the clock says by then: weights, moments, history and models are those of a run left alone."""
    ours, theirs, often = tmp_path / "ours", tmp_path / "theirs", Rhythm(checks=4, checkpoint_minutes=0.05)
    list(train(clocked(slower(20, 5), final_rate=0.1), theirs, MINUTE, seed=0, rhythm=Rhythm(checks=4)))
    with contextlib.closing(
        train(clocked(slower(20, 5), final_rate=0.1), ours, MINUTE, seed=0, rhythm=often)
    ) as events:
        list(itertools.islice(events, cut))
    shutil.copy(theirs / "plan.json", ours / "plan.json")
    first, *_ = list(train(clocked(1e-6, final_rate=0.1), ours, MINUTE, seed=0, rhythm=often))
    assert 1 < first.step <= cut + 1
    decisions = Record.from_json(json.loads((ours / "plan.json").read_text())).plan.decisions
    assert [decision.step for decision in decisions if decision.step > cut]
    expected, found = left_behind(theirs), left_behind(ours)
    assert found["files"].pop("plan.json") != expected["files"].pop("plan.json")  # what is spent
    assert found == expected


def test_a_decision_is_on_the_disk_before_a_step_follows_it(clocked, tmp_path: Path) -> None:
    """So that no step is made that a killed run would make otherwise."""
    stage, found = clocked(slower(20, 5)), list[bool]()
    update = stage.update

    def looked(step: int, total: float | None):
        if total is not None:
            record = Record.from_json(json.loads((tmp_path / "plan.json").read_text()))
            found.append(record.plan.horizon(step) == total)
        return update(step, total)

    stage.update = looked
    list(train(stage, tmp_path, MINUTE, seed=0, rhythm=TWICE))
    assert len(found) > 20
    assert all(found)


def test_minutes_spent_by_attempts_that_were_killed_count(clocked, tmp_path: Path) -> None:
    """Half of the minute is gone; steps as fast as before end with the minute, not half a minute later."""
    rhythm = Rhythm(checks=8)
    with contextlib.closing(train(clocked(0.5), tmp_path, MINUTE, seed=0, rhythm=rhythm)) as events:
        list(itertools.islice(events, 60))
    *_, last = train(clocked(0.5), tmp_path, MINUTE, seed=0, rhythm=rhythm)
    assert 110 <= last.step + 60 - 56 <= 120


def test_a_run_without_a_record_tells_what_it_assumes(clocked, tmp_path: Path) -> None:
    """Half of its steps are done, so about half of the minute is spent; it ends in time."""
    rhythm = Rhythm(checks=8)
    with contextlib.closing(train(clocked(0.5), tmp_path, MINUTE, seed=0, rhythm=rhythm)) as events:
        list(itertools.islice(events, 60))
    (tmp_path / "plan.json").unlink()
    first, *_, last = train(clocked(0.5), tmp_path, MINUTE, seed=0, rhythm=rhythm)
    assert first.notes[0].startswith("no record of the minutes spent so far: 0.475 are assumed")
    assert 110 <= last.step <= 114


@pytest.mark.parametrize("written", ["", "[]", "{}", '{"seconds": 3, "decisions": [{"step": 5, "total": 5}, 7]}'])
def test_a_damaged_record_is_told(clocked, tmp_path: Path, written: str) -> None:
    """By its name."""
    with contextlib.closing(train(clocked(0.5), tmp_path, MINUTE, seed=0, rhythm=TWICE)) as events:
        list(itertools.islice(events, 60))
    (tmp_path / "plan.json").write_text(written)
    with pytest.raises(InputError, match="plan.json: expected the record of this run's minutes, got something else"):
        list(train(clocked(0.5), tmp_path, MINUTE, seed=0, rhythm=TWICE))


def test_a_run_in_steps_keeps_no_record(clocked, tmp_path: Path) -> None:
    """There is nothing to decide."""
    list(train(clocked(0.5), tmp_path, Length(steps=3), seed=0))
    assert not (tmp_path / "plan.json").exists()


def test_an_attempt_without_a_checkpoint_leaves_no_plan(clocked, tmp_path: Path) -> None:
    """A run that begins anew decides anew."""
    with contextlib.closing(train(clocked(2.0), tmp_path, MINUTE, seed=0, rhythm=Rhythm(checks=1))) as events:
        list(itertools.islice(events, 12))
    assert Record.from_json(json.loads((tmp_path / "plan.json").read_text())).plan.decisions == (Decision(3, 28, 6.0),)
    events = list(train(clocked(0.5), tmp_path, MINUTE, seed=0, rhythm=Rhythm(checks=1)))
    assert events[-1].step == 112
