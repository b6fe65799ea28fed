"""A perceptual distance: how differently two pictures look to a feature network.

The distance alone; its weight in a loss is the caller's. Shapes: B batch, H W pixels, C h w channels and sides of a
map.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.checks import checked
from nextscale.errors import InputError
from nextscale.features import weights
from nextscale.features.network import FeatureNetwork
from nextscale.files.checkpoint import fingerprint

SIDE = 96  # all orderings in the tests hold from here on; time grows with its square


# d = sum over layers l of  mean over h, w of  sum over c of  w_lc (a_lc / |a_l| - b_lc / |b_l|)^2
class PerceptualDistance(nn.Module):
    """LPIPS (Zhang et al. 2018, equation 1) on the inner maps of any feature network.

    Arguments:
        network: whose `maps` are compared.
        heads: w, one (C,) for each map, from `read_heads`. Without them all channels weigh the same, and d is a mean
            over layers.
        side: pixels a side to which smaller pictures are enlarged before the network looks at them; None takes them as
            they are, as the published LPIPS does.

    Raises `InputError` when the heads are not this network's, or it has no maps.
    """

    @checked
    def __init__(
        self, network: FeatureNetwork, *, heads: Sequence[Tensor] | None = None, side: int | None = SIDE
    ) -> None:
        super().__init__()
        if not network.channels:
            raise InputError(f"{network.name}: expected a network with inner maps, got one that gives features alone")
        self.learned = bool(heads)
        heads = heads or [torch.full((channels,), 1 / len(network.channels)) for channels in network.channels]
        lengths = tuple(len(head) for head in heads)
        if lengths != network.channels:
            raise InputError(
                f"heads: expected {network.channels} weights for the maps of {network.name}, got {lengths}"
            )
        self.network = network
        self.side = side
        device = next(network.parameters()).device
        for layer, head in enumerate(heads):
            self.register_buffer(f"head{layer}_C11", head.to(device).view(-1, 1, 1), persistent=False)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the network's weights, the heads and the side."""
        heads = {
            f"{name} {self.network.fingerprint} {self.side}": head for name, head in self.named_buffers(recurse=False)
        }
        return fingerprint(heads)

    def forward(self, painted_B3HW: Tensor, images_B3HW: Tensor) -> Tensor:
        """Two batches of pictures, float in [-1, 1], -> distances (B,) float32. The gradient goes to `painted` only."""
        with torch.no_grad():
            seen = self.network.maps(images_B3HW, self.side)
        layers = zip(self.network.maps(painted_B3HW, self.side), seen, self.buffers(recurse=False), strict=True)
        return torch.stack([difference(a, b, head) for a, b, head in layers]).sum(dim=0)


def difference(a_BChw: Tensor, b_BChw: Tensor, head_C11: Tensor) -> Tensor:
    """One layer's part of the distance, (B,)."""
    apart_BChw = F.normalize(a_BChw, dim=1) - F.normalize(b_BChw, dim=1)
    return (head_C11 * apart_BChw.square()).sum(dim=1).mean(dim=(1, 2))


@checked
def read_heads(path: str | Path) -> list[Tensor]:
    """The linear heads of LPIPS, (C,) each, from the file with `lin0.model.1.weight`, `lin1.model.1.weight`, ….

    Raises `InputError` for a file that is missing, damaged or another.
    """
    tensors = weights.read(Path(path))
    heads = [tensors.get(f"lin{layer}.model.1.weight") for layer in range(len(tensors))]
    found = [head.float().flatten() for head in heads if head is not None]
    if not found or len(found) < len(tensors):
        raise InputError(f"{path}: expected the heads lin0.model.1.weight, lin1.model.1.weight, … of LPIPS alone")
    return found
