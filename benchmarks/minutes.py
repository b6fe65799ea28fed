"""A budget in minutes beside a load that begins along the way: whether training ends when it should.

    python benchmarks/minutes.py [--minutes 3] [--after 60] [--processes 2]

trains a tokenizer on the embedded pictures with `nextscale train tokenizer --minutes`, in a process of its own, and
after so many seconds of training starts so many busy processes a core, which slow it down until it ends. Prints what
the console said, each number of steps that was decided, and when training ended, as a share of its minutes, with and
without the command's start. The exit status is 1 where the end is more than a tenth of the minutes off.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUSY = "while True: pass"
TOLERANCE = 0.1
OPTIONS = ("--data", "emoji", "--preset", "emoji-32", "--batch", "4", "--checks", "4", "--set", "codebook.start=random")


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """So many busy processes, until the block ends."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def begun(process: subprocess.Popen[bytes], run: Path) -> None:
    """Wait until training has begun, which is when its record is there, or the process has ended."""
    while process.poll() is None and not (run / "plan.json").exists():
        time.sleep(0.05)


def trained(run: Path, minutes: float, after: float, processes: int) -> float:
    """The command, with a load from some second of its training on; how many seconds it took in all."""
    command = [sys.executable, "-m", "nextscale", "train", "tokenizer", *OPTIONS]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    before = time.monotonic()
    with subprocess.Popen([*command, "--minutes", str(minutes), "--out", str(run)], env=environment) as process:
        try:
            begun(process, run)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(after)
            with load(processes if process.poll() is None else 0):
                status = process.wait()
        except BaseException:
            process.kill()
            raise
    if status:
        sys.exit(f"the command ended with status {status}")
    return time.monotonic() - before


def report(run: Path, minutes: float, wall: float) -> float:
    """Print what became of the budget; the share of it that was spent."""
    record, budget = json.loads((run / "plan.json").read_text(encoding="utf-8")), 60 * minutes
    print(f"{'second':>8}{'step':>8}{'steps in all':>14}")
    for decision in record["decisions"]:
        print(f"{decision['seconds']:8.1f}{decision['step']:8}{decision['total']:14}")
    spent = record["seconds"] / budget
    print(f"training took {record['seconds']:.1f} of {budget:g} s: {spent:.1%}")
    print(f"the command, with its start, {wall:.1f} s: {wall / budget:.1%}")
    return spent


def main(arguments: list[str] | None = None) -> int:
    """Train, print, and say by the status whether the minutes were kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--after", type=float, default=60.0, help="seconds of training before the load begins")
    parser.add_argument("--processes", type=int, default=2, help="busy ones a core")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        wall = trained(run, asked.minutes, asked.after, asked.processes * (os.cpu_count() or 1))
        return int(abs(report(run, asked.minutes, wall) - 1) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
