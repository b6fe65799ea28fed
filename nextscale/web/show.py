"""Pictures, token maps and curves as HTML: what the page shows, without knowing how it came about.

Pictures stand inside the text as data, so that nothing is left on the disk and a saved picture is the file itself, with
its settings. All text from outside is escaped.
"""

from __future__ import annotations

import base64
import io
import math
import zipfile
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from nextscale import images

Stage = tuple[Image.Image, str]  # and the line below it
PALETTE = 0.61803398875  # of a turn of the colour wheel from one token to the next


def pictures(images_B3HW: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [0, 1] as B Pillow images."""
    return [images.to_pil(images.from_unit(image)) for image in images_B3HW]


def growing(images_B3HW: Tensor, *, scale: int, scales: int, size: tuple[int, int], names: Sequence[str]) -> str:
    """Pictures that are being painted, with how far they are."""
    told = f"Scale {scale + 1} of {scales}: {size[0]} × {size[1]} tokens"
    figures = (
        _figure(images.data_uri(picture), name) for picture, name in zip(pictures(images_B3HW), names, strict=True)
    )
    bar = f'<progress max="{scales}" value="{scale + 1}" aria-label="scales painted"></progress>'
    return f'<div class="stage" data-scale="{scale + 1}">{status(told)}{bar}{_sheet(figures)}</div>'


def done(files: Sequence[Path], names: Sequence[str], *, told: str, archive: str = "pictures.zip") -> str:
    """Finished pictures, each to download as the file that it is, and all in one archive."""
    figures = (_figure(data_uri(file), name, file.name) for file, name in zip(files, names, strict=True))
    every = _link(_zip_uri(files), archive, f"Download all {len(files)} (zip)") if len(files) > 1 else ""
    return f'<div class="stage finished">{status(told)}{_sheet(figures)}{every}</div>'


def sliders(both: Sequence[Sequence[Path]], names: Sequence[str]) -> str:
    """Pictures of two settings, A and B, each pair on top of each other with an edge to move."""
    figures = (_slider(left, right, name) for left, right, name in zip(*both, names, strict=True))
    return f'<div class="over"><h3>A over B</h3>{_sheet(figures)}</div>'


def _slider(left: Path, right: Path, name: str) -> str:
    pictures = (
        f'<img src="{data_uri(file)}" alt="{escape(name)}, setting {which}" class="{which}">'
        for which, file in (("B", right), ("A", left))
    )
    handle = (
        f'<input type="range" min="0" max="100" value="50" aria-label="{escape(name)}: how much of A covers B, in %">'
    )
    marks = '<span aria-hidden="true">A</span><span aria-hidden="true">B</span>'
    return (
        f'<figure><div class="slider-pair">{"".join(pictures)}{marks}{handle}</div>'
        f"<figcaption>{escape(name)}</figcaption></figure>"
    )


def message(told: str) -> str:
    """A line instead of pictures."""
    return f'<div class="stage empty">{status(told)}</div>'


def strip(stages: Sequence[Stage], *, label: str) -> str:
    """Pictures in a row that may be scrolled, each with a line below."""
    figures = "".join(_figure(images.data_uri(picture), name) for picture, name in stages)
    return f'<div class="strip" role="group" tabindex="0" aria-label="{escape(label)}">{figures}</div>'


def reconstruction(told: str, stages: Sequence[Stage], maps: Sequence[Stage]) -> str:
    """A picture through its tokens: what is painted after each scale, and the maps of tokens."""
    return (
        f'<div class="stage finished">{status(told)}{strip(stages, label="coarse to fine")}'
        f"<h3>Token maps</h3>{strip(maps, label='token maps')}</div>"
    )


def token_map(tokens_hw: Tensor) -> Image.Image:
    """(h, w) int64 as a picture of as many pixels: equal tokens have equal colours."""
    hue = tokens_hw.double().mul(PALETTE).remainder(1)
    value = tokens_hw.double().mul(PALETTE**2).remainder(1).mul(0.45).add(0.5)
    hsv = torch.stack([hue, torch.full_like(hue, 0.55), value], dim=-1).mul(255).round().to(torch.uint8)
    return Image.merge("HSV", [Image.fromarray(part.cpu().numpy()) for part in hsv.unbind(-1)]).convert("RGB")


def status(told: str) -> str:
    """A line that screen readers say when it changes."""
    return f'<p role="status" aria-live="polite">{escape(told)}</p>'


def _sheet(figures: Iterable[str]) -> str:
    return f'<div class="sheet">{"".join(figures)}</div>'


def _figure(source: str, name: str, file: str | None = None) -> str:
    link = _link(source, file, "Download", f"Download {name}") if file else ""
    return f'<figure><img src="{source}" alt="{escape(name)}"><figcaption>{escape(name)} {link}</figcaption></figure>'


def _link(source: str, file: str, told: str, label: str | None = None) -> str:
    return f'<a download="{escape(file)}" href="{source}" aria-label="{escape(label or told)}">{escape(told)}</a>'


def data_uri(file: Path) -> str:
    """A PNG file as it is, notes and all."""
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")


def _zip_uri(files: Sequence[Path]) -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored: PNGs do not shrink
        for file in files:
            archive.writestr(file.name, file.read_bytes())
    return "data:application/zip;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# ---- runs ------------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 320, 140  # of a curve, in pixels


def table(head: Sequence[str], body: Iterable[Sequence[str]], *, caption: str) -> str:
    """A table of text."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in body)
    return f"<table><caption>{escape(caption)}</caption><tr>{titles}</tr>{lines}</table>"


def curve(title: str, points: Sequence[tuple[float, float]]) -> str:
    """(step, value) as a line, with its ends in words; values that are not finite are left out."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if not finite:
        return ""
    (left, right), (low, high) = _ends([x for x, _ in finite]), _ends([y for _, y in finite])
    places = " ".join(
        f"{(x - left) / (right - left) * WIDTH:.1f},{(high - y) / (high - low) * HEIGHT:.1f}" for x, y in finite
    )
    told = f"{title}: {finite[0][1]:.4g} at step {finite[0][0]:g}, {finite[-1][1]:.4g} at step {finite[-1][0]:g}"
    return (
        f'<figure class="curve"><figcaption>{escape(title)} <b>{finite[-1][1]:.4g}</b></figcaption>'
        f'<svg viewBox="-3 -3 {WIDTH + 6} {HEIGHT + 6}" role="img" aria-label="{escape(told)}">'
        f'<polyline points="{places}"/></svg><small>{low:.4g} … {high:.4g}, step {left:g} … {right:g}</small></figure>'
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def sheets(stages: Sequence[Stage]) -> str:
    """Large pictures below each other."""
    return "".join(f'<div class="samples">{_figure(images.data_uri(sheet), name)}</div>' for sheet, name in stages)
