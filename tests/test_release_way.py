"""Laws of benchmarks/release_way.py: what is timed there paints the same pictures."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale import Pipeline

PROGRAM = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "release_way.py"))


@pytest.mark.parametrize("change", [{}, {"shared_modulation": True}, {"normalized_attention": False}], ids=str)
def test_likeliest_codes_are_the_same(
    make_tokenizer: Callable[..., Any], make_transformer: Callable[..., Any], change: dict[str, Any]
) -> None:
    """With top_k 1 nothing is left to chance: identical tokens, images equal up to rounding."""
    pipe = Pipeline(make_tokenizer(), make_transformer(**change), precision="fp32")
    ours = pipe.generate([1, 5, 3], guidance=2.0, top_k=1)
    images, tokens = PROGRAM["paint"](pipe, [1, 5, 3], guidance=2.0, top_k=1)
    assert torch.equal(tokens, ours.tokens)
    torch.testing.assert_close((images + 1) / 2, ours.images, atol=1e-5, rtol=0)


def test_draw_keeps_to_both_truncations() -> None:
    """Probabilities 0.5, 0.3, 0.15, 0.05: the second in 3 of 8 draws where two are left."""
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log().expand(1, 4000, 4)
    for top_k, top_p in ((2, 1.0), (4, 0.7)):
        drawn = PROGRAM["draw"](logits, top_k, top_p, torch.Generator().manual_seed(0))
        counts = torch.bincount(drawn.flatten(), minlength=4)
        assert counts[0] == counts[2] == 0
        assert counts[3] / 4000 == pytest.approx(3 / 8, abs=0.03)


@pytest.mark.slow
def test_every_way_is_timed() -> None:
    """Ratios are theirs over ours, repeat by repeat."""
    ours, theirs = (Pipeline.from_preset("emoji-32", precision=precision) for precision in ("bf16", "fp32"))
    row = PROGRAM["measure"](ours, theirs, 1, 1)
    for name in ("fp32", "autocast"):
        assert row[f"{name}_over_ours"] == row[f"{name}_seconds_per_image"] / row["ours_seconds_per_image"]
