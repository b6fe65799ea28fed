"""What `test_stages` starts in two processes: runs of the toy rivals, in copies and in shares, each cut short once.

`python two_rivals.py OUT`, under torchrun, leaves the run directories OUT/ORDER in KIND.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from training import toy
from training.rivals.test_stages import RIVALS

from nextscale.machine import distributed
from nextscale.training.loop import Length, Rhythm, train


def main(out: Path) -> None:
    """Every run in a directory of its own."""
    with distributed.joined(torch.device("cpu")):
        for order in RIVALS:
            for kind, sharded in (("copies", False), ("shares", True)):
                for cut in (3, None):
                    stage = toy.rival_stage(order, toy.ALL_OF_A_RIVAL, sharded=sharded)
                    directory = out / f"{order} in {kind}"
                    steps = train(stage, directory, Length(steps=6), seed=0, rhythm=Rhythm(checks=2))
                    list(itertools.islice(steps, cut))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
