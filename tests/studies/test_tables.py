"""Laws of tables: rows over seeds, the best marked, what is missing told; Markdown and CSV of the same figures."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from nextscale.studies import tables
from nextscale.studies.cells import Cell, Outcome
from nextscale.studies.tables import Column

COLUMNS = [
    Column("bits", "bits", digits=0),
    Column("psnr", "PSNR", better="more"),
    Column("fd", "FD", digits=1, better="less"),
    Column("absent", "never there"),
]


def outcome(name: str, seed: int = 0, failure: str = "", **values: Any) -> Outcome:
    """`fd=(9, 7, 12)` has an interval; without values there are no results."""
    figures = {
        key: {"value": value[0], "low": value[1], "high": value[2]} if isinstance(value, tuple) else {"value": value}
        for key, value in values.items()
    }
    cell = Cell(name=name, settings={}, seed=seed)
    return Outcome(cell, {"figures": figures} if values else None, failure)


FOUND = [
    outcome("vq", bits=1300.0, psnr=20.125, fd=(100.0, 96.0, 106.0)),
    outcome("fsq", bits=1296.0, psnr=21.0, fd=(90.04, 80.0, 94.0)),
    outcome("bsq", bits=1300.0, psnr=20.5, fd=(90.01, 89.0, 92.0)),
    outcome("sphere", failure="no memory"),
    outcome("hbq"),
]


def test_markdown_marks_the_best_as_it_is_told() -> None:
    """Two that are told alike are both the best; figures nobody has make no column, rows without figures a note."""
    assert tables.markdown(tables.rows(FOUND), COLUMNS).splitlines() == [
        "| | bits | PSNR | FD |",
        "|---|---:|---:|---:|",
        "| vq | 1,300 | 20.12 | 100.0 ± 5.0 |",
        "| fsq | 1,296 | **21.00** | **90.0 ± 7.0** |",
        "| bsq | 1,300 | 20.50 | **90.0 ± 1.5** |",
        "| sphere | - | - | - |",
        "| hbq | - | - | - |",
        "",
        "- sphere: failed: no memory",
        "- hbq: 1 of 1 to do",
    ]


def test_a_row_is_the_mean_over_seeds_and_their_deviation() -> None:
    """Over the seeds that are done; intervals of single ones are not told then."""
    found = [outcome("vq", seed, fd=(value, 0.0, 99.0)) for seed, value in enumerate((10.0, 14.0))]
    (row,) = tables.rows([*found, outcome("vq", 2, failure="no memory")])
    assert row.values["fd"] == (12.0, pytest.approx(8**0.5))
    assert (row.done, row.cells, row.note) == (2, 3, "1 failed: no memory")
    (row,) = tables.rows([*found, outcome("vq", 2)])
    assert row.note == "1 of 3 to do"


def test_nothing_is_best_where_all_are_alike() -> None:
    """Nor in columns of which neither end is better."""
    rows = tables.rows([outcome("vq", psnr=20.0, bits=1.0), outcome("fsq", psnr=20.001, bits=2.0)])
    assert [tables.best(rows, column) for column in COLUMNS] == [set()] * 4


def test_csv_holds_every_cell_in_full() -> None:
    """A line a cell with its state; ends of intervals where there are any."""
    rows = [*csv.DictReader(io.StringIO(tables.csv_of(FOUND)))]
    assert [*rows[0]] == ["name", "seed", "state", "bits", "psnr", "fd", "fd_low", "fd_high"]
    assert (rows[1]["fd"], rows[1]["fd_low"], rows[1]["fd_high"]) == ("90.04", "80.0", "94.0")
    assert [row["state"] for row in rows] == ["done", "done", "done", "failed: no memory", "to do"]
    assert rows[4]["psnr"] == ""
