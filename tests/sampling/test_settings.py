"""Laws of the settings: a value for all scales or one a scale, checked at the call, told by the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nextscale import InputError, Pipeline, images
from nextscale.pipeline import Request
from nextscale.sampling.guidance import guidance_until
from nextscale.sampling.loop import Choice
from nextscale.sampling.settings import Settings

LISTED: list[dict[str, Any]] = [
    {"guidance": [0.0, 1.0, 3.0, 0.5]},
    {"guidance": guidance_until(3.0, 3)},
    {"top_k": [0, 3, 2, 20]},
    {"top_p": np.array([0.0, 0.5, 1.0, 0.9])},
    {"temperature": (0.0, 0.5, 1.0, 2.0)},
]

OTHERS: list[dict[str, Any]] = [
    {"step_guidance": 0.6},
    {"step_guidance": [0.0, 0.0, 1.0, -0.5]},
    {"reach": 1},
    {"reach": 2, "step_guidance": 0.3},
]


def test_one_value_is_that_of_all_scales() -> None:
    """And of none does a picture tell more than it did."""
    dealt = Settings(guidance=1.5, top_k=9).dealt(4)
    assert (dealt.weights, dealt.choices) == ([0.0, 0.5, 1.0, 1.5], [Choice(9)] * 4)
    assert dealt.told == {"guidance": 1.5, "top_k": 9, "top_p": 0.96, "temperature": 1.0, "smooth": False}


def test_a_sequence_has_a_value_for_each_scale() -> None:
    """Beside values that all share; told as plain tuples."""
    dealt = Settings(guidance=[1, 0], top_k=torch.tensor([5, 0]), temperature=np.array([0.5, 2.0])).dealt(2)  # type: ignore[arg-type]
    assert dealt.choices == [Choice(5, 0.96, 0.5), Choice(0, 0.96, 2.0)]
    assert dealt.told["guidance"] == (1.0, 0.0)
    assert dealt.told["top_k"] == (5, 0)
    assert dealt.told["temperature"] == (0.5, 2.0)
    assert dealt.told["top_p"] == 0.96
    assert {type(value) for name in ("guidance", "temperature") for value in dealt.told[name]} == {float}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"top_k": [1, 2, 3]}, "top_k: expected one value, or one a scale, 4, got 3"),
        ({"top_p": []}, "top_p: expected one value, or one a scale, 4, got 0"),
        ({"temperature": [1.0, 1.0, -1.0, 1.0]}, "temperature: expected 0 or more, got -1.0"),
        ({"top_k": [1, 2, 3, 4.5]}, "top_k: expected an integer, got 4.5"),
        ({"top_p": "high"}, "top_p: expected a number, got 'high'"),
        ({"guidance": [0.0, 1.0]}, "guidance: expected one weight a scale, 4, got 2"),
        ({"step_guidance": [1.0]}, "step_guidance: expected one value, or one a scale, 4, got 1"),
        ({"step_guidance": float("nan")}, "step_guidance: expected a finite number, got nan"),
        ({"step_guidance": "much"}, "step_guidance: expected a finite number, got 'much'"),
        ({"reach": 0}, "reach: expected 1 scale or more, got 0"),
        ({"reach": 1.5}, "reach: expected an integer or None, got 1.5"),
        ({"guidance": guidance_until(1.0, 9)}, r"guidance_until: expected a scale, 0 \.\. 4, got 9"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_call(pipe: Pipeline, settings: dict[str, Any], told: str) -> None:
    """Of `stream` too, before the first step is asked for."""
    for door in (pipe.generate, pipe.stream):
        with pytest.raises(InputError, match=f"^{told}$"):
            door([1], **settings)


@pytest.mark.parametrize("settings", OTHERS, ids=str)
def test_what_is_unusual_is_told(pipe: Pipeline, tmp_path: Path, settings: dict[str, Any]) -> None:
    """What is as usual is not: such notes are what they were; either picture is painted again."""
    done, plain = pipe.generate("cat", [7, 11], **settings), pipe.generate("cat", [7, 11])
    assert not torch.equal(done.tokens, plain.tokens)
    assert not {"step_guidance", "reach"} & json.loads(plain.requests[0].notes["nextscale"]).keys()
    assert pipe.generate("cat", [7], step_guidance=[0.0] * 4).requests[0].notes == plain.requests[0].notes
    for made in (done, plain):
        request = Request.from_notes(images.notes(made.save(tmp_path)[1]))
        assert request == made.requests[1]
        assert torch.equal(pipe.repeat(request).tokens, made.tokens[1:])
    (name, value), *_ = settings.items()
    assert getattr(done.requests[0], name) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("settings", LISTED, ids=lambda settings: next(iter(settings)))
def test_a_picture_tells_the_values_of_each_scale(pipe: Pipeline, tmp_path: Path, settings: dict[str, Any]) -> None:
    """And is painted again from its file, through JSON."""
    done = pipe.generate("cat", [7, 11], **settings)
    file = done.save(tmp_path)[1]
    request = Request.from_notes(images.notes(file))
    assert request == done.requests[1]
    assert isinstance(getattr(request, next(iter(settings))), tuple)
    assert torch.equal(pipe.repeat(request).tokens, done.tokens[1:])


@pytest.mark.parametrize("settings", [*LISTED, *OTHERS], ids=lambda settings: next(iter(settings)))
def test_values_of_each_scale_do_not_mix_pictures(pipe: Pipeline, settings: dict[str, Any]) -> None:
    """Alone or among others, at once or a few at a time: the same tokens."""
    labels, seeds = [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]
    together = pipe.generate(labels, seeds, **settings).tokens
    assert torch.equal(pipe.generate(labels, seeds, memory=2e6, **settings).tokens, together)
    for label, seed, tokens in zip(labels, seeds, together, strict=True):
        assert torch.equal(pipe.generate([label], [seed], **settings).tokens[0], tokens)
