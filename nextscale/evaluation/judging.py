"""Figures of two sets of pictures, of what a network saw in them: the same for generated pictures and reconstructions.

Knows features and names, neither pictures nor models. Shapes: N pictures whose features are kept, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor

from nextscale.evaluation.card import NetworkUsed, figure_name
from nextscale.evaluation.distances import kernel_distance, score
from nextscale.evaluation.gathering import Gathered
from nextscale.evaluation.intervals import Interval, frechet_shares, interval
from nextscale.evaluation.manifold import members
from nextscale.evaluation.reference import ReferenceFeatures
from nextscale.evaluation.statistics import frechet_distance
from nextscale.features import FeatureNetwork

KEPT = 10_000  # features kept: a neighbour search among as many takes a minute or two on a CPU
NEIGHBOURS = 3  # k of precision, recall, density and coverage
SPLITS = 10  # of the score
LEAST = NEIGHBOURS + 1  # pictures for all figures to exist
LIBRARIES = ("torch", "torchmetrics", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure under the name it may be quoted by."""

    name: str
    value: float
    low: float | None = None
    """Of the 95 % interval, bootstrapped over pictures; None where there is none."""
    high: float | None = None
    """Likewise."""
    deviation: float | None = None
    """Over the subsets that the value is a mean of; None where there are none."""


def compared(
    seen: Gathered, reference: ReferenceFeatures, network: FeatureNetwork, *, rejected: bool = False
) -> dict[str, Figure]:
    """All figures that the reference allows, by what they are: stored statistics have Fréchet distances alone.

    Kernel distance, score, precision, recall, density and coverage are made from the features that were kept.
    `rejected` marks their names. Raises `InputError` for sets of fewer than `LEAST` pictures.
    """
    judging = _Judging(seen, reference, network, rejected)
    return judging.frechet() | judging.spatial() | judging.kernel() | judging.score() | judging.manifold()


class _Judging:
    """Each method gives figures of one kind, or none where there is nothing to make them from."""

    def __init__(self, seen: Gathered, reference: ReferenceFeatures, network: FeatureNetwork, rejected: bool) -> None:
        self.seen, self.reference, self.network, self.rejected = seen, reference, network, rejected
        device = network.mean_311.device
        self.device = device if device.type == "cuda" else torch.device("cpu")  # others may have no float64

    def frechet(self) -> dict[str, Figure]:
        value = frechet_distance(self.seen.gaussian, self.reference.gaussian)
        shares_N = frechet_shares(self.seen.features, self.reference.gaussian)
        low, high = self._interval(shares_N - shares_N.mean())
        return {"frechet_distance": self._figure("FD", value, low=value + low, high=value + high)}

    def spatial(self) -> dict[str, Figure]:
        if self.seen.spatial is None or self.reference.spatial is None:
            return {}
        value = frechet_distance(self.seen.spatial, self.reference.spatial)
        return {"spatial_frechet_distance": self._figure("sFD", value)}

    def kernel(self) -> dict[str, Figure]:
        if self.reference.features is None:
            return {}
        value, deviation = kernel_distance(*self._both(), generator=_generator())
        return {"kernel_distance": self._figure("KD", value, deviation=deviation)}

    def score(self) -> dict[str, Figure]:
        classifier = getattr(self.network, "classifier", None)
        if not isinstance(classifier, torch.nn.Module):
            return {}
        with torch.no_grad():
            logits_NK = classifier(self.seen.features.to(self.network.mean_311.device)).cpu()
        value, deviation = score(logits_NK, splits=min(SPLITS, len(logits_NK)))
        return {"score": self._figure("score", value, deviation=deviation)}

    def manifold(self) -> dict[str, Figure]:
        if self.reference.features is None:
            return {}
        found = members(*self._both(), k=NEIGHBOURS)
        parts = zip(("precision", "recall", "density", "coverage"), found, strict=True)
        return {name: self._share(name, values) for name, values in parts}

    def _both(self) -> tuple[Tensor, Tensor]:
        assert self.reference.features is not None
        return self.seen.features.to(self.device), self.reference.features.to(self.device)

    def _share(self, name: str, values: Tensor) -> Figure:
        low, high = interval(values, generator=_generator())
        return self._figure(name, float(values.mean()), low=low, high=high)

    def _interval(self, centred_N: Tensor) -> Interval:
        """About a mean over all pictures, of which these were kept: as much narrower as there are more of them."""
        narrower = (len(centred_N) / self.seen.count) ** 0.5
        return Interval(*(end * narrower for end in interval(centred_N, generator=_generator())))

    def _figure(self, figure: str, value: float, **more: float) -> Figure:
        return Figure(name=figure_name(figure, self.network.name, rejected=self.rejected), value=value, **more)


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
    import nextscale

    return {"nextscale": nextscale.__version__, **{name: version(name) for name in LIBRARIES}}
