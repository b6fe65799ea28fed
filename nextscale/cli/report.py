"""The page that `nextscale demo` leaves: one HTML file with every picture and curve inside it.

Knows how things look, not where they come from: it is given pictures, figures and words.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from nextscale import images
from nextscale.cli.sheet import Row
from nextscale.files.durable import write_beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2024; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
.lead, .about { color: #5b6470; margin-top: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem; padding: 0; }
.tile { background: #f3f5f8; border-radius: .5rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.45rem; } .tile span { color: #5b6470; font-size: .85rem; }
figure { margin: 1rem 0; overflow-x: auto; } figcaption { color: #5b6470; font-size: .9rem; }
.row { display: flex; align-items: center; gap: .8rem; margin: .35rem 0; }
.row .name { flex: 0 0 9.5rem; font-size: .9rem; text-align: right; }
.pictures { display: flex; flex-wrap: wrap; gap: 3px; min-width: 0; }
.pictures figure { margin: 0; overflow: visible; } .pictures figcaption { font-size: .8rem; text-align: center; }
.pictures img { display: block; image-rendering: pixelated; }
table { border-collapse: collapse; font-size: .9rem; } th { text-align: left; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e3e7ec; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.warning { background: #fff4d6; border-left: 4px solid #e0a100; padding: .5rem .8rem; }
pre { background: #f3f5f8; padding: .8rem; border-radius: .5rem; overflow-x: auto; }
svg { max-width: 100%; height: auto; }
@media (max-width: 40rem) {
  .row { display: block; } .row .name { display: block; text-align: left; margin-top: .6rem; }
}
"""


@dataclass(frozen=True)
class Section:
    """A heading, what it is about, and the HTML below."""

    heading: str
    content: str
    about: str = ""


@dataclass(frozen=True)
class Curve:
    """One figure along a run."""

    title: str
    points: Sequence[tuple[float, float]]
    """(step, value)."""
    level: tuple[str, float] | None = None
    """A line to compare with."""


def rows(pictures: Sequence[Row], *, zoom: int) -> str:
    """Rows of pictures, each pixel drawn as zoom x zoom; what does not fit beside the others goes below them."""
    return "".join(_row(row, zoom) for row in pictures)


def _row(row: Row, zoom: int) -> str:
    names = row.over or [""] * len(row.pictures)
    shown = "".join(_picture(*each, row.name, zoom) for each in zip(row.pictures, names, strict=True))
    return f'<div class="row"><span class="name">{escape(row.name)}</span><div class="pictures">{shown}</div></div>'


def _picture(picture_3HW: Tensor, over: str, name: str, zoom: int) -> str:
    """One in [-1, 1], with what stands over it."""
    height, width = (side * zoom for side in picture_3HW.shape[1:])
    source = images.data_uri(picture_3HW)
    caption = f"<figcaption>{escape(over)}</figcaption>" if over else ""
    return f'<figure>{caption}<img src="{source}" width="{width}" height="{height}" alt="{escape(name)}"></figure>'


def tiles(figures: Sequence[tuple[str, str]]) -> str:
    """The few figures that matter, large: (value, what it is)."""
    cells = (f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in figures)
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table; cells that hold a number alone are aligned as such."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "".join(f"<tr>{''.join(map(_cell, line))}</tr>" for line in body)
    return f"<table><tr>{titles}</tr>{lines}</table>"


def _cell(text: str) -> str:
    kind = ' class="number"' if re.fullmatch(r"[\d.,]+", text) else ""
    return f"<td{kind}>{escape(text)}</td>"


def warnings(lines: Sequence[str]) -> str:
    """What the reader must not miss."""
    return "".join(f'<p class="warning">{escape(line)}</p>' for line in lines)


def commands(lines: Sequence[str]) -> str:
    """Things to type."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def curves(figures: Sequence[Curve], *, columns: int) -> str:
    """Curves in rows of so many, as one SVG drawing."""
    buffer = io.StringIO()
    drawn_curves(figures, columns=columns).savefig(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue()
    return f"<figure>{drawing[drawing.index('<svg') :]}</figure>"


def drawn_curves(figures: Sequence[Curve], *, columns: int) -> Figure:
    """The same as matplotlib's figure."""
    from matplotlib.figure import Figure

    lines = -(-len(figures) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * lines), layout="constrained")
    places = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in places[len(figures) :]:
        axes.remove()
    for axes, curve in zip(places, figures, strict=False):
        axes.plot(*zip(*curve.points, strict=True), marker="o", markersize=3)
        if curve.level is not None:
            name, value = curve.level
            axes.axhline(value, color="tab:orange", linestyle="--", label=name)
            axes.legend(frameon=False)
        axes.set_title(curve.title, fontsize=10)
        axes.set_xlabel("steps")
        axes.margins(x=0)
        axes.grid(alpha=0.3)
    return figure


def write(path: Path, *, title: str, lead: str, sections: Sequence[Section]) -> None:
    """The page: a title, a sentence, and the sections."""
    body = "".join(map(_section, sections))
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>'
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{body}</html>\n'
    )
    write_beside(path, lambda beside: beside.write_bytes(page.encode()))


def _section(section: Section) -> str:
    about = f'<p class="about">{escape(section.about)}</p>' if section.about else ""
    return f"<h2>{escape(section.heading)}</h2>{about}{section.content}"
