"""Laws of `nextscale encode`: killed at any moment it goes on to the same files; mistakes are told in one line."""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from processes import Program, together

from nextscale import MultiScaleVQVAE, data
from nextscale.data import tokens
from nextscale.files.checkpoint import fingerprint


@pytest.fixture(scope="module")
def run(tokenizer: MultiScaleVQVAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer's directory."""
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(directory)
    return directory


@pytest.fixture
def cache(nextscale, pictures: Path, run: Path, tmp_path: Path) -> Path:
    """A finished cache of the folder."""
    assert nextscale("encode", pictures, "--tokenizer", run, "--out", tmp_path / "cache", "--shard", 5).status == 0
    return tmp_path / "cache"


def contents(directory: Path) -> dict[str, bytes]:
    """Every file, those left half written included."""
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def is_a_mistake(done: Any, *told: str) -> None:
    """Status 2 and exactly one line on stderr, which tells."""
    assert done.status == 2, done
    assert done.errors.startswith("nextscale: error: ")
    assert done.errors.count("\n") == 1
    assert all(part in done.errors for part in told), done.errors


# ---- what it makes ---------------------------------------------------------------------------------------------------


def test_the_cache_holds_the_tokens_of_the_pictures(tokenizer: MultiScaleVQVAE, pictures: Path, cache: Path) -> None:
    """Bit for bit, tied to the tokenizer, with the names of the classes."""
    loaded = tokens.load(cache, tokenizer=fingerprint(tokenizer.state_dict()))
    originals = data.load(pictures, height=8, width=8)
    assert loaded.classes == ("cat", "dog")
    for cached, split in ((loaded.train, originals.train), (loaded.validation, originals.validation)):
        images, labels = split.batch(range(len(split)))
        with torch.no_grad():
            assert torch.equal(cached.batch(range(len(split)))[0], tokenizer.encode(images))
        assert torch.equal(cached.labels, labels)


def test_the_options_are_what_it_was_made_of(nextscale, pictures: Path, run: Path, tmp_path: Path) -> None:
    """Views, mirrored ones, seed, rows a file, precision."""
    options = ("--views", 4, "--flip", "--seed", 3, "--shard", 8, "--precision", "bf16", "--batch", 5)
    assert nextscale("encode", pictures, "--tokenizer", run, "--out", tmp_path / "c", *options).status == 0
    meta = tokens.load(tmp_path / "c").meta
    assert (meta.views, meta.flip, meta.seed, meta.shard, meta.precision) == (4, True, 3, 8, "bfloat16")
    assert len(list((tmp_path / "c").glob("train-0*.npy"))) == 12


def test_captions_come_along(nextscale, pictures: Path, run: Path, tmp_path: Path) -> None:
    """With the pictures that they tell of; what trains on the cache finds them there."""
    told = sorted(file.relative_to(pictures).as_posix() for file in pictures.rglob("*.png"))[:3]
    table = tmp_path / "captions.csv"
    table.write_text("file,caption\n" + "".join(f"{file},a {number}\n" for number, file in enumerate(told)))
    out = tmp_path / "cache"
    done = nextscale("encode", pictures, "--captions", table, "--tokenizer", run, "--out", out)
    assert (done.status, done.errors) == (0, "")
    assert "data: 3 captions of 3 of" in done.output
    cache, loaded = tokens.load(out), data.load(pictures, height=8, width=8, captions=table)
    for cached, split in ((cache.train, loaded.train), (cache.validation, loaded.validation)):
        assert list(cached.captions or ()) == list(split.captions or ())
    given = ("train", "transformer", "--data", out, "--tokenizer", run, "--out", tmp_path / "var")
    is_a_mistake(nextscale(*given, "--captions", table), "--captions: expected pictures, got a token cache")
    is_a_mistake(nextscale(*given, "--index", table), "--index: expected pictures, got a token cache")


def test_classes_may_come_from_a_table(nextscale, pictures: Path, run: Path, tmp_path: Path) -> None:
    """Or there may be none: the tokens are the same, in another order."""
    files = sorted(file.relative_to(pictures).as_posix() for file in pictures.rglob("*.png"))
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n" + "".join(f"{file},kind {index % 3}\n" for index, file in enumerate(files)))
    loaded = {}
    for labels in (table, "none"):
        out = tmp_path / f"cache {len(loaded)}"
        done = nextscale("encode", pictures, "--labels", labels, "--tokenizer", run, "--out", out)
        assert (done.status, done.errors) == (0, "")
        loaded[labels] = tokens.load(out)
    assert loaded[table].classes == ("kind 0", "kind 1", "kind 2")
    assert len(loaded["none"].classes) == 1
    found = [cached.train.batch(range(23))[0].unique(dim=0) for cached in loaded.values()]
    assert torch.equal(*found)


def test_output_is_plain_and_80_columns_wide(nextscale, pictures: Path, run: Path, monkeypatch, tmp_path: Path) -> None:
    """Where it is not a terminal; what was made in figures, and last the command that comes next."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").symlink_to(pictures)
    (tmp_path / "tok").symlink_to(run)
    done = nextscale("encode", "p", "--tokenizer", "tok", "--out", "cache")
    assert (done.status, done.errors) == (0, "")
    assert all(character.isprintable() or character == "\n" for character in done.output)
    assert max(map(len, done.output.splitlines())) <= 80
    figures = r"encode: 23 pictures and 1 held out, 720 tokens, 0\.0 MB in cache, [\d,]+ pictures/s\n"
    assert re.search(figures, done.output.replace("\n  ", " "))
    assert done.output.splitlines()[-1] == "nextscale train transformer --data cache --tokenizer tok"


def test_help_is_80_columns_wide(nextscale) -> None:
    """And names the options."""
    shown = nextscale("encode", "--help").output
    assert max(map(len, shown.splitlines())) <= 80
    for option in ("DATA", "--tokenizer", "--out", "--views", "--flip", "--batch", "--seed", "--shard", "--precision"):
        assert option in shown


def test_broken_pictures_are_counted_and_named(nextscale, run: Path, tmp_path: Path) -> None:
    """One in a hundred and one: lines on the console, its name in the cache."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(100):
        Image.new("RGB", (9, 9), (number, 2 * number, 100)).save(folder / f"{number:03}.png")
    (folder / "broken.png").write_bytes((folder / "007.png").read_bytes()[:40])
    done = nextscale("encode", folder, "--tokenizer", run, "--out", tmp_path / "cache")
    assert done.status == 0
    assert "encode: 1 pictures cannot be read" in done.output
    assert tokens.load(tmp_path / "cache").broken == ("broken.png",)


# ---- cut short -------------------------------------------------------------------------------------------------------


def wait_for_parts(process: Program, out: Path, count: int) -> None:
    """Until so many files are finished."""
    while process.poll() is None and len(list((out / "parts").glob("[tv]*.json"))) < count:
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_encoding_goes_on_to_the_same_files(
    nextscale, started: Callable[..., Program], pictures: Path, run: Path, tmp_path: Path
) -> None:
    """SIGKILL at three moments, one after the other; `test_tokens` looks at every state that a kill can leave."""
    command = ["encode", pictures, "--tokenizer", run, "--views", 40, "--flip", "--shard", 40, "--batch", 2, "--out"]
    out = tmp_path / "killed"
    for files in (1, 5, 10):
        process = started(*command, out)
        wait_for_parts(process, out, files)
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    done = nextscale(*command, out)
    assert (done.status, done.errors) == (0, "")
    assert nextscale(*command, tmp_path / "whole").status == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_an_interrupted_encoding_says_so(started, pictures: Path, run: Path, tmp_path: Path) -> None:
    """Ctrl-C: one line on each stream, status 130."""
    out = tmp_path / "cache"
    command = ["encode", pictures, "--tokenizer", run, "--views", 300, "--shard", 300, "--batch", 2, "--out", out]
    process = started(*command)
    wait_for_parts(process, out, 1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "nextscale: interrupted\n")
    assert "the same command continues" in " ".join(output.split())


def test_a_second_encoding_into_the_same_cache_is_refused(
    nextscale, started: Callable[..., Program], pictures: Path, run: Path, tmp_path: Path
) -> None:
    """One line that names the first: process, host and since when. The first one goes on."""
    out = tmp_path / "cache"
    command = ["encode", pictures, "--tokenizer", run, "--views", 40, "--shard", 40, "--batch", 2, "--out", out]
    process = started(*command)
    wait_for_parts(process, out, 1)
    process.send_signal(signal.SIGSTOP)  # so that it is not through before the second one has looked
    refused, done = nextscale(*command), len(list((out / "parts").iterdir()))
    process.send_signal(signal.SIGCONT)
    assert (refused.status, refused.errors.count("\n")) == (2, 1)
    assert re.match(rf"nextscale: error: {out} is in use by process {process.pid} on \S+ since 2", refused.errors)
    wait_for_parts(process, out, done + 1)
    assert process.poll() in (None, 0)


def test_a_finished_cache_is_reused(nextscale, pictures: Path, run: Path, cache: Path) -> None:
    """The second time it says so and changes nothing; another batch or device makes no other cache."""
    before = contents(cache)
    again = nextscale("encode", pictures, "--tokenizer", run, "--out", cache, "--shard", 5, "--batch", 3)
    assert (again.status, again.errors) == (0, "")
    assert f"{cache} is finished already, nothing to do" in " ".join(again.output.split())
    assert contents(cache) == before


def test_a_damaged_file_is_made_again(nextscale, pictures: Path, run: Path, cache: Path) -> None:
    """By the same command, and it alone."""
    before = contents(cache)
    file = cache / "train-00002.npy"
    file.write_bytes(file.read_bytes()[:-7])
    done = nextscale("encode", pictures, "--tokenizer", run, "--out", cache, "--shard", 5)
    assert done.status == 0
    assert "nothing to do" not in done.output
    assert contents(cache) == before


def test_two_processes_make_the_files_of_one(pictures: Path, run: Path, cache: Path, tmp_path: Path) -> None:
    """Rank 0 alone prints."""
    program = Path(data.__file__).parents[1] / "__main__.py"
    options = ["--tokenizer", run, "--out", tmp_path / "two", "--shard", 5]
    done = together(program, "encode", pictures, *options, strict=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("encode: ") == 1
    assert contents(tmp_path / "two") == contents(cache)


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seed", "5"], ("holds another token cache (seed is 0 there, 5 here)",)),
        (["--views", "2"], ("(views is 1 there, 2 here)",)),
        (["--precision", "bf16"], ("(precision is float32 there, bfloat16 here)",)),
    ],
)
def test_another_cache_is_refused(
    nextscale, pictures: Path, run: Path, cache: Path, arguments: list[str], told: tuple[str, ...]
) -> None:
    """With the difference, and without changing it."""
    before = contents(cache)
    done = nextscale("encode", pictures, "--tokenizer", run, "--out", cache, "--shard", 5, *arguments)
    is_a_mistake(done, *told)
    assert contents(cache) == before


def test_other_pictures_and_another_tokenizer_are_another_cache(
    nextscale, make_tokenizer: Callable[..., MultiScaleVQVAE], pictures: Path, run: Path, cache: Path, tmp_path: Path
) -> None:
    """Told by their fingerprints."""
    fewer = shutil.copytree(pictures, tmp_path / "fewer")
    (fewer / "cat" / "00.png").unlink()
    is_a_mistake(nextscale("encode", fewer, "--tokenizer", run, "--out", cache, "--shard", 5), "data is ")
    make_tokenizer(distance="cosine", codebook_size=32).save(tmp_path / "other")
    done = nextscale("encode", pictures, "--tokenizer", tmp_path / "other", "--out", cache, "--shard", 5)
    is_a_mistake(done, "tokenizer is ", "codebook_size is 64 there, 32 here")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing"], ("found nothing at missing",)),
        ([".", "--tokenizer", "nowhere"], ("expected a model directory, found none at nowhere",)),
        (["missing", "--views", "0"], ("--views: expected at least 1, got 0",)),
        (["missing", "--flip"], ("--flip: expected with --views 2 or more",)),
        (["missing", "--batch", "0"], ("--batch: expected at least 1, got 0",)),
        (["missing", "--shard", "0"], ("--shard: expected at least 1, got 0",)),
        ([".", "--out", "file"], ("--out: expected a directory, got file",)),
        ([".", "--precision", "fp8"], ("--precision: expected one of",)),
        ([".", "--device", "abacus"], ("device: expected auto, cpu",)),
        ([".", "more"], ("unexpected argument 'more'",)),
    ],
)
def test_a_mistake_is_one_line(
    nextscale, pictures: Path, run: Path, monkeypatch, tmp_path: Path, arguments: list[str], told: tuple[str, ...]
) -> None:
    """Whatever is wrong, nothing is left behind that another command would take for a cache."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    words = [str(pictures) if word == "." else word for word in arguments]
    words += [] if "--tokenizer" in words else ["--tokenizer", str(run)]
    words += [] if "--out" in words else ["--out", "cache"]
    is_a_mistake(nextscale("encode", *words), *told)
    assert not tokens.is_cache("cache")
