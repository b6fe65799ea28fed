"""What both stages say of their health: tables as text, and warnings about gradients.

Figures come in, text goes out. What belongs to one stage is in that stage's `health`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

Figures = Mapping[str, float]

ENOUGH_STEPS = 10  # before the share of steps with some property means anything
CLIPPED_SHARE = 0.95  # of the steps with the gradient clipped: then the clip decides the step, not the gradient


def columns(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text from columns of cells, the first of which holds the rows' names."""
    padded = [_padded(column, right=i > 0) for i, column in enumerate(cells)]
    return ["  ".join(line) for line in zip(*padded, strict=True)]


def _padded(column: Sequence[str], *, right: bool) -> list[str]:
    width = max(map(len, column))
    return [cell.rjust(width) if right else cell.ljust(width) for cell in column]


def about_gradients(figures: Sequence[Figures], clip: float, *, page: str) -> Iterator[str]:
    """Steps that were skipped, and a clip that decides every step; `page` of the docs says more."""
    names = ("gradient_norm", "discriminator_gradient_norm")
    skipped = sum(any(not math.isfinite(step.get(name, 0.0)) for name in names) for step in figures)
    if skipped:
        yield (
            f"{skipped} of {len(figures)} steps were skipped because their gradient was not finite; try a smaller "
            f"learning rate, a longer warm-up, or float32 ({page})"
        )
    norms = [step["gradient_norm"] for step in figures if math.isfinite(step.get("gradient_norm", math.nan))]
    clipped = sum(norm > clip for norm in norms)
    if len(norms) >= ENOUGH_STEPS and clipped >= CLIPPED_SHARE * len(norms):
        yield (
            f"the gradient was clipped in {clipped} of {len(norms)} steps: its norm is {statistics.median(norms):.3g} "
            f"as a rule, the clip {clip:g}; try a larger clip or a smaller learning rate ({page})"
        )
