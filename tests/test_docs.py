"""docs/sampling.md is kept: its Python runs, its commands parse, and its table is what the code computes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from nextscale import cli, presets
from nextscale.sampling.memory import image_bytes
from nextscale.transformer import cache_bytes

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_python_runs() -> None:
    """All blocks in one namespace, as a reader would paste them."""
    assert blocks("python")
    exec(compile("\n".join(blocks("python")), "sampling.md", "exec"), {})


@pytest.mark.parametrize("line", "".join(blocks("console")).splitlines())
def test_the_commands_parse(line: str) -> None:
    """The program's own; of the others, that the file is there."""
    program, first, *_ = words = shlex.split(line)
    if program == "nextscale":
        assert cli.parse(words[1:]) is not None
    else:
        assert (ROOT / first).exists()


@pytest.mark.parametrize("name", presets.names())
def test_the_table_of_memory_is_computed(name: str) -> None:
    """An image of each preset, with guidance: the cache and what a budget counts, in both precisions."""
    (row,) = re.findall(rf"^\| {name} \| (.*) \|$", PAGE, flags=re.MULTILINE)
    preset = presets.get(name)
    dtypes = (torch.bfloat16, torch.float32)
    sizes = [cache_bytes(preset.transformer, 1, guided=True, dtype=dtype) for dtype in dtypes]
    sizes += [image_bytes(preset.tokenizer, preset.transformer, guided=True, dtype=dtype) for dtype in dtypes]
    assert [float(cell.split()[0]) for cell in row.split(" | ")] == [round(size / 1e6, 1) for size in sizes]
