"""The adversarial stage's other side: a discriminator with its optimiser and running means, all one thing to keep.

`term` is what the autoencoder hears of it, `update` is its own step; when each happens is the recipe's to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nextscale.machine import distributed
from nextscale.machine.precision import lowered
from nextscale.training import losses
from nextscale.training.optimization import Figures, Optimization, Outcome
from nextscale.training.recipes import Adversarial, Recipe
from nextscale.training.tokenizer.discriminators import DRAWS, diffaug

MEMORY = 0.99  # decay of LeCam's running means


class Pair(NamedTuple):
    """What the discriminator compares: pictures and what was painted of them, (B, 3, H, W) in [-1, 1]."""

    images: Tensor
    painted: Tensor
    draws: Tensor
    """(B, 10) of DiffAug, the same for both."""


class Adversary:
    """A discriminator in training.

    Arguments:
        discriminator: pictures -> logits.
        recipe: of the adversarial stage.
        optimization: of the autoencoder, whose batch and parts are the discriminator's too.
        dtype: what its convolutions run in.
    """

    def __init__(self, discriminator: nn.Module, recipe: Adversarial, optimization: Recipe, dtype: torch.dtype) -> None:
        self.discriminator, self.recipe, self.dtype = discriminator, recipe, dtype
        own = Recipe(
            batch=optimization.batch,
            accumulate=optimization.accumulate,
            learning_rate=recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            warmup_steps=0,
            final_rate=1.0,
            clip=recipe.clip,
        )
        self.passed = distributed.wrapped(discriminator)
        self.optimization = Optimization(discriminator, own, self.passed)
        self.means = torch.zeros(2, device=next(discriminator.parameters()).device)  # of logits: real, painted

    def term(self, pair: Pair) -> Tensor:
        """What the autoencoder minimises: -mean D(painted). The discriminator gathers no gradient by it."""
        self.discriminator.requires_grad_(False)
        term = losses.hinge_generator(self._judged(self.discriminator, pair.painted, pair.draws))
        self.discriminator.requires_grad_(True)
        return term

    def update(self, pairs: Sequence[Pair], step: int, total: float | None) -> Outcome:
        """One step towards telling them apart."""
        outcome = self.optimization.update(self._losses(pairs), step, total)
        figures = {f"discriminator_{name}": value for name, value in outcome.figures.items()}
        if outcome.finite:
            means = [figures["discriminator_real"], figures["discriminator_painted"]]
            self.means.lerp_(torch.tensor(means, device=self.means.device), 1 - MEMORY)
        return Outcome(figures, outcome.finite)

    def _losses(self, pairs: Sequence[Pair]) -> Iterator[tuple[Tensor, Figures]]:
        for _, pair in zip(self.optimization.parts(), pairs, strict=True):
            both = torch.cat([pair.images, pair.painted.detach()])
            real, painted = self._judged(self.passed, both, pair.draws.repeat(2, 1)).chunk(2)
            loss = losses.hinge_discriminator(real, painted)
            if self.recipe.lecam:
                real_mean, painted_mean = self.means
                held = losses.lecam(real, painted, real_mean=real_mean, fake_mean=painted_mean)
                loss = loss + self.recipe.lecam * held
            right = ((real > 0).float().mean() + (painted < 0).float().mean()) / 2
            yield loss, {"real": real.detach().mean(), "painted": painted.detach().mean(), "accuracy": right}

    def _judged(self, discriminator: nn.Module, images: Tensor, draws: Tensor) -> Tensor:
        seen = diffaug(images, draws.to(images.device), self.recipe.augment) if self.recipe.augment else images
        with lowered(images.device, self.dtype):
            return discriminator(seen).float()

    def state_dict(self) -> dict[str, Any]:
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimization.state_dict(),
            "means": self.means,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimization.load_state_dict(state["optimizer"])
        self.means.copy_(state["means"])


def draws(count: int, generator: torch.Generator) -> Tensor:
    """(count, 10) random numbers for DiffAug."""
    return torch.rand(count, DRAWS, generator=generator)
