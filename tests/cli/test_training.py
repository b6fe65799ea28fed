"""Laws of `nextscale train tokenizer` and `train transformer`: cut short anywhere, they go on; mistakes are told."""

from __future__ import annotations

import json
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from processes import Program

from nextscale import MultiScaleVQVAE, Pipeline, Scales
from nextscale.cli import main, train_tokenizer
from nextscale.machine import distributed

pytestmark = pytest.mark.usefixtures("small")

STEPS = 18

# What a tokenizer can be trained with, all at once: the discriminator learns from step 4 on and is heard from step 7.
EVERYTHING = (
    "adversarial.discriminator=patch",
    "adversarial.start=0.1",
    "adversarial.warmup=0.1",
    "adversarial.ramp=0.2",
    "codebook.learning=average",
    "codebook.restart_every=5",
    "codebook.dead_below=0.5",
    "codebook.dropout=0.5",
    "codebook.random_scales=0.3",
    "objective.entropy=0.05",
    "optimization.accumulate=2",
    "flip=true",
)


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
    more = ["--set", *EVERYTHING]
    if stage == "transformer":
        more = ["--tokenizer", request.getfixturevalue("tokenizer_run")]
    return ["train", stage, "--data", pictures, "--steps", STEPS, "--batch", 4, "--checks", 12, *more]


def left_behind(run: Path) -> dict[str, Any]:
    """Checkpoint, models, the best one too, history and sample pictures."""
    files = [*run.glob("**/*.safetensors"), *run.glob("**/*.json"), *run.glob("samples/*")]
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


def wait_for_step(process: Program, step: int) -> None:
    """Until the program has told of a check at `step` or later."""
    assert process.stdout is not None
    for line in process.stdout:
        if (told := re.search(r"step (\d+)/", line)) and int(told[1]) >= step:
            return
    raise AssertionError(f"the program ended early: {process.stderr.read() if process.stderr else ''}")


def wait_for_save(process: Program, run: Path) -> None:
    """Until a checkpoint is half written."""
    while process.poll() is None:
        if any(run.glob(".nextscale-*/state.pt")):
            return


# ---- going on from a trained one ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tokenizer_begins_with_a_trained_one(nextscale, pictures: Path, trained: Path, tmp_path: Path) -> None:
    """The first step changes little; at another size the scales are others."""
    command = ["train", "tokenizer", "--data", pictures, "--steps", 1, "--batch", 4, "--init", trained]
    small = ["--set", "optimization.learning_rate=1e-6"]
    assert nextscale(*command, *small, "--out", tmp_path / "on").status == 0
    assert (
        nextscale(*command, *small[:1], "architecture.scales=1,2,4", *small[1:], "--out", tmp_path / "less").status == 0
    )
    old, new, less = map(MultiScaleVQVAE.load, (trained, tmp_path / "on", tmp_path / "less"))
    assert (new.config, less.config.scales) == (old.config, Scales([1, 2, 4]))
    for one, *others in zip(old.parameters(), new.parameters(), less.parameters(), strict=True):
        for other in others:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_a_tokenizer_of_another_architecture_is_no_beginning(nextscale, pictures: Path, trained: Path) -> None:
    """Every difference is named; nothing is there, or no tokenizer."""
    command = ["train", "tokenizer", "--data", pictures, "--steps", 1, "--batch", 4]
    other = ["--set", "architecture.codebook_size=32", "architecture.phi_count=2"]
    told = "expected the architecture of --preset emoji-32, got codebook_size 64 there and 32 here, phi_count 4 there"
    is_a_mistake(nextscale(*command, "--init", trained, *other), f"--init {trained}: {told}")
    is_a_mistake(nextscale(*command, "--init", "nowhere"), "expected a model directory, found none at nowhere")
    is_a_mistake(
        nextscale(*command, "--init", pictures), f"expected a model directory with config.json, got {pictures}"
    )


# ---- cut short -------------------------------------------------------------------------------------------------------


@pytest.fixture
def reading(command: list[object], pictures: Path, tmp_path: Path) -> list[object]:
    """Likewise, but that the transformer learns from captions too, two a picture."""
    if "transformer" not in command:
        return command
    table, files = tmp_path / "captions.csv", sorted(pictures.glob("*/*.png"))
    rows = [f"{file.parent.name}/{file.name},{word} {file.parent.name}" for file in files for word in ("a", "one")]
    table.write_text("\n".join(["file,caption", *rows]))
    return [*command, "--captions", table, "--text", "embedded"]


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(nextscale, started, reading: list[object], tmp_path: Path) -> None:
    """SIGKILL during a save, or at a random moment; the same command goes on to the same weights and history."""
    command = reading
    in_a_save, at_random = tmp_path / "killed in a save", tmp_path / "killed at random"

    def killed(run: Path) -> int:
        process = started(*command, "--out", run)
        wait_for_step(process, 4)
        if run == in_a_save:
            wait_for_save(process, run)
        else:
            time.sleep(random.uniform(0, 0.3))
        process.kill()
        return process.wait()

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(killed, (in_a_save, at_random))) == [-signal.SIGKILL] * 2
    assert nextscale(*command, "--out", tmp_path / "whole").status == 0
    for run in (in_a_save, at_random):
        assert nextscale(*command, "--out", run).status == 0
        assert left_behind(run) == left_behind(tmp_path / "whole")


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert second.output.splitlines()[-1] == "nextscale sample --model var --out samples/var"
    assert Pipeline.load("var").classes == ("cat", "dog")


def test_steps_and_batch_are_what_was_asked_for(nextscale, pictures: Path, tmp_path: Path) -> None:
    """And the recipe's own where nothing was."""
    from nextscale.training.recipes import for_preset, recorded

    nextscale(
        "train", "tokenizer", "--data", pictures, "--steps", 3, "--batch", 5, "--seed", 9, "--out", tmp_path / "a"
    )
    nextscale("train", "tokenizer", "--data", pictures, "--steps", 1, "--out", tmp_path / "b")
    a, b = (json.loads((tmp_path / name / "run.json").read_text()) for name in "ab")
    batches = [run["settings"]["recipe"]["optimization"]["batch"] for run in (a, b)]
    assert batches == [5, for_preset("emoji-32")[0].optimization.batch]
    assert [(run["steps"], run["settings"]["seed"]) for run in (a, b)] == [(3, 9), (1, 0)]
    assert b["settings"]["recipe"] == json.loads(json.dumps(recorded(for_preset("emoji-32")[0])))


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_one_plateau_gives_models_of_several_lengths(
    nextscale, pictures: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    """A fall from it is that of a whole run, bit for bit; the plateau is made longer, and the first fall stays done."""
    command = ["train", "transformer", "--data", pictures, "--tokenizer", tokenizer_run, "--batch", 4]
    command += ["--set", "optimization.warmup_steps=1", "--cooldown"]
    held, fallen = ["--plateau", tmp_path / "held"], ["--out", tmp_path / "fallen"]
    assert nextscale(*command, 0, "--steps", 4, "--out", tmp_path / "held").status == 0
    assert nextscale(*command, 0.2, *held, *fallen).status == 0
    assert nextscale(*command, 0.2, "--steps", 5, "--out", tmp_path / "whole").status == 0
    weights = [(tmp_path / run / "transformer.safetensors").read_bytes() for run in ("fallen", "whole", "held")]
    assert weights[0] == weights[1] != weights[2]
    assert nextscale(*command, 0, "--steps", 6, "--out", tmp_path / "held").status == 0
    assert "finished already, nothing to do" in " ".join(nextscale(*command, 0.2, *held, *fallen).output.split())
    late = nextscale(*command, 0.2, *held, "--steps", 5, "--out", tmp_path / "late")
    is_a_mistake(
        late, "steps: expected a cooldown that begins at step 6 or later", "got one of 5 steps that begins at 4"
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--cooldown", 1], "cooldown: expected a share from 0 to below 1, got 1.0"),
        (["--plateau", "held"], "--plateau: expected --cooldown too"),
        (["--plateau", "held", "--cooldown", 0.2, "--minutes", 1], "--plateau: expected a length in --steps, got"),
        (["--plateau", "held", "--cooldown", 0.2], "expected a run with a checkpoint, got held"),
    ],
)
def test_what_is_no_plateau_is_told(nextscale, pictures: Path, trained: Path, options: list[Any], told: str) -> None:
    """In one line."""
    is_a_mistake(nextscale("train", "transformer", "--data", pictures, "--tokenizer", trained, *options), told)


def test_a_run_that_diverges_is_one_line(nextscale, pictures: Path, tmp_path: Path) -> None:
    """No traceback: nothing is wrong with the program, but the learning rate; the last step's pictures are kept."""
    absurd = ["--set", "optimization.learning_rate=1e30", "optimization.warmup_steps=0"]
    run = tmp_path / "run"
    done = nextscale("train", "tokenizer", "--data", pictures, "--steps", 30, "--batch", 4, "--out", run, *absurd)
    remedy = "with another --out, try a lower optimization.learning_rate or a smaller optimization.clip (--set), or "
    told = (
        "no finite gradient in 10 steps in a row",
        "training diverged",
        f"there is no checkpoint in {run} yet",
        remedy,
    )
    is_a_mistake(done, *told)
    (kept,) = run.glob("not-finite-step-*.png")
    assert str(kept) in done.errors
    assert kept.with_suffix(".safetensors").exists()


@pytest.mark.slow
def test_a_run_that_ends_diverged_is_no_finished_one(nextscale, pictures: Path, tmp_path: Path) -> None:
    """Fewer than ten steps were skipped at its end; what was good before stays and can be used.

    Weight decay is good for the first step alone, since it rises by 37 powers of ten.
    """
    run = tmp_path / "run"
    command = ["train", "tokenizer", "--data", pictures, "--steps", 9, "--batch", 4, "--checks", 9, "--out", run]
    done = nextscale(*command, "--set", "optimization.final_weight_decay=1e37")
    is_a_mistake(
        done, "the weights of the last step, 9, give metrics that are not finite: training diverged", f"{run} keeps the"
    )
    assert "nothing is saved" in " ".join(done.output.split())
    assert json.loads((run / "run.json").read_text())["finished"] is False
    history = json.loads((run / "history.json").read_text(), parse_constant=pytest.fail)
    assert torch.load(run / "state.pt", weights_only=True)["step"] == history[-1]["step"] == 1
    assert all(weight.isfinite().all() for weight in MultiScaleVQVAE.load(run).parameters())


@pytest.mark.parametrize("first", [True, False])
def test_an_interruption_is_said_once(
    nextscale, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """By the first of several processes; the others end with the same status, in silence."""

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_tokenizer, "watch", stopped)
    monkeypatch.setattr(distributed, "is_first", lambda: first)
    command = ["train", "tokenizer", "--data", pictures, "--steps", 1, "--out", tmp_path / "run"]
    if first:
        done = nextscale(*command)
        assert (done.status, done.errors) == (130, "nextscale: interrupted\n")
    else:
        with pytest.raises(SystemExit) as ended:
            nextscale(*command)
        assert ended.value.code == 130


@pytest.mark.slow
def test_a_short_run_prints_few_tables(nextscale, pictures: Path, tmp_path: Path) -> None:
    """Two of twenty steps, or as many as are asked for."""
    command = ["train", "tokenizer", "--data", pictures, "--steps", 20, "--batch", 2]
    assert nextscale(*command, "--out", tmp_path / "a").output.count("held out: psnr") == 2
    told = nextscale(*command, "--checks", 3, "--keep", 2, "--out", tmp_path / "b")
    assert told.output.count("held out: psnr") == 3
    kept = sorted(path.name for path in (tmp_path / "b" / "milestones").iterdir())
    assert kept == ["step-0000010", "step-0000020"]
    assert MultiScaleVQVAE.load(tmp_path / "b" / "milestones" / kept[0])


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--checks", "0"], "checks: expected at least 1, got 0"),
        (["--checkpoint-minutes", "0"], "checkpoint minutes: expected more than 0, got 0"),
        (["--keep", "-1"], "keep: expected 0 or more, got -1"),
    ],
)
def test_a_mistaken_rhythm_is_one_line(nextscale, stage: str, arguments: list[str], told: str) -> None:
    """Before any picture is read."""
    is_a_mistake(nextscale("train", stage, "--data", "missing", *arguments), told)


@pytest.mark.filterwarnings("default")
def test_other_files_in_the_directory_are_told(nextscale, pictures: Path, tmp_path: Path) -> None:
    """In a line of output, and the work goes on."""
    (tmp_path / "notes.txt").write_text("mine")
    done = nextscale("train", "tokenizer", "--data", pictures, "--steps", 1, "--batch", 2, "--out", tmp_path)
    assert (done.status, done.errors) == (0, "")
    assert f"warning: {tmp_path} holds other files, which stay: notes.txt" in " ".join(done.output.split())


# ---- what a tokenizer is trained with --------------------------------------------------------------------------------


def test_settings_reach_recipe_and_architecture(nextscale, pictures: Path, tmp_path: Path) -> None:
    """Recorded with the run; what has an option of its own can be set by it."""
    settings = ["objective.l1=0.5", "optimization.betas=0.5,0.9", "flip=true", "architecture.code_channels=4"]
    command = ["train", "tokenizer", "--data", pictures, "--steps", 1, "--batch", 4, "--out", tmp_path / "run"]
    done = nextscale(*command, "--discriminator", "patch", "--set", *settings)
    assert (done.status, done.errors) == (0, "")
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["recipe"]
    assert (recipe["objective"]["l1"], recipe["flip"], recipe["optimization"]["betas"]) == (0.5, True, [0.5, 0.9])
    assert recipe["adversarial"]["discriminator"] == "patch"
    assert MultiScaleVQVAE.load(tmp_path / "run").config.code_channels == 4
    is_a_mistake(nextscale(*command, "--set", *settings), "adversarial.discriminator is patch there, none here")


@pytest.mark.slow
def test_pictures_may_have_any_size(nextscale, pictures: Path, tmp_path: Path) -> None:
    """Rectangles, too, with scales to go with it; the size is the tokenizer's from then on."""
    run = tmp_path / "run"
    done = nextscale("train", "tokenizer", "--data", pictures, "--steps", 1, "--size", "16x24", "--out", run)
    assert (done.status, done.errors) == (0, "")
    assert "at 16x24" in done.output
    config = MultiScaleVQVAE.load(run).config
    assert (config.height, config.width) == (16, 24)
    assert config.scales == Scales.suggest(16, 24, config.stride)
    assert (run / "best" / "tokenizer.safetensors").exists()


@pytest.mark.slow
def test_the_packaged_network_is_there_for_whoever_asks(nextscale, pictures: Path, tmp_path: Path) -> None:
    """For the perceptual and the semantic term and for a discriminator on features, heard from the first step on."""
    run = tmp_path / "run"
    now = ["adversarial.start=0", "adversarial.warmup=0", "adversarial.ramp=0"]
    command = ["train", "tokenizer", "--data", pictures, "--steps", 2, "--batch", 2, "--out", run]
    done = nextscale(
        *command, "--discriminator", "features", "--set", "objective.perceptual=0.1", *now, "objective.semantic=0.1"
    )
    assert (done.status, done.errors) == (0, "")
    assert "projected features have a cosine of" in done.output
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert settings["perceptual"]
    assert settings["backbone"] == settings["semantic"]
    assert "adversary" in torch.load(run / "state.pt", weights_only=True)["parts"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--size", "16"], ("--size: expected HEIGHTxWIDTH in pixels, such as 96x128, got '16'",)),
        (["--size", "16x24", "--set", "architecture.scales=1,2"], ("--size or --set architecture.scales, got both",)),
        (["--size", "15x24"], ("multiples of 2 pixels, got 15x24",)),
        (["--size", "0x24"], ("got 0x24",)),
        (["--set", "objective.perceptul=1"], ("'objective.perceptul'", "did you mean objective.perceptual?")),
        (["--set", "architecture.code_chanels=4"], ("code_chanels", "did you mean", "code_channels?")),
        (["--set", "flip"], ("expected NAME=VALUE, got 'flip'",)),
        (["--set", "codebook.dropout=2"], ("codebook.dropout: expected a share from 0 to 1, got 2",)),
        (["--set", "optimization.accumulate=3", "--batch", "4"], ("a divisor of the batch of 4, got 3",)),
        (["--discriminator", "patchy"], ("--discriminator: expected one of", "'patch'", "got 'patchy'")),
        (["--perceptual", "vgg.pth"], ("vgg.pth", "expected a recipe with a perceptual term")),
        (["--backbone", "dino.pth"], ("dino.pth", "expected --discriminator features, got none")),
        (["--semantic", "dino.pth"], ("dino.pth", "expected a recipe with a semantic term")),
        (["--set", "objective.semantic=-1"], ("objective.semantic: expected at least 0, got -1",)),
    ],
)
def test_a_mistaken_recipe_is_one_line(
    nextscale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: tuple[str, ...]
) -> None:
    """Before any picture is read."""
    monkeypatch.chdir(tmp_path)
    is_a_mistake(nextscale("train", "tokenizer", "--data", "missing", *arguments), *told)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep what they keep")
def test_memory_that_training_gave_back_is_not_fetched_again() -> None:
    """Pages that the system has to fill for tensors of a size that was there before."""
    code = """
import resource, sys, torch
from nextscale.cli import memory
memory.keep_freed() if sys.argv[1] == "kept" else None
faults = []
for _ in range(30):
    torch.ones(1 << 24)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[9])
"""
    fetched, kept = (
        int(subprocess.run([sys.executable, "-c", code, way], capture_output=True, text=True, check=True).stdout)
        for way in ("fetched", "kept")
    )
    assert kept < fetched / 4
