"""Does the Fréchet distance grow with damage? Embedded pictures against noisy, blurred and class-poor ones, as tables.

    python benchmarks/damage.py [--pictures 3600] [--side 64] [--look 224] [--features efficientnet-lite0]

Half of the pictures, of all classes, is the reference; the other half is damaged, rounded to 8 bits and seen through
the same network. Missing classes are replaced by pictures of those that are left, drawn again, so that the mixture
changes and not the count.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import data, features, images
from nextscale.evaluation.statistics import Gaussian, RunningGaussian, frechet_distance
from nextscale.features import FeatureNetwork

NOISE = (0.02, 0.05, 0.1, 0.2)  # deviation, of pixels in [-1, 1]
BLUR = (0.5, 1.0, 2.0, 4.0)  # deviation of the Gaussian, in pixels
ORDERS = 3  # in which classes go missing; distances are means over them

See = Callable[[Tensor], Tensor]  # pictures (N, 3, H, W) -> features (N, D)


def noisy(pictures: Tensor, deviation: float, *, seed: int = 0) -> Tensor:
    """Normal noise of its own in every pixel and colour."""
    return pictures + deviation * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed))


def blurred(pictures: Tensor, deviation: float) -> Tensor:
    """Convolved with a Gaussian, edges repeated."""
    reach = math.ceil(3 * deviation)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    padded = F.pad(pictures, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, weights, groups=3), weights.transpose(2, 3), groups=3)


def halves(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which pictures, of all that are labelled: twice count / 2, of all classes as they come, drawn at random."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:count]
    return order[: count // 2], order[count // 2 :]


def without(labels: Tensor, missing: Iterable[int], *, seed: int) -> Tensor:
    """As many rows as there are labels, of the classes that are not missing: these, and others drawn again."""
    left = torch.tensor([label not in set(missing) for label in labels.tolist()]).nonzero().flatten()
    again = torch.randint(len(left), (len(labels) - len(left),), generator=torch.Generator().manual_seed(seed))
    return torch.cat([left, left[again]])


def damage_distances(
    pictures: Tensor, reference: Gaussian, see: See, damage: Callable[[Tensor, float], Tensor], amounts: Iterable[float]
) -> list[float]:
    """The distance for each amount, after rounding to 8 bits."""
    damaged = (images.from_uint8(images.to_uint8(damage(pictures, amount))) for amount in amounts)
    return [frechet_distance(gaussian(see(each)), reference) for each in damaged]


def missing_distances(features_ND: Tensor, labels_N: Tensor, reference: Gaussian, *, order: int) -> list[float]:
    """The distance with 0, 1 ... all but one of the classes missing, which go in a random order."""
    classes = labels_N.unique()
    gone = classes[torch.randperm(len(classes), generator=torch.Generator().manual_seed(order))].tolist()
    rows = (without(labels_N, gone[:count], seed=order) for count in range(len(classes)))
    return [frechet_distance(gaussian(features_ND[chosen]), reference) for chosen in rows]


def seen_by(network: FeatureNetwork, *, batch: int = 50) -> See:
    """Looking at so many pictures at a time."""

    @torch.no_grad()
    def see(pictures: Tensor) -> Tensor:
        return torch.cat([network(part) for part in pictures.split(batch)])

    return see


def gaussian(features_ND: Tensor) -> Gaussian:
    gathered = RunningGaussian(features_ND.shape[1])
    gathered.update(features_ND)
    return gathered.gaussian()


def row(name: str, cells: Iterable[object]) -> str:
    return f"| {' | '.join([name, *map(str, cells)])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=3600, help="used in all (default: 3600)")
    parser.add_argument("--side", type=int, default=64, help="pixels a side of the pictures (default: 64)")
    parser.add_argument("--features", default=features.PACKAGED, help="network (default: the packaged one)")
    parser.add_argument("--look", type=int, help="pixels a side at which the network looks (default: its own)")
    asked = parser.parse_args()
    split, network = data.load("emoji", height=asked.side, width=asked.side).train, features.load(asked.features)
    ours, theirs = halves(split.labels, min(asked.pictures, len(split)))
    network.side = asked.look or network.side
    see = seen_by(network)
    reference, pictures = gaussian(see(split.batch(theirs)[0])), split.batch(ours)[0]
    clean = see(pictures)
    start = frechet_distance(gaussian(clean), reference)
    looked = f"of {asked.side} px, looked at in {network.side}"
    print(f"FD-{network.name}, {len(ours)} pictures {looked}, against {len(theirs)} others\n", flush=True)
    for name, damage, amounts in (("noise", noisy, NOISE), ("blur", blurred, BLUR)):
        found = [start, *damage_distances(pictures, reference, see, damage, amounts)]
        print(row(name, (0, *amounts)), row("FD", (f"{distance:.1f}" for distance in found)), "", sep="\n", flush=True)
    orders = [missing_distances(clean, split.labels[ours], reference, order=order) for order in range(ORDERS)]
    means = torch.tensor(orders).mean(dim=0).tolist()
    print(row("missing classes", range(len(means))), row("FD", (f"{mean:.1f}" for mean in means)), sep="\n")
    print("least rise, in any order:", f"{min(min(torch.tensor(order).diff().tolist()) for order in orders):.1f}")


if __name__ == "__main__":
    main()
