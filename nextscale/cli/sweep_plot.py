"""The plot of a sweep: distance against precision and recall, a point a setting, with names that cover nothing.

Pixels here are the figure's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

    from nextscale.evaluation.generation import Result

DPI = 150
POINT, STAR = 6, 13  # pixels around the middle of a point, and of the star, that stay free
REACH = (7, 14, 24, 36, 50, 66, 84, 104)  # pixels from a point to its name, the first that is free


def drawn(results: Sequence[Result], names: Sequence[str], *, chosen: int, title: str) -> Figure:
    """The figure; a star for the result `chosen`, a name for each where there is room."""
    from matplotlib.figure import Figure

    distances = [result.figures["frechet_distance"].value for result in results]
    figure = Figure(figsize=(9, 4), dpi=DPI, layout="constrained")
    panels = list(zip(figure.subplots(1, 2, sharey=True), ("precision", "recall"), strict=True))
    for axes, key in panels:
        shares = [result.figures[key].value for result in results]
        axes.scatter(shares, distances, s=16)
        axes.scatter(shares[chosen], distances[chosen], marker="*", s=160, color="tab:orange")
        axes.set_xlabel(results[0].figures[key].name)
        axes.margins(0.12)
        axes.locator_params(axis="x", nbins=6)
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel(results[0].figures["frechet_distance"].name)
    figure.suptitle(title, fontsize=9)
    figure.draw_without_rendering()  # from here on everything has its place
    figure.set_layout_engine("none")
    radii = [STAR if index == chosen else POINT for index in range(len(results))]
    for axes, key in panels:
        places = [(result.figures[key].value, y) for result, y in zip(results, distances, strict=True)]
        label(axes, places, names, radii)
    return figure


def label(axes: Axes, places: Sequence[tuple[float, float]], names: Sequence[str], radii: Sequence[int]) -> None:
    """Name points, each at the nearest free place around it; where the axes are full, the rest stay without.

    Arguments:
        radii: pixels around the middle of each point that stay free.
    """
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    inside = axes.get_window_extent()
    points = axes.transData.transform(places)
    taken = [Bbox.from_bounds(x - r, y - r, 2 * r, 2 * r) for (x, y), r in zip(points, radii, strict=True)]
    for place, (x, y), name in zip(places, points, names, strict=True):
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": "tab:gray", "shrinkA": 0, "shrinkB": 2}
        text = axes.annotate(
            name, place, xytext=(0, 0), textcoords="offset pixels", fontsize=7, va="bottom", arrowprops=line
        )
        size = Text.get_window_extent(text)  # without the line
        boxes = (
            (offset, Bbox.from_bounds(x + offset[0], y + offset[1], size.width, size.height))
            for offset in _around(size.width, size.height)
        )
        free = (each for each in boxes if _holds(inside, each[1]) and not each[1].count_overlaps(taken))
        found = next(free, None)
        if found is None:
            text.remove()
        else:
            text.set_position(found[0])
            taken.append(found[1])


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
