"""How far a figure would move had other pictures been drawn: bootstrap over pictures, for figures that are means.

The Fréchet distance is not a mean, but to first order it is one: `frechet_shares` gives each picture's share. Nothing
is resampled but N numbers. Shapes: N pictures, D features, R the rank of a covariance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nextscale.errors import InputError
from nextscale.evaluation.statistics import Gaussian, RunningGaussian, covariance_root, frechet_distance

BLOCK = 4096  # pictures at a time


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
    Raises `InputError` without values.
    """
    if values_N.ndim != 1 or not len(values_N):
        raise InputError(f"interval: expected at least one value, in one row, got shape {tuple(values_N.shape)}")
    values_N, count = values_N.double().cpu(), len(values_N)
    draws = (torch.randint(count, (count,), generator=generator) for _ in range(resamples))
    means = torch.stack([values_N[chosen].mean() for chosen in draws])
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
    gathered = RunningGaussian(len(other.mean))
    for part_nD in features_ND.split(BLOCK):
        gathered.update(part_nD)
    one = gathered.gaussian()
    step_D, map_RD = one.mean - other.mean, _root_of_map(one, other)

    def change(part_nD: Tensor) -> Tensor:
        centred_nD = part_nD.detach().to("cpu", torch.float64) - one.mean
        return 2 * centred_nD @ step_D + centred_nD.square().sum(dim=1) - (centred_nD @ map_RD.T).square().sum(dim=1)

    changes_N = torch.cat([change(part_nD) for part_nD in features_ND.split(BLOCK)])
    return changes_N - changes_N.mean() + frechet_distance(one, other)


def _root_of_map(one: Gaussian, other: Gaussian) -> Tensor:
    """s^(-1/2) V^T A_2, (R, D): of it, transposed, and itself T is the product."""
    a1_RD, a2_RD = covariance_root(one.covariance), covariance_root(other.covariance)
    _, s_R, v_RR = torch.linalg.svd(a1_RD @ a2_RD.T, full_matrices=False)
    kept = s_R > torch.finfo(s_R.dtype).eps * len(one.mean) * s_R.max() if len(s_R) else s_R > 0
    return s_R[kept].rsqrt()[:, None] * (v_RR[kept] @ a2_RD)
