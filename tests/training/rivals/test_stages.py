"""What the training of every rival must keep to: the laws of the second stage."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import together
from training import toy as toys

from nextscale import MultiScaleVQVAE, Pipeline
from nextscale.config import Order
from nextscale.data import DataSet
from nextscale.errors import InputError
from nextscale.training.loop import Length, Rhythm, train
from nextscale.training.transformer.stage import TransformerStage, fitted

RIVALS: list[Order] = ["raster", "masked", "refined"]


@pytest.fixture(params=RIVALS)
def make(request: pytest.FixtureRequest) -> Callable[..., TransformerStage]:
    """`make(settings)`: a stage of each rival in turn."""

    def stage(settings: Any = (), **given: Any) -> TransformerStage:
        return toys.rival_stage(request.param, settings, **given)

    return stage


def run(stage: TransformerStage, directory: Path, steps: int = 4) -> Any:
    return train(stage, directory, Length(steps=steps), seed=0, rhythm=Rhythm(checks=2))


@pytest.mark.slow
def test_a_run_cut_short_continues_bit_for_bit(make, tmp_path: Path, left_behind) -> None:
    """With every option on: weights, optimiser, average, history, exported model and sample pictures."""
    list(run(make(toys.ALL_OF_A_RIVAL), tmp_path / "whole"))
    list(itertools.islice(run(make(toys.ALL_OF_A_RIVAL), tmp_path / "cut"), 3))
    list(run(make(toys.ALL_OF_A_RIVAL), tmp_path / "cut"))
    assert left_behind(tmp_path / "cut") == left_behind(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_is_a_function_of_its_seed(make, tmp_path: Path, left_behind, untouched) -> None:
    """And of nothing of torch's, which it leaves as it was."""
    with untouched():
        for name, seed in (("one", 0), ("two", 0), ("other", 1)):
            list(run(make(seed=seed), tmp_path / name, steps=2))
    assert left_behind(tmp_path / "one") == left_behind(tmp_path / "two")
    assert left_behind(tmp_path / "one")["state"] != left_behind(tmp_path / "other")["state"]


def test_the_loss_of_a_step_is_a_function_of_the_step(make) -> None:
    """Pictures, what is seen of them, dropped labels and paths, asked for in any order."""
    stage, again = make(toys.ALL_OF_A_RIVAL), make(toys.ALL_OF_A_RIVAL)
    losses = [float(stage.loss(step)[0].detach()) for step in range(4)]
    assert [float(again.loss(step)[0].detach()) for step in (3, 1, 0, 2)] == [losses[step] for step in (3, 1, 0, 2)]
    assert len(set(losses)) == 4


def test_the_parts_of_a_batch_add_up_to_it(make) -> None:
    """The mean of the losses of parts is the loss of the whole: accumulating, or sharing, changes no step."""
    stage = make(["token_noise=0.2"])
    whole = stage.loss(3)[0]
    parts = [stage.loss(3, part)[0] for part in (slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4))]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-5, atol=0)


def test_every_parameter_learns(make) -> None:
    """Once the head is no longer near zero; of classes, those that a batch holds."""
    stage = make(batch=18)
    stage.loss(0)[0].backward()
    assert not [name for name, parameter in stage.model.named_parameters() if not parameter.grad.any()]


def test_export_is_a_pipeline_that_paints(make, tmp_path: Path) -> None:
    """Both models bit for bit, and what the stage shows along the way."""
    stage = make()
    stage.export(tmp_path)
    pipe = Pipeline.load(tmp_path, precision="fp32")
    assert pipe.classes == ("dark", "light")
    for name, tensor in stage.model.state_dict().items():
        assert torch.equal(pipe.transformer.state_dict()[name], tensor)
    ours, theirs = (each.generate(labels=[0, 1]).images for each in (stage.pipeline(), pipe))
    assert torch.equal(ours, theirs)
    assert stage.pictures().abs().max() <= 1


def test_validation_does_not_change_from_time_to_time(make) -> None:
    """The same figures for the same weights, and one that is lower is better."""
    stage = make()
    first, second = stage.validate(), stage.validate()
    assert first == second
    assert stage.score(first) > 0
    assert stage.sound()
    assert stage.health(first, [], []).table


def test_what_only_scales_have_is_refused(make) -> None:
    """By name, in a line."""
    order = make().model.order
    for setting in ("progressive=0.5", "self_correction=0.2", "scale_weights=1"):
        with pytest.raises(InputError, match=f"{setting.split('=')[0]}: expected .* for order {order}, which knows no"):
            make([setting])


def test_a_tokenizer_of_several_scales_is_refused(make) -> None:
    """When the config is fitted to it."""
    with pytest.raises(InputError, match="expected a tokenizer of one scale"):
        fitted(toys.TRANSFORMER, MultiScaleVQVAE(toys.TOKENIZER), classes=2, order=make().model.order)


@pytest.mark.slow
def test_a_rival_learns_the_embedded_emoji(make, emoji: DataSet, tmp_path: Path) -> None:
    """A hundred steps on the tokens of an untrained tokenizer: its held-out figure falls by a tenth at least."""
    stage = make(data=emoji, batch=32, learning_rate=5e-3)
    before = stage.score(stage.validate())
    *_, last = train(stage, tmp_path, Length(steps=100), seed=0, rhythm=Rhythm(checks=1))
    assert stage.score(last.validation) < 0.9 * before


# ---- several processes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def out(once) -> Path:
    """All runs in one start, since it takes seconds."""
    return once("rivals in several processes", start)


def start(directory: Path) -> None:
    done = together(Path(__file__).with_name("two_rivals.py"), directory)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("order", RIVALS)
@pytest.mark.parametrize("kind", ["copies", "shares"])
def test_two_processes_train_the_rival_that_one_would(out: Path, order: Order, kind: str, tmp_path: Path) -> None:
    """With every option on, held whole or in shares, and cut short: held-out figures, and the average that is saved."""
    list(run(toys.rival_stage(order, toys.ALL_OF_A_RIVAL), tmp_path, steps=6))
    there = out / f"{order} in {kind}"
    one, two = (json.loads((path / "history.json").read_text()) for path in (tmp_path, there))
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    models = (Pipeline.load(path, precision="fp32").transformer.state_dict() for path in (tmp_path, there))
    ours, theirs = (torch.cat([weight.flatten() for weight in model.values()]) for model in models)
    begun = torch.cat([w.flatten() for w in toys.rival_stage(order).model.state_dict().values()])
    assert (ours - theirs).norm() < 0.01 * (ours - begun).norm()
