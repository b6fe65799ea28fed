"""Laws of the studio as a person meets them, in headless Chromium; a picture of each tab is left in pytest's cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nextscale import Pipeline, images
from nextscale.pipeline import Request
from nextscale.web import actions

# every text that the page's first status line shows, in order
REMEMBER = """() => {
  window.told = [];
  new MutationObserver(() => {
    const now = document.querySelector('.stage [role=status]')?.textContent;
    if (now && window.told.at(-1) !== now) window.told.push(now);
  }).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


@pytest.fixture(scope="session")
def shots(request: pytest.FixtureRequest) -> Path:
    """Where the pictures of the tabs go: .pytest_cache/d/studio."""
    return request.config.cache.mkdir("studio")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Smooth colours, 48x32 pixels, in a format with nothing but pixels."""
    across, down = np.meshgrid(np.linspace(0, 255, 48), np.linspace(0, 255, 32))
    file = tmp_path / "photo.png"
    Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)).save(file)
    return file


def downloaded(studio: Any, name: str, into: Path) -> Path:
    """The first link of this name, as the file that comes."""
    with studio.page.expect_download() as coming:
        studio.page.get_by_role("link", name=name).first.click()
    file = into / coming.value.suggested_filename
    coming.value.save_as(file)
    return file


def mask_pixels(uri: str) -> bytes:
    """What is to be repainted, as one byte a pixel."""
    mask = actions.mask_of(uri)
    assert mask is not None
    return mask.point(lambda level: 255 * (level > 0)).tobytes()


def test_pictures_grow_download_and_come_back(studio: Any, model: Pipeline, tmp_path: Path, shots: Path) -> None:
    """A preview a scale; the file tells its settings, and dropped into the page it sets them again."""
    page = studio.page
    page.evaluate(REMEMBER)
    page.get_by_label("Seed").first.fill("41")
    page.get_by_label("Seed").first.press("Control+Enter")
    page.wait_for_selector(".stage.finished")
    told = page.evaluate("window.told")
    assert [line.split(":")[0] for line in told if line.startswith("Scale")] == [f"Scale {k} of 6" for k in range(1, 7)]
    assert told[-1] == "4 pictures"
    file = downloaded(studio, "Download Smileys & Emotion, seed 41", tmp_path)
    request = Request.from_notes(images.notes(file))
    assert (request.seed, request.label) == (41, 0)
    levels = np.asarray(images.open_rgb(file)).astype(int)
    # the studio has other threads and a batch of four: float32 sums in another order, a level here and there
    assert np.abs(levels - np.asarray(model.repeat(request).pil()[0])).max() <= 1
    assert downloaded(studio, "Download all 4 (zip)", tmp_path).stat().st_size > 4 * file.stat().st_size
    page.wait_for_selector("#history button img")
    page.screenshot(path=shots / "generate.png", full_page=True)
    page.get_by_label("Seed").first.fill("7")
    page.locator("#restore input[type=file]").set_input_files(file)
    page.wait_for_function("document.querySelector('#about')?.textContent.includes('seed 41')")
    assert page.get_by_label("Seed").first.input_value() == "41"
    assert studio.well()


def test_what_the_brush_does_not_touch_comes_back(studio: Any, photo: Path, tmp_path: Path, shots: Path) -> None:
    """To the bit; what it touches is repainted; and one click brings settings, picture and mask of an edit back."""
    page = studio.page
    studio.tab("Edit")
    page.locator("#edit-upload input[type=file]").set_input_files(photo)
    board = page.wait_for_selector(".brush canvas").bounding_box()
    page.mouse.move(board["x"] + board["width"] * 0.75, board["y"] + board["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(board["x"] + board["width"] * 0.75, board["y"] + board["height"] * 0.8, steps=5)
    page.mouse.up()
    mask = page.evaluate("window.nextscaleMask()")
    studio.begin("Repaint")
    page.wait_for_selector(".stage.finished:visible")
    page.screenshot(path=shots / "edit.png", full_page=True)
    pixels = np.asarray(images.open_rgb(downloaded(studio, "Download no class, seed 0", tmp_path)))
    before = np.asarray(images.open_covering(photo, height=32, width=32).crop((8, 0, 40, 32)))
    assert np.array_equal(pixels[:, :16], before[:, :16])
    assert not np.array_equal(pixels[8:24, 23:25], before[8:24, 23:25])
    page.locator(".brush [data-tool=clear]").click()
    clear = page.evaluate("window.nextscaleMask()")
    page.locator("#history button img").first.click()
    page.wait_for_function("document.querySelector('#about')?.textContent.includes('seed')")
    page.locator("#use-all").click()
    page.wait_for_function(f"window.nextscaleMask() != {clear!r}")
    again = page.evaluate("window.nextscaleMask()")
    assert mask_pixels(again) == mask_pixels(mask)
    assert studio.well()


def test_a_picture_is_shown_through_its_tokens(studio: Any, photo: Path, shots: Path) -> None:
    """The picture, what is painted after each of six scales, and six maps."""
    studio.tab("Reconstruct")
    studio.page.locator("#reconstruct-upload input[type=file]").set_input_files(photo)
    studio.page.wait_for_selector(".stage.finished:visible")
    strips = studio.page.locator(".strip")
    assert [strips.nth(n).locator("img").count() for n in (0, 1)] == [7, 6]
    studio.page.screenshot(path=shots / "reconstruct.png", full_page=True)
    assert studio.well()


def test_two_settings_stand_side_by_side(studio: Any, shots: Path) -> None:
    """With the same classes and seeds, then on top of each other with an edge that mouse and keys move."""
    studio.tab("Compare")
    studio.begin("Compare")
    studio.page.wait_for_function("document.querySelectorAll('.stage.finished').length == 2")
    names = studio.page.locator(".stage.finished img").evaluate_all("all => all.map(one => one.alt)")
    assert names == ["Smileys & Emotion, seed 0", "Smileys & Emotion, seed 1"] * 2
    edge = studio.page.get_by_role("slider", name="Smileys & Emotion, seed 1: how much of A covers B, in %")
    box = edge.bounding_box()
    upper = studio.page.get_by_alt_text("Smileys & Emotion, seed 1, setting A")
    assert upper.bounding_box() == studio.page.get_by_alt_text("Smileys & Emotion, seed 1, setting B").bounding_box()
    studio.page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    assert edge.input_value() == "25"
    edge.press("ArrowRight")
    assert upper.evaluate("one => getComputedStyle(one).clipPath") == "inset(0px 74% 0px 0px)"
    studio.page.screenshot(path=shots / "compare.png", full_page=True)
    assert studio.well()


@pytest.mark.slow
def test_a_run_is_watched(studio: Any, runs: Path, shots: Path) -> None:
    """Its curves, figures and sample sheets, the newest as it appears."""
    studio.tab("Train")
    studio.page.wait_for_selector(".run .curve")
    assert studio.page.locator(".run .curve figcaption").all_text_contents() == ["cross_entropy 1.2", "psnr 17"]
    assert studio.page.locator(".run pre.health").text_content() == (runs / "mine" / "health.txt").read_text()
    assert studio.page.locator(".run [role=status]").text_content() == "mine: in progress, step 500, 5 checks"
    Image.new("RGB", (64, 32), "#50c080").save(runs / "mine" / "samples" / "step-0000200.png")
    studio.page.get_by_role("button", name="Look again").click()
    studio.page.wait_for_function("document.querySelectorAll('.run .samples img').length == 2")
    studio.page.screenshot(path=shots / "train.png", full_page=True)
    assert studio.well()


def test_stop_keeps_what_is_there(studio: Any, tmp_path: Path) -> None:
    """The pictures as far as they came, without settings, which would paint others; then the next request works."""
    studio.page.get_by_label("Seed").first.fill("778")  # which waits for Stop after two scales, see `serve.py`
    studio.begin("Generate")
    studio.page.wait_for_selector('.stage[data-scale="2"]')
    studio.page.keyboard.press("Escape")
    studio.page.wait_for_selector(".stage.finished")
    told = studio.page.locator(".stage.finished [role=status]").text_content()
    assert told == "Stopped after scale 2. 4 pictures as far as they came."
    file = downloaded(studio, "Download Smileys & Emotion, seed 778", tmp_path)
    assert "stopped-at-scale" in file.stem
    assert images.notes(file) == {}
    studio.page.get_by_label("Seed").first.fill("1")
    studio.begin("Generate")
    studio.page.wait_for_function(
        "document.querySelector('.stage.finished [role=status]')?.textContent == '4 pictures'"
    )
    assert studio.well()


@pytest.mark.slow
def test_a_page_that_waits_shows_its_place(opened: Callable[..., Any]) -> None:
    """In the queue, behind the work of another page; it is answered all the same."""
    first, second = opened(), opened()
    first.page.get_by_label("Seed").first.fill("777")  # after one scale
    first.begin("Generate")
    first.page.wait_for_selector('.stage[data-scale="1"]')
    second.begin("Generate")
    second.page.wait_for_function("document.body.innerText.includes('queue: 1/1')")
    first.page.keyboard.press("Escape")
    second.page.wait_for_selector(".stage.finished")
    assert second.page.locator(".stage.finished [role=status]").text_content() == "4 pictures"
    assert second.well()


def test_a_bad_upload_is_refused_in_words(studio: Any, tmp_path: Path) -> None:
    """The page says why, and goes on."""
    (tmp_path / "notes.png").write_text("no picture")
    studio.tab("Reconstruct")
    studio.page.locator("#reconstruct-upload input[type=file]").set_input_files(tmp_path / "notes.png")
    told = studio.page.wait_for_selector(".toast-body").text_content()
    assert "expected a picture, got notes.png" in told
    assert "/tmp" not in told


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_fits_a_phone(opened: Callable[..., Any], shots: Path, scheme: str) -> None:
    """Nothing is wider than the screen, in light and in dark, with pictures and a history."""
    studio = opened(width=390, scheme=scheme)
    studio.begin("Generate")
    studio.page.wait_for_selector(".stage.finished")
    studio.page.wait_for_selector("#history button img")
    for name in ("Generate", "Edit", "Reconstruct", "Compare", "Train"):
        studio.tab(name)
        studio.page.wait_for_timeout(150)
        assert studio.page.evaluate("document.documentElement.scrollWidth") <= 390, name
        studio.page.screenshot(path=shots / f"phone-{name.lower()}-{scheme}.png")
    assert studio.well()
