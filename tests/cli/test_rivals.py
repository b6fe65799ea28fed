"""Laws of the commands for rivals: the same ones train, sample and judge them, and mistakes are told in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextscale import Pipeline, features, images
from nextscale.cli import main
from nextscale.cli.sample import STRIP
from nextscale.config import Order

pytestmark = pytest.mark.usefixtures("small")

RIVALS: list[Order] = ["raster", "masked", "refined"]
STEPS = ("--steps", 2, "--batch", 4)
SAMPLERS = {"masked": ("steps=3", "annealing=1.5"), "refined": ("steps=3",)}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Any:
    """The network of figures looks at small pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features.FeatureNetwork, "side", 32)
        yield


@pytest.fixture(scope="module")
def single_run(small: None, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one scale of 4x4 tokens."""
    out = tmp_path_factory.mktemp("single")
    assert call("train tokenizer", "--data", pictures, *STEPS, "--out", out, one_scale=True) == 0
    return out


@pytest.fixture(scope="module")
def runs(single_run: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each rival."""
    out = tmp_path_factory.mktemp("runs")
    for order in RIVALS:
        words = ("--tokenizer", single_run, "--order", order, *STEPS, "--out", out / order)
        assert call("train transformer", "--data", pictures, *words) == 0
    return {order: out / order for order in RIVALS}


def call(command: str, *words: object, one_scale: bool = False) -> int:
    scales = ("--set", "architecture.scales=4") if one_scale else ()
    return main([*command.split(), *map(str, (*words, *scales))])


@pytest.mark.slow
@pytest.mark.parametrize("order", RIVALS)
def test_a_rival_is_sampled(order: str, nextscale, runs: dict[str, Path], tmp_path: Path) -> None:
    """Pictures, a grid, strips of some of the steps; `--like` paints one again, to the pixel."""
    sampler = ("--sampler", *SAMPLERS[order]) if order in SAMPLERS else ()
    done = nextscale("sample", "--model", runs[order], "--growing", *sampler, "--out", tmp_path / "out")
    assert done.status == 0, done.errors
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"grid.png", "0-cat-seed0.png", "1-dog-seed1.png", "0-cat-seed0-growing.png"} <= names
    assert "again: nextscale sample" in done.output
    again = nextscale("sample", "--model", runs[order], "--like", tmp_path / "out/1-dog-seed1.png", "--out", tmp_path)
    assert "the same pixels as" in again.output, again.errors
    height, width = (images.open_rgb(tmp_path / "out/0-cat-seed0-growing.png").size)[::-1]
    steps = Pipeline.load(runs[order]).steps if not sampler else 3
    assert width > 5 * height if min(steps, STRIP) > 8 else width > height


@pytest.mark.slow
@pytest.mark.parametrize("order", RIVALS)
def test_a_rival_is_judged(order: str, nextscale, runs: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    """By the same figures; the card tells the sampler."""
    sampler = ("--sampler", *SAMPLERS[order]) if order in SAMPLERS else ()
    words = ("--reference", pictures, "--count", 8, "--json", tmp_path / "card.json", *sampler)
    done = nextscale("evaluate", "generation", "--model", runs[order], *words)
    assert done.status == 0, done.errors
    card = json.loads((tmp_path / "card.json").read_text())["results"][0]["card"]
    told = ", ".join(setting.replace("=", " ") for setting in SAMPLERS.get(order, ()))
    assert card["model"]["sampler"] == (told or None)
    assert not told or told in done.output.replace("\n            ", " ")


@pytest.mark.slow
@pytest.mark.parametrize("order", RIVALS)
def test_a_run_is_continued_and_begun_from(order: str, nextscale, runs, single_run, pictures, tmp_path: Path) -> None:
    """The same command says that it is finished; --init begins another one, in the model's own order."""
    given = ("--data", pictures, "--tokenizer", single_run, "--batch", 4)
    finished = nextscale("train", "transformer", *given, "--order", order, "--steps", 2, "--out", runs[order])
    assert "is finished already" in " ".join(finished.output.split()), finished.errors
    begun = nextscale("train", "transformer", *given, "--init", runs[order], "--steps", 1, "--out", tmp_path / "begun")
    assert begun.status == 0, begun.errors
    assert Pipeline.load(tmp_path / "begun").transformer.order == order
    other = nextscale(
        "train", "transformer", *given, "--init", runs[order], "--order", "scale", "--out", tmp_path / "x"
    )
    assert other.status == 2
    assert f"order {order} there and scale here" in other.errors


@pytest.mark.slow
@pytest.mark.parametrize("order", RIVALS)
def test_what_is_vars_alone_is_refused(order: str, nextscale, runs: dict[str, Path], tmp_path: Path) -> None:
    """Editing, the studio, the release's format: one line each."""
    model = ("--model", runs[order])
    nextscale("sample", *model, "--label", "cat", "--out", tmp_path / "cat.png")
    for words, told in (
        (
            ("edit", tmp_path / "cat.png", *model, "--box", "0,0,4,4", "--out", tmp_path),
            "expected a model of order scale",
        ),
        (("web", *model), "expected a next-scale model, whose scales the studio shows"),
        (("convert", *model, "--out", tmp_path / "a.pth", tmp_path / "b.pth"), "expected a next-scale transformer"),
        (("sample", *model, "--reach", 1, "--out", tmp_path), "reach: expected with a model of order scale"),
        (("sample", *model, "--sampler", "speed=3", "--out", tmp_path), "--sampler: "),
        (("sample", *model, "--prompt", "a cat", "--out", tmp_path), "this model reads no text"),
    ):
        done = nextscale(*words)
        assert done.status == 2
        assert told in done.errors
        assert done.errors.count("\n") == 1


def test_wrong_settings_of_a_sampler_are_told(nextscale, runs, pipe: Pipeline, tmp_path: Path) -> None:
    """Unknown ones with those that there are, wrong values with what was expected, and models that have none."""
    pipe.save(tmp_path / "var")
    for which, setting, told in (
        (runs["masked"], "speed=3", "--sampler: unknown setting 'speed'; expected one of steps, annealing"),
        (runs["masked"], "steps=many", "--sampler: steps: expected an integer, got 'many'"),
        (runs["masked"], "steps=0", "--sampler: steps: expected 1 .. 10000, got 0"),
        (runs["masked"], "steps", "--sampler: expected NAME=VALUE, got 'steps'"),
        (
            tmp_path / "var",
            "steps=3",
            "--sampler: expected with a model whose sampler has settings, got one of order scale",
        ),
    ):
        done = nextscale("sample", "--model", which, "--sampler", setting, "--out", tmp_path)
        assert (done.status, done.errors) == (2, f"nextscale: error: {told}\n")


@pytest.mark.parametrize("order", RIVALS)
def test_a_tokenizer_of_several_scales_is_refused(order: str, nextscale, pictures: Path, tmp_path: Path) -> None:
    """Before anything is trained; the line tells how to make one of one scale."""
    assert call("train tokenizer", "--data", pictures, *STEPS, "--out", tmp_path / "tok") == 0
    words = ("--data", pictures, "--tokenizer", tmp_path / "tok", "--order", order, "--out", tmp_path / "out")
    done = nextscale("train", "transformer", *words)
    assert done.status == 2
    assert "expected a tokenizer of one scale (--set architecture.scales=N makes one), got 4" in done.errors
