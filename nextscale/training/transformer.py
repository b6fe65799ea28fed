"""Stage 2: the transformer learns to predict each scale's tokens from the class and the coarser scales.

The tokenizer is finished and frozen; it turns pictures into tokens and teacher inputs as they come.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nextscale import distributed, images
from nextscale.checkpoint import fingerprint
from nextscale.config import TransformerConfig, check_pair, to_json
from nextscale.data import DataSet
from nextscale.pipeline import Pipeline
from nextscale.precision import Precision, find_device, lowered
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.training.loop import Health
from nextscale.training.losses import cross_entropy, unigram_entropy
from nextscale.training.optimization import Figures, Optimization, Outcome, training_dtype
from nextscale.training.order import batch_indices, generator, views
from nextscale.training.recipes import Recipe
from nextscale.training.rundir import Stateful
from nextscale.training.tokenizer import encoded
from nextscale.transformer import VAR, DropPath

RECIPE = Recipe(
    batch=32,
    learning_rate=2e-3,
    betas=(0.9, 0.95),
    weight_decay=0.05,
    warmup_steps=100,
    final_rate=0.02,
    clip=2.0,
)
LABEL_DROPOUT = 0.1  # share of labels replaced by "no class", which guidance needs
SHOWN = 3  # sample pictures a class in a sheet


class TransformerStage:
    """What the training loop asks of stage 2 (`loop.Stage`).

    Arguments:
        config: the architecture; it must belong to the tokenizer.
        tokenizer: a trained one. Its weights are not changed.
        data: pictures of the tokenizer's size, with as many classes as the config.
        recipe, seed: of the optimisation, of weights and data order.
        device, precision: where and in what the blocks compute; weights, head and loss stay float32.
    """

    name = "transformer"

    def __init__(
        self,
        config: TransformerConfig,
        tokenizer: MultiScaleVQVAE,
        data: DataSet,
        *,
        recipe: Recipe = RECIPE,
        seed: int = 0,
        device: str = "cpu",
        precision: Precision = "auto",
    ) -> None:
        check_pair(tokenizer.config, config)
        self.device = find_device(device)
        self.dtype = training_dtype(precision, self.device)
        self.tokenizer = tokenizer.to(self.device).requires_grad_(False)
        self.model = VAR(config, seed=seed).to(self.device)
        self.passed = distributed.wrapped(self.model)
        self.optimization = Optimization(self.model, recipe, self.passed)
        self.data, self.recipe, self.seed = data, recipe, seed
        self.settings = {
            "transformer": to_json(config),
            "tokenizer": fingerprint(tokenizer.state_dict()),
            "data": data.train.fingerprint,
            "precision": str(self.dtype).removeprefix("torch."),
        }

    @property
    def batch(self) -> int:
        """Images a step."""
        return self.recipe.batch

    @property
    def state(self) -> Mapping[str, Stateful]:
        """All that a checkpoint keeps."""
        return {"model": self.model, "optimizer": self.optimization}

    def prepare(self) -> None:
        """Nothing to do before the first step."""

    def update(self, step: int, total: int | None) -> Outcome:
        """One step."""
        return self.optimization.update((self.loss(step, part) for part in self.optimization.parts()), step, total)

    def loss(self, step: int, part: slice = slice(None)) -> tuple[Tensor, Figures]:
        """Cross-entropy averaged over all tokens of a part of a step's batch, with label dropout and drop-path."""
        originals, labels = self._batch(step, part)
        dropped = torch.rand(self.batch, generator=generator(self.seed, "labels", step)) < LABEL_DROPOUT
        labels = labels.masked_fill(dropped[part], self.model.config.classes).to(self.device)
        with lowered(self.device, self.dtype):
            tokens = self.tokenizer.encode(originals.to(self.device))
            inputs = self.tokenizer.teacher_inputs(tokens)
            logits = self.passed(labels, inputs, drop_path=self._drop_path(step, part.start or 0))
        loss = cross_entropy(logits, tokens).mean()
        accuracy = (logits.detach().argmax(dim=-1) == tokens).float().mean()
        return loss, {"accuracy": accuracy}

    def _batch(self, step: int, part: slice) -> tuple[Tensor, Tensor]:
        """Pictures and labels of a part of a step's batch."""
        indices = batch_indices(len(self.data.train), self.batch, step, self.seed)[part]
        return self.data.train.batch(indices, views=views(self.batch, step, self.seed)[part])

    def _drop_path(self, step: int, first: int) -> DropPath:
        """The paper's rate, 0.1 * depth / 24."""
        seed = generator(self.seed, "paths", step, first).initial_seed()
        return DropPath(0.1 * self.model.config.depth / 24, torch.Generator(self.device).manual_seed(seed))

    def inputs(self, step: int) -> Tensor:
        """The pictures of a step, over all processes, for inspection."""
        return self._batch(step, slice(None))[0]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Cross-entropy and accuracy of held-out tokens, overall and at each scale, given their classes."""
        losses, hits, start = [], [], 0
        labels = self.data.validation.labels.to(self.device)
        for _, tokens in encoded(self.tokenizer, self.data.validation):
            with lowered(self.device, self.dtype):
                logits = self.model(labels[start : start + len(tokens)], self.tokenizer.teacher_inputs(tokens))
            losses.append(cross_entropy(logits, tokens))
            hits.append((logits.argmax(dim=-1) == tokens).float())
            start += len(tokens)
        loss_L, hit_L = torch.cat(losses).mean(dim=0), torch.cat(hits).mean(dim=0)
        figures = {"cross_entropy": float(loss_L.mean()), "accuracy": float(hit_L.mean())}
        for k, part in enumerate(self.model.config.scales.slices(), start=1):
            figures[f"cross_entropy_scale_{k}"] = float(loss_L[part].mean())
        return figures

    def score(self, validation: Mapping[str, float]) -> float:
        """Lower is better; which checkpoint is the best one is decided by it."""
        return validation["cross_entropy"]

    def health(
        self,
        validation: Mapping[str, float],
        figures: Sequence[Mapping[str, float]],
        history: Sequence[Mapping[str, float]],
    ) -> Health:
        """Nothing beyond the figures."""
        return Health()

    def unigram(self) -> float:
        """Entropy of the training tokens when only their position is known, averaged over positions, in nats."""
        tokens = torch.cat([tokens for _, tokens in encoded(self.tokenizer, self.data.train)])
        return float(unigram_entropy(tokens.cpu(), self.model.config.codebook_size).mean())

    def pipeline(self) -> Pipeline:
        """The two models as they are now, sharing their weights."""
        return Pipeline(self.tokenizer, self.model, classes=self.data.classes, device=self.device, precision="fp32")

    def pictures(self) -> Tensor:
        """A row a class from fixed seeds, at most eight classes."""
        classes = range(min(8, len(self.data.classes)))
        labels = [label for label in classes for _ in range(SHOWN)]
        with lowered(self.device, self.dtype):
            sampled = self.pipeline().generate(labels, range(len(labels))).images
        return images.grid(images.from_unit(sampled.cpu()), columns=2 * SHOWN)

    def export(self, directory: Path) -> None:
        """The pipeline as `Pipeline.load` reads it."""
        self.pipeline().save(directory)


def fitted(config: TransformerConfig, tokenizer: MultiScaleVQVAE, *, classes: int) -> TransformerConfig:
    """`config` with the scales and codes of `tokenizer` and so many classes."""
    return dataclasses.replace(
        config,
        scales=tokenizer.config.scales,
        codebook_size=tokenizer.config.codebook_size,
        code_channels=tokenizer.config.code_channels,
        classes=classes,
    )
