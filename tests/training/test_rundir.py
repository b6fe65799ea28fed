"""Laws of the run directory: it belongs to one run, says what is wrong with it, and tells what was seen."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import platform
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training import toy as toys

import nextscale
from nextscale import MultiScaleVQVAE, images
from nextscale.config import TokenizerConfig
from nextscale.data import DataSet
from nextscale.errors import InputError
from nextscale.training.loop import Length, Rhythm, train
from nextscale.training.rundir import _tensors
from nextscale.training.tokenizer.stage import TokenizerStage

ADVERSARY = ("adversarial.discriminator=patch",)  # which begins after a share of the run


def run(stage: TokenizerStage, directory: Path, *, steps: int = 2, seed: int = 0) -> list[int]:
    """Train to the end; the steps it took."""
    return [event.step for event in train(stage, directory, Length(steps=steps), seed=seed, rhythm=Rhythm(checks=2))]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def made(toy: DataSet, tokenizer_config: TokenizerConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps; look, do not touch."""
    out = tmp_path_factory.mktemp("finished")
    run(toys.stage([], data=toy, config=tokenizer_config), out)
    return out


@pytest.fixture
def finished(made: Path, tmp_path: Path) -> Path:
    """A run of two steps, to be spoilt."""
    return shutil.copytree(made, tmp_path / "run")


# ---- whose directory it is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch": 2}, "recipe.optimization.batch is 4 there, 2 here"),
        ({"learning_rate": 1.0}, "recipe.optimization.learning_rate is 0.002 there, 1.0 here"),
        ({"betas": (0.5, 0.95)}, r"recipe.optimization.betas is \[0.9, 0.95\] there, \[0.5, 0.95\] here"),
        ({"settings": ["objective.l1=0"]}, "recipe.objective.l1 is 0.2 there, 0.0 here"),
        (
            {"settings": ["flip=true", "average=0"]},
            "recipe.average is 0.999 there, 0.0 here; recipe.flip is False there",
        ),
        ({"settings": ["objective.perceptual=1"]}, "perceptual is None there, [0-9a-f]{16} here"),
    ],
)
def test_another_recipe_is_refused(first_stage, finished: Path, change: dict[str, object], told: str) -> None:
    """With the difference, and without touching a file."""
    before = contents(finished)
    with pytest.raises(InputError, match=told):
        run(first_stage(**change), finished)
    assert contents(finished) == before


def test_a_run_without_a_checkpoint_gives_way(first_stage, finished: Path) -> None:
    """One that ended before its first check has nothing to lose, whatever its settings were."""
    (finished / "state.pt").unlink()
    settings = json.loads((finished / "run.json").read_text()) | {"finished": False}
    (finished / "run.json").write_text(json.dumps(settings))
    assert run(first_stage(batch=2), finished, steps=3) == [1, 2, 3]


def test_a_model_is_not_written_over(first_stage, finished: Path) -> None:
    """One of a finished run whose large checkpoint was thrown away, or one that was never trained there."""
    (finished / "state.pt").unlink()
    before = contents(finished)
    with pytest.raises(InputError, match=f"^{finished} holds a finished run without its checkpoint"):
        run(first_stage(), finished)
    assert contents(finished) == before
    (finished / "run.json").unlink()
    with pytest.raises(InputError, match=f"^{finished} holds a model that was not trained there"):
        run(first_stage(), finished)


@pytest.mark.slow
def test_a_log_that_cannot_be_written_ends_no_run(first_stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program has filled the disk: whether a checkpoint finds room is another question."""

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    with pytest.warns(UserWarning, match="tensorboard cannot be written any more: .*No space left") as told:
        assert run(first_stage(), tmp_path) == [1, 2]
    assert len(told) == 1
    assert (tmp_path / "state.pt").exists()


def test_another_length_seed_stage_or_data_is_refused(first_stage, second_stage, finished: Path, toy: DataSet) -> None:
    """Each is a different run; the message begins with the directory."""
    other_data = dataclasses.replace(toy, train=dataclasses.replace(toy.train, fingerprint="edited"))
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: run(first_stage(), finished, steps=3), r"\(length.steps is 2 there, 3 here\)"),
        (lambda: run(first_stage(), finished, seed=7), r"\(seed is 0 there, 7 here\)"),
        (lambda: run(first_stage(other_data), finished), "data is train 18 1 there, edited here"),
        (lambda: run(second_stage(), finished), "stage is tokenizer there, transformer here"),
    ]
    for case, told in cases:
        with pytest.raises(InputError, match=f"^{finished} holds another run .*{told}"):
            case()


def test_differences_are_told_in_the_order_of_the_settings(first_stage, finished: Path) -> None:
    """Whatever the hash seed; what only the run there has comes last."""
    file = finished / "run.json"
    values = json.loads(file.read_text())
    values["settings"] |= dict.fromkeys("qwertyuiop", 1)
    file.write_text(json.dumps(values))
    told = r"\(seed is 0 there, 7 here; q is 1 there, None here; w is 1 there, None here; e is 1 there, None here\)"
    with pytest.raises(InputError, match=told):
        run(first_stage(), finished, seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["first_stage", "second_stage"])
def test_a_run_at_a_constant_rate_is_made_longer(stage: str, request, tmp_path: Path) -> None:
    """And ends as one that was that long from the beginning."""
    make = request.getfixturevalue(stage)
    settings = ["codebook.restart_every=0"] if stage == "first_stage" else []
    steady = {"final_rate": 1.0, "settings": settings}
    assert run(make(**steady), tmp_path / "grown", steps=2) == [1, 2]
    assert run(make(**steady), tmp_path / "grown", steps=4) == [3, 4]
    assert run(make(**steady), tmp_path / "whole", steps=4) == [1, 2, 3, 4]
    for name in ("tokenizer.safetensors", "transformer.safetensors", "run.json"):
        files = [tmp_path / way / name for way in ("grown", "whole")]
        assert {file.exists() for file in files} == {stage == "second_stage" or name != "transformer.safetensors"}
        assert len({file.read_bytes() for file in files if file.exists()}) <= 1, name
    assert run(make(**steady), tmp_path / "grown", steps=4) == []
    with pytest.raises(InputError, match=r"length.steps is 4 there, 3 here\): choose another --out, or ask"):
        run(make(**steady), tmp_path / "grown", steps=3)


@pytest.mark.parametrize(
    "changes", [{}, {"warmup": 0.1}, {"final_weight_decay": 2.0}, {"settings": ADVERSARY}], ids=str
)
def test_a_run_whose_schedule_ends_names_the_way_to_go_on(first_stage, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Its last rate was the last; nothing is touched."""
    changes = {"final_rate": 1.0, **changes} if changes else {}
    run(first_stage(**changes), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=rf"choose another --out, with --init {tmp_path} to go on from its model"):
        run(first_stage(**changes), tmp_path, steps=3)
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_run_cut_short_while_it_was_made_longer_continues(first_stage, tmp_path: Path) -> None:
    """run.json tells the new length already, the checkpoint still the old one."""
    steady = {"final_rate": 1.0}
    run(first_stage(**steady), tmp_path, steps=2)
    steps = train(first_stage(**steady), tmp_path, Length(steps=4), seed=0, rhythm=Rhythm(checks=2))
    assert next(steps).step == 3
    steps.close()
    assert json.loads((tmp_path / "run.json").read_text())["finished"] is False
    assert run(first_stage(**steady), tmp_path, steps=4) == [3, 4]


def test_a_finished_run_s_model_is_mended(first_stage, finished: Path) -> None:
    """The same command writes what was lost of it once more."""
    before = contents(finished)
    (finished / "tokenizer.safetensors").unlink()
    (finished / "config.json").write_text("{")
    assert run(first_stage(), finished) == []
    assert contents(finished) == before


def test_a_cache_of_tokens_is_no_place_for_a_run(first_stage, tmp_path: Path) -> None:
    """Its pictures would lie among the tokens."""
    (tmp_path / "tokens.json").write_text("{}")
    with pytest.raises(InputError, match=f"^{tmp_path} holds a token cache: choose another --out"):
        run(first_stage(), tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "3", "{}", '{"settings": 3}', '{"finished": true}', "{", ""])
def test_a_settings_file_that_is_none_is_refused(first_stage, finished: Path, text: str) -> None:
    """Whatever JSON it holds instead, and if it holds none."""
    (finished / "run.json").write_text(text)
    with pytest.raises(InputError, match="run.json: expected"):
        run(first_stage(), finished)


# ---- damage ----------------------------------------------------------------------------------------------------------


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def stored(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A checkpoint with something changed in it."""

    def damage(file: Path) -> None:
        content = torch.load(file, weights_only=True)
        change(content)
        torch.save(content, file)

    return damage


def a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def flipped(file: Path) -> None:
    """One bit in the middle of the largest tensor."""
    tensors = [tensor for _, tensor in _tensors(torch.load(file, weights_only=True)["parts"]["model"])]
    inside = max(tensors, key=torch.Tensor.numel).numpy().tobytes()
    content = bytearray(file.read_bytes())
    content[content.index(inside) + len(inside) // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flipped,
        a_directory,
        stored(lambda content: content.pop("parts")),
        stored(lambda content: content.pop("step")),
        stored(lambda content: content.update(more=1)),
        stored(lambda content: content["parts"].pop("optimizer")),
        stored(lambda content: content["parts"].update(adversary={})),
        stored(lambda content: content["parts"]["model"].update({"decoder.stem.weight": torch.zeros(3)})),
        stored(lambda content: content["parts"]["optimizer"]["param_groups"].pop()),
        stored(lambda content: content["parts"]["average"].pop("n_averaged")),
        stored(lambda content: content["parts"]["means"].update(hits=torch.zeros(3))),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"no checkpoint"),
        lambda file: torch.save([1, 2], file),
        lambda file: torch.save({"parts": 3}, file),
        lambda file: torch.save(torch.zeros(3), file),
    ],
)
def test_a_damaged_checkpoint_is_named(first_stage, finished: Path, damage: Callable[[Path], object]) -> None:
    """In one line, whichever way it is damaged."""
    damage(finished / "state.pt")
    with pytest.raises(InputError, match="state.pt: expected this run's checkpoint, got a damaged one") as caught:
        run(first_stage(), finished)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_cannot_run_code(first_stage, finished: Path, tmp_path: Path) -> None:
    """Someone else's run directory is data, not a program."""

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"model": Payload()}, finished / "state.pt")
    with pytest.raises(InputError, match="state.pt"):
        run(first_stage(), finished)
    assert not (tmp_path / "harm").exists()


def test_a_directory_that_cannot_be_written_is_named(first_stage, tmp_path: Path) -> None:
    """A file lies where it, or a folder above it, should be."""
    (tmp_path / "taken").touch()
    for directory in (tmp_path / "taken", tmp_path / "taken" / "run"):
        with pytest.raises(InputError, match=f"cannot write {directory}"):
            run(first_stage(), directory)
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


@pytest.mark.skipif(os.geteuid() == 0, reason="everything may be written by root")
def test_a_directory_of_somebody_else_is_named(first_stage, tmp_path: Path) -> None:
    """No permission to write."""
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write .*Permission denied"):
        run(first_stage(), tmp_path / "run")


@pytest.mark.parametrize(("kilobytes", "file"), [(16, r"tokenizer\.\w+\.safetensors"), (1000, "state.pt")])
def test_a_full_disk_is_one_line_and_spares_the_last_checkpoint(
    first_stage, tmp_path: Path, kilobytes: int, file: str
) -> None:
    """Files may not grow beyond a limit that the weights, or the checkpoint with its optimiser, go beyond."""
    events = train(first_stage(), tmp_path, Length(steps=4), seed=0, rhythm=Rhythm(checks=4))
    next(events)
    before = (tmp_path / "state.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, hard))
    try:
        with pytest.raises(InputError, match=f"^cannot write {tmp_path}/(best/)?{file}: .*File too large") as caught:
            next(events)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert MultiScaleVQVAE.load(tmp_path)
    assert MultiScaleVQVAE.load(tmp_path / "best")


@pytest.mark.slow
def test_a_disk_without_room_is_told_before_the_first_step(first_stage, tmp_path: Path, monkeypatch) -> None:
    """For the first checkpoints by a guess that covers them, for the next one by the size of the last."""
    told = "expected room for a checkpoint, about .* GB, got .* GB"

    def leave(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    leave(0)
    with pytest.raises(InputError, match=f"^cannot write {tmp_path}: {told}$"):
        next(train(first_stage(), tmp_path, Length(steps=4), seed=0, rhythm=Rhythm(checks=2)))
    monkeypatch.undo()
    assert not (tmp_path / "state.pt").exists()
    events = train(first_stage(), tmp_path, Length(steps=4), seed=0, rhythm=Rhythm(checks=2))
    assert [next(events).step for _ in range(3)] == [1, 2, 3]
    events.close()
    size = (tmp_path / "state.pt").stat().st_size
    leave(size - 1)
    with pytest.raises(InputError, match=told):
        run(first_stage(), tmp_path, steps=4)
    leave(size)
    list(train(first_stage(), tmp_path, Length(steps=4), seed=0, rhythm=Rhythm(checks=2)))
    with pytest.raises(InputError, match=told):
        run(first_stage(), tmp_path / "new", steps=4)


# ---- what is not the run's -----------------------------------------------------------------------------------------

# Names that look like something that a run might have written, as files and as folders.
USERS = (
    "notes.txt",
    ".env.2024",
    ".zcompdump-host-5.9",
    ".tmpAb1Cd2",
    ".state.pt.123",
    "state-2024",
    "state-of-the-art",
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_nothing_of_the_user_s_is_removed(first_stage, tmp_path: Path, kind: str) -> None:
    """Beside the run's own files, whatever it is called; also when the finished run is asked for again."""
    list(itertools.islice(train(first_stage(), tmp_path, Length(steps=2), seed=0, rhythm=Rhythm(checks=2)), 1))
    users = [tmp_path / place / name for name in USERS for place in (".", "best", "samples")]
    users = [file / "mine" if kind == "folder" else file for file in users]
    for file in users:
        file.parent.mkdir(exist_ok=True)
        file.write_text(file.name)
    assert run(first_stage(), tmp_path) == [2]
    assert run(first_stage(), tmp_path) == []
    assert all(file.read_text() == file.name for file in users)


def test_a_new_run_says_whose_files_it_finds(first_stage, tmp_path: Path) -> None:
    """By name, before it has written anything; hidden files and other runs, which nothing is mixed with, pass."""
    for name in ("one.txt", "two/2.txt", "three.txt", "four.txt", ".hidden", "tokenizer/run.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    told = rf"^{tmp_path} holds other files, which stay: four.txt, one.txt, three.txt and 1 more$"
    with pytest.warns(UserWarning, match=told):
        assert run(first_stage(), tmp_path) == [1, 2]
    assert run(first_stage(), tmp_path) == []


@pytest.mark.parametrize("name", ["state.pt", "data.json", "history.json", "best/x", "samples/x", "tensorboard/x"])
def test_what_a_run_would_replace_is_refused(first_stage, tmp_path: Path, name: str) -> None:
    """Where no run.json says that it is a run's; nothing is touched."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    first = name.partition("/")[0]
    with pytest.raises(
        InputError, match=f"^{tmp_path} holds {first}, but no run.json that would say whose it is: choose"
    ):
        run(first_stage(), tmp_path)
    assert contents(tmp_path) == {name: b"mine"}


def test_a_run_json_of_somebody_else_is_not_replaced(first_stage, tmp_path: Path) -> None:
    """Without a checkpoint beside it, too."""
    (tmp_path / "run.json").write_text('{"name": "my experiment"}')
    with pytest.raises(InputError, match="run.json: expected the settings of a run"):
        run(first_stage(), tmp_path)
    assert contents(tmp_path) == {"run.json": b'{"name": "my experiment"}'}


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [["../users"], ["users"], ["state-0000001/../users"], [3, None], {"users": 1}], ids=str
)
def test_a_list_of_shares_cannot_have_other_directories_removed(first_stage, tmp_path: Path, names: object) -> None:
    """Somebody else's run is data: only what it can have made itself is."""
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "file").write_text("mine")
    inside = tmp_path / "run"
    list(itertools.islice(train(first_stage(), inside, Length(steps=2), seed=0, rhythm=Rhythm(checks=2)), 1))
    shutil.copytree(tmp_path / "users", inside / "users")
    (inside / "state-1").mkdir()
    (inside / "shares.json").write_text(json.dumps(names))
    assert run(first_stage(), inside) == [2]
    assert (tmp_path / "users" / "file").exists()
    assert (inside / "users" / "file").exists()


# ---- what a run tells ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_history_is_what_was_validated(first_stage, tmp_path: Path) -> None:
    """One entry a check: the step, its loss, and the figures on held-out data."""
    events = [
        e for e in train(first_stage(), tmp_path, Length(steps=6), seed=0, rhythm=Rhythm(checks=3)) if e.validation
    ]
    history = json.loads((tmp_path / "history.json").read_text())
    assert history == [{"step": e.step, "loss": e.figures["loss"], **e.validation} for e in events]
    assert [entry["step"] for entry in history] == [2, 4, 6]


def test_run_and_data_files_say_what_it_was(first_stage, tmp_path: Path, toy: DataSet) -> None:
    """Counts, classes, and the pictures that could not be read, also those found while training."""
    data = dataclasses.replace(toy, unreadable=["b.png"])
    for _ in train(first_stage(data), tmp_path, Length(steps=1), seed=0):
        data.unreadable.append("a.png")
    list(train(first_stage(data), tmp_path, Length(steps=1), seed=0))
    stored = json.loads((tmp_path / "data.json").read_text())
    assert stored == {"train": 18, "validation": 6, "classes": ["dark", "light"], "broken": ["a.png", "b.png"]}
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["finished"], record["steps"], record["settings"]["recipe"]["optimization"]["batch"]) == (True, 1, 4)
    assert record["held_out"] == toy.validation.fingerprint == "held out 6 2"
    versions = {"nextscale": nextscale.__version__, "python": platform.python_version(), "torch": torch.__version__}
    assert record["versions"] == [versions]


@pytest.mark.slow
def test_every_version_that_trained_in_a_run_is_told(first_stage, tmp_path: Path, monkeypatch) -> None:
    """In their order, each once; a run of before versions were told, too, goes on."""
    for steps, version in enumerate(("2.11.0", "2.13.0", "2.13.0"), start=1):
        monkeypatch.setattr(torch, "__version__", version)
        list(itertools.islice(train(first_stage(), tmp_path, Length(steps=4), seed=0, rhythm=Rhythm(checks=4)), 1))
        told = json.loads((tmp_path / "run.json").read_text())["versions"]
        assert [each["torch"] for each in told] == ["2.11.0", "2.13.0"][: min(steps, 2)]
    record = json.loads((tmp_path / "run.json").read_text())
    for name in ("versions", "held_out"):
        record.pop(name)
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert run(first_stage(), tmp_path, steps=4) == [4]


@pytest.mark.slow
def test_a_held_out_part_that_has_changed_is_told_before_the_run_goes_on(
    first_stage, tmp_path: Path, toy: DataSet
) -> None:
    """Once; then the new one is what others are compared with."""
    other = dataclasses.replace(toy, validation=dataclasses.replace(toy.validation, fingerprint="edited"))

    def go_on(data: DataSet) -> None:
        list(itertools.islice(train(first_stage(data), tmp_path, Length(steps=4), seed=0, rhythm=Rhythm(checks=4)), 1))

    go_on(toy)
    told = rf"^{tmp_path}: the held-out pictures are others than so far \(fingerprint held out 6 2 there, edited here\)"
    with pytest.warns(UserWarning, match=told):
        go_on(other)
    go_on(other)
    assert json.loads((tmp_path / "run.json").read_text())["held_out"] == "edited"


def test_a_run_shows_pictures_at_every_check(finished: Path) -> None:
    """Six held-out pictures of 8x8 pixels, each with what is painted of it after every one of four scales."""
    files = sorted(file.name for file in (finished / "samples").iterdir())
    assert files == ["step-0000001.png", "step-0000002.png"]
    sheet = images.open_rgb(finished / "samples" / files[-1])
    assert sheet.width >= 5 * 8
    assert sheet.height >= 6 * 8


def test_tensorboard_shows_every_step_once(first_stage, tmp_path: Path) -> None:
    """Steps that a killed attempt did without saving are done, and shown, again: what came of them is hidden."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = train(first_stage(), tmp_path, Length(steps=6), seed=0, rhythm=Rhythm(checks=2))
    for _ in range(5):  # saved at 3
        last = next(events)
    events.close()
    assert last.step == 5
    time.sleep(1)  # tensorboard orders its files by the second in which they were begun, then by text: 100 before 99
    list(train(first_stage(), tmp_path, Length(steps=6), seed=0, rhythm=Rhythm(checks=2)))
    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    assert [point.step for point in log.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [point.step for point in log.Scalars("validation/psnr")] == [3, 6]
    assert [picture.step for picture in log.Images("pictures")] == [3, 6]
