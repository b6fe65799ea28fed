"""Laws of a transformer that reads text: what the text decides, what it leaves alone, and how it begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nextscale import VAR, Pipeline
from nextscale.config import TransformerConfig
from nextscale.errors import InputError
from nextscale.text.prompts import Prompts
from nextscale.text.vocabulary import Vocabulary
from nextscale.transformer import KeyValueCache
from nextscale.transformer.adapted import adapted

LABELS = torch.tensor([1, 5, 5])
WORDS = ["a red heart", "a cat face, noto", ""]


@pytest.fixture(scope="module")
def model(text_pipe: Pipeline) -> VAR:
    return text_pipe.transformer


@pytest.fixture(scope="module")
def prompts(vocabulary: Vocabulary) -> Prompts:
    return vocabulary.read(WORDS)


@pytest.fixture(scope="module")
def inputs(random_inputs: Callable[..., Tensor]) -> Tensor:
    return random_inputs(batch=3)


@torch.no_grad()
def test_text_moves_every_token(model: VAR, inputs: Tensor, prompts: Prompts) -> None:
    """Each picture by its own words; where there are none, it is the same as with no prompts at all."""
    with_text, without = model(LABELS, inputs, prompts=prompts), model(LABELS, inputs)
    assert ((with_text[:2] - without[:2]).abs().amax(dim=2) > 0.01).all()
    torch.testing.assert_close(with_text[2], without[2], atol=1e-5, rtol=0)
    swapped = Prompts(prompts.values[[1, 0, 2]], prompts.mask[[1, 0, 2]])
    assert not torch.allclose(model(LABELS, inputs, prompts=swapped)[0], with_text[0], atol=0.01)


@torch.no_grad()
def test_steps_give_what_forward_gives(model: VAR, inputs: Tensor, prompts: Prompts) -> None:
    """Cache equals no cache, with text too."""
    scales = model.config.scales
    condition = model.condition(LABELS, prompts)
    cache = KeyValueCache(model.config, 3, dtype=torch.float32, device=torch.device("cpu"))
    steps, start = [], 0
    for k, length in enumerate(scales.lengths):
        codes = inputs[:, start : start + length] if k else None
        start += length if k else 0
        steps.append(model.step(k, codes, condition, cache))
    torch.testing.assert_close(torch.cat(steps, 1), model(LABELS, inputs, prompts=prompts), atol=2e-5, rtol=0)


@torch.no_grad()
def test_text_and_class_both_count(model: VAR, inputs: Tensor, prompts: Prompts) -> None:
    """Another class with the same words is another picture, and the other way round."""
    together = model(LABELS, inputs, prompts=prompts)
    assert not torch.allclose(model(torch.tensor([2, 5, 5]), inputs, prompts=prompts)[0], together[0], atol=0.01)
    assert not torch.allclose(model(LABELS, inputs)[0], together[0], atol=0.01)


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_a_class_model_that_is_given_text_begins_as_it_was(
    make_transformer: Callable[..., VAR],
    text_config: TransformerConfig,
    inputs: Tensor,
    prompts: Prompts,
    shared: bool,
    normalized: bool,
) -> None:
    """Bit for bit, whatever the prompt."""
    changes = {"shared_modulation": shared, "normalized_attention": normalized}
    before = make_transformer(**changes)
    config = dataclasses.replace(text_config, **changes)
    names = list("abcde")
    after = adapted(before, config, known=names, classes=names, seed=7)
    expected = before(LABELS, inputs)
    assert torch.equal(after(LABELS, inputs, prompts=prompts), expected)
    assert torch.equal(after(LABELS, inputs), expected)
    assert not torch.equal(after.text.no_words, adapted(before, config, known=names, classes=names).text.no_words)


def test_what_begins_at_nothing_learns(text_config: TransformerConfig, inputs: Tensor, prompts: Prompts) -> None:
    """Both projections that carry text have gradients from the first step on, the rest from the second."""
    model = VAR(text_config)
    with torch.no_grad():
        model.head.weight.mul_(50)
        for block in model.blocks:
            block.modulation.bias[: 2 * text_config.width].fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for first in (True, False):
        optimizer.zero_grad()
        model(LABELS, inputs, prompts=prompts).square().mean().backward()
        assert all(block.cross_attention.out.weight.grad.abs().min() > 0 for block in model.blocks)
        assert model.pooled_text.weight.grad.any()
        assert bool(model.text.pieces.weight.grad.any()) == (not first)
        optimizer.step()


@torch.no_grad()
def test_keys_and_values_of_the_text_are_made_once_a_picture(
    text_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once a scale."""
    calls: list[int] = []
    for block in text_pipe.transformer.blocks:
        made = block.text_keys.forward
        monkeypatch.setattr(block.text_keys, "forward", lambda *given, made=made: calls.append(1) or made(*given))
    text_pipe.generate(prompts=WORDS)
    assert len(calls) == len(text_pipe.transformer.blocks)


def test_prompts_that_cannot_be_read_are_refused(
    model: VAR, transformer: VAR, inputs: Tensor, prompts: Prompts
) -> None:
    """In one line, as everything at the door."""
    with pytest.raises(InputError, match="expected none, since this model reads no text, got some"):
        transformer(LABELS, inputs, prompts=prompts)
    for wrong, told in (
        (["a red heart"] * 3, "expected Prompts, as a reader gives them, got"),
        (Prompts(prompts.values[:2], prompts.mask[:2]), r"expected \(3, T\) and a mask"),
        (Prompts(prompts.values.float(), prompts.mask), "torch.float32"),
        (Prompts(prompts.values, prompts.mask.int()), "torch.int32"),
        (Prompts(prompts.values - 1000, prompts.mask), "expected pieces 0 .. "),
        (
            Prompts(prompts.values.repeat(1, 2), torch.ones(3, 16, dtype=torch.bool)),
            "expected at most 8 pieces, got 16",
        ),
    ):
        with pytest.raises(InputError, match=told):
            model(LABELS, inputs, prompts=wrong)


def test_text_takes_no_part_in_the_release(text_pipe: Pipeline) -> None:
    """Whose format has no place for it."""
    from nextscale import official

    with pytest.raises(InputError, match="expected a transformer of classes alone, as the release's are"):
        official.export(text_pipe)
