"""Figures of two sets of pictures, of what a network saw in them: the same for generated pictures and reconstructions.

Knows features and names, neither pictures nor models. Shapes: N pictures whose features are kept, D features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor

from nextscale.errors import InputError
from nextscale.evaluation.card import NetworkUsed, figure_name
from nextscale.evaluation.distances import divergences, kernel_distance, score
from nextscale.evaluation.gathering import Gathered
from nextscale.evaluation.intervals import Interval, frechet_changes, interval, kernel_interval
from nextscale.evaluation.manifold import members
from nextscale.evaluation.reference import ReferenceFeatures
from nextscale.evaluation.statistics import Gaussian, frechet_distance
from nextscale.features import FeatureNetwork

KEPT = 10_000  # features kept: a neighbour search among as many takes a minute or two on a CPU
NEIGHBOURS = 3  # k of precision, recall, density and coverage
SPLITS = 10  # of the score
LEAST = NEIGHBOURS + 1  # pictures for all figures to exist
LIBRARIES = ("torch", "torchmetrics", "numpy", "pillow")

Set = tuple[Gaussian, Tensor | None]  # of all pictures; features of those that were kept


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure under the name it may be quoted by. Raises `InputError` unless all its numbers are finite."""

    name: str
    value: float
    low: float | None = None
    """Of the 95 % interval, bootstrapped over pictures; None where there is none."""
    high: float | None = None
    """Likewise."""
    deviation: float | None = None
    """Over the subsets, or the repetitions, that the value is a mean of; None where there are none."""
    repeats: tuple[float, ...] = ()
    """Of each repetition with other seeds, where there were several."""

    def __post_init__(self) -> None:
        numbers = [self.value, self.low, self.high, self.deviation, *self.repeats]
        if not all(math.isfinite(number) for number in numbers if number is not None):
            raise InputError(f"{self.name}: expected a finite figure, got {self.value:g} ({self.low} .. {self.high})")


def compared(
    seen: Gathered,
    reference: ReferenceFeatures,
    network: FeatureNetwork,
    *,
    rejected: bool = False,
    paired: bool = False,
) -> dict[str, Figure]:
    """All figures that there is enough for, by what they are.

    With stored statistics these are the Fréchet distances, and the score, which needs no reference. Kernel distance,
    score, precision, recall, density and coverage are made from the features that were kept. Those of two sets'
    neighbours and kernels want `LEAST` pictures of either.

    Arguments:
        rejected: marks the names.
        paired: the reference is the same pictures in the same order, seen otherwise: intervals tell what other pairs
            would have given. Without it the reference is taken as given.
    """
    judging = _Judging(seen, reference, network, rejected=rejected, paired=paired)
    return judging.frechet() | judging.spatial() | judging.kernel() | judging.score() | judging.manifold()


# s^2 = sum_r (v_r - v)^2 / (R - 1)
def averaged(figures: Sequence[Figure]) -> Figure:
    """One figure of several repetitions: their mean, and their deviation instead of an interval."""
    values = torch.tensor([figure.value for figure in figures], dtype=torch.float64)
    return Figure(
        name=figures[0].name,
        value=float(values.mean()),
        deviation=float(values.std()),
        repeats=tuple(values.tolist()),
    )


class _Judging:
    """Each method gives figures of one kind, or none where there is nothing to make them from."""

    def __init__(
        self,
        seen: Gathered,
        reference: ReferenceFeatures,
        network: FeatureNetwork,
        *,
        rejected: bool,
        paired: bool,
    ) -> None:
        self.seen, self.reference, self.network = seen, reference, network
        self.rejected, self.paired = rejected, paired
        device = network.mean_311.device
        self.device = device if device.type == "cuda" else torch.device("cpu")  # others may have no float64

    def frechet(self) -> dict[str, Figure]:
        seen, reference = self.seen, self.reference
        ours, theirs = (seen.gaussian, seen.features), (reference.gaussian, reference.features)
        return {"frechet_distance": self._distance("FD", ours, theirs)}

    def spatial(self) -> dict[str, Figure]:
        seen, reference = self.seen, self.reference
        if seen.spatial is None or reference.spatial is None:
            return {}
        ours, theirs = (seen.spatial, seen.spatial_features), (reference.spatial, reference.spatial_features)
        return {"spatial_frechet_distance": self._distance("sFD", ours, theirs)}

    def kernel(self) -> dict[str, Figure]:
        if not self._enough():
            return {}
        ours, theirs = self._both()
        found = kernel_distance(ours, theirs, generator=_generator(), paired=self.paired)
        ends = kernel_interval(ours, theirs, found, generator=_generator(), paired=self.paired)
        return {"kernel_distance": self._figure("KD", found.mean, ends, deviation=found.deviation)}

    def score(self) -> dict[str, Figure]:
        classifier = getattr(self.network, "classifier", None)
        if not isinstance(classifier, torch.nn.Module):
            return {}
        with torch.no_grad():
            logits_NK = classifier(self.seen.features.to(self.network.mean_311.device)).cpu()
        value, deviation = score(logits_NK, splits=min(SPLITS, len(logits_NK)))
        each_N = divergences(logits_NK)
        low, high = interval(each_N - each_N.mean(), generator=_generator())
        ends = Interval(value * math.exp(low), value * math.exp(high))
        return {"score": self._figure("score", value, ends, deviation=deviation)}

    def manifold(self) -> dict[str, Figure]:
        if not self._enough():
            return {}
        found = members(*self._both(), k=NEIGHBOURS)
        parts = zip(("precision", "recall", "density", "coverage"), found, strict=True)
        return {name: self._share(name, values) for name, values in parts}

    def _enough(self) -> bool:
        others = self.reference.features
        return others is not None and min(len(self.seen.features), len(others)) >= LEAST

    def _both(self) -> tuple[Tensor, Tensor]:
        assert self.reference.features is not None
        return self.seen.features.to(self.device), self.reference.features.to(self.device)

    def _share(self, name: str, values: Tensor) -> Figure:
        return self._figure(name, float(values.mean()), interval(values, generator=_generator()))

    def _distance(self, figure: str, ours: Set, theirs: Set) -> Figure:
        """A Fréchet distance, with an interval where features were kept."""
        (gaussian, features_ND), (other, others_MD) = ours, theirs
        value = frechet_distance(gaussian, other)
        if features_ND is None or (self.paired and others_MD is None):
            return self._figure(figure, value)
        changes_N = frechet_changes(features_ND, other)
        if self.paired and others_MD is not None:
            changes_N = changes_N + frechet_changes(others_MD, gaussian)
        low, high = self._interval(changes_N)
        return self._figure(figure, value, Interval(max(0.0, value + low), value + high))

    def _interval(self, centred_N: Tensor) -> Interval:
        """About a mean over all pictures, of which these were kept: as much narrower as there are more of them."""
        narrower = (len(centred_N) / self.seen.count) ** 0.5
        return Interval(*(end * narrower for end in interval(centred_N, generator=_generator())))

    def _figure(
        self, figure: str, value: float, ends: Interval | None = None, *, deviation: float | None = None
    ) -> Figure:
        name = figure_name(figure, self.network.name, rejected=self.rejected)
        low, high = ends or (None, None)
        return Figure(name=name, value=value, low=low, high=high, deviation=deviation)


def _generator() -> torch.Generator:
    """Of subsets and resamples: always the same, so that a figure is too."""
    return torch.Generator().manual_seed(0)


# ---- what stands on the card -----------------------------------------------------------------------------------------


def network_used(network: FeatureNetwork) -> NetworkUsed:
    """A feature network as the card names it."""
    return NetworkUsed(
        name=network.name,
        fingerprint=network.fingerprint,
        side=network.side,
        resize=network.resize,
        dimensions=network.dimensions,
    )


def versions() -> dict[str, str]:
    """Of the libraries that the figures pass through."""
    from nextscale import __version__

    return {"nextscale": __version__, **{name: version(name) for name in LIBRARIES}}
