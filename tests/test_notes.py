"""Laws of what a picture tells of itself: enough to paint it again, with the model that painted it and no other."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from nextscale import VAR, MultiScaleVQVAE, Pipeline, images
from nextscale.errors import InputError
from nextscale.pipeline import Request
from nextscale.sampling.guidance import linear_guidance


@pytest.mark.parametrize("guidance", [0.0, 2.5, linear_guidance(3.0)])
def test_a_picture_is_painted_again_from_its_file(pipe: Pipeline, tmp_path: Path, guidance: object) -> None:
    """Whatever its settings were, a schedule of guidance included."""
    done = pipe.generate("cat", [7, 11], guidance=guidance, top_k=20, top_p=0.7, temperature=1.3, smooth=True)
    file = done.save(tmp_path)[1]
    again = pipe.repeat(Request.from_notes(images.notes(file)))
    assert torch.equal(again.tokens, done.tokens[1:])
    assert again.requests == done.requests[1:]
    assert again.pil()[0].tobytes() == images.open_rgb(file).tobytes()


def test_a_fingerprint_is_that_of_the_model(tokenizer: MultiScaleVQVAE, transformer: VAR, tmp_path: Path) -> None:
    """The same in each precision, saved and loaded; another once a weight of either model has changed by 1 %."""
    pipe = Pipeline(copy.deepcopy(tokenizer), copy.deepcopy(transformer), precision="fp32")
    known = pipe.fingerprint
    assert Pipeline(tokenizer, transformer, precision="bf16").fingerprint == known
    pipe.save(tmp_path)
    for precision in ("fp32", "bf16"):
        assert Pipeline.load(tmp_path, precision=precision).fingerprint == known
    seen = {known}
    for weight in (pipe.tokenizer.quantizer.codebook.weight, pipe.transformer.head.weight):
        with torch.no_grad():
            weight[3, 2] *= 1.01
        seen.add(pipe.fingerprint)
    assert len(seen) == 3


def test_another_model_s_picture_is_refused(
    pipe: Pipeline, tokenizer: MultiScaleVQVAE, make_transformer: Callable[..., VAR]
) -> None:
    """With both fingerprints."""
    (request,) = pipe.generate(0, [0]).requests
    other = Pipeline(tokenizer, make_transformer(depth=2), precision="fp32")
    with pytest.raises(InputError, match=f"the model that painted it, {pipe.fingerprint}, got another, [0-9a-f]{{16}}"):
        other.repeat(request)


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        ({}, "got one without such a note"),
        ({"nextscale": "{}"}, "got one without such a note"),
        ({"nextscale": "{", "nextscale-model": "{}"}, "note as nextscale writes it, got another"),
        ({"nextscale": "[]", "nextscale-model": "[]"}, "got another"),
        ({"nextscale": '{"guidance": 1}', "nextscale-model": "{}"}, "got another"),
        ({"nextscale": json.dumps({"guidance": 1, "colour": 2}), "nextscale-model": "{}"}, "got another"),
    ],
)
def test_notes_of_others_are_refused(notes: dict[str, str], told: str) -> None:
    """In one line."""
    with pytest.raises(InputError, match=told):
        Request.from_notes(notes)


def test_other_formats_carry_no_notes(tmp_path: Path) -> None:
    """And a PNG's are text."""
    picture = Image.new("RGB", (4, 4))
    images.save(tmp_path / "a.png", picture, notes={"nextscale": "é"})
    picture.save(tmp_path / "b.jpg")
    assert images.notes(tmp_path / "a.png") == {"nextscale": "é"}
    assert images.notes(tmp_path / "b.jpg") == {}
