"""Stage 2: the transformer learns to predict each scale's tokens from class, captions and the coarser scales.

The tokenizer is finished and frozen; tokens come from a cache, or from pictures that it encodes as they come.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nextscale import images
from nextscale.config import Order, TransformerConfig, check_pair, to_json
from nextscale.data import DataSet
from nextscale.data.ahead import Ahead
from nextscale.data.tokens import TokenCache, TokenSet
from nextscale.errors import InputError
from nextscale.files.checkpoint import fingerprint
from nextscale.machine import distributed
from nextscale.machine.precision import Precision, find_device, lowered
from nextscale.pipeline import Pipeline
from nextscale.rivals.orders import kind_of
from nextscale.text.prompts import Prompts, Reader, check_reader
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.training.loop import Health
from nextscale.training.optimization import Figures, Optimization, Outcome, WeightAverage, training_dtype
from nextscale.training.order import announced, batch_of, generator, order_of, spread, views
from nextscale.training.recipes import Reading, TransformerRecipe
from nextscale.training.rundir import Stateful
from nextscale.training.transformer import captions, flips, health, tokens
from nextscale.training.transformer.learner import Learner
from nextscale.training.transformer.tokens import Encoded
from nextscale.transformer import VAR, DropPath
from nextscale.transformer.model import Inputs, begin_as_identity

SHOWN = 3  # sample pictures a row of a sheet
ROWS = 8  # classes or captions, at most
VALIDATED = 4096  # held-out pictures at most
UNLEARNED = 64  # pictures at a time where nothing is learned


class Lesson(NamedTuple):
    """What a transformer is told of the tokens of a batch."""

    inputs: Inputs
    """What it sees."""
    targets: Tensor
    """(B, L) int64, what it is to predict."""
    weights: Tensor
    """(L,) float32, what each counts; or (B, L)."""
    share: Tensor | None = None
    """Of (B, L) weights, their mean over that of the whole batch, of which these are a part."""


def mean_by_place(values_BL: Tensor, weights: Tensor) -> Tensor:
    """(L,), whose mean is that of all values; with weights (B, L) their weighted mean.

    Weights of places alone, (L,), say what is learned, not what is reported.
    """
    if weights.ndim == 1:
        return values_BL.mean(dim=0)
    return (weights * values_BL).sum(dim=0) * (values_BL.shape[1] / weights.sum())


class TransformerStage:
    """What the training loop asks of stage 2 (`loop.Stage`).

    Arguments:
        config: the architecture; it must belong to the tokenizer.
        tokenizer: a trained one. Its weights are not changed.
        data: pictures of the tokenizer's size, or their tokens, with as many classes as the config.
        recipe, seed: of the optimisation, of weights and data order.
        device, precision: where and in what the blocks compute; weights and loss stay float32.
        begin: a transformer of the same config to go on from, instead of a random one; it is the one that is trained.
        sharded: whether each of several processes holds a share of the model (FSDP2), not a copy (DDP).
        recompute, compiled: see `Learner`.
        reader: what reads captions, for a config that takes text; the data must have some then.
    """

    name = "transformer"

    def __init__(
        self,
        config: TransformerConfig,
        tokenizer: MultiScaleVQVAE,
        data: DataSet | TokenSet,
        *,
        recipe: TransformerRecipe,
        seed: int = 0,
        device: str = "cpu",
        precision: Precision = "auto",
        begin: VAR | None = None,
        sharded: bool = False,
        recompute: bool = False,
        compiled: bool = False,
        reader: Reader | None = None,
    ) -> None:
        check_pair(tokenizer.config, config)
        check_reader(reader, config.text)
        _check_labels(config, data)
        if reader is not None and data.train.captions is None:
            raise InputError("captions: expected some with the pictures, for a model that reads text, got none")
        recipe.check(config.scales, config.order)
        if recipe.drop_path * config.depth / 24 >= 1:
            raise InputError(
                f"drop_path: expected less than {24 / config.depth:.3g} at depth {config.depth}, got {recipe.drop_path}"
            )
        known = {
            "transformer": to_json(config),
            "tokenizer": fingerprint(tokenizer.state_dict()),
            "begin": fingerprint(begin.state_dict()) if begin is not None else None,  # before it is trained, or cut
        }
        if isinstance(data, TokenCache) and data.meta.tokenizer != known["tokenizer"]:
            raise InputError(f"expected tokens of tokenizer {known['tokenizer']}, got those of {data.meta.tokenizer}")
        self.device = find_device(device)
        self.dtype = training_dtype(precision, self.device)
        self.tokenizer = tokenizer.to(self.device).requires_grad_(False)
        self.data = tokens.encoded(data, self.tokenizer, self.dtype) if isinstance(data, DataSet) else data
        train = self.data.train
        self.ahead = train.ahead if isinstance(train, Encoded) else Ahead(train, self.device)
        self.train = train if isinstance(train, Encoded) else self.ahead
        if recipe.self_correction and not isinstance(self.data.train, Encoded):
            raise InputError(
                "self_correction: expected pictures, whose features are quantized anew in each step, got tokens"
            )
        if begin is not None and recipe.start != "release":
            raise InputError(f"start: expected release for a model that has learned already, got {recipe.start}")
        self.model = begin or kind_of(config).model(config, seed=seed)
        if recipe.start == "identity":
            begin_as_identity(self.model)
        self.model.to(self.device)
        self.learner = Learner(self.model, recompute=recompute, compiled=compiled)
        self.sharded = sharded and distributed.world() > 1
        if self.sharded:
            parts = [part for block in self.model.blocks for part in block.children()]
            self.passed = distributed.sharded(self.learner, parts, dtype=self.dtype)
        else:
            self.passed = distributed.wrapped(self.learner)
        self.optimization = Optimization(self.model, recipe.optimization, self.passed, dtype=self.dtype)
        self.average = WeightAverage(self.model, recipe.average) if recipe.average else None
        self._whole: VAR | None = None
        self.frequencies = health.Frequencies(config.scales, config.codebook_size, self.device, groups=config.groups)
        self.reader, self.seed = reader, seed
        self.reading = recipe.text or Reading()
        self.recipe = recipe if reader is None else dataclasses.replace(recipe, text=self.reading)
        self.settings = known | {
            "reader": None if reader is None else reader.fingerprint,
            "captions": None if reader is None or data.train.captions is None else data.train.captions.fingerprint,
            "data": self.data.train.fingerprint,
            "precision": str(self.dtype).removeprefix("torch."),
            **order_of(data.train),
        }

    @property
    def batch(self) -> int:
        """Images a step."""
        return self.recipe.optimization.batch

    @property
    def state(self) -> Mapping[str, Stateful]:
        """All that a checkpoint keeps."""
        parts: dict[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimization,
            "frequencies": self.frequencies,
        }
        return parts | ({"average": self.average} if self.average is not None else {})

    @property
    def best_model(self) -> VAR:
        """What is validated, shown and saved: the running average of the weights, where there is one.

        With an average or in shards it is a copy, as of the last `gather`, which only the first process has.
        """
        if self.average is None and not self.sharded:
            return self.model
        assert self._whole is not None, "gather comes first"
        return self._whole

    def gather(self) -> None:
        """Make that copy, on the device, and count the tokens of all processes; all must call it."""
        self.frequencies.gather()
        if self.average is None and not self.sharded:
            return
        weights = self.average.whole() if self.average is not None else distributed.whole_state(self.model)
        if distributed.is_first():
            self._whole = type(self.model)(self.model.config, seed=None)
            self._whole.load_state_dict(weights, assign=True)
            self._whole.to(self.device).requires_grad_(False)

    # -- the steps -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Nothing to do before the first step."""

    def prefetching(self, step: int) -> AbstractContextManager[None]:
        """While it is open, the pictures or tokens of `step` and those after are read ahead: a step's, and a part's."""
        parts = self.optimization.slices()
        wanted = announced(self.data.train, self.batch, self.seed, flip=self.recipe.flip, parts=parts, step=step)
        return self.ahead.reading(wanted, len(parts) + 1)

    def update(self, step: int, total: float | None) -> Outcome:
        """One step."""
        losses = (self.loss(step, part, total) for part in self.optimization.parts())
        outcome = self.optimization.update(losses, step, total)
        if self.average is not None and outcome.finite:
            self.average.update()
        return outcome

    def loss(self, step: int, part: slice = slice(None), total: float | None = None) -> tuple[Tensor, Figures]:
        """Cross-entropy of a part of a step's batch, averaged over its tokens by the weights of their scales.

        With label dropout, drop-path and, where the recipe asks for them, noise in what is looked at and fewer scales.
        """
        tokens_BL, seen_BL, labels_B = self._told(step, part)
        prompts = self._prompts(step, part)
        self.frequencies.add(tokens_BL)
        with lowered(self.device, self.dtype):
            lesson = self._lesson(tokens_BL, self._looked_at(seen_BL, step, part), step, part, total)
            loss, _, hit_BL = self.passed(
                self._labels(labels_B, step, part).to(self.device),
                lesson.inputs,
                lesson.targets,
                drop_path=self._drop_path(step, part, total),
                weights_L=lesson.weights,
                smoothing=self.recipe.label_smoothing,
                prompts=prompts,
            )
        loss = loss if lesson.share is None else loss * lesson.share
        hits_BL, by_token = hit_BL.float(), lesson.weights.ndim > 1
        figures = {"accuracy": mean_by_place(hits_BL, lesson.weights).mean() if by_token else hits_BL.mean()}
        if self.recipe.progressive:
            learned = self.recipe.scales_learned(step, total, len(self.model.config.scales))
            figures["scales_learned"] = torch.full((), learned, device=self.device)
        return loss, figures

    def _lesson(self, tokens_BL: Tensor, seen_BL: Tensor, step: int, part: slice, total: float | None) -> Lesson:
        """What a step tells of tokens of a part of its batch: targets, and what is taken to be seen of them."""
        weights_L = self._weights(step, total)
        first, end = self.model.walk.lengths[0], len(weights_L)
        return Lesson(self._teacher_inputs(seen_BL)[:, : end - first], tokens_BL[:, :end], weights_L)

    def _exam(self, tokens_BL: Tensor, first: int) -> Lesson:
        """What is asked about tokens of held-out pictures, from the one of number `first` on."""
        weights_L = torch.ones(tokens_BL.shape[1], device=self.device)
        return Lesson(self._teacher_inputs(tokens_BL), tokens_BL, weights_L)

    def _teacher_inputs(self, tokens_BL: Tensor) -> Tensor:
        """What the transformer sees of tokens."""
        return self.tokenizer.teacher_inputs(tokens_BL)

    def _batch(self, step: int, part: slice) -> tuple[Tensor, Tensor]:
        """Tokens, on the device, and labels of a part of a step's batch."""
        indices = self._indices(step)[part]
        seen = views(self.batch, step, self.seed, flip=self.recipe.flip)[part]
        tokens_BL, labels_B = self.train.batch(indices, views=seen)
        return tokens_BL.to(self.device, non_blocking=True), labels_B

    def _told(self, step: int, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Targets, input tokens (with self-correction, others than the targets) and labels of a part of a batch."""
        if not self.recipe.self_correction:
            tokens_BL, labels_B = self._batch(step, part)
            return tokens_BL, tokens_BL, labels_B
        assert isinstance(self.data.train, Encoded)
        most, numbers = self.recipe.self_correction, generator(self.seed, "flips", step)
        by_BLG = flips.turns(self.tokenizer.config, most, batch=self.batch, numbers=numbers)
        seen = views(self.batch, step, self.seed, flip=self.recipe.flip)[part]
        found, painted, labels_B = self.data.train.corrected(self._indices(step)[part], by_BLG[part], views=seen)
        return found, painted, labels_B

    def _indices(self, step: int) -> Tensor:
        """(batch,) int64, the pictures of a step."""
        return batch_of(self.data.train, self.batch, step, self.seed)

    def _labels(self, labels_B: Tensor, step: int, part: slice) -> Tensor:
        """Some of them replaced by "no class"."""
        dropped_B = self._at_random("labels", step) < self.recipe.label_dropout
        if self.reader is not None:
            words = captions.first(self.data.train.captions, self._indices(step))
            share = 1.0 if len(self.data.classes) == 1 else self.reading.alone
            dropped_B |= (self._at_random("alone", step) < share) & torch.tensor([word != "" for word in words])
        return labels_B.masked_fill(dropped_B[part], self.model.config.classes)

    def _prompts(self, step: int, part: slice) -> Prompts | None:
        """Captions of a part of a step's batch, some of them replaced by no text; on the device."""
        if self.reader is None or self.data.train.captions is None:
            return None
        words = captions.told(
            self.data.train.captions,
            self._indices(step)[part],
            self.reading,
            seed=self.seed,
            step=step,
            part=part,
            batch=self.batch,
        )
        dropped_B = self._at_random("prompts", step) < self.recipe.label_dropout
        return self.reader.read(words).dropped(dropped_B[part]).to(self.device)

    def _at_random(self, what: str, step: int) -> Tensor:
        """(batch,) float32 in [0, 1)."""
        return torch.rand(self.batch, generator=generator(self.seed, what, step))

    def _first(self, chosen: range, labels_B: Tensor) -> tuple[Tensor, Prompts | None]:
        """Labels and first captions of held-out pictures; without a class that says nothing."""
        if self.reader is None:
            return labels_B.to(self.device), None
        words = captions.first(self.data.validation.captions, chosen)
        alone_B = torch.tensor([word != "" for word in words]) & (len(self.data.classes) == 1)
        labels_B = labels_B.masked_fill(alone_B, self.model.config.classes)
        return labels_B.to(self.device), self.reader.read(words).to(self.device)

    def _looked_at(self, tokens_BL: Tensor, step: int, part: slice) -> Tensor:
        """What the coarser scales are taken to be: the tokens, some of them flipped to random ones."""
        if not self.recipe.token_noise:
            return tokens_BL
        numbers, shape = generator(self.seed, "noise", step), (self.batch, tokens_BL.shape[1])
        flipped_BL = (torch.rand(shape, generator=numbers) < self.recipe.token_noise)[part]
        random_BL = torch.randint(self.model.config.codebook_size, shape, generator=numbers)[part]
        return torch.where(flipped_BL.to(self.device), random_BL.to(self.device), tokens_BL)

    def _weights(self, step: int, total: float | None) -> Tensor:
        """(l,) float32: weights of the tokens that are learned in a step, those of the first scales or of all."""
        scales = self.model.config.scales
        learned = self.recipe.scales_learned(step, total, len(scales))
        given = self.recipe.weights_of(scales)
        by_scale = [weight * min(learned - k, 1.0) for k, weight in enumerate(given[: math.ceil(learned)])]
        lengths = torch.tensor(scales.lengths[: len(by_scale)])
        return torch.tensor(by_scale).repeat_interleave(lengths).to(self.device)

    def _drop_path(self, step: int, part: slice, total: float | None = None) -> DropPath:
        """The rate of the last block is the recipe's, times depth / 24 (paper, appendix)."""
        seed = generator(self.seed, "paths", step).initial_seed()
        rate = self.recipe.drop_path_at(step, total) * self.model.config.depth / 24
        return DropPath(rate, torch.Generator(self.device).manual_seed(seed), batch=self.batch, part=part)

    @torch.no_grad()
    def inputs(self, step: int) -> Tensor:
        """The pictures of a step, as their tokens tell them, over all processes, for inspection."""
        tokens_BL, _ = self._batch(step, slice(None))
        return torch.cat([self.tokenizer.decode(part).cpu() for part in tokens_BL.split(UNLEARNED)])

    # -- how it is -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Cross-entropy and accuracy of held-out tokens, given classes and first captions, and the cross-entropy of
        guesses by frequency ("unigram"): overall and at each scale."""
        learner, losses, hits, guesses, counted = Learner(self.best_model), [], [], [], []
        surprise_KV, scales = self.frequencies.surprise(), self.model.config.scales
        chosen = spread(self.data.validation, VALIDATED)
        for start in range(0, len(chosen), UNLEARNED):
            seen = chosen[start : start + UNLEARNED]
            tokens_BL, labels_B = self.data.validation.batch(seen)
            tokens_BL = tokens_BL.to(self.device)
            labels_B, prompts = self._first(seen, labels_B)
            with lowered(self.device, self.dtype):
                exam = self._exam(tokens_BL, start)
                _, loss_BL, hit_BL = learner(
                    labels_B, exam.inputs, exam.targets, weights_L=exam.weights, prompts=prompts
                )
            losses.append(loss_BL)
            hits.append(hit_BL.float())
            counted.append(exam.weights)
            guesses.append(self.frequencies.guesses(surprise_KV, tokens_BL))
        figures = {}
        for name, parts in (("cross_entropy", losses), ("accuracy", hits), ("unigram", guesses)):
            mean_L = mean_by_place(torch.cat(parts), torch.cat(counted) if counted[0].ndim > 1 else counted[0])
            figures[name] = float(mean_L.mean())
            for k, part in enumerate(scales.slices(), start=1):
                figures[f"{name}_scale_{k}"] = float(mean_L[part].mean())
        return figures

    def score(self, validation: Mapping[str, float]) -> float:
        """Lower is better; which checkpoint is the best one is decided by it."""
        return validation["cross_entropy"]

    @torch.no_grad()
    def sound(self) -> bool:
        """Whether the cross-entropy of some held-out pictures is finite, by the weights that learn."""
        learner = self.learner if self.sharded else Learner(self.model)  # shares come together in that module alone
        seen = spread(self.data.validation, VALIDATED)[:UNLEARNED]  # in the shape of validation, for compiled blocks
        tokens_BL, labels_B = self.data.validation.batch(seen)
        tokens_BL = tokens_BL.to(self.device)
        labels_B, prompts = self._first(seen, labels_B)
        with lowered(self.device, self.dtype):
            exam = self._exam(tokens_BL, 0)
            _, loss_BL, _ = learner(labels_B, exam.inputs, exam.targets, weights_L=exam.weights, prompts=prompts)
        return bool(loss_BL.isfinite().all())

    def health(
        self,
        validation: Mapping[str, float],
        figures: Sequence[Mapping[str, float]],
        history: Sequence[Mapping[str, float]],
    ) -> Health:
        """A column a scale, what the scaling laws say where they apply, and warnings."""
        config, clip = self.model.config, self.recipe.optimization.clip
        table = health.table(config.scales, validation)
        if health.is_release_like(config):
            table.append(health.expectation(config, config.parameters, self.frequencies.images))
        told = health.warnings(config.scales, validation, figures, history, clip=clip)
        return Health(tuple(table), tuple(told))

    def pipeline(self) -> Pipeline:
        """The two models as they are now, sharing their weights."""
        return Pipeline(
            self.tokenizer,
            self.best_model,
            classes=self.data.classes,
            device=self.device,
            precision="fp32",
            reader=self.reader,
        )

    def pictures(self) -> Tensor:
        """From fixed seeds a row a class, or for a model that reads text a row a held-out caption; at most eight."""
        words = captions.first(self.data.validation.captions, spread(self.data.validation, ROWS))
        prompts = [word for word in words if word and self.reader is not None for _ in range(SHOWN)]
        labels = [label for label in range(min(ROWS, len(self.data.classes))) for _ in range(SHOWN)]
        with lowered(self.device, self.dtype), warnings.catch_warnings(action="ignore", category=UserWarning):
            # of a caption that is too long the beginning will do
            sampled = self.pipeline().generate(None if prompts else labels, prompts=prompts or None).images
        return images.grid(images.from_unit(sampled.cpu()), columns=2 * SHOWN)

    def export(self, directory: Path) -> None:
        """The pipeline as `Pipeline.load` reads it."""
        self.pipeline().save(directory)


def _check_labels(config: TransformerConfig, data: DataSet | TokenSet) -> None:
    """Raise `InputError` unless the classes of the data are those of the model: one more would mean "no class"."""
    if len(data.classes) != config.classes:
        raise InputError(f"classes: expected {config.classes}, as the model has, got {len(data.classes)} of the data")
    for labels_N in (data.train.labels, data.validation.labels):
        outside_N = (labels_N < 0) | (labels_N >= config.classes)
        if outside_N.any():
            raise InputError(f"labels: expected 0 .. {config.classes - 1}, got {int(labels_N[outside_N][0])}")


def fitted(
    config: TransformerConfig, tokenizer: MultiScaleVQVAE, *, classes: int, order: Order | None = None
) -> TransformerConfig:
    """`config` with the scales and codes of `tokenizer`, so many classes, and where it is given another order.

    Codes of several digits are predicted digit by digit, unless the config has groups for them already.
    """
    codes = tokenizer.config.codebook_size
    cut = bool(config.groups) and config.codebook_size == codes
    return dataclasses.replace(
        config,
        scales=tokenizer.config.scales,
        codebook_size=codes,
        code_channels=tokenizer.config.code_channels,
        groups=config.groups if cut else tokenizer.config.digits,
        classes=classes,
        order=order or config.order,
    )
