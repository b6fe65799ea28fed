"""A small part of benchmarks/wrong_calls.py: public functions say in a sentence what they expected."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale import VAR, InputError, MultiScaleVQVAE, Pipeline

PROGRAM = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "wrong_calls.py"))


@pytest.mark.slow
def test_wrong_arguments_of_public_functions_are_told(tmp_path: Path) -> None:
    """Two hundred calls of forty functions, some with two wrong arguments."""
    with PROGRAM["world"](tmp_path):
        assert PROGRAM["walk"](200, 0, PROGRAM["doors"]()) == {}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"top_k": 9.5}, "top_k: expected an integer, got 9.5"),
        ({"top_k": None}, "top_k: expected an integer, got None"),
        ({"temperature": "1"}, "temperature: expected a number, got '1'"),
        ({"smooth": 1}, "smooth: expected True or False, got 1"),
        ({"memory": "4GB"}, "memory: expected a number or None, got '4GB'"),
    ],
)
def test_a_wrong_setting_of_sampling_is_told(pipe: Pipeline, settings: dict[str, Any], told: str) -> None:
    """By its name, with what was given."""
    with pytest.raises(InputError, match=f"^{told}$"):
        pipe.generate([0], **settings)


@pytest.mark.parametrize(
    ("labels", "inputs", "told"),
    [
        (torch.tensor([0]), torch.zeros(29, 8), r"teacher inputs: expected shape \(1, 29, 8\), got \(29, 8\)"),
        (torch.tensor([6]), torch.zeros(1, 29, 8), r"labels: expected 0 .. 5 \(5: no class\), got 6 .. 6"),
        (torch.tensor([-1]), torch.zeros(1, 29, 8), r"labels: expected 0 .. 5 \(5: no class\), got -1 .. -1"),
        (torch.tensor([1.0]), torch.zeros(1, 29, 8), r"expected labels of shape \(batch,\) int64 and floats"),
        ([0], torch.zeros(1, 29, 8), r"labels: expected a tensor, got \[0\]"),
        (torch.tensor([0]), torch.zeros(1, 29, 8, dtype=torch.int64), "floats as teacher inputs, .* torch.int64"),
    ],
)
def test_what_the_transformer_cannot_take_is_told(transformer: VAR, labels: Any, inputs: Tensor, told: str) -> None:
    """Shape, type and range, before they end inside torch."""
    with pytest.raises(InputError, match=told):
        transformer(labels, inputs)


def test_a_quantizer_wants_features_of_its_shape(make_tokenizer: Callable[..., MultiScaleVQVAE]) -> None:
    """(B, C, h_K, w_K), floating point."""
    with pytest.raises(InputError, match=r"features: expected shape \(batch, 8, 4, 4\), float, got \(1, 3\) float32"):
        make_tokenizer().quantize(torch.zeros(1, 3))
