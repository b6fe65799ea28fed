"""The plot of a sweep: distance against precision and recall, a point a setting, with names that cover nothing.

Pixels here are the figure's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

    from nextscale.evaluation.generation import Result

DPI = 150
POINT, STAR = 6, 13  # pixels around the middle of a point, and of the star, that stay free
REACH = (7, 14, 24, 36, 50, 66, 84, 104)  # pixels from a point to its name, the first that is free


def drawn(results: Sequence[Result], names: Sequence[str], *, chosen: int, title: str) -> Figure:
    """The figure; a star for the result `chosen`, a name for each where there is room."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=DPI, layout="constrained")
    panels = list(zip(figure.subplots(1, 2, sharey=True), ("precision", "recall"), strict=True))
    for axes, key in panels:
        _scatter(axes, _places(results, key), chosen)
        axes.set_xlabel(results[0].figures[key].name)
    panels[0][0].set_ylabel(results[0].figures["frechet_distance"].name)
    figure.suptitle(title, fontsize=9)
    figure.draw_without_rendering()  # from here on everything has its place
    figure.set_layout_engine("none")
    for axes, key in panels:
        label(axes, _places(results, key), names, [STAR if i == chosen else POINT for i in range(len(results))])
    return figure


def _places(results: Sequence[Result], key: str) -> list[tuple[float, float]]:
    return [(result.figures[key].value, result.figures["frechet_distance"].value) for result in results]


def _scatter(axes: Axes, places: Sequence[tuple[float, float]], chosen: int) -> None:
    shares, distances = zip(*places, strict=True)
    axes.scatter(shares, distances, s=16)
    axes.scatter(shares[chosen], distances[chosen], marker="*", s=160, color="tab:orange")
    axes.margins(0.12)
    axes.locator_params(axis="x", nbins=6)
    axes.grid(alpha=0.3)


def label(axes: Axes, places: Sequence[tuple[float, float]], names: Sequence[str], radii: Sequence[int]) -> None:
    """Name points, each at the nearest free place around it; where the axes are full, the rest stay without.

    Arguments:
        radii: pixels around the middle of each point that stay free.
    """
    from matplotlib.transforms import Bbox

    points = axes.transData.transform(places)
    taken = [Bbox.from_bounds(x - r, y - r, 2 * r, 2 * r) for (x, y), r in zip(points, radii, strict=True)]
    line = {"arrowstyle": "-", "linewidth": 0.4, "color": "tab:gray", "shrinkA": 0, "shrinkB": 2}
    style: dict[str, Any] = {"textcoords": "offset pixels", "fontsize": 7, "va": "bottom", "arrowprops": line}
    for place, point, name in zip(places, points, names, strict=True):
        text = axes.annotate(name, place, xytext=(0, 0), **style)
        if not _put(text, point, axes.get_window_extent(), taken):
            text.remove()


def _put(text: Annotation, point: tuple[float, float], inside: Bbox, taken: list[Bbox]) -> bool:
    """Move a name to the first place around its point that is free, and take that; false where there is none."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    size = Text.get_window_extent(text)  # without the line
    for right, up in _around(size.width, size.height):
        box = Bbox.from_bounds(point[0] + right, point[1] + up, size.width, size.height)
        if _holds(inside, box) and not box.count_overlaps(taken):
            text.set_position((right, up))
            taken.append(box)
            return True
    return False


def _around(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Where the lower left corner of a name may be, seen from its point, the nearest first."""
    for reach in REACH:
        columns = {"right": reach, "middle": -width / 2, "left": -width - reach}
        rows = {"up": reach, "middle": -height / 2, "down": -height - reach}
        for column, row in (
            *(("right", "up"), ("right", "middle"), ("right", "down"), ("left", "up"), ("left", "middle")),
            *(("left", "down"), ("middle", "up"), ("middle", "down")),
        ):
            yield columns[column], rows[row]


def _holds(outer: Bbox, inner: Bbox) -> bool:
    return bool(outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1)
