"""Who tells painted pictures from real ones: a PatchGAN, or heads on a frozen network's features; and DiffAug.

Both give logits, one a patch, positive for "real". No batch norm: what a picture is judged to be must not depend on its
neighbours, nor on how a batch is cut.

Shapes: B pictures, H W pixels, C channels, h w cells of a feature map.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from nextscale.errors import InputError
from nextscale.features import FeatureNetwork
from nextscale.features.perceptual import SIDE

LEAST = 6  # px a side of what a PatchGAN sees


class PatchDiscriminator(nn.Module):
    """(B, 3, H, W) -> (B, 1, h, w): strided 4x4 convolutions (pix2pix), as deep as the pictures are large.

    A patch is 16 px wide for pictures of 32 px, 34 px for 64, 70 px from 128 on. Raises `InputError` for pictures of
    less than `LEAST` px, of which nothing is left after three convolutions.
    """

    def __init__(self, side: int, *, channels: int = 64) -> None:
        if side < LEAST:
            raise InputError(f"discriminator: expected pictures of at least {LEAST} px for patches, got {side} px")
        super().__init__()
        depth = min(max(int(math.log2(side)) - 4, 1), 3)
        widths = [channels * min(2**i, 8) for i in range(depth + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, depth + 1):
            stride = 2 if i < depth else 1
            layers += [nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False)]
            layers += [nn.GroupNorm(32, widths[i]), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return self.layers(images_B3HW)


class Head(nn.Sequential):
    """One feature map (B, C, h, w) -> logits (B, 1, h, w), spectrally normalised."""

    def __init__(self, channels: int, width: int = 128) -> None:
        super().__init__(
            spectral_norm(nn.Conv2d(channels, width, 1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, 1, 1)),
        )


class FeatureDiscriminator(nn.Module):
    """Heads on the maps of a frozen network, each normalised by cell; (B, 3, H, W) -> (B, n) logits of all cells.

    Arguments:
        network: its maps are looked at and its weights never change; it is no part of this module's state. Pictures
            that are smaller than it can make sense of are enlarged, as for the perceptual distance.
    """

    def __init__(self, network: FeatureNetwork) -> None:
        super().__init__()
        self._network = (network,)  # in a tuple, so that its weights are not taken for ours
        self.heads = nn.ModuleList(Head(channels) for channels in network.channels)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        maps = self._network[0].maps(images_B3HW, SIDE)
        logits = [
            head(F.normalize(map_, dim=1) * map_.shape[1] ** 0.5) for head, map_ in zip(self.heads, maps, strict=True)
        ]
        return torch.cat([part.flatten(1) for part in logits], dim=1)


def make(kind: str, side: int, backbone: FeatureNetwork | None, generator: torch.Generator) -> nn.Module:
    """A "patch" or "features" discriminator of pictures of `side` pixels, its weights from `generator` alone."""
    with torch.random.fork_rng(devices=[]):  # layers draw weights as they are made, which are then drawn again
        torch.default_generator.manual_seed(0)  # `torch.manual_seed` would reach accelerators, too
        if kind == "patch":
            discriminator: nn.Module = PatchDiscriminator(side)
        else:
            assert backbone is not None
            discriminator = FeatureDiscriminator(backbone)
    initialize(discriminator, generator)
    return discriminator


@torch.no_grad()
def initialize(discriminator: nn.Module, generator: torch.Generator) -> None:
    """Random weights, normal with standard deviation 0.02 (pix2pix), and biases 0, from `generator` alone."""
    for name, parameter in discriminator.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02, generator=generator)
        elif name.endswith("bias"):
            parameter.zero_()


# -- DiffAug -----------------------------------------------------------------------------------------------------------

DRAWS = (
    10  # random numbers a picture: whether to change colours, to shift, to cut out; three colours, two shifts, a spot
)


def diffaug(images_B3HW: Tensor, draws_BD: Tensor, probability: float) -> Tensor:
    """Colours, a shift by up to an eighth, a hole of half the side: differentiable in the pictures (Zhao et al. 2020).

    Arguments:
        images_B3HW: in [-1, 1].
        draws_BD: (B, 10) in [0, 1).
        probability: of each of the three changes.
    """
    doing_B3, (brightness, saturation, contrast, down, right, top, left) = (
        (draws_BD[:, :3] < probability).to(images_B3HW.dtype),
        draws_BD[:, 3:].T,
    )
    colours, shift, hole = (flag.view(-1, 1, 1, 1) for flag in doing_B3.T)
    x = torch.lerp(images_B3HW, recoloured(images_B3HW, brightness, saturation, contrast), colours)
    x = torch.lerp(x, shifted(x, down, right), shift)
    return x * (1 - hole * spot(x, top, left))


def recoloured(x: Tensor, brightness_B: Tensor, saturation_B: Tensor, contrast_B: Tensor) -> Tensor:
    """Brightness by up to 0.5 either way, saturation by 0 .. 2, contrast by 0.5 .. 1.5."""
    b, s, c = (draw.view(-1, 1, 1, 1).to(x.dtype) for draw in (brightness_B, saturation_B, contrast_B))
    x = x + (b - 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * (2 * s)
    middle = x.mean(dim=(1, 2, 3), keepdim=True)
    return middle + (x - middle) * (c + 0.5)


def shifted(x: Tensor, down_B: Tensor, right_B: Tensor) -> Tensor:
    """Moved by up to an eighth of the side, zeros moving in."""
    batch, _, height, width = x.shape
    rows, columns = (
        torch.arange(side, device=x.device) - (draw[:, None].to(x.device) * (2 * reach + 1)).long() + 2 * reach
        for side, draw, reach in ((height, down_B, height // 8), (width, right_B, width // 8))
    )
    padded = F.pad(x, (width // 8, width // 8, height // 8, height // 8))
    picture = torch.arange(batch, device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def spot(x: Tensor, top_B: Tensor, left_B: Tensor) -> Tensor:
    """(B, 1, H, W): 1 inside a rectangle of half the sides whose middle lies anywhere in the picture."""
    height, width = x.shape[-2:]
    down, across = (
        (torch.arange(side, device=x.device) + 0.5 - (draw[:, None].to(x.device) * side)).abs() < side / 4
        for side, draw in ((height, top_B), (width, left_B))
    )
    return (down[:, None, :, None] & across[:, None, None, :]).to(x.dtype)
