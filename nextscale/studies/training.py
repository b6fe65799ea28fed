"""What cells of several studies do: train a tokenizer, encode, train a transformer, and judge both.

Each part is the library's own, in a folder that it continues from, with a clock that counts its time. What all cells
share (data, judges, devices, whoever watches) is `Shared`; nothing here knows which study it is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nextscale.config import TokenizerConfig, TransformerConfig
from nextscale.data import DataSet, Progress, encoding, tokens
from nextscale.data.tokens import CODES, TokenSet
from nextscale.evaluation import generation, reconstruction, reference
from nextscale.evaluation.card import ReferenceUsed, Setting
from nextscale.evaluation.generation import Painted, Result
from nextscale.evaluation.judging import Figure
from nextscale.evaluation.reconstruction import ReconstructionFigures, Source
from nextscale.evaluation.reference import ReferenceFeatures
from nextscale.features import FeatureNetwork, PerceptualDistance
from nextscale.files.checkpoint import fingerprint, read_json
from nextscale.machine.precision import Precision, find_device
from nextscale.pipeline import Pipeline
from nextscale.studies.cells import Clock
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.training.loop import Event, Length, Rhythm, train
from nextscale.training.optimization import training_dtype
from nextscale.training.order import spread
from nextscale.training.recipes import TokenizerRecipe, TransformerRecipe
from nextscale.training.tokenizer.stage import TokenizerStage
from nextscale.training.transformer.stage import TransformerStage, fitted
from nextscale.training.transformer.tokens import encoding_of, meta_of

RHYTHM = Rhythm(checks=1, checkpoint_minutes=5)  # a check takes as long as some twenty steps
SHOWN = 8  # pictures of each kind that are kept to be looked at

Follow = Callable[[str, Iterator[Event], Path], object]


def _drained(name: str, events: Iterator[Event], out: Path) -> None:
    for _ in events:
        pass


@dataclass(frozen=True)
class Watching:
    """Who is told how parts of a cell get on; nobody, as it comes."""

    training: Follow = _drained
    """(name, the loop's events, where) -> follows them to the end."""
    bar: Callable[[str], AbstractContextManager[Progress]] = lambda name: nullcontext(lambda done, total: None)
    """(name) -> what is told (done, total) inside."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judges:
    """What models are judged with."""

    network: FeatureNetwork
    perceptual: PerceptualDistance
    reference: ReferenceFeatures
    """Of the pictures that generated ones are compared with."""
    used: ReferenceUsed
    """As cards name it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """How all cells of a study are trained, and who watches."""

    device: str = "cpu"
    precision: Precision = "auto"
    watching: Watching = field(default_factory=Watching)

    @property
    def dtype(self) -> torch.dtype:
        """What training computes in."""
        return training_dtype(self.precision, find_device(self.device))


@dataclass(frozen=True, kw_only=True, eq=False)
class Shared(Training):
    """What all cells of a study have in common."""

    data: DataSet
    name: str
    """Of the data, for cards."""
    judges: Judges


def judges_of(data: DataSet, name: str, network: FeatureNetwork, *, progress: Progress | None = None) -> Judges:
    """The network, a perceptual distance by it or the packaged one, and the training split as it sees it."""
    found = reference.of_split(data.train, name=f"{name}, train split", classes=data.classes)
    seen = found.features(network, progress=progress)
    return Judges(
        network=network,
        perceptual=reconstruction.perceptual_of(network),
        reference=seen,
        used=generation.reference_used(found, seen),
    )


# -- training ----------------------------------------------------------------------------------------------------------


def tokenizer(
    shared: Shared,
    folder: Path,
    clock: Clock,
    config: TokenizerConfig,
    recipe: TokenizerRecipe,
    *,
    steps: int,
    seed: int,
) -> MultiScaleVQVAE:
    """A tokenizer trained in `folder` for so many steps; read from there where it is finished."""
    stage = TokenizerStage(
        config, shared.data, recipe=recipe, seed=seed, device=shared.device, precision=shared.precision
    )
    _train(shared, folder, clock, stage, steps=steps, seed=seed)
    return stage.best_model.requires_grad_(False)


def token_set(
    shared: Shared, folder: Path, clock: Clock, tokenizer: MultiScaleVQVAE, *, views: int, seed: int
) -> TokenSet | DataSet:
    """The data's tokens, cached in `folder`; the pictures themselves where a cache cannot hold so many codes."""
    if tokenizer.config.codebook_size > CODES:
        return shared.data
    dtype = shared.dtype
    meta = meta_of(tokenizer, shared.data, dtype, views=views, seed=seed)
    with clock.running("encoding") as tick, shared.watching.bar("encoding") as told:
        encoding.write(folder, shared.data, encoding_of(tokenizer, dtype), meta, progress=_both(tick, told))
    return tokens.load(folder, tokenizer=fingerprint(tokenizer.state_dict()))


class Trained(NamedTuple):
    """A transformer, and what its trainer found."""

    pipe: Pipeline
    held_out: Mapping[str, float]
    """Figures of the last check."""


def transformer(
    shared: Training,
    folder: Path,
    clock: Clock,
    config: TransformerConfig,
    tokenizer: MultiScaleVQVAE,
    data: TokenSet | DataSet,
    recipe: TransformerRecipe,
    *,
    steps: int,
    seed: int,
    rhythm: Rhythm = RHYTHM,
) -> Trained:
    """A transformer of `config`, fitted to tokenizer and classes, trained in `folder` as `tokenizer` does."""
    stage = TransformerStage(
        fitted(config, tokenizer, classes=len(data.classes)),
        tokenizer,
        data,
        recipe=recipe,
        seed=seed,
        device=shared.device,
        precision=shared.precision,
    )
    _train(shared, folder, clock, stage, steps=steps, seed=seed, rhythm=rhythm)
    pipe = Pipeline.load(folder, device=shared.device, precision="fp32")
    return Trained(pipe, read_json(folder / "history.json")[-1])


def _train(
    shared: Training,
    folder: Path,
    clock: Clock,
    stage: TokenizerStage | TransformerStage,
    *,
    steps: int,
    seed: int,
    rhythm: Rhythm = RHYTHM,
) -> None:
    with clock.running(stage.name) as tick:
        events = train(stage, folder, Length(steps=steps), seed=seed, rhythm=rhythm)
        shared.watching.training(stage.name, _ticking(events, tick), folder)


def _ticking(events: Iterator[Event], tick: Callable[[], None]) -> Iterator[Event]:
    for event in events:
        tick()
        yield event


def _both(tick: Callable[[], None], told: Progress) -> Progress:
    def progress(done: int, total: int) -> None:
        tick()
        told(done, total)

    return progress


# -- judging -----------------------------------------------------------------------------------------------------------


def reconstructed(shared: Shared, clock: Clock, tokenizer: MultiScaleVQVAE, name: str) -> ReconstructionFigures:
    """A tokenizer judged on the held-out pictures."""
    judges, data = shared.judges, shared.data
    with clock.running("reconstruction") as tick, shared.watching.bar("reconstructing") as told:
        return reconstruction.evaluate(
            tokenizer,
            data.validation,
            judges.network,
            perceptual=judges.perceptual,
            source=Source(tokenizer=name, data=shared.name, left_out=len(data.broken)),
            progress=_both(tick, told),
        )


def generated(
    shared: Shared, clock: Clock, pipe: Pipeline, name: str, setting: Setting, *, each: int
) -> tuple[Result, Tensor]:
    """A model judged by `each` pictures of every class, from seed 0 on; and some of them, (n, 3, H, W) in [-1, 1]."""
    judges, first = shared.judges, list[Tensor]()

    def keep(painted: Painted) -> None:
        if not first:
            first.append(painted.images[:SHOWN].cpu())

    card = generation.card_of(pipe, judges.network, judges.used, setting, each=each, name=name)
    with clock.running("generation") as tick, shared.watching.bar("painting") as told:
        result = generation.evaluate(
            pipe, judges.network, judges.reference, card, progress=_both(tick, told), also=keep
        )
    return result, first[0]


@torch.no_grad()
def examples(shared: Shared, tokenizer: MultiScaleVQVAE) -> Tensor:
    """Some held-out pictures through the tokenizer and back, (n, 3, H, W) in [-1, 1]."""
    originals, _ = shared.data.validation.batch(spread(shared.data.validation, SHOWN))
    return tokenizer.decode(tokenizer.encode(originals.to(tokenizer.quantizer.device))).cpu()


def plain(figure: Figure) -> dict[str, float]:
    """A figure as results hold it (`tables`)."""
    ends = {"low": figure.low, "high": figure.high}
    return {"value": figure.value, **{end: value for end, value in ends.items() if value is not None}}


def figures_of_tokenizer(found: ReconstructionFigures) -> dict[str, dict[str, float]]:
    """For tables; "usage" is the share of codes in use, in percent, over all scales."""
    names = ("bits_per_pixel", "entropy_bits_per_pixel", "psnr", "ssim", "perceptual_distance")
    used, possible = (sum(getattr(scale, name) for scale in found.scales) for name in ("used", "possible"))
    return {
        **{key: plain(found.figures[key]) for key in names},
        "reconstruction_fd": plain(found.figures["frechet_distance"]),
        "usage": {"value": 100 * used / possible},
    }


def figures_of_model(found: Result) -> dict[str, dict[str, float]]:
    """For tables: "generation_fd" and what else there are pictures enough for."""
    names = ("precision", "recall", "density", "coverage")
    figures: dict[str, dict[str, float]] = {key: plain(found.figures[key]) for key in names if key in found.figures}
    return {"generation_fd": plain(found.figures["frechet_distance"])} | figures


def predicted_bits(config: TokenizerConfig, held_out: Mapping[str, Any]) -> float:
    """Bits a pixel that held-out pictures' tokens cost under the transformer: L H(q) / (ln 2 H W)."""
    pixels = config.height * config.width
    return config.scales.total * held_out["cross_entropy"] / math.log(2) / pixels
