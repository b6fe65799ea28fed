"""Whether a model's pictures look like their classes: the class of the nearest training picture, in a feature network.

    python benchmarks/class_accuracy.py runs/mine --data emoji --each 40 --guidance 1.5 3

prints the share of pictures whose nearest neighbour among the training pictures is of their own class: for held-out
pictures, which is what can be hoped for, and for samples of every class under each guidance. A guess by the most
frequent class stands beside them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch
from torch import Tensor

from nextscale import Pipeline, data, features, images
from nextscale.data import Pictures
from nextscale.features import FeatureNetwork

TOGETHER = 64  # pictures


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory of a model")
    parser.add_argument("--data", default="emoji", help="what it was trained on")
    parser.add_argument("--each", type=int, default=40, help="samples of each class")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.5])
    asked = parser.parse_args()
    pipe, network = Pipeline.load(asked.model), features.load()
    config = pipe.tokenizer.config
    found = data.load(asked.data, height=config.height, width=config.width)
    known_ND = seen(network, shown(found.train))
    print(f"{network.name}, nearest of {len(found.train)} training pictures, {len(found.classes)} classes")
    right_N = nearest(known_ND, found.train.labels, seen(network, shown(found.validation))) == found.validation.labels
    print(f"held-out pictures: {right_N.float().mean():.1%} of {len(right_N)}")
    most = torch.bincount(found.train.labels).argmax()
    print(f"always the most frequent class: {(found.validation.labels == most).float().mean():.1%} of them")
    labels = [label for label in range(len(found.classes)) for _ in range(asked.each)]
    for guidance in asked.guidance:
        sampled_ND = seen(network, painted(pipe, [found.classes[label] for label in labels], guidance))
        right_N = nearest(known_ND, found.train.labels, sampled_ND) == torch.tensor(labels)
        by_class = ", ".join(
            f"{name} {share:.0%}"
            for name, share in zip(found.classes, right_N.view(-1, asked.each).float().mean(dim=1), strict=True)
        )
        print(f"samples, guidance {guidance:g}: {right_N.float().mean():.1%} of {len(labels)} ({by_class})")


def shown(split: Pictures) -> Iterable[Tensor]:
    """All pictures, centred, in batches."""
    for start in range(0, len(split), TOGETHER):
        yield split.batch(range(start, min(start + TOGETHER, len(split))))[0]


def painted(pipe: Pipeline, labels: list[str], guidance: float) -> Iterable[Tensor]:
    """One picture of each label, its seed its place, in 8 bits."""
    for start in range(0, len(labels), TOGETHER):
        some = labels[start : start + TOGETHER]
        made = pipe.generate(some, range(start, start + len(some)), guidance=guidance).images
        yield images.from_uint8(images.to_uint8(images.from_unit(made)))


@torch.no_grad()
def seen(network: FeatureNetwork, batches: Iterable[Tensor]) -> Tensor:
    """(N, D) features."""
    return torch.cat([network(batch) for batch in batches])


def nearest(known_ND: Tensor, labels_N: Tensor, asked_MD: Tensor) -> Tensor:
    """(M,) int64: the label of the nearest one."""
    return labels_N[torch.cdist(asked_MD, known_ND).argmin(dim=1)]


if __name__ == "__main__":
    main()
