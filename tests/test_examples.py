"""examples/ is kept: every script and every cell of the notebook runs, on models and pictures of a few pixels."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nextscale import Pipeline, features, presets
from nextscale.cli import main, memory, parse
from nextscale.release import convert, files

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = {
    "reconstruct": ("model", "cat.jpg"),
    "sample": ("model",),
    "edit": ("model", "cat.jpg"),
    "train": ("pictures", "runs/mine", "0.002"),
    "evaluate": ("model", "pictures", "10"),
    "release": ("vae.pth", "var.pth", "3"),
}
NOTEBOOK = json.loads((EXAMPLES / "nextscale.ipynb").read_text("utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
LINES = [line[1:] for cell in CELLS for line in cell.splitlines() if line.startswith("!")]


@pytest.fixture
def world(pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of somebody who has a model, the release's files and pictures; every preset is as small as they."""
    small = {"tokenizer": pipe.tokenizer.config, "transformer": pipe.transformer.config}
    get = presets.get
    monkeypatch.setattr(presets, "get", lambda name: dataclasses.replace(get(name), **small))
    monkeypatch.setattr(features.FeatureNetwork, "side", 32)
    monkeypatch.setattr(memory, "keep_freed", lambda: None)
    monkeypatch.chdir(tmp_path)
    pipe.save("model")
    files.write(Path("vae.pth"), convert.exported(pipe.tokenizer))
    files.write(Path("var.pth"), convert.exported(pipe.transformer))
    for number in range(24):
        place = Path("pictures") / ("cat", "dog", "ant", "bee", "eel")[number % 5]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    Image.open("pictures/cat/0.png").resize((30, 20)).save("cat.jpg")
    return tmp_path


@pytest.fixture
def run(world: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`run("sample", "model")`: as `python examples/sample.py model` does."""

    def call(name: str, *words: str) -> None:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

    return call


def test_every_script_is_run_here() -> None:
    """And says in its first lines how it is called, with as many words."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SCRIPTS.keys()
    for name, words in SCRIPTS.items():
        text = (EXAMPLES / f"{name}.py").read_text("utf-8")
        (line,) = re.findall(rf"^ *python examples/{name}\.py (.*)$", text, re.MULTILINE)
        assert len(line.split()) == len(words), name


def test_reconstruct(run: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """A strip of all scales; the last differs from itself by nothing."""
    run("reconstruct", *SCRIPTS["reconstruct"])
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "through scale 4 (4x4): differs from the last by 0.000"
    with Image.open("reconstruction.png") as strip:
        assert strip.size == (4 * 8 + 3 * 2, 8)


def test_sample(run: Callable[..., None]) -> None:
    """Eight pictures of the first class, and one as it grows."""
    run("sample", *SCRIPTS["sample"])
    assert len(list(Path("samples").glob("0-ant-seed?.png"))) == 8
    assert Path("growing.png").exists()


def test_edit(run: Callable[..., None]) -> None:
    """Four results; that all around the hole stays is asserted by the script."""
    run("edit", *SCRIPTS["edit"])
    assert len(list(Path("edits").glob("*.png"))) == 4


@pytest.mark.slow
def test_train(run: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """Both stages; a second time there is nothing left to do but the pictures."""
    run("train", *SCRIPTS["train"])
    told = capsys.readouterr().out
    assert "dB on held-out pictures" in told
    assert "held-out loss" in told
    assert len(list(Path("runs/mine/pictures").glob("*.png"))) == 4
    run("train", *SCRIPTS["train"])
    assert "held-out loss" not in capsys.readouterr().out


@pytest.mark.slow
def test_evaluate(run: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """Figures of both settings, and the card as a file."""
    run("evaluate", *SCRIPTS["evaluate"])
    told = capsys.readouterr().out
    assert "guidance 0\n" in told
    assert "guidance 1.5\n" in told
    assert "FD-EffNetLite0" in told
    assert len(json.loads(Path("card.json").read_text("utf-8"))["results"]) == 2


def test_release(run: Callable[..., None]) -> None:
    """Pictures, a directory of ours, and tensors that go back unchanged, as the script asserts."""
    run("release", *SCRIPTS["release"])
    assert len(list(Path("samples").glob("*.png"))) == 4
    assert Pipeline.load("converted").transformer.config.classes == 5


# ---- the notebook ----------------------------------------------------------------------------------------------------


def test_the_notebook_is_one_that_colab_opens() -> None:
    """Nothing has been run in it, and its first cell installs the package."""
    assert (NOTEBOOK["nbformat"], NOTEBOOK["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert not [cell for cell in NOTEBOOK["cells"] if cell.get("outputs") or cell.get("execution_count")]
    assert CELLS[0] == "%pip install --quiet nextscale"


@pytest.mark.parametrize("line", LINES)
def test_the_commands_of_the_notebook_parse(line: str) -> None:
    """As they stand."""
    program, *words = shlex.split(line)
    assert program == "nextscale"
    assert parse(words) is not None


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [False, True], ids=["own pictures", "drawn ones"])
def test_every_cell_of_the_notebook_runs(world: Path, drawn: bool) -> None:
    """In order, in one namespace; `nextscale demo` has been run before, and training takes one step."""
    Path("runs").mkdir()
    Path("model").rename("runs/demo")
    if drawn:
        Path("pictures").rename("others")
    shown: list[Any] = []
    names: dict[str, Any] = {"display": shown.append}
    for cell in CELLS[1:]:
        for line in (line[1:] for line in cell.splitlines() if line.startswith("!nextscale train")):
            words = shlex.split(re.sub(r"--minutes \S+", "--steps 1 --batch 2", line))
            assert main(words[1:]) == 0, line
        exec(compile("\n".join(line for line in cell.splitlines() if not line.startswith("!")), "cell", "exec"), names)
    assert len(shown) == 4
    assert all(picture.width > picture.height for picture in shown)
    assert names["mine"].classes == (("circle", "square") if drawn else ("ant", "bee", "cat", "dog", "eel"))
