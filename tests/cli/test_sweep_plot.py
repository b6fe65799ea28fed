"""Laws of the plot of a sweep: names cover neither each other nor a point, and axes hold all of them."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from nextscale.cli.sweep_plot import DPI, drawn

NAMES = [f"{guidance:g} / {k}" for guidance in (0, 1, 1.5, 2, 3, 4) for k in (300, 600, 900, 0)]


def swept(spread: float) -> tuple[Figure, list[tuple[float, float]]]:
    """The figure of 24 settings whose figures differ by so much, and places in its first axes."""
    values = 0.5 + spread * torch.rand(24, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    keys = ("frechet_distance", "precision", "recall")
    results = [
        SimpleNamespace(figures={key: SimpleNamespace(name=key, value=v) for key, v in zip(keys, row, strict=True)})
        for row in values.tolist()
    ]
    figure = drawn(results, NAMES, chosen=3, title="guidance / top-k")
    return figure, [(row[1], row[0]) for row in values.tolist()]


@pytest.mark.parametrize("spread", [0.4, 1e-6])
def test_names_of_settings_cover_neither_each_other_nor_points(spread: float) -> None:
    """24 settings in two panels: all are named, inside the axes, however near their figures are."""
    figure, places = swept(spread)
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [Text.get_window_extent(text).padded(-0.5) for text in axes.texts]
        assert sorted(text.get_text() for text in axes.texts) == sorted(NAMES)
        assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        frame = axes.get_window_extent()
        assert all(frame.contains(*box.min) and frame.contains(*box.max) for box in boxes)
    points = figure.axes[0].transData.transform(places)
    names = [Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert not [name for name in names for point in points if name.contains(*point)]
    assert figure.dpi == DPI


def test_a_sweep_whose_settings_do_not_differ_names_what_it_can() -> None:
    """All points on one place: the names around it still do not cover each other."""
    figure, _ = swept(0.0)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text).padded(-0.5) for text in figure.axes[0].texts]
    assert len(boxes) > 8
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
