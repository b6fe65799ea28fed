"""Tokens as mixed-radix numbers, the least significant digit first: tokenizer and transformer both read them so.

A code that combines small choices (a level for each channel, or bits) is numbered by them, and a head may predict the
number digit by digit. The two may cut it differently: a channel of 8 levels is also three bits.

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
    pairs = zip(_places(sizes), sizes, strict=True)
    return torch.stack([tokens.div(place, rounding_mode="floor").remainder(size) for place, size in pairs], dim=-1)


def joined(digits: Tensor, sizes: Sequence[int]) -> Tensor:
    """The reverse of `split`: (..., G) int64 -> (...) int64."""
    pairs = zip(digits.unbind(-1), _places(sizes), strict=True)
    return torch.stack([digit * place for digit, place in pairs]).sum(dim=0)


def columns(tokens: Tensor, sizes: Sequence[int]) -> Tensor:
    """Where the values of digits lie among all values of all digits, one after the other: (..., G) int64."""
    pairs = zip(split(tokens, sizes).unbind(-1), accumulate(sizes, initial=0), strict=False)
    return torch.stack([digit + first for digit, first in pairs], dim=-1)


def _places(sizes: Sequence[int]) -> list[int]:
    """What one of each digit counts. Plain numbers: a tensor of them would make an accelerator wait for the host."""
    return [math.prod(sizes[:place]) for place in range(len(sizes))]
