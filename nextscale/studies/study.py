"""What a study is, for whoever runs one and shows what came of it; a new one is a class of this shape and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from nextscale.studies.cells import Cell
from nextscale.studies.tables import Column, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Study(Protocol):
    """Cells, what each does, and how results are shown."""

    @property
    def name(self) -> str: ...

    @property
    def cells(self) -> Sequence[Cell]:
        """In the order in which they are made."""
        ...

    @property
    def columns(self) -> Sequence[Column]:
        """Of the table."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """How the figures were made: lines below the table."""
        ...

    def estimate(self, cell: Cell) -> float:
        """Seconds that a cell will take."""
        ...

    def about(self, cell: Cell) -> Mapping[str, object]:
        """What a cell is, by the titles of the columns of a list of what is to come."""
        ...

    def work(self, cell: Cell, folder: Path) -> Mapping[str, Any]:
        """Make and judge a cell (`cells.Work`)."""
        ...

    def plot(self, rows: Sequence[Row]) -> Figure:
        """Of the table's rows."""
        ...

    def pictures(self, cell: Cell, folder: Path) -> Tensor | None:
        """Some pictures of a cell that is done, (n, 3, H, W) in [-1, 1], as many of every cell; None: it has none."""
        ...
