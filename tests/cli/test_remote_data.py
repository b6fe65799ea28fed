"""Laws of commands on data at addresses: the same files come out as of the same data on this machine."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from objects import Objects, served

from nextscale.data import reading
from nextscale.files import remote

pytestmark = pytest.mark.usefixtures("small")

SHARDS = 4


@pytest.fixture
def shards(pictures: Path, tmp_path: Path) -> Path:
    """The pictures in four shards."""
    (tmp_path / "pets").mkdir()
    every = sorted(pictures.rglob("*.png"))
    for number in range(SHARDS):
        with tarfile.open(tmp_path / "pets" / f"a-{number}.tar", "w") as tar:
            for path in every[number::SHARDS]:
                tar.add(path, path.name)
                info, stated = tarfile.TarInfo(f"{path.stem}.cls"), path.parent.name.encode()
                info.size = len(stated)
                tar.addfile(info, io.BytesIO(stated))
    return tmp_path / "pets"


@pytest.fixture
def objects(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    """The same on a server; nothing is kept decoded."""
    monkeypatch.setattr(reading, "MEMORY", 0)
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    with served({f"pets/{path.name}": path.read_bytes() for path in shards.iterdir()}) as found:
        yield found


def same_models(ours: Path, theirs: Path) -> bool:
    """Whether two runs have come to the same weights."""
    return (ours / "tokenizer.safetensors").read_bytes() == (theirs / "tokenizer.safetensors").read_bytes()


@pytest.mark.slow
def test_a_training_from_an_address_is_the_same_run(
    nextscale: Callable[..., Any], shards: Path, objects: Objects, tmp_path: Path
) -> None:
    """As one on the same shards here with the same window, bit for bit; also continued without its cache."""
    command = ["train", "tokenizer", "--batch", 4, "--window", 1]
    there = ["--data", objects.url("pets/a-{0..3}.tar"), "--cache-dir", tmp_path / "cache", "--cache-size", "0.1MB"]
    assert nextscale(*command, "--data", shards, "--steps", 9, "--out", tmp_path / "here").status == 0
    ended = nextscale(*command, *there, "--steps", 9, "--out", tmp_path / "there")
    assert ended.status == 0
    assert f"--cache-dir {tmp_path / 'cache'} --cache-size 0.1MB --window 1" in ended.output
    assert same_models(tmp_path / "here", tmp_path / "there")
    assert nextscale(*command, *there, "--steps", 9, "--out", tmp_path / "there").status == 0
    assert "another" in nextscale(*command[:-1], 2, *there, "--steps", 9, "--out", tmp_path / "there").errors


@pytest.mark.slow
def test_tokens_from_an_address_are_the_same_cache(
    nextscale: Callable[..., Any], shards: Path, objects: Objects, tmp_path: Path
) -> None:
    """File by file, whatever the network does."""
    trained = tmp_path / "tokenizer"
    assert nextscale("train", "tokenizer", "--data", shards, "--steps", 1, "--batch", 4, "--out", trained).status == 0
    faults = iter([500, None, ("cut", 700), None, 429, 503, ("cut", 3000)])
    objects.fault = lambda method, name: next(faults, None)
    for place, out in ((shards, "here"), (objects.url("pets/a-{0..3}.tar"), "there")):
        kept = ["--cache-dir", tmp_path / "cache"] if out == "there" else []
        assert nextscale("encode", place, "--tokenizer", trained, "--out", tmp_path / out, *kept).status == 0
    made = {path.relative_to(tmp_path / "here"): path.read_bytes() for path in (tmp_path / "here").rglob("*.*")}
    assert len(made) >= 5
    assert all((tmp_path / "there" / name).read_bytes() == content for name, content in made.items())


@pytest.mark.slow
def test_a_token_cache_and_a_model_are_fetched(
    nextscale: Callable[..., Any], shards: Path, objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transformer of the tokens there is that of the tokens here, and so are the pictures of the model there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    trained, cached = ["--tokenizer", tmp_path / "tokenizer"], tmp_path / "tokens"
    few = ["--steps", 1, "--batch", 4]
    assert nextscale("train", "tokenizer", "--data", shards, *few, "--out", trained[1]).status == 0
    assert nextscale("encode", shards, *trained, "--out", cached).status == 0
    objects.content.update({f"tokens/{path.name}": path.read_bytes() for path in cached.glob("*.*")})
    for place, out in ((cached, "here"), (objects.url("tokens"), "there")):
        ended = nextscale("train", "transformer", "--data", place, *trained, *few, "--out", tmp_path / out)
        assert ended.status == 0, ended.errors
    model = "transformer.safetensors"
    assert (tmp_path / "here" / model).read_bytes() == (tmp_path / "there" / model).read_bytes()
    refused = nextscale(
        *("train", "transformer", "--data", objects.url("tokens"), "--window", 2, *trained, *few),
        *("--out", tmp_path / "none"),
    )
    assert "--window: expected .tar shards, got a token cache" in " ".join(refused.errors.split())
    objects.content.update({f"runs/mine/{path.name}": path.read_bytes() for path in (tmp_path / "here").glob("*.*")})
    for place, out in ((tmp_path / "here", "a"), (objects.url("runs/mine"), "b")):
        assert nextscale("sample", "--model", place, "--count", 1, "--out", tmp_path / out).status == 0
    ours, theirs = (sorted((tmp_path / out).glob("*.png")) for out in "ab")
    assert [path.name for path in ours] == [path.name for path in theirs]
    assert nextscale("sample", "--model", objects.url("runs/none"), "--count", 1, "--out", tmp_path / "c").status == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--data", "emoji", "--cache-size", "1GB"],
            "--cache-dir, --cache-size: expected data at an address, got emoji",
        ),
        (["--data", "http://x/a.tar", "--cache-size", "1"], "--cache-size: expected a size such as 500GB, in kB, MB,"),
        (["--data", "pipe:cat a.tar"], "expected an address of data (s3://, gs://, az://"),
        (["--data", "s3://key:secret@bucket/a.tar"], "expected s3:// without a password"),
        (["--data", "emoji", "--mirror", "runs/mirror"], "expected an address that begins with s3://"),
        (
            ["--data", "emoji", "--mirror", "https://host/run"],
            "expected an address in a bucket, s3://, gs://, az://, got",
        ),
        (["--data", "emoji", "--window", "2"], "window: expected .tar shards, got emoji"),
    ],
)
def test_wrong_options_are_one_line(
    nextscale: Callable[..., Any], tmp_path: Path, options: list[str], told: str
) -> None:
    """That says what was expected, and no secret."""
    ended = nextscale("train", "tokenizer", *options, "--steps", 1, "--out", tmp_path / "out")
    assert ended.status == 2
    assert told in " ".join(ended.errors.split())
    assert "key:secret" not in ended.errors
