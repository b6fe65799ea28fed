"""What `test_sharded` starts in two processes: runs of a small transformer whose parameters they share, and mishaps.

`python sharded.py OUT`, under torchrun, writes OUT/NAME-RANK.pt: what the run called NAME told, and what it ended with.
A law that needs both processes to be seen broken is asserted here.
"""

from __future__ import annotations

import dataclasses
import itertools
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import toy

from nextscale import VAR, Scales
from nextscale.config import TransformerConfig
from nextscale.errors import InputError
from nextscale.files.checkpoint import write_tensors
from nextscale.machine import distributed
from nextscale.machine.precision import lowered
from nextscale.training import rundir
from nextscale.training.loop import Health, Length, Rhythm, train
from nextscale.training.optimization import Figures, Optimization, Outcome, WeightAverage
from nextscale.training.order import generator
from nextscale.training.recipes import Recipe
from nextscale.training.rundir import RunDirectory, Stateful

STEPS = 6
CPU = torch.device("cpu")
CONFIG = TransformerConfig(
    scales=Scales([1, 2, 3]),
    codebook_size=64,
    code_channels=8,
    classes=4,  # five rows, and one start token: shares of different sizes, and an empty one
    depth=2,
    width=64,
    heads=1,
    feed_forward=128,
    normalized_attention=True,
    shared_modulation=False,
)
RECIPE = Recipe(
    batch=8,
    learning_rate=2e-3,
    betas=(0.9, 0.95),
    weight_decay=0.05,
    warmup_steps=2,
    final_rate=0.1,
    clip=0.5,
    accumulate=2,
)
MUON = dataclasses.replace(RECIPE, optimizer="muon", muon_rate=5e-3)
Strategy = Literal["copies", "shares"]


class Learner(nn.Module):
    """Labels, inputs and tokens in, loss out."""

    def __init__(self, model: VAR) -> None:
        super().__init__()
        self.model = model

    def forward(self, labels_B: Tensor, inputs_BLC: Tensor, tokens_BL: Tensor) -> Tensor:
        return F.cross_entropy(self.model(labels_B, inputs_BLC).flatten(0, 1), tokens_BL.flatten())


class TinyStage:
    """A transformer that learns tokens drawn at random, from the classes 0 to 3."""

    name, batch, data = "tiny", RECIPE.batch, toy.data_set()
    settings: Mapping[str, object] = {}

    def __init__(
        self,
        strategy: Strategy,
        *,
        dtype: torch.dtype = torch.float32,
        shared_modulation: bool = False,
        recipe: Recipe = RECIPE,
    ) -> None:
        self.dtype, self.poisoned, self.recipe = dtype, -1, recipe
        self.model = model(shared_modulation)
        learner = Learner(self.model)
        if strategy == "shares":
            parts = [part for block in self.model.blocks for part in block.children()]
            self.passed = distributed.sharded(learner, parts, dtype=dtype)
        else:
            self.passed = distributed.wrapped(learner)
        self.optimization = Optimization(self.model, recipe, self.passed, dtype=dtype)
        self.average = WeightAverage(self.model, 0.9)
        self.state: Mapping[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimization,
            "average": self.average,
        }
        self.shown = self.model

    def prepare(self) -> None:
        pass

    def update(self, step: int, total: int | None) -> Outcome:
        outcome = self.optimization.update(self._losses(step), step, total)
        if outcome.finite:
            self.average.update()
        return outcome

    def _losses(self, step: int) -> Iterator[tuple[Tensor, Figures]]:
        labels_B, inputs_BLC, tokens_BL = drawn(step)
        for part in self.optimization.parts():
            with lowered(CPU, self.dtype):
                loss = self.passed(labels_B[part], inputs_BLC[part], tokens_BL[part])
            yield loss * (float("nan") if step == self.poisoned and part.start == 0 else 1), {}

    def inputs(self, step: int) -> Tensor:
        return torch.zeros(1, 3, 8, 8)

    def gather(self) -> None:
        """The average as a model of its own, where it is validated and saved."""
        weights = self.average.whole()
        if distributed.is_first():
            self.shown = VAR(CONFIG if self.model.shared_modulation is None else SHARED)
            self.shown.load_state_dict(weights)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        return {"cross_entropy": float(Learner(self.shown)(*drawn(-1)))}

    def score(self, validation: Mapping[str, float]) -> float:
        return validation["cross_entropy"]

    def sound(self) -> bool:
        return True

    def health(self, *_: Sequence[Any] | Mapping[str, float]) -> Health:
        return Health()

    def pictures(self) -> Tensor:
        return torch.zeros(3, 8, 8)

    def export(self, directory: Path) -> None:
        write_tensors(directory / "transformer.safetensors", self.shown.state_dict())


SHARED = TransformerConfig(**(vars(CONFIG) | {"shared_modulation": True}))


@torch.no_grad()
def model(shared_modulation: bool) -> VAR:
    """One in which much flows, unlike in a new one."""
    made, numbers = VAR(SHARED if shared_modulation else CONFIG), torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=numbers), alpha=0.1)
    return made


def drawn(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, inputs and tokens of a step."""
    numbers, length = generator("tiny", step), CONFIG.scales.total
    labels_B = torch.randint(CONFIG.classes, (RECIPE.batch,), generator=numbers)
    tokens_BL = torch.randint(16, (RECIPE.batch, length), generator=numbers)
    codes_VC = torch.randn(CONFIG.codebook_size, CONFIG.code_channels, generator=generator("codes"))
    return labels_B, codes_VC[tokens_BL[:, 1:]], tokens_BL


def run(stage: TinyStage, directory: Path, steps: int | None = None) -> dict[str, Any]:
    """Train on to the end, or for so many steps; what was told on the way, and the whole of what came out."""
    events = list(
        itertools.islice(train(stage, directory, Length(steps=STEPS), seed=0, rhythm=Rhythm(checks=3)), steps)
    )
    return {
        "losses": [event.figures["loss"] for event in events],
        "norms": [event.figures["gradient_norm"] for event in events],
        "validation": [event.validation["cross_entropy"] for event in events if event.validation],
        "weights": distributed.whole_state(stage.model),
        "average": stage.average.whole(),
        "optimizer": distributed.whole_state(dict(rundir._tensors(stage.optimization.state_dict()))),
    }


# ---- mishaps ---------------------------------------------------------------------------------------------------------


def checkpoint(directory: Path) -> dict[str, bytes]:
    """What counts as the last checkpoint."""
    distributed.barrier()
    stored = torch.load(directory / "state.pt", weights_only=True)
    files = [directory / "state.pt", *(directory / stored["shares"]["directory"]).iterdir()]
    distributed.barrier()
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


def restored(directory: Path) -> int:
    return RunDirectory(directory, {}).restore(TinyStage("shares")).step


def killed(directory: Path) -> None:
    """Between the shares and the file that names them: the checkpoint before still counts; later its rest is gone."""
    run(TinyStage("shares"), directory, 2)
    before, write = checkpoint(directory), rundir.write_beside

    def stop(path: Path, *_: object) -> None:
        raise KeyboardInterrupt

    rundir.write_beside = stop
    stage = TinyStage("shares")
    again = RunDirectory(directory, {})
    state = again.restore(stage)
    state.step = 4
    stage.gather()
    try:
        again.save(state, stage)
    except KeyboardInterrupt:
        assert distributed.is_first()
        distributed.barrier()  # where the other one waits
    finally:
        rundir.write_beside = write
    assert checkpoint(directory) == before
    assert (directory / "state-0000004").is_dir()
    assert restored(directory) == 2
    run(TinyStage("shares"), directory, 2)  # writes the same directory again
    assert restored(directory) == 4
    distributed.barrier()
    assert [path.name for path in directory.glob("state-*")] == ["state-0000004"]
    distributed.barrier()


def full(directory: Path) -> None:
    """A disk too small for the shares, not for the exported model: told by all, and the checkpoint before stays."""
    run(TinyStage("shares"), directory, 2)
    before = checkpoint(directory)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((directory / "transformer.safetensors").stat().st_size * 5 // 4, hard))
    try:
        with pytest.raises(InputError, match=f"^cannot write {directory}/state-0000004: .*[Ff]ile") as caught:
            run(TinyStage("shares"), directory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert checkpoint(directory) == before
    assert restored(directory) == 2


def damaged(directory: Path) -> None:
    """A share that is missing or cut short is told by all."""
    run(TinyStage("shares"), directory, 2)
    share = sorted((directory / "state-0000002").iterdir())[-1]
    content = share.read_bytes()
    flipped = content[:-5] + bytes([content[-5] ^ 64]) + content[-4:]
    for wrong in (flipped, content[: len(content) // 2], b"", None):
        distributed.barrier()
        if distributed.is_first():
            share.unlink() if wrong is None else share.write_bytes(wrong)
        distributed.barrier()
        with pytest.raises(InputError, match=f"{share}: expected a file of this run's checkpoint, (got|found) "):
            restored(directory)


def taken(directory: Path) -> None:
    """A user's directory that is called like one of shares stays what it is, and the shares lie beside it."""
    theirs = directory / "state-0000004" / "mine"
    run(TinyStage("shares"), directory, 2)
    if distributed.is_first():
        theirs.parent.mkdir()
        theirs.write_text("mine")
    distributed.barrier()
    run(TinyStage("shares"), directory, 2)
    assert restored(directory) == 4
    assert sorted(path.name for path in directory.glob("state-*")) == ["state-0000004", "state-0000004-2"]
    run(TinyStage("shares"), directory)
    distributed.barrier()
    assert sorted(path.name for path in directory.glob("state-*")) == ["state-0000004", "state-0000006"]
    assert theirs.read_text() == "mine"


def skipped(directory: Path) -> None:
    """A step that is not finite for one of two changes nothing for either."""
    stage = TinyStage("shares")
    before = distributed.whole_state(stage.model)
    stage.poisoned = 0
    assert not stage.update(0, None).finite
    after = distributed.whole_state(stage.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert stage.update(1, None).finite


def with_muon(results: dict[str, Any], out: Path) -> None:
    """Whole runs, and runs that go on from another number of processes, or from another way of holding the model."""
    results["muon copies"] = run(TinyStage("copies", recipe=MUON), out / "muon copies")
    run(TinyStage("shares", recipe=MUON), out / "muon shares", 3)
    results["muon shares"] = run(TinyStage("shares", recipe=MUON), out / "muon shares")
    results["muon from one"] = run(TinyStage("shares", recipe=MUON), out / "muon from one")
    run(TinyStage("shares", recipe=MUON), out / "muon to one", 3)
    run(TinyStage("shares", recipe=MUON), out / "muon whole")


def main(out: Path) -> None:
    """Every run in a directory of its own."""
    results = {}
    with distributed.joined(CPU):
        results["copies"] = run(TinyStage("copies"), out / "copies")
        results["shares"] = run(TinyStage("shares"), out / "shares")
        run(TinyStage("shares"), out / "cut", 3)
        results["cut"] = run(TinyStage("shares"), out / "cut")
        run(TinyStage("shares"), out / "to one", 3)
        results["from one"] = run(TinyStage("shares"), out / "from one")
        run(TinyStage("shares"), out / "to copies", 3)
        results["to copies"] = run(TinyStage("copies"), out / "to copies")
        results["shared modulation"] = run(TinyStage("shares", shared_modulation=True), out / "shared modulation")
        with_muon(results, out)
        for strategy in ("copies", "shares"):
            stage = TinyStage(strategy, dtype=torch.bfloat16)
            results[f"lowered {strategy}"] = run(stage, out / f"lowered {strategy}")
        for mishap in (killed, full, damaged, taken, skipped):
            mishap(out / mishap.__name__)
        for name, result in results.items():
            torch.save(result, out / f"{name}-{distributed.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
