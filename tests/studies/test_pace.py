"""Laws of the pace: minutes become steps, and steps seconds; a trial is made once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from studies.toy import PACE, asked, shared

from nextscale.studies.pace import Counts, Steps, kept
from nextscale.studies.tokenizers import counts, paced, planned

COUNTS = Counts(encoded=2000, held_out=100, generated=100)


def test_steps_fill_the_minutes() -> None:
    """Beside what has to be done whatever the steps; more minutes, more steps."""
    for minutes in (10, 11, 60):
        steps = PACE.steps(minutes, COUNTS)
        assert 60 * minutes - 3 < PACE.seconds(steps, COUNTS) <= 60 * minutes
    besides = 10 + 2000 * 0.01 + 100 * 0.3 + 100 * (0.01 + 0.05 + 0.3) + 64 * 0.05 + 100 * 0.03
    assert PACE.besides(COUNTS) == pytest.approx(besides)
    assert PACE.steps(10, COUNTS).tokenizer == int(0.6 * (600 - besides) / 2)


def test_a_part_of_the_minutes_is_for_steps_whatever_the_rest_takes() -> None:
    """At least one of each."""
    assert PACE.steps(1, COUNTS) == Steps(int(0.6 * 0.3 * 60 / 2), int(0.4 * 0.3 * 60))
    assert PACE.steps(1e-6, COUNTS) == Steps(1, 1)


def test_a_trial_is_made_once_for_the_same_settings(root: Path) -> None:
    """And again for others."""
    trials = [vars(PACE), vars(dataclasses.replace(PACE, start=11.0))]
    waiting = iter(trials)
    found = [kept(root, "sizes", {"preset": name}, lambda: next(waiting)) for name in ("a", "a", "b", "a")]
    assert found == [trials[0], trials[0], trials[1], trials[0]]


@pytest.mark.slow
def test_a_trial_times_all_that_a_cell_does(root: Path) -> None:
    """Everything takes some time; a study asked for again has the same steps, and one with other models its own."""
    wanted, common = asked(), shared()
    found = paced(root, wanted, common)
    assert all(value > 0 for value in vars(found).values())
    assert counts(wanted, common) == Counts(encoded=24, held_out=6, generated=6)
    assert paced(root, wanted, common) == found
    assert paced(root, asked(only=("fsq",), seeds=(1, 2)), common) == found
    assert paced(root, asked(depth=2), common) != found
    assert planned(root, wanted, common, minutes=1.0).steps == found.steps(1.0, counts(wanted, common))
    assert planned(root, wanted, common, steps=Steps(5, 6)).steps == (5, 6)
