"""What `test_several_processes` starts in two processes: runs of the toy stages; what is left of each, by rank.

`python two_processes.py OUT`, under torchrun, writes OUT/NAME-RANK.pt: all that changes along the run called NAME.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
import torch
from training import toy

from nextscale.machine import distributed
from nextscale.training import pace
from nextscale.training.loop import Length, Rhythm, Stage, Stopped, train
from nextscale.training.optimization import Outcome

STEPS = 6
# The loss of a batch is the mean of its parts' but for two things that are not means over pictures: the entropy of all
# choices, and the adaptive weight, which each part of an accumulated step has for itself.
ADDS_UP = [*toy.EVERYTHING, "objective.entropy=0", "optimization.accumulate=1"]
CORNERS = [*toy.OF_FIXED_CODES, "objective.entropy=0", "optimization.accumulate=1"]
WITH_MUON = [*toy.ALL_OF_STAGE_2, "optimization.optimizer=muon", "optimization.muon_rate=1e-3"]
SEMANTIC = [*ADDS_UP, "objective.semantic=0.5"]
FEATURES = [*toy.EVERYTHING, "adversarial.discriminator=features"]


def run(make: Callable[[], Stage], directory: Path, *, cut: int | None = None, steps: int = STEPS) -> Stage:
    """A whole run; with `cut` another stage goes on after so many steps."""
    if cut is not None:
        list(itertools.islice(train(make(), directory, Length(steps=steps), seed=0, rhythm=Rhythm(checks=3)), cut))
    stage = make()
    list(train(stage, directory, Length(steps=steps), seed=0, rhythm=Rhythm(checks=3)))
    return stage


def poisoned() -> Stage:
    """In the third step the last process sees no numbers."""
    stage, calls = toy.stage(ADDS_UP), itertools.count()

    def spoil(module: torch.nn.Module, given: Any) -> Any:
        learns = torch.is_grad_enabled()  # otherwise the codes begin, or it is seen whether the model is sound
        return (given[0] * float("nan"),) if learns and next(calls) == 2 and distributed.rank() == 1 else given

    stage.model.encoder.register_forward_pre_hook(spoil)
    return stage


def orphaned(directory: Path) -> Stage:
    """In the third step the last process finds that torchrun is gone; all stop, saved, and others go on."""
    first, parent = toy.stage(ADDS_UP), distributed.PARENT
    steps = train(first, directory, Length(steps=STEPS), seed=0, rhythm=Rhythm(checks=1))
    list(itertools.islice(steps, 2))
    if distributed.rank() == 1:
        distributed.PARENT = -1
    assert next(steps).step == 3
    with pytest.raises(Stopped) as caught:
        next(steps)
    assert caught.value.saved
    distributed.PARENT = parent
    assert torch.load(directory / "state.pt", weights_only=True)["step"] == 3
    return run(lambda: toy.stage(ADDS_UP), directory)


def of_a_plateau(out: Path) -> None:
    """In shares: six steps on it, a fall from there to the eighth, and a whole run of eight."""
    held, falls = (partial(toy.second_stage, [f"optimization.flat={flat}"], sharded=True) for flat in (1, 0.75))
    run(held, out / "held")
    list(train(falls(), out / "fallen", Length(steps=8), seed=0, rhythm=Rhythm(checks=1), plateau=out / "held"))
    run(falls, out / "whole fall", steps=8)


def paced(directory: Path) -> Stage:
    """A budget of a minute: by rank 0's clock a step takes a second, later two; by the other's an hour, or nothing."""
    stage, now = toy.second_stage(begin=7), [0.0]
    update = stage.update

    def slow(step: int, total: float | None) -> Outcome:
        now[0] += (2.0 if step > 15 else 1.0) if distributed.is_first() else (step % 2) * 3600.0
        return update(step, total)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "update", slow)
        patch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now[0]))
        list(train(stage, directory, Length(minutes=1), seed=0, rhythm=Rhythm(checks=3)))
    return stage


def main(out: Path) -> None:
    """Every run in a directory of its own."""
    with distributed.joined(torch.device("cpu")):
        stages = {
            "adds up": run(lambda: toy.stage(ADDS_UP), out / "adds up"),
            "cut": run(lambda: toy.stage(ADDS_UP), out / "cut", cut=3),
            "corners": run(lambda: toy.stage(CORNERS, config=toy.CORNERS), out / "corners"),
            "features": run(lambda: toy.stage(FEATURES), out / "features"),
            "semantic": run(lambda: toy.stage(SEMANTIC), out / "semantic"),
            "poisoned": run(poisoned, out / "poisoned"),
            "orphaned": orphaned(out / "orphaned"),
            "paced": paced(out / "paced"),
        }
        for name, sharded in (("copies", False), ("shares", True)):
            run(partial(toy.second_stage, toy.ALL_OF_STAGE_2, sharded=sharded, begin=7), out / name, cut=3)
        of_a_plateau(out)
        for name, sharded in (("copies that read", False), ("shares that read", True)):
            run(partial(toy.text_stage, WITH_MUON, sharded=sharded, begin=7), out / name, cut=3)
        for name, stage in stages.items():
            parts = {part: content.state_dict() for part, content in stage.state.items()}
            torch.save(parts, out / f"{name}-{distributed.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
