"""Laws of the optimiser's groups and of the learning rate's course."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from nextscale.errors import InputError
from nextscale.training.optimization import Recipe, make_optimizer, training_dtype

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


def test_the_rate_rises_to_the_peak_and_falls_in_a_line() -> None:
    """Ten steps up from a tenth; then down to the final share, which the step after the last would have."""
    rates = [RECIPE.rate(step, 110) for step in range(111)]
    assert rates[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert max(rates) == rates[10] == 0.5
    assert rates[110] == pytest.approx(0.1)
    falls = [before - after for before, after in itertools.pairwise(rates[10:])]
    assert falls == pytest.approx([0.4 / 100] * 100)


def test_the_rate_is_at_its_peak_while_the_end_is_unknown() -> None:
    """A budget in minutes begins so; the warm-up is the same."""
    assert [RECIPE.rate(step, None) for step in (0, 9, 10, 500)] == pytest.approx([0.05, 0.5, 0.5, 0.5])


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 5), (10, 4), (10, 10), (1, 2)])
def test_the_rate_is_positive_and_never_above_the_peak(warmup: int, total: int) -> None:
    """Also in runs shorter than their warm-up, or without one."""
    recipe = dataclasses.replace(RECIPE, warmup_steps=warmup)
    assert all(0 < recipe.rate(step, total) <= 0.5 for step in range(total))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning rate: expected more than 0, got 0.0"),
        ({"learning_rate": math.nan}, "learning rate: expected more than 0, got nan"),
    ],
)
def test_nonsense_is_refused(change: dict[str, float], told: str) -> None:
    """In words that say what was expected."""
    with pytest.raises(InputError, match=told):
        dataclasses.replace(RECIPE, **change)


def test_training_is_not_offered_in_fp16() -> None:
    """Its gradients would underflow; the formats that work are named."""
    cpu = torch.device("cpu")
    assert training_dtype("bf16", cpu) == torch.bfloat16
    assert training_dtype("fp32", cpu) == torch.float32
    with pytest.raises(InputError, match=r"^precision: expected auto, fp32 or bf16 for training, got fp16$"):
        training_dtype("fp16", cpu)
