"""Distances of two sets of features, and scores of one set, beyond the Fréchet distance of `statistics`.

Knows neither pictures nor files. Shapes: N and M feature vectors, D features of each, K classes, B pictures,
C h w channels and sides of an inner map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from nextscale.errors import InputError

SPATIAL = 2048  # numbers a picture at most
GRID = 17  # cells a side at most: Inception's 17x17 map then gives its first 7 channels, which is what sFID looks at
SHUFFLE = 0  # seed of the order in which pictures are dealt to the splits of a score


class Spread(NamedTuple):
    """A figure over subsets."""

    mean: float
    deviation: float
    """Of one subset's figure from another's: divided by how many there were, not by one less."""


# MMD^2 = sum_i!=j k(x_i, x_j) / n(n-1) + sum_i!=j k(y_i, y_j) / n(n-1) - 2 sum_ij k(x_i, y_j) / n^2
# k(x, y) = (x . y / D + 1)^3                                                              (Binkowski et al. 2018)
def kernel_distance(
    features_ND: Tensor, others_MD: Tensor, *, generator: torch.Generator, subsets: int = 100, size: int = 1000
) -> Spread:
    """The unbiased squared distance of kernel means, known as KID when features are Inception's; float64.

    Arguments:
        features_ND, others_MD: floating point.
        generator: on the CPU; draws the subsets, each without repetition.
        subsets: how many figures are averaged; the cost is 6 size^2 D operations for each.
        size: vectors from either set for each; at most as many as the smaller set has.

    An unbiased figure may be a little below zero. Raises `InputError` for sets of fewer than two vectors, or of
    different dimensions.
    """
    check_pair(features_ND, others_MD, least=2)
    size = min(size, len(features_ND), len(others_MD))
    if size < 2 or subsets < 1:
        raise InputError(f"kernel distance: expected a subset of at least 2 vectors, got {subsets} of {size}")

    def drawn(rows: Tensor) -> Tensor:
        chosen = torch.randperm(len(rows), generator=generator)[:size]
        return rows[chosen.to(rows.device)].double()

    figures = torch.stack([poly_mmd(drawn(features_ND), drawn(others_MD)) for _ in range(subsets)])
    return Spread(float(figures.mean()), float(figures.std(unbiased=False)))


# exp( mean_x KL( p(y|x) || p(y) ) )                                                        (Salimans et al. 2016)
def score(logits_NK: Tensor, *, splits: int = 10) -> Spread:
    """How sure a classifier is of each picture and how varied its answers are: from 1 to K.

    Known as the Inception score when the classifier is Inception. Each split has a p(y) of its own. Pictures are dealt
    to the splits in an order that is shuffled, always alike: those of one class tend to stand together, and splits cut
    off in the given order would each see few classes. Raises `InputError` for fewer pictures than splits.
    """
    if logits_NK.ndim != 2 or not 1 <= splits <= len(logits_NK):
        raise InputError(f"score: expected scores (N, classes) for {splits} splits, got {tuple(logits_NK.shape)}")
    order = torch.randperm(len(logits_NK), generator=torch.Generator().manual_seed(SHUFFLE)).to(logits_NK.device)
    parts = logits_NK[order].tensor_split(splits)
    figures = torch.stack([divergences(part_NK).mean().exp() for part_NK in parts])
    return Spread(float(figures.mean()), float(figures.std(unbiased=False)))


# KL( p(y|x_i) || p(y) ) = sum_y p(y|x_i) log p(y|x_i) / p(y)
def divergences(logits_NK: Tensor) -> Tensor:
    """How far each picture's classes are from the classes of all: (N,) float64, in nats; exp of the mean is the score.

    To first order p(y) may be held fixed when pictures are exchanged: `interval` of these, exp taken, is the score's.
    """
    p_NK = logits_NK.double().softmax(dim=1)
    return (torch.special.xlogy(p_NK, p_NK) - torch.special.xlogy(p_NK, p_NK.mean(dim=0))).sum(dim=1)


def spatial_features(map_BCHW: Tensor) -> Tensor:
    """Where things are: (B, h w C) float32 of a network's last inner map, for a spatial Fréchet distance.

    A map with more than 17 cells a side is averaged down to 17. Of its channels the first are taken, as many whole ones
    as make no more than 2048 numbers: 7 of a 17x17 map, 10 of the packaged network's 14x14. They are laid out row by
    row, column by column, channel by channel, the order of `mu_s` and `sigma_s` in stored statistics.
    """
    height, width = (min(side, GRID) for side in map_BCHW.shape[2:])
    few_BCHW = map_BCHW[:, : SPATIAL // (height * width)]
    return F.adaptive_avg_pool2d(few_BCHW, (height, width)).permute(0, 2, 3, 1).flatten(start_dim=1)


def check_pair(features_ND: Tensor, others_MD: Tensor, *, least: int) -> None:
    """Raise `InputError` unless both are (at least `least`, D) of the same D, floating point and finite."""
    for name, rows in (("features", features_ND), ("others", others_MD)):
        if rows.ndim != 2 or len(rows) < least or not rows.is_floating_point():
            got = f"{tuple(rows.shape)} {str(rows.dtype).removeprefix('torch.')}"
            raise InputError(f"{name}: expected shape (at least {least}, features), floating point, got {got}")
        if not rows.isfinite().all():
            raise InputError(f"{name}: expected finite numbers, got NaN or infinity")
    if features_ND.shape[1] != others_MD.shape[1]:
        got = f"{features_ND.shape[1]} and {others_MD.shape[1]}"
        raise InputError(f"features: expected as many in both sets, got {got}")
