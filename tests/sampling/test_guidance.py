"""Laws of guidance schedules: what each weighs, what it refuses, and that the pipeline follows it."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextscale import InputError, Pipeline
from nextscale.sampling.guidance import (
    Guidance,
    constant_guidance,
    cosine_guidance,
    guidance_until,
    interval_guidance,
    linear_guidance,
    listed_guidance,
    weights_of,
)


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [
        (linear_guidance(1.5), [0.0, 0.5, 1.0, 1.5]),
        (constant_guidance(1.5), [1.5, 1.5, 1.5, 1.5]),
        (cosine_guidance(1.5), [0.0, 0.375, 1.125, 1.5]),
        (interval_guidance(1.5, 1, 2), [0.0, 1.5, 1.5, 0.0]),
        (listed_guidance([4, 0.0, -1.0, 2.0]), [4.0, 0.0, -1.0, 2.0]),
        (lambda k, scales: k / scales, [0.0, 0.25, 0.5, 0.75]),
        (1.5, [0.0, 0.5, 1.0, 1.5]),
        (np.float32(1.5), [0.0, 0.5, 1.0, 1.5]),
        ([4, 0.0, -1.0, 2.0], [4.0, 0.0, -1.0, 2.0]),
        (torch.tensor([4, 0.0, -1.0, 2.0]), [4.0, 0.0, -1.0, 2.0]),
        (guidance_until(1.5, 2), [0.0, 0.5, 0.0, 0.0]),
        (guidance_until([1.0, 2.0, 3.0, 4.0], 3), [1.0, 2.0, 3.0, 0.0]),
        (guidance_until(constant_guidance(1.5), 4), [1.5, 1.5, 1.5, 1.5]),
        (guidance_until(constant_guidance(1.5), 0), [0.0, 0.0, 0.0, 0.0]),
    ],
    ids=[
        *("linear", "constant", "cosine", "interval", "list", "any function", "a number", "a number of numpy's"),
        *("numbers", "a tensor", "linear until", "numbers until", "until the end", "until the start"),
    ],
)
def test_schedule_weighs_the_scales_as_it_says(schedule: float | Guidance, weights: list[float]) -> None:
    """Of a pyramid of four."""
    assert weights_of(schedule, 4) == pytest.approx(weights, abs=1e-12)


@given(st.floats(-10, 10), st.integers(2, 20))
def test_linear_and_cosine_go_from_nothing_to_the_number(guidance: float, scales: int) -> None:
    """And meet at both ends."""
    for schedule in (linear_guidance(guidance), cosine_guidance(guidance)):
        weights = weights_of(schedule, scales)
        assert weights[0] == 0
        assert weights[-1] == pytest.approx(guidance)


def test_single_scale_is_the_first() -> None:
    """Linear and cosine leave it alone, the others weigh it."""
    assert weights_of(linear_guidance(1.5), 1) == weights_of(cosine_guidance(1.5), 1) == [0.0]
    assert weights_of(constant_guidance(1.5), 1) == weights_of(interval_guidance(1.5, 0, 0), 1) == [1.5]


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "1.5", None, [1.5], 10**400], ids=lambda w: str(w)[:9])
@pytest.mark.parametrize(
    "make",
    [
        linear_guidance,
        constant_guidance,
        cosine_guidance,
        lambda weight: interval_guidance(weight, 0, 1),
        lambda weight: listed_guidance([0.0, weight]),
        lambda weight: weights_of(weight if weight != [1.5] else [weight] * 4, 4),
        lambda weight: weights_of([0.0, weight, 0.0, 0.0], 4),
        lambda weight: weights_of(lambda k, scales: weight, 4),
    ],
    ids=["linear", "constant", "cosine", "interval", "list", "a number", "numbers", "any function"],
)
def test_weights_that_are_no_finite_numbers_are_refused(make: Callable[[Any], object], weight: Any) -> None:
    """In one line that shows what was given."""
    with pytest.raises(InputError, match="^guidance: expected a finite number, got "):
        make(weight)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: interval_guidance(1.5, 2, 1), "expected scales in order, 0 <= first <= last, got 2 and 1"),
        (lambda: interval_guidance(1.5, -1, 1), "expected scales in order, 0 <= first <= last, got -1 and 1"),
        (lambda: weights_of(interval_guidance(1.5, 1, 4), 4), "expected an interval within scales 0 .. 3, got 1 .. 4"),
        (lambda: weights_of(listed_guidance([1.0, 2.0]), 4), "expected one weight a scale, 4, got 2"),
        (lambda: weights_of([1.0, 2.0], 4), "expected one weight a scale, 4, got 2"),
        (lambda: weights_of(guidance_until([1.0, 2.0], 1), 4), "expected one weight a scale, 4, got 2"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(call: Callable[[], object], complaint: str) -> None:
    """When they are made, or when they meet the pyramid."""
    with pytest.raises(InputError, match=f"^guidance: {complaint}$"):
        call()


def test_guidance_ends_before_a_scale_that_there_is() -> None:
    """Or after the last."""
    for end in (-1, 1.5, None):
        with pytest.raises(InputError, match=f"^guidance_until: expected a scale, 0 or more, got {end}$"):
            guidance_until(1.5, end)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^guidance_until: expected a scale, 0 \.\. 4, got 5$"):
        weights_of(guidance_until(1.5, 5), 4)


def test_pipeline_takes_a_number_or_a_schedule(pipe: Pipeline) -> None:
    """A number is the linear schedule; other schedules give other pictures; streams follow as well."""
    labels = [0, 1, 2, 3] * 4
    plain = pipe.generate(labels, guidance=3.0).tokens
    assert torch.equal(pipe.generate(labels, guidance=linear_guidance(3.0)).tokens, plain)
    assert torch.equal(pipe.generate(labels, guidance=listed_guidance([0.0, 1.0, 2.0, 3.0])).tokens, plain)
    constant = pipe.generate(labels, guidance=constant_guidance(3.0)).tokens
    assert not torch.equal(constant, plain)
    streamed = [step.tokens.flatten(1) for step in pipe.stream(labels, guidance=constant_guidance(3.0))]
    assert torch.equal(torch.cat(streamed, dim=1), constant)


def test_interval_decides_nothing_before_it_begins(pipe: Pipeline) -> None:
    """Scales before the interval are drawn as without guidance."""
    labels = [0, 1, 2, 3] * 4
    first, *_, last = zip(
        pipe.stream(labels, guidance=0.0), pipe.stream(labels, guidance=interval_guidance(3.0, 2, 3)), strict=True
    )
    assert torch.equal(first[0].tokens, first[1].tokens)
    assert not torch.equal(last[0].tokens, last[1].tokens)


def test_schedule_that_does_not_fit_raises_at_the_call(pipe: Pipeline) -> None:
    """Also of `stream`, before the first step is asked for."""
    for door in (pipe.generate, pipe.stream):
        with pytest.raises(InputError, match="^guidance: expected one weight a scale, 4, got 1$"):
            door([1], guidance=listed_guidance([1.0]))


def test_schedules_need_no_torch() -> None:
    """So that a command may name them in its help."""
    program = "import sys, nextscale.sampling.guidance; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
