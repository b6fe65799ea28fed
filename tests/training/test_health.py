"""Laws of the words about the codebook: they come exactly where a scale says little that could say more."""

from __future__ import annotations

import dataclasses

import pytest

from nextscale import Scales
from nextscale.config import TokenizerConfig
from nextscale.training.health import ScaleUsage, scale_usage


def test_usage_is_read_from_the_validation(tokenizer_config: TokenizerConfig) -> None:
    """No more codes are possible than the codebook has (64), nor than there were tokens (20 pictures of one token)."""
    config = dataclasses.replace(tokenizer_config, scales=Scales([1, (2, 3), 4]), phi_sharing="all", phi_count=1)
    figures = {f"codes_used_scale_{k}": 10.0 * k for k in (1, 2, 3)} | {
        f"perplexity_scale_{k}": 5.5 * k for k in (1, 2, 3)
    }
    assert scale_usage(config, figures | {"psnr": 20.0}, 20) == [
        ScaleUsage("1x1", 10, 20, 5.5),
        ScaleUsage("2x3", 20, 64, 11.0),
        ScaleUsage("4x4", 30, 64, 16.5),
    ]


@pytest.mark.parametrize(
    ("possible", "perplexity", "collapsed"),
    [(512, 9.9, True), (512, 10.0, False), (512, 300.0, False), (6, 2.9, True), (6, 3.1, False), (1, 1.0, False)],
)
def test_a_handful_is_told_only_where_more_was_possible(possible: int, perplexity: float, collapsed: bool) -> None:
    """Ten codes, or half of what few pictures make possible."""
    assert ScaleUsage("4x4", 5, possible, perplexity).collapsed is collapsed


def test_the_warning_names_scale_and_figures() -> None:
    """Enough to act upon without the table."""
    warning = ScaleUsage("4x6", 5, 512, 3.14).warning()
    assert all(part in warning for part in ("scale 4x6", "5 of 512", "3.1"))
