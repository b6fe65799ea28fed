"""docs/tokenizer.md is kept: its commands parse, and the thresholds it states are those that warn."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nextscale import cli
from nextscale.training import monitoring
from nextscale.training.tokenizer import health

PAGE = (Path(__file__).parent.parent / "docs" / "tokenizer.md").read_text(encoding="utf-8")
CONSOLE = "".join(re.findall(r"^```console\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("line", CONSOLE.splitlines())
def test_the_commands_parse(line: str) -> None:
    """Behind torchrun, too."""
    words = shlex.split(line)
    assert cli.parse(words[words.index("nextscale") + 1 :]) is not None


@pytest.mark.parametrize(
    ("warning", "threshold"),
    [
        ("a scale has collapsed", f"below {health.HANDFUL}, "),
        ("a scale uses few codes", f"than {health.USED_SHARE:.0%} of"),
        ("a scale leads away from the features", f"than {health.RESIDUAL_GROWTH:.1%} of"),
        ("the last scale makes pictures worse", f"than {health.DECIBELS_LOST} dB"),
        ("the gradient was clipped", f"in {monitoring.CLIPPED_SHARE:.0%} of"),
        ("the discriminator has won", f"more than {health.TOLD_BY_ALL:.0%} of patches"),
        ("the discriminator has learned nothing", f"less than {health.TOLD_BY_CHANCE:.0%} of patches"),
        ("the adaptive weight is at its bound", f"in {health.HELD_SHARE:.0%} of"),
        ("PSNR below its best", f"than {health.DECIBELS_PAID:g} dB"),
    ],
)
def test_the_thresholds_are_those_that_warn(warning: str, threshold: str) -> None:
    """Each stands in its row of the table."""
    (row,) = re.findall(rf"^\| {warning} \| (.*) \|$", PAGE, flags=re.MULTILINE)
    assert threshold in row.replace("\u202f", "").replace(" %", "%")
