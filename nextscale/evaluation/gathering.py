"""Pictures into features: what all figures of a set are made from, gathered batch by batch and over processes.

The Gaussians do not grow with the number of pictures; of the features themselves a stated number is kept. Shapes:
B pictures of a batch, N pictures whose features are kept, D features, S spatial ones, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nextscale import images
from nextscale.errors import InputError
from nextscale.evaluation.distances import spatial_features
from nextscale.evaluation.statistics import Gaussian, RunningGaussian
from nextscale.features import FeatureNetwork
from nextscale.machine import distributed

KEPT = 50_000  # features: at 2048 numbers each they take 400 MB
CHOICE = 0  # seed of which ones, where there are more


@dataclass(frozen=True, kw_only=True, eq=False)
class Gathered:
    """What a network saw in a set of pictures."""

    gaussian: Gaussian
    """Of all pictures."""
    spatial: Gaussian | None
    """Of `spatial_features` of all pictures; None for a network without inner maps."""
    features: Tensor
    """(N, D) float32, on the CPU: those of the pictures `kept(count)`, in their order."""
    spatial_features: Tensor | None = None
    """Likewise, where they were asked for."""
    count: int
    """Of all pictures."""
    size: tuple[int, int]
    """(height, width) in pixels."""


class Gathering:
    """Takes in this process's pictures, and tells what was seen in those of all processes.

    Arguments:
        network: on the device where pictures are to be looked at.
        total: pictures that all processes will bring together.
        keep: how many features are kept at most.
        keep_spatial: whether as many spatial ones are kept, too, which intervals are made from.
    """

    def __init__(self, network: FeatureNetwork, *, total: int, keep: int = KEPT, keep_spatial: bool = False) -> None:
        dimensions = spatial_dimensions(network)
        self.network, self.total, self.kept_N = network, total, kept(total, keep)
        self.gaussian = RunningGaussian(network.dimensions)
        self.spatial = RunningGaussian(dimensions) if dimensions else None
        self.features_ND = torch.zeros(len(self.kept_N), network.dimensions)
        self.spatial_NS = torch.zeros(len(self.kept_N), dimensions) if keep_spatial and dimensions else None
        self.size: tuple[int, int] | None = None

    @torch.no_grad()
    def update(self, indices: range, images_B3HW: Tensor) -> Tensor:
        """Take in a batch and give its features, (B, D) float32 on the network's device.

        Arguments:
            indices: where the pictures stand among all; every one comes once, in any process and order.
            images_B3HW: float in [-1, 1], of values that 8 bits can hold, on any device.

        Raises `InputError` for pictures of another size than the first.
        """
        height, width = images_B3HW.shape[2:]
        self.size = self.size or (height, width)
        if self.size != (height, width):
            raise InputError(f"expected pictures of {self.size[0]}x{self.size[1]} pixels, got {height}x{width}")
        assert len(indices) == len(images_B3HW)
        images_B3HW = images_B3HW.to(self.network.mean_311.device)
        features_BD, spatial_BS = self._look(images_B3HW)
        first, end = torch.searchsorted(self.kept_N, torch.tensor([indices.start, indices.stop])).tolist()
        own = self.kept_N[first:end] - indices.start
        self.features_ND[first:end] = features_BD.cpu()[own]
        if self.spatial_NS is not None and spatial_BS is not None:
            self.spatial_NS[first:end] = spatial_BS.cpu()[own]
        return features_BD

    def _look(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features of a batch and spatial ones, which the Gaussians have taken in."""
        if self.spatial is None:
            features_BD, spatial_BS = self.network(images_B3HW), None
        else:
            features_BD, map_BCHW = self.network.features_and_map(images_B3HW)
            spatial_BS = spatial_features(map_BCHW)
            self.spatial.update(spatial_BS)
        self.gaussian.update(features_BD)
        return features_BD, spatial_BS

    def gathered(self) -> Gathered:
        """Of all processes, on all of them; every one of them must call this.

        Raises `InputError` without pictures, and for another number or for sizes that differ between processes.
        """
        gaussian = self.gaussian.over_processes()
        if not gaussian.count or gaussian.count != self.total:
            raise InputError(f"expected {max(self.total, 1):,} pictures, got {gaussian.count:,}")
        return Gathered(
            gaussian=gaussian.gaussian(),
            spatial=self.spatial.over_processes().gaussian() if self.spatial is not None else None,
            features=distributed.summed(self.features_ND),  # a row is zero everywhere but where its picture was seen
            spatial_features=distributed.summed(self.spatial_NS) if self.spatial_NS is not None else None,
            count=gaussian.count,
            size=_agreed(self.size),
        )


def gather(
    batches: Iterable[tuple[range, Tensor]],
    network: FeatureNetwork,
    *,
    total: int,
    keep: int = KEPT,
    keep_spatial: bool = False,
) -> Gathered:
    """What `network` sees in batches of pictures, each with where they stand among all; see `Gathering`."""
    gathering = Gathering(network, total=total, keep=keep, keep_spatial=keep_spatial)
    for indices, images_B3HW in batches:
        gathering.update(indices, images_B3HW)
    return gathering.gathered()


def shares(total: int, batch: int) -> Iterator[range]:
    """This process's batches: of W processes every W-th, so that batches are the same for any W.

    Raises `InputError` for a batch below 1.
    """
    if batch < 1:
        raise InputError(f"batch: expected at least 1, got {batch}")
    for start in range(distributed.rank() * batch, total, distributed.world() * batch):
        yield range(start, min(start + batch, total))


def eight_bits(images_B3HW: Tensor) -> Tensor:
    """What is left of a model's pictures in [-1, 1] after they were saved without loss.

    Raises `InputError` for pictures that are not finite, of which black ones would be left.
    """
    if not images_B3HW.isfinite().all():
        raise InputError("expected finite pictures from the model, got NaN or infinity")
    return images.from_uint8(images.to_uint8(images_B3HW))


def kept(total: int, keep: int = KEPT) -> Tensor:
    """Which pictures' features are kept, (N,) int64, rising: all, or else `keep` drawn at random, always the same.

    At random, as pictures may be sorted by class, or the classes go round.
    """
    if total <= keep:
        return torch.arange(total)
    return torch.randperm(total, generator=torch.Generator().manual_seed(CHOICE))[:keep].sort().values


@torch.no_grad()
def spatial_dimensions(network: FeatureNetwork) -> int:
    """How many numbers `spatial_features` makes; 0 for a network without inner maps."""
    if not network.channels:
        return 0
    blank_13HW = torch.zeros(1, 3, network.side, network.side, device=network.mean_311.device)
    return spatial_features(network.features_and_map(blank_13HW)[1]).shape[1]


def _agreed(size: tuple[int, int] | None) -> tuple[int, int]:
    """The size that all processes saw, some of which may have seen no picture. Raises `InputError` for several."""
    sizes = distributed.gathered(torch.tensor([size or (0, 0)])).unique(dim=0).tolist()
    seen = [(height, width) for height, width in sizes if height]
    if len(seen) != 1:
        raise InputError(f"expected pictures of one size, got {' and '.join(f'{h}x{w}' for h, w in seen)}")
    return seen[0]
