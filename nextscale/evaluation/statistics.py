"""Gaussians of features, gathered batch by batch, and the distance between two of them; all in float64.

Knows neither pictures nor networks. What is kept does not grow with the number of pictures, and what two processes
gathered can be merged. Shapes: N feature vectors, D features of each, R the rank of a covariance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nextscale.errors import InputError
from nextscale.machine.distributed import summed

LARGEST = 1e24  # of a feature: the figures go up to its twelfth power, and float64 to 1e308
ROUNDING = 1e-5  # of the largest covariance: what is lost in float32, in which statistics may have been stored


class Gaussian(NamedTuple):
    """What the Fréchet distance sees of a set of features."""

    mean: Tensor
    """(D,) float64."""
    covariance: Tensor
    """(D, D) float64, unbiased."""


class RunningGaussian:
    """Count, mean and scatter of all features seen so far, on the CPU: D * D numbers, however many there were.

    The scatter is kept about the mean: sums of raw squares would lose what a small spread about a large mean says.

    Arguments:
        dimensions: D.
    """

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self.mean_D = torch.zeros(dimensions, dtype=torch.float64)
        self.scatter_DD = torch.zeros(dimensions, dimensions, dtype=torch.float64)

    def update(self, features_ND: Tensor) -> None:
        """Take in features (N, D) of any floating dtype and device.

        Raises `InputError` for others, and like `check_finite`.
        """
        if features_ND.ndim != 2 or features_ND.shape[1] != len(self.mean_D) or not features_ND.is_floating_point():
            got = f"{tuple(features_ND.shape)} {str(features_ND.dtype).removeprefix('torch.')}"
            raise InputError(f"features: expected shape (pictures, {len(self.mean_D)}), floating point, got {got}")
        check_finite("features", features_ND)
        if len(features_ND):
            x_ND = features_ND.detach().to("cpu", torch.float64)
            mean_D = x_ND.mean(dim=0)
            centred_ND = x_ND - mean_D
            self._combine(len(x_ND), mean_D, centred_ND.T @ centred_ND)

    def merge(self, other: RunningGaussian) -> None:
        """Take in what another has gathered, which stays as it is."""
        if other.count:
            self._combine(other.count, other.mean_D, other.scatter_DD)

    # n = n_1 + n_2,  d = m_2 - m_1,  m = m_1 + d n_2 / n,  M = M_1 + M_2 + d d^T n_1 n_2 / n   (Chan, Golub, LeVeque)
    def _combine(self, count: int, mean_D: Tensor, scatter_DD: Tensor) -> None:
        total, step_D = self.count + count, mean_D - self.mean_D
        self.scatter_DD.add_(scatter_DD).addr_(step_D, step_D, alpha=self.count * count / total)
        self.mean_D.add_(step_D, alpha=count / total)
        self.count = total

    # n = sum_r n_r,  m = sum_r m_r n_r / n,  M = sum_r M_r + (m_r - m)(m_r - m)^T n_r
    def over_processes(self) -> RunningGaussian:
        """What the processes of the group have gathered together, on all of them; every one of them must call this."""
        whole = RunningGaussian(len(self.mean_D))
        whole.count = int(summed(torch.tensor(self.count)))
        if whole.count:
            whole.mean_D = summed(self.mean_D * (self.count / whole.count))
            step_D = self.mean_D - whole.mean_D
            whole.scatter_DD = summed(torch.addr(self.scatter_DD, step_D, step_D, alpha=self.count))
        return whole

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance, which is zero for a single vector. Raises `InputError` when there was none."""
        if not self.count:
            raise InputError("features: expected those of at least one picture, got none")
        return Gaussian(self.mean_D.clone(), self.scatter_DD / max(self.count - 1, 1))


def check_finite(name: str, features_ND: Tensor) -> None:
    """Raise `InputError` for NaN, infinity, and numbers whose powers would become infinite on the way to a figure."""
    if not (features_ND.isfinite() & (features_ND.abs() <= LARGEST)).all():  # LARGEST itself is infinite in float16
        largest = "NaN" if features_ND.isnan().any() else f"{float(features_ND.abs().max()):g}"
        raise InputError(f"{name}: expected finite numbers, at most {LARGEST:g} in size, got {largest}")


# d^2 = |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)   (Dowson and Landau)
#
# With S_i = A_i^T A_i the last trace is the sum of the singular values of A_1 A_2^T. The textbook way, roots of the
# eigenvalues of S_1 S_2, turns rounding of 1e-16 in the zeros of a singular covariance into 1e-8 each, and there are
# many of them when pictures are fewer than features.
def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """The squared Fréchet (2-Wasserstein) distance of two Gaussians, at least 0; exact for singular covariances.

    Raises `InputError` when they have different numbers of features, and for what is no Gaussian: numbers that are not
    finite, and like `covariance_root`.
    """
    if len(one.mean) != len(other.mean):
        raise InputError(f"features: expected as many in both sets, got {len(one.mean)} and {len(other.mean)}")
    means = (one.mean - other.mean).square().sum()
    traces = one.covariance.trace() + other.covariance.trace()
    overlap = torch.linalg.svdvals(covariance_root(one.covariance) @ covariance_root(other.covariance).T).sum()
    distance = float(means + traces - 2 * overlap)
    if not math.isfinite(distance):
        raise InputError(f"Fréchet distance: expected finite means, got a distance of {distance:g}")
    return max(0.0, distance)  # rounding may have brought it below


# a_r = (S_p - sum_q<r a_qp a_q) / sqrt(d_p),  p the largest of what is left of the diagonal,  d = diag S - sum a_q^2
def covariance_root(covariance_DD: Tensor) -> Tensor:
    """A (R, D) with A^T A = S, by Cholesky's method with pivots, ended where only rounding is left.

    Not by eigenvectors: LAPACK's solver for them gives up on some matrices with hundreds of equal eigenvalues, and the
    zeros of a singular covariance are such. Raises `InputError` unless S is finite and `semidefinite`.
    """
    if not covariance_DD.isfinite().all():
        raise InputError("covariance: expected finite numbers, got NaN or infinity")
    if not semidefinite(covariance_DD):
        raise InputError("covariance: expected a positive semidefinite matrix, got one that is not")
    left_D = covariance_DD.diagonal().clone()
    least = left_D.max() * len(left_D) * torch.finfo(left_D.dtype).eps
    root_RD = torch.zeros_like(covariance_DD)
    for rank, row_D in enumerate(root_RD):
        p = int(left_D.argmax())
        if left_D[p] <= least:
            return root_RD[:rank]
        torch.addmv(covariance_DD[p], root_RD[:rank].T, root_RD[:rank, p], alpha=-1, out=row_D)
        row_D.div_(left_D[p].sqrt())
        left_D.addcmul_(row_D, row_D, value=-1)
        left_D[p] = 0
    return root_RD


# S + r max|S| I = L L^T  for some L, if and only if no eigenvalue of S is below -r max|S|
def semidefinite(covariance_DD: Tensor) -> bool:
    """Whether no direction of a symmetric finite matrix has a variance below zero, but for rounding to float32."""
    slack = ROUNDING * float(covariance_DD.abs().max())
    if not slack:
        return True
    lifted_DD = covariance_DD + slack * torch.eye(len(covariance_DD), dtype=covariance_DD.dtype)
    return int(torch.linalg.cholesky_ex(lifted_DD).info) == 0
