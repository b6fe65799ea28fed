"""How long a start takes with many pictures, and how much memory: the first, which opens them all, and the next ones.

    python benchmarks/starts.py [--folders 100] [--pictures 1000] [--processes 1 4] [--made-up] [--keep DIR]

Makes folders of small JPEG files (the pictures of a folder are links to a thousand files), loads them with an empty
cache, and again in one or several processes at once. Told are the seconds of a load, without the import of torch, those
of the processor, the private memory of a process at the end and what of that came with the load, and the size of the
index. `--made-up` skips the first start: an index is written as that would have left it, so that millions can be tried.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SEED, OLD = 0, 1_600_000_000


def main() -> None:
    """Prints a line a measurement."""
    asked = parsed()
    with tempfile.TemporaryDirectory(dir=asked.keep) as place:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        root = Path(place) / "pictures"
        make(root, folders=asked.folders, pictures=asked.pictures)
        print(
            f"{asked.folders * asked.pictures:,} pictures in {asked.folders:,} folders, load {os.getloadavg()[0]:.1f}"
        )
        if asked.made_up:
            told = together(root, 1, "write")
            print(f"index made up in {told[0]['seconds']:.1f} s")
        else:
            report("first start", together(root, 1, "read"))
        for processes in asked.processes:
            report("next start", together(root, processes, "read"))
        for path in Path(f"{place}/cache").rglob("*.safetensors"):
            each = path.stat().st_size / (asked.folders * asked.pictures)
            print(f"index: {path.stat().st_size / 1e6:.1f} MB, {each:.0f} bytes a picture")


def parsed() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=1000, help="in each folder")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4], help="of one node, at a time")
    parser.add_argument("--made-up", action="store_true", help="write the index without opening pictures")
    parser.add_argument("--keep", help="a directory for the files, which are removed afterwards")
    return parser.parse_args()


def make(root: Path, *, folders: int, pictures: int) -> None:
    """The files, with names as ImageNet's."""
    random, source = np.random.default_rng(SEED), root.with_name("source")
    source.mkdir(parents=True)
    for number in range(pictures):
        pixels = random.integers(0, 256, (8 + number % 40, 8 + number % 37, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(source / f"{number}.jpg")
        os.utime(source / f"{number}.jpg", (OLD, OLD))
    for folder in range(folders):
        (root / f"n{folder:08}").mkdir(parents=True)
        for number in range(pictures):
            os.link(source / f"{number}.jpg", root / f"n{folder:08}" / f"n{folder:08}_{number:05}.JPEG")


def together(root: Path, processes: int, what: str) -> list[dict[str, float]]:
    """What several processes at a time tell of a load each."""
    command = [sys.executable, __file__, "--child", what, str(root)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return [json.loads(process.communicate()[0]) for process in started]


def report(name: str, told: list[dict[str, float]]) -> None:
    """The slowest and largest of the processes."""
    most = {key: max(one[key] for one in told) for key in told[0]}
    print(
        f"{name}, {len(told)} processes: {most['seconds']:.1f} s, {most['processor']:.1f} s of the processor, "
        f"{most['private']:.0f} MB private, {most['more']:.0f} MB of them by the load"
    )


def child(what: str, root: str) -> None:
    """One load, told as JSON."""
    from nextscale.data import reading

    reading.MEMORY = 0  # as of pictures that do not fit
    before, began, used = private(), time.time(), time.process_time()
    if what == "write":
        made_up(root)
    else:
        from nextscale import data

        kept = data.load(root, height=256, width=256)
        assert len(kept.train) > len(kept.validation)
    after = private()
    told = {"seconds": time.time() - began, "processor": time.process_time() - used}
    print(json.dumps(told | {"private": after, "more": after - before}))


def private() -> float:
    """Megabytes that no other process shares and that no file holds."""
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith("Private_Dirty")) / 1e3


def made_up(root: str) -> None:
    """An index with the true names, and sizes and marks that are not."""
    from unittest import mock

    from nextscale import data
    from nextscale.data import reading
    from nextscale.data.listing import Examined

    def opened(listing, *, progress=None):  # type: ignore[no-untyped-def]
        random, count = np.random.default_rng(SEED), len(listing.items)
        marks_N = np.array([b"%016x" % number for number in random.integers(0, 2**62, count)], dtype="S16")
        sizes_N2 = random.integers(200, 800, (count, 2), dtype=np.int32)
        return reading.replace(listing, examined=Examined(sizes=sizes_N2, marks=marks_N, reasons={}))

    with mock.patch.object(reading, "opened", opened):
        data.load(root, height=256, width=256)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
