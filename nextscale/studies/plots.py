"""Plots of a study: rows of its table as points with their doubts, a panel for each pair of columns; and power laws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from nextscale.studies.tables import Column, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nextscale.studies.laws import Fit

DPI = 150
SHAPES = "osDv^P*X"
COLOURS = 10  # that matplotlib's own cycle has
ROWS = 18  # of a legend's column


class Look(NamedTuple):
    """How a row's points look; numbers beyond what there is begin again."""

    colour: int = 0
    shape: int = 0
    filled: bool = True


class Panel(NamedTuple):
    """What is drawn against what."""

    across: Column
    up: Column


def scatter(rows: Sequence[Row], panels: Sequence[Panel], looks: Mapping[str, Look], *, title: str) -> Figure:
    """A figure with a legend of the rows beside it; rows without a figure are left out of its panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(panels) + 2.4, 4.2), dpi=DPI, layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, rows, panel, looks)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = -(-len(handles) // ROWS)
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8, ncols=columns)
    figure.suptitle(title, fontsize=9)
    return figure


def _draw(axes: Axes, rows: Sequence[Row], panel: Panel, looks: Mapping[str, Look]) -> None:
    across, up = panel
    for row in rows:
        if across.key in row.values and up.key in row.values:
            x, y, look = row.values[across.key], row.values[up.key], looks[row.name]
            colour = f"C{look.colour % COLOURS}"
            axes.errorbar(
                x.mean,
                y.mean,
                xerr=x.doubt,
                yerr=y.doubt,
                fmt=SHAPES[look.shape % len(SHAPES)],
                color=colour,
                markerfacecolor=colour if look.filled else "white",
                markersize=6,
                elinewidth=0.8,
                label=row.name,
            )
    axes.set_xlabel(_name(across))
    axes.set_ylabel(_name(up))
    axes.grid(alpha=0.3)


def _name(column: Column) -> str:
    """With which end is the better one."""
    return column.title + {"less": " (less is better)", "more": " (more is better)", "": ""}[column.better]


# ---- power laws ------------------------------------------------------------------------------------------------------


class LawPanel(NamedTuple):
    """Points and the law that was fitted to them."""

    across: str
    """What the law is over, and in which unit."""
    points: Sequence[tuple[float, float]]
    """(x, loss), those that the law left out too."""
    fit: Fit | None = None
    """None: there are too few points for one."""
    up: str = "loss"
    """What the points are."""


def laws(panels: Sequence[LawPanel]) -> Figure:
    """On logarithmic axes, what is above the irreducible loss: a power law is a straight line there."""
    from matplotlib.figure import Figure

    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.8 * columns, 4.0 * lines), dpi=DPI, layout="constrained")
    for axes, panel in zip(figure.subplots(lines, columns, squeeze=False).flatten(), panels, strict=False):
        _draw_law(axes, panel)
    return figure


def _draw_law(axes: Axes, panel: LawPanel) -> None:
    floor = 0.0 if panel.fit is None else panel.fit.law.irreducible
    if panel.fit is not None:
        law, x = panel.fit.law, sorted(x for x, _ in panel.points)
        ends = [x[0] / 1.3, x[-1] * 1.3]
        axes.plot(ends, [law(each) - floor for each in ends], "--", color="0.5", zorder=1)
        told = f"{floor:.3g} + " if floor else ""
        power = f"({law.beta:.3g} x)^{law.alpha:.3g}"
        axes.set_title(f"{told}{power}, Pearson {panel.fit.pearson:.4f}", fontsize=9)
    above = [(x, value - floor) for x, value in panel.points if value > floor]
    if above:
        axes.plot(*zip(*above, strict=True), "o", markersize=4.5, color="C0", zorder=2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(panel.across)
    axes.set_ylabel(f"{panel.up} above {floor:.3g}" if floor else panel.up)
    axes.grid(alpha=0.3, which="both")
