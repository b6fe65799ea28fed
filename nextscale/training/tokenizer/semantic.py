"""The semantic term: features of the tokenizer are drawn towards what a frozen network sees at the same places.

The features, before they are quantized, go through a learned linear projection: of it alone is asked that it agrees
with the network, by cosine. After the loss of VA-VAE (arXiv:2501.01423) for the latents of a continuous autoencoder,
without its margin and its term about distances. The projection is training's alone, no part of the tokenizer.

Shapes: B pictures, C channels of the features, D of the network's last map, h w cells of the last scale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.config import TokenizerConfig
from nextscale.errors import InputError
from nextscale.features import FeatureNetwork


class Semantic:
    """What the features are compared with, and the projection that they go through.

    Arguments:
        network: frozen, with inner maps; the last of them is looked at.
        config: of the tokenizer.
        numbers: of the projection's weights.

    Raises `InputError` for a network without maps.
    """

    def __init__(self, network: FeatureNetwork, config: TokenizerConfig, numbers: torch.Generator) -> None:
        if not network.channels:
            raise InputError(f"{network.name}: expected a network with inner maps, got one that gives features alone")
        self.network, self.size = network, config.scales.sizes[-1]
        self.side = _side(network, config)
        with torch.device("meta"):
            self.projection = nn.Conv2d(config.code_channels, network.channels[-1], 1).float()
        self.projection.to_empty(device="cpu")
        with torch.no_grad():
            bound = config.code_channels**-0.5
            self.projection.weight.uniform_(-bound, bound, generator=numbers)
            assert self.projection.bias is not None
            self.projection.bias.zero_()

    @torch.no_grad()
    def targets(self, images_B3HW: Tensor) -> Tensor:
        """Pictures, float in [-1, 1] -> the network's last map in the grid of the features, (B, D, h, w) float32."""
        map_BDHW = self.network.maps(images_B3HW, self.side)[-1]
        if map_BDHW.shape[2:] == self.size:
            return map_BDHW
        return F.interpolate(map_BDHW, self.size, mode="bilinear", antialias=True)


@torch.no_grad()
def _side(network: FeatureNetwork, config: TokenizerConfig) -> int:
    """Pixels of the short side at which the network's map has as many cells as the features, if that is not too large:
    smaller pictures are enlarged to it, at most to the side that the network knows."""
    blank_13HW = torch.zeros(1, 3, network.side, network.side, device=network.mean_311.device)
    stride = network.side / network.maps(blank_13HW)[-1].shape[-1]
    wanted = round(stride * min(config.scales.sizes[-1]))
    return min(wanted, max(network.side, config.height, config.width))
