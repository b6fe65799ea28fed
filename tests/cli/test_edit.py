"""Laws of `nextscale edit`."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Noise of 64x64 pixels; the model's are 32x32."""
    levels = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def names(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()}


def pixels(file: Path, size: int = 32) -> np.ndarray:
    """(size, size, 3)."""
    with Image.open(file) as image:
        scaled = image if image.width == size else image.resize((size, size), Image.Resampling.LANCZOS)
        return np.asarray(scaled)


@pytest.mark.slow
def test_a_result_each_and_a_sheet(nextscale, model: Path, picture: Path, tmp_path: Path) -> None:
    """What is kept is exact; the share that was repainted is told, and the command that does it again."""
    out, more = tmp_path / "out", ["--count", 2, "--seed", 4]
    done = nextscale("edit", picture, "--model", model, "--box", "32,0,64,64", *more, "--out", out)
    assert (done.status, done.errors) == (0, "")
    results = ["photo-9-no-class-seed4.png", "photo-9-no-class-seed5.png"]
    assert names(out) == {*results, "sheet.png"}
    told, written, again = done.output.splitlines()
    assert told == f"{picture}: 50% repainted"
    assert written == f"2 pictures and sheet.png in {out}"
    first, second = (pixels(out / name) for name in results)
    assert all(np.array_equal(result[:, :16], pixels(picture)[:, :16]) for result in (first, second))
    assert not np.array_equal(first, second)
    before = {name: (out / name).read_bytes() for name in names(out)}
    assert nextscale(*shlex.split(again.removeprefix("again: nextscale "))).status == 0
    assert {name: (out / name).read_bytes() for name in names(out)} == before


@pytest.mark.slow
def test_a_mask_may_be_drawn_in_any_size(nextscale, model: Path, picture: Path, tmp_path: Path) -> None:
    """White on black or with transparency around it, it does what the box does."""
    white, drawn = Image.new("L", (16, 16)), Image.new("RGBA", (128, 128))
    ImageDraw.Draw(white).rectangle((4, 8, 7, 15), fill=255)
    ImageDraw.Draw(drawn).rectangle((32, 64, 63, 127), fill=(9, 9, 9, 255))
    white.save(tmp_path / "white.png")
    drawn.save(tmp_path / "drawn.png")
    ways = {
        "box": ["--box", "16,32,32,64"],
        "white": ["--mask", tmp_path / "white.png"],
        "drawn": ["--mask", tmp_path / "drawn.png"],
    }
    for name, way in ways.items():
        done = nextscale("edit", picture, "--model", model, *way, "--label", 3, "--out", tmp_path / f"{name}.bmp")
        assert (done.status, done.errors) == (0, "")
    one, *others = ((tmp_path / f"{name}.bmp").read_bytes() for name in ways)
    assert others == [one, one]


def test_a_picture_gets_room_around_it(nextscale, model: Path, picture: Path, tmp_path: Path) -> None:
    """64 pixels to the left, which is half of a width of 128; above and below as much again, to be square."""
    out = tmp_path / "wide.png"
    done = nextscale("edit", picture, "--model", model, "--expand", "64,0,0,0", "--out", out)
    assert (done.status, done.output.splitlines()[0]) == (0, f"{picture}: 75% repainted")
    assert np.array_equal(pixels(out)[8:24, 16:], pixels(picture, size=16))


def test_details_are_painted_anew(nextscale, model: Path, picture: Path, tmp_path: Path) -> None:
    """With the coarse scales kept; all of them kept is the reconstruction."""
    for scales in (2, 6):
        done = nextscale(
            "edit", picture, "--model", model, "--keep-scales", scales, "--out", tmp_path / f"{scales}.png"
        )
        assert (done.status, done.output.splitlines()[0]) == (0, f"{picture}: 100% repainted")
    assert not np.array_equal(pixels(tmp_path / "2.png"), pixels(tmp_path / "6.png"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "expected one of --mask, --box, --expand, or --keep-scales alone, got none"),
        (["--box", "0,0,8,8", "--expand", "1,1,1,1"], "got --box and --expand"),
        (["--box", "0,0,8"], "--box: expected four whole numbers of pixels such as 0,10,32,64, got '0,0,8'"),
        (["--box", "0,0,8,80"], "top < bottom within 0 .. 64, got 0,0,8,80"),
        (["--box", "8,0,8,8"], "expected left < right within 0 .. 64"),
        (["--expand", "0,0,0,0"], "expand: expected room on at least one side"),
        (["--expand", "-1,0,0,0"], "expand: expected pixels, 0 or more, got -1,0,0,0"),
        (["--expand", "99999999999,0,0,0"], "expand: expected room that leaves something of the picture"),
        (["--mask", "missing.png"], "expected a picture, found no file at missing.png"),
        (["--keep-scales", "9"], "keep_scales: expected 0 .. 6, got 9"),
        (["--box", "0,0,8,8", "--label", "1", "2"], "--label: expected one class for all pictures, got several"),
        (["--box", "0,0,8,8", "--label", "clas 1"], "did you mean class 1"),
        (["--box", "0,0,8,8", "--feather", "-1"], "feather: expected 0 .. 1024, got -1"),
        (
            ["--box", "0,0,8,8", "--count", "2", "--out", "x.png"],
            "--out: expected a directory for 2 results, got x.png",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    nextscale, model: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list, told: str
) -> None:
    """Nothing is written."""
    monkeypatch.chdir(tmp_path)
    done = nextscale("edit", picture, "--model", model, *arguments)
    assert (done.status, done.errors.count("\n")) == (2, 1)
    assert told in done.errors, done.errors
    assert names(tmp_path) <= {"photo.png", "edits"}
