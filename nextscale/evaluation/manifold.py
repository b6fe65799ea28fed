"""Precision, recall, density and coverage: whose features lie within reach of whose nearest neighbours.

Distances are computed tile by tile, so that memory does not grow with the product of the two sets, and in float64 about
the mean of the others, with a slack for rounding: what is the same picture is at distance zero, and within any reach.
Shapes: N generated, M others (the reference), D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from nextscale.errors import InputError
from nextscale.evaluation.distances import check_pair

SLACK = 1e-12  # of |x|^2 + |y|^2: float32 features that differ by rounding are the same, float64 sums of 2048 are exact


class Manifold(NamedTuple):
    """How much of either set lies in the other's neighbourhoods."""

    precision: float
    """Share of the generated within reach of one of the others."""
    recall: float
    """Share of the others within reach of one of the generated."""
    density: float
    """Of how many of the others a generated one is within reach, over k; its expectation is 1 for the same set."""
    coverage: float
    """Share of the others that have a generated one within their reach."""


class Members(NamedTuple):
    """The same for every picture: a `Manifold` is the means. All float64."""

    precise: Tensor
    """(N,), 1 or 0."""
    recalled: Tensor
    """(M,), 1 or 0."""
    dense: Tensor
    """(N,), multiples of 1 / k."""
    covered: Tensor
    """(M,), 1 or 0."""


def manifold(features_ND: Tensor, others_MD: Tensor, *, k: int = 3, block: int = 1024) -> Manifold:
    """Of generated features and of the others, the reference: see `members`, of which these are the means."""
    return Manifold(*(float(values.mean()) for values in members(features_ND, others_MD, k=k, block=block)))


# r(y) = |y - its k-th nearest neighbour in its own set|
# precision = mean_x [ some y: |x - y| <= r(y) ]     recall   = mean_y [ some x: |x - y| <= r(x) ]   (Kynkäänniemi 2019)
# density   = mean_x sum_y [ |x - y| <= r(y) ] / k   coverage = mean_y [ some x: |x - y| <= r(y) ]   (Naeem 2020)
def members(features_ND: Tensor, others_MD: Tensor, *, k: int = 3, block: int = 1024) -> Members:
    """Whether each of `features_ND` is where `others_MD` are, and the other way round.

    Arguments:
        features_ND, others_MD: floating point, on one device.
        k: neighbours; a vector is no neighbour of itself, but an equal one is.
        block: vectors from either set that are compared at a time; the figures do not depend on it.

    The cost is 2 D (N^2 + M^2 + N M) operations in float64, the memory 8 block (block + 2 D) bytes beside the features.
    Raises `InputError` unless both sets have more than k vectors of the same dimension.
    """
    if k < 1 or block < 1:
        raise InputError(f"manifold: expected at least 1 neighbour and a block of at least 1, got {k} and {block}")
    check_pair(features_ND, others_MD, least=k + 1)
    centre_D = others_MD.mean(dim=0, dtype=torch.float64)
    reach_N = reaches(features_ND, centre_D, k=k, block=block)
    reach_M = reaches(others_MD, centre_D, k=k, block=block)
    counts_N, counts_M = torch.zeros_like(reach_N), torch.zeros_like(reach_M)  # of the others' balls each is in, has
    recalled_M = torch.zeros_like(reach_M)
    for rows, columns, squares, slack in tiles(features_ND, others_MD, centre_D, block=block):
        in_others = squares <= reach_M[columns] + slack
        counts_N[rows] += in_others.sum(dim=1)
        counts_M[columns] += in_others.sum(dim=0)
        recalled_M[columns] += (squares <= reach_N[rows, None] + slack).sum(dim=0)
    return Members((counts_N > 0).double(), (recalled_M > 0).double(), counts_N / k, (counts_M > 0).double())


def reaches(rows_ND: Tensor, centre_D: Tensor, *, k: int, block: int) -> Tensor:
    """The squared distance of each to its k-th nearest neighbour among the others of its set: (N,) float64."""
    nearest_Nk = torch.full((len(rows_ND), k), torch.inf, dtype=torch.float64, device=rows_ND.device)
    for rows, columns, squares, _ in tiles(rows_ND, rows_ND, centre_D, block=block):
        if rows == columns:
            squares.fill_diagonal_(torch.inf)
        candidates = torch.cat([nearest_Nk[rows], squares], dim=1)
        nearest_Nk[rows] = candidates.topk(k, dim=1, largest=False).values
    return nearest_Nk.amax(dim=1)


# |x - y|^2 = |x|^2 + |y|^2 - 2 x . y
def tiles(
    rows_ND: Tensor, columns_MD: Tensor, centre_D: Tensor, *, block: int
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Squared distances of all pairs, a tile at a time: which rows, which columns, distances, their rounding."""
    for top in range(0, len(rows_ND), block):
        rows = slice(top, min(top + block, len(rows_ND)))
        x_nD = rows_ND[rows].double() - centre_D
        for left in range(0, len(columns_MD), block):
            columns = slice(left, min(left + block, len(columns_MD)))
            y_mD = columns_MD[columns].double() - centre_D
            sizes_nm = x_nD.square().sum(dim=1)[:, None] + y_mD.square().sum(dim=1)
            yield rows, columns, torch.addmm(sizes_nm, x_nD, y_mD.T, alpha=-2).clamp_(min=0), sizes_nm * SLACK
