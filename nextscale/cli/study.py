"""What the study commands share: a list of cells before they are made, progress, and what came of them as files.

OUT/table.md, table.csv   the table, written anew after every cell
OUT/plot.png              likewise
OUT/pictures.png          some pictures of every cell, a row each
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextscale.cli.output import bar, console, say, table, write_json
from nextscale.cli.training import warnings_said
from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.studies.cells import Event as Step
    from nextscale.studies.cells import Outcome
    from nextscale.studies.study import Study
    from nextscale.studies.tables import Column, Row
    from nextscale.studies.training import Watching
    from nextscale.training.loop import Event

WIDTH = 80  # columns of a terminal that tells nothing else
TABLE, CSV, PLOT, PICTURES = "table.md", "table.csv", "plot.png", "pictures.png"


# -- before ------------------------------------------------------------------------------------------------------------


def forecast(study: Study, out: Path) -> None:
    """The cells, what each is, what it will take, and what is there already."""
    from nextscale.studies.cells import outcomes

    rows, left = [], 0.0
    for outcome in outcomes(out, study.cells):
        seconds, told = study.estimate(outcome.cell), study.about(outcome.cell)
        done = outcome.results is not None
        left += 0.0 if done else seconds
        state = "done" if done else "failed" if outcome.failure else "to do"
        rows.append((outcome.cell.name, outcome.cell.seed, *told.values(), f"{seconds / 60:.1f}", state))
    titles = [*told]
    columns = ("seed", *titles[1:], "minutes", "state")
    shown: list[tuple[object, ...]] = [(name, what, seed, *rest) for name, seed, what, *rest in rows]
    console().print(table(f"{len(rows)} cells", ("name", titles[0]), columns, shown), "", sep="\n")
    say(f"{study.name}: about {duration(left)} left on this machine")


# -- meanwhile ---------------------------------------------------------------------------------------------------------


def watching(name: str) -> Watching:
    """Bars on a terminal; a line for each training that ends, wherever the output goes."""
    from nextscale.studies.training import Watching

    return Watching(training=lambda stage, events, out: _follow(name, stage, events, out), bar=bar)


def _follow(name: str, stage: str, events: Iterator[Event], out: Path) -> None:
    """To the end. Raises `KeyboardInterrupt` when the run was stopped, having said how to go on."""
    from nextscale.training.loop import Stopped

    event = None
    try:
        with bar(stage) as told:
            for event in events:
                told(event.step, event.total or 0)
    except Stopped as stopped:
        kept = f"saved in {out}" if stopped.saved else f"{out} keeps the last checkpoint"
        say(f"{name}: stopped, {kept}; the same command continues")
        raise KeyboardInterrupt from None
    if event is not None:
        say(f"  {stage}: {event.step} steps, loss {event.figures['loss']:.4f}")


def conduct(study: Study, out: Path) -> list[Outcome]:
    """Make all cells and tell of each; the files of the study are written after every cell."""
    from nextscale.studies.cells import outcomes, run

    cells = study.cells
    with warnings_said():
        for step in run(out, study.name, cells, study.work, estimate=study.estimate):
            _tell(study, step, out)
            if step.state in ("done", "failed"):
                _write(study, outcomes(out, cells), out)
    found = outcomes(out, cells)
    _write(study, found, out)
    return found


def _refuse_failed(study: Study, found: Sequence[Outcome]) -> None:
    """Raise `InputError` where some cells have failed."""
    failed = [outcome for outcome in found if outcome.failure]
    if failed:
        raise InputError(
            f"{study.name}: expected {len(found)} cells to end well, got {len(failed)} that failed, the first "
            f"{failed[0].cell.name}: {failed[0].failure}; the same command tries them again"
        )


def _tell(study: Study, step: Step, out: Path) -> None:

    cell, place = step.outcome.cell, f"{study.name}: {step.number} of {step.total}"
    seed = f", seed {cell.seed}" if len({other.seed for other in study.cells}) > 1 else ""
    if step.state == "kept":
        say(f"{place}, {cell.name}{seed}: is there already")
    elif step.state == "begins":
        say(f"{place}, {cell.name}{seed}: begins; about {duration(step.left)} left")
    elif step.state == "failed":
        say(
            f"{place}, {cell.name}{seed}: failed: {step.outcome.failure}; more in {out}/cells/{cell.folder}/failure.txt"
        )
    else:
        say(f"{place}, {cell.name}{seed}: {_in_short(study, step.outcome)}")


def _in_short(study: Study, outcome: Outcome) -> str:
    """The figures of which one end is better."""
    from nextscale.studies import tables

    (row,) = tables.rows([outcome])
    columns = [column for column in tables.shown([row], study.columns) if column.better]
    return ", ".join(f"{column.title} {row.values[column.key].mean:,.{column.digits}f}" for column in columns)


def duration(seconds: float) -> str:
    """`2 h 5 min`, `12 min`, `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


# -- afterwards --------------------------------------------------------------------------------------------------------


def _write(study: Study, found: Sequence[Outcome], out: Path) -> None:
    """The files; whatever cells there are by now."""
    from nextscale.files.durable import write_beside
    from nextscale.studies import tables

    rows = tables.rows(found)
    if not any(row.done for row in rows):
        return
    notes = "\n".join(f"- {note}" for note in study.notes)
    texts = {TABLE: f"{tables.markdown(rows, study.columns)}\n{notes}\n", CSV: tables.csv_of(found)}
    for name, text in texts.items():
        _write_text(out / name, text)
    figure = study.plot(rows)
    write_beside(out / PLOT, lambda beside: figure.savefig(beside, format="png", metadata={"Software": None}))
    _write_pictures(study, found, out)


def _write_text(file: Path, text: str) -> None:
    from nextscale.files.durable import write_beside

    write_beside(file, lambda beside: beside.write_text(text, encoding="utf-8"))


def _write_pictures(study: Study, found: Sequence[Outcome], out: Path) -> None:
    from nextscale import images
    from nextscale.cli.sheet import Row, drawn
    from nextscale.studies.cells import CELLS

    done = [outcome.cell for outcome in found if outcome.results is not None]
    pictures = [(cell, study.pictures(cell, out / CELLS / cell.folder)) for cell in done]
    rows = [Row(cell.name, each) for cell, each in pictures if each is not None]
    if rows:
        images.save(out / PICTURES, drawn(rows))


@contextmanager
def apart(json: Path | None) -> Iterator[None]:
    """Inside, what is printed keeps out of the JSON that stdout is to be."""
    with redirect_stdout(sys.stderr if str(json) == "-" else sys.stdout):
        yield


def give(study: Study, found: Sequence[Outcome], out: Path, json: Path | None) -> None:
    """What was asked for. Raises `InputError` in the end where some cells have failed."""
    if json is not None:
        write_json(json, _plain(study, found))
    if str(json) != "-":
        _show(study, found, out)
    _refuse_failed(study, found)


def _show(study: Study, found: Sequence[Outcome], out: Path) -> None:
    """The table, and how it was made."""
    from nextscale.studies import tables

    rows = tables.rows(found)
    columns = tables.shown(rows, study.columns)
    for title, part in _blocks(study.name, rows, columns):
        names = tuple(column.title for column in part)
        cells: list[tuple[object, ...]] = [(row.name, *(_cell(row, column) for column in part)) for row in rows]
        console().print(table(title, ("",), names, cells), "", sep="\n")
    for row in rows:
        if row.note:
            say(f"{row.name}: {row.note}")
    for note in study.notes:
        say(note)
    files = [name for name in (TABLE, CSV, PLOT, PICTURES) if (out / name).exists()]
    say(f"table and plot in {out}: {', '.join(files)}")


def _cell(row: Row, column: Column) -> str:
    return row.values[column.key].told(column.digits) if column.key in row.values else "-"


def _blocks(title: str, rows: Sequence[Row], columns: Sequence[Column]) -> Iterator[tuple[str, list[Column]]]:
    """Columns that fit a terminal of `WIDTH` beside the names, one such part after the other."""
    room = WIDTH - 1 - max(len(row.name) for row in rows)
    part: list[Column] = []
    taken = 0
    for column in columns:
        wide = 1 + max(len(column.title), *(len(_cell(row, column)) for row in rows))
        if part and taken + wide > room:
            yield title, part
            title, part, taken = "", [], 0
        part.append(column)
        taken += wide
    if part:
        yield title, part


def _plain(study: Study, found: Sequence[Outcome]) -> dict[str, Any]:
    """All cells as JSON values."""
    cells = [{**outcome.cell.to_json(), "failure": outcome.failure, "results": outcome.results} for outcome in found]
    return {"study": study.name, "notes": list(study.notes), "cells": cells}
