"""Laws of prompts on the command line: what is painted from them, and how a model comes to read them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale import Pipeline, images
from nextscale.cli import main, train_transformer
from nextscale.data import DataSet
from nextscale.data.captions import Captions
from nextscale.data.pictures import Split

PROMPT = "a $5 note, ~ red"


@pytest.fixture(scope="module")
def model(text_pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that reads."""
    directory = tmp_path_factory.mktemp("model that reads")
    text_pipe.save(directory)
    return directory


def names(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()}


def refused(run: Any, told: str) -> None:
    assert (run.status, run.output) == (2, ""), run.errors
    assert told in run.errors
    assert run.errors.count("\n") == 1


# ---- sample and edit -------------------------------------------------------------------------------------------------


def test_prompts_are_painted_one_after_the_other(nextscale, model: Path, tmp_path: Path) -> None:
    """Picture i has seed N + i; `$` and `~` are what they are; what is too long is noted once."""
    words = ["sample", "--model", model, "--prompt", "a red heart", PROMPT, "--count", 2, "--seed", 5]
    done = nextscale(*words, "--precision", "fp32", "--out", tmp_path / "out")
    assert done.status == 0, done.errors
    assert done.errors.count("note: prompt of 11 pieces, of which the first 8 are read: 'a $5 note, ~ red'") == 1
    files = {f"{stem}.png" for stem in ("a-red-heart-seed5", "a-red-heart-seed6", "a-5-note-red-seed7")}
    assert names(tmp_path / "out") == files | {"a-5-note-red-seed8.png", "grid.png"}
    notes = images.notes(tmp_path / "out" / "a-5-note-red-seed7.png")
    assert json.loads(notes["nextscale"])["prompt"] == PROMPT
    again = nextscale(
        "sample", "--like", tmp_path / "out" / "a-red-heart-seed6.png", "--model", model, "--out", tmp_path
    )
    assert "the same pixels" in again.output


def test_classes_and_prompts_make_pairs(nextscale, model: Path, tmp_path: Path) -> None:
    """Each class with each prompt."""
    words = ["--label", "bee", "cat", "--prompt", "red", "blue", "--negative-prompt", "a cat"]
    assert nextscale("sample", "--model", model, *words, "--out", tmp_path).status == 0
    stems = ("1-bee-red-seed0", "1-bee-blue-seed1", "2-cat-red-seed2", "2-cat-blue-seed3", "grid")
    assert names(tmp_path) == {f"{stem}.png" for stem in stems}


def test_a_file_holds_prompts_one_a_line(nextscale, model: Path, tmp_path: Path) -> None:
    """Blank lines and comments are left out, and counted."""
    file = tmp_path / "prompts.txt"
    file.write_text("# of hearts\na red heart\n\n  빨간 하트 \n", encoding="utf-8")
    done = nextscale("sample", "--model", model, "--prompts-file", file, "--out", tmp_path / "out")
    assert done.status == 0, done.errors
    assert "2 prompts; left out: 1 blank lines, 1 comments" in " ".join(done.output.split())
    assert names(tmp_path / "out") == {"a-red-heart-seed0.png", "빨간-하트-seed1.png", "grid.png"}


@pytest.mark.slow
def test_mistakes_in_prompts_are_told_in_one_line(nextscale, model: Path, small_model: Path, tmp_path: Path) -> None:
    """Of files and of models that do not read."""
    (tmp_path / "none.txt").write_text("# nothing\n\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for words, told in (
        (["--prompts-file", tmp_path / "none.txt"], "expected at least one prompt, got none"),
        (["--prompts-file", tmp_path / "latin.txt"], "expected UTF-8, got other bytes at 3"),
        (["--prompts-file", tmp_path / "nowhere"], "--prompts-file: cannot read"),
        (["--prompt", "a", "--prompts-file", tmp_path / "none.txt"], "expected --prompt or --prompts-file, got both"),
        (["--prompt", ""], "--prompt: expected a value, got an empty one"),
    ):
        refused(nextscale("sample", "--model", model, *words, "--out", tmp_path / "out"), told)
    told = "prompts: expected labels, since this model reads no text, got 'a red heart'"
    refused(nextscale("sample", "--model", small_model, "--prompt", "a red heart", "--out", tmp_path / "out"), told)
    picture = tmp_path / "picture.png"
    images.save(picture, torch.zeros(3, 8, 8))
    both = ["--prompt", "a", "b", "--box", "2,2,6,6", "--out", tmp_path / "out"]
    refused(nextscale("edit", picture, "--model", model, *both), "--prompt: expected one text for all pictures")
    assert nextscale("edit", picture, "--model", model, "--prompt", "a", *both[3:]).status == 0
    assert "picture-a-seed0.png" in names(tmp_path / "out")


@pytest.fixture(scope="module")
def small_model(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of classes alone."""
    directory = tmp_path_factory.mktemp("model of classes")
    pipe.save(directory)
    return directory


# ---- train -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def captioned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every data set has captions."""
    load = train_transformer.load_data

    def told(split: Split) -> Split:
        words = Captions((f"a {split.classes[label]} picture",) for label in split.labels.tolist())
        return dataclasses.replace(split, captions=words)

    def loaded(*arguments: Any, **options: Any) -> DataSet:
        data = load(*arguments, **options)
        return dataclasses.replace(data, train=told(data.train), validation=told(data.validation))

    monkeypatch.setattr(train_transformer, "load_data", loaded)


@pytest.fixture(scope="module")
def trained(small: None, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[object]]:
    """`trained(...)`: the words that train a transformer for two steps on a finished tokenizer."""
    out = tmp_path_factory.mktemp("tokenizer")
    command = ["train", "tokenizer", "--data", pictures, "--steps", 2, "--batch", 4, "--out", out]
    assert main([str(word) for word in command]) == 0
    return lambda *more: ["train", "transformer", "--data", pictures, "--tokenizer", out, *LENGTH, *more]


LENGTH = ("--steps", 2, "--batch", 4, "--precision", "fp32")


@pytest.mark.slow
@pytest.mark.usefixtures("captioned")
def test_a_model_learns_to_read(nextscale, trained, tmp_path: Path) -> None:
    """With a vocabulary of the captions, which it keeps; one that begins from it reads as it does."""
    done = nextscale(*trained("--text", "embedded", "--out", tmp_path / "reads"))
    assert done.status == 0, done.errors
    assert "learned from 23 captions" in " ".join(done.output.split())
    pipe = Pipeline.load(tmp_path / "reads")
    assert pipe.transformer.config.text is not None
    assert pipe.transformer.config.text.vocabulary == pipe.reader.size < 400
    done = nextscale(*trained("--init", tmp_path / "reads", "--out", tmp_path / "again"))
    assert done.status == 0, done.errors
    assert Pipeline.load(tmp_path / "again").reader == pipe.reader
    told = "--text none: expected as --init a model that reads so, or none, got one that reads otherwise"
    run = nextscale(*trained("--init", tmp_path / "reads", "--text", "none", "--out", tmp_path / "no"))
    assert run.status == 2
    assert told in run.errors


@pytest.mark.usefixtures("captioned")
def test_a_class_model_is_given_text(nextscale, trained, tmp_path: Path) -> None:
    """Its run says so; without --text captions are not looked at."""
    assert nextscale(*trained("--out", tmp_path / "classes")).status == 0
    assert Pipeline.load(tmp_path / "classes").reader is None
    more = ["--init", tmp_path / "classes", "--text", "embedded", "--set", "text.word_dropout=0"]
    assert nextscale(*trained(*more, "--out", tmp_path / "reads")).status == 0
    settings = json.loads((tmp_path / "reads" / "run.json").read_text())["settings"]
    assert settings["recipe"]["text"] == {"alone": 0.5, "word_dropout": 0.0, "shuffle": True}
    assert settings["reader"] == Pipeline.load(tmp_path / "reads").reader.fingerprint


def test_data_without_captions_is_refused(nextscale, trained, tmp_path: Path) -> None:
    """In one line that says how to do without."""
    run = nextscale(*trained("--preset", "emoji-32", "--text", "embedded", "--out", tmp_path / "out"))
    assert run.status == 2
    assert "expected captions, for a model that reads text, got none; --captions own" in run.errors


@pytest.mark.slow
@pytest.mark.usefixtures("captioned")
def test_a_frozen_encoder_reads_the_captions(nextscale, trained, tmp_path: Path) -> None:
    """Which the model goes on with, also from a new place; its states are of captions as they are."""
    pytest.importorskip("transformers")
    from text.test_frozen import make

    make(tmp_path / "encoder")
    done = nextscale(*trained("--text", tmp_path / "encoder", "--out", tmp_path / "reads"))
    assert done.status == 0, done.errors
    assert "states of 2 captions by" in " ".join(done.output.split())
    settings = json.loads((tmp_path / "reads" / "run.json").read_text())["settings"]
    assert settings["recipe"]["text"] == {"alone": 0.5, "word_dropout": 0.0, "shuffle": False}
    words = ["sample", "--model", tmp_path / "reads", "--prompt", "a red heart", "--out", tmp_path / "out"]
    assert nextscale(*words).status == 0
    (tmp_path / "encoder").rename(tmp_path / "moved")
    refused(nextscale(*words), "no such folder (--text-encoder, or")
    assert nextscale(*words, "--text-encoder", tmp_path / "moved").status == 0
    run = nextscale(*trained("--text", tmp_path / "moved", "--set", "text.word_dropout=0.1", "--out", tmp_path / "no"))
    assert run.status == 2
    assert "expected text.word_dropout=0 and text.shuffle=false with a frozen encoder" in run.errors
