"""docs/transformer.md is kept: its commands parse, and the figures it states are those of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nextscale import cli, presets
from nextscale.machine import flops
from nextscale.machine.flops import Work
from nextscale.training import loop, recipes
from nextscale.training.transformer import health

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "transformer.md").read_text(encoding="utf-8")
CONSOLE = "".join(re.findall(r"^```console\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("line", CONSOLE.splitlines())
def test_the_commands_parse(line: str) -> None:
    """The program's own, behind torchrun too; of the others, that the file is there."""
    words = shlex.split(line)
    if "nextscale" in words:
        assert cli.parse(words[words.index("nextscale") + 1 :]) is not None
    else:
        assert (ROOT / words[1]).exists()


def test_the_thresholds_are_those_that_warn() -> None:
    """And those that end a run."""
    assert f"more than {health.RISEN:.0%} above its lowest".replace("%", " %") in PAGE
    assert health.EARLY == 4
    assert "after the first four checks" in PAGE
    assert f"after {loop.SKIPS} in a row" in PAGE


def test_every_value_of_the_recipe_is_explained() -> None:
    """By its name, or the last part of it."""
    recipe, _ = recipes.for_transformer("var-d16")
    missing = [
        name for name in recipes.names(recipe) if f"`{name}`" not in PAGE and f".{name.split('.')[-1]}`" not in PAGE
    ]
    assert missing == ["optimization.betas"]


@pytest.mark.parametrize(("column", "name"), [(0, "var-d16"), (1, "var-d30")])
def test_the_arithmetic_is_that_of_the_code(column: int, name: str) -> None:
    """Steps, tokens, operations and hours."""
    config, (recipe, steps) = presets.get(name).transformer, recipes.for_transformer(name)
    scales = range(len(config.scales))
    forward = sum((flops.scale_work(config, k, guided=False) for k in scales), Work(0, 0))
    forward += flops.condition_work(config, guided=False)
    images = steps * recipe.optimization.batch
    step, whole = 3 * forward.total * recipe.optimization.batch, 3 * forward.total * images
    rows = dict(re.findall(r"^\| (.*?) \| (.*) \|$", PAGE, flags=re.MULTILINE))

    def cell(row: str) -> str:
        return rows[row].split(" | ")[column]

    assert cell("epochs × pictures / batch = steps").endswith(f"= {steps:,}")
    assert cell("tokens trained on") == f"{images * config.scales.total / 1e9:.0f} · 10⁹"
    assert cell("forward, TFLOP a picture") == f"{forward.total / 1e12:.2f}"
    assert cell("a step, PFLOP") == f"{step / 1e15:.2f}"
    assert cell("the run, EFLOP") == f"{whole / 1e18:,.0f}"
    hours = whole / 150e12 / 3600
    assert float(cell("GPU hours at 150 TFLOP/s, which an A100 keeps up").split()[0].replace(",", "")) == pytest.approx(
        hours, rel=0.01
    )
