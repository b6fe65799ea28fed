"""Laws of reading: whatever is wrong with a picture it is one unreadable picture, and none takes much room."""

from __future__ import annotations

import os
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale import data, images
from nextscale.data import reading
from nextscale.data.listing import Items
from nextscale.data.names import Names
from nextscale.data.walk import Files
from nextscale.errors import InputError


def put(path: Path, *, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    """A small file of noise; `size` is (width, height) like Pillow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def folder(root: Path, *, count: int = 6) -> Path:
    """Readable pictures, z00.png and so on."""
    for index in range(count):
        put(root / f"z{index:02}.png", seed=index)
    return root


def load(root: Path, *, max_broken: float = 0.5) -> data.DataSet:
    """A folder at 16 px."""
    return data.load(root, height=16, width=16, max_broken=max_broken)


def listed(files: Files) -> Items:
    """Of one class."""
    none_N = np.zeros(len(files.names), dtype=np.int64)
    return Items(names=files.names, labels=none_N, held_out=none_N.astype(bool), store=files)


def png(width: int, height: int, rows: bytes) -> bytes:
    """One bit a pixel, written by hand."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


SPOILT = {
    "empty": b"",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "web page": b"<!doctype html><html></html>",
    "a gigapixel in the header": png(10**9, 10**9, b""),
    "a screen of gigapixels": b"GIF89a\xff\xff\xff\xff\0\0\0",
    "a directory out of the file": b"II*\0\xff\xff\xff\x7f",
    "icons without end": struct.pack("<HHH", 0, 1, 65535) + b"\xff" * 64,
    "rows missing": png(64, 64, b"\0\xff"),
}


@pytest.mark.parametrize("memory", [0, reading.MEMORY])
@pytest.mark.parametrize("content", SPOILT.values(), ids=SPOILT.keys())
def test_any_file_that_is_no_picture_is_one_unreadable_picture(
    tmp_path: Path, content: bytes, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left out and named, or where the header is good replaced when its turn comes."""
    monkeypatch.setattr(reading, "MEMORY", memory)
    (folder(tmp_path) / "a.jpg").write_bytes(content)
    loaded = load(tmp_path)
    for split in (loaded.train, loaded.validation):
        assert split.batch(range(len(split)))[0].shape == (len(split), 3, 16, 16)
    assert loaded.broken == ("a.jpg",)


@pytest.mark.parametrize("error", [MemoryError(), RecursionError(), struct.error("odd"), OSError(5, "disk")])
def test_a_picture_that_does_not_fit_into_memory_is_unreadable(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is noticed; the others are read."""
    whole = images.resize_to_cover

    def scarce(image: Image.Image, **size: float) -> Image.Image:
        if image.width == 50:
            raise error
        return whole(image, **size)  # type: ignore[arg-type]

    monkeypatch.setattr(images, "resize_to_cover", scarce)
    put(folder(tmp_path) / "a.png", size=(50, 30))
    assert load(tmp_path).broken == ("a.png",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (SPOILT["pointer"], "a Git-LFS pointer, not the file"),
        (SPOILT["web page"], "a web page"),
        (SPOILT["rows missing"], "image file is truncated"),
    ],
)
def test_too_many_are_refused_with_the_reason_of_the_first(tmp_path: Path, content: bytes, told: str) -> None:
    """In one line: a data set that was not fetched is known by it."""
    (folder(tmp_path) / "a.jpg").write_bytes(content)
    with pytest.raises(InputError, match=rf"got 1 of 7 \(14\.3%\): a\.jpg; the first: {told}") as caught:
        load(tmp_path, max_broken=0.01)
    assert "\n" not in str(caught.value)


def _on_open(
    self: Files, place: int, then: Callable[[Path, int], None], opened: dict[Path, int], plain: Callable
) -> object:
    path = Path(self.root) / self.names[place]
    opened[path] = opened.get(path, 0) + 1
    then(path, opened[path])
    return plain(self, place)


@pytest.mark.parametrize("memory", [0, reading.MEMORY])
@pytest.mark.parametrize("time", [1, 2, 3])
def test_a_file_may_vanish_at_any_time(tmp_path: Path, memory: int, time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its header is read, before it is decoded, and before a batch wants it."""
    monkeypatch.setattr(reading, "MEMORY", memory)
    gone, opened, plain = put(folder(tmp_path) / "a.png"), {}, Files.open

    def vanish(path: Path, count: int) -> None:
        if path == gone and count == time:
            path.unlink()

    monkeypatch.setattr(Files, "open", lambda self, place: _on_open(self, place, vanish, opened, plain))
    loaded = load(tmp_path)
    pictures = [split.batch(range(len(split)))[0] for split in (loaded.train, loaded.validation)]
    assert sum(map(len, pictures)) in (6, 7)
    assert loaded.broken in ((), ("a.png",))
    assert loaded.broken or "a.png" in loaded.train.names + loaded.validation.names


def test_a_picture_of_any_shape_takes_little_room(tmp_path: Path) -> None:
    """1:20,000 was hundreds of megabytes at 16 pixels; now it is 16 squares at most, decoded or by its header."""
    Image.new("1", (20_000, 1)).save(tmp_path / "line.png")
    (item,), size = listed(Files(str(tmp_path), Names(["line.png"]))), reading.Size(height=16, width=16)
    tracemalloc.start()
    picture = size.decode(item)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(picture, torch.Tensor)
    assert picture.numel() == size.decoded_bytes((1, 20_000)) <= 3 * 16 * 18 * 18
    assert peak < 1_000_000


@pytest.mark.parametrize("memory", [0, reading.MEMORY])
def test_crops_of_a_very_long_picture_are_its_middle(
    tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random ones too, within what is kept; the centred one is that of `images.read`, but for the margin."""
    monkeypatch.setattr(reading, "MEMORY", memory)
    ramp = np.linspace(0, 255, 5000).astype(np.uint8)[None].repeat(4, axis=0)
    for name in ("a.png", "b.png"):
        Image.fromarray(ramp).save(tmp_path / name)
    split = load(tmp_path).train
    centre = split.batch([0])[0]
    ends = split.batch([0, 0], views=torch.tensor([[0.5, 0.0, 0.0], [0.5, 0.999, 0.0]]))[0]
    torch.testing.assert_close(centre[0], images.read(tmp_path / "a.png", height=16, width=16), atol=0.02, rtol=0)
    assert ends[0].mean() < centre.mean() < ends[1].mean()


# ---- what is said of a data set --------------------------------------------------------------------------------------


def test_held_out_pictures_that_are_trained_on_too_are_told(tmp_path: Path) -> None:
    """Through a link, or as copies; pictures that are only of one size are none."""
    for number in range(3):
        put(tmp_path / f"d/train/a/{number}.bmp", seed=number)
    os.symlink("train", tmp_path / "d/val")
    told = data.load(tmp_path / "d", height=8, width=8).told
    assert told[1].startswith("3 of 3 held-out pictures look like copies of some that are trained on")
    assert told[1].endswith("such as val/a/0.bmp of train/a/0.bmp")
    os.unlink(tmp_path / "d/val")
    shutil.copytree(tmp_path / "d/train", tmp_path / "d/val")
    put(tmp_path / "d/val/a/0.bmp", seed=7)
    assert "2 of 3 held-out pictures look like copies" in data.load(tmp_path / "d", height=8, width=8).told[1]
    for number in range(3):
        put(tmp_path / f"d/val/a/{number}.bmp", seed=number + 10)
    assert data.load(tmp_path / "d", height=8, width=8).told == ["held out: val/"]


@pytest.mark.parametrize("names", [("Cat", "cat"), ("cat", "cat "), ("7", "07"), ("a", "\uff41")])
def test_classes_that_differ_in_spelling_alone_are_told(names: tuple[str, str], tmp_path: Path) -> None:
    """They are classes of their own; whoever did not mean that reads it."""
    for name in names:
        put(tmp_path / "d" / name / "0.bmp")
    loaded = data.load(tmp_path / "d", height=8, width=8)
    assert sorted(loaded.classes) == sorted(names)
    assert any(note.startswith("classes that differ in spelling alone: ") for note in loaded.told)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 10**6}, r"a picture size from 1 to 16,384 pixels a side, got 8×1000000"),
        ({"max_broken": float("nan")}, "max_broken: expected a share from 0 to 1, got nan"),
        ({"source": "s3://pets/train"}, "expected an address of .tar shards, .*, got s3://pets/train"),
    ],
)
def test_what_no_data_set_can_be_is_one_line(wrong: dict[str, Any], message: str) -> None:
    """Before anything is looked at."""
    given = {"source": "nowhere", "height": 8, "width": 8, **wrong}
    with pytest.raises(InputError, match=message):
        data.load(given.pop("source"), **given)
