"""What networks see in pictures: features for judging them, inner maps, and a perceptual distance for training.

One network comes with an installed package; VGG16 and DINO's ViT-S are there for those who have their weights.
"""

from __future__ import annotations

from pathlib import Path

import torch

from nextscale import hub
from nextscale.errors import InputError
from nextscale.features import dino, efficientnet, vgg, weights
from nextscale.features.network import FeatureNetwork
from nextscale.features.perceptual import PerceptualDistance, read_heads

__all__ = ["FeatureNetwork", "PerceptualDistance", "load", "read_heads"]

PACKAGED = "efficientnet-lite0"


def load(name_or_path: str | Path = PACKAGED, *, device: str | torch.device = "cpu") -> FeatureNetwork:
    """A frozen network: the packaged one, or whichever a file or a hub repository (`owner/name`) turns out to hold.

    A file is .safetensors or a pickle of tensors: torchvision's VGG16, or DINO's ViT-S with patches of any size (by
    DINO's names, or by those of the transformers library, as in facebook/dino-vits16).

    Raises `InputError` for another name, and for a file that is missing, damaged or of another network.
    """
    if str(name_or_path) == PACKAGED:
        return efficientnet.load().to(device)
    path = _file(name_or_path)
    tensors = weights.read(path)
    for room in (vgg, dino):
        if room.fits(tensors):
            return room.build(tensors).to(device)
    raise InputError(f"{path}: expected the weights of VGG16 or of DINO's ViT-S, got those of another network")


def _file(name_or_path: str | Path) -> Path:
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    if hub.is_name(name_or_path):
        return hub.network(str(name_or_path))
    raise InputError(
        f"features: expected {PACKAGED}, a file with the weights of VGG16 or of DINO's ViT-S, "
        f"or a hub repository that holds one, got {name_or_path}"
    )
