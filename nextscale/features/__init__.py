"""What networks see in pictures: features for judging them, inner maps, and a perceptual distance for training.

One network comes with an installed package; Inception of 2015, which FID is defined with, can be downloaded; VGG16 and
DINO's ViT-S are there for those who have their weights, and any other module through `of_module`.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from nextscale import hub
from nextscale.checks import checked
from nextscale.errors import InputError
from nextscale.features import custom, dino, efficientnet, inception, vgg, weights
from nextscale.features.custom import of_module
from nextscale.features.network import FeatureNetwork
from nextscale.features.perceptual import PerceptualDistance, read_heads

__all__ = ["FeatureNetwork", "PerceptualDistance", "load", "of_module", "read_heads"]

PACKAGED = "efficientnet-lite0"
DOWNLOADED = "inception-2015"
KNOWN = "Inception of 2015, of VGG16 or of DINO's ViT-S"


@checked
def load(name_or_path: str | Path = PACKAGED, *, device: str | torch.device = "cpu") -> FeatureNetwork:
    """A frozen network: the packaged one, or whichever a file or a hub repository (`owner/name`) turns out to hold.

    "inception-2015" is downloaded once, 95 MB. A file is .safetensors or a pickle of tensors: the Inception of
    torch-fidelity and pytorch-fid, torchvision's VGG16, or DINO's ViT-S with patches of any size (by DINO's names, or
    by those of the transformers library, as in facebook/dino-vits16). "package.module:function" is imported, and runs:
    the function, without arguments, gives a network, such as `of_module` makes.

    Raises `InputError` for another name, and for a file that is missing, damaged or of another network.
    """
    if str(name_or_path) == PACKAGED:
        return efficientnet.load().to(device)
    if re.fullmatch(r"\w+(\.\w+)*:\w+", str(name_or_path)) and not Path(name_or_path).exists():
        return custom.imported(str(name_or_path)).to(device)
    path = _file(name_or_path)
    tensors = weights.read(path)
    for room in (inception, vgg, dino):
        if room.fits(tensors):
            return room.build(tensors).to(device)
    raise InputError(f"{path}: expected the weights of {KNOWN}, got those of another network")


def _file(name_or_path: str | Path) -> Path:
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    if str(name_or_path) == DOWNLOADED:
        return inception.fetched()
    if hub.is_name(name_or_path):
        return hub.network(str(name_or_path))
    raise InputError(
        f"features: expected {PACKAGED}, {DOWNLOADED}, a file with the weights of {KNOWN}, a hub repository that holds "
        f"one, or module:function, got {name_or_path}"
    )
