"""Laws of `nextscale reconstruct`."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from nextscale import images
from nextscale.cli.sheet import GAP, LINE


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A wide picture in one colour but for a square."""
    image = Image.new("RGB", (90, 60), "teal")
    image.paste("gold", (30, 15, 60, 45))
    image.save(tmp_path / "square.png")
    return tmp_path / "square.png"


@pytest.mark.parametrize("option", ["--model", "--tokenizer"])
def test_a_strip_shows_the_original_and_every_scale(nextscale, model: Path, picture: Path, option: str) -> None:
    """Seven pictures of 32 pixels, four times as large, under their names; the first is the original."""
    out = picture.parent / "strips"
    done = nextscale("reconstruct", picture, option, model, "--out", out)
    assert done.status == 0, done.errors
    strip = images.open_rgb(out / "square.png")
    assert strip.size == (7 * 128 + 6 * GAP, 128 + LINE)
    assert strip.getpixel((64, LINE + 64)) == (255, 215, 0)


def test_each_picture_has_a_line_with_its_psnr(nextscale, model: Path, picture: Path) -> None:
    """Pictures of equal name from different folders do not overwrite each other."""
    other = picture.parent / "other" / "square.png"
    other.parent.mkdir()
    other.write_bytes(picture.read_bytes())
    out = picture.parent / "strips"
    done = nextscale("reconstruct", picture, other, "--model", model, "--out", out)
    assert {file.name for file in out.iterdir()} == {"square.png", "square-2.png"}
    assert [line.partition(":")[0] for line in done.output.splitlines()] == [str(picture), str(other)]
    assert done.output.count(" dB") == 2


def test_a_mistake_is_one_line_and_status_2(nextscale, model: Path, picture: Path) -> None:
    """No picture, no such picture, no picture at all in the file, two models, no such device."""
    broken = picture.parent / "broken.png"
    broken.write_bytes(picture.read_bytes()[:60])
    missing = picture.parent / "missing"
    out = picture.parent / "strips"
    for arguments in (
        ["--model", model],
        [missing, "--model", model],
        [broken, "--model", model],
        [picture, "--tokenizer", missing],
        [picture, "--tokenizer", model, "--model", model],
        [picture, "--tokenizer", model, "--device", "abacus"],
    ):
        done = nextscale("reconstruct", *arguments, "--out", out)
        assert (done.status, done.output, done.errors.count("\n")) == (2, "", 1), arguments
        assert not out.exists()
