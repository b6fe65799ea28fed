"""docs/studies.md is kept: its commands parse, its tables name the columns and kinds that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nextscale import cli
from nextscale.cli import study
from nextscale.studies import cells, pace
from nextscale.studies.tokenizers import COLUMNS
from nextscale.studies.variants import KINDS, LEAST_SCALES

PAGE = (Path(__file__).parent.parent / "docs" / "studies.md").read_text(encoding="utf-8")
CONSOLE = "".join(re.findall(r"^```console\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("line", CONSOLE.splitlines())
def test_the_commands_parse(line: str) -> None:
    """As they stand."""
    assert cli.parse(shlex.split(line)[1:]) is not None


def test_every_column_and_every_kind_is_explained() -> None:
    """In its table, in the order of the study's own."""
    columns = PAGE[PAGE.index("### The columns") : PAGE.index("± is half of")]
    named = [name.strip() for row in re.findall(r"^\| (.*?) \|", columns, re.MULTILINE)[1:] for name in row.split(",")]
    assert named == [column.title for column in COLUMNS]
    kinds = re.findall(r"^\| `(\w+)` \| .* \| .* \| .* \|$", PAGE, re.MULTILINE)
    assert kinds == [*KINDS]


def test_what_is_said_of_files_and_shares_is_so() -> None:
    """Names of files, the tokenizer's share of the time, the scales that dropout leaves."""
    for name in (study.TABLE, study.CSV, study.PLOT, study.PICTURES, pace.PACE, cells.CELL, cells.RESULT):
        assert f"`{name}`" in PAGE
    assert f"{pace.FIRST_STAGE:.0%} of the time for the tokenizer".replace("%", " %") in PAGE
    assert LEAST_SCALES == 3
    assert "these keep three at least" in PAGE


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A study in a few lines, and what it prints."""
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    exec(compile(block, "studies.md", "exec"), {})
    assert "| side-3 | **9** |" in capsys.readouterr().out
