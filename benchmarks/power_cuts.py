"""What is left of runs, models and token caches when the power fails, at any moment of their writing.

    python benchmarks/power_cuts.py [--cuts 25] [--only "train tokenizer"]

Every call that flushes, renames, makes or removes something is recorded while a small command runs in this process. A
cut may come before and after each of them. What is on the disk then is what was flushed; of everything else, file by
file and name by name, either or neither may have come there, and content may be torn. From each of these disks the
same command must go on to the very files of a run that was left alone, with nothing half written beside them. For a
model that is saved over another every file must be the old or the new one.

Of the moments of each scenario so many are drawn as --cuts says, in each of four ways in which things get lost. The
last lines of the table repeat it with flushes that do nothing: that must fail, or the simulation would notice nothing.
Below stands what flushes cost.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from miniature import TOKENIZER, transformer
from PIL import Image

from nextscale import Pipeline, data, presets
from nextscale.cli import main as program
from nextscale.files import durable
from nextscale.training import recipes
from nextscale.training.loop import Length, Rhythm, train
from nextscale.training.tokenizer.stage import TokenizerStage

WAYS = ("nothing", "names", "torn", "any")  # what of the unflushed comes to the disk
CALLS = ("replace", "rename", "mkdir", "unlink", "rmdir")
Names = dict[int, dict[str, int]]  # of each directory, by number: its names and the numbers of what they mean


@dataclasses.dataclass(frozen=True)
class Moment:
    """What programs see, and what the disk has for certain. Files and directories are numbers; 0 is the root."""

    names: Names
    contents: Mapping[int, bytes]
    flushed_names: Names
    flushed_contents: Mapping[int, bytes]
    directories: frozenset[int]
    """Of all that there ever was."""

    def disk(self, root: Path, way: str, seed: int) -> Path:
        """A directory as it may be found after a cut now."""
        draw = random.Random(seed)
        root.mkdir()
        self._directory(root, 0, way, draw)
        return root

    def _directory(self, path: Path, number: int, way: str, draw: random.Random) -> None:
        before, now = self.flushed_names.get(number, {}), self.names.get(number, {})
        for name in sorted(before.keys() | now.keys()):
            other = before.get(name) if way == "nothing" else now.get(name)
            found = draw.choice([before.get(name), now.get(name)]) if way == "any" else other
            if found is None:
                continue
            if found in self.directories:
                (path / name).mkdir()
                self._directory(path / name, found, way, draw)
            else:
                (path / name).write_bytes(self._content(found, way, draw))

    def _content(self, number: int, way: str, draw: random.Random) -> bytes:
        before, now = self.flushed_contents.get(number, b""), self.contents.get(number)
        if now is None or now == before:
            return before
        torn = now[: len(now) // 2] + bytes(len(now) - len(now) // 2)
        return {"nothing": before, "names": before, "torn": torn}.get(way) or draw.choice([before, now, torn])


class Disk:
    """Moments of what happens below `root`, and what of it was flushed."""

    def __init__(self, root: Path) -> None:
        self.root, self.moments = root, list[Moment]()
        self._numbers: dict[int, int] = {}  # of the inodes that there are now
        self._count = 0
        self._directories: set[int] = set()
        self._names: Names = {}
        self._contents: dict[int, bytes] = {}
        self._read: dict[tuple[int, int, int], bytes] = {}
        self._look()
        self._flushed_names = {number: dict(names) for number, names in self._names.items()}
        self._flushed_contents = dict(self._contents)

    @contextmanager
    def recording(self, *, flushes: bool = True) -> Iterator[None]:
        """Inside, calls are recorded; without `flushes` those that flush change nothing."""
        kept = {name: getattr(os, name) for name in (*CALLS, "fsync")}
        for name in CALLS:
            setattr(os, name, self._recorded(kept[name]))
        os.fsync = self._recorded(self._fsync if flushes else lambda descriptor: None)
        try:
            yield
        finally:
            for name, call in kept.items():
                setattr(os, name, call)
            self._moment()

    def _recorded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*given: Any, **options: Any) -> Any:
            self._moment()
            try:
                return call(*given, **options)
            finally:
                self._look()

        return recorded

    def _moment(self) -> None:
        self._look()
        names = {number: dict(names) for number, names in self._names.items()}
        flushed = {number: dict(names) for number, names in self._flushed_names.items()}
        contents, flushed_contents = dict(self._contents), dict(self._flushed_contents)
        self.moments.append(Moment(names, contents, flushed, flushed_contents, frozenset(self._directories)))

    def _fsync(self, descriptor: int) -> None:
        self._look()
        number = self._numbers.get(os.fstat(descriptor).st_ino)
        if number in self._names:
            self._flushed_names[number] = dict(self._names[number])
        elif number is not None:
            self._flushed_contents[number] = self._contents[number]

    def _look(self) -> None:
        """At everything below the root; an inode that is gone is another file when it comes again."""
        seen, self._names, self._contents = dict[int, int](), {}, {}
        self._scan(self.root, seen)
        self._numbers = seen

    def _scan(self, path: Path, seen: dict[int, int]) -> int:
        status = path.stat()
        number = self._numbers.get(status.st_ino)
        if number is None:
            number, self._count = self._count, self._count + 1
        seen[status.st_ino] = number
        if path.is_dir():
            self._names[number] = {}
            self._directories.add(number)
            for inner in sorted(os.listdir(path)):
                with contextlib.suppress(FileNotFoundError):
                    self._names[number][inner] = self._scan(path / inner, seen)
        else:
            key = (number, status.st_mtime_ns, status.st_size)
            self._contents[number] = self._read.setdefault(key, path.read_bytes())
        return number


# ---- scenarios -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A command that writes below a directory, and a law about what is found there after a cut."""

    name: str
    begin: Callable[[Path], object]
    go_on: Callable[[Path, Path], str | None]
    """From a directory that a cut has left, beside one that was left alone: what is wrong, or None."""


def files(root: Path) -> dict[str, object]:
    """All but the log, which is no part of what a run goes on from; of a checkpoint the values, bit by bit."""
    found = (file for file in root.rglob("*") if "tensorboard" not in file.parts)
    return {str(file.relative_to(root)): _content(file) for file in found}


def _content(file: Path) -> object:
    if file.suffix == ".pt":
        return _values(torch.load(file, weights_only=True))
    return None if file.is_dir() else file.read_bytes()


def _values(tree: object) -> object:
    """With bytes for tensors."""
    if isinstance(tree, torch.Tensor):
        return tree.dtype, tree.shape, tree.numpy().tobytes()
    if isinstance(tree, dict):
        return {key: _values(value) for key, value in tree.items()}
    return [_values(value) for value in tree] if isinstance(tree, list | tuple) else tree


def differences(found: Path, expected: Path) -> str | None:
    """Files that are missing, too many or others."""
    ours, theirs = files(found), files(expected)
    names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return f"{', '.join(names[:3])} differ" if names else None


def called(*words: object) -> str | None:
    """What is wrong with a call of the program, if anything."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        status = program([str(word) for word in words])
    return None if status == 0 else told.getvalue().strip().splitlines()[-1]


def command(name: str, *words: object) -> Scenario:
    """One that is called again after the cut, with `--out`."""

    def begin(out: Path) -> None:
        wrong = called(*words, "--out", out)
        assert wrong is None, wrong

    return Scenario(name, begin, lambda left, alone: called(*words, "--out", left / "out") or differences(left, alone))


def saving(first: Pipeline, second: Pipeline) -> Scenario:
    """A model saved over another."""

    def begin(out: Path) -> None:
        second.save(out)

    def go_on(left: Path, alone: Path) -> str | None:
        with tempfile.TemporaryDirectory() as directory:
            first.save(directory)
            old = files(Path(directory))
        new, found = files(alone / "out"), files(left / "out")
        parts = {name: content for name, content in found.items() if not name.startswith(durable.PREFIX)}
        wrong = [name for name in new if parts.get(name) not in (old[name], new[name])]
        return f"{', '.join(wrong)} is neither old nor new" if wrong else None

    return Scenario("save over a model", begin, go_on)


def scenarios(data_folder: Path) -> list[Scenario]:
    """Both stages, with milestones and a checkpoint by time, a token cache, and a model saved over another."""
    tokenizer = data_folder.parent / "tokenizer"
    settings = ["--data", data_folder, "--batch", 2, "--steps", 3, "--checks", 2, "--keep", 1]
    first = ["train", "tokenizer", *settings]
    assert called(*first, "--out", tokenizer) is None
    models = [Pipeline.from_preset("emoji-32", precision="fp32") for _ in range(2)]
    with torch.no_grad():
        for parameter in [*models[1].tokenizer.parameters(), *models[1].transformer.parameters()]:
            parameter.add_(1)
    return [
        command("train tokenizer", *first),
        command("train transformer", "train", "transformer", *settings, "--tokenizer", tokenizer),
        command("encode", "encode", data_folder, "--tokenizer", tokenizer, "--views", 2),
        saving(*models),
    ]


def cut(scenario: Scenario, work: Path, cuts: int, *, flushes: bool = True) -> tuple[int, int, list[str]]:
    """Moments recorded, disks looked at, and what was wrong with them."""
    alone, wrong = work / "alone", []
    alone.mkdir(parents=True)
    if scenario.name.startswith("save"):
        Pipeline.from_preset("emoji-32", precision="fp32").save(alone / "out")
    disk = Disk(alone)
    with disk.recording(flushes=flushes):
        scenario.begin(alone / "out")
    chosen = random.Random(0).sample(range(len(disk.moments)), min(cuts, len(disk.moments)))
    for number in sorted(chosen):
        for way in WAYS:
            left = disk.moments[number].disk(work / "left", way, number)
            if fault := scenario.go_on(left, alone):
                wrong.append(f"{way} at {number}: {fault}")
            shutil.rmtree(left)
    return len(disk.moments), len(chosen) * len(WAYS), wrong


@contextmanager
def small_presets() -> Iterator[None]:
    """Inside, every preset means the same two small models."""
    get = presets.get
    presets.get = lambda name: dataclasses.replace(get(name), tokenizer=TOKENIZER, transformer=transformer(classes=2))
    try:
        yield
    finally:
        presets.get = get


def pictures(folder: Path) -> Path:
    """Two classes of noise."""
    for number in range(12):
        kind = folder / ("cat", "dog")[number % 2]
        kind.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(noise).save(kind / f"{number:02}.png")
    return folder


@contextmanager
def no_flushes() -> Iterator[None]:
    """Inside, nothing waits for the disk."""
    kept = os.fsync
    os.fsync = lambda descriptor: None
    try:
        yield
    finally:
        os.fsync = kept


def write_cost(work: Path, megabytes: int) -> float:
    """Seconds of writing so much to a file, the median of 9."""
    times, content = [], os.urandom(megabytes << 20)
    for _ in range(9):
        before = time.perf_counter()
        durable.write_beside(work / "file", lambda file: file.write_bytes(content))
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def step_costs(work: Path) -> list[float]:
    """Seconds of a step of emoji-32's tokenizer, 8 pictures, and of one that is saved: medians of 12."""
    preset, costs = presets.get("emoji-32"), []
    pictures = data.load("emoji", height=preset.tokenizer.height, width=preset.tokenizer.width)
    recipe = recipes.changed(recipes.for_preset("emoji-32")[0], ["optimization.batch=8"])
    for minutes in (15.0, 1e-9):
        stage, times, before = TokenizerStage(preset.tokenizer, pictures, recipe=recipe), list[float](), 0.0
        rhythm = Rhythm(checks=1, checkpoint_minutes=minutes)
        for _ in itertools.islice(train(stage, work / "run", Length(steps=100), seed=0, rhythm=rhythm), 13):
            times.append(time.perf_counter() - before)
            before = time.perf_counter()
        costs.append(statistics.median(times[1:]))
        shutil.rmtree(work / "run")
    return costs


def tell_costs(work: Path) -> None:
    """Of flushes: in a write, in a step, in a step that saves."""
    for name, measured in (
        ("a file of 1 MB", lambda: [write_cost(work, 1)]),
        ("a file of 100 MB", lambda: [write_cost(work, 100)]),
        ("a step, and one that is saved", lambda: step_costs(work)),
    ):
        with no_flushes():
            without = measured()
        told = (
            f"{1e3 * one:.1f} ms, {1e3 * other:.1f} ms without flushes ({one / other:.2f} times)"
            for one, other in zip(measured(), without, strict=True)
        )
        print(f"{name}: {'; '.join(told)}", flush=True)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cuts", type=int, default=25, help="moments a scenario, each in four ways (default: 25)")
    options.add_argument("--only", default="", help="scenarios whose name begins so")
    asked, broken = options.parse_args(), 0
    with tempfile.TemporaryDirectory() as directory, small_presets():
        work = Path(directory)
        chosen = [one for one in scenarios(pictures(work / "pictures")) if one.name.startswith(asked.only)]
        print(f"{'scenario':<20} {'moments':>8} {'cuts':>6} {'wrong':>6}")
        for flushes in (True, False):
            for number, scenario in enumerate(chosen):
                moments, cuts, wrong = cut(scenario, work / f"{number} {flushes}", asked.cuts, flushes=flushes)
                broken += bool(wrong) is flushes
                name = scenario.name if flushes else "  without flushes"
                print(
                    f"{name:<20} {moments:>8} {cuts:>6} {len(wrong):>6}",
                    *wrong[: 3 * flushes],
                    sep="\n    ",
                    flush=True,
                )
    with tempfile.TemporaryDirectory() as directory:
        tell_costs(Path(directory))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
