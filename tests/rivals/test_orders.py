"""What all rivals must keep to: the laws of VAR's pipeline, and plain words where something is VAR's alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import awaken

from nextscale import VAR, InputError, MultiScaleVQVAE, Pipeline, Scales, modelcard, official
from nextscale.bench.sampling import measure_sampling
from nextscale.config import TransformerConfig, from_json, to_json
from nextscale.modelcard import Facts, Told, page
from nextscale.pipeline import Request
from nextscale.rivals.orders import kind_of
from nextscale.sampling.memory import image_bytes


def test_a_seed_alone_decides_a_picture(rival: Pipeline) -> None:
    """Not its batch, its neighbours or its place among them; and it does decide."""
    whole = rival.generate(labels=[0, 4, 2, 5], seeds=[7, 8, 9, 7])
    for i, (label, seed) in enumerate([(0, 7), (4, 8), (2, 9), (5, 7)]):
        alone = rival.generate(labels=label, seeds=[seed])
        assert torch.equal(alone.tokens[0], whole.tokens[i])
        torch.testing.assert_close(alone.images[0], whole.images[i], atol=1e-5, rtol=0)
    turned = rival.generate(labels=[5, 2, 4, 0], seeds=[7, 9, 8, 7])
    assert torch.equal(turned.tokens.flip(0), whole.tokens)
    other = rival.generate(labels=0, seeds=[6])
    assert not torch.equal(other.images[0], whole.images[0])


def test_label_and_guidance_move_the_picture(rival: Pipeline) -> None:
    """At one seed."""
    pictures = [
        rival.generate(labels=label, seeds=[1], guidance=guidance, top_k=0, top_p=0.0).images
        for label, guidance in ((0, 1.5), (1, 1.5), (0, 0.0))
    ]
    assert not torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


def test_the_picture_is_the_decoded_tokens(rival: Pipeline) -> None:
    """Bit for bit what the tokenizer makes of them; every token is one of the codebook's."""
    out = rival.generate(labels=[0, 1], seeds=[0, 1])
    assert out.tokens.shape == (2, 16)
    assert torch.equal(out.images, (rival.tokenizer.decode(out.tokens) + 1) / 2)


def test_a_saved_rival_is_loaded_bit_for_bit(rival: Pipeline, tmp_path: Path) -> None:
    """The kind of model, its weights, its pictures, and its fingerprint."""
    rival.save(tmp_path)
    loaded = Pipeline.load(tmp_path, precision="fp32")
    assert type(loaded.transformer) is type(rival.transformer)
    assert loaded.fingerprint == rival.fingerprint
    for name, weight in rival.transformer.state_dict().items():
        assert torch.equal(loaded.transformer.state_dict()[name], weight)
    ours, theirs = (pipe.generate(labels=[3], seeds=[5]) for pipe in (rival, loaded))
    assert torch.equal(ours.images, theirs.images)


def test_a_picture_is_repeated_from_its_note(rival: Pipeline) -> None:
    """To the bit."""
    out = rival.generate(labels=[3], seeds=[5], guidance=2.0, temperature=0.9)
    request = Request.from_notes(out.requests[0].notes)
    assert request == out.requests[0]
    assert torch.equal(rival.repeat(request).images, out.images)


def test_every_step_can_be_seen(rival: Pipeline) -> None:
    """As many as `steps` says, each with a preview, the last of which is the picture."""
    steps = list(rival.stream(labels=[0, 1], seeds=[0, 1]))
    assert [step.scale for step in steps] == list(range(rival.steps))
    assert torch.equal(steps[-1].preview(), rival.generate(labels=[0, 1], seeds=[0, 1]).images)
    assert all(step.preview().shape == (2, 3, 8, 8) for step in steps)


def test_generating_changes_nothing_of_the_callers(rival: Pipeline, untouched) -> None:
    """Torch's random numbers, and the weights."""
    before = {name: weight.clone() for name, weight in rival.transformer.state_dict().items()}
    with untouched():
        rival.generate(labels=[0])
    assert all(torch.equal(weight, before[name]) for name, weight in rival.transformer.state_dict().items())


def test_a_rival_paints_in_lower_precision(rival: Pipeline) -> None:
    """In bfloat16, of weights held in float32, which stay as they are; a seed alone decides there too."""
    low = Pipeline(rival.tokenizer, rival.transformer, classes=rival.classes, precision="bf16")
    out = low.generate(labels=[0, 1], seeds=[0, 1])
    assert out.images.isfinite().all()
    assert (out.images - low.generate(labels=[0, 1], seeds=[0, 1]).images).abs().max() == 0
    assert rival.transformer.compute_dtype == torch.float32


def test_a_rival_reads_prompts(single: MultiScaleVQVAE, text_config, vocabulary, rival: Pipeline) -> None:
    """As VAR does: words move the picture, no words are no text, and a neighbour's words do not matter."""
    config = dataclasses.replace(text_config, scales=rival.transformer.config.scales, order=rival.transformer.order)
    pipe = Pipeline(single, awaken(kind_of(config).model(config)), reader=vocabulary, precision="fp32")
    both = pipe.generate(prompts=["a red heart", "a cat face"], seeds=[1, 1])
    alone = pipe.generate(prompts="a cat face", seeds=[1])
    assert torch.equal(both.tokens[1], alone.tokens[0])
    assert not torch.equal(both.images[0], both.images[1])
    assert torch.equal(pipe.generate(prompts="", seeds=[1]).tokens, pipe.generate(labels=5, seeds=[1]).tokens)


def test_memory_cuts_a_request_into_batches(rival: Pipeline) -> None:
    """Of the same pictures."""
    calls, models = list[int](), (rival.tokenizer.config, rival.transformer.config)
    two = 2 * image_bytes(*models, guided=True, dtype=rival.dtype)
    cut = rival.generate(labels=[0, 1, 2], memory=two, callback=lambda step: calls.append(len(step.requests)))
    assert calls == [2] * rival.steps + [1] * rival.steps
    assert torch.equal(rival.generate(labels=[0, 1, 2]).tokens, cut.tokens)


def test_what_is_vars_alone_is_refused_in_a_line(rival: Pipeline, tmp_path: Path) -> None:
    """Editing, the release's format, timing by scale, prompts without a reader, another class of model."""
    order = rival.transformer.order
    with pytest.raises(InputError, match=f"^edit: expected a model of order scale, got one of order {order}$"):
        rival.edit(torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match=f"expected a next-scale transformer, .* got one of order {order}$"):
        official.export(rival)
    with pytest.raises(InputError, match=f"whose scales are timed, got one of order {order}$"):
        measure_sampling(rival, 1)
    with pytest.raises(InputError, match="prompts: expected labels, since this model reads no text"):
        rival.generate(prompts="a cat")
    for name, value in (("reach", 1), ("step_guidance", 0.5)):
        with pytest.raises(
            InputError, match=f"^{name}: expected with a model of order scale, got one of order {order}"
        ):
            rival.generate(labels=0, **{name: value})
    rival.save(tmp_path)
    with pytest.raises(InputError, match=f"^VAR: expected a transformer of order scale, got one of order {order}$"):
        VAR.load(tmp_path)


def test_a_config_tells_its_order_and_that_of_var_says_nothing(rival: Pipeline) -> None:
    """So that older files and fingerprints stay what they are."""
    config = rival.transformer.config
    assert from_json(TransformerConfig, to_json(config)) == config
    assert to_json(config)["order"] == config.order
    scale = dataclasses.replace(config, order="scale")
    assert "order" not in to_json(scale)
    assert kind_of(scale).model is VAR


def test_the_page_of_a_model_tells_its_kind(rival: Pipeline) -> None:
    """And does not call it a next-scale model."""
    transformer = rival.transformer.config
    facts = Facts(
        name="owner/name",
        tokenizer=rival.tokenizer.config,
        transformer=transformer,
        classes=rival.classes,
        fingerprint=rival.fingerprint,
        dtype="float32",
    )
    text = page(facts, Told(), samples=None)
    assert "next-scale" not in text
    assert modelcard.KINDS[transformer.order] in text


def test_parameters_are_counted_from_the_config(rival: Pipeline) -> None:
    """All that there are."""
    held = sum(parameter.numel() for parameter in rival.transformer.parameters())
    assert rival.transformer.config.parameters == held


def test_rivals_take_one_map(transformer_config: TransformerConfig, rival: Pipeline) -> None:
    """The line says how to make one; orders that there are not are refused with those that there are."""
    order = rival.transformer.order
    with pytest.raises(InputError, match=rf"^order {order}: expected a tokenizer of one scale .*, got 4$"):
        dataclasses.replace(transformer_config, scales=Scales([1, 2, 3, 4]), order=order)
    with pytest.raises(InputError, match="transformer order: expected one of scale, raster.*, got 'spiral'"):
        dataclasses.replace(transformer_config, order="spiral")
