"""Laws of sheets: every pixel is there, large enough, and names stand beside and over their pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from nextscale import images
from nextscale.cli.sheet import GAP, LINE, MARGIN, SIDE, Row, drawn, font, scale_names
from nextscale.scales import Scales


def pictures(count: int, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count)) * 2 - 1


def ink(sheet: Image.Image) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of what is not white."""
    return ImageChops.difference(sheet, Image.new("RGB", sheet.size, "white")).getbbox()


@pytest.mark.parametrize(
    ("height", "width", "zoom"), [(8, 8, 16), (32, 32, 4), (32, 48, 4), (48, 32, 4), (100, 100, 2), (256, 256, 1)]
)
def test_small_pictures_are_enlarged_pixel_by_pixel(height: int, width: int, zoom: int) -> None:
    """By whole numbers, to 128 pixels at least; with no names there is nothing but pictures and gaps."""
    shown = pictures(3, height, width)
    sheet = drawn([Row("", shown[:2]), Row("", shown[2:])])
    h, w = height * zoom, width * zoom
    assert min(h, w) >= SIDE
    assert sheet.size == (2 * w + GAP, 2 * h + GAP)
    for index, (left, top) in enumerate([(0, 0), (w + GAP, 0), (0, h + GAP)]):
        levels = np.asarray(sheet.crop((left, top, left + w, top + h)))
        expected = images.to_uint8(shown[index]).permute(1, 2, 0).numpy()
        assert (levels == expected.repeat(zoom, axis=0).repeat(zoom, axis=1)).all()
    assert ink(sheet.crop((w + GAP, h + GAP, *sheet.size))) is None


def test_names_stand_beside_rows_in_a_margin_of_their_own() -> None:
    """Before the pictures, at the middle of their row, none on a picture."""
    shown = pictures(2)
    sheet = drawn([Row("ant", shown[:1]), Row("Smileys & Emotion", shown[1:])])
    margin = sheet.width - SIDE
    assert font().getlength("Smileys & Emotion") < margin < MARGIN
    assert (
        np.asarray(sheet.crop((margin, 0, *sheet.size))) == np.asarray(drawn([Row("", row[None]) for row in shown]))
    ).all()
    for top in (0, SIDE + GAP):
        left, upper, right, lower = ink(sheet.crop((0, top, margin, top + SIDE))) or (0, 0, 0, 0)
        assert 0 <= left < right <= margin - GAP
        assert (upper + lower) / 2 == pytest.approx(SIDE / 2, abs=4)


def test_names_stand_over_their_pictures() -> None:
    """Centred, in a line above; a row without has none."""
    shown = pictures(3)
    sheet = drawn([Row("", shown, ["1x1", "2x2", "3x3"]), Row("", shown)])
    assert sheet.size == (3 * SIDE + 2 * GAP, 2 * SIDE + LINE + GAP)
    for column in range(3):
        left = column * (SIDE + GAP)
        start, _, end, _ = ink(sheet.crop((left, 0, left + SIDE, LINE))) or (0, 0, 0, 0)
        assert (start + end) / 2 == pytest.approx(SIDE / 2, abs=3)
    assert (
        np.asarray(sheet.crop((0, LINE, sheet.width, LINE + 2 * SIDE + GAP))) == np.asarray(drawn([Row("", shown)] * 2))
    ).all()


@pytest.mark.parametrize(
    "name", ["a very long name of a class that nobody would call short " * 3, "a\nb\x1b[31m", "名前", "é̂"]
)
def test_any_name_stays_in_its_place(name: str) -> None:
    """Too long ones are cut, lines and escapes are shown as such."""
    sheet = drawn([Row(name, pictures(2), [name, name])])
    assert sheet.width <= MARGIN + 3 * GAP + 2 * SIDE + GAP
    assert sheet.height == SIDE + LINE
    margin = sheet.width - 2 * SIDE - GAP
    gap = sheet.crop((margin + SIDE, 0, margin + SIDE + GAP, sheet.height))
    assert ink(gap) is None


def test_scales_are_named_by_their_sizes() -> None:
    """Height first."""
    assert scale_names(Scales([1, 2, (3, 4)])) == ["1x1", "2x2", "3x4"]
