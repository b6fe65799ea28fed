"""A perceptual distance: how differently two pictures look to a feature network.

The distance alone; its weight in a loss is the caller's.
Shapes: B batch, H W pixels, C h w channels and sides of a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.features.network import FeatureNetwork

SIDE = 96  # the smallest at which all orderings of the test hold (64 fails some of JPEG); time grows with its square


class PerceptualDistance(nn.Module):
    """LPIPS (Zhang et al. 2018) on the inner maps of any feature network.

    Arguments:
        network: whose `maps` are compared.
        side: pixels to which smaller pictures are enlarged before the network looks at them.
    """

    def __init__(self, network: FeatureNetwork, *, side: int = SIDE) -> None:
        super().__init__()
        self.network = network
        self.side = side

    def forward(self, painted_B3HW: Tensor, images_B3HW: Tensor) -> Tensor:
        """Two batches of pictures, float in [-1, 1], -> distances (B,) float32. The gradient goes to `painted` only."""
        with torch.no_grad():
            seen = self.network.maps(images_B3HW, self.side)
        pairs = zip(self.network.maps(painted_B3HW, self.side), seen, strict=True)
        return torch.stack([difference(a, b) for a, b in pairs]).mean(dim=0)


# d_l = mean over h, w of |a / |a| - b / |b||^2, lengths taken over the channels
def difference(a_BChw: Tensor, b_BChw: Tensor) -> Tensor:
    """One layer's distance, (B,) float32."""
    apart = F.normalize(a_BChw.float(), dim=1) - F.normalize(b_BChw.float(), dim=1)
    return apart.square().sum(dim=1).mean(dim=(1, 2))
