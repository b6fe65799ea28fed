"""Training steps from a folder of JPEGs beside steps from memory: what reading ahead hides of a slow reader.

    python benchmarks/prefetch.py [--preset emoji-64] [--batch 16] [--pictures 200] [--wait 50] [--repeats 5]

draws a folder of 500x375 JPEGs and trains the preset's tokenizer on it in five ways, in turns:

    memory          pictures decoded before the run
    folder          decoded as steps want them, read ahead; and `plain`, not read ahead
    slow folder     the same with so many milliseconds of waiting a picture; and `plain`

A turn is five steps, of which the first, which finds nothing read yet, is left out. Figures are medians over all steps;
ratios are to the steps from memory of the same turn, medians over turns.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from torch import Tensor

from nextscale import data, presets
from nextscale.data import DataSet, reading
from nextscale.data.reading import OnDemand
from nextscale.training.recipes import changed, for_preset
from nextscale.training.tokenizer.stage import TokenizerStage

TURN = 5  # steps, the first of which is not timed
WAYS = {  # source, whether it waits, whether it is read ahead
    "memory": ("memory", False, False),
    "folder": ("folder", False, True),
    "folder, plain": ("folder", False, False),
    "slow folder": ("folder", True, True),
    "slow folder, plain": ("folder", True, False),
}


def draw(folder: Path, count: int) -> None:
    """JPEGs of 500x375, as detailed as photographs: coarse colours with a little noise."""
    for index in range(count):
        numbers = np.random.default_rng(index)
        coarse = Image.fromarray(numbers.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        noisy = np.asarray(coarse, dtype=np.int16) + numbers.integers(-12, 13, (375, 500, 3), dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{index:05}.jpg", quality=90)


def loaded(folder: Path, preset: str, *, memory: bool) -> DataSet:
    """The folder, decoded at once or when a batch wants it."""
    config, known = presets.get(preset).tokenizer, reading.MEMORY
    reading.MEMORY = known if memory else 0
    try:
        return data.load(folder, height=config.height, width=config.width)
    finally:
        reading.MEMORY = known


@contextlib.contextmanager
def waiting(seconds: float) -> Iterator[None]:
    """Inside, a picture that is decoded when a batch wants it takes so much longer, without any work."""
    read = OnDemand.read

    def slow(self: OnDemand, index: int) -> Tensor | str:
        time.sleep(seconds)
        return read(self, index)

    OnDemand.read = slow  # type: ignore[method-assign]
    try:
        yield
    finally:
        OnDemand.read = read  # type: ignore[method-assign]


def turn(stage: TokenizerStage, first: int, *, wait: float, ahead: bool) -> list[float]:
    """Seconds of each step of a turn but its first."""
    seconds = []
    with waiting(wait), stage.prefetching(first) if ahead else contextlib.nullcontext():
        for step in range(first, first + TURN):
            before = time.monotonic()
            stage.update(step, None)
            seconds.append(time.monotonic() - before)
    return seconds[1:]


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="emoji-64")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--wait", type=float, default=50.0, help="milliseconds a picture of the slow reader")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args(arguments)
    recipe = changed(for_preset(asked.preset)[0], [f"optimization.batch={asked.batch}", "codebook.start=random"])
    times: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), asked.pictures)
        stages = {
            source: TokenizerStage(
                presets.get(asked.preset).tokenizer,
                loaded(Path(folder), asked.preset, memory=source == "memory"),
                recipe=recipe,
            )
            for source in ("memory", "folder")
        }
        for repeat in range(asked.repeats):
            for way, (source, slow, ahead) in WAYS.items():
                wait = asked.wait / 1000 if slow else 0.0
                times[way].append(turn(stages[source], repeat * TURN, wait=wait, ahead=ahead))
    print(f"{'a step of ' + str(asked.batch):<20}{'seconds':>9}{'ratio':>8}")
    for way, turns in times.items():
        ratios = [median(ours) / median(memory) for ours, memory in zip(turns, times["memory"], strict=True)]
        print(f"{way:<20}{median([each for ours in turns for each in ours]):9.3f}{median(ratios):8.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
