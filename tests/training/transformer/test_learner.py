"""Laws of the learner: the loss and the gradients of the plain computation, however the blocks are run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from processes import together
from torch import Tensor

from nextscale import VAR, Scales
from nextscale.training.transformer.learner import Learner
from nextscale.transformer import DropPath

SCALES = Scales([1, 2, 4, 8])  # the last one is large enough for products of its own


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Labels, one of them "no class", teacher inputs and tokens."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, SCALES.total - 1, 8, generator=generator)
    return torch.arange(6), inputs, torch.randint(64, (6, SCALES.total), generator=generator)


def paths(rate: float = 0.5) -> DropPath:
    return DropPath(rate, torch.Generator().manual_seed(0))


def gradients(loss: Tensor, model: VAR) -> dict[str, Tensor]:
    """By name; the model is left without any."""
    model.zero_grad()
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(
            ours[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("dropped", [False, True])
def test_loss_is_the_cross_entropy_of_the_models_logits(
    make_transformer: Callable[..., VAR], batch: tuple[Tensor, Tensor, Tensor], dropped: bool
) -> None:
    """And so are its gradients; smoothing, weights of positions and stochastic depth included."""
    model, (labels, inputs, tokens) = make_transformer(scales=SCALES), batch
    weights = torch.linspace(0.5, 1.5, SCALES.total)
    logits = model(labels, inputs, drop_path=paths() if dropped else None)
    of_each = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none", label_smoothing=0.1)
    expected = (of_each.view_as(tokens) * weights).mean() / weights.mean()
    loss, loss_BL, hit_BL = Learner(model)(labels, inputs, tokens, paths() if dropped else None, weights, 0.1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss_BL.mean(), F.cross_entropy(logits.detach().flatten(0, 1), tokens.flatten()))
    assert torch.equal(hit_BL, logits.argmax(dim=-1) == tokens)
    assert_alike(gradients(loss, model), gradients(expected, model))


def test_recomputed_blocks_learn_the_same(
    make_transformer: Callable[..., VAR], batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Bit for bit, stochastic depth too: nothing is drawn a second time."""
    model, (labels, inputs, tokens) = make_transformer(scales=SCALES), batch
    plain, recomputed = Learner(model), Learner(model, recompute=True)
    first, second = (learner(labels, inputs, tokens, paths())[0] for learner in (plain, recomputed))
    assert torch.equal(first, second)
    ours, theirs = gradients(second, model), gradients(first, model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_recomputed_blocks_keep_less(
    make_transformer: Callable[..., VAR], batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Less than half of what waits for the backward pass."""
    model, (labels, inputs, tokens) = make_transformer(scales=SCALES), batch

    def kept(learner: Learner) -> int:
        seen: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            learner(labels, inputs, tokens)
        return sum(seen.values())

    assert kept(Learner(model, recompute=True)) < 0.5 * kept(Learner(model))


def test_head_multiplies_in_the_dtype_of_autocast(
    make_transformer: Callable[..., VAR], batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    """The loss is near that of float32; gradients are float32, of the masters."""
    model, (labels, inputs, tokens) = make_transformer(scales=SCALES), batch
    exact, _, _ = Learner(model)(labels, inputs, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, _, _ = Learner(model)(labels, inputs, tokens)
    assert low.item() == pytest.approx(exact.item(), rel=2e-3)
    ours, theirs = gradients(low, model), gradients(exact, model)
    assert all(gradient.dtype == torch.float32 for gradient in ours.values())
    head = "head.weight"
    assert 0 < (ours[head] - theirs[head]).norm() < 0.05 * theirs[head].norm()


@torch.no_grad()
def test_learner_measures_without_gradients(
    make_transformer: Callable[..., VAR], batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    """For validation; recomputing then means nothing."""
    model, (labels, inputs, tokens) = make_transformer(scales=SCALES), batch
    loss, loss_BL, _ = Learner(model, recompute=True)(labels, inputs, tokens)
    torch.testing.assert_close(loss, loss_BL.mean())


def test_model_in_a_learner_keeps_its_names(make_transformer: Callable[..., VAR]) -> None:
    """Its state dict is the model's, wherever it is saved from."""
    model = make_transformer(scales=SCALES)
    names = [*model.state_dict()]
    learner = Learner(model, recompute=True)
    assert [*model.state_dict()] == names
    assert [*learner.state_dict()] == [f"model.{name}" for name in names]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_learn_the_same(
    make_transformer: Callable[..., VAR],
    batch: tuple[Tensor, Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    recompute: bool,
) -> None:
    """To rounding, stochastic depth too. Traced but not turned into machine code, which takes a minute."""
    compile_module = torch.nn.Module.compile
    traced = functools.partialmethod(compile_module, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    labels, inputs, tokens = batch
    model, again = make_transformer(scales=SCALES), make_transformer(scales=SCALES)
    expected, _, _ = Learner(model)(labels, inputs, tokens, paths())
    compiled, _, _ = Learner(again, recompute=recompute, compiled=True)(labels, inputs, tokens, paths())
    torch.testing.assert_close(compiled, expected)
    assert [*again.state_dict()] == [*model.state_dict()]
    assert_alike(gradients(compiled, again), gradients(expected, model))


def test_two_processes_learn_what_one_learns() -> None:
    """Wrapped by DDP, and by FSDP2 where torch shards on CPUs: the gradients of the whole batch."""
    done = together(Path(__file__).with_name("two_learners.py"), strict=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("alike") == 2
