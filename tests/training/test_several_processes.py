"""Laws of training in several processes: all end with the same weights, and with those of one process to rounding."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import together
from torch import Tensor
from training import toy as toys
from training.two_processes import ADDS_UP, CORNERS, SEMANTIC, STEPS, WITH_MUON, run

from nextscale import MultiScaleVQVAE, Pipeline
from nextscale.training.transformer.stage import TransformerStage

pytestmark = pytest.mark.slow  # starts torchrun


@pytest.fixture(scope="module")
def out(once) -> Path:
    """All runs in one start, since it takes seconds."""
    return once("several processes", start)


def start(directory: Path) -> None:
    done = together(Path(__file__).with_name("two_processes.py"), directory)
    assert done.returncode == 0, done.stderr


def kept(out: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return torch.load(out / f"{name}-{rank}.pt", weights_only=True)


def weights(state: dict[str, Tensor]) -> Tensor:
    """All of a model or an average in one vector."""
    return torch.cat([tensor.double().flatten() for name, tensor in state.items() if "hits" not in name])


@pytest.mark.parametrize("name", ["adds up", "cut", "corners", "features", "semantic", "poisoned"])
def test_all_processes_end_with_the_same_state(out: Path, name: str) -> None:
    """Bit for bit: weights, moments, averages, hits, the discriminator; and it is what the first one wrote."""
    first, second = kept(out, name), kept(out, name, 1)
    assert toys.flat(first) == toys.flat(second)
    stored = torch.load(out / name / "state.pt", weights_only=True)
    assert toys.flat(stored["parts"]) == toys.flat(first)
    assert stored["step"] == STEPS
    loaded = MultiScaleVQVAE.load(out / name).state_dict()
    assert all(torch.equal(loaded[part], first["average"][f"module.{part}"]) for part in loaded)


def test_two_processes_are_one_to_rounding(out: Path, tmp_path: Path) -> None:
    """With averaged and restarted codes, dropout, random scales, a discriminator that is heard, at the same batch.

    Codes and discriminator to 1 in 10,000. The other weights to a hundredth of how far they have come: AdamW makes full
    steps of gradients that are nothing but rounding, as those of biases before a normalisation.
    """
    start = weights(toys.stage(ADDS_UP).model.state_dict())
    one, two = run(lambda: toys.stage(ADDS_UP), tmp_path), kept(out, "adds up")
    ours, theirs = weights(one.state["model"].state_dict()), weights(two["model"])
    assert (ours - theirs).norm() < 0.01 * (ours - start).norm()
    judges = weights(one.state["adversary"].state_dict()["discriminator"]), weights(two["adversary"]["discriminator"])
    codes = one.model.quantizer.codebook.weight.detach(), two["model"]["quantizer.codebook.weight"]
    for ours, theirs in (judges, codes):
        assert (ours - theirs).norm() < 1e-4 * ours.norm()
    assert torch.equal(one.model.quantizer.hits_KV, two["model"]["quantizer.hits_KV"])


def test_two_processes_learn_the_projection_that_one_would(out: Path, tmp_path: Path) -> None:
    """Of the semantic term, whose gradients are exchanged with the others."""
    start = weights(toys.stage(SEMANTIC).semantic.projection.state_dict())
    one, two = run(lambda: toys.stage(SEMANTIC), tmp_path), kept(out, "semantic")
    ours, theirs = weights(one.state["semantic"].state_dict()), weights(two["semantic"])
    assert (ours - theirs).norm() < 0.01 * (ours - start).norm()


def test_two_processes_measure_the_gains_that_one_would(out: Path, tmp_path: Path) -> None:
    """Of fixed codes, by the residuals of both."""
    start = weights(toys.stage(CORNERS, config=toys.CORNERS).model.state_dict())
    one, two = run(lambda: toys.stage(CORNERS, config=toys.CORNERS), tmp_path), kept(out, "corners")
    torch.testing.assert_close(one.model.quantizer.gain_K, two["model"]["quantizer.gain_K"], rtol=1e-3, atol=0)
    ours, theirs = weights(one.state["model"].state_dict()), weights(two["model"])
    assert (ours - theirs).norm() < 0.01 * (ours - start).norm()


@pytest.mark.parametrize(
    ("name", "make", "settings"),
    [
        ("copies", toys.second_stage, toys.ALL_OF_STAGE_2),
        ("shares", toys.second_stage, toys.ALL_OF_STAGE_2),
        ("copies that read", toys.text_stage, WITH_MUON),
        ("shares that read", toys.text_stage, WITH_MUON),
    ],
)
def test_two_processes_train_the_transformer_that_one_would(
    out: Path, name: str, make: Callable[..., TransformerStage], settings: Sequence[str], tmp_path: Path
) -> None:
    """With every option on, held whole or in shares, and cut short: losses, counts, and the average that is saved.

    One that reads text by Muon.
    """
    run(lambda: make(settings, begin=7), tmp_path)
    one, two = (json.loads((path / "history.json").read_text()) for path in (tmp_path, out / name))
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    states = [torch.load(path / "state.pt", weights_only=True)["parts"] for path in (tmp_path, out / name)]
    assert torch.equal(states[0]["frequencies"]["counts"], states[1]["frequencies"]["counts"])
    start = weights(make(begin=7).model.state_dict())
    ours, theirs = (
        weights(Pipeline.load(path, precision="fp32").transformer.state_dict()) for path in (tmp_path, out / name)
    )
    assert (ours - theirs).norm() < 0.01 * (ours - start).norm()


def test_a_fall_from_a_plateau_in_shares_ends_as_a_whole_run_does(out: Path) -> None:
    """Bit for bit; the shares of the plateau stay where they are."""
    ours, theirs = ((out / name / "transformer.safetensors").read_bytes() for name in ("fallen", "whole fall"))
    assert ours == theirs
    assert [path.name for path in (out / "held").glob("state-*")] == ["state-0000006"]
    assert [path.name for path in (out / "fallen").glob("state-*")] == ["state-0000008"]


def test_a_run_of_two_processes_continues_bit_for_bit(out: Path) -> None:
    """Cut short and gone on with, as if it had not been."""
    for rank in (0, 1):
        assert toys.flat(kept(out, "cut", rank)) == toys.flat(kept(out, "adds up", rank))


def test_processes_whose_torchrun_is_gone_stop_saved(out: Path) -> None:
    """After the step in which one of them finds out; others, started anew, go on bit for bit."""
    for rank in (0, 1):
        assert toys.flat(kept(out, "orphaned", rank)) == toys.flat(kept(out, "adds up", rank))


def test_processes_agree_on_the_number_of_steps_that_minutes_become(out: Path) -> None:
    """By the first one's clock, whatever the others' say; it slows down along the run."""
    assert toys.flat(kept(out, "paced")) == toys.flat(kept(out, "paced", 1))
    record = json.loads((out / "paced" / "plan.json").read_text())
    assert len(record["decisions"]) > 1
    state = torch.load(out / "paced" / "state.pt", weights_only=True)
    assert state["step"] == state["total"] == record["decisions"][-1]["total"]
    assert 54 <= record["seconds"] <= 66


def test_a_step_that_one_process_cannot_make_is_skipped_by_all(out: Path) -> None:
    """And counted once."""
    state = torch.load(out / "poisoned" / "state.pt", weights_only=True)
    assert (state["skipped"], state["skipped_in_row"]) == (1, 0)
    assert weights(state["parts"]["model"]).isfinite().all()
    assert toys.flat(state["parts"]) != toys.flat(kept(out, "adds up"))
