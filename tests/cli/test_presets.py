"""Laws of `nextscale presets`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextscale import presets
from nextscale.config import TokenizerConfig, TransformerConfig, from_json


def test_every_preset_is_a_row_of_all_three_tables(nextscale) -> None:
    """With nothing cut off by an ellipsis."""
    shown = nextscale("presets")
    assert shown.status == 0
    assert "…" not in shown.output
    first_words = [line.split()[0] for line in shown.output.splitlines() if line.strip()]
    assert all(first_words.count(name) == 3 for name in presets.names())


@pytest.mark.parametrize(
    "words", ["3.30 (release card 3.55)", "310.3 M", "2,010.0 M", "512x512", "1 2 3 4 5 6 8 10 13 16"]
)
def test_the_table_holds_the_published_figures(nextscale, words: str) -> None:
    """A result, sizes, an image size, a pyramid."""
    assert words in nextscale("presets").output


def test_json_reads_back_as_the_presets(nextscale, tmp_path: Path) -> None:
    """The configs in the file are the configs in the package."""
    done = nextscale("presets", "--json", tmp_path / "presets.json")
    assert (done.status, done.output) == (0, "")
    rows = json.loads((tmp_path / "presets.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == list(presets.names())
    for row in rows:
        preset = presets.get(row["name"])
        assert from_json(TokenizerConfig, row["tokenizer"]) == preset.tokenizer
        assert from_json(TransformerConfig, row["transformer"]) == preset.transformer
        assert row["parameters"] == preset.transformer.parameters


def test_json_to_a_dash_is_stdout(nextscale, tmp_path: Path) -> None:
    """And the same text as in the file."""
    nextscale("presets", "--json", tmp_path / "presets.json")
    assert nextscale("presets", "--json", "-").output == (tmp_path / "presets.json").read_text(encoding="utf-8")


def test_json_that_cannot_be_written_is_a_mistake(nextscale, tmp_path: Path) -> None:
    """A directory where a file is needed."""
    done = nextscale("presets", "--json", tmp_path)
    assert (done.status, done.errors.count("\n")) == (2, 1)
    assert str(tmp_path) in done.errors
