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
from nextscale.evaluation.statistics import check_finite

SPATIAL = 2048  # numbers a picture at most
GRID = 17  # cells a side at most: Inception's 17x17 map then gives its first 7 channels, which is what sFID looks at
SHUFFLE = 0  # seed of the order in which pictures are dealt to the splits of a score
SUBSETS = 100  # of a kernel distance


class Spread(NamedTuple):
    """A figure over subsets."""

    mean: float
    deviation: float
    """Of one subset's figure from another's: divided by how many there were, not by one less."""


# MMD^2 = sum_i!=j k(x_i, x_j) / n(n-1) + sum_i!=j k(y_i, y_j) / n(n-1) - 2 sum_ij k(x_i, y_j) / n^2
# k(x, y) = (x . y / D + 1)^3                                                              (Binkowski et al. 2018)
def kernel_distance(
    features_ND: Tensor,
    others_MD: Tensor,
    *,
    generator: torch.Generator,
    subsets: int = SUBSETS,
    size: int = 1000,
    paired: bool = False,
) -> Spread:
    """The unbiased squared distance of kernel means, known as KID when features are Inception's; float64.

    Arguments:
        features_ND, others_MD: floating point.
        generator: on the CPU; draws the subsets, each without repetition.
        subsets: how many figures are averaged; the cost is 6 size^2 D operations for each, paired 8 size^2 D.
        size: vectors from either set for each; at most as many as the smaller set has.
        paired: row i of both sets is the same picture, such as an original and its reconstruction. A subset then has
            the same rows of both and its figure is `paired_distance`: partners are nearer to each other than two
            pictures are, and comparing them would make the figure too low by 2 / size times as much.

    An unbiased figure may be a little below zero. Raises `InputError` for sets of fewer than two vectors, of different
    dimensions, or, paired, of different numbers of vectors.
    """
    check_pair(features_ND, others_MD, least=2)
    size = min(size, len(features_ND), len(others_MD))
    if size < 2 or subsets < 1:
        raise InputError(f"kernel distance: expected a subset of at least 2 vectors, got {subsets} of {size}")
    if paired and len(features_ND) != len(others_MD):
        got = f"{len(features_ND)} and {len(others_MD)}"
        raise InputError(f"kernel distance: expected as many vectors in both sets of pairs, got {got}")
    whole = size == len(features_ND) == len(others_MD)  # then so is every subset
    of_subset = _of_paired_subset if paired else _of_subset
    drawn = (of_subset(features_ND, others_MD, size, generator) for _ in range(1 if whole else subsets))
    figures = torch.stack(list(drawn))
    return Spread(float(figures.mean()), float(figures.std(unbiased=False)))


def _of_subset(x_ND: Tensor, y_MD: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return poly_mmd(x_ND[_chosen(x_ND, size, generator)].double(), y_MD[_chosen(y_MD, size, generator)].double())


def _of_paired_subset(x_ND: Tensor, y_ND: Tensor, size: int, generator: torch.Generator) -> Tensor:
    chosen_n = _chosen(x_ND, size, generator)
    return paired_distance(x_ND[chosen_n], y_ND[chosen_n])


def _chosen(rows_ND: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(rows_ND), generator=generator)[:size].to(rows_ND.device)


# MMD^2 = sum_i!=j h_ij / n(n-1),  h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j)
def paired_distance(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    """The kernel distance of pairs, a float64 scalar: a U-statistic, unbiased however much a pair has in common."""
    h_NN = kernel_of_pairs((x_ND, y_ND), (x_ND, y_ND))
    return (h_NN.sum() - h_NN.trace()) / (len(h_NN) * (len(h_NN) - 1))


def kernel_of_pairs(rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """h_ij of some pairs (x_nD, y_nD) with others (x_mD, y_mD): (n, m) float64."""
    (x_nD, y_nD), (x_mD, y_mD) = rows, columns
    return kernel(x_nD, x_mD) + kernel(y_nD, y_mD) - kernel(x_nD, y_mD) - kernel(y_nD, x_mD)


# k(x, y) = (x . y / D + 1)^3
def kernel(x_nD: Tensor, y_mD: Tensor) -> Tensor:
    """Of all pairs: (n, m) float64."""
    return (x_nD.double() @ y_mD.double().T / x_nD.shape[1] + 1) ** 3


# exp( mean_x KL( p(y|x) || p(y) ) )                                                        (Salimans et al. 2016)
def score(logits_NK: Tensor, *, splits: int = 10) -> Spread:
    """How sure a classifier is of each picture and how varied its answers are: from 1 to K.

    Known as the Inception score when the classifier is Inception. Each split has a p(y) of its own. Pictures are dealt
    to the splits in an order that is shuffled, always alike: those of one class tend to stand together, and splits cut
    off in the given order would each see few classes. Raises `InputError` for fewer pictures than splits, and like
    `divergences`.
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
    Raises `InputError` for scores that make no probabilities; -infinity is a class that is out of the question.
    """
    p_NK = logits_NK.double().softmax(dim=1)
    if not p_NK.isfinite().all():
        raise InputError("score: expected finite scores of classes, got NaN or infinity")
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
    """Raise `InputError` unless both are (at least `least`, D) of the same D, floating point, and `check_finite`."""
    for name, rows in (("features", features_ND), ("others", others_MD)):
        if rows.ndim != 2 or len(rows) < least or not rows.is_floating_point():
            got = f"{tuple(rows.shape)} {str(rows.dtype).removeprefix('torch.')}"
            raise InputError(f"{name}: expected shape (at least {least}, features), floating point, got {got}")
        check_finite(name, rows)
    if features_ND.shape[1] != others_MD.shape[1]:
        got = f"{features_ND.shape[1]} and {others_MD.shape[1]}"
        raise InputError(f"features: expected as many in both sets, got {got}")
