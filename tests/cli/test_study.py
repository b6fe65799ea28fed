"""Laws of `nextscale study`: the cells are listed first, made once, told one by one, and shown as table and plot."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nextscale import features
from nextscale.cli import study
from nextscale.images import open_rgb
from nextscale.studies.tables import Column, Row, Spread
from nextscale.studies.tokenizers import Tokenizers

pytestmark = pytest.mark.usefixtures("small")

SHORT = ("--steps", 2, 2, "--bits", 8, "--depth", 1, "--views", 1, "--count", 6)
BATCHES = ("--set", "optimization.batch=4", "transformer.optimization.batch=4")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A network that looks at 32 pixels, and a cache of its own for what it sees."""
    monkeypatch.setattr(features.FeatureNetwork, "side", 32)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def ask(nextscale: Callable[..., Any], pictures: Path, tmp_path: Path) -> Callable[..., Any]:
    """`ask("--only", "vq")`: the study of small models on a few pictures."""

    def call(*words: object) -> Any:
        return nextscale("study", "tokenizers", "--data", pictures, *SHORT, *BATCHES, "--out", tmp_path / "out", *words)

    return call


@pytest.mark.slow
def test_cells_are_listed_made_and_shown(ask: Callable[..., Any], tmp_path: Path) -> None:
    """First the list and what it will take, then a line a cell, the table in parts that fit, and the files."""
    out, only = tmp_path / "out", ("--only", "fsq", "sphere-dropout")
    listed = ask(*only, "--dry-run")
    assert (listed.status, listed.errors) == (0, "")
    rows = [line.split() for line in listed.output.splitlines()]
    named = [row for row in rows if row and row[0] in ("fsq", "fsq-dropout", "sphere-dropout")]
    assert [row[0] for row in named] == ["fsq", "fsq-dropout", "sphere-dropout"]
    assert [row[-2:] for row in named] == [["to", "do"]] * 3
    assert "left on this machine" in listed.output
    assert not (out / "cells").exists()
    done = ask(*only, "--json", tmp_path / "figures.json")
    assert (done.status, done.errors) == (0, "")
    text = " ".join(done.output.split())
    assert "tokenizers: 1 of 3, fsq: begins; about" in text
    assert "tokenizer: 2 steps, loss" in text
    assert "gFD" in text
    assert {file.name for file in out.glob("*.*")} >= {"table.md", "table.csv", "plot.png", "pictures.png"}
    table = (out / "table.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:5]] == ["| fsq", "| fsq-dropout", "| sphere-dropout"]
    assert "2 steps of a tokenizer" in table
    cells = json.loads((tmp_path / "figures.json").read_text())["cells"]
    rows = [*csv.DictReader((out / "table.csv").read_text().splitlines())]
    told = [float(row["generation_fd"]) for row in rows]
    assert told == [cell["results"]["figures"]["generation_fd"]["value"] for cell in cells]
    assert all(open_rgb(out / name).width > 1000 for name in ("plot.png", "pictures.png"))
    again = ask(*only)
    assert again.status == 0
    assert again.output.count("is there already") == 3
    assert [line.split()[-1] for line in ask(*only, "--dry-run").output.splitlines() if "drop" in line] == ["done"] * 2


@pytest.mark.slow
def test_a_cell_that_fails_is_told_and_asked_for_again(
    ask: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are made; the exit status is that of a mistake; JSON on stdout is JSON alone."""
    work = Tokenizers.work

    def broken(self: Tokenizers, cell: Any, folder: Path) -> Any:
        if cell.name == "vq":
            raise MemoryError("no room")
        return work(self, cell, folder)

    monkeypatch.setattr(Tokenizers, "work", broken)
    words = ("--only", "vq", "bsq", "--dropout", 0)
    done = ask(*words, "--json", "-")
    assert done.status == 2
    states = {cell["name"]: cell["failure"] for cell in json.loads(done.output)["cells"]}
    assert states == {"vq": "MemoryError: no room", "bsq": ""}
    last = done.errors.splitlines()[-1]
    assert last.startswith(
        "nextscale: error: tokenizers: expected 2 cells to end well, got 1 that failed, the first vq"
    )
    assert "- vq: failed: MemoryError: no room" in (tmp_path / "out" / "table.md").read_text()
    monkeypatch.setattr(Tokenizers, "work", work)
    mended = ask(*words)
    assert mended.status == 0
    assert "bsq: is there already" in mended.output
    assert "failed" not in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--minutes", 0), "--minutes: expected more than 0, got 0"),
        (("--steps", 5), "--steps: expected two numbers, of tokenizer and transformer, got 1"),
        (("--steps", 5, 0), "--steps: expected at least 1, got 0"),
        (("--bits", 9), "bits: expected some of 8, 10, 12, 14, 16, got 9"),
        (("--only", "lfq"), "only: expected some of vq, simvq, fsq, hbq, bsq, sphere, or names of cells, got 'lfq'"),
        (("--set", "architecture.quantizer=fsq"), "set: expected architecture.quantizer of the study"),
        (("--views", 10**9), "--views: expected at most"),
    ],
)
def test_mistakes_are_told(nextscale: Callable[..., Any], words: tuple[object, ...], told: str) -> None:
    """In one line, before anything is read."""
    done = nextscale("study", "tokenizers", "--data", "nowhere", *words)
    assert (done.status, done.output) == (2, "")
    assert told in done.errors


def test_a_wide_table_comes_in_parts() -> None:
    """Each with the names, none wider than a terminal; a column that is too wide by itself still comes."""
    rows = [Row("a name of some length", 1, 1, {f"{n}": Spread(123.456, 7.8) for n in range(9)})]
    columns = [Column(f"{n}", f"title {n}") for n in range(9)]
    parts = [part for _, part in study._blocks("table", rows, columns)]
    assert [column for part in parts for column in part] == columns
    assert len(parts) == 3
    wide = Row("x" * 90, 1, 1, rows[0].values)
    assert [len(part) for _, part in study._blocks("table", [wide], columns)] == [1] * 9


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (3599, "1 h 0 min"), (7500, "2 h 5 min")]
)
def test_durations_are_short(seconds: float, told: str) -> None:
    """Seconds, minutes, or hours and minutes."""
    assert study.duration(seconds) == told
