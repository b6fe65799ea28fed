"""Runs that are killed again and again lose nothing, and end as runs that were left alone.

    python benchmarks/kills.py [--kills 50] [--torchrun 3]

Both stages train on a few pictures through the command line, in processes that are killed at random moments and begun
again by the same command. After each kill the checkpoint must be there and no older than before, and the model that
lies beside it must load; at the end every file and every number of the checkpoint must be that of a run that was left
alone, and nothing half written may lie about.

--torchrun kills that many times torchrun itself, under which two processes train: they must end by themselves, saved,
say so once, and go on to the same end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from nextscale import MultiScaleVQVAE, Pipeline
from nextscale.cli import main as program

CUTS = runpy.run_path(str(Path(__file__).with_name("power_cuts.py")))
STEPS = 40
PATIENCE = 60.0  # seconds in which processes without torchrun must have ended


def forked(words: list[str]) -> int:
    """The number of a process that runs the program: as a fork, because torch takes seconds to import."""
    child = os.fork()
    if child:
        return child
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        os._exit(program(words))


def reached(run: Path) -> int:
    """The step of the checkpoint."""
    return int(torch.load(run / "state.pt", weights_only=True)["step"]) if (run / "state.pt").exists() else 0


def killed(words: list[str], run: Path, load: Callable[[Path], object], kills: int, longest: float) -> list[str]:
    """What was wrong after each of so many kills; a run that came to its end meanwhile is begun anew."""
    draw, before, faults = random.Random(0), 0, list[str]()
    for number in range(kills):
        child = forked(words)
        time.sleep(draw.uniform(0, longest))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        step = reached(run)
        if step < before:
            faults.append(f"kill {number}: step {step} after {before}")
        if (run / "config.json").exists():
            load(run)
        before = step
        if os.WIFEXITED(status):
            faults += [] if os.WEXITSTATUS(status) == 0 else [f"kill {number}: status {os.WEXITSTATUS(status)}"]
            shutil.rmtree(run)
            before = 0
    return faults


def random_kills(command: list[str], work: Path, load: Callable[[Path], object], kills: int) -> list[str]:
    """The faults of a run with kills beside one without."""
    alone, run = work / "alone", work / "killed"
    began = time.monotonic()
    os.waitpid(forked([*command, "--out", str(alone)]), 0)
    faults = killed([*command, "--out", str(run)], run, load, kills, (time.monotonic() - began) / 3)
    os.waitpid(forked([*command, "--out", str(run)]), 0)
    return faults + [fault for fault in [CUTS["differences"](run, alone)] if fault]


# ---- torchrun is killed ----------------------------------------------------------------------------------------------


def launched(words: list[str], output: Path) -> subprocess.Popen[bytes]:
    """Two processes under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with output.open("wb") as file:
        return subprocess.Popen([*launcher, __file__, "--rank", *words], stdout=file, stderr=file)


def children(process: int) -> list[int]:
    told = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [int(number) for number in told.stdout.split()]


def has_ended(process: int) -> bool:
    """Also one that nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def without_torchrun(words: list[str], run: Path, output: Path, at: int) -> list[str]:
    """The faults of two processes whose torchrun is killed when the run has reached that step."""
    process = launched(words, output)
    while process.poll() is None and reached(run) < at:
        time.sleep(0.05)
    ranks = children(process.pid)
    process.kill()
    process.wait()
    before, deadline = reached(run), time.monotonic() + PATIENCE
    while not all(map(has_ended, ranks)) and time.monotonic() < deadline:
        time.sleep(0.1)
    told, step = output.read_text(), reached(run)
    print(f"  torchrun killed at step {before} or later: {len(ranks)} processes, the checkpoint is of step {step}")
    faults = [f"process {rank} lives on" for rank in ranks if not has_ended(rank)]
    faults += [] if STEPS > step >= before else [f"checkpoint of step {step} after {before}"]
    return faults + [
        f"{word!r} said {told.count(word)} times" for word in ("stopped at", "interrupted") if told.count(word) != 1
    ]


def torchrun_kills(command: list[str], work: Path, kills: int) -> list[str]:
    """The faults of a run of two processes, whose torchrun is killed so many times, beside one that is left alone."""
    alone, run = work / "alone", work / "killed"
    launched([*command, "--out", str(alone)], work / "alone.txt").wait()
    faults = []
    for number in range(kills):
        at = (number + 1) * STEPS // (kills + 2)
        faults += without_torchrun([*command, "--out", str(run)], run, work / f"{number}.txt", at)
    launched([*command, "--out", str(run)], work / "last.txt").wait()
    return faults + [fault for fault in [CUTS["differences"](run, alone)] if fault]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=50, help="of each stage (default: 50)")
    options.add_argument("--torchrun", type=int, default=3, help="of torchrun (default: 3)")
    options.add_argument("--rank", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    asked, wrong = options.parse_args(), 0
    with tempfile.TemporaryDirectory() as directory, CUTS["small_presets"]():
        if asked.rank:
            return program(asked.rank)
        work = Path(directory)
        data = ["--data", str(CUTS["pictures"](work / "pictures")), "--batch", "2", "--steps", str(STEPS)]
        often = ["--checks", "8", "--keep", "2", "--checkpoint-minutes", "0.001"]
        tokenizer = str(work / "tokenizer" / "alone")
        first = ["train", "tokenizer", *data, *often]
        second = ["train", "transformer", *data, *often, "--tokenizer", tokenizer]
        for name, command, load in (("tokenizer", first, MultiScaleVQVAE.load), ("transformer", second, Pipeline.load)):
            (work / name).mkdir()
            faults = random_kills(command, work / name, load, asked.kills)
            print(f"{name}: {asked.kills} kills, {len(faults)} faults", *faults[:5], sep="\n  ", flush=True)
            wrong += len(faults)
        if asked.torchrun:
            (work / "two").mkdir()
            faults = torchrun_kills(second, work / "two", asked.torchrun)
            print(f"torchrun: {asked.torchrun} kills, {len(faults)} faults", *faults[:5], sep="\n  ", flush=True)
            wrong += len(faults)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
