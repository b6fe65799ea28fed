"""Laws of benchmarks/int8.py: a precision compared with itself differs in nothing, and ratios are of one repeat."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale import Pipeline
from nextscale.machine.int8 import multiplies_int8_fast

PROGRAM = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "int8.py"))


@pytest.fixture
def load(make_tokenizer: Callable[..., Any], make_transformer: Callable[..., Any]) -> Callable[[str], Pipeline]:
    """One model in any precision."""
    tokenizer, transformer = make_tokenizer(), make_transformer()
    return lambda precision: Pipeline(tokenizer, transformer, precision=precision)


def test_a_precision_differs_from_itself_in_nothing(load: Callable[[str], Pipeline]) -> None:
    """The steps are those of sampling, the tokens those of the same seeds."""
    figures = PROGRAM["compare"](lambda precision: load("fp32"), 5)
    for told in figures.values():
        assert told.pop("psnr_of_same_tokens") == torch.inf
        assert told == {"logits_error": 0, "divergence": 0, "same_likeliest": 1, "same_tokens": 1}


def test_divergence_is_that_of_kullback_and_leibler() -> None:
    """Of two coins: 0.5 log(0.5 / 0.25) + 0.5 log(0.5 / 0.75)."""
    expected, logits = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert float(PROGRAM["divergence"](expected, logits)) == pytest.approx(0.1438, abs=1e-4)


def test_int8_costs_what_is_told(load: Callable[[str], Pipeline]) -> None:
    """More than nothing in the logits, little in the pictures, and both are timed."""
    if not multiplies_int8_fast(torch.device("cpu")):
        pytest.skip("this processor has neither AMX nor AVX512-VNNI")
    told = PROGRAM["compare"](load, 4)["int8"]
    assert 0 < told["logits_error"] < 0.1
    assert told["divergence"] >= 0
    assert told["psnr_of_same_tokens"] > 30
    row = PROGRAM["measure"]({name: load(name) for name in ("auto", "int8")}, 2, 1)
    ours, theirs = row["int8_seconds_per_image"], row["auto_seconds_per_image"]
    assert row["seconds_ratio"] == pytest.approx(theirs / ours)
