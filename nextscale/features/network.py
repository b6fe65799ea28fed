"""What every feature network has: frozen float32 weights with a name and a fingerprint, features and inner maps.

The one room besides `images` that resizes pictures, because a network sees them at its own size. Knows no metric and no
loss. Shapes: B batch, H W pixels, D features, C h w channels and sides of an inner map.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import InputError
from nextscale.files import checkpoint
from nextscale.machine.precision import as_held


class FeatureNetwork(nn.Module):
    """A frozen image network. Subclasses give the architecture, `embed` and `activations`.

    Arguments:
        mean: of the pixels that the weights were trained on, red, green, blue, in [0, 1].
        deviation: likewise; pictures are shifted and scaled by the two before the first layer.
    """

    name: str
    """What stands beside every figure made with it."""
    fingerprint: str
    """16 hex digits of the weights; set by `assign`."""
    dimensions: int
    """D, the features of one picture."""
    channels: tuple[int, ...]
    """C of each of the maps."""
    side: int = 224
    """Pixels a side that `forward` resizes pictures to."""
    resize: str = "bicubic, antialiased"
    """How, in words for a card: what `pixels` does."""
    mean_311: Tensor
    deviation_311: Tensor

    def __init__(
        self,
        *,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        deviation: tuple[float, float, float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.register_buffer("mean_311", (torch.tensor(mean) * 2 - 1).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation_311", torch.tensor(deviation).mul(2).view(3, 1, 1), persistent=False)

    # -- doors ---------------------------------------------------------------------------------------------------------

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Images of any size, float in [-1, 1], -> features (B, D), computed in float32 whatever autocast says."""
        check_images(images_B3HW)
        with as_held(images_B3HW.device):
            return self.embed(self.pixels(images_B3HW.float(), self.side, self.side))

    def features_and_map(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`'s features, and the last inner map (B, C, h, w) on the way to them, in one walk where it can be."""
        check_images(images_B3HW)
        with as_held(images_B3HW.device):
            return self.embed_and_tap(self.pixels(images_B3HW.float(), self.side, self.side))

    def maps(self, images_B3HW: Tensor, side: int | None = None) -> list[Tensor]:
        """Images, float in [-1, 1], -> inner activations (B, C, h, w) float32, fine to coarse; differentiable.

        `side`: pictures whose short side is shorter are first enlarged to it; None takes all as they are.
        """
        check_images(images_B3HW)
        height, width = images_B3HW.shape[2:]
        larger = max(1.0, (side or 0) / min(height, width))
        with as_held(images_B3HW.device):  # bfloat16 was no faster on a CPU that has it
            return self.activations(self.pixels(images_B3HW.float(), round(height * larger), round(width * larger)))

    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the weights, names as in the state dict, and freeze them. Raises `InputError` when they do not fit."""
        checkpoint.assign(self, lambda: tensors)
        self.fingerprint = checkpoint.fingerprint(self.state_dict())
        self.requires_grad_(False).eval()
        for weight in self.parameters():
            if weight.dim() == 4:  # the layout that convolutions on a CPU are quickest in
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    # -- the architecture ----------------------------------------------------------------------------------------------

    def pixels(self, images_B3HW: Tensor, height: int, width: int) -> Tensor:
        """Images, float32 in [-1, 1], -> what the first layer sees: of that size, shifted and scaled."""
        return (resized(images_B3HW, height, width) - self.mean_311) / self.deviation_311

    def embed(self, pixels_B3HW: Tensor) -> Tensor:
        """Normalised pixels, `side` x `side`, -> (B, D)."""
        raise NotImplementedError

    def activations(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Normalised pixels of any size -> inner activations, fine to coarse."""
        raise NotImplementedError

    def embed_and_tap(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """What `embed` gives, and the last of `activations`."""
        return self.embed(pixels_B3HW), self.activations(pixels_B3HW)[-1]


def resized(images_B3HW: Tensor, height: int, width: int) -> Tensor:
    """Bicubic, with the filter widened when shrinking; differentiable."""
    if images_B3HW.shape[2:] == (height, width):
        return images_B3HW
    return F.interpolate(images_B3HW, (height, width), mode="bicubic", antialias=True)


def check_images(images_B3HW: Tensor) -> None:
    """Raise `InputError` unless these are pictures (B, 3, H, W), floating point, as a tensor."""
    if not isinstance(images_B3HW, Tensor):
        raise InputError(f"images: expected a tensor, got {type(images_B3HW).__name__}")
    if images_B3HW.dim() != 4 or images_B3HW.shape[1] != 3 or not images_B3HW.is_floating_point():
        got = f"{tuple(images_B3HW.shape)} {str(images_B3HW.dtype).removeprefix('torch.')}"
        raise InputError(f"images: expected shape (batch, 3, height, width), float in [-1, 1], got {got}")
