"""Laws of `nextscale train tokenizer` and `train transformer`: cut short anywhere, they go on; mistakes are told."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from nextscale import MultiScaleVQVAE, Pipeline
from nextscale.cli import main

pytestmark = pytest.mark.usefixtures("small")

STEPS = 30


@pytest.fixture(scope="module")
def trained(small: None, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tokenizer; look, do not touch."""
    out = tmp_path_factory.mktemp("tokenizer")
    command = ["train", "tokenizer", "--data", pictures, "--steps", 2, "--batch", 4, "--out", out]
    assert main([str(word) for word in command]) == 0
    return out


@pytest.fixture
def tokenizer_run(trained: Path, tmp_path: Path) -> Path:
    """A finished tokenizer, to be spoilt."""
    return shutil.copytree(trained, tmp_path / "finished tokenizer")


@pytest.fixture(params=["tokenizer", "transformer"])
def command(request: pytest.FixtureRequest, pictures: Path) -> list[object]:
    """The command of each stage in turn, without --out."""
    stage = request.param
    tokenizer = ["--tokenizer", request.getfixturevalue("tokenizer_run")] if stage == "transformer" else []
    return ["train", stage, "--data", pictures, "--steps", STEPS, "--batch", 4, *tokenizer]


def left_behind(run: Path) -> dict[str, Any]:
    """Checkpoint, models, history and sample pictures."""
    files = [*run.glob("*.safetensors"), *run.glob("*.json"), *run.glob("samples/*")]
    state = torch.load(run / "state.pt", weights_only=True)
    return {str(file.relative_to(run)): file.read_bytes() for file in files} | flat(state)


def flat(value: Any, name: str = "state") -> dict[str, Any]:
    """A nested state as names and plain values, tensors as dtype and bytes."""
    if isinstance(value, torch.Tensor):
        return {name: (value.dtype, value.contiguous().numpy().tobytes())}
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for part, inner in items for key, leaf in flat(inner, f"{name}/{part}").items()}
    return {name: value}


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    """Until the program has told of a check at `step` or later."""
    assert process.stdout is not None
    for line in process.stdout:
        if (told := re.search(r"step (\d+)/", line)) and int(told[1]) >= step:
            return
    raise AssertionError(f"the program ended early: {process.stderr.read() if process.stderr else ''}")


def wait_for_save(process: subprocess.Popen[str], run: Path) -> None:
    """Until a checkpoint is half written."""
    while process.poll() is None:
        if any(name.startswith(".state.pt.") for name in os.listdir(run)):
            return


# ---- cut short -------------------------------------------------------------------------------------------------------


def test_a_killed_run_continues_bit_for_bit(nextscale, started, command: list[object], tmp_path: Path) -> None:
    """SIGKILL during a save, or at a random moment; the same command goes on to the same weights and history."""
    in_a_save, at_random = tmp_path / "killed in a save", tmp_path / "killed at random"

    def killed(run: Path) -> int:
        process = started(*command, "--out", run)
        wait_for_step(process, 4)
        if run == in_a_save:
            wait_for_save(process, run)
        else:
            time.sleep(random.uniform(0, 0.1))
        process.kill()
        return process.wait()

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(killed, (in_a_save, at_random))) == [-signal.SIGKILL] * 2
    assert nextscale(*command, "--out", tmp_path / "whole").status == 0
    for run in (in_a_save, at_random):
        assert nextscale(*command, "--out", run).status == 0
        assert left_behind(run) == left_behind(tmp_path / "whole")


def test_an_interrupted_run_says_so_and_continues(nextscale, started, pictures: Path, tmp_path: Path) -> None:
    """After Ctrl-C or SIGTERM: saved, one line, status 130, a model that loads; the same command goes on from there."""
    signals = {tmp_path / "interrupted": signal.SIGINT, tmp_path / "terminated": signal.SIGTERM}
    command = ["train", "tokenizer", "--data", pictures, "--batch", 4, "--steps", 60, "--out"]

    def stopped(run: Path) -> tuple[int, str, str]:
        process = started(*command, run)
        wait_for_step(process, 5)
        process.send_signal(signals[run])
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(stopped, signals))
    for run, (status, output, errors) in zip(signals, results, strict=True):
        told = re.search(r"^tokenizer: stopped at step (\d+) of 60, saved in", output, flags=re.MULTILINE)
        assert told, output
        assert (status, errors) == (130, "nextscale: interrupted\n")
        assert MultiScaleVQVAE.load(run)
        assert torch.load(run / "state.pt", weights_only=True)["step"] == int(told[1])
        done = nextscale(*command, run)
        assert done.status == 0
        first = re.search(r"step (\d+)/60", done.output)
        assert first
        assert int(first[1]) > int(told[1])


def test_a_finished_run_is_reused(nextscale, command: list[object], tmp_path: Path) -> None:
    """The second time it says so, takes no step, and changes nothing."""
    out = tmp_path / "run"
    assert "finished already" not in nextscale(*command, "--out", out).output
    before = left_behind(out)
    again = nextscale(*command, "--out", out)
    assert (again.status, again.errors) == (0, "")
    assert f"{out} is finished already, nothing to do" in " ".join(again.output.split())
    assert not re.search(r"step \d", again.output)
    assert left_behind(out) == before


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_output_is_plain_and_80_columns_wide(nextscale, pictures: Path, monkeypatch, tmp_path: Path) -> None:
    """Where it is not a terminal; the last line is the command that comes next."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").symlink_to(pictures)
    first = nextscale("train", "tokenizer", "--data", "p", "--steps", 3, "--out", "tok")
    second = nextscale("train", "transformer", "--data", "p", "--steps", 3, "--out", "var", "--tokenizer", "tok")
    for done in (first, second):
        assert (done.status, done.errors) == (0, "")
        assert all(character.isprintable() or character == "\n" for character in done.output)
        assert max(map(len, done.output.splitlines())) <= 80
    assert first.output.splitlines()[-1] == "nextscale train transformer --data p --preset emoji-32 --tokenizer tok"
    assert second.output.splitlines()[-1] == "nextscale sample --model var"
    assert Pipeline.load("var").classes == ("cat", "dog")


def test_steps_and_batch_are_what_was_asked_for(nextscale, pictures: Path, tmp_path: Path) -> None:
    """And the recipe's own where nothing was."""
    from nextscale.training.tokenizer import RECIPE

    nextscale(
        "train", "tokenizer", "--data", pictures, "--steps", 3, "--batch", 5, "--seed", 9, "--out", tmp_path / "a"
    )
    nextscale("train", "tokenizer", "--data", pictures, "--steps", 1, "--out", tmp_path / "b")
    a, b = (json.loads((tmp_path / name / "run.json").read_text()) for name in "ab")
    assert (a["steps"], a["settings"]["recipe"]["batch"], a["settings"]["seed"]) == (3, 5, 9)
    assert (b["steps"], b["settings"]["recipe"]["batch"], b["settings"]["seed"]) == (1, RECIPE.batch, 0)


def test_broken_pictures_are_counted_and_named(nextscale, tmp_path: Path) -> None:
    """One in a hundred and one: a line on the console, its name in the run's data.json."""
    folder, out = tmp_path / "pictures", tmp_path / "run"
    folder.mkdir()
    for number in range(100):
        Image.new("RGB", (9, 9), (number, 2 * number, 100)).save(folder / f"{number:03}.png")
    (folder / "broken.png").write_bytes((folder / "007.png").read_bytes()[:40])
    done = nextscale("train", "tokenizer", "--data", folder, "--steps", 1, "--out", out)
    assert done.status == 0
    assert "1 pictures cannot be read" in done.output
    stored = json.loads((out / "data.json").read_text())
    assert stored["broken"] == ["broken.png"]
    assert stored["train"] + stored["validation"] == 100


# ---- mistakes --------------------------------------------------------------------------------------------------------


def is_a_mistake(done: Any, *told: str) -> None:
    """Status 2 and exactly one line on stderr, which tells."""
    assert done.status == 2, done
    assert done.errors.startswith("nextscale: error: ")
    assert done.errors.count("\n") == 1
    assert all(part in done.errors for part in told), done.errors


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "missing"], ("expected a folder of pictures, found nothing at missing",)),
        (["--data", "empty"], ("empty", "expected")),
        (["--data", "lonely"], ("lonely", "expected at least 2")),
        (["--data", "spoilt"], ("spoilt", "unreadable")),
        (["--data", "a-file"], ("expected a folder of pictures, got the file a-file",)),
        (["--preset", "emoji-23"], ("preset: expected one of", "did you mean emoji-32?")),
        (["--steps", "3", "--minutes", "1"], ("--steps or --minutes", "both")),
        (["--steps", "0"], ("steps: expected at least 1, got 0",)),
        (["--steps", "some"], ("--steps: expected an integer, got 'some'",)),
        (["--minutes", "-1"], ("minutes: expected more than 0, got -1",)),
        (["--batch", "0", "--steps", "1"], ("batch: expected at least 1, got 0",)),
        (["--device", "abacus", "--steps", "1"], ("device: expected", "abacus")),
        (["--out", "a-file", "--steps", "1"], ("a-file",)),
        (["--out", "a-file/run", "--steps", "1"], ("a-file/run",)),
        (["--stpes", "1"], ("unknown option --stpes; did you mean --steps?",)),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    nextscale,
    tokenizer_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    arguments: list[str],
    told: tuple[str, ...],
) -> None:
    """In words that name what was given; nothing is trained."""
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "lonely", "spoilt"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "lonely" / "one.png")
    for number in range(3):
        (tmp_path / "spoilt" / f"{number}.png").write_text("no picture")
    (tmp_path / "a-file").touch()
    tokenizer = ["--tokenizer", tokenizer_run] if stage == "transformer" else []
    is_a_mistake(nextscale("train", stage, *tokenizer, *arguments), *told)
    assert not list((tmp_path / "runs").rglob("state.pt"))


def test_another_run_in_the_directory_is_refused(
    nextscale, command: list[object], pictures: Path, tmp_path: Path
) -> None:
    """With the difference, and without changing it."""
    out = tmp_path / "run"
    command[command.index(STEPS)] = 1
    assert nextscale(*command, "--out", out).status == 0
    before = left_behind(out)
    is_a_mistake(nextscale(*command, "--seed", 5, "--out", out), f"{out} holds another run (seed is 0 there, 5 here)")
    (tmp_path / "other").mkdir()
    for kind in ("cat", "dog"):
        shutil.copytree(pictures / kind, tmp_path / "other" / kind)
    (tmp_path / "other" / "cat" / "00.png").unlink()
    is_a_mistake(
        nextscale(*[tmp_path / "other" if word == pictures else word for word in command], "--out", out), "data"
    )
    assert left_behind(out) == before


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_damaged_checkpoint_is_one_line(nextscale, pictures: Path, tokenizer_run: Path) -> None:
    """Cut in half, as a full disk leaves it."""
    halve(tokenizer_run / "state.pt")
    done = nextscale("train", "tokenizer", "--data", pictures, "--steps", 2, "--batch", 4, "--out", tokenizer_run)
    is_a_mistake(done, "state.pt: expected this run's checkpoint, got a damaged one")


def edited(file: Path, change: Callable[[Any], object]) -> None:
    values = json.loads(file.read_text())
    change(values["tokenizer"])
    file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda run: halve(run / "tokenizer.safetensors"), "tokenizer.safetensors"),
        (lambda run: (run / "tokenizer.safetensors").unlink(), "tokenizer.safetensors, found none"),
        (lambda run: halve(run / "config.json"), "config.json: expected JSON"),
        (lambda run: (run / "config.json").unlink(), "config.json"),
        (lambda run: (run / "config.json").write_text("[]"), "tokenizer"),
        (
            lambda run: edited(run / "config.json", lambda c: c.update(codebook_size="64")),
            "codebook_size: expected int",
        ),
        (lambda run: edited(run / "config.json", lambda c: c.update(scales=3)), "scales: expected a list, got 3"),
        (lambda run: edited(run / "config.json", lambda c: c.update(scales=[1, "2"])), "'2'"),
        (lambda run: edited(run / "config.json", lambda c: c.update(scales=[1, 2])), "weights do not fit"),
        (lambda run: edited(run / "config.json", lambda c: c.update(channels=64)), "weights do not fit"),
        (lambda run: edited(run / "config.json", lambda c: c.pop("distance")), "missing distance"),
        (shutil.rmtree, "expected a model directory"),
    ],
)
def test_a_spoilt_tokenizer_is_one_line(
    nextscale, pictures: Path, tokenizer_run: Path, tmp_path: Path, spoil: Callable[[Path], object], told: str
) -> None:
    """Files missing, cut in half, of the wrong type, or of another size than the weights."""
    spoil(tokenizer_run)
    done = nextscale(
        "train", "transformer", "--data", pictures, "--tokenizer", tokenizer_run, "--steps", 1, "--out", tmp_path / "v"
    )
    is_a_mistake(done, told)


def test_a_run_that_diverges_is_one_line(nextscale, pictures: Path, tmp_path: Path, monkeypatch) -> None:
    """No traceback: nothing is wrong with the program. Three steps at an absurd learning rate."""
    import dataclasses

    from nextscale.training import tokenizer

    monkeypatch.setattr(tokenizer, "RECIPE", dataclasses.replace(tokenizer.RECIPE, learning_rate=1e30, warmup_steps=0))
    done = nextscale("train", "tokenizer", "--data", pictures, "--steps", 30, "--out", tmp_path / "run")
    is_a_mistake(done, "is not finite", "training diverged", "keeps the last checkpoint")
