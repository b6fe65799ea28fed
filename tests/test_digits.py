"""Laws of tokens as digits."""

from __future__ import annotations

import math

import pytest
import torch

from nextscale import digits

SIZES = [(3,), (2, 2, 2), (8, 5, 5, 3), (2, 7)]


@pytest.mark.parametrize("sizes", SIZES)
def test_digits_and_numbers_are_one_to_one(sizes: tuple[int, ...]) -> None:
    """Every number has its own digits, each below its size, the first counting fastest."""
    numbers = torch.arange(math.prod(sizes)).view(-1, sizes[0])
    parts = digits.split(numbers, sizes)
    assert parts.shape == (*numbers.shape, len(sizes))
    assert parts[0, :, 0].tolist() == list(range(sizes[0]))
    assert bool((parts >= 0).all() and (parts < torch.tensor(sizes)).all())
    assert torch.equal(digits.joined(parts, sizes), numbers)
    assert len(parts.flatten(0, 1).unique(dim=0)) == numbers.numel()


def test_numbers_may_have_62_bits() -> None:
    """As many as int64 holds without a sign."""
    numbers = torch.tensor([0, 1, 2**61 + 5, 2**62 - 1])
    assert torch.equal(digits.joined(digits.split(numbers, (2,) * 62), (2,) * 62), numbers)


def test_levels_that_are_powers_of_two_are_bits() -> None:
    """A finer cut of the same number: 8 levels and 4 are three bits and two."""
    numbers = torch.arange(32)
    coarse, fine = digits.split(numbers, (8, 4)), digits.split(numbers, (2,) * 5)
    assert torch.equal(coarse[:, 0], digits.joined(fine[:, :3], (2,) * 3))
    assert torch.equal(coarse[:, 1], digits.joined(fine[:, 3:], (2,) * 2))


def test_neighbours_of_one_size_are_one_run() -> None:
    """And its columns unfold to it."""
    first, second, third = digits.runs((8, 5, 5, 3))
    assert (first.digits, first.columns, first.shape) == (slice(0, 1), slice(0, 8), (1, 8))
    assert (second.digits, second.columns, second.shape) == (slice(1, 3), slice(8, 18), (2, 5))
    assert (third.digits, third.columns, third.shape) == (slice(3, 4), slice(18, 21), (1, 3))


def test_every_value_of_every_digit_has_a_column() -> None:
    """Those of the first digit come first."""
    assert digits.columns(torch.tensor([0, 1, 5]), (2, 3)).tolist() == [[0, 2], [1, 2], [1, 4]]
