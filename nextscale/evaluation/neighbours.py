"""Which training pictures a picture is nearest to, and whether that is nearer than pictures never trained on are.

A small distance alone says little: some kinds of pictures are all alike. Beside it stand the distances of held-out
pictures of the same data to their nearest training pictures. Knows features, neither models nor files.

Shapes: B pictures, V views of each, N training pictures, M held-out ones, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 4096  # training pictures at a time


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest training pictures of each of B pictures."""

    indices: Tensor
    """(B, k) int64, the nearest first."""
    distances: Tensor
    """(B, k) float64, between features."""


def nearest(views_BVD: Tensor, training_ND: Tensor, *, k: int = 1) -> Neighbours:
    """The k nearest, or as many as there are. Equal distances are in the order of the training pictures.

    Arguments:
        views_BVD: V views of each picture, such as other crops, of which the nearer counts; (B, D) for one.
    """
    views_BVD = views_BVD[:, None] if views_BVD.ndim == 2 else views_BVD
    exact = "donot_use_mm_for_euclid_dist"  # a copy is at distance 0
    flat_RD = views_BVD.flatten(0, 1).double()
    blocks = (torch.cdist(flat_RD, part.double(), compute_mode=exact) for part in training_ND.split(BLOCK))
    distances_BN = torch.cat([*blocks], dim=1).unflatten(0, views_BVD.shape[:2]).amin(dim=1)
    distances, indices = distances_BN.sort(dim=1, stable=True)
    return Neighbours(indices[:, :k], distances[:, :k])


def share_below(value: float, others_M: Tensor) -> float:
    """The share of others that are smaller, those that are equal half: where a value stands among them."""
    return float((others_M < value).double().mean() + (others_M == value).double().mean() / 2)
