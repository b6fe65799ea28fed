"""VGG16, the network of LPIPS and of VQGAN's perceptual loss, for those who have its weights.

Its classifier is not built: five maps and their last averages are all that is compared. Shapes: B batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from nextscale.features.network import FeatureNetwork

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions; between stages a 2x2 maximum


class VGG16(FeatureNetwork):
    """Maps: the last ReLU of each of the five stages. Features: the averages of the last."""

    name = "VGG16"
    dimensions = 512
    channels = tuple(channels for channels, _ in STAGES)

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            self.features = nn.Sequential(*_layers())  # torchvision's name and numbers

    def embed(self, pixels_B3HW: Tensor) -> Tensor:
        return self.embed_and_tap(pixels_B3HW)[0]

    def embed_and_tap(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        *_, last = self.activations(pixels_B3HW)
        return last.mean(dim=(2, 3)), last

    def activations(self, pixels_B3HW: Tensor) -> list[Tensor]:
        h, maps = pixels_B3HW, []
        for layer in self.features:
            maps += [h] if isinstance(layer, nn.MaxPool2d) else []
            h = layer(h)
        return [*maps, h]


def _layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    widths = [3] + [channels for channels, count in STAGES for _ in range(count)]
    ends = {sum(count for _, count in STAGES[:stage]) for stage in range(1, len(STAGES))}
    for index, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.MaxPool2d(2)] if index in ends else []
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return layers


def fits(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these look like torchvision's VGG16."""
    return "features.0.weight" in tensors


def build(tensors: Mapping[str, Tensor]) -> VGG16:
    """The network from torchvision's state dict, with or without its classifier. Raises `InputError` for another."""
    network = VGG16()
    network.assign({name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")})
    return network
