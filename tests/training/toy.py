"""What training is tried on: noise of 8x8 pixels, recipes of a few steps, a feature network of a few hundred weights.

Fixtures and the programs that tests start both take it from here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tiny import TOKENIZER
from torch import Tensor, nn

from nextscale import VAR, MultiScaleVQVAE, Scales
from nextscale.config import Order, TokenizerConfig, TransformerConfig
from nextscale.data import DataSet
from nextscale.data.captions import Captions
from nextscale.data.pictures import Split, from_memory
from nextscale.features import FeatureNetwork, PerceptualDistance
from nextscale.text.vocabulary import Vocabulary
from nextscale.training import recipes
from nextscale.training.recipes import Reading, Recipe, TokenizerRecipe, TransformerRecipe
from nextscale.training.rivals.stages import STAGES
from nextscale.training.tokenizer.stage import TokenizerStage
from nextscale.training.transformer.stage import TransformerStage, fitted

RECIPE = Recipe(
    batch=4,
    learning_rate=2e-3,
    betas=(0.9, 0.95),
    weight_decay=0.05,
    warmup_steps=3,
    final_rate=0.1,
    clip=1.0,
)

# In runs of six steps every option has its turn: the discriminator learns from the second step on, is heard from the
# third, and dead codes are restarted after the second and the fourth.
EVERYTHING = (
    "objective.perceptual=0.5",
    "objective.entropy=0.05",
    "codebook.learning=average",
    "codebook.decay=0.9",
    "codebook.restart_every=2",
    "codebook.dead_below=0.5",
    "codebook.dropout=0.5",
    "codebook.dropout_from=1",
    "codebook.random_scales=0.3",
    "adversarial.discriminator=patch",
    "adversarial.start=0.1",
    "adversarial.warmup=0.2",
    "adversarial.ramp=0.3",
    "optimization.warmup_steps=1",
    "optimization.warmup=0.4",
    "optimization.first_rate=0.1",
    "optimization.flat=0.4",
    "optimization.accumulate=2",
    "average=0.9",
    "flip=true",
)


# Of these, what fixed codes have; `CORNERS` have all of it.
OF_LEARNED_CODES = {"codebook.learning", "codebook.decay", "codebook.restart_every", "codebook.dead_below"}
OF_FIXED_CODES = (
    "objective.commitment=0.25",
    *(setting for setting in EVERYTHING if setting.split("=")[0] not in OF_LEARNED_CODES),
)
CORNERS = dataclasses.replace(TOKENIZER, quantizer="bsq", bits=20)
LEVELS = dataclasses.replace(TOKENIZER, quantizer="fsq", levels=(5, 4, 3))
PAIRS = dataclasses.replace(TOKENIZER, quantizer="sphere", code_channels=12)

TRANSFORMER = TransformerConfig(
    scales=TOKENIZER.scales,
    codebook_size=TOKENIZER.codebook_size,
    code_channels=TOKENIZER.code_channels,
    classes=2,
    depth=3,
    width=64,
    heads=2,
    feed_forward=128,
    normalized_attention=True,
    shared_modulation=False,
)
# Every option of the second stage, at rates at which each has its turn in six steps.
ALL_OF_STAGE_2 = (
    "label_dropout=0.3",
    "drop_path=1",
    "label_smoothing=0.1",
    "scale_weights=2,1,1,0.5",
    "token_noise=0.2",
    "progressive=0.5",
    "progressive_from=2",
    "average=0.9",
    "optimization.accumulate=2",
    "optimization.fall=cosine",
    "optimization.final_weight_decay=1.6",
    "flip=true",
)


def recipe(settings: Sequence[str] = (), *, config: TokenizerConfig = TOKENIZER, **changes: object) -> TokenizerRecipe:
    """`recipe(["flip=true"], batch=2)`: settings as `--set` takes them; other names are of the optimisation."""
    plain = [f"optimization.{name}={_text(value)}" for name, value in changes.items()]
    return recipes.changed(TokenizerRecipe(optimization=RECIPE).suited(config), [*plain, *settings])


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def split(name: str, count: int, seed: int) -> Split:
    """Pictures of 9x9 pixels, so that crops differ: class 0 dark, class 1 light."""
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 128, (count, 3, 9, 9), generator=torch.Generator().manual_seed(seed))
    return Split(
        classes=("dark", "light"),
        labels=labels,
        names=tuple(f"{name} {index}" for index in range(count)),
        fingerprint=f"{name} {count} {seed}",
        fetch=from_memory((noise + 127 * labels.view(-1, 1, 1, 1)).to(torch.uint8)),
        height=8,
        width=8,
    )


def data_set() -> DataSet:
    """18 pictures to train on, 6 held out, 2 classes."""
    return DataSet(
        train=split("train", 18, 1), validation=split("held out", 6, 2), classes=("dark", "light"), unreadable=[]
    )


def captioned() -> DataSet:
    """The same with two captions each, but for every third picture, which has none."""
    data = data_set()
    return dataclasses.replace(data, train=_told(data.train), validation=_told(data.validation))


def _told(split: Split) -> Split:
    names = (split.classes[label] for label in split.labels.tolist())
    every = ((f"a {name} picture", f"{name}, noise, number {place}") for place, name in enumerate(names))
    return dataclasses.replace(split, captions=Captions(() if i % 3 == 2 else both for i, both in enumerate(every)))


class Tiny(FeatureNetwork):
    """Two convolutions with weights of its own: all that the packaged network is to training, in microseconds."""

    name = "Tiny"
    dimensions = 6
    channels = (4, 6)
    side = 96

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.device("meta"):
            self.fine, self.coarse = nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        generator = torch.Generator().manual_seed(seed)
        self.assign({name: torch.randn(w.shape, generator=generator) / 8 for name, w in self.state_dict().items()})

    def embed(self, pixels_B3HW: Tensor) -> Tensor:
        return self.activations(pixels_B3HW)[-1].mean(dim=(2, 3))

    def activations(self, pixels_B3HW: Tensor) -> list[Tensor]:
        fine = F.silu(self.fine(pixels_B3HW))
        return [fine, F.silu(self.coarse(fine))]


def stage(
    settings: Sequence[str] = (),
    *,
    data: DataSet | None = None,
    config: TokenizerConfig = TOKENIZER,
    seed: int = 0,
    begin: MultiScaleVQVAE | None = None,
    **changes: object,
) -> TokenizerStage:
    """A tokenizer about to be trained; every network it looks through is a `Tiny`."""
    return TokenizerStage(
        config,
        data or data_set(),
        recipe=recipe(settings, config=config, **changes),
        seed=seed,
        begin=begin,
        precision="fp32",
        perceptual=PerceptualDistance(Tiny()),
        backbone=Tiny(seed=1),
        semantic=Tiny(seed=2),
    )


def second_stage(
    settings: Sequence[str] = (), *, sharded: bool = False, seed: int = 0, begin: int | None = None
) -> TransformerStage:
    """A transformer about to be trained on tokens of an untrained tokenizer; `begin` draws one to go on from."""
    return TransformerStage(
        TRANSFORMER,
        MultiScaleVQVAE(TOKENIZER, seed=3),
        data_set(),
        recipe=recipes.changed(TransformerRecipe(optimization=RECIPE), settings),
        seed=seed,
        precision="fp32",
        sharded=sharded,
        begin=VAR(TRANSFORMER, seed=begin) if begin is not None else None,
    )


SINGLE = dataclasses.replace(TOKENIZER, scales=Scales([4]))  # what rivals learn the tokens of
# Every option of the second stage that a rival of VAR may have.
ALL_OF_A_RIVAL = tuple(each for each in ALL_OF_STAGE_2 if not each.startswith(("scale_weights", "progressive")))


def rival_stage(
    order: Order,
    settings: Sequence[str] = (),
    *,
    data: DataSet | None = None,
    sharded: bool = False,
    seed: int = 0,
    **changes: Any,
) -> TransformerStage:
    """`second_stage` of another order, on a tokenizer of one scale."""
    data, tokenizer = data or data_set(), MultiScaleVQVAE(SINGLE, seed=3)
    plain = TransformerRecipe(optimization=dataclasses.replace(RECIPE, **changes))
    return STAGES[order](
        fitted(TRANSFORMER, tokenizer, classes=len(data.classes), order=order),
        tokenizer,
        data,
        recipe=recipes.changed(plain, settings),
        seed=seed,
        precision="fp32",
        sharded=sharded,
    )


def text_stage(
    settings: Sequence[str] = (), *, sharded: bool = False, seed: int = 0, begin: int | None = None, **changes: Any
) -> TransformerStage:
    """The same, of a transformer that reads the captions too."""
    data = captioned()
    assert data.train.captions is not None
    reader = Vocabulary.learned((text for every in data.train.captions for text in every), size=280, tokens=8)
    config = TRANSFORMER.reading(vocabulary=reader.size, tokens=reader.tokens)
    plain = TransformerRecipe(optimization=dataclasses.replace(RECIPE, **changes), text=Reading())
    return TransformerStage(
        config,
        MultiScaleVQVAE(TOKENIZER, seed=3),
        data,
        recipe=recipes.changed(plain, settings),
        seed=seed,
        precision="fp32",
        sharded=sharded,
        begin=VAR(config, seed=begin) if begin is not None else None,
        reader=reader,
    )


def state_of(stage: TokenizerStage, *, without: str = "") -> dict[str, Any]:
    """All that changes along a run, bit by bit, by its path in the checkpoint; `without` those whose path holds it."""
    leaves = flat({name: part.state_dict() for name, part in stage.state.items()})
    return {name: leaf for name, leaf in leaves.items() if not without or without not in name}


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A nested state as names and plain values, tensors as their dtype, shape and bytes."""
    if isinstance(value, torch.Tensor):
        return {name: (value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes())}
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for part, inner in items for key, leaf in flat(inner, f"{name}/{part}").items()}
    return {name: value}
