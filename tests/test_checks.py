"""Laws of the comparison of arguments with annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from nextscale.checks import checked
from nextscale.errors import LONGEST, InputError


@checked
def door(
    whole: int = 0,
    number: float = 0,
    flag: bool = False,
    word: Literal["a", "b"] = "a",
    many: int | Sequence[int] | None = None,
    some: Sequence[int] | None = None,
    place: str | Path = "",
    function: Callable[[int], int] = abs,
    table: Mapping[str, int] = {},
) -> str:
    """A function with every type that is known."""
    return "through"


@pytest.mark.parametrize(
    "given",
    [
        {"whole": np.int64(3)},
        {"whole": torch.tensor(3)},
        {"number": 3},
        {"number": np.float32(0.5)},
        {"number": torch.tensor(0.5)},
        {"flag": np.bool_(True)},
        {"word": "b"},
        {"many": [1, 2]},
        {"many": np.arange(3)},
        {"many": torch.arange(3)},
        {"many": range(3)},
        {"many": None},
        {"many": "12"},  # which the function has better words for
        {"some": (1, 2)},
        {"place": Path("x")},
        {"function": int},
        {"table": {"a": 1}},
    ],
    ids=str,
)
def test_what_means_the_same_is_taken(given: dict[str, Any]) -> None:
    """Numbers of NumPy and torch, and whatever can be iterated."""
    assert door(**given) == "through"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"whole": 9.5}, "whole: expected an integer, got 9.5"),
        ({"whole": True}, "whole: expected an integer, got True"),
        ({"whole": torch.tensor([1, 2])}, r"whole: expected an integer, got tensor\(\[1, 2\]\)"),
        ({"number": "3"}, "number: expected a number, got '3'"),
        ({"flag": 1}, "flag: expected True or False, got 1"),
        ({"word": "c"}, "word: expected one of a, b, got 'c'"),
        ({"some": "12"}, "some: expected a list or None, got '12'"),
        ({"place": 3}, "place: expected text or Path, got 3"),
        ({"place": "a\0b"}, r"place: expected a path, got 'a\\x00b' \(embedded null byte\)"),
        ({"place": "x" * 300}, r"place: expected a path, got 'xx.*xx' \(File name too long\)"),
        ({"function": 3}, "function: expected a function, got 3"),
        ({"table": [1]}, r"table: expected a mapping, got \[1\]"),
    ],
)
def test_another_type_is_told(given: dict[str, Any], told: str) -> None:
    """The argument's name, what was expected, what was given."""
    with pytest.raises(InputError, match=f"^{told}$"):
        door(**given)


def test_a_call_that_does_not_bind_is_python_s_to_refuse() -> None:
    """As for any function."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'hole'"):
        door(hole=3)


def test_long_messages_keep_both_ends() -> None:
    """What was given may be a million numbers."""
    text = str(InputError("expected one" + 10_000 * "," + "got many"))
    assert len(text) == LONGEST
    assert (text[:12], text[-8:]) == ("expected one", "got many")
