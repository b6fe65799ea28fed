"""Laws of Muon: it steps as torch's does, on the matrices of the blocks alone, and alike in any number of processes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from processes import together
from torch import Tensor, nn
from torch.optim import Muon as TorchMuon

from nextscale.training import rundir
from nextscale.training.muon import Muon, hidden_matrices, orthogonalised
from nextscale.training.optimization import Optimization
from nextscale.training.recipes import Recipe

RECIPE = Recipe(
    batch=4,
    learning_rate=0.01,
    betas=(0.9, 0.95),
    weight_decay=0.1,
    warmup_steps=0,
    final_rate=0.2,
    clip=1.0,
    optimizer="muon",
)


class Stacked(nn.Module):
    """A tall matrix, a wide one, and three square ones in one weight."""

    MATRICES: ClassVar[Mapping[str, int]] = {"tall": 1, "wide": 1, "three": 3}

    def __init__(self) -> None:
        super().__init__()
        self.tall, self.wide, self.three = nn.Linear(4, 7), nn.Linear(7, 4), nn.Linear(5, 15)
        numbers = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=numbers)


def give_gradients(parameters: list[Tensor], step: int) -> None:
    """Numbers drawn by shape and step."""
    for place, parameter in enumerate(parameters):
        numbers = torch.Generator().manual_seed(100 * step + place)
        parameter.grad = torch.randn(parameter.shape, generator=numbers)


def test_steps_are_those_of_torch_bit_for_bit() -> None:
    """In bfloat16, which torch's Muon always computes in: tall, wide, and those in one weight each for itself."""
    model = Stacked()
    ours = Muon(hidden_matrices(model), rate=0.02, decay=0.3, dtype=torch.bfloat16)
    weights = [model.tall.weight, model.wide.weight, model.three.weight]
    apart = [nn.Parameter(part.detach().clone()) for part in (*weights[:2], *weights[2].split(5))]
    theirs = TorchMuon(apart, lr=0.02, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        give_gradients(weights, step)
        tall, wide, three = (weight.grad for weight in weights)
        for part, gradient in zip(apart, [tall, wide, *three.split(5)], strict=True):
            part.grad = gradient
        ours.step()
        theirs.step()
    for weight, parts in zip(weights, (apart[:1], apart[1:2], apart[2:]), strict=True):
        assert torch.equal(weight, torch.cat(parts))


@pytest.mark.parametrize("shape", [(6, 6), (4, 12), (12, 4), (1, 5), (0, 3)])
def test_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    """In float32, whatever the size of the numbers; directions stay."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    for factor in (1.0, 1e-4, 1e6):
        made = orthogonalised(factor * matrix)
        assert made.shape == matrix.shape
        assert all(0.3 < value < 1.25 for value in torch.linalg.svdvals(made).tolist())
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    aligned = left.T @ made @ right.T
    assert (aligned - torch.diag(aligned.diagonal())).abs().max() < 1e-4 if min(shape) else True


def test_nothing_comes_of_nothing() -> None:
    """A gradient of zeros moves no weight, and makes no NaN."""
    assert torch.equal(orthogonalised(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_hidden_matrices_are_those_of_the_blocks(make_transformer) -> None:
    """Queries, keys and values apart; no modulation, embedding, head or bias is one."""
    model = make_transformer()
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [(names[matrix.weight], [*matrix.rows], matrix.shape) for matrix in hidden_matrices(model)]
    expected = []
    for i in range(3):
        place = f"blocks.{i}"
        expected += [(f"{place}.attention.qkv.weight", [*range(start, start + 64)], (64, 64)) for start in (0, 64, 128)]
        expected.append((f"{place}.attention.out.weight", [*range(64)], (64, 64)))
        expected.append((f"{place}.feed_forward.up.weight", [*range(128)], (128, 64)))
        expected.append((f"{place}.feed_forward.down.weight", [*range(64)], (64, 128)))
    assert found == expected


def test_what_reads_text_has_hidden_matrices_too(make_transformer) -> None:
    """Keys and values of the text apart, and all linear layers of its encoder's layers."""
    plain, reading = make_transformer(), make_transformer(text=make_transformer().config.reading(vocabulary=300).text)
    names = {parameter: name for name, parameter in reading.named_parameters()}
    more = {names[matrix.weight] for matrix in hidden_matrices(reading)}
    more -= {name for name, parameter in plain.named_parameters()}
    linear = {
        f"{name}.weight"
        for name, module in reading.named_modules()
        if isinstance(module, nn.Linear) and ("text" in name or "cross" in name) and name != "pooled_text"
    }
    assert more == linear
    stacked = [names[matrix.weight] for matrix in hidden_matrices(reading)]
    assert stacked.count("blocks.0.text_keys.kv.weight") == 2
    assert stacked.count("text.layers.0.inside.weight") == 3


def test_every_parameter_has_one_optimiser(make_transformer) -> None:
    """The matrices Muon, whose decay is that of the recipe; all else AdamW."""
    model = make_transformer()
    optimization = Optimization(model, RECIPE)
    assert optimization.muon is not None
    (group,) = optimization.muon.param_groups
    others = [parameter for other in optimization.optimizer.param_groups for parameter in other["params"]]
    assert {*group["params"]} == {matrix.weight for matrix in hidden_matrices(model)}
    assert {*group["params"]} | {*others} == {*model.parameters()}
    assert len(group["params"]) + len(others) == len([*model.parameters()])
    assert group["weight_decay"] == 0.1


@pytest.mark.parametrize(("own", "peak"), [(0.0, 0.01), (0.05, 0.05)])
def test_both_optimisers_follow_one_course(make_transformer, own: float, peak: float) -> None:
    """The same share of their peaks and the same decay in each step; the rate that is told is AdamW's."""
    recipe = dataclasses.replace(RECIPE, muon_rate=own, warmup_steps=2, final_weight_decay=3.0)
    optimization = Optimization(make_transformer(), recipe)
    assert optimization.muon is not None
    for step in range(10):
        loss = sum(parameter.sum() for parameter in optimization.model.parameters())
        outcome = optimization.update([(loss, {})], step, 10)
        (group,) = optimization.muon.param_groups
        assert outcome.figures["learning_rate"] == recipe.rate(step, 10)
        assert optimization.optimizer.param_groups[0]["lr"] == recipe.rate(step, 10)
        assert group["lr"] == pytest.approx(recipe.rate(step, 10) * peak / 0.01)
        assert group["weight_decay"] == recipe.decay(step, 10)


def test_a_weight_without_a_gradient_stays_as_it_is() -> None:
    """It neither decays nor goes on by its momentum."""
    model = Stacked()
    muon = Muon(hidden_matrices(model), rate=0.1, decay=0.1, dtype=torch.float32)
    weights = [model.tall.weight, model.wide.weight, model.three.weight]
    give_gradients(weights, 0)
    muon.step()
    before, model.wide.weight.grad = [weight.detach().clone() for weight in weights], None
    muon.step()
    assert [torch.equal(weight, old) for weight, old in zip(weights, before, strict=True)] == [False, True, False]


def test_a_step_that_is_not_finite_changes_nothing(make_transformer) -> None:
    """Of neither optimiser: weights, momentum and moments, bit for bit."""
    optimization = Optimization(make_transformer(), RECIPE)
    whole = lambda: sum(parameter.square().sum() for parameter in optimization.model.parameters())  # noqa: E731
    assert optimization.update([(whole(), {})], 0, 10).finite
    before = copy.deepcopy((optimization.model.state_dict(), optimization.state_dict()))
    assert not optimization.update([(whole() * torch.nan, {})], 1, 10).finite
    assert torch.equal(numbers(optimization.model.state_dict(), optimization.state_dict()), numbers(*before))


def numbers(*trees: Any) -> Tensor:
    """All that stand in tensors of nested containers."""
    return torch.cat([tensor.double().flatten() for _, tensor in rundir._tensors(trees)])


def test_it_goes_on_from_its_state_bit_for_bit(make_transformer) -> None:
    """As one that was never interrupted."""
    first, second = (Optimization(make_transformer(), RECIPE) for _ in range(2))
    square = lambda model: sum(parameter.square().sum() for parameter in model.parameters())  # noqa: E731
    first.update([(square(first.model), {})], 0, 10)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimization in (first, second):
        optimization.update([(square(optimization.model), {})], 1, 10)
    ours, theirs = (numbers(made.model.state_dict(), made.state_dict()) for made in (first, second))
    assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_step_as_one_does(processes: int, tmp_path: Path) -> None:
    """With copies of the weights, and with shares of them, some of which are smaller or have no rows: to the bit."""
    done = together(Path(__file__).with_name("muon_processes.py"), tmp_path, processes=processes)
    assert done.returncode == 0, done.stderr
    model = Stacked()
    muon = Muon(hidden_matrices(model), rate=0.1, decay=0.1, dtype=torch.float32)
    for step in range(3):
        give_gradients([model.tall.weight, model.wide.weight, model.three.weight], step)
        muon.step()
    momenta = [muon.state[weight]["momentum_buffer"] for weight in muon.param_groups[0]["params"]]
    for rank in range(processes):
        for strategy in ("copies", "shares"):
            told = torch.load(tmp_path / f"{strategy}-{rank}.pt", weights_only=True)
            assert all(torch.equal(told["weights"][name], weight) for name, weight in model.state_dict().items())
            assert all(torch.equal(*pair) for pair in zip(told["momenta"], momenta, strict=True))
