"""Laws of a step: the optimiser's groups, parts that make one step, what is skipped, the running average."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nextscale.errors import InputError
from nextscale.machine import distributed
from nextscale.machine.precision import find_dtype
from nextscale.training.optimization import (
    Optimization,
    Outcome,
    WeightAverage,
    make_optimizer,
    running_average,
    training_dtype,
)
from nextscale.training.recipes import Recipe
from nextscale.training.tokenizer.discriminators import Head

RECIPE = Recipe(
    batch=4, learning_rate=0.5, betas=(0.9, 0.95), weight_decay=0.1, warmup_steps=10, final_rate=0.2, clip=1.0
)
NEVER_DECAYED = ("embedding", "codebook", "levels.weight", "positions", "start", "temperature", "modulation_table")


def grouped(model: nn.Module) -> tuple[set[str], set[str]]:
    """Names of the parameters whose group decays, and of the others."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, spared = set[str](), set[str]()
    for group in make_optimizer(model, RECIPE).param_groups:
        (decayed if group["weight_decay"] else spared).update(names[parameter] for parameter in group["params"])
    return decayed, spared


@pytest.fixture(params=["tokenizer", "separate modulation", "shared modulation"])
def model(request: pytest.FixtureRequest, make_tokenizer, make_transformer) -> nn.Module:
    """Everything that is ever trained."""
    if request.param == "tokenizer":
        return make_tokenizer()
    return make_transformer(shared_modulation=request.param == "shared modulation")


def test_every_parameter_is_in_one_group(model: nn.Module) -> None:
    """None is forgotten, none is moved twice."""
    parameters = [p for group in make_optimizer(model, RECIPE).param_groups for p in group["params"]]
    assert len(parameters) == len(list(model.parameters()))
    assert set(parameters) == set(model.parameters())


def test_only_weights_of_linear_layers_and_convolutions_decay(model: nn.Module) -> None:
    """Biases, gains, embeddings, positions and tables are spared."""
    decayed, spared = grouped(model)
    expected = {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and name.endswith("weight") and not any(word in name for word in NEVER_DECAYED)
    }
    assert decayed == expected
    assert any(parameter.ndim > 1 for name, parameter in model.named_parameters() if name in spared)


def test_what_decays_shrinks_without_a_gradient(model: nn.Module) -> None:
    """By learning rate x weight decay a step, and the rest stays as it is."""
    decayed, _ = grouped(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(model, RECIPE).step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name] * (0.95 if name in decayed else 1.0), atol=0, rtol=1e-6)


def test_weights_behind_a_spectral_norm_decay() -> None:
    """What is normalised is the convolution's weight, under another name."""
    decayed, spared = grouped(Head(32, width=8))
    assert decayed == {f"{layer}.parametrizations.weight.original" for layer in (0, 2, 4)}
    assert spared == {f"{layer}.bias" for layer in (0, 2, 4)}
    model = linear()
    parametrize.register_parametrization(model, "bias", nn.Identity())
    assert grouped(model) == ({"weight"}, {"parametrizations.bias.original"})


def test_the_optimiser_passes_over_the_weights_once() -> None:
    """Six times as fast as the plain one on a CPU core."""
    assert make_optimizer(linear(), RECIPE).defaults["fused"]


def test_what_is_frozen_is_in_no_group(make_tokenizer) -> None:
    """As the codebook is where it learns by running averages: it neither moves nor decays."""
    model = make_tokenizer()
    model.quantizer.codebook.requires_grad_(False)
    parameters = {p for group in make_optimizer(model, RECIPE).param_groups for p in group["params"]}
    assert parameters == set(model.parameters()) - {model.quantizer.codebook.weight}


# ---- a step ----------------------------------------------------------------------------------------------------------

IMAGES, WANTED = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0)).unbind()


def linear() -> nn.Linear:
    """The same weights each time."""
    model = nn.Linear(3, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    return model


def stepped(optimization: Optimization, step: int = 0, *, factor: float = 1.0) -> Outcome:
    """A step down the mean squared error."""

    def losses() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for part in optimization.parts():
            apart = optimization.model(IMAGES[part]) - WANTED[part]
            yield factor * apart.square().mean(), {"largest": apart.detach().abs().max()}

    return optimization.update(losses(), step, 10)


def test_a_step_is_that_of_plain_adamw() -> None:
    """Mean loss, backward, clip, rate, decay, step; the norm and the rate that are told are those used."""
    recipe = dataclasses.replace(RECIPE, batch=8, warmup_steps=2, final_weight_decay=3.0)
    ours, theirs = Optimization(linear(), recipe), linear()
    plain = torch.optim.AdamW(
        [{"params": [theirs.weight]}, {"params": [theirs.bias], "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        weight_decay=0.1,
    )
    for step in range(4):
        outcome = stepped(ours, step)
        loss = F.mse_loss(theirs(IMAGES), WANTED)
        plain.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for group in plain.param_groups:
            group["lr"] = recipe.rate(step, 10)
        plain.param_groups[0]["weight_decay"] = recipe.decay(step, 10)
        plain.step()
        told = {"loss": loss.item(), "gradient_norm": norm.item(), "learning_rate": recipe.rate(step, 10)}
        assert {name: outcome.figures[name] for name in told} == pytest.approx(told)
        assert norm > 1 or step > 0
    for name, weight in ours.model.state_dict().items():
        torch.testing.assert_close(weight, theirs.state_dict()[name])


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_parts_of_a_step_are_one_step(parts: int) -> None:
    """They tile the batch in order; gradients, weights and loss are those of the whole, to rounding."""
    whole = Optimization(linear(), dataclasses.replace(RECIPE, batch=8))
    cut = Optimization(linear(), dataclasses.replace(RECIPE, batch=8, accumulate=parts))
    slices = list(cut.parts())
    assert [part.start for part in slices] == list(range(0, 8, 8 // parts))
    assert torch.equal(torch.cat([IMAGES[part] for part in slices]), IMAGES)
    for step in range(3):
        ours, theirs = stepped(cut, step), stepped(whole, step)
        assert ours.figures["loss"] == pytest.approx(theirs.figures["loss"], rel=1e-5)
        assert ours.figures["gradient_norm"] == pytest.approx(theirs.figures["gradient_norm"], rel=1e-5)
    for mine, yours in zip(cut.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine, yours, rtol=1e-5, atol=1e-6)


def test_processes_exchange_gradients_with_the_last_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts before it are walked inside `no_sync` of what the passes go through."""
    inside: list[nn.Module] = []

    @contextmanager
    def no_sync(module: nn.Module) -> Iterator[None]:
        inside.append(module)
        yield
        inside.pop()

    monkeypatch.setattr(distributed, "no_sync", no_sync)
    passed = nn.Sequential(linear())
    optimization = Optimization(passed[0], dataclasses.replace(RECIPE, batch=8, accumulate=4), passed)
    assert [list(inside) for _ in optimization.parts()] == [[passed], [passed], [passed], []]
    alone = Optimization(linear(), dataclasses.replace(RECIPE, batch=8, accumulate=2))
    assert [list(inside) for _ in alone.parts()] == [[alone.model], []]


def test_a_weight_that_a_loss_does_not_reach_stays_as_it_is() -> None:
    """It neither decays nor goes on by its moments, though the step before moved it."""
    optimization = Optimization(linear(), dataclasses.replace(RECIPE, batch=8))
    model = optimization.model
    stepped(optimization)
    bias, weight = model.bias.detach().clone(), model.weight.detach().clone()
    optimization.update([((IMAGES @ model.weight.T).square().mean(), {})], 1, 10)
    assert torch.equal(model.bias, bias)
    assert not torch.equal(model.weight, weight)


def test_moments_of_shares_begin_as_adamw_begins_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros like the parameters, before the first step; the steps are those of a model that is not cut up."""
    whole = Optimization(linear(), dataclasses.replace(RECIPE, batch=8))
    assert not whole.state_dict()["state"]
    model = linear()
    with monkeypatch.context() as patch, torch.device("meta"):  # where others would be put
        patch.setattr(distributed, "is_sharded", lambda tensor: isinstance(tensor, Tensor))
        shares = Optimization(model, dataclasses.replace(RECIPE, batch=8))
    begun = [shares.optimizer.state[parameter] for parameter in shares.model.parameters()]
    assert [{name: tensor.shape for name, tensor in state.items()} for state in begun] == [
        {"step": (), "exp_avg": (3, 3), "exp_avg_sq": (3, 3)},
        {"step": (), "exp_avg": (3,), "exp_avg_sq": (3,)},
    ]
    assert all(tensor.device.type == "cpu" and not tensor.any() for state in begun for tensor in state.values())
    for step in range(2):
        stepped(whole, step)
        stepped(shares, step)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), shares.model.parameters(), strict=True))


def test_an_optimiser_goes_on_from_its_state() -> None:
    """As one that was never interrupted, bit for bit."""
    first, second = (Optimization(linear(), dataclasses.replace(RECIPE, batch=8)) for _ in range(2))
    stepped(first)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert stepped(second, 1) == stepped(first, 1)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


def test_figures_are_means_over_parts() -> None:
    """As plain floats."""
    optimization = Optimization(linear(), dataclasses.replace(RECIPE, batch=8, accumulate=4))
    apart = (optimization.model(IMAGES) - WANTED).detach().abs().flatten(1).amax(dim=1)
    figures = stepped(optimization).figures
    assert figures["largest"] == pytest.approx(apart.view(4, 2).amax(dim=1).mean().item())
    assert all(type(value) is float for value in figures.values())


def test_a_batch_that_does_not_divide_into_parts_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is trained: each part of each process needs its images."""
    monkeypatch.setattr(distributed, "world", lambda: 4)
    with pytest.raises(InputError, match="divides into 4 parts in each of 4 processes, got 8"):
        Optimization(linear(), dataclasses.replace(RECIPE, batch=8, accumulate=4))


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e38])
def test_a_step_that_is_not_finite_changes_nothing(factor: float) -> None:
    """Neither weights nor moments nor step counts, bit for bit; also where only the gradient's norm is not finite."""
    optimization = Optimization(linear(), dataclasses.replace(RECIPE, batch=8))
    assert stepped(optimization).finite
    weights = [parameter.detach().clone() for parameter in optimization.model.parameters()]
    state = copy.deepcopy(optimization.state_dict()["state"])
    outcome = stepped(optimization, 1, factor=factor)
    assert not outcome.finite
    assert not math.isfinite(outcome.figures["gradient_norm"])
    assert all(torch.equal(a, b) for a, b in zip(weights, optimization.model.parameters(), strict=True))
    for index, moments in optimization.state_dict()["state"].items():
        assert all(torch.equal(tensor, state[index][name]) for name, tensor in moments.items())
    assert stepped(optimization, 2).finite


# ---- the running average ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_running_average_follows_its_formula(decay: float) -> None:
    """a <- d a + (1 - d) w with d = min(decay, (1 + n) / (10 + n)); the first is the weights as they are."""
    model = linear()
    average = running_average(model, decay)
    expected = 0.0
    for n in range(12):
        with torch.no_grad():
            model.weight.add_(torch.randn(3, 3, generator=torch.Generator().manual_seed(n)))
        average.update_parameters(model)
        d = 0.0 if n == 0 else min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * model.weight.detach().double()
        torch.testing.assert_close(average.module.weight.double(), expected, rtol=1e-5, atol=1e-6)
    if decay == 0:
        assert torch.equal(average.module.weight, model.weight)


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_an_average_of_weights_alone_follows_the_same_formula(decay: float) -> None:
    """The first update takes the weights as they then are, whatever the average began with."""
    model = linear()
    average, expected = WeightAverage(model, decay), 0.0
    for n in range(12):
        with torch.no_grad():
            model.weight.add_(torch.randn(3, 3, generator=torch.Generator().manual_seed(n)))
        average.update()
        d = 0.0 if n == 0 else min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * model.weight.detach().double()
        torch.testing.assert_close(average.averages["weight"].double(), expected, rtol=1e-5, atol=1e-6)
        assert average.steps == n + 1
        if n == 0:
            assert torch.equal(average.averages["weight"], model.weight)


def test_an_average_goes_on_from_its_state_and_from_no_other() -> None:
    """Count and averages; whole, it is the model's state with averages for parameters."""
    model = linear()
    model.register_buffer("hits", torch.arange(3.0))
    first, second = WeightAverage(model, 0.9), WeightAverage(model, 0.9)
    for _ in range(3):
        with torch.no_grad():
            model.weight.mul_(2)
        first.update()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.steps == first.steps == 3
    assert torch.equal(second.averages["weight"], first.averages["weight"])
    whole = second.whole()
    assert whole.keys() == model.state_dict().keys()
    assert torch.equal(whole["weight"], first.averages["weight"])
    assert torch.equal(whole["hits"], torch.arange(3.0))
    with pytest.raises(KeyError, match="averages of other parameters"):
        WeightAverage(nn.Sequential(linear()), 0.9).load_state_dict(first.state_dict())


def test_the_running_average_has_the_buffers_of_the_model(make_tokenizer) -> None:
    """Hits are counted, not averaged; the model's weights stay its own."""
    model = make_tokenizer()
    average = running_average(model, 0.9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for n in range(3):
        model.quantizer.hits_KV.fill_(n)
        average.update_parameters(model)
    assert torch.equal(average.module.quantizer.hits_KV, torch.full((4, 64), 2.0))
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items() if "hits" not in name)


def test_training_is_not_offered_in_fp16() -> None:
    """Its gradients would underflow; the formats that work are named."""
    cpu = torch.device("cpu")
    assert training_dtype("bf16", cpu) == torch.bfloat16
    assert training_dtype("fp32", cpu) == torch.float32
    assert training_dtype("auto", cpu) == find_dtype("auto", cpu)
    with pytest.raises(InputError, match=r"^precision: expected auto, fp32 or bf16 for training, got int8$"):
        training_dtype("int8", cpu)
    with pytest.raises(InputError, match=r"^precision: expected auto, fp32 or bf16 for training, got fp16$"):
        training_dtype("fp16", cpu)
