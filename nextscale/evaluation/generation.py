"""How good a model's pictures are: which ones are painted, how they are looked at, and the figures.

Every class has exactly as many pictures as the others, and picture i has seed `first seed + i` whoever paints it: the
batch and the number of processes change nothing. Pictures go from the model straight into running sums, rounded to the
8 bits they would be saved with. Files, tables and bars are the caller's.

Shapes: B pictures of a batch, N whose features are kept, H W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nextscale import images
from nextscale.config import to_json
from nextscale.data import Progress
from nextscale.data.pictures import fingerprint
from nextscale.errors import InputError
from nextscale.evaluation.card import Card, Model, ReferenceUsed, Rejection, Setting
from nextscale.evaluation.gathering import Gathered, eight_bits, gather, kept, shares
from nextscale.evaluation.judging import KEPT, Figure, averaged, compared, network_used, versions
from nextscale.evaluation.reconstruction import tokenizer_fingerprint
from nextscale.evaluation.reference import Reference, ReferenceFeatures
from nextscale.evaluation.statistics import Gaussian, RunningGaussian, frechet_distance
from nextscale.features import FeatureNetwork
from nextscale.files.checkpoint import fingerprint as weights_fingerprint
from nextscale.pipeline import Pipeline, Rerank
from nextscale.rivals.orders import settings_of
from nextscale.sampling.guidance import guidance_until, weights_of
from nextscale.sampling.settings import Settings

# ---- which pictures --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The pictures of an evaluation, in the order in which they are counted."""

    labels: tuple[int, ...]
    """Class of each."""
    seeds: tuple[int, ...]
    """Likewise."""
    prompts: tuple[str, ...] | None = None
    """Likewise; None: no words."""

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, indices: Iterable[int]) -> Plan:
        """Some of them, in the order given."""
        indices = list(indices)
        prompts = None if self.prompts is None else tuple(self.prompts[i] for i in indices)
        return Plan(tuple(self.labels[i] for i in indices), tuple(self.seeds[i] for i in indices), prompts)


# label(i) = i mod C,  seed(i) = first seed + i
def balanced(classes: int, each: int, *, first_seed: int = 0) -> Plan:
    """`each` pictures of every class, the classes going round: any beginning is balanced too, and more continue it.

    Raises `InputError` for less than one picture.
    """
    if each < 1:
        raise InputError(f"pictures of each class: expected at least 1, got {each}")
    count = classes * each
    return Plan(tuple(index % classes for index in range(count)), tuple(range(first_seed, first_seed + count)))


def settings(
    guidance: Sequence[float | tuple[float, ...]],
    top_k: Sequence[int | tuple[int, ...]],
    top_p: Sequence[float | tuple[float, ...]],
    temperature: Sequence[float | tuple[float, ...]],
    step_guidance: Sequence[float | tuple[float, ...]] = (0.0,),
    reach: Sequence[int | None] = (None,),
) -> list[Setting]:
    """All combinations, each once; the last value changes first. Raises `InputError` for a value out of range."""
    values = product(guidance, top_k, top_p, temperature, step_guidance, reach)
    found = [Setting(*row) for row in dict.fromkeys(values)]
    for setting in found:
        lengths = [len(value) for value in vars(setting).values() if isinstance(value, tuple)]
        Settings(**setting.values).dealt(max(lengths, default=1))
    return found


def fitted(settings: Sequence[Setting], scales: int, *, until: int | None = None) -> list[Setting]:
    """The settings for a model of K scales, without guidance from scale `until` on.

    Raises `InputError` for those that are of another number of scales.
    """
    found = list(settings)
    if until is not None:
        schedules = [guidance_until(setting.guidance, until) for setting in found]
        weights = [tuple(weights_of(schedule, scales)) for schedule in schedules]
        found = [dataclasses.replace(setting, guidance=each) for setting, each in zip(found, weights, strict=True)]
    for setting in found:
        Settings(**setting.values).dealt(scales)
    return found


# ---- painting and looking --------------------------------------------------------------------------------------------


class Painted(NamedTuple):
    """A batch."""

    indices: range
    """Where its pictures stand in the plan."""
    images: Tensor
    """(B, 3, H, W) float32 in [-1, 1], of values that 8 bits can hold."""


def paint(
    pipe: Pipeline,
    plan: Plan,
    setting: Setting,
    *,
    rerank: Rerank | None = None,
    batch: int = 32,
    progress: Progress | None = None,
) -> Iterator[Painted]:
    """This process's batches of a plan, see `gathering.shares`.

    `rerank` is what `setting.rerank` tells of.
    `progress(done, total)` is called after each. Raises `InputError` for a batch below 1, for what `Pipeline.generate`
    refuses, and for pictures that are not finite.
    """
    for part in shares(len(plan), batch):
        made = pipe.generate(
            plan.labels[part.start : part.stop],
            plan.seeds[part.start : part.stop],
            prompts=None if plan.prompts is None else plan.prompts[part.start : part.stop],
            rerank=rerank,
            **setting.values,
        )
        yield Painted(part, eight_bits(images.from_unit(made.images)))
        if progress is not None:
            progress(part.stop, len(plan))


def shown_to(batches: Iterable[Painted], also: Callable[[Painted], object]) -> Iterator[Painted]:
    """The same batches; `also` is called with each before it goes on: for whoever wants the pictures too."""
    for painted in batches:
        also(painted)
        yield painted


# ---- what stands on the card -----------------------------------------------------------------------------------------


def model_used(pipe: Pipeline, name: str) -> Model:
    """A pipeline as the card names it."""
    config = pipe.tokenizer.config
    return Model(
        name=name,
        fingerprint=model_fingerprint(pipe),
        height=config.height,
        width=config.width,
        classes=len(pipe.classes),
        codes=config.codebook_size,
        precision=pipe.arithmetic.word,
        device=pipe.device.type,
        sampler=", ".join(f"{name} {value}" for name, value in settings_of(pipe.sampler).items()) or None,
    )


def model_fingerprint(pipe: Pipeline) -> str:
    """16 hex digits that change with the architecture and with any weight, as the pipeline holds them."""
    transformer = pipe.transformer
    parts = to_json(transformer.config), weights_fingerprint(transformer.state_dict())
    return fingerprint([tokenizer_fingerprint(pipe.tokenizer), *parts])


def reference_used(reference: Reference, seen: ReferenceFeatures) -> ReferenceUsed:
    """A reference as the card names it; its labels are counted whether their features were kept or not."""
    height, width = seen.size or (None, None)
    counts = None if reference.labels is None else reference.labels.bincount()
    return ReferenceUsed(
        name=seen.name,
        fingerprint=seen.fingerprint,
        pictures=seen.count,
        height=height,
        width=width,
        fewest=None if counts is None else int(counts.min()),
        most=None if counts is None else int(counts.max()),
    )


def card_of(
    pipe: Pipeline,
    network: FeatureNetwork,
    used: ReferenceUsed,
    setting: Setting,
    *,
    each: int,
    first_seed: int = 0,
    keep: int = KEPT,
    name: str = "model",
    rejection: Rejection | None = None,
) -> Card:
    """What is to be known about an evaluation."""
    return Card(
        model=model_used(pipe, name),
        setting=setting,
        per_class=each,
        first_seed=first_seed,
        kept=keep,
        reference=used,
        network=network_used(network),
        rejection=rejection,
        versions=versions(),
    )


# ---- figures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ClassFigure:
    """The Fréchet distance of one class's pictures from the reference's of that class."""

    label: int
    pictures: int
    """Of the model, whose features were kept."""
    reference: int
    """Pictures of the reference, likewise."""
    frechet_distance: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """The figures of one setting and the card that says how they were made."""

    card: Card
    figures: dict[str, Figure]
    """By what they are: "frechet_distance" ..."""
    per_class: tuple[ClassFigure, ...] = ()
    """Where they were asked for."""

    @property
    def warnings(self) -> list[str]:
        """The card's, and what to keep in mind about the figures of classes."""
        dimensions = self.card.network.dimensions
        few = [each for each in self.per_class if min(each.pictures, each.reference) <= dimensions]
        fewest = min((min(each.pictures, each.reference) for each in few), default=0)
        about = (
            f"{len(few)} of {len(self.per_class)} classes have as few as {fewest:,} pictures for {dimensions:,} "
            "dimensions: their distances compare with each other where counts are alike, and with nothing else"
        )
        return [*self.card.warnings(), *([about] if few else [])]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "figures": {key: dataclasses.asdict(figure) for key, figure in self.figures.items()},
            "per_class": [dataclasses.asdict(each) for each in self.per_class],
            "warnings": self.warnings,
            "card": self.card.to_json(),
        }


def evaluate(
    pipe: Pipeline,
    network: FeatureNetwork,
    reference: ReferenceFeatures,
    card: Card,
    *,
    batch: int = 32,
    progress: Progress | None = None,
    also: Callable[[Painted], object] = lambda painted: None,
) -> Result:
    """Paint what a card says, each class as often as the others, and judge it: `balanced`, `paint`, then `judge`.

    Where several processes share the pictures, each of them judges and finds the same.

    Arguments:
        card: of `card_of`, for this model, network and reference, without rejection.
        also: called with each batch.

    Raises `InputError` as `balanced` and `paint` do.
    """
    assert card.rejection is None
    plan = balanced(len(pipe.classes), card.per_class, first_seed=card.first_seed)
    batches = shown_to(paint(pipe, plan, card.setting, batch=batch, progress=progress), also)
    seen = gather(batches, network, total=len(plan), keep=card.kept, keep_spatial=True)
    return judge(seen, reference, network, card)


def judge(seen: Gathered, reference: ReferenceFeatures, network: FeatureNetwork, card: Card) -> Result:
    """All figures that the reference allows, see `judging.compared`."""
    return Result(card=card, figures=compared(seen, reference, network, rejected=card.rejected))


def repeated(results: Sequence[Result]) -> Result:
    """Results of one setting with several sets of seeds as one: means, and deviations from set to set.

    The card is that of the first set, which the others' seeds follow.
    """
    first, *others = results
    if not others:
        return first
    classes = zip(*(result.per_class for result in results), strict=True)
    return Result(
        card=dataclasses.replace(first.card, repeats=len(results)),
        figures={key: averaged([result.figures[key] for result in results]) for key in first.figures},
        per_class=tuple(_mean_distance(each) for each in classes),
    )


def _mean_distance(each: Sequence[ClassFigure]) -> ClassFigure:
    distances = [figure.frechet_distance for figure in each]
    return dataclasses.replace(each[0], frechet_distance=sum(distances) / len(distances))


def per_class(seen: Gathered, labels: Sequence[int], reference: ReferenceFeatures) -> tuple[ClassFigure, ...]:
    """Fréchet distances class by class, from the features that were kept.

    Arguments:
        labels: of all pictures that were seen.
        reference: one of which `has_classes` is true; classes are matched by their numbers, see `Reference.ordered`.
    """
    assert reference.features is not None
    assert reference.labels is not None
    labels_n = torch.tensor(labels)[kept(seen.count, len(seen.features))]
    pairs = (
        (label, seen.features[labels_n == label], reference.features[reference.labels == label])
        for label in labels_n.unique().tolist()
    )
    return tuple(
        ClassFigure(
            label=label,
            pictures=len(ours_nD),
            reference=len(theirs_nD),
            frechet_distance=frechet_distance(_gaussian(ours_nD), _gaussian(theirs_nD)),
        )
        for label, ours_nD, theirs_nD in pairs
    )


def has_classes(reference: ReferenceFeatures, classes: int) -> bool:
    """Whether there are features of labelled pictures of exactly these classes."""
    return reference.labels is not None and reference.labels.unique().tolist() == list(range(classes))


def _gaussian(features_nD: Tensor) -> Gaussian:
    running = RunningGaussian(features_nD.shape[1])
    running.update(features_nD)
    return running.gaussian()


def best(results: Sequence[Result]) -> int:
    """Which has the smallest Fréchet distance."""
    return min(range(len(results)), key=lambda index: results[index].figures["frechet_distance"].value)
