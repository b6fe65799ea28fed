"""Laws of the words about a tokenizer's health: they come exactly where a figure passes its threshold, and tell it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from nextscale import Scales
from nextscale.config import TokenizerConfig
from nextscale.training.tokenizer import health
from nextscale.training.tokenizer.health import ScaleUsage, scale_usage, table

PICTURES = 1000
SOUND = {"used": 64, "possible": 64, "perplexity": 50.0, "residual": 0.5, "psnr": 20.0}


def row(size: str = "4x6", **changes: Any) -> ScaleUsage:
    """A sound scale but for the changes."""
    return ScaleUsage(size, **(SOUND | changes))


@pytest.fixture
def told(tokenizer_config: TokenizerConfig):
    """`told({"psnr": 3}, [{"gradient_norm": 1}])`: warnings of a sound validation of 4 scales but for the changes."""

    def tell(changes: dict[str, float] | None = None, figures: list[dict[str, float]] | None = None, **limits: Any):
        validation = {"psnr": 23.0}
        for k in range(1, 5):
            validation |= {
                f"codes_used_scale_{k}": 64.0,
                f"perplexity_scale_{k}": 50.0,
                f"residual_scale_{k}": 1 - 0.2 * k,
                f"psnr_scale_{k}": 20.0 + k,
            }
        return health.warnings(tokenizer_config, validation | (changes or {}), figures or [], PICTURES, **limits)

    return tell


def heard(count: int = 1, **figures: float) -> list[dict[str, float]]:
    """So many steps in which the discriminator was heard."""
    return [{"discriminator_accuracy": 0.7, "adaptive_weight": 1.0} | figures for _ in range(count)]


# ---- usage -----------------------------------------------------------------------------------------------------------


def test_usage_is_read_from_the_validation(tokenizer_config: TokenizerConfig) -> None:
    """No more codes are possible than the codebook has (64), nor than there were tokens (20 pictures of one token)."""
    config = dataclasses.replace(tokenizer_config, scales=Scales([1, (2, 3), 4]), phi_sharing="all", phi_count=1)
    names = {"codes_used": 10.0, "perplexity": 5.5, "residual": 0.25, "psnr": 8.0}
    figures = {f"{name}_scale_{k}": value * k for name, value in names.items() for k in (1, 2, 3)}
    assert scale_usage(config, figures | {"psnr": 20.0}, 20) == [
        ScaleUsage("1x1", 10, 20, 5.5, 0.25, 8.0),
        ScaleUsage("2x3", 20, 64, 11.0, 0.5, 16.0),
        ScaleUsage("4x4", 30, 64, 16.5, 0.75, 24.0),
    ]


@pytest.mark.parametrize(
    ("possible", "perplexity", "collapsed"),
    [(512, 9.9, True), (512, 10.0, False), (512, 300.0, False), (6, 2.9, True), (6, 3.1, False), (1, 1.0, False)],
)
def test_a_handful_is_told_only_where_more_was_possible(possible: int, perplexity: float, collapsed: bool) -> None:
    """Ten codes, or half of what few pictures make possible."""
    assert row(possible=possible, perplexity=perplexity).collapsed is collapsed


def test_the_warning_names_scale_and_figures() -> None:
    """Enough to act upon without the table."""
    warning = row(used=5, possible=512, perplexity=3.14).warning()
    assert all(part in warning for part in ("scale 4x6", "5 of 512", "3.1", "try "))


# ---- the table -------------------------------------------------------------------------------------------------------


def test_the_table_has_a_column_a_scale() -> None:
    """And a line a figure, aligned on the right; what is not known is a dash."""
    rows = [
        row("1x1", used=3, perplexity=2.94, residual=1.0, psnr=9.25),
        row("2x3", perplexity=120.4, residual=0.0312, psnr=math.nan),
    ]
    assert table(rows) == [
        "scale       1x1  2x3",
        "codes used    3   64",
        "possible     64   64",
        "perplexity  2.9  120",
        "residual %  100  3.1",
        "PSNR dB     9.2    -",
    ]


@pytest.mark.parametrize("codes", [1, 512, 4096, 65536])
@pytest.mark.parametrize("psnr", [-3.0, 21.25, 120.0, math.nan])
def test_ten_scales_fit_80_columns(codes: int, psnr: float) -> None:
    """At the release's sizes and larger ones; all lines are as wide."""
    sizes = ("1x1", "4x6", *["24x32"] * 8)
    lines = table([row(size, used=codes, possible=codes, perplexity=float(codes), psnr=psnr) for size in sizes])
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 80


# ---- thresholds, on both sides ---------------------------------------------------------------------------------------


def test_a_sound_tokenizer_is_not_talked_about(told) -> None:
    """Nor one of which only usage is known."""
    assert told(figures=heard(gradient_norm=0.5), clip=1.0, history=[{"step": 1, "psnr": 23.5}]) == []
    assert told({f"{name}_scale_{k}": math.nan for name in ("residual", "psnr") for k in range(1, 5)}) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codes_used_scale_3": 32.0}, None),
        ({"codes_used_scale_3": 31.0}, "scale 3x3 uses 31 of 64 possible codes, less than 50%"),
        ({"codes_used_scale_2": 11.0, "codes_used_scale_1": 11.0}, None),  # 2x2 and 1x1 may
        ({"codes_used_scale_3": 8.0, "perplexity_scale_3": 6.0}, "scale 3x3 has collapsed to a handful of codes: 8 of"),
        ({"residual_scale_3": 0.6009}, None),
        ({"residual_scale_3": 0.6011}, "scale 3x3 leads away from the features: 60.1% of their energy is left"),
        ({"residual_scale_1": 1.0009}, None),
        ({"residual_scale_1": 1.02}, "scale 1x1 leads away from the features: 102.0% of their energy is left"),
        ({"psnr_scale_4": 22.991}, None),
        ({"psnr_scale_4": 22.98}, "the last scale, 4x4, makes pictures worse: PSNR 22.98 dB after it, 23.00 before"),
        ({"psnr_scale_3": 3.0}, None),  # only the last scale's picture is what was trained for
    ],
)
def test_scales_are_told_about_beyond_their_thresholds(told, changes: dict[str, float], words: str | None) -> None:
    """Half of the codes beyond 2x2, a residual that grows by what the table shows, a last scale that costs PSNR."""
    told_of(told(changes), words)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (heard(discriminator_accuracy=0.95), None),
        (heard(discriminator_accuracy=0.951), "the discriminator has won: it classifies 95.1% of patches correctly"),
        (heard(1, discriminator_accuracy=1.0) + heard(9), None),  # in one step of ten
        (heard(discriminator_accuracy=0.5), None),  # heard, it may come close to guessing
        ([{"discriminator_accuracy": 0.55}] * 10, None),
        ([{"discriminator_accuracy": 0.549}] * 10, "has learned nothing in 10 steps alone: it classifies 54.9%"),
        ([{"discriminator_accuracy": 0.5}] * 9, None),  # too few to tell
        ([{"discriminator_accuracy": 0.5}] * 20 + [{"discriminator_accuracy": 0.6}] * 10, None),  # the last ten tell
        (heard(5, adaptive_weight=0.1) + heard(6), None),
        (heard(5, adaptive_weight=0.1) + heard(5), "at its lower bound of 0.1 in 5 of 10 steps"),
        (heard(5, adaptive_weight=0.10000000149) + heard(5), "at its lower bound of 0.1 in 5 of 10"),  # float32
        (heard(10, adaptive_weight=9.9), None),
        (heard(10, adaptive_weight=10.0), "at its upper bound of 10 in 10 of 10 steps"),
        (heard(9, adaptive_weight=10.0), None),  # too few to tell
    ],
)
def test_the_discriminator_is_told_about(told, figures: Any, words: str | None) -> None:
    """Accuracy above 95 % or below 55 % on average; the adaptive weight at a bound in half of the steps."""
    told_of(told(figures=figures, adaptive_range=(0.1, 10.0)), words)


@pytest.mark.parametrize(
    ("norms", "words"),
    [
        ([1.0] * 20, None),
        ([2.5] * 18 + [0.5] * 2, None),
        ([2.5] * 9, None),  # too few to tell
        ([2.5] * 19 + [0.5], "the gradient was clipped in 19 of 20 steps: its norm is 2.5 as a rule, the clip 1;"),
        ([0.5, 0.5, math.nan, math.inf], "2 of 4 steps were skipped"),
    ],
)
def test_gradients_are_told_about(told, norms: list[float], words: str | None) -> None:
    """Clipped in 19 steps of 20, or skipped in any."""
    told_of(told(figures=[{"gradient_norm": norm} for norm in norms], clip=1.0), words)


def test_a_step_that_only_the_discriminator_skipped_is_told(told) -> None:
    """Its gradient is looked at like the other."""
    figures = [{"gradient_norm": 0.5, "discriminator_gradient_norm": norm} for norm in (0.5, math.inf)]
    told_of(told(figures=figures), "1 of 2 steps were skipped")


@pytest.mark.parametrize(
    ("psnr", "figures", "words"),
    [
        (23.0, heard(), None),
        (22.99, heard(), "PSNR is 22.99 dB, 1.01 below its best of 24.00"),
        (12.0, [{"discriminator_accuracy": 0.7}], None),
    ],
)
def test_the_price_of_the_discriminator_is_told(told, psnr: float, figures: Any, words: str | None) -> None:
    """More than 1 dB below the best validation so far, once it is heard."""
    history = [{"psnr": 20.0}, {"psnr": 24.0}, {"psnr": 23.5}]
    told_of(told({"psnr": psnr}, figures, history=history), words)


def told_of(warnings: list[str], words: str | None) -> None:
    """Nothing, or exactly one line with these words and something to try."""
    if words is None:
        assert warnings == []
        return
    (warning,) = warnings
    assert words in warning
    assert "try " in warning
    assert "\n" not in warning
