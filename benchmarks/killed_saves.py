"""What is in a model's directory after the process that was saving over it has been killed.

    python benchmarks/killed_saves.py --kills 100

A child saves two models of one shape in turn over one directory until it is killed, after a random time. What is then
there must be one of the two: neither one model's tokenizer beside the other's transformer, nor nothing that loads.
Printed is how often each came out; ends with status 1 where another did. Needs `os.fork`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from nextscale import InputError, Pipeline

ALLOWED = {"the first model", "the second model"}


def main() -> None:
    """Kill, look, count."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--preset", default="emoji-32")
    options.add_argument("--longest", type=float, default=0.5, help="seconds until a kill, at most")
    given = options.parse_args()
    models = [marked(Pipeline.from_preset(given.preset, precision="fp32"), mark) for mark in (0.25, 0.5)]
    drawn, found = random.Random(0), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.kills):
            models[0].save(folder)
            kill(models, Path(folder), after=drawn.uniform(0, given.longest))
            found[what_is_in(Path(folder))] += 1
    for outcome, count in found.most_common():
        print(f"{count:5} {outcome}")
    sys.exit(not found.keys() <= ALLOWED)


def marked(pipe: Pipeline, mark: float) -> Pipeline:
    """A value of either model says which pipeline it is of."""
    with torch.no_grad():
        pipe.tokenizer.decoder.head.bias[0] = mark
        pipe.transformer.head.bias[0] = mark
    return pipe


def kill(models: list[Pipeline], folder: Path, *, after: float) -> None:
    """Let a child save the models in turn, for so many seconds."""
    child = os.fork()
    if child == 0:
        for model in itertools.cycle(reversed(models)):
            model.save(folder)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def what_is_in(folder: Path) -> str:
    """Which of the two models, or what else."""
    try:
        loaded = Pipeline.load(folder, precision="fp32")
    except InputError as error:
        return f"refused: {error}"
    marks = loaded.tokenizer.decoder.head.bias[0].item(), loaded.transformer.head.bias[0].item()
    return {(0.25, 0.25): "the first model", (0.5, 0.5): "the second model"}.get(marks, f"a mixture: {marks}")


if __name__ == "__main__":
    main()
