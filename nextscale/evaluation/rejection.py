"""Rejection sampling: more pictures are painted than wanted, and those stay that a classifier is surest of.

Any function from pictures and labels to scores will do; the one here needs only features and labelled pictures. What is
found is a plan: the pictures that stay are painted again, since a seed alone decides its picture, and nothing is kept.
Shapes: B pictures of a batch, N of all, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nextscale.data.pictures import fingerprint
from nextscale.errors import InputError
from nextscale.evaluation.card import Rejection
from nextscale.evaluation.generation import Painted, Plan
from nextscale.evaluation.reference import ReferenceFeatures
from nextscale.features import FeatureNetwork
from nextscale.machine import distributed

Scorer = Callable[[Tensor, Tensor], Tensor]
"""(images (B, 3, H, W) float in [-1, 1], labels (B,) int64) -> (B,), the higher the surer of the label."""


def accepted(batches: Iterable[Painted], plan: Plan, scorer: Scorer, *, each: int) -> Plan:
    """The `each` pictures of every class with the highest scores, in the plan's order; of equals the first.

    Arguments:
        batches: this process's, of all of `plan`; every process must call this with its own.

    Raises `InputError` for scores that are no finite numbers, and for a class with fewer candidates.
    """
    labels_N, scores_N = torch.tensor(plan.labels), torch.zeros(len(plan), dtype=torch.float64)
    with torch.no_grad():
        for indices, images_B3HW in batches:
            part = slice(indices.start, indices.stop)
            scores_N[part] = scorer(images_B3HW, labels_N[part]).double().cpu()
    scores_N = distributed.summed(scores_N)  # each is zero everywhere but in the process that gave it
    if not scores_N.isfinite().all():
        raise InputError("rejection: expected finite scores from the classifier, got NaN or infinity")
    stay = [_highest(scores_N, (labels_N == label).nonzero().flatten(), each) for label in labels_N.unique().tolist()]
    return plan.chosen(torch.cat(stay).sort().values.tolist())


def _highest(scores_N: Tensor, candidates_n: Tensor, count: int) -> Tensor:
    if len(candidates_n) < count:
        raise InputError(f"rejection: expected at least {count} candidates of each class, got {len(candidates_n)}")
    return candidates_n[scores_N[candidates_n].argsort(descending=True, stable=True)[:count]]


# score(x, y) = min_k!=y |f(x) - m_k|^2 - |f(x) - m_y|^2,  m_k the mean feature of class k
@dataclass(frozen=True, eq=False)
class NearestMean:
    """A classifier from examples: a picture belongs to the class whose mean feature is nearest."""

    network: FeatureNetwork
    means: Tensor
    """(K, D) float64, on the CPU."""
    accuracy: float
    """Share of the examples it puts into their class."""

    def __call__(self, images_B3HW: Tensor, labels_B: Tensor) -> Tensor:
        """A `Scorer`: how much nearer the label's mean is than the nearest other; above 0 where it is right."""
        features_BD = self.network(images_B3HW.to(self.network.mean_311.device))
        return _margins(features_BD.cpu().double(), self.means, labels_B)


def nearest_mean(network: FeatureNetwork, features_ND: Tensor, labels_N: Tensor, *, classes: int) -> NearestMean:
    """Means of the features of labelled pictures. Raises `InputError` unless every class, and no other, has some."""
    found = labels_N.unique()
    if found.tolist() != list(range(classes)):
        raise InputError(f"classifier: expected pictures of each of {classes} classes, got {len(found)} classes")
    rows_ND = features_ND.double()
    means_KD = torch.stack([rows_ND[labels_N == label].mean(dim=0) for label in range(classes)])
    right_N = _margins(rows_ND, means_KD, labels_N) > 0
    return NearestMean(network, means_KD, float(right_N.double().mean()))


def rejection_used(classifier: NearestMean, learned_from: ReferenceFeatures, *, rate: float, each: int) -> Rejection:
    """As the card tells of it: `each` pictures of every class stay, the share `rate` of those that are painted."""
    network = classifier.network
    return Rejection(
        rate=rate,
        candidates=math.ceil(each / rate),
        classifier=f"nearest class mean in {network.name}, {learned_from.name}",
        network=network.name,
        fingerprint=fingerprint([network.fingerprint, learned_from.fingerprint]),
        accuracy=classifier.accuracy,
    )


def _margins(features_BD: Tensor, means_KD: Tensor, labels_B: Tensor) -> Tensor:
    squares_BK = torch.cdist(features_BD, means_KD).square()
    own_B1 = squares_BK.gather(1, labels_B[:, None])
    others_BK = squares_BK.scatter(1, labels_B[:, None], torch.inf)
    nearest_B1 = others_BK.amin(dim=1, keepdim=True) if len(means_KD) > 1 else torch.zeros_like(own_B1)
    return (nearest_B1 - own_B1).squeeze(1)
