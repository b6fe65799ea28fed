"""What `test_gathering` starts in two processes, with a folder to work in; an error where a law is broken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from conftest import Glance
from torch import Tensor

from nextscale import images
from nextscale.errors import InputError
from nextscale.evaluation import reference, samples
from nextscale.evaluation.gathering import Gathered, Gathering, gather, shares
from nextscale.evaluation.reference import Reference, ReferenceFeatures
from nextscale.machine import distributed

CPU, NETWORK = torch.device("cpu"), Glance()


def main(folder: Path) -> None:
    """All laws; outside of the group there is one process, which tells what is right."""
    alone = {count: gathered(count) for count in (3, 37)}
    with distributed.joined(CPU):
        assert distributed.world() == 2
        for count, right in alone.items():
            check(gathered(count), right)
        sizes_differ()
        pictures_are_missing()
        stored = of_samples(folder / "samples.npz").features(NETWORK, batch=4, cache=folder / "two")
        half_a_cache(folder)
        again = of_samples(folder / "samples.npz").features(NETWORK, batch=4, cache=folder / "two")
    check(stored, of_samples(folder / "samples.npz").features(NETWORK, batch=4, cache=folder / "one"))
    check(again, stored)


def pictures(count: int) -> Tensor:
    """(N, 3, 8, 8) in [-1, 1]."""
    levels = torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(count))
    return images.from_uint8(levels.to(torch.uint8))


def gathered(count: int) -> Gathered:
    """Five at a time: of three pictures the second process sees none."""
    batches = ((indices, pictures(count)[indices.start : indices.stop]) for indices in shares(count, 5))
    return gather(batches, NETWORK, total=count, keep=20)


def check(both: Gathered | ReferenceFeatures, right: Gathered | ReferenceFeatures) -> None:
    """Features are the same to the bit, since batches are; sums to rounding."""
    assert (both.count, both.size) == (right.count, right.size)
    assert both.features is not None
    assert right.features is not None
    assert torch.equal(both.features, right.features)
    assert both.spatial is not None
    assert right.spatial is not None
    for ours, theirs in zip((*both.gaussian, *both.spatial), (*right.gaussian, *right.spatial), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def sizes_differ() -> None:
    gathering, me = Gathering(NETWORK, total=2), distributed.rank()
    gathering.update(range(me, me + 1), torch.zeros(1, 3, 8, 8 + me))
    with pytest.raises(InputError, match="pictures of one size, got 8x8 and 8x9"):
        gathering.gathered()


def pictures_are_missing() -> None:
    me = distributed.rank()
    with pytest.raises(InputError, match="expected 9 pictures, got 2"):
        gather([(range(me, me + 1), torch.zeros(1, 3, 8, 8))], NETWORK, total=9)


def of_samples(path: Path) -> Reference:
    """Written by the first process."""
    if distributed.is_first() and not path.exists():
        samples.write(path, [pictures(23)], count=23)
    distributed.barrier()
    return reference.of_file(path)


def half_a_cache(folder: Path) -> None:
    """Where only one of two finds something, both look: one that did not would leave the other waiting."""
    own = folder / ("two", "elsewhere")[distributed.rank()]
    of_samples(folder / "samples.npz").features(NETWORK, batch=4, cache=own)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
