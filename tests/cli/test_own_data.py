"""Laws of `train transformer` on data of one's own: classes from a table, from a trained model, at other scales."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
import torch

from nextscale import MultiScaleVQVAE, Pipeline
from nextscale.cli import main

pytestmark = pytest.mark.usefixtures("small")

NUMBERS = range(24)  # of the pictures


@pytest.fixture(scope="module")
def trained(small: None, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tokenizer; look, do not touch."""
    out = tmp_path_factory.mktemp("tokenizer")
    command = ["train", "tokenizer", "--data", pictures, "--steps", 2, "--batch", 4, "--out", out]
    assert main([str(word) for word in command]) == 0
    return out


@pytest.fixture
def loose(pictures: Path, tmp_path: Path) -> Path:
    """All pictures in one folder, 00.png, 01.png ..."""
    root = tmp_path / "loose"
    root.mkdir()
    for path in pictures.rglob("*.png"):
        shutil.copy(path, root)
    return root


def table(path: Path, label: Callable[[int], str]) -> Path:
    """A CSV file with the label of each picture."""
    path.write_text("file,label\n" + "".join(f"{number:02}.png,{label(number)}\n" for number in NUMBERS))
    return path


@pytest.fixture
def train(nextscale: Callable[..., Any], trained: Path, tmp_path: Path) -> Callable[..., Any]:
    """`train("var", "--data", folder)`: one step of a transformer into tmp_path / "var"."""

    def call(name: str, *options: object, tokenizer: Path = trained) -> Any:
        command = ["train", "transformer", "--steps", 1, "--batch", 4, "--tokenizer", tokenizer, *options]
        return nextscale(*command, "--out", tmp_path / name)

    return call


@pytest.mark.slow
def test_names_in_a_table_are_what_sample_takes(nextscale, train, loose: Path, tmp_path: Path) -> None:
    """From the file to the name of the picture."""
    labels = table(tmp_path / "pets.csv", lambda number: ("dog", "a cat")[number % 2])
    done = train("var", "--data", loose, "--labels", labels)
    assert (done.status, done.errors) == (0, "")
    assert re.search(r"2 classes as in \S*pets.csv: a cat, dog", " ".join(done.output.split()))
    assert Pipeline.load(tmp_path / "var").classes == ("a cat", "dog")
    sampled = nextscale("sample", "--model", tmp_path / "var", "--label", "dog", "a cat", "--out", tmp_path / "s")
    assert (sampled.status, sampled.errors) == (0, "")
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"1-dog-seed0.png", "0-a-cat-seed1.png", "grid.png"}
    unknown = nextscale("sample", "--model", tmp_path / "var", "--label", "fox", "--out", tmp_path / "s")
    assert (unknown.status, unknown.errors.count("\n")) == (2, 1)
    assert "expected one of a cat, dog, got 'fox'" in unknown.errors


@pytest.mark.slow
def test_columns_are_asked_for_by_name(nextscale, train, loose: Path, tmp_path: Path) -> None:
    """The tokenizer tells them to the next command, whose classes they are; a column that is not there is told."""
    rows = [{"at": f"{number:02}.png", "breed": ("dog", "cat")[number % 2], "label": "?"} for number in NUMBERS]
    (loose / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = ("--image-column", "at", "--label-column", "breed")
    done = nextscale(
        "train", "tokenizer", "--data", loose, *columns, "--steps", 1, "--batch", 4, "--out", tmp_path / "t"
    )
    assert (done.status, done.errors) == (0, "")
    assert " ".join(columns) in done.output.splitlines()[-1]
    assert "2 classes: cat, dog" in " ".join(done.output.split())
    assert train("var", "--data", loose, *columns).status == 0
    assert Pipeline.load(tmp_path / "var").classes == ("cat", "dog")
    wrong = train("other", "--data", loose, "--image-column", "at", "--caption-column", "said")
    assert (wrong.status, wrong.errors.count("\n")) == (2, 1)
    assert "expected a column said, got 'at,breed,label'" in wrong.errors


def test_without_classes_there_is_one(train, pictures: Path, tmp_path: Path) -> None:
    """Whatever the folders say."""
    done = train("var", "--data", pictures, "--labels", "none")
    assert (done.status, done.errors) == (0, "")
    assert "no classes" in done.output
    assert Pipeline.load(tmp_path / "var").classes == (pictures.name,)


def test_a_run_is_not_continued_with_other_labels(train, loose: Path, tmp_path: Path) -> None:
    """The labels are part of the data."""
    one, other = (table(tmp_path / f"{n}.csv", lambda number, n=n: str(number % n)) for n in (2, 3))
    assert train("var", "--data", loose, "--labels", one).status == 0
    done = train("var", "--data", loose, "--labels", other)
    assert (done.status, done.errors.count("\n")) == (2, 1)


def test_a_table_that_does_not_fit_is_one_line(train, loose: Path, tmp_path: Path) -> None:
    """Status 2, file and line."""
    labels = table(tmp_path / "pets.csv", lambda number: "" if number == 7 else "cat")
    done = train("var", "--data", loose, "--labels", labels)
    assert (done.status, done.errors.count("\n")) == (2, 1)
    assert "pets.csv, line 9: expected a file and a label" in done.errors


@pytest.mark.slow
def test_fine_tuning_begins_with_what_is_known(train, pictures: Path, loose: Path, tmp_path: Path) -> None:
    """The first step changes little: known classes begin with their rows, a new one as no class."""
    assert train("first", "--data", pictures, "--seed", 5).status == 0
    labels = table(tmp_path / "pets.csv", lambda number: ("dog", "fox", "cat")[number % 3])
    done = train("second", "--data", loose, "--labels", labels, "--init", tmp_path / "first")
    assert (done.status, done.errors) == (0, "")
    assert "--init: 2 of 3 classes known by name; the others start as no class" in " ".join(done.output.split())
    first, second = (Pipeline.load(tmp_path / name, precision="fp32") for name in ("first", "second"))
    assert (first.classes, second.classes) == (("cat", "dog"), ("cat", "dog", "fox"))
    old, new = (pipe.transformer.class_embedding.weight for pipe in (first, second))
    torch.testing.assert_close(new, old[[0, 1, 2, 2]], atol=1e-3, rtol=0)
    assert not torch.equal(old[0], old[2])
    for one, other in zip(first.transformer.parameters(), second.transformer.parameters(), strict=True):
        if one.shape == other.shape:
            torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_fine_tuning_at_other_codes_is_refused(train, pictures: Path, loose: Path, tmp_path: Path) -> None:
    """A tokenizer whose codes the model does not know: one line that names both."""
    assert train("first", "--data", pictures).status == 0
    other = tmp_path / "tokenizer"
    command = ["train", "tokenizer", "--data", pictures, "--steps", 1, "--batch", 4, "--out", other]
    assert main([*map(str, command), "--set", "architecture.codebook_size=32"]) == 0
    assert MultiScaleVQVAE.load(other).config.codebook_size == 32
    done = train("second", "--data", loose, "--init", tmp_path / "first", tokenizer=other)
    assert (done.status, done.errors.count("\n")) == (2, 1)
    assert f"expected a model of the codes of {other}, got one of other codes" in done.errors


# ---- what is said of the data ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_command_says_what_it_left_out(nextscale, trained: Path, train, pictures: Path, tmp_path: Path) -> None:
    """And how the held-out part came about."""
    root = shutil.copytree(pictures, tmp_path / "set")
    (root / "cat" / "x.heic").touch()
    options = ["--data", root, "--tokenizer", trained]
    commands = [
        train("var", "--data", root),
        nextscale("encode", root, "--tokenizer", trained, "--out", tmp_path / "tokens"),
        nextscale("train", "tokenizer", "--data", root, "--steps", 1, "--batch", 4, "--out", tmp_path / "tok"),
        nextscale("evaluate", "reconstruction", *options, "--split", "train", "--device", "cpu"),
    ]
    for done in commands:
        assert (done.status, done.errors) == (0, "")
        assert "data: held out: 5 % by hash of the name\ndata: left out: 1 .heic\n" in done.output


def test_broken_pictures_are_listed_and_borne_with_as_asked(train, pictures: Path, tmp_path: Path) -> None:
    """All of them, refused or not; a share outside 0 .. 1 is a mistake."""
    root = shutil.copytree(pictures, tmp_path / "set")
    for name in ("cat/00.png", "dog/01.png"):
        (root / name).write_text("a text")
    options = ["--data", root, "--list-broken", tmp_path / "broken.txt"]
    refused = train("var", *options)
    assert (refused.status, refused.errors.count("\n")) == (2, 1)
    first = (tmp_path / "broken.txt").read_text()
    assert [line.split("\t")[0] for line in first.splitlines()] == ["cat/00.png", "dog/01.png"]
    done = train("var", *options, "--max-broken", 0.1)
    assert (done.status, done.errors) == (0, "")
    assert (tmp_path / "broken.txt").read_text() == first
    for wrong, told in ((["--max-broken", 2], "a share from 0 to 1"), (["--list-broken", root], "a file to write")):
        done = train("var", *options[:2], *wrong)
        assert (done.status, done.errors.count("\n")) == (2, 1)
        assert told in done.errors


def test_an_index_is_kept_where_it_is_asked_for(nextscale, trained: Path, pictures: Path, tmp_path: Path) -> None:
    """Both trainers and `encode` read what one of them has left; it is no picture of the data."""
    root, at = shutil.copytree(pictures, tmp_path / "set"), tmp_path / "index"
    for path in root.rglob("*"):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    done = nextscale(
        "train", "tokenizer", "--data", root, "--index", at, "--steps", 1, "--batch", 4, "--out", tmp_path / "t"
    )
    assert (done.status, done.errors) == (0, "")
    made = at.read_bytes()
    more = ["--index", at, "--tokenizer", trained, "--out"]
    for command in (["encode", root], ["train", "transformer", "--data", root, "--steps", 1, "--batch", 4]):
        done = nextscale(*command, *more, tmp_path / command[0])
        assert (done.status, done.errors) == (0, "")
        assert at.read_bytes() == made
    done = nextscale("encode", root, "--tokenizer", trained, "--index", root / "index", "--out", tmp_path / "other")
    assert (done.status, done.errors.count("\n")) == (2, 1)
    assert "--index: expected a file outside of the data" in done.errors


def test_a_run_is_not_put_into_its_own_data(nextscale, train, trained: Path, pictures: Path, tmp_path: Path) -> None:
    """Nor through a link; a place beside it is one."""
    root = shutil.copytree(pictures, tmp_path / "set")
    (tmp_path / "link").symlink_to(root)
    for out in (root, root / "run", tmp_path / "link" / "run"):
        for command in (
            ["train", "tokenizer", "--data", root],
            ["train", "transformer", "--data", root, "--tokenizer", trained],
            ["encode", root, "--tokenizer", trained],
        ):
            done = nextscale(*command, "--out", out)
            assert (done.status, done.errors.count("\n")) == (2, 1)
            assert "--out: expected a directory outside of the data" in done.errors
    assert {path.name for path in root.iterdir()} == {"cat", "dog"}


@pytest.mark.slow
def test_classes_of_any_name_are_trained_saved_and_asked_for(nextscale, train, pictures: Path, tmp_path: Path) -> None:
    """A folder of a Mac, whose é is two characters, and one whose name is no text."""
    root = shutil.copytree(pictures, tmp_path / os.fsdecode(b"s\xe9t"))
    (root / "cat").rename(root / normalize("NFD", "café"))
    (root / "dog").rename(root / os.fsdecode(b"th\xe9\n"))
    done = train("var", "--data", root)
    assert (done.status, done.errors) == (0, "")
    assert Pipeline.load(tmp_path / "var").classes == (normalize("NFD", "café"), r"th\xe9\n")
    for label in (normalize("NFC", "café"), r"th\xe9\n", os.fsdecode(b"th\xe9\n")):
        sampled = nextscale("sample", "--model", tmp_path / "var", "--label", label, "--out", tmp_path / "s")
        assert (sampled.status, sampled.errors) == (0, "")
