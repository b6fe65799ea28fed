"""How the stages are trained, as frozen dataclasses that torch is not needed to read.

What a recipe holds is recorded with every run, and a run is continued only under the same recipe. `nextscale train ...
--set NAME=VALUE` changes single values by their dotted names (`changed`). Architecture is not here: see `config`.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

from nextscale.config import Order, TokenizerConfig
from nextscale.errors import InputError
from nextscale.scales import Scales

FEW = 12  # names that a message lists one by one; of more, their groups
MOST_EXPONENT = 4  # of weights by area: at 256 px the finest scale then counts a 65,536th of the coarsest
MOST_BATCH = 1 << 20  # images a step: a thousand times what large models take, and still counted in milliseconds
OF_THE_FALL = ("flat", "fall", "final_rate")  # the values that no step before the fall depends on
LATER = {"later": True}  # marks fields added later: `recorded` leaves them out at their defaults
DiscriminatorName = Literal["none", "patch", "features"]


FALLS: dict[str, Callable[[float], float]] = {  # what is left of the rate, by the share of the way
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "sqrt": lambda done: 1 - math.sqrt(done),
}


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise InputError(message)


def _require_betas(name: str, betas: tuple[float, float]) -> None:
    _require(all(0 <= beta < 1 for beta in betas), f"{name}: expected two numbers from 0 to below 1, got {betas}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is optimised: by what, its schedule, and how a step is cut into parts."""

    batch: int
    """Images a step, over all processes."""
    learning_rate: float
    """The peak, reached after the warm-up."""
    betas: tuple[float, float]
    """AdamW's decay rates of the two moments."""
    weight_decay: float
    """Of weights of linear layers and convolutions; biases, gains, embeddings, positions and tables are spared."""
    warmup_steps: int
    """Steps over which the learning rate rises linearly, at least."""
    final_rate: float
    """Learning rate at the end, as a share of the peak."""
    clip: float
    """Largest norm of the gradient; a larger one is scaled down to it."""
    warmup: float = 0.0
    """Share of the run over which the learning rate rises, where that is longer."""
    first_rate: float = 0.0
    """Learning rate that it rises from, as a share of the peak."""
    flat: float = 0.0
    """Share of the run after which the learning rate begins to fall; no earlier than the warm-up's end."""
    fall: Literal["linear", "cosine", "sqrt"] = "linear"
    """How it falls to the final rate; sqrt is fast at first: 1 - sqrt of the way."""
    final_weight_decay: float = 1.0
    """Weight decay at the end, as a multiple of that at the start; in between it follows a cosine."""
    accumulate: int = 1
    """Parts a process cuts its share of the batch into, one after the other: less memory, the same step, but for the
    adaptive weight and the entropy term, which are each part's own."""
    optimizer: Literal["adamw", "muon"] = field(default="adamw", metadata=LATER)
    """AdamW for all, or Muon for the matrices inside blocks and AdamW for the rest: embeddings, positions, modulations,
    head, biases."""
    muon_rate: float = field(default=0.0, metadata=LATER)
    """Muon's peak, where it is not the learning rate; it follows the same course."""

    def __post_init__(self) -> None:
        _require(self.batch >= 1, f"batch: expected at least 1, got {self.batch}")
        _require(self.batch <= MOST_BATCH, f"batch: expected at most {MOST_BATCH}, got {self.batch}")
        _require(self.learning_rate > 0, f"learning rate: expected more than 0, got {self.learning_rate}")
        _require(self.clip > 0, f"clip: expected more than 0, got {self.clip}")
        _require(self.weight_decay >= 0, f"weight_decay: expected at least 0, got {self.weight_decay}")
        _require(self.warmup_steps >= 0, f"warmup_steps: expected at least 0, got {self.warmup_steps}")
        for name in ("final_rate", "warmup", "first_rate", "flat"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"{name}: expected a share from 0 to 1, got {value}")
        _require(
            self.final_weight_decay >= 0, f"final_weight_decay: expected at least 0, got {self.final_weight_decay}"
        )
        _require_betas("betas", self.betas)
        _require(self.muon_rate >= 0, f"muon_rate: expected at least 0, got {self.muon_rate}")
        _require(
            not self.muon_rate or self.optimizer == "muon",
            f"muon_rate: expected 0 without optimizer=muon, got {self.muon_rate}",
        )
        _require(self.accumulate >= 1, f"accumulate: expected at least 1, got {self.accumulate}")
        _require(
            self.batch % self.accumulate == 0,
            f"accumulate: expected a divisor of the batch of {self.batch}, got {self.accumulate}",
        )

    def rate(self, step: int, total: float | None) -> float:
        """The learning rate of 0-based `step` of `total`.

        While the total is not known, the peak follows the warm-up's steps, but a warm-up by share has not yet begun.
        """
        rising = self._rising(total)
        if step < rising:
            return self.learning_rate * (self.first_rate + (1 - self.first_rate) * (step + 1) / rising)
        if total is None:
            return self.learning_rate * (self.first_rate if self.warmup else 1)
        falling = max(rising, round(self.flat * total))
        done = min(max((step - falling) / max(total - falling, 1), 0.0), 1.0)
        left = FALLS[self.fall](done)
        return self.learning_rate * (self.final_rate + (1 - self.final_rate) * left)

    def _rising(self, total: float | None) -> int:
        """Steps of the warm-up."""
        return max(self.warmup_steps, round(self.warmup * (total or 0)))

    def plateau(self, total: int) -> int:
        """How many of `total` steps come before the rate begins to fall."""
        return total if self.final_rate == 1 else min(max(self._rising(total), round(self.flat * total)), total)

    def until_the_fall(self, share: float, steps: int) -> Recipe:
        """The same with a plateau between a warm-up and a fall over the last `share` of the run, 0 to below 1.

        A warm-up by share becomes as many steps as in a run of `steps`, so that the plateau does not know its end.
        """
        _require(0 <= share < 1, f"cooldown: expected a share from 0 to below 1, got {share}")
        rising = max(self.warmup_steps, round(self.warmup * steps))
        return dataclasses.replace(self, warmup=0.0, warmup_steps=rising, flat=1 - share)

    @property
    def open_ended(self) -> bool:
        """Whether no step before the fall depends on how long the run is."""
        return self.final_weight_decay == 1 and not self.warmup

    @property
    def muon_peak(self) -> float:
        """Muon's rate after the warm-up."""
        return self.muon_rate or self.learning_rate

    @property
    def endless(self) -> bool:
        """Whether no step depends on how long the run is, so that a finished one can be made longer."""
        return self.open_ended and (self.final_rate == 1 or self.flat == 1)

    def decay(self, step: int, total: float | None) -> float:
        """The weight decay of 0-based `step` of `total`; while that is not known, the one at the start."""
        done = min(step / total, 1.0) if total else 0.0
        grown = (1 - math.cos(math.pi * done)) / 2
        return self.weight_decay * (1 + (self.final_weight_decay - 1) * grown)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Weights of the terms that the autoencoder minimises; 0 leaves a term out."""

    l2: float = 1.0
    """Mean squared error of pixels in [-1, 1]."""
    l1: float = 0.2
    """Mean absolute error of pixels."""
    perceptual: float = 0.0
    """Distance of features of a frozen network."""
    codebook: float = 1.0
    """|f_hat_k - sg[f]|^2: moves codes and phis."""
    commitment: float = 0.25
    """|sg[f_hat_k] - f|^2, the paper's beta: moves the encoder."""
    entropy: float = 0.0
    """Uncertain choices and an uneven use of codes."""
    semantic: float = field(default=0.0, metadata=LATER)
    """1 - cosine of the features, linearly projected, and those of a frozen network: easier to predict."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _require(value >= 0, f"objective.{name}: expected at least 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """How the codes are found and kept in use."""

    learning: Literal["gradient", "average"] = "gradient"
    """By the codebook loss, or as running averages of the residuals that choose them (EMA)."""
    decay: float = 0.99
    """Of those running averages."""
    start: Literal["random", "kmeans"] = "kmeans"
    """Random codes, or the centres of residuals of the first batches."""
    restart_every: int = 50
    """Steps between restarts of dead codes from real residuals; 0 never restarts."""
    dead_below: float = 0.1
    """A code is dead when it is hit less often than this share of an even use."""
    dropout: float = 0.0
    """Share of pictures that are painted with their first scales only, a random number of them."""
    dropout_from: int = 3
    """How many scales such a picture keeps at least."""
    random_scales: float = 0.0
    """Share of steps that walk a random choice of the scales."""
    gradient: Literal["straight", "rotation"] = field(default="straight", metadata=LATER)
    """How the decoder's gradient reaches the features: unchanged, or rotated as features are into codes."""

    def __post_init__(self) -> None:
        _require(0 <= self.decay < 1, f"codebook.decay: expected 0 <= decay < 1, got {self.decay}")
        _require(self.restart_every >= 0, f"codebook.restart_every: expected at least 0, got {self.restart_every}")
        _require(self.dropout_from >= 1, f"codebook.dropout_from: expected at least 1, got {self.dropout_from}")
        for name in ("dead_below", "dropout", "random_scales"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"codebook.{name}: expected a share from 0 to 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """The discriminator and when it is heard; shares are of the whole run."""

    discriminator: DiscriminatorName = "none"
    """A PatchGAN, or heads on the frozen features of a network."""
    weight: float = 0.4
    """Of the adversarial term, times the adaptive weight."""
    start: float = 0.4
    """Where the discriminator begins to learn."""
    warmup: float = 0.05
    """How long it learns alone, before its gradient reaches the autoencoder."""
    ramp: float = 0.1
    """How long that gradient then takes to reach its full weight."""
    adaptive_range: tuple[float, float] = (0.015, 1e4)
    """Between which the adaptive weight is clamped."""
    lecam: float = 0.001
    """Weight of the LeCam regularisation of the discriminator."""
    augment: float = 1.0
    """Probability of each of DiffAug's changes to what the discriminator sees."""
    learning_rate: float = 4e-4
    """Of the discriminator, all along."""
    betas: tuple[float, float] = (0.5, 0.9)
    """AdamW's decay rates of the discriminator."""
    weight_decay: float = 5e-4
    """Of the discriminator."""
    clip: float = 10.0
    """Largest norm of the discriminator's gradient."""

    def __post_init__(self) -> None:
        for name in ("start", "warmup", "ramp", "augment"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"adversarial.{name}: expected a share from 0 to 1, got {value}")
        for name in ("weight", "lecam", "weight_decay"):
            value = getattr(self, name)
            _require(value >= 0, f"adversarial.{name}: expected at least 0, got {value}")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            _require(value > 0, f"adversarial.{name}: expected more than 0, got {value}")
        _require_betas("adversarial.betas", self.betas)
        low, high = self.adaptive_range
        _require(0 <= low <= high, f"adversarial.adaptive_range: expected 0 <= low <= high, got {low} and {high}")

    def learns(self, step: int, total: float | None) -> bool:
        """Whether the discriminator is updated in 0-based `step`."""
        return self.discriminator != "none" and total is not None and step >= self.start * total

    def heard(self, step: int, total: float | None) -> float:
        """How much of the adversarial term's weight counts in `step`: 0 until the warm-up is over, then up to 1."""
        if not self.learns(step, total):
            return 0.0
        assert total is not None
        alone = step - (self.start + self.warmup) * total
        return min(max(alone / max(self.ramp * total, 1e-9), 0.0), 1.0) if alone >= 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """Everything about how a tokenizer is trained."""

    optimization: Recipe
    """Of the autoencoder: encoder, codebook, decoder."""
    objective: Objective = field(default_factory=Objective)
    """What it minimises."""
    codebook: Codebook = field(default_factory=Codebook)
    """How its codes are kept in use."""
    adversarial: Adversarial = field(default_factory=Adversarial)
    """What a discriminator adds."""
    average: float = 0.999
    """Decay of the running average of the weights, which is what is validated and saved; 0 saves the weights as is."""
    flip: bool = False
    """Mirror half of the pictures."""

    def __post_init__(self) -> None:
        _require(0 <= self.average < 1, f"average: expected 0 <= average < 1, got {self.average}")
        _require(
            self.optimization.optimizer == "adamw",
            f"optimization.optimizer: expected adamw for a tokenizer, got {self.optimization.optimizer}",
        )

    def check(self, config: TokenizerConfig) -> None:
        """Raise `InputError` for settings that do not apply to the kind of codes that a tokenizer has."""
        for name, wanted, why in _only(config):
            part, _, value = name.partition(".")
            got = getattr(getattr(self, part), value)
            _require(got == wanted, f"{name}: expected {wanted} for {why}, got {got}")

    def suited(self, config: TokenizerConfig) -> TokenizerRecipe:
        """This recipe for the codes of `config`: settings that do not apply are off, and so are the terms of BSQ.

        Its authors add commitment (0.25) and entropy (0.1), which cost about 1 dB in short runs (docs/tokenizer.md).
        """
        changes: dict[str, dict[str, Any]] = {"objective": {}, "codebook": {}}
        if config.bits:
            changes["objective"] = {"commitment": 0.0, "entropy": 0.0}
        for name, wanted, _ in _only(config):
            part, _, value = name.partition(".")
            changes[part][value] = wanted
        parts = {part: dataclasses.replace(getattr(self, part), **values) for part, values in changes.items()}
        return dataclasses.replace(self, **parts)

    @property
    def endless(self) -> bool:
        """As `Recipe.endless`, but for restarts of dead codes, which begin once more in a run that is made longer."""
        return self.optimization.endless and self.adversarial.discriminator == "none"

    @property
    def open_ended(self) -> bool:
        """As `Recipe.open_ended`, but for restarts of dead codes, which end some time before a run does."""
        return self.optimization.open_ended and self.adversarial.discriminator == "none"


def _only(config: TokenizerConfig) -> Iterator[tuple[str, Any, str]]:
    """Settings that have only one sensible value for the codes of a config: name, value, and which codes."""
    if config.quantizer == "codebook" and not config.reparametrised:
        return
    kind = "reparametrised codes" if config.reparametrised else f"quantizer {config.quantizer}"
    yield "codebook.learning", "gradient", kind
    yield "codebook.start", "random", kind
    yield "codebook.restart_every", 0, kind
    if config.fixed:
        yield "codebook.gradient", "straight", kind
        yield "objective.codebook", 0.0, kind
    if config.fixed and not config.bits:
        yield "objective.commitment", 0.0, kind
        yield "objective.entropy", 0.0, kind


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a model that reads text is told captions; prompts are dropped as labels are."""

    alone: float = 0.5
    """Share of pictures with captions whose class is not told, so that prompts alone are understood; of a single class,
    which says nothing, it never is."""
    word_dropout: float = 0.1
    """Share of the words of a caption that are left out."""
    shuffle: bool = True
    """Tell the tags of a caption, the parts between its commas, in any order."""

    def __post_init__(self) -> None:
        for name in ("alone", "word_dropout"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"text.{name}: expected a share from 0 to 1, got {value}")


OF_SCALES = ("self_correction", "progressive", "scale_weights")  # of a recipe, what only order scale has


@dataclass(frozen=True, kw_only=True)
class TransformerRecipe:
    """Everything about how a transformer is trained."""

    optimization: Recipe
    label_dropout: float = 0.1
    """Share of labels replaced by "no class", which guidance needs."""
    drop_path: float = 0.1
    """Stochastic depth of the last block at depth 24; it is proportional to the depth, and to the block's place."""
    drop_path_rise: float = field(default=0.0, metadata=LATER)
    """Share of the run over which stochastic depth grows from 0 to that."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all codes."""
    scale_weights: tuple[float, ...] = ()
    """Weight of the tokens of each scale in the loss; none: every token counts alike."""
    scale_exponent: float = field(default=0.0, metadata=LATER)
    """a of weights (h w)^-a of the tokens of each scale, instead of `scale_weights`: at 1 every scale counts alike."""
    start: Literal["release", "identity"] = field(default="release", metadata=LATER)
    """Random weights as the release draws them, or blocks that give back what goes in: output projections 0, gates 1
    instead of nearly 0."""
    token_noise: float = 0.0
    """Share of the tokens that are replaced by random ones where coarser scales are looked at, never as targets: so
    that sampling's own mistakes are not the first it sees."""
    self_correction: float = field(default=0.0, metadata=LATER)
    """Largest share of the digits of input tokens (bits, levels; of a codebook whole tokens) that are replaced; the
    targets of finer scales make up for it. The share is drawn for each picture and scale, from 0. Needs pictures, not a
    token cache."""
    progressive: float = 0.0
    """Share of the run over which scales are added one by one: cheaper steps, and a slightly worse end."""
    progressive_from: int = 4
    """How many scales such a run begins with."""
    average: float = 0.0
    """Decay of the running average of the weights, which is what is validated and saved; 0 saves the weights as is."""
    flip: bool = False
    """Mirror half of the pictures; a token cache decides for itself when it is made."""
    text: Reading | None = None
    """Of a model that reads text."""

    def __post_init__(self) -> None:
        shares = ("label_dropout", "drop_path", "label_smoothing", "token_noise", "self_correction", "progressive")
        for name in (*shares, "drop_path_rise"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"{name}: expected a share from 0 to 1, got {value}")
        _require(0 <= self.average < 1, f"average: expected 0 <= average < 1, got {self.average}")
        _require(self.progressive_from >= 1, f"progressive_from: expected at least 1, got {self.progressive_from}")
        weights = self.scale_weights
        _require(
            not weights or (min(weights) >= 0 and sum(weights) > 0),
            f"scale_weights: expected numbers from 0 on, not all 0, got {weights}",
        )
        _require(
            not (weights and self.scale_exponent),
            f"scale_exponent: expected 0 beside scale_weights, got {self.scale_exponent}",
        )
        _require(
            abs(self.scale_exponent) <= MOST_EXPONENT,
            f"scale_exponent: expected {-MOST_EXPONENT} .. {MOST_EXPONENT}, got {self.scale_exponent}",
        )

    @property
    def endless(self) -> bool:
        """As `Recipe.endless`."""
        return self.optimization.endless and self._knows_no_length

    @property
    def _knows_no_length(self) -> bool:
        """Whether all but the optimisation is the same whatever the number of steps."""
        return not self.progressive and not self.drop_path_rise

    @property
    def open_ended(self) -> bool:
        """As `Recipe.open_ended`."""
        return self.optimization.open_ended and self._knows_no_length

    def check(self, scales: Scales, order: Order = "scale") -> None:
        """Raise `InputError` unless it can train a model of these scales, in this order."""
        for name in OF_SCALES if order != "scale" else ():
            got = getattr(self, name)
            _require(not got, f"{name}: expected {type(got)()} for order {order}, which knows no scales, got {got}")
        given, wanted = len(self.scale_weights), len(scales)
        _require(given in (0, wanted), f"scale_weights: expected a number for each of {wanted} scales, got {given}")
        first = self.scale_weights[: self.progressive_from] if self.progressive else ()
        _require(
            not first or sum(first) > 0,
            f"scale_weights: expected one above 0 among the first {len(first)} scales, which progressive training "
            f"begins with, got {first}",
        )

    def weights_of(self, scales: Scales) -> tuple[float, ...]:
        """What the tokens of each scale count in the loss, before the mean over all is taken for 1."""
        return self.scale_weights or tuple((h * w) ** -self.scale_exponent for h, w in scales)

    def drop_path_at(self, step: int, total: float | None) -> float:
        """Stochastic depth in 0-based `step` of `total`; while that is not known, a rise has not begun."""
        if not self.drop_path_rise:
            return self.drop_path
        return self.drop_path * min(step / (self.drop_path_rise * total), 1.0) if total else 0.0

    def scales_learned(self, step: int, total: float | None, scales: int) -> float:
        """How many of so many scales are learned in 0-based `step` of `total`; 6.25: six, and a seventh at a quarter.

        Scales are added at even distances over the first `progressive` of the run; the new one's weight rises
        linearly until the next comes.
        """
        if not self.progressive:
            return float(scales)
        first = min(self.progressive_from, scales)
        done = min(step / (self.progressive * total), 1.0) if total else 0.0
        return first + (scales - first) * done


# -- the presets' recipes ----------------------------------------------------------------------------------------------

#   preset: steps, batch, learning rate, final rate, clip, average, perceptual, discriminator, its start, flip
TABLE: dict[str, tuple[int, int, float, float, float, float, float, DiscriminatorName, float, bool]] = {
    "emoji-32": (4_000, 32, 1e-3, 0.02, 1.0, 0.998, 0.0, "none", 0.4, False),
    "emoji-64": (2_000, 32, 1e-3, 0.02, 1.0, 0.998, 0.0, "none", 0.4, False),
    "icons-64": (6_000, 32, 1e-3, 0.02, 1.0, 0.998, 0.0, "none", 0.4, False),
    "small-128": (100_000, 64, 4e-4, 0.1, 1.0, 0.9995, 0.1, "patch", 0.4, True),
    "base-256": (200_000, 128, 3e-4, 0.1, 1.0, 0.9998, 0.1, "patch", 0.3, True),
    "var": (417_000, 768, 3e-4, 0.3, 10.0, 0.9999, 0.1, "features", 0.2, True),  # 250 epochs of ImageNet
}


def for_preset(name: str) -> tuple[TokenizerRecipe, int]:
    """How the tokenizer of a preset is trained, and for how many steps; the release's presets share one tokenizer."""
    steps, batch, rate, final, clip, average, perceptual, discriminator, start, flip = TABLE[
        "var" if name.startswith("var-") else name
    ]
    large = name.startswith("var-")
    return (
        TokenizerRecipe(
            optimization=Recipe(
                batch=batch,
                learning_rate=rate,
                betas=(0.5, 0.9) if large else (0.9, 0.99),
                weight_decay=0.005,
                warmup_steps=max(steps // 100, 100),
                final_rate=final,
                clip=clip,
            ),
            objective=Objective(perceptual=perceptual),
            adversarial=Adversarial(discriminator=discriminator, start=start),
            average=average,
            flip=flip,
        ),
        steps,
    )


IMAGENET = 1_281_167  # pictures to train on

#   preset: steps or epochs of ImageNet, batch, learning rate per 256 images, final rate, final weight decay
TRANSFORMERS: dict[str, tuple[int, int, float, float, float]] = {
    "emoji-32": (2_000, 32, 1.6e-2, 0.02, 1.0),
    "emoji-64": (4_000, 32, 8e-3, 0.02, 1.0),
    "icons-64": (8_000, 32, 8e-3, 0.02, 1.0),
    "small-128": (100_000, 128, 4e-4, 0.1, 1.0),
    "base-256": (200_000, 256, 2e-4, 0.1, 1.0),
    "var-d16": (200, 768, 1e-4, 0.1, 1.0),
    "var-d20": (250, 768, 1e-4, 0.1, 1.0),
    "var-d24": (350, 768, 8e-5, 0.01, 1.0),
    "var-d30": (350, 1024, 8e-5, 0.01, 1.6),
    "var-d36-512": (350, 768, 8e-5, 0.01, 1.6),
}


def for_transformer(name: str) -> tuple[TransformerRecipe, int]:
    """How the transformer of a preset is trained, and for how many steps; those of `var-*` are the release's."""
    length, batch, rate, final, final_decay = TRANSFORMERS[name]
    large = name.startswith("var-")
    return (
        TransformerRecipe(
            optimization=Recipe(
                batch=batch,
                learning_rate=rate * batch / 256,
                betas=(0.9, 0.95),
                weight_decay=0.05,
                warmup_steps=0 if large else 100,
                warmup=0.02,
                first_rate=0.005,
                flat=0.05,
                final_rate=final,
                final_weight_decay=final_decay,
                clip=2.0,
            )
        ),
        length * IMAGENET // batch if large else length,
    )


# -- as records --------------------------------------------------------------------------------------------------------


def recorded(recipe: Any) -> dict[str, Any]:
    """A recipe as plain values for the record that a run is recognised by; see `LATER`."""
    values = {}
    for part in dataclasses.fields(recipe):
        value = getattr(recipe, part.name)
        if part.metadata.get("later") and value == part.default:
            continue
        values[part.name] = recorded(value) if dataclasses.is_dataclass(value) else value
    return values


# -- changing single values --------------------------------------------------------------------------------------------

Node = TypeVar("Node")


def changed(recipe: Node, settings: Sequence[str], prefix: str = "") -> Node:
    """`recipe` with settings such as "objective.perceptual=0.5" or "optimization.betas=0.5,0.9", all at once.

    Works on any of the frozen dataclasses here and in `config`; all names begin with `prefix`. Raises `InputError` that
    names the nearest setting for an unknown one, and what was expected for a bad value.
    """
    texts = {}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        _require(bool(equals), f"--set: expected NAME=VALUE, got {setting!r}")
        _require(name in names(recipe, prefix), _unknown([*names(recipe, prefix)], name))
        texts[name] = text
    return _changed(recipe, prefix, texts) if texts else recipe


def names(recipe: object, prefix: str = "") -> Iterator[str]:
    """The dotted names of all values of a recipe; without parts that it has not got."""
    for part in dataclasses.fields(recipe):  # type: ignore[arg-type]
        value = getattr(recipe, part.name)
        if dataclasses.is_dataclass(value):
            yield from names(value, f"{prefix}{part.name}.")
        elif value is not None:
            yield f"{prefix}{part.name}"


def _changed(node: Any, prefix: str, texts: Mapping[str, str]) -> Any:
    """`node`, whose values are called `prefix` and their name, with the values that `texts` tell."""
    hints, values = typing.get_type_hints(type(node)), {}
    for part in dataclasses.fields(node):
        whole, value = f"{prefix}{part.name}", getattr(node, part.name)
        if dataclasses.is_dataclass(value):
            values[part.name] = _changed(value, f"{whole}.", texts)
        elif whole in texts:
            values[part.name] = _parse(whole, hints[part.name], texts[whole])
    return dataclasses.replace(node, **values)


def _unknown(known: list[str], whole: str) -> str:
    last = whole.split(".")[-1]
    close = get_close_matches(whole, known, n=1) or [name for name in known if name.split(".")[-1] == last]
    groups = dict.fromkeys(f"{name.partition('.')[0]}.*" if "." in name else name for name in known)
    some = known if len(known) <= FEW else groups
    hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(some)}"
    return f"--set: unknown setting {reprlib.repr(whole)}; {hint}"


def _parse(whole: str, hint: Any, text: str) -> Any:
    """`text` as one of the few types that recipes hold."""
    if typing.get_origin(hint) is Literal:
        options = typing.get_args(hint)
        _require(text in options, f"--set: {whole}: expected one of {', '.join(options)}, got {text!r}")
        return text
    if hint is bool:
        _require(text in ("true", "false"), f"--set: {whole}: expected true or false, got {text!r}")
        return text == "true"
    try:
        if hint is Scales:
            return Scales(tuple(map(int, size.split("x"))) if "x" in size else int(size) for size in text.split(","))
        if typing.get_origin(hint) is tuple:
            kind, *others = typing.get_args(hint)
            numbers = tuple(kind(number) for number in text.split(","))
            wanted = len(numbers) if Ellipsis in others else 1 + len(others)
            _require(len(numbers) == wanted, f"--set: {whole}: expected {wanted} numbers, got {text!r}")
            _require(all(map(math.isfinite, numbers)), f"--set: {whole}: expected finite numbers, got {text!r}")
            return numbers
        value = hint(text)
        _require(hint is not float or math.isfinite(value), f"--set: {whole}: expected a finite number, got {text!r}")
        return value
    except InputError:
        raise
    except ValueError:
        kinds = {int: "an integer", float: "a number", Scales: "sizes such as 1,2,3,4x6"}
        raise InputError(
            f"--set: {whole}: expected {kinds.get(hint, 'numbers such as 0.5,0.9')}, got {text!r}"
        ) from None
