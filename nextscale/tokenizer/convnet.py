"""VQGAN's convolutional encoder and decoder: pixels to a latent grid and back, 2 ** (levels - 1) pixels a cell.

Knows neither codes nor scales. Shapes: B batch, C channels, H W rows and columns (of pixels or cells).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.config import GROUPS, TokenizerConfig


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


def silu(x: Tensor) -> Tensor:
    """SiLU, in place where no gradient will ask for x: fresh memory for large maps costs more than the function."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 shortcut where the width changes."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        h = self.conv2(silu(self.norm2(h)))
        return h.add_(self.shortcut(x))


class SelfAttention(nn.Module):
    """Every cell attends to every cell, one head, scale 1 / sqrt(channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(1, 2).unflatten(2, x.shape[2:]).contiguous())


class Downsample(nn.Module):
    """Half the resolution; padded on the right and at the bottom only, as VQGAN does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution, nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, attention after each where asked, then the change of resolution."""

    def __init__(
        self, channels_in: int, channels_out: int, blocks: int, *, attention: bool, resample: type[nn.Module] | None
    ) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.blocks = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList(
            SelfAttention(channels_out) if attention else nn.Identity() for _ in range(blocks)
        )
        self.resample = resample(channels_out) if resample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(x))
        return self.resample(x)


def middle(channels: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(channels, channels), SelfAttention(channels), ResidualBlock(channels, channels))


class Encoder(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (B, C, H / stride, W / stride)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        last = len(widths) - 1
        self.stem = nn.Conv2d(3, config.channels, 3, padding=1)
        self.levels = nn.Sequential(
            *(
                Level(
                    before,
                    width,
                    config.residual_blocks,
                    attention=i == last,
                    resample=Downsample if i < last else None,
                )
                for i, (before, width) in enumerate(zip([config.channels, *widths], widths, strict=False))
            )
        )
        self.middle = middle(widths[-1])
        self.norm = norm(widths[-1])
        self.head = nn.Conv2d(widths[-1], config.code_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        h = self.middle(self.levels(self.stem(images)))
        return self.head(silu(self.norm(h)))


class Decoder(nn.Module):
    """(B, C, H / stride, W / stride) -> (B, 3, H, W), unclamped."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in reversed(config.multipliers)]
        last = len(widths) - 1
        self.stem = nn.Conv2d(config.code_channels, widths[0], 3, padding=1)
        self.middle = middle(widths[0])
        self.levels = nn.Sequential(
            *(
                Level(
                    before, width, config.residual_blocks + 1, attention=i == 0, resample=Upsample if i < last else None
                )
                for i, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False))
            )
        )
        self.norm = norm(widths[-1])
        self.head = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        h = self.levels(self.middle(self.stem(latent)))
        return self.head(silu(self.norm(h)))
