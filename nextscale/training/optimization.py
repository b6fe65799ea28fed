"""One network under its optimisers: gradients of a step's parts in, a clipped update out, or none if it is not finite.

Also the running average of the weights. What the numbers of a recipe mean is said in `recipes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nextscale.errors import InputError
from nextscale.machine import distributed
from nextscale.machine.precision import find_dtype
from nextscale.training.muon import Muon, hidden_matrices
from nextscale.training.recipes import Recipe

Figures = Mapping[str, Tensor]  # scalars on the device of the losses


class Outcome(NamedTuple):
    """What became of a step."""

    figures: dict[str, float]
    """To log."""
    finite: bool
    """Whether the update was made; otherwise the weights are as they were."""


class Optimization:
    """AdamW over those parameters of `model` that learn, decayed and spared apart, or AdamW and Muon (`muon.Muon`).

    Arguments:
        model: what learns.
        recipe: rates, decay, clip, and how the batch is cut.
        passed: what forward passes go through (`distributed.wrapped`), where that is not the model itself.
        dtype: what Muon's products run in.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        passed: nn.Module | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.recipe, self.passed = model, recipe, passed or model
        matrices = hidden_matrices(model) if recipe.optimizer == "muon" else []
        self.optimizer = make_optimizer(model, recipe, without=[matrix.weight for matrix in matrices])
        self.muon: Muon | None = None
        if matrices:
            self.muon = Muon(matrices, rate=recipe.muon_peak, decay=recipe.weight_decay, dtype=dtype)
        self.optimizers: list[Optimizer] = [self.optimizer, *([self.muon] if self.muon else [])]
        self.part = _part(recipe)
        self._begin_shares()

    def parts(self) -> Iterator[slice]:
        """Which images of the global batch this process is to look at, one part after the other.

        A part's loss is to be computed and handed to `update` before the next is asked for: several processes exchange
        gradients with the last part only.
        """
        slices = self.slices()
        for part in slices:
            with nullcontext() if part == slices[-1] else distributed.no_sync(self.passed):
                yield part

    def slices(self) -> list[slice]:
        """The same, to be told of beforehand."""
        share = distributed.shared(self.recipe.batch)
        return [slice(start, start + self.part) for start in range(share.start, share.stop, self.part)]

    def update(self, losses: Iterable[tuple[Tensor, Figures]], step: int, total: float | None) -> Outcome:
        """One step down the mean of the losses of the parts; the weights stay as they are if it is not finite.

        Each loss comes with figures, whose means over parts and processes are reported.
        """
        rate = self._prepare(step, total)
        seen: list[Figures] = []
        for loss, figures in losses:
            (loss / self.recipe.accumulate).backward()
            seen.append({"loss": loss.detach(), **figures})
        norm = distributed.whole(nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip))
        finite = bool(torch.isfinite(norm))
        if finite:
            for optimizer in self.optimizers:
                optimizer.step()
        return Outcome({**_means(seen), "gradient_norm": float(norm), "learning_rate": rate}, finite)

    def _prepare(self, step: int, total: float | None) -> float:
        """Set the rates and decays of a step, and forget the gradients of the one before; AdamW's rate."""
        rate, decay = self.recipe.rate(step, total), self.recipe.decay(step, total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            group["weight_decay"] = decay if group["weight_decay"] else 0.0
        for group in self.muon.param_groups if self.muon else ():
            group["lr"] = rate * self.recipe.muon_peak / self.recipe.learning_rate
            group["weight_decay"] = decay
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return rate

    def _begin_shares(self) -> None:
        """Moments of sharded parameters, as AdamW would begin them: a checkpoint is read to where they already lie."""
        for parameter in (p for group in self.optimizer.param_groups for p in group["params"]):
            if distributed.is_sharded(parameter):
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}

    def state_dict(self) -> dict[str, Any]:
        """AdamW's, and if there is Muon both."""
        state = self.optimizer.state_dict()
        return {"adamw": state, "muon": self.muon.state_dict()} if self.muon else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["adamw"] if self.muon else state)
        if self.muon:
            self.muon.load_state_dict(state["muon"])


def _part(recipe: Recipe) -> int:
    """Images in a part. Raises `InputError` unless the batch divides among processes and their parts."""
    size, rest = divmod(recipe.batch, distributed.world() * recipe.accumulate)
    if rest:
        raise InputError(
            f"batch: expected a number that divides into {recipe.accumulate} parts in each of {distributed.world()} "
            f"processes, got {recipe.batch}"
        )
    return size


def _means(seen: Sequence[Figures]) -> dict[str, float]:
    """Over parts and processes, which all report the same figures."""
    rows = torch.stack([torch.stack([part[name].float() for name in seen[0]]) for part in seen])
    return dict(zip(seen[0], distributed.averaged(rows.mean(dim=0)).tolist(), strict=True))


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What the matrix products of training run in. Raises `InputError` for fp16, whose gradients would underflow."""
    if precision in ("fp16", "int8"):
        raise InputError(f"precision: expected auto, fp32 or bf16 for training, got {precision}")
    return find_dtype(precision, device)


def make_optimizer(model: nn.Module, recipe: Recipe, *, without: Iterable[Tensor] = ()) -> AdamW:
    """AdamW over the parameters of `model` that want a gradient, but for some, in two groups: decayed and spared."""
    matrices = {id(_weight(module)) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    left_out = {id(parameter) for parameter in without}
    learning = [p for p in model.parameters() if p.requires_grad and id(p) not in left_out]
    groups = [
        {"params": [p for p in learning if id(p) in matrices], "weight_decay": recipe.weight_decay},
        {"params": [p for p in learning if id(p) not in matrices], "weight_decay": 0.0},
    ]
    # fused: one pass over the weights; of 310 M on a CPU core it takes 0.15 s, unfused 0.92
    return AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def _weight(module: nn.Module) -> Tensor:
    """The parameter behind a weight: a spectral norm computes `module.weight` anew whenever it is asked for."""
    hidden = parametrize.is_parametrized(module, "weight")
    return module.get_parameter("parametrizations.weight.original" if hidden else "weight")


def _ramped(decay: float, steps: int) -> float:
    """d = min(decay, (1 + n) / (10 + n)) after n steps, so that early weights are soon forgotten."""
    return min(decay, (1 + steps) / (10 + steps))


def running_average(model: nn.Module, decay: float) -> AveragedModel:
    """a <- d a + (1 - d) w after each step, d as `_ramped`. Buffers are the model's own."""

    def average(averages: Any, weights: Any, steps: Any) -> None:
        get_ema_multi_avg_fn(_ramped(decay, int(steps)))(averages, weights, steps)

    return AveragedModel(model, multi_avg_fn=average)


class WeightAverage:
    """The numbers of `running_average` without a model around them: also of parameters that lie in shards.

    Arguments:
        model: whose parameters are averaged; with `distributed.sharded` applied, if it is.
        decay: how slowly the average follows, from 0 (not averaged) to below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self.averages = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """a <- d a + (1 - d) w; the first time, a <- w."""
        share = 1 - _ramped(self.decay, self.steps) if self.steps else 1.0
        averages = [distributed.own_share(average) for average in self.averages.values()]
        weights = [distributed.own_share(parameter.detach()) for parameter in self.model.parameters()]
        torch._foreach_lerp_(averages, weights, share)
        self.steps += 1

    def whole(self) -> dict[str, Tensor]:
        """The model's state dict with averages for parameters: on the CPU of the first process, {} in the others.

        All processes must call it.
        """
        return distributed.whole_state(self.model.state_dict() | self.averages)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["averages"].keys() != self.averages.keys():
            raise KeyError("averages of other parameters")
        for name, average in self.averages.items():
            average.copy_(state["averages"][name])
        self.steps = int(state["steps"])
