"""How far a figure would move had other pictures been drawn: bootstrap over pictures.

Of a figure that is a mean, nothing is resampled but N numbers. The Fréchet distance is not a mean, but to first order
it is one: `frechet_shares` gives each picture's share, and `kernel_changes` that of a kernel distance. Shapes: N
pictures, M others, n m of a tile, D features, R the rank of a covariance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from torch import Tensor

from nextscale.errors import InputError
from nextscale.evaluation.distances import SUBSETS, Spread, check_pair, kernel, kernel_of_pairs
from nextscale.evaluation.statistics import Gaussian, RunningGaussian, covariance_root, frechet_distance

BLOCK = 4096  # pictures at a time
DRAWN = 2**18  # values at a time
NORMAL = 1.96  # standard deviations to either side that hold 95 % of a normal distribution

Pairs = Callable[[slice, slice], Tensor]  # which rows, which columns -> h (n, m)


class Interval(NamedTuple):
    """Where a figure lies, in 95 of 100 repetitions with other pictures."""

    low: float
    high: float


def interval(values_N: Tensor, *, generator: torch.Generator, resamples: int = 1000) -> Interval:
    """The 95 % percentile bootstrap interval of the mean of (N,) values, one a picture.

    Arguments:
        values_N: such as `Members`, `divergences` or `frechet_shares` hold.
        generator: on the CPU.
        resamples: means of N values drawn with repetition; the cost is N each: 50,000 pictures take about a second.

    It tells of the pictures that were judged and not of those they are compared with, which are taken as given.
    Raises `InputError` without values, and for values that are not finite.
    """
    if values_N.ndim != 1 or not len(values_N):
        raise InputError(f"interval: expected at least one value, in one row, got shape {tuple(values_N.shape)}")
    if not values_N.isfinite().all():
        raise InputError("interval: expected finite values, got NaN or infinity")
    values_N, count = values_N.double().cpu(), len(values_N)
    rows = max(1, DRAWN // count)
    sizes = (min(rows, resamples - done) for done in range(0, resamples, rows))
    draws = (torch.randint(count, (size, count), generator=generator) for size in sizes)
    means = torch.cat([values_N[chosen].mean(dim=1) for chosen in draws])
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(low, high)


# share(x) = d^2 + 2 (m_1 - m_2) . (x - m_1) + |x - m_1|^2 - q(x) - (the mean of the terms after d^2)
# q(x) = (x - m_1)^T T (x - m_1),  T = A_2^T (A_2 S_1 A_2^T)^(-1/2) A_2,  S_2 = A_2^T A_2
#
# d^2 changes with S_1 by tr (I - T) dS_1, T being the map that carries the first Gaussian's spread into the second's.
# With A_1 A_2^T = U s V^T the inverse root is V s^-1 V^T, taken where s is no rounding.
def frechet_shares(features_ND: Tensor, other: Gaussian) -> Tensor:
    """What each picture adds to the Fréchet distance of its set from `other`: (N,) float64 whose mean is the distance.

    `interval` of it is what resampling pictures gives, to first order, at the price of one distance and 4 N D^2
    operations: resampling itself would cost that a hundred times over, and sit too high besides, because the distance
    grows when pictures are fewer and a resample has fewer different ones. That bias is therefore not in the interval;
    with few more pictures than features it is the larger error, and figures from as many pictures still compare.

    Raises `InputError` like `RunningGaussian.update` and `frechet_distance`.
    """
    changes_N, one = _changes(features_ND, other)
    return changes_N + frechet_distance(one, other)


def frechet_changes(features_ND: Tensor, other: Gaussian) -> Tensor:
    """`frechet_shares` less their mean, for whoever knows the distance: half the price."""
    return _changes(features_ND, other)[0]


def _changes(features_ND: Tensor, other: Gaussian) -> tuple[Tensor, Gaussian]:
    gathered = RunningGaussian(len(other.mean))
    for part_nD in features_ND.split(BLOCK):
        gathered.update(part_nD)
    one = gathered.gaussian()
    step_D, map_RD = one.mean - other.mean, _root_of_map(one, other)

    def change(part_nD: Tensor) -> Tensor:
        centred_nD = part_nD.detach().to("cpu", torch.float64) - one.mean
        return 2 * centred_nD @ step_D + centred_nD.square().sum(dim=1) - (centred_nD @ map_RD.T).square().sum(dim=1)

    changes_N = torch.cat([change(part_nD) for part_nD in features_ND.split(BLOCK)])
    return changes_N - changes_N.mean(), one


def _root_of_map(one: Gaussian, other: Gaussian) -> Tensor:
    """s^(-1/2) V^T A_2, (R, D): of it, transposed, and itself T is the product."""
    a1_RD, a2_RD = covariance_root(one.covariance), covariance_root(other.covariance)
    _, s_R, v_RR = torch.linalg.svd(a1_RD @ a2_RD.T, full_matrices=False)
    kept = s_R > torch.finfo(s_R.dtype).eps * len(one.mean) * s_R.max() if len(s_R) else s_R > 0
    return s_R[kept].rsqrt()[:, None] * (v_RR[kept] @ a2_RD)


# d^2 = mean_i!=j h_ij + a constant,  h_i = mean_j!=i h_ij,  change_i ~ 2 (h_i - mean h)
# Var d^2 = (4 (N-2) z + 2 Var h_ij) / N (N-1),  z = Var E[h_ij | i] = (Var h_i - Var h_ij / (N-1)) (N-1) / (N-2)
def kernel_changes(features_ND: Tensor, others_MD: Tensor, *, paired: bool = False, block: int = 1024) -> Tensor:
    """What each picture adds to the kernel distance of its set from the others: (N,) float64 of mean 0.

    Each picture's mean over its pairs is where resampling would begin. But where two sets are alike these means are
    mostly chance, of who happens to be in the pairs, and resampling would make intervals wider than they are by the
    root of three. So the means are scaled until `interval` of them has the variance that Hoeffding's formula gives.

    Arguments:
        features_ND, others_MD: floating point, on one device.
        paired: the others are N too, and would be drawn along with the features of the same rows: h_ij is k(x_i, x_j) +
            k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j). Else they are taken as given, and it is k(x_i, x_j) less the mean
            kernels of x_i and x_j with them.
        block: vectors from either set that are compared at a time; the result does not depend on it.

    The cost is 2 D (N^2 / 2 + N M) operations in float64, paired 4 D N^2. Raises `InputError` for sets of fewer than
    three vectors, or of different dimensions.
    """
    check_pair(features_ND, others_MD, least=3)
    assert not paired or len(features_ND) == len(others_MD)
    pairs = _pairs_of_pairs(features_ND, others_MD) if paired else _pairs(features_ND, others_MD, block)
    count = len(features_ND)
    parts = [slice(start, start + block) for start in range(0, count, block)]
    means_N, square = torch.zeros(count, dtype=torch.float64, device=features_ND.device), 0.0
    for rows, columns in combinations_with_replacement(parts, 2):  # h_ij = h_ji: half of the tiles are enough
        h_nm = pairs(rows, columns)
        if rows == columns:
            h_nm.fill_diagonal_(0)
        else:
            means_N[columns] += h_nm.sum(dim=0) / (count - 1)
        means_N[rows] += h_nm.sum(dim=1) / (count - 1)
        square += (1 + (rows != columns)) * float(h_nm.square().sum()) / (count * (count - 1))
    return _scaled(means_N.cpu(), square)


# Var (mean over S subsets) = Var d^2 + v / S,  v the variance from one drawn subset to another
def kernel_interval(
    features_ND: Tensor, others_MD: Tensor, found: Spread, *, generator: torch.Generator, paired: bool = False
) -> Interval:
    """Of a kernel distance that `kernel_distance` found over `SUBSETS` subsets.

    Other pictures would have given another distance, and so would another draw of the subsets, which counts as much
    where there are ten times as many pictures as in a subset. Arguments and errors are those of `kernel_changes`, and
    `interval`.
    """
    low, high = interval(kernel_changes(features_ND, others_MD, paired=paired), generator=generator)
    of_draw = NORMAL * found.deviation / (SUBSETS - 1) ** 0.5
    return Interval(found.mean - math.hypot(low, of_draw), found.mean + math.hypot(high, of_draw))


def _scaled(means_N: Tensor, square: float) -> Tensor:
    """h_i about their mean, made as wide as the variance of the distance asks for; `square` is the mean of h_ij^2."""
    n, changes_N = len(means_N), means_N - means_N.mean()
    of_means, of_pairs = float(means_N.var()), square - float(means_N.mean()) ** 2
    z = max(0.0, (of_means - of_pairs / (n - 1)) * (n - 1) / (n - 2))
    variance = (4 * (n - 2) * z + 2 * of_pairs) / (n * (n - 1))
    resampled = float(changes_N.square().mean()) / n
    return changes_N * (variance / resampled) ** 0.5 if resampled and variance > 0 else torch.zeros_like(changes_N)


def _pairs(x_ND: Tensor, y_MD: Tensor, block: int) -> Pairs:
    across_N = sum(kernel(x_ND, part_mD).sum(dim=1) for part_mD in y_MD.split(block)) / len(y_MD)
    assert isinstance(across_N, Tensor)
    return lambda i, j: kernel(x_ND[i], x_ND[j]) - across_N[i, None] - across_N[j]


def _pairs_of_pairs(x_ND: Tensor, y_ND: Tensor) -> Pairs:
    return lambda i, j: kernel_of_pairs((x_ND[i], y_ND[i]), (x_ND[j], y_ND[j]))
