"""docs/editing.md is kept: its commands and its Python run, in order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from nextscale import VAR, MultiScaleVQVAE, Pipeline, cli

PAGE = (Path(__file__).parent.parent / "docs" / "editing.md").read_text(encoding="utf-8")


def blocks(language: str) -> str:
    """The fenced blocks in one language."""
    return "".join(re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))


def test_all_of_it_runs(
    tokenizer: MultiScaleVQVAE, transformer: VAR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a small model with the demo's classes."""
    monkeypatch.chdir(tmp_path)
    classes = ["Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Objects"]
    Pipeline(tokenizer, transformer, classes=classes, precision="fp32").save("runs/demo")
    Image.new("RGB", (64, 64), "tan").save("cat.png")
    Image.new("L", (64, 64), 255).save("mask.png")
    assert cli.main(["sample", "--model", "runs/demo"]) == 0
    lines = [line for line in blocks("console").splitlines() if line.startswith("nextscale ")]
    assert len(lines) == 5
    for line in lines:
        assert cli.main(shlex.split(line)[1:]) == 0, line
    exec(compile(blocks("python"), "editing.md", "exec"), {})
