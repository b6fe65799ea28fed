"""How good a model's pictures are: which ones are painted, how they are looked at, and the figures.

Every class has exactly as many pictures as the others, and picture i has seed `first seed + i` whoever paints it: the
batch and the number of processes change nothing. Pictures go from the model straight into running sums, rounded to the
8 bits they would be saved with; what is kept of them is capped. Files, tables and bars are the caller's.

Shapes: B pictures of a batch, N of all, n of those whose features are kept, D features, H W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nextscale import distributed, images
from nextscale.checkpoint import fingerprint as weights_fingerprint
from nextscale.config import to_json
from nextscale.data import Pictures, Progress
from nextscale.data.pictures import fingerprint
from nextscale.errors import InputError
from nextscale.evaluation.card import Card, Model, NetworkUsed, Setting, figure_name, warnings
from nextscale.evaluation.reconstruction import tokenizer_fingerprint
from nextscale.evaluation.statistics import Gaussian, RunningGaussian, frechet_distance
from nextscale.features import FeatureNetwork
from nextscale.pipeline import Pipeline
from nextscale.precision import DTYPES

KEPT = 10_000  # pictures whose features are kept: 51 MB at 1,280 features; a neighbour search grows with their square
LIBRARIES = ("torch", "torchmetrics", "numpy", "pillow")


# ---- which pictures --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The pictures of an evaluation, in the order in which they are counted."""

    labels: tuple[int, ...]
    """Class of each."""
    seeds: tuple[int, ...]
    """Likewise."""

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, indices: Iterable[int]) -> Plan:
        """Some of them."""
        labels, seeds = zip(*((self.labels[index], self.seeds[index]) for index in indices), strict=True)
        return Plan(labels, seeds)


def balanced(classes: int, each: int, *, first_seed: int = 0) -> Plan:
    """`each` pictures of every class; the labels go round, so that any beginning of them is balanced too.

    Picture i shows class i mod `classes` and has seed `first_seed` + i. Raises `InputError` for less than one.
    """
    if each < 1:
        raise InputError(f"pictures of each class: expected at least 1, got {each}")
    count = classes * each
    return Plan(tuple(index % classes for index in range(count)), tuple(range(first_seed, first_seed + count)))


def settings(
    guidance: Sequence[float], top_k: Sequence[int], top_p: Sequence[float], temperature: Sequence[float]
) -> list[Setting]:
    """All combinations; the last value changes first."""
    return [Setting(*values) for values in product(guidance, top_k, top_p, temperature)]


# ---- painting --------------------------------------------------------------------------------------------------------


class Painted(NamedTuple):
    """A batch."""

    indices: range
    """Where its pictures stand in the plan."""
    images: Tensor
    """(B, 3, H, W) float32 in [-1, 1], of values that 8 bits can hold."""


def paint(
    pipe: Pipeline, plan: Plan, setting: Setting, *, batch: int = 32, progress: Progress | None = None
) -> Iterator[Painted]:
    """This process's part of the plan: of W processes every W-th batch, so that batches are the same for any W.

    `progress(done, total)` is called before each batch and at the end, with the pictures of all processes.

    Raises `InputError` for a batch below 1 and what `Pipeline.generate` refuses.
    """
    if batch < 1:
        raise InputError(f"batch: expected at least 1, got {batch}")
    for start in range(distributed.rank() * batch, len(plan), distributed.world() * batch):
        if progress is not None:
            progress(start, len(plan))
        end = min(start + batch, len(plan))
        made = pipe.generate(
            plan.labels[start:end],
            plan.seeds[start:end],
            guidance=setting.guidance,
            top_k=setting.top_k,
            top_p=setting.top_p,
            temperature=setting.temperature,
        )
        yield Painted(range(start, end), eight_bits(images.from_unit(made.images)))
    if progress is not None:
        progress(len(plan), len(plan))


def eight_bits(images_B3HW: Tensor) -> Tensor:
    """What is left of pictures in [-1, 1] after they were saved without loss."""
    return images.from_uint8(images.to_uint8(images_B3HW))


# ---- looking ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a network made of the pictures."""

    count: int
    """N."""
    gaussian: Gaussian
    """Of the features of all."""
    features: Tensor
    """(n, D) float32: those of the first pictures, which are balanced like all."""


def look(batches: Iterable[Painted], network: FeatureNetwork, *, total: int, keep: int = KEPT) -> Seen:
    """Features of all pictures, gathered from all processes: each must call this with its own batches.

    What is held does not grow with `total`, the number of pictures of all processes, beyond `keep` rows of features.
    """
    running, kept_nD = RunningGaussian(network.dimensions), torch.zeros(min(keep, total), network.dimensions)
    with torch.no_grad():
        for indices, images_B3HW in batches:
            features_BD = network(images_B3HW).float().cpu()
            running.update(features_BD)
            kept_nD[indices.start : indices.stop] = features_BD[: max(0, len(kept_nD) - indices.start)]
    running = merged(running)
    return Seen(count=running.count, gaussian=running.gaussian(), features=distributed.summed(kept_nD))


def merged(mine: RunningGaussian) -> RunningGaussian:
    """What all processes have gathered, on each of them."""
    dimensions = len(mine.mean_D)
    count_1 = torch.tensor([mine.count], dtype=torch.float64)
    everything = RunningGaussian(dimensions)
    for row in distributed.gathered(torch.cat([count_1, mine.mean_D, mine.scatter_DD.flatten()])[None]):
        part = RunningGaussian(dimensions)
        part.count, part.mean_D = int(row[0]), row[1 : 1 + dimensions]
        part.scatter_DD = row[1 + dimensions :].view(dimensions, dimensions)
        everything.merge(part)
    return everything


def shown(pictures: Pictures, *, batch: int = 32, progress: Progress | None = None) -> Iterator[Painted]:
    """A split like `paint`: this process's batches."""
    for start in range(distributed.rank() * batch, len(pictures), distributed.world() * batch):
        if progress is not None:
            progress(start, len(pictures))
        indices = range(start, min(start + batch, len(pictures)))
        yield Painted(indices, pictures.batch(indices)[0])


# ---- what stands on the card -----------------------------------------------------------------------------------------


def model_used(pipe: Pipeline, name: str) -> Model:
    """A pipeline as its card names it."""
    config = pipe.tokenizer.config
    return Model(
        name=name,
        fingerprint=model_fingerprint(pipe),
        height=config.height,
        width=config.width,
        classes=len(pipe.classes),
        codes=config.codebook_size,
        precision=next(word for word, dtype in DTYPES.items() if dtype == pipe.dtype),
        device=pipe.device.type,
    )


def model_fingerprint(pipe: Pipeline) -> str:
    """16 hex digits that change with the architecture and with any weight, as the pipeline holds them."""
    transformer = pipe.transformer
    parts = to_json(transformer.config), weights_fingerprint(transformer.state_dict())
    return fingerprint([tokenizer_fingerprint(pipe.tokenizer), *parts])


def network_used(network: FeatureNetwork) -> NetworkUsed:
    """A feature network as the card names it."""
    return NetworkUsed(
        name=network.name,
        fingerprint=network.fingerprint,
        side=network.side,
        resize="bicubic, antialiased",  # `features.network.resized`
        dimensions=network.dimensions,
    )


def versions() -> dict[str, str]:
    """Of the libraries that the figures pass through."""
    import nextscale

    return {"nextscale": nextscale.__version__, **{name: version(name) for name in LIBRARIES}}


# ---- figures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure under the name it may be quoted by."""

    name: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """The figures of one setting and the card that says how they were made."""

    card: Card
    figures: dict[str, Figure]
    """By what they are: "frechet_distance" ..."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        figures = {key: dataclasses.asdict(figure) for key, figure in self.figures.items()}
        return {"figures": figures, "warnings": warnings(self.card), "card": self.card.to_json()}


def judge(seen: Seen, reference: Seen, card: Card) -> Result:
    """The figures of what a network saw in both."""
    distance = frechet_distance(seen.gaussian, reference.gaussian)
    figure = Figure(name=figure_name("FD", card.network.name), value=distance)
    return Result(card=card, figures={"frechet_distance": figure})
