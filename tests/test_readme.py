"""The README is kept: its Python runs, in order, and its commands are ones the program has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nextscale import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("console") for line in block.splitlines()]
OURS = [line for line in COMMANDS if line.startswith("nextscale ")]
TARGETS = [line.split()[1] for line in COMMANDS if line.startswith("make ")]


@pytest.mark.slow
def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks in one namespace, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    assert blocks("python")
    exec(compile("\n".join(blocks("python")), "README.md", "exec"), {})


@pytest.mark.parametrize("line", OURS)
def test_the_commands_parse(line: str) -> None:
    """Whether they find their files is for their own tests."""
    assert cli.parse(shlex.split(line)[1:]) is not None


def test_every_command_is_shown() -> None:
    """Demo by way of `make demo`, the others by themselves."""
    shown = {name for name in cli.COMMANDS for line in OURS if line.startswith(f"nextscale {name}")}
    assert shown | {"demo"} == set(cli.COMMANDS)
    assert "demo" in TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_the_make_targets_exist(target: str) -> None:
    """Each with the line that `make help` prints."""
    assert re.search(rf"^{target}:.*  ## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
