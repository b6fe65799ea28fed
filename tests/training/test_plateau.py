"""Laws of a plateau: of one long run several end, each as one that was as long as that from the beginning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from training import toy as toys

from nextscale.errors import InputError
from nextscale.training import rundir
from nextscale.training.loop import Length, Rhythm, train
from nextscale.training.transformer.stage import TransformerStage

COURSE = ("optimization.accumulate=2", "drop_path=1", "token_noise=0.2", "average=0.9")
HELD, FALLING = "optimization.flat=1", "optimization.flat=0.75"  # four steps of eight are six of eight, and so on


def stage(*settings: str, seed: int = 0) -> TransformerStage:
    return toys.second_stage([*COURSE, *settings], seed=seed)


def run(made: TransformerStage, directory: Path, steps: int, *, plateau: Path | None = None) -> list[int]:
    """Train to the end; the steps that it made."""
    events = train(made, directory, Length(steps=steps), seed=0, rhythm=Rhythm(checks=2), plateau=plateau)
    return [event.step for event in events]


def state(directory: Path) -> dict[str, Any]:
    """Weights, moments, average, counts, step: all but what was seen at checks."""
    stored = torch.load(directory / "state.pt", weights_only=True)
    del stored["history"]
    return toys.flat(stored)


@pytest.fixture(scope="module")
def plateau(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps on it; look, do not touch."""
    directory = tmp_path_factory.mktemp("plateau")
    assert run(stage(HELD), directory, 6) == [1, 2, 3, 4, 5, 6]
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fall", "more"), [("linear", ()), ("sqrt", ("optimization.optimizer=muon", "optimization.muon_rate=5e-3"))]
)
def test_a_fall_from_a_plateau_ends_as_a_whole_run_does(tmp_path: Path, fall: str, more: Sequence[str]) -> None:
    """Bit for bit: data, noise and rates go on where the plateau was; its directory is left as it is."""
    settings = (*more, f"optimization.fall={fall}")
    run(stage(HELD, *more), tmp_path / "held", 6)
    before = {file: file.read_bytes() for file in (tmp_path / "held").rglob("*") if file.is_file()}
    assert run(stage(FALLING, *settings), tmp_path / "fallen", 8, plateau=tmp_path / "held") == [7, 8]
    assert run(stage(FALLING, *settings), tmp_path / "whole", 8) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert state(tmp_path / "fallen") == state(tmp_path / "whole")
    names = ("run.json", "transformer.safetensors", "config.json")
    assert all((tmp_path / "fallen" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)
    assert before == {file: file.read_bytes() for file in (tmp_path / "held").rglob("*") if file.is_file()}


@pytest.mark.slow
def test_one_plateau_ends_at_several_lengths(plateau: Path, tmp_path: Path) -> None:
    """It is made longer after one fall and falls again; a later fall may begin some steps after it."""
    longer = shutil.copytree(plateau, tmp_path / "longer")
    assert run(stage(HELD), longer, 9) == [7, 8, 9]
    for steps, origin, left in ((12, longer, [10, 11, 12]), (16, plateau, [*range(7, 17)])):
        assert run(stage(FALLING), tmp_path / f"fallen {steps}", steps, plateau=origin) == left
        run(stage(FALLING), tmp_path / f"whole {steps}", steps)
        assert state(tmp_path / f"fallen {steps}") == state(tmp_path / f"whole {steps}")


@pytest.mark.slow
def test_a_fall_that_is_cut_short_needs_its_plateau_no_more(plateau: Path, tmp_path: Path) -> None:
    """Its own directory holds all from the first moment on; the same command goes on with it."""
    gone = shutil.copytree(plateau, tmp_path / "gone")
    steps = train(stage(FALLING), tmp_path / "cut", Length(steps=8), seed=0, plateau=gone)
    assert next(steps).step == 7
    steps.close()
    shutil.rmtree(gone)
    assert run(stage(FALLING), tmp_path / "cut", 8, plateau=gone) == [7, 8]
    run(stage(FALLING), tmp_path / "whole", 8)
    assert state(tmp_path / "cut") == state(tmp_path / "whole")


def test_the_checks_of_a_fall_are_its_own(plateau: Path, tmp_path: Path) -> None:
    """So that best/ is there, and of the fall."""
    run(stage(FALLING), tmp_path, 8, plateau=plateau)
    assert [entry["step"] for entry in json.loads((tmp_path / "history.json").read_text())] == [8]
    assert (tmp_path / "best" / "transformer.safetensors").exists()


def test_a_run_says_how_far_it_is_and_how_long_it_is_to_be(plateau: Path, tmp_path: Path) -> None:
    """By its checkpoint and its record."""
    assert (rundir.steps_done(plateau), rundir.steps_asked(plateau)) == (6, 6)
    assert rundir.steps_asked(tmp_path) is None
    with pytest.raises(InputError, match=f"expected a run with a checkpoint, got {tmp_path}"):
        rundir.steps_done(tmp_path)
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"state.pt: expected this run's checkpoint, got a damaged one"):
        rundir.steps_done(tmp_path)


def fallen(tmp_path: Path) -> Path:
    run(stage(FALLING), tmp_path / "fallen", 8)
    return tmp_path / "fallen"


def empty(tmp_path: Path) -> Path:
    return tmp_path / "nowhere"


@pytest.mark.parametrize(
    ("origin", "settings", "steps", "told"),
    [
        (None, (FALLING, "label_dropout=0.5"), 8, "recipe.label_dropout is 0.1 there, 0.5 here"),
        (None, (FALLING, "optimization.learning_rate=1"), 8, "recipe.optimization.learning_rate is 0.002 there, 1.0"),
        (
            None,
            (FALLING,),
            7,
            "steps: expected a cooldown that begins at step 6 or later, .* got one of 7 .* begins at 5",
        ),
        (
            None,
            (FALLING, "optimization.warmup=0.1"),
            8,
            "plateau: expected a run in steps whose course before the fall",
        ),
        (None, (FALLING, "progressive=0.5"), 8, "plateau: expected a run in steps whose course before the fall"),
        (fallen, (FALLING,), 12, "expected a run on its plateau, got one whose rate falls since step 6"),
        (empty, (FALLING,), 8, "nowhere"),
    ],
)
def test_what_is_no_plateau_of_this_run_is_refused(
    plateau: Path,
    tmp_path: Path,
    origin: Callable[[Path], Path] | None,
    settings: Sequence[str],
    steps: int,
    told: str,
) -> None:
    """In one line, and nothing is trained."""
    place = plateau if origin is None else origin(tmp_path)
    with pytest.raises(InputError, match=told) as caught:
        run(stage(*settings), tmp_path / "out", steps, plateau=place)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "state.pt").exists()


def test_a_plateau_of_another_seed_is_another_run(plateau: Path, tmp_path: Path) -> None:
    """Its pictures would come in another order."""
    events = train(stage(FALLING), tmp_path, Length(steps=8), seed=7, plateau=plateau)
    with pytest.raises(InputError, match=rf"{plateau} holds another run \(seed is 0 there, 7 here\)"):
        next(events)
