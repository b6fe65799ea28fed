"""docs/evaluation.md is kept: its commands parse, its costs are computed, its thresholds are those that warn."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nextscale import cli, features, presets
from nextscale.cli.evaluate_generation import EvaluateGeneration
from nextscale.evaluation import card
from nextscale.machine import flops

PAGE = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
CONSOLE = "".join(re.findall(r"^```console\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))
PUBLISHED = ("var-d16", "var-d20", "var-d24", "var-d30", "var-d36-512")


@pytest.mark.parametrize("line", CONSOLE.splitlines())
def test_the_commands_parse(line: str) -> None:
    """Behind torchrun, too."""
    words = shlex.split(line)
    assert cli.parse(words[words.index("nextscale") + 1 :]) is not None


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_cost_of_a_published_row_is_computed(name: str) -> None:
    """PFLOP of 50,000 pictures with guidance; the first figure is the one the table of presets knows."""
    (row,) = re.findall(rf"^\| {name} \| (.*) \|$", PAGE, flags=re.MULTILINE)
    cells = row.split(" | ")
    preset = presets.get(name)
    model, tokenizer = preset.transformer, preset.tokenizer
    work = flops.condition_work(model, guided=True) + flops.decoder_work(tokenizer)
    for k in range(len(model.scales)):
        work = work + flops.scale_work(model, k, guided=True) + flops.painting_work(tokenizer)
    assert round(work.total * card.ENOUGH / 1e15) == int(cells[-1])
    assert preset.published.startswith(cells[0].split()[0])


@pytest.mark.parametrize("depth", [16, 20, 24, 30, 36])
def test_every_published_row_has_its_command(depth: int) -> None:
    """50 pictures of each of 1,000 classes, at the release's setting."""
    lines = [line for line in CONSOLE.splitlines() if f"--depth {depth} " in line]
    assert lines
    for line in lines:
        command = cli.parse(shlex.split(line)[1:])
        assert isinstance(command, EvaluateGeneration)
        assert (command.per_class_count, command.guidance, command.top_k, command.top_p) == (
            50,
            (1.5,),
            (900,),
            (0.96,),
        )
        assert (command.features, command.keep) == (features.DOWNLOADED, card.ENOUGH)


def test_the_thresholds_are_those_that_warn() -> None:
    """Pictures, and pictures of a class."""
    assert f"fewer than {card.ENOUGH:,} pictures" in PAGE
    assert f"warning from {card.UNEVEN:g} times as many on" in PAGE


@pytest.mark.parametrize("figure", ["FID", "IS"])
def test_names_of_inception_stand_for_its_figures_alone(figure: str) -> None:
    """No other network's figures in any block of the page bear them."""
    printed = re.findall(r"^```text\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert any("FD-EffNetLite0" in block for block in printed)
    assert not any(re.search(rf"\b{figure}\b", block) for block in printed)
    assert card.figure_name({"FID": "FD", "IS": "score"}[figure], card.INCEPTION) == figure


def test_the_python_runs() -> None:
    """As a reader would paste it."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    exec(compile(block, "evaluation.md", "exec"), {})


@pytest.mark.parametrize(
    ("name", "network"),
    [
        (features.PACKAGED, features.efficientnet.EfficientNetLite0),
        (features.DOWNLOADED, features.inception.Inception),
    ],
)
def test_the_table_of_networks_is_what_they_are(name: str, network: type[features.FeatureNetwork]) -> None:
    """Features, sides and ways of resizing."""
    (row,) = re.findall(rf"^\| `{name}`.*$", PAGE, flags=re.MULTILINE)
    resize = network.resize.split()[0].strip(",")
    assert f"| {network.dimensions} | {network.side}x{network.side}, {resize}" in row
