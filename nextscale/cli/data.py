"""What `--data` names, read with a bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import tyro

from nextscale.cli.output import progress, say

if TYPE_CHECKING:
    from nextscale.data import DataSet

Labelling = Annotated[str | None, tyro.conf.arg(metavar="FILE.csv|none", help_behavior_hint="")]


def load_data(source: str, *, height: int, width: int, labels: str | None = None) -> DataSet:
    """The data set, its classes from `labels` if given (a CSV file, or "none"); says what was found."""
    found = read_data(source, height=height, width=width, labels=labels)
    classes = f"{len(found.classes)} classes" + (f" as in {labels}" if labels else "")
    say(
        f"data: {source} at {height}x{width}, {len(found.train)} pictures to train on, "
        f"{len(found.validation)} held out, {'no classes' if labels == 'none' else classes}"
    )
    if found.broken:
        say(f"data: {len(found.broken)} pictures cannot be read and are left out; the run's data.json names them")
    return found


def read_data(source: str, *, height: int, width: int, labels: str | None = None) -> DataSet:
    """The data set, in silence."""
    from nextscale import data

    with progress() as bar:
        task = bar.add_task("reading pictures", total=None)
        return data.load(
            source,
            height=height,
            width=width,
            labels=labels,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
