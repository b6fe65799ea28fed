"""docs/token-cache.md is kept: its Python and its commands run or parse, and its sizes are those of the files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from data import noise

from nextscale import MultiScaleVQVAE, cli, presets
from nextscale.data import encoding, tokens

PAGE = (Path(__file__).parent.parent / "docs" / "token-cache.md").read_text(encoding="utf-8")


def blocks(language: str) -> str:
    """The fenced blocks in one language."""
    return "".join(re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("line", blocks("console").splitlines())
def test_the_commands_parse(line: str) -> None:
    """Behind torchrun, too."""
    words = shlex.split(line)
    assert cli.parse(words[words.index("nextscale") + 1 :]) is not None


def test_the_python_runs(tokenizer: MultiScaleVQVAE, tmp_path: Path) -> None:
    """On a small cache."""
    data = noise.data_set()
    encoding.write(tmp_path, data, torch.no_grad()(tokenizer.encode), noise.made_of(tokenizer, data))
    names: dict[str, Any] = {}
    exec(compile(blocks("python"), "token-cache.md", "exec"), names)
    assert names["first_tokens"](str(tmp_path)).shape == (noise.TRAIN,)
    assert names["file_of_tokens"](str(tmp_path)).shape == (2, 3, tokens.load(tmp_path).meta.scales.total)


@pytest.mark.parametrize(
    ("row", "preset", "train", "held_out", "views"),
    [
        ("emoji, 32 px", "emoji-32", 3414, 363, 1),
        ("ImageNet, 256 px", "var-d16", 1_281_167, 50_000, 1),
        ("ImageNet, 256 px, 10 views", "var-d16", 1_281_167, 50_000, 10),
        ("ImageNet, 512 px", "var-d36-512", 1_281_167, 50_000, 1),
    ],
)
def test_the_sizes_are_computed(row: str, preset: str, train: int, held_out: int, views: int) -> None:
    """Two bytes a token."""
    length = presets.get(preset).tokenizer.scales.total
    size = 2 * length * (train * views + held_out)
    shown = f"{size / 1e9:.1f} GB" if size > 1e9 else f"{size / 1e6:.1f} MB"
    (cells,) = re.findall(rf"^\| {row} \| (.*) \|$", PAGE, flags=re.MULTILINE)
    assert cells.split(" | ")[1:] == [f"{length:,}", shown]


def test_the_rows_of_a_file_are_those_of_the_code() -> None:
    """Unless `--shard` says otherwise."""
    assert f"; {encoding.SHARD} by default" in PAGE
