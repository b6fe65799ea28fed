"""How much memory reading takes where pictures have odd shapes, up to 1 × 30,000 pixels.

    python benchmarks/odd_pictures.py --count 1000 --size 256

The files are made here, one bit a pixel, so that they are small; each is decoded as training does it, in threads, and
freed. Printed are the peak of the process, what it had before, and the bound that `nextscale.images` states.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
from pathlib import Path

from PIL import Image

from nextscale.data.folder import survey
from nextscale.data.pictures import in_threads
from nextscale.data.reading import Size


def main() -> None:
    """Make the files, read them, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=1000, help="pictures")
    options.add_argument("--size", type=int, default=256, help="pixels a side of what they are read for")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        largest = _make(Path(folder), given.count)
        before, size = _peak(), Size(height=given.size, width=given.size)
        read = sum(not isinstance(one, str) for one in in_threads(size.decode, survey(Path(folder)).items))
        print(f"{read} of {given.count} read; peak {_peak():,} bytes, {before:,} of them before")
        print(f"bound: {max(largest, 2**26) * 32:,} bytes for decoding, the largest picture having {largest:,} pixels")


def _make(folder: Path, count: int) -> int:
    """Pictures whose short side and whose aspect are drawn evenly by orders of magnitude; the pixels of the largest."""
    drawn, largest = random.Random(0), 0
    for index in range(count):
        aspect = 30_000 ** drawn.random()
        short = round(min(2000, 30_000 / aspect) ** drawn.random())
        sides = [max(1, short), min(30_000, max(1, round(short * aspect)))]
        drawn.shuffle(sides)
        Image.new("1", (sides[0], sides[1])).save(folder / f"{index:04}.png")
        largest = max(largest, sides[0] * sides[1])
    return largest


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
