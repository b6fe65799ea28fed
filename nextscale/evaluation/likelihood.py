"""How likely a model takes a data set's pictures to be: those it was trained on beside those held out, and by class.

A model that has memorised its pictures finds them likelier than others of their kind; the gap is a figure of that, the
share of pairs in which a training picture is the likelier one another. Reads pictures and computes figures; files,
tables and bars are the caller's.

Shapes: N pictures of a split that are looked at, K scales, L tokens, C classes, D features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from nextscale.data import Pictures, Progress
from nextscale.errors import InputError
from nextscale.evaluation.intervals import NORMAL, interval
from nextscale.evaluation.judging import Figure
from nextscale.images import to_unit
from nextscale.pipeline import Pipeline
from nextscale.scales import Scales
from nextscale.transformer.likelihood import Classified, by_scale

# ---- which pictures, under which conditions --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Asked:
    """Pictures of a split, each under a condition of its own."""

    pictures: Pictures
    indices: tuple[int, ...]
    labels: tuple[int, ...]
    """Of each, by the model's numbers."""
    prompts: tuple[str, ...] | None
    """Of each; None: no text."""

    def __len__(self) -> int:
        return len(self.indices)

    def parts(self, batch: int) -> Iterator[tuple[Tensor, Asked]]:
        """So many at a time: images (n, 3, H, W) in [0, 1], and what is asked about them."""
        for start in range(0, len(self), batch):
            part = slice(start, start + batch)
            prompts = None if self.prompts is None else self.prompts[part]
            images, _ = self.pictures.batch(self.indices[part])
            yield to_unit(images), Asked(self.pictures, self.indices[part], self.labels[part], prompts)


def asked(pipe: Pipeline, pictures: Pictures, *, most: int) -> Asked:
    """At most so many pictures of a split, evenly spread over it, under their own classes and first captions.

    Where the model does not know all classes of the data by name, all are of no class. Captions count where the model
    reads and the data has some; a picture without one has no text. Raises `InputError` for a split without pictures.
    """
    count = min(most, len(pictures))
    if not count:
        raise InputError("likelihood: expected at least one picture in each split, got none")
    indices = tuple(place * len(pictures) // count for place in range(count))
    numbers = class_numbers(pipe, pictures.classes)
    own = (int(label) for label in pictures.labels[list(indices)])
    labels = tuple(len(pipe.classes) if numbers is None else numbers[label] for label in own)
    captions = pictures.captions if pipe.reader is not None else None
    prompts = None if captions is None else tuple("".join(captions[index][:1]) for index in indices)
    return Asked(pictures, indices, labels, prompts)


def under_other_captions(wanted: Asked) -> Asked | None:
    """The same pictures and classes, each with the caption of another picture: the next that differs from its own.

    The search for it begins half the way round, so that neighbours in the data are not each other's. None without
    captions, and where all are the same.
    """
    prompts = wanted.prompts
    if prompts is None or len(set(prompts)) < 2:
        return None
    half = len(prompts) // 2
    turned = prompts[half:] + prompts[:half]
    others = (
        next(other for other in chain(turned[place:], turned[:place]) if other != own)
        for place, own in enumerate(prompts)
    )
    return dataclasses.replace(wanted, prompts=tuple(others))


def class_numbers(pipe: Pipeline, classes: Sequence[str]) -> list[int] | None:
    """The model's numbers of a data set's classes; None where it does not know all of them by name."""
    known = {name: number for number, name in enumerate(pipe.classes)}
    return [known[name] for name in classes] if known.keys() >= {*classes} else None


# ---- looking ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Looked:
    """What the model said to some pictures."""

    nats: Tensor
    """(N, K) float64: -log p of each scale's tokens."""
    entropy: Tensor
    """(N, K) float64: sums of the entropies of their distributions."""


def look(pipe: Pipeline, wanted: Asked, *, batch: int = 32, progress: Progress | None = None) -> Looked:
    """-log p of each picture under its own condition; `progress(done, total)` after each batch."""
    nats, entropy, done = [], [], 0
    for images, part in wanted.parts(batch):
        found = pipe.log_likelihood(images, part.labels, part.prompts, batch=batch)
        nats.append(-found.scales.cpu())
        entropy.append(by_scale(found.entropy, found.sizes).cpu())
        done += len(part)
        if progress is not None:
            progress(done, len(wanted))
    return Looked(torch.cat(nats), torch.cat(entropy))


def classify(pipe: Pipeline, wanted: Asked, *, batch: int = 64, progress: Progress | None = None) -> Classified:
    """Each picture under every class of the model, without words; `progress(done, total)` counts pairs."""
    classes, total = len(pipe.classes), len(wanted) * len(pipe.classes)
    scales, done = [], 0
    for images, part in wanted.parts(max(1, batch // classes)):
        so_far = done
        told = None if progress is None else lambda pairs, _, before=so_far: progress(before + pairs, total)
        scales.append(pipe.classify(images, batch=batch, progress=told).scales.cpu())
        done += len(part) * classes
    return Classified(torch.cat(scales), tuple(pipe.classes))


# ---- figures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ScaleFigures:
    """Means over pictures and over the tokens of a scale."""

    size: str
    """1x1."""
    tokens: int
    nats_per_token: float
    entropy_per_token: float
    """What `nats_per_token` was expected to be."""


@dataclass(frozen=True, kw_only=True)
class SplitFigures:
    """Of the pictures of a split, means."""

    pictures: int
    nats_per_picture: Figure
    nats_per_token: Figure
    bits_per_pixel: Figure
    scales: tuple[ScaleFigures, ...]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How much likelier the pictures are that were trained on."""

    nats_per_token: Figure
    """Held out less trained on: 0 where the model knows neither better."""
    auc: Figure
    """Share of pairs, one of either, in which the training picture is the likelier one a token: 0.5 where the model
    knows neither better, 1 where its likelihood tells them apart."""


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """How often a picture's class is the likeliest."""

    accuracy: Figure
    through: tuple[float, ...]
    """The same by the first scales alone, k = 1 .. K."""
    most_frequent: float
    """Of a guess that always names the class that most of the pictures have."""
    nearest_neighbour: Figure | None = None
    """Of the class of the nearest training picture, as `nearest_network` sees them."""
    nearest_network: str | None = None


def split_figures(looked: Looked, sizes: Scales, pixels: int) -> SplitFigures:
    """Of a model whose maps have these sizes, on pictures of so many pixels."""
    each_N = looked.nats.sum(dim=1)
    per_scale = zip(sizes, looked.nats.mean(dim=0).tolist(), looked.entropy.mean(dim=0).tolist(), strict=True)
    return SplitFigures(
        pictures=len(each_N),
        nats_per_picture=_mean("nats a picture", each_N),
        nats_per_token=_mean("nats a token", each_N / sizes.total),
        bits_per_pixel=_mean("bits a pixel", each_N / (math.log(2) * pixels)),
        scales=tuple(
            ScaleFigures(size=f"{h}x{w}", tokens=h * w, nats_per_token=n / (h * w), entropy_per_token=e / (h * w))
            for (h, w), n, e in per_scale
        ),
    )


def gap(trained: Looked, held_out: Looked, sizes: Scales) -> Gap:
    """Between pictures that were trained on and pictures that were not."""
    ours_N, theirs_M = (looked.nats.sum(dim=1) / sizes.total for looked in (trained, held_out))
    return Gap(nats_per_token=_difference("gap, nats a token", theirs_M, ours_N), auc=_auc(ours_N, theirs_M))


def caption_gain(own: Looked, others: Looked, sizes: Scales) -> Figure:
    """How much likelier the same pictures are under their own captions than under those of others, nats a token."""
    return _mean("gain by captions, nats a token", (others.nats - own.nats).sum(dim=1) / sizes.total)


def class_figures(told: Classified, labels: Sequence[int]) -> ClassFigures:
    """Of pictures of these classes."""
    labels_N, scales = torch.tensor(labels), told.scales.shape[2]
    hits = [(told.through(k).best == labels_N).double() for k in range(1, scales + 1)]
    return ClassFigures(
        accuracy=share("right class", hits[-1]),
        through=tuple(float(each.mean()) for each in hits),
        most_frequent=float(labels_N.bincount().max()) / len(labels_N),
    )


def to_json(figures: Any) -> Any:
    """Plain JSON values of any of these."""
    return dataclasses.asdict(figures)


# (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), the interval of Wilson (1927)
def share(name: str, hits_N: Tensor) -> Figure:
    """The mean of (N,) zeros and ones; its interval is not a point where all are alike."""
    n, p, z = len(hits_N), float(hits_N.double().mean()), NORMAL
    middle, reach = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * reach) / (1 + z * z / n) for sign in (-1, 1))
    return Figure(name=name, value=p, low=max(0.0, low), high=min(1.0, high))


def _mean(name: str, values_N: Tensor) -> Figure:
    low, high = interval(values_N, generator=torch.Generator().manual_seed(0))
    return Figure(name=name, value=float(values_N.mean()), low=low, high=high)


def _difference(name: str, ones_N: Tensor, others_M: Tensor) -> Figure:
    """mean x - mean y, of independent pictures."""
    value = float(ones_N.mean() - others_M.mean())
    reach = NORMAL * math.sqrt(_variance(ones_N) + _variance(others_M))
    return Figure(name=name, value=value, low=value - reach, high=value + reach)


# AUC = mean_x F(x), F(x) the share of the others above x; var = var_x F / n + var_y G / m (DeLong et al. 1988)
def _auc(ones_N: Tensor, others_M: Tensor) -> Figure:
    """Share of pairs in which the first is the smaller one; ties count half."""
    below_N, below_M = _below(others_M, ones_N), _below(ones_N, others_M)
    value = 1 - float(below_N.mean())
    reach = NORMAL * math.sqrt(_variance(below_N) + _variance(below_M))
    return Figure(name="trained on or not, AUC", value=value, low=max(0.0, value - reach), high=min(1.0, value + reach))


def _below(values: Tensor, of: Tensor) -> Tensor:
    """For each of `of` the share of `values` that is smaller, ties half."""
    ordered = values.sort().values
    left, right = (torch.searchsorted(ordered, of, right=right) for right in (False, True))
    return (left + right).double() / (2 * len(values))


def _variance(values_N: Tensor) -> float:
    """Of their mean."""
    return float(values_N.var(correction=1)) / len(values_N) if len(values_N) > 1 else 0.0
