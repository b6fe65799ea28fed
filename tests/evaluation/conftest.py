"""Eyes that see in microseconds, and pictures whose figures are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nextscale.data.pictures import Split, from_memory
from nextscale.features import FeatureNetwork


class Glance(FeatureNetwork):
    """One random convolution: seven features, one inner map."""

    name = "Glance"
    fingerprint = "0123456789abcdef"
    dimensions = 7
    channels = (7,)
    side = 8

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, self.dimensions, 3, stride=2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(8))
        self.requires_grad_(False).eval()

    def embed(self, pixels_B3HW: Tensor) -> Tensor:
        return self.convolution(pixels_B3HW).relu().mean(dim=(2, 3))

    def activations(self, pixels_B3HW: Tensor) -> list[Tensor]:
        return [self.convolution(pixels_B3HW)]


@pytest.fixture(scope="session")
def glance() -> FeatureNetwork:
    return Glance()


@pytest.fixture(scope="session")
def make_split() -> Callable[[Tensor], Split]:
    """`make_split(levels)`: a split of pictures (N, 3, H, W) uint8."""

    def make(levels_N3HW: Tensor) -> Split:
        count, _, height, width = levels_N3HW.shape
        return Split(
            classes=("all",),
            labels=torch.zeros(count, dtype=torch.int64),
            names=tuple(map(str, range(count))),
            fingerprint="fedcba9876543210",
            fetch=from_memory(list(levels_N3HW)),
            height=height,
            width=width,
        )

    return make


@pytest.fixture(scope="session")
def levels() -> Tensor:
    """24 smooth pictures of 8x8 pixels, (24, 3, 8, 8) uint8."""
    coarse = torch.rand(24, 3, 3, 3, generator=torch.Generator().manual_seed(6))
    return (nn.functional.interpolate(coarse, size=8, mode="bilinear") * 255).round().to(torch.uint8)


@pytest.fixture(scope="session")
def split(make_split: Callable[[Tensor], Split], levels: Tensor) -> Split:
    """The 24 pictures."""
    return make_split(levels)
