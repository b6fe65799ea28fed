"""Laws of plots: every row that has both figures is a point with its doubts, and is named."""

from __future__ import annotations

from nextscale.studies.plots import Look, Panel, scatter
from nextscale.studies.tables import Column, Row, Spread

X, Y = Column("x", "PSNR", better="more"), Column("y", "FD", better="less")


def test_rows_are_points_with_doubts() -> None:
    """Hollow where they are to be; those without a figure are left out."""
    rows = [
        Row("one", 1, 1, {"x": Spread(1.0, None), "y": Spread(5.0, 0.5)}),
        Row("two", 1, 1, {"x": Spread(2.0, 0.25), "y": Spread(6.0, None)}),
        Row("three", 0, 1),
    ]
    looks = {"one": Look(0, 0), "two": Look(1, 12, filled=False), "three": Look()}
    figure = scatter(rows, [Panel(X, Y)], looks, title="points")
    (axes,) = figure.axes
    assert [container.get_label() for container in axes.containers] == ["one", "two"]
    points = [container.lines[0] for container in axes.containers]
    assert [[*map(float, point.get_xydata()[0])] for point in points] == [[1, 5], [2, 6]]
    assert [point.get_markerfacecolor() for point in points] == ["C0", "white"]
    assert [len(container.lines[2]) for container in axes.containers] == [1, 1]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("PSNR (more is better)", "FD (less is better)")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]


def test_without_points_there_is_an_empty_plot() -> None:
    """And no legend."""
    assert not scatter([Row("one", 0, 1)], [Panel(X, Y)], {"one": Look()}, title="none").legends
