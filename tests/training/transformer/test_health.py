"""Laws of the transformer's health: the table, what the scaling laws let one expect, and when words are said."""

from __future__ import annotations

import math

import pytest
import torch

from nextscale import Scales, presets
from nextscale.training.transformer import health
from nextscale.training.transformer.health import Frequencies

SCALES, CPU = Scales([1, 2, 3]), torch.device("cpu")


def figures(nats: float, *, unigram: float = 6.0, right: float = 0.05) -> dict[str, float]:
    """Of a validation that is the same at all scales."""
    names = ("", "_scale_1", "_scale_2", "_scale_3")
    values = {"cross_entropy": nats, "unigram": unigram, "accuracy": right}
    return {f"{name}{suffix}": value for name, value in values.items() for suffix in names}


def test_frequencies_are_counted_scale_by_scale() -> None:
    """Codes of one scale are not those of another; one more of each is counted, so that none is impossible."""
    frequencies = Frequencies(SCALES, 4, CPU)
    frequencies.add(torch.tensor([[0, *[1] * 4, *[2] * 9], [3, *[1] * 4, *[3] * 9]]))
    frequencies.gather()
    assert frequencies.counts_KV.tolist() == [[1, 0, 0, 1], [0, 8, 0, 0], [0, 0, 9, 9]]
    assert frequencies.surprise()[1].tolist() == pytest.approx([math.log(12), math.log(12 / 9)] + [math.log(12)] * 2)
    assert frequencies.images == 2


def test_frequencies_go_on_from_a_checkpoint() -> None:
    """As if they had never been away."""
    frequencies, again = Frequencies(SCALES, 4, CPU), Frequencies(SCALES, 4, CPU)
    frequencies.add(torch.zeros(3, 14, dtype=torch.int64))
    again.load_state_dict(frequencies.state_dict())
    assert torch.equal(again.surprise(), frequencies.surprise())


def test_ten_scales_fit_eighty_columns() -> None:
    """With a column for all tokens."""
    scales = presets.get("var-d16").transformer.scales
    names = ["", *(f"_scale_{k}" for k in range(1, 11))]
    values = {f"{name}{suffix}": 8.31 for name in ("cross_entropy", "unigram") for suffix in names}
    lines = health.table(scales, values | {f"accuracy{suffix}": 0.999 for suffix in names})
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["scale", *(f"{n}x{n}" for n in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)), "all"]
    assert lines[1].split() == ["nats", *["8.31"] * 11]


@pytest.mark.parametrize(("name", "nats", "right"), [("var-d16", 6.05, 0.05), ("var-d30", 5.72, 0.07)])
def test_scaling_laws_are_the_published_ones(name: str, nats: float, right: float) -> None:
    """What the release's models end near."""
    size = presets.get(name).transformer.parameters
    assert health.loss_of_size(size) == pytest.approx(nats, abs=0.01)
    assert health.accuracy_of_size(size) == pytest.approx(right, abs=0.003)


def test_an_expectation_falls_to_the_size_s_own_and_no_lower() -> None:
    """While little has been computed it is what compute allows."""
    config = presets.get("var-d16").transformer
    first, early, late, longer = (
        health.expectation(config, config.parameters, images) for images in (0, 10**6, 256 * 10**6, 10**12)
    )
    assert "d16 (310 M) should reach about 8.32 nats" in first
    assert "d16 (310 M) should reach about 6.89 nats" in early
    assert "about 6.05 nats" in late
    assert late == longer


def test_only_models_like_the_release_s_are_expected_anything() -> None:
    """The laws are about its codes, scales and classes."""
    assert health.is_release_like(presets.get("var-d20").transformer)
    assert not health.is_release_like(presets.get("base-256").transformer)
    assert not health.is_release_like(presets.get("var-d36-512").transformer)


def warned(now: float, before: list[float], **changes: float) -> list[str]:
    """Warnings at a check after others."""
    history = [{"step": 10.0 * (i + 1), "cross_entropy": nats} for i, nats in enumerate(before)]
    return health.warnings(SCALES, figures(now, **changes), [], history, clip=2.0)


def test_learning_by_heart_is_told_with_the_step_to_go_back_to() -> None:
    """From one per cent above the lowest on."""
    assert not warned(5.049, [5.5, 5.0, 5.01])
    (told,) = warned(5.06, [5.5, 5.0, 5.01])
    assert "held-out cross-entropy is 5.060, and was 5.000 at step 20" in told


def test_guessing_is_told_once_there_was_time_to_learn() -> None:
    """A word a scale."""
    assert not warned(6.1, [6.2, 6.2, 6.2])
    assert len(warned(6.1, [6.2, 6.2, 6.2, 6.2])) == 3
    assert (
        "scale 2x2 is predicted no better than by the frequency of its codes: 6.10 nats against 6.00"
        in (warned(6.1, [6.2, 6.2, 6.2, 6.2])[1])
    )
    assert not warned(5.9, [6.2, 6.2, 6.2, 6.2])


def test_a_scale_is_expected_nothing_of_before_it_is_learned() -> None:
    """Progressive training has learned one of three, and half of the second."""
    history = [{"step": step, "cross_entropy": 6.2} for step in (10.0, 20.0, 30.0, 40.0)]
    (told,) = health.warnings(SCALES, figures(6.1), [{"scales_learned": 1.5}], history, clip=2.0)
    assert "scale 1x1 is predicted no better" in told
