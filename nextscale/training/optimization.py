"""Optimiser and schedule: AdamW that decays only what multiplies activations, and the learning rate's course."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import AdamW

from nextscale.errors import InputError
from nextscale.precision import find_dtype


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one stage is optimised; what a run's settings file records."""

    batch: int
    """Images a step."""
    learning_rate: float
    """The peak, reached after the warm-up."""
    betas: tuple[float, float]
    """AdamW's decay rates of the two moments."""
    weight_decay: float
    """Of weights of linear layers and convolutions; biases, gains, embeddings, positions and tables are spared."""
    warmup_steps: int
    """Steps over which the learning rate rises linearly from near 0."""
    final_rate: float
    """Learning rate at the end, as a share of the peak; it falls linearly from the end of the warm-up."""
    clip: float
    """Largest norm of the gradient; a larger one is scaled down to it."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"batch: expected at least 1, got {self.batch}")
        if not self.learning_rate > 0:
            raise InputError(f"learning rate: expected more than 0, got {self.learning_rate}")

    def rate(self, step: int, total: int | None) -> float:
        """The learning rate of 0-based `step` of `total`; while that is not known, the peak follows the warm-up."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if total is None:
            return self.learning_rate
        done = (step - self.warmup_steps) / max(total - self.warmup_steps, 1)
        return self.learning_rate * (1 - (1 - self.final_rate) * min(done, 1.0))


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What the matrix products of training run in. Raises `InputError` for fp16, whose gradients would underflow."""
    if precision == "fp16":
        raise InputError("precision: expected auto, fp32 or bf16 for training, got fp16")
    return find_dtype(precision, device)


def make_optimizer(model: nn.Module, recipe: Recipe) -> AdamW:
    """AdamW over all parameters of `model` in two groups: decayed and spared."""
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    decayed = [p for p in model.parameters() if id(p) in matrices]
    spared = [p for p in model.parameters() if id(p) not in matrices]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)
