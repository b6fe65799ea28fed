"""Figures of an evaluation and its card, told to people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nextscale.cli.output import say

if TYPE_CHECKING:
    from nextscale.evaluation.card import Protocol
    from nextscale.evaluation.judging import Figure


def tell(figures: Iterable[Figure]) -> None:
    """A line each: the name it may be quoted by, the value, and how far it can be believed."""
    for figure in figures:
        print(f"  {figure.name:<28}{figure.value:12.4f}{_doubt(figure)}")
    print()


def tell_card(card: Protocol, warnings: Sequence[str]) -> None:
    """How they were made, and what to keep in mind."""
    for line in card.lines():
        say(line)
    for warning in warnings:
        say(f"warning: {warning}")


def _doubt(figure: Figure) -> str:
    if figure.low is not None and figure.high is not None:
        return f"  ({figure.low:.4f} .. {figure.high:.4f})"
    where = f"over {len(figure.repeats)} sets of seeds" if figure.repeats else "over subsets"
    return f"  ± {figure.deviation:.4f} {where}" if figure.deviation is not None else ""
