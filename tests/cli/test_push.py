"""`nextscale push`: what it writes, what it says, and what it refuses before anything is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stub import TOKEN, served

from nextscale import Pipeline


@pytest.fixture
def model(pipe: Pipeline, tmp_path: Path) -> Path:
    """A directory as a training run leaves it."""
    pipe.save(tmp_path / "model")
    (tmp_path / "model" / "run.json").write_text(json.dumps({"settings": {"seed": 7}, "steps": 12}))
    (tmp_path / "model" / "data.json").write_text(json.dumps({"train": 90, "validation": 9}))
    return tmp_path / "model"


def test_out_holds_the_model_and_its_page(nextscale, model: Path, pipe: Pipeline, tmp_path: Path) -> None:
    """With the maker's words and the run's recipe; a second time it is written over."""
    (tmp_path / "about.md").write_text("Pictures of *insects*.", encoding="utf-8")
    out = tmp_path / "page"
    words = ("push", "owner/tiny", "--model", model, "--about", tmp_path / "about.md", "--samples", "2", "--out", out)
    for _ in range(2):
        done = nextscale(*map(str, words))
        assert (done.status, done.errors) == (0, ""), done
    assert "without --out they are uploaded to owner/tiny" in " ".join(done.output.split())
    page = (out / "README.md").read_text("utf-8")
    assert "Pictures of *insects*." in page
    assert "90 training pictures and 9 held out." in page
    assert "| seed | 7 |" in page
    assert Pipeline.load(out, precision="fp32").fingerprint == pipe.fingerprint


def test_half_precision_takes_half_the_room(nextscale, model: Path, tmp_path: Path) -> None:
    """Of the transformer's blocks; the page says so."""
    sizes = []
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        words = ("push", "owner/tiny", "--model", model, "--samples", "0", "--precision", precision, "--out", out)
        assert nextscale(*map(str, words)).status == 0
        sizes.append((out / "transformer.safetensors").stat().st_size)
    assert "| stored as | bfloat16 |" in (out / "README.md").read_text("utf-8")
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("owner/tiny",), "--model: expected the model that is to be pushed, got nothing"),
        (("tiny", "--model", "model", "--samples", "0"), "expected the name of a repository on the hub"),
        (("owner/tiny", "--model", "model", "--about", "none.md"), "--about: expected a text file, got none.md"),
        (("owner/tiny", "--model", "model", "--out", "model/best"), "--out: expected an empty directory"),
        (("owner/tiny", "--model", "model", "--license", "My own"), "license: expected an identifier"),
        (
            ("owner/tiny", "--model", "model", "--figures", "model/config.json"),
            "figures: expected what nextscale evaluate",
        ),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...], told: str, nextscale, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And status 2."""
    monkeypatch.chdir(tmp_path)
    (model / "best").mkdir()
    (model / "best" / "other.txt").touch()
    done = nextscale("push", *words)
    assert (done.status, len(done.errors.splitlines())) == (2, 1)
    assert told in done.errors


def program(*words: object, **around: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's client reads its environment once."""
    line = [sys.executable, "-m", "nextscale", *map(str, words)]
    return subprocess.run(line, env=os.environ | around, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_a_model_goes_to_the_hub_and_comes_back(model: Path, tmp_path: Path) -> None:
    """By the real client in processes of their own, which the environment alone leads to the hub on this machine."""
    with served() as hub:
        around = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
        around |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        pushed = program("push", "owner/tiny", "--model", model, "--samples", "1", **around)
        assert pushed.returncode == 0, pushed.stderr
        *_, line = pushed.stdout.splitlines()
        assert line == "nextscale sample --model owner/tiny"
        sampled = program(*line.split()[1:], "--label-index", "0", "--out", tmp_path / "samples", **around)
        assert sampled.returncode == 0, sampled.stderr
        refused = program("push", "owner/tiny", "--model", model, **around | {"HF_TOKEN": "hf_wrong"})
    assert len(list((tmp_path / "samples").glob("0-*.png"))) == 1
    assert refused.returncode == 2
    assert "hf_wrong" not in refused.stderr + refused.stdout
    assert TOKEN not in pushed.stderr + pushed.stdout
