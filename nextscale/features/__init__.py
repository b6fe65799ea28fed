"""What networks see in pictures: features for metrics, and a perceptual distance for training."""

from __future__ import annotations

from pathlib import Path

import torch

from nextscale.errors import InputError
from nextscale.features import efficientnet
from nextscale.features.network import FeatureNetwork
from nextscale.features.perceptual import PerceptualDistance

__all__ = ["FeatureNetwork", "PerceptualDistance", "load"]


def load(name_or_path: str | Path = "efficientnet-lite0", *, device: str | torch.device = "cpu") -> FeatureNetwork:
    """A frozen network, called by name."""
    if str(name_or_path) != "efficientnet-lite0":
        raise InputError(f"features: expected efficientnet-lite0, got {name_or_path}")
    return efficientnet.load().to(device)
