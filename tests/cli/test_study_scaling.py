"""Laws of `nextscale study scaling`: the table that is read, what is told, and mistakes in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SIZES = (1e6, 4e6, 2e7, 1e8, 5e8)


def loss(size: float) -> float:
    return 2.0 + (3.0 * size / 1e9) ** -0.25


def written(folder: Path, text: str) -> Path:
    (folder / "points.csv").write_text(text)
    return folder / "points.csv"


def test_the_law_is_told_in_billions(nextscale: Callable[..., Any], tmp_path: Path) -> None:
    """As JSON with the keys that are promised, as a table, and with a prediction."""
    points = written(tmp_path, "parameters,loss\n" + "".join(f"{size},{loss(size)}\n" for size in SIZES))
    given = ["study", "scaling", "--points", points, "--out", tmp_path, "--predict", "2e9"]
    told = nextscale(*given, "--json", tmp_path / "law.json")
    assert (told.status, told.errors) == (0, "")
    assert "predicted for 2,000,000,000 parameters: 2.6389" in told.output
    found = json.loads((tmp_path / "law.json").read_text())
    assert found["alpha"] == pytest.approx(-0.25, rel=1e-3)
    assert found["beta"] == pytest.approx(3.0, rel=1e-2)
    assert found["irreducible"] == pytest.approx(2.0, rel=1e-3)
    assert found["pearson"] == pytest.approx(-1)
    assert found["predictions"][0]["loss"] == pytest.approx(loss(2e9), rel=1e-3)
    assert (tmp_path / "scaling.png").stat().st_size > 1000
    alone = nextscale(*given, "--json", "-")
    assert json.loads(alone.output) == found


def test_of_checkpoints_the_last_count_and_the_frontier_is_fitted(
    nextscale: Callable[..., Any], tmp_path: Path
) -> None:
    """A law over sizes from the rows of most compute, whatever the others are, and one over compute."""
    rows = [(size, loss(size) + 3 * (1 - share), 6e10 * size * share) for size in SIZES for share in (0.2, 1.0)]
    text = "parameters,loss,compute\n" + "".join(f"{size},{each},{compute}\n" for size, each, compute in rows)
    told = nextscale("study", "scaling", "--points", written(tmp_path, text), "--out", tmp_path, "--json", "-")
    found = json.loads(told.output)
    assert found["alpha"] == pytest.approx(-0.25, rel=1e-3)
    assert found["points"] == 10
    assert found["compute"]["alpha"] < 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--predict", "1e9"], "--predict, --irreducible: expected --points too, got none"),
        (["--data", "nowhere"], "--data: expected a token cache, which nextscale encode makes, got nowhere"),
        (["--points", "p.csv", "--hold-back"], "--points: expected no options of training, got --hold-back"),
        (["--points", "p.csv", "--depths", "2", "3"], "--points: expected no options of training, got --depths"),
        (["--depths", "2", "2"], "depths: expected different ones of 1 and more, got 2 2"),
        (["--minutes", "0"], "--minutes: expected more than 0, got 0"),
        (["--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["--set", "no=1"], "--set: unknown setting"),
    ],
)
def test_a_mistake_is_one_line(nextscale: Callable[..., Any], tmp_path: Path, words: list[str], told: str) -> None:
    """With status 2, before anything is trained."""
    done = nextscale("study", "scaling", *words, "--out", tmp_path / "out")
    assert (done.status, done.output, done.errors.count("\n")) == (2, "", 1)
    assert told in done.errors


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected the columns parameters and loss, got none"),
        ("size,loss\n1,2\n", "expected the columns parameters and loss, got size, loss"),
        ("parameters,loss\n1,2\n2,many\n", "line 3: expected a number as loss, got 'many'"),
        ("parameters,loss,compute\n1,2,\n", "line 2: expected a number as compute, got ''"),
        ("parameters,loss\n1,2\n2,1\n", "expected points of at least 4 sizes"),
    ],
)
def test_a_mistake_in_the_table_is_one_line(
    nextscale: Callable[..., Any], tmp_path: Path, text: str, told: str
) -> None:
    """With status 2, the file and the line."""
    done = nextscale("study", "scaling", "--points", written(tmp_path, text), "--out", tmp_path)
    assert (done.status, done.output, done.errors.count("\n")) == (2, "", 1)
    assert f"--points {tmp_path / 'points.csv'}" in done.errors
    assert told in done.errors
