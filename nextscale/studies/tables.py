"""Results of cells as a table: a row a name, over its seeds; as Markdown, as CSV, and as plain cells for terminals.

A result's "figures" are {key: {"value": number, "low": number, "high": number}}; the ends of the 95 % interval may be
left out.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from nextscale.studies.cells import Outcome


@dataclass(frozen=True)
class Column:
    """A figure in a table."""

    key: str
    """Among the figures of a result."""
    title: str
    """As short as it can be told."""
    digits: int = 2
    """After the point."""
    better: Literal["less", "more", ""] = ""
    """Which values are the better ones; the best is marked. Empty: neither."""


class Spread(NamedTuple):
    """A figure of a row."""

    mean: float
    doubt: float | None
    """Of one seed half of its interval, if it has one; of several the deviation from seed to seed."""

    def told(self, digits: int) -> str:
        """`101.5 ± 2.3`."""
        doubt = "" if self.doubt is None else f" ± {self.doubt:.{digits}f}"
        return f"{self.mean:,.{digits}f}{doubt}"


@dataclass(frozen=True)
class Row:
    """The cells of one name."""

    name: str
    done: int
    """How many of them have results."""
    cells: int
    values: Mapping[str, Spread] = field(default_factory=dict)
    """By key."""
    failure: str = ""
    """Of one that failed."""

    @property
    def note(self) -> str:
        """What is to be said of cells without results."""
        if self.failure:
            return f"failed: {self.failure}" if self.cells == 1 else f"{self.cells - self.done} failed: {self.failure}"
        return "" if self.done == self.cells else f"{self.cells - self.done} of {self.cells} to do"


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """A row a name, in the order in which names first come."""
    names = dict.fromkeys(outcome.cell.name for outcome in outcomes)
    return [_row(name, [outcome for outcome in outcomes if outcome.cell.name == name]) for name in names]


def _row(name: str, outcomes: Sequence[Outcome]) -> Row:
    results = [outcome.results for outcome in outcomes if outcome.results is not None]
    figures = [result["figures"] for result in results]
    keys = dict.fromkeys(key for each in figures for key in each)
    spreads = {key: spread([each[key] for each in figures if key in each]) for key in keys}
    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    return Row(name, len(results), len(outcomes), spreads, failures[0] if failures else "")


# s^2 = sum_r (v_r - v)^2 / (R - 1)
def spread(figures: Sequence[Mapping[str, float]]) -> Spread:
    """One figure with one seed, or with several."""
    values = [figure["value"] for figure in figures]
    if len(values) > 1:
        return Spread(statistics.fmean(values), statistics.stdev(values))
    low, high = figures[0].get("low"), figures[0].get("high")
    return Spread(values[0], None if low is None or high is None else (high - low) / 2)


def best(rows: Sequence[Row], column: Column) -> set[str]:
    """Names of the rows whose figure is the best as it is told; none where there is nothing to choose."""
    found = {row.name: round(row.values[column.key].mean, column.digits) for row in rows if column.key in row.values}
    if not column.better or len(set(found.values())) < 2:
        return set()
    wanted = (min if column.better == "less" else max)(found.values())
    return {name for name, value in found.items() if value == wanted}


def shown(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    """The columns that any row has a figure for."""
    return [column for column in columns if any(column.key in row.values for row in rows)]


# -- as text -----------------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The best of each column in bold; below the table what there is to say of rows without figures."""
    known = shown(rows, columns)
    marked = {column.key: best(rows, column) for column in known}
    lines = ["| | " + " | ".join(column.title for column in known) + " |", "|---|" + "---:|" * len(known)]
    for row in rows:
        cells = [_cell(row, column, bold=row.name in marked[column.key]) for column in known]
        lines.append(" | ".join([f"| {row.name}", *cells]) + " |")
    notes = [f"- {row.name}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _cell(row: Row, column: Column, *, bold: bool) -> str:
    if column.key not in row.values:
        return "-"
    told = row.values[column.key].told(column.digits)
    return f"**{told}**" if bold else told


def csv_of(outcomes: Sequence[Outcome]) -> str:
    """A line a cell, with every figure that any of them has and the ends of intervals, in full."""
    figures: list[Mapping[str, Any]] = [(outcome.results or {}).get("figures", {}) for outcome in outcomes]
    keys = dict.fromkeys(key for each in figures for key in each)
    names = [f"{key}{end}" for key in keys for end in ("", "_low", "_high")]
    values = [_flat(each) for each in figures]
    kept = [name for name in names if any(name in each for each in values)]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["name", "seed", "state", *kept])
    for outcome, each in zip(outcomes, values, strict=True):
        state = "done" if outcome.results is not None else f"failed: {outcome.failure}" if outcome.failure else "to do"
        writer.writerow([outcome.cell.name, outcome.cell.seed, state, *(each.get(name, "") for name in kept)])
    return stream.getvalue()


def _flat(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    ends = (("value", ""), ("low", "_low"), ("high", "_high"))
    return {
        f"{key}{end}": figure[name]
        for key, figure in figures.items()
        for name, end in ends
        if figure.get(name) is not None and math.isfinite(figure[name])
    }
