"""Laws of the report page: everything inside one file, and text stays text."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from nextscale import images
from nextscale.cli import report
from nextscale.cli.sheet import Row
from nextscale.errors import InputError

VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """What a browser would find: attributes that fetch, headings, text, and whether the tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without its beginning"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 4, 6, generator=torch.Generator().manual_seed(count)) * 2 - 1


def test_a_page_is_well_formed_and_holds_all_it_is_given(tmp_path: Path) -> None:
    """Title, lead, headings in order, explanations and content; nothing is fetched from anywhere."""
    sections = [
        report.Section("First", report.tiles([("1.5", "figure")]), "What it is."),
        report.Section("Second", report.rows([Row("row", pictures(2))], zoom=2)),
        report.Section("Third", report.curves([report.Curve("curve", [(1, 2.0), (2, 1.0)], ("bar", 1.5))], columns=2)),
    ]
    report.write(tmp_path / "new" / "page.html", title="A title", lead="A lead.", sections=sections)
    text = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["First", "Second", "Third"]
    assert all(words in page.words for words in ("A title", "A lead.", "What it is.", "1.5", "figure"))
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in page.fetched)
    assert "<script" not in text


def test_names_are_text_whatever_they_hold(tmp_path: Path) -> None:
    """Class names come from folders: `<b>` and `&` and quotes are shown, never obeyed."""
    wild = "<script>alert(\"1\")</script> & 'co'"
    sections = [
        report.Section(wild, report.rows([Row(wild, pictures(1))], zoom=1), wild),
        report.Section("figures", report.tiles([(wild, wild)]) + report.table([wild], [[wild]])),
        report.Section("words", report.warnings([wild]) + report.commands([wild])),
        report.Section("curves", report.curves([report.Curve(wild, [(1, 1.0)])], columns=1)),
    ]
    report.write(tmp_path / "page.html", title=wild, lead=wild, sections=sections)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert Page(text).words.count(wild) >= 9


def test_rows_show_the_pictures_pixel_by_pixel() -> None:
    """Each pixel becomes zoom x zoom; what is inside is a PNG of the picture itself."""
    shown = pictures(3)
    html = report.rows([Row("three", shown)], zoom=4)
    assert re.findall(r'width="(\d+)" height="(\d+)"', html) == [("24", "16")] * 3
    for picture, encoded in zip(shown, re.findall(r"base64,([^\"]+)", html), strict=True):
        inside = images.uint8_from_pil(Image.open(io.BytesIO(base64.b64decode(encoded))))
        assert torch.equal(inside, images.to_uint8(picture))


def test_names_stand_over_the_pictures_of_a_row() -> None:
    """As many as were given, as text, in the order of the pictures; a row without has no place for them."""
    html = report.rows([Row("row", pictures(2), ["1x1", "<2x2>"]), Row("plain", pictures(2))], zoom=2)
    assert re.findall(r"<figcaption>(.*?)</figcaption><img", html) == ["1x1", "&lt;2x2&gt;"]
    assert html.count("<img") == 4


def test_curves_begin_where_their_points_do() -> None:
    """And end there: no steps below the first, or beyond the last."""
    (axes,) = report.drawn_curves([report.Curve("curve", [(100, 2.0), (500, 1.0)])], columns=1).axes
    assert axes.get_xlim() == (100, 500)


def test_a_table_aligns_numbers() -> None:
    """Cells that are one number and nothing else."""
    html = report.table(("name", "count"), [("4x6", "12"), ("1 2 3", "-")])
    assert html.count("<tr>") == 3
    assert html.count('<td class="number">') == 1
    assert '<td class="number">12</td>' in html


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_curve_has_its_title(count: int) -> None:
    """And there is no empty drawing where the last row is not full."""
    figures = [report.Curve(f"curve number {index}", [(1, 1.0), (5, 2.0)]) for index in range(count)]
    html = report.curves(figures, columns=2)
    assert html.count("<svg") == 1
    assert all(f"curve number {index}" in html for index in range(count))
    assert len(re.findall(r'<g id="axes_\d+">', html)) == count


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """As the user's mistake, and an older page stays as it is."""
    (tmp_path / "taken").touch()
    with pytest.raises(InputError, match="cannot write .*page.html"):
        report.write(tmp_path / "taken" / "page.html", title="t", lead="l", sections=[])
