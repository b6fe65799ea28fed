"""Laws of prompts: seed and prompt alone decide a picture, no words are no text, and files know what was asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from nextscale import VAR, MultiScaleVQVAE, Pipeline, images
from nextscale.config import TransformerConfig
from nextscale.errors import InputError
from nextscale.pipeline import Request
from nextscale.sampling.guidance import constant_guidance, interval_guidance
from nextscale.text.vocabulary import Vocabulary

PROMPTS = ["a red heart", "a cat face, noto", "", "빨간 하트", "a red heart"]
SEEDS = [7, 7, 7, 3, -5]


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_a_prompt_s_picture_does_not_depend_on_its_neighbours(text_pipe: Pipeline, guidance: float) -> None:
    """Alone, in another order, beside other lengths: identical tokens, images equal up to rounding."""
    together = text_pipe.generate(prompts=PROMPTS, seeds=SEEDS, guidance=guidance)
    backwards = text_pipe.generate(prompts=PROMPTS[::-1], seeds=SEEDS[::-1], guidance=guidance)
    assert torch.equal(backwards.tokens.flip(0), together.tokens)
    for i, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone = text_pipe.generate(prompts=prompt, seeds=[seed], guidance=guidance)
        assert torch.equal(alone.tokens[0], together.tokens[i])
        torch.testing.assert_close(alone.images[0], together.images[i], atol=1e-5, rtol=0)
    assert len(together.tokens.unique(dim=0)) == 5


def test_no_words_are_no_text(text_pipe: Pipeline) -> None:
    """An empty prompt, one of spaces, and classes alone; and such a prompt has no guidance."""
    plain = text_pipe.generate(labels=[5, 2], guidance=2.0)
    for nothing in ("", "  \n"):
        assert torch.equal(text_pipe.generate(labels=[5, 2], prompts=nothing, guidance=2.0).tokens, plain.tokens)
    unguided = text_pipe.generate(prompts="", guidance=0.0)
    assert torch.equal(text_pipe.generate(prompts="", guidance=3.0).tokens, unguided.tokens)


def test_classes_and_prompts_go_together(text_pipe: Pipeline) -> None:
    """One of either is for all; both count; prompts alone are of no class."""
    asked = text_pipe.generate(["bee", "cat"], prompts="a red heart", seeds=[4, 4])
    assert [request.title for request in asked.requests] == ["bee: a red heart", "cat: a red heart"]
    alone = text_pipe.generate(prompts=["a red heart", "a cat face"], seeds=[4, 4])
    assert torch.equal(text_pipe.generate(5, [4, 4], prompts=["a red heart", "a cat face"]).tokens, alone.tokens)
    assert len(torch.cat([asked.tokens, alone.tokens]).unique(dim=0)) == 4
    assert len(text_pipe.generate(prompts="a red heart", seeds=[1, 2, 3])) == 3


def test_stream_ends_where_generate_does(text_pipe: Pipeline) -> None:
    """Scale by scale, also when painted in several batches."""
    settings: dict[str, Any] = {"prompts": PROMPTS, "seeds": SEEDS, "negative_prompt": "a cat", "guidance": 2.0}
    out = text_pipe.generate(**settings)
    steps = [step.tokens.flatten(1) for step in text_pipe.stream(**settings)]
    assert torch.equal(torch.cat(steps, dim=1), out.tokens)
    assert torch.equal(text_pipe.generate(**settings, memory=1_000_000).tokens, out.tokens)


def test_prompts_are_guided_at_every_scale_by_default(text_pipe: Pipeline) -> None:
    """By 6, since the coarse scales decide what is seen; classes alone by the release's 1.5, which begins at 0."""
    (prompted,) = text_pipe.generate(prompts="a red heart", seeds=[0]).requests
    assert prompted.guidance == (6.0,) * len(text_pipe.transformer.config.scales)
    (classed,) = text_pipe.generate(labels=0, seeds=[0]).requests
    assert classed.guidance == 1.5
    (asked,) = text_pipe.generate(prompts="a red heart", seeds=[0], guidance=2.0).requests
    assert asked.guidance == 2.0


def test_every_schedule_of_guidance_takes_prompts(text_pipe: Pipeline) -> None:
    """A schedule that is 0 at first leaves the first scales as they are."""
    plain = text_pipe.generate(prompts=PROMPTS[:2], guidance=0.0).tokens
    late = text_pipe.generate(prompts=PROMPTS[:2], guidance=interval_guidance(4.0, 2, 3)).tokens
    assert torch.equal(late[:, :5], plain[:, :5])
    assert not torch.equal(late, plain)
    assert not torch.equal(text_pipe.generate(prompts=PROMPTS[:2], guidance=constant_guidance(4.0)).tokens, late)


def test_guidance_leads_away_from_the_negative_prompt(text_pipe: Pipeline) -> None:
    """Of no words it is the usual one; of the prompt itself, without a class, nothing is left to lead to."""
    usual = text_pipe.generate(prompts=PROMPTS, guidance=3.0)
    assert torch.equal(text_pipe.generate(prompts=PROMPTS, negative_prompt=" ", guidance=3.0).tokens, usual.tokens)
    other = text_pipe.generate(prompts=PROMPTS, negative_prompt="a blue heart", guidance=3.0)
    assert (other.tokens != usual.tokens).any(dim=1).all()
    itself = text_pipe.generate(prompts="a red heart", negative_prompt="a red heart", guidance=3.0)
    assert torch.equal(itself.tokens, text_pipe.generate(prompts="a red heart", guidance=0.0).tokens)
    assert not torch.equal(text_pipe.generate(2, negative_prompt="a cat").tokens, text_pipe.generate(2).tokens)


def test_a_picture_is_painted_again_from_its_file(text_pipe: Pipeline, tmp_path: Path) -> None:
    """Its name and its notes tell the prompt; a model that reads otherwise is another."""
    done = text_pipe.generate("bee", [7], prompts="A red heart!", negative_prompt="cats")
    (file,) = done.save(tmp_path)
    assert file.name == "1-bee-a-red-heart-seed7.png"
    request = Request.from_notes(images.notes(file))
    assert (request.prompt, request.negative_prompt) == ("A red heart!", "cats")
    assert torch.equal(text_pipe.repeat(request).tokens, done.tokens)
    with Image.open(file) as picture:
        assert json.loads(picture.text["nextscale"])["prompt"] == "A red heart!"  # type: ignore[attr-defined]
    other = Pipeline(text_pipe.tokenizer, text_pipe.transformer, precision="fp32", reader=Vocabulary((), 8))
    assert other.fingerprint != text_pipe.fingerprint
    assert text_pipe.generate(prompts="빨간 하트").requests[0].stem == "빨간-하트-seed0"


def test_a_saved_model_reads_as_before(text_pipe: Pipeline, tmp_path: Path) -> None:
    """Bit for bit; `repr` tells that it reads."""
    text_pipe.save(tmp_path)
    loaded = Pipeline.load(tmp_path, precision="fp32")
    assert loaded.reader == text_pipe.reader
    assert loaded.transformer.config == text_pipe.transformer.config
    assert loaded.fingerprint == text_pipe.fingerprint
    assert torch.equal(loaded.generate(prompts=PROMPTS).images, text_pipe.generate(prompts=PROMPTS).images)
    assert "5 classes: ant, bee, cat, ..., prompts of 8 pieces" in repr(loaded)
    assert torch.equal(VAR.load(tmp_path).text.no_words, text_pipe.transformer.text.no_words)


def test_a_model_without_its_vocabulary_is_refused(text_pipe: Pipeline, pipe: Pipeline, tmp_path: Path) -> None:
    """And one whose vocabulary was tampered with."""
    text_pipe.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocabulary": {"merges": ["ab x"], "tokens": 8}}))
    with pytest.raises(InputError, match="expected merges of two known pieces"):
        Pipeline.load(tmp_path)
    del config["vocabulary"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="reader: expected one, as the transformer takes text, got none"):
        Pipeline.load(tmp_path)
    with pytest.raises(InputError, match="reader: expected none"):
        Pipeline(pipe.tokenizer, pipe.transformer, reader=text_pipe.reader)


def test_a_class_model_s_file_says_nothing_of_text(pipe: Pipeline, tmp_path: Path) -> None:
    """Its config.json is what it always was."""
    pipe.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert [*config] == ["tokenizer", "transformer", "classes", "weights"]
    assert "text" not in config["transformer"]
    assert "text" not in repr(pipe.transformer.config)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"prompts": ["a", "b"], "labels": [1, 2, 3]}, "prompts: expected one a label, 3, got 2"),
        ({"prompts": ["a", "b"], "seeds": [1]}, "seeds: expected one a prompt, 2, got 1"),
        ({"prompts": []}, "prompts: expected at least one, got none"),
        ({"prompts": [1]}, "prompts: expected text, got 1"),
        ({"prompts": 3}, "prompts: expected text, got 3"),
        ({"prompts": "\ud800"}, r"prompts: expected text, got '\ud800'"),
        ({"prompts": ["a", None]}, "prompts: expected text, got None"),
        ({"labels": 1, "negative_prompt": 7}, "negative_prompt: expected text or None, got 7"),
        ({}, "labels: expected at least one, or a prompt, got none"),
    ],
)
def test_what_cannot_be_read_is_refused(text_pipe: Pipeline, asked: dict[str, Any], told: str) -> None:
    """At the call, in one line."""
    for door in (text_pipe.generate, text_pipe.stream):
        with pytest.raises(InputError) as refused:
            door(**asked)
        assert str(refused.value) == told


def test_a_model_of_classes_takes_no_prompts(pipe: Pipeline) -> None:
    """It says what it takes."""
    for asked in ({"prompts": "a heart"}, {"labels": 1, "negative_prompt": "a heart"}):
        with pytest.raises(InputError, match="expected labels, since this model reads no text, got 'a heart'"):
            pipe.generate(**asked)


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(text_pipe: Pipeline) -> None:
    """Once a call; what is behind the end does not count."""
    long = "a red heart " * 4
    with pytest.warns(UserWarning, match=r"prompt of 12 pieces, of which the first 8 are read: 'a red") as told:
        first = text_pipe.generate(prompts=[long, long], seeds=[0, 0])
    assert len(told) == 1
    with pytest.warns(UserWarning, match="of which the first 8"):
        second = text_pipe.generate(prompts=f"{long} and a cat", seeds=[0])
    assert torch.equal(second.tokens[0], first.tokens[1])


def test_edits_take_prompts(text_pipe: Pipeline, images: torch.Tensor) -> None:
    """One for all results or one each; a mask that repaints everything is a picture painted from nothing."""
    pictures, hole = (images[:2] + 1) / 2, torch.zeros(8, 8, dtype=torch.bool)
    whole = text_pipe.edit(pictures, ~hole, prompts=["a red heart", "a cat face"], seeds=[4, 5])
    assert torch.equal(whole.tokens, text_pipe.generate(prompts=["a red heart", "a cat face"], seeds=[4, 5]).tokens)
    assert [request.prompt for request in whole.requests] == ["a red heart", "a cat face"]
    hole[2:6, 2:6] = True
    one, other = (text_pipe.edit(pictures, hole, prompts=words).images for words in ("a red heart", "a cat face"))
    assert torch.equal(one[..., 0, :], other[..., 0, :])
    assert not torch.equal(one, other)
    with pytest.raises(InputError, match="prompts: expected one for all results or one each, 2, got 3"):
        text_pipe.edit(pictures, hole, prompts=["a", "b", "c"])


def test_lower_precision_reads_too(text_pipe: Pipeline) -> None:
    """Its first scale, which no near tie has led astray yet, is mostly the same."""
    low = Pipeline(text_pipe.tokenizer, text_pipe.transformer, precision="bf16", reader=text_pipe.reader)
    prompts = PROMPTS * 3
    ours, theirs = (each.generate(prompts=prompts).tokens[:, :5] for each in (low, text_pipe))
    assert (ours == theirs).float().mean() > 0.8
    assert low.fingerprint == text_pipe.fingerprint


def test_random_weights_read_byte_by_byte(tokenizer: MultiScaleVQVAE, text_config: TransformerConfig) -> None:
    """A preset that reads has no captions to learn a vocabulary from."""
    pipe = Pipeline.from_preset("icons-64", precision="fp32")
    assert pipe.reader == Vocabulary((), 32)
    assert pipe.generate(prompts="빨간 하트").images.shape == (1, 3, 64, 64)
