"""From the shell to the file: what `nextscale sample` spends its time on before one picture of a small model is there.

    python benchmarks/latency.py MODEL [--repeats 7] [--than CHECKOUT]

Each repeat is a process of its own, which runs the command as the shell would, with marks at the ends of its parts:

    start     the interpreter, the command's module, its options
    import    torch, nextscale.pipeline, and with them most of what sampling needs
    load      `Pipeline.load`
    picture   from there until the last scale of the picture is painted
    files     the picture and the grid as PNGs, and the end of the process

"wall" is what a user waits, "cpu" is processor time, which a machine that is busy otherwise lengthens less. Figures are
medians. With `--than` the package of another checkout is measured in turns with this one's, and the last column is the
median of the ratios of the totals, this one's over the other's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
PARTS = ("start", "import", "load", "picture", "files")
PROGRAM = "import runpy, sys; sys.argv[0] = {file!r}; runpy.run_path({file!r})['inside']()"
Marks = dict[str, tuple[float, float]]


def inside() -> None:
    """The command, in a process of its own; its marks go to the file that is its first argument."""
    file, arguments, marks = Path(sys.argv[1]), sys.argv[2:], dict[str, tuple[float, float]]()

    def mark(part: str) -> None:
        marks[part] = (time.monotonic(), time.process_time())

    from nextscale.cli import main, models, sample

    run, notes = sample.Sample.run, models.notes

    def started(self: Any) -> None:
        mark("start")
        run(self)

    def imported() -> Any:
        """`models.load` asks for this once everything is imported."""
        if "import" not in marks:
            mark("import")
            watch()
        return notes()

    def watch() -> None:
        from nextscale.pipeline import Pipeline

        load, stream = Pipeline.load, Pipeline.stream

        def loaded(*given: Any, **named: Any) -> Any:
            pipe = load(*given, **named)
            mark("load")
            return pipe

        def streamed(*given: Any, **named: Any) -> Iterator[Any]:
            yield from stream(*given, **named)
            mark("picture")

        Pipeline.load, Pipeline.stream = staticmethod(loaded), streamed  # type: ignore[method-assign,assignment]

    models.notes = imported  # type: ignore[assignment]
    sample.Sample.run = started  # type: ignore[method-assign]
    status = main(arguments)
    file.write_text(json.dumps(marks), encoding="utf-8")
    sys.exit(status)


def measured(checkout: Path, model: Path) -> Marks:
    """Wall and processor seconds of each part, of one process."""
    with tempfile.TemporaryDirectory() as folder:
        out, marks = Path(folder) / "out", Path(folder) / "marks.json"
        program = PROGRAM.format(file=str(Path(__file__).resolve()))
        command = [sys.executable, "-c", program, str(marks)]
        command += ["sample", "--model", str(model), "--label-index", "0", "--out", str(out)]
        before = _now()
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, cwd=checkout)
        after = _now()
        ends = json.loads(marks.read_text(encoding="utf-8"))
    wall = [before[0], *(ends[part][0] for part in PARTS[:-1]), after[0]]
    cpu = [0.0, *(ends[part][1] for part in PARTS[:-1]), after[1] - before[1]]
    return {part: (wall[i + 1] - wall[i], cpu[i + 1] - cpu[i]) for i, part in enumerate(PARTS)}


def _now() -> tuple[float, float]:
    """The clock, and the processor time of the processes that have ended."""
    times = os.times()
    return time.monotonic(), times.children_user + times.children_system


def total(marks: Marks) -> tuple[float, float]:
    """Of all parts."""
    wall, cpu = (sum(times) for times in zip(*marks.values(), strict=True))
    return wall, cpu


def line(name: str, runs: list[Marks]) -> str:
    """Medians of a checkout, wall and processor seconds a part."""
    cells = [[run[part] for run in runs] for part in PARTS] + [[total(run) for run in runs]]
    shown = (" / ".join(f"{median(times):.2f}" for times in zip(*cell, strict=True)) for cell in cells)
    return f"{name:<8}" + "".join(f"{cell:>14}" for cell in shown)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--than", type=Path, metavar="CHECKOUT")
    arguments = parser.parse_args()
    model = arguments.model.resolve()
    checkouts = {"this": ROOT} | ({"other": arguments.than.resolve()} if arguments.than else {})
    runs: dict[str, list[Marks]] = {name: [] for name in checkouts}
    for checkout in checkouts.values():
        measured(checkout, model)  # once, so that files are in the cache and bytecode is written
    for _ in range(arguments.repeats):
        for name, checkout in checkouts.items():
            runs[name].append(measured(checkout, model))
    print("wall / cpu")
    print(f"{'seconds':<8}" + "".join(f"{part:>14}" for part in (*PARTS, "total")))
    for name, measurements in runs.items():
        print(line(name, measurements))
    if arguments.than:
        pairs = zip(*(map(total, measurements) for measurements in runs.values()), strict=True)
        ratios = [(ours[0] / theirs[0], ours[1] / theirs[1]) for ours, theirs in pairs]
        print("ratio " + " / ".join(f"{median(column):.2f}" for column in zip(*ratios, strict=True)))


if __name__ == "__main__":
    main()
