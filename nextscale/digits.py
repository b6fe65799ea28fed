"""Tokens as numbers of several digits, the least significant first: what tokenizer and transformer agree on.

A code that is a product of small choices (a level for each channel, or bits) has for its number the mixed-radix number
of these choices, and a head may predict it digit by digit. Digits may be cut finer on one side than on the other: a
channel of 8 levels is three bits.

Shapes: any leading ones; G digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor


class Run(NamedTuple):
    """Neighbouring digits of one size, which can be computed together."""

    digits: slice
    """Which of the G."""
    columns: slice
    """Where their values lie, one after the other, among the sum of all sizes."""
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        """What the columns unfold to: (digits, size)."""
        return self.digits.stop - self.digits.start, self.size


def runs(sizes: Sequence[int]) -> list[Run]:
    """Digits of these sizes, neighbours of one size together."""
    found, digit, column = list[Run](), 0, 0
    for size, same in groupby(sizes):
        count = len([*same])
        found.append(Run(slice(digit, digit + count), slice(column, column + count * size), size))
        digit, column = digit + count, column + count * size
    return found


# token = sum_g digit_g * prod_h<g size_h
def split(tokens: Tensor, sizes: Sequence[int]) -> Tensor:
    """(...) int64 -> digits (..., G) int64, digit g in 0 .. sizes[g] - 1."""
    above = tokens[..., None].div(_places(sizes, tokens.device), rounding_mode="floor")
    return above.remainder(torch.tensor(sizes, device=tokens.device))


def joined(digits: Tensor, sizes: Sequence[int]) -> Tensor:
    """The reverse of `split`: (..., G) int64 -> (...) int64."""
    return (digits * _places(sizes, digits.device)).sum(dim=-1)


def columns(tokens: Tensor, sizes: Sequence[int]) -> Tensor:
    """Where the values of digits lie among all values of all digits, one after the other: (..., G) int64."""
    return split(tokens, sizes) + torch.tensor([0, *accumulate(sizes)][:-1], device=tokens.device)


def _places(sizes: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([math.prod(sizes[:place]) for place in range(len(sizes))], device=device)
