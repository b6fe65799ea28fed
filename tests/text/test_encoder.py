"""Laws of the encoder: padding is nothing, wherever it stands, and a prompt without words is one learned state."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import awaken
from torch import Tensor

from nextscale import VAR
from nextscale.config import TransformerConfig
from nextscale.text.encoder import TextEncoder
from nextscale.text.prompts import Prompts, States, no_text
from nextscale.text.vocabulary import Vocabulary

PROMPTS = ["a red heart", "", "a cat face, noto"]


@pytest.fixture(scope="module", params=["pieces", "frozen states"])
def case(request: pytest.FixtureRequest, text_config: TransformerConfig, vocabulary: Vocabulary):
    """An encoder and prompts for it, as pieces or as the states of another encoder."""
    prompts = vocabulary.read(PROMPTS)
    if request.param == "frozen states":
        config = text_config.reading(frozen=12, tokens=8)
        values = torch.randn(*prompts.mask.shape, 12, generator=torch.Generator().manual_seed(0))
        return awaken(VAR(config)).text, Prompts(values, prompts.mask)
    return awaken(VAR(text_config)).text, prompts


def seen(states: States) -> list[Tensor]:
    """What of each row may be looked at, and its mean."""
    return [*(row[mask] for row, mask in zip(states.states, states.mask, strict=True)), states.pooled]


def assert_same(states: States, others: States) -> None:
    for one, other in zip(seen(states), seen(others), strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=0)


@torch.no_grad()
def test_what_stands_in_padding_changes_nothing(case: tuple[TextEncoder, Prompts]) -> None:
    """To the bit: not even NaN."""
    encoder, (values, mask) = case
    junk = torch.full_like(values, float("nan") if values.is_floating_point() else -1)
    inner = mask.view(*mask.shape, *[1] * (values.ndim - 2))
    for one, other in zip(
        encoder(Prompts(values, mask)), encoder(Prompts(torch.where(inner, values, junk), mask)), strict=True
    ):
        assert torch.equal(one, other)


@torch.no_grad()
def test_how_much_padding_there_is_and_where_changes_no_number(case: tuple[TextEncoder, Prompts]) -> None:
    """To rounding: 5 places more behind, in front, or none between."""
    encoder, (values, mask) = case
    expected = encoder(Prompts(values, mask))
    more, none = torch.zeros_like(values[:, :5]), torch.zeros_like(mask[:, :5])
    assert_same(encoder(Prompts(torch.cat([values, more], 1), torch.cat([mask, none], 1))), expected)
    assert_same(encoder(Prompts(torch.cat([more, values], 1), torch.cat([none, mask], 1))), expected)


@torch.no_grad()
def test_a_prompt_does_not_depend_on_its_neighbours(case: tuple[TextEncoder, Prompts]) -> None:
    """Nor on their order."""
    encoder, (values, mask) = case
    together, backwards = encoder(Prompts(values, mask)), encoder(Prompts(values.flip(0), mask.flip(0)))
    assert_same(together, States(*(part.flip(0) for part in backwards)))
    for row in range(3):
        alone = encoder(Prompts(values[[row]], mask[[row]]))
        assert_same(alone, States(*(part[[row]] for part in together)))


@torch.no_grad()
def test_no_words_are_the_learned_state(case: tuple[TextEncoder, Prompts]) -> None:
    """Alone to look at, and its own mean; in whatever shape no text comes."""
    encoder, prompts = case
    states = encoder(prompts)
    assert states.mask.sum(dim=1).tolist()[1] == 1
    assert torch.equal(states.states[1, 0], encoder.no_words)
    assert torch.equal(states.pooled[1], encoder.no_words)
    for none in (
        prompts.none(),
        prompts.dropped(torch.tensor([True] * 3)),
        no_text(encoder.config, 3, torch.device("cpu")),
    ):
        assert torch.equal(encoder(none).pooled, encoder.no_words.expand(3, -1))


@torch.no_grad()
def test_order_of_words_matters(case: tuple[TextEncoder, Prompts]) -> None:
    """Positions are told."""
    encoder, (values, mask) = case
    row, count = 0, int(mask[0].sum())
    turned = values.clone()
    turned[row, :count] = values[row, :count].flip(0)
    assert not torch.allclose(encoder(Prompts(turned, mask)).pooled[row], encoder(Prompts(values, mask)).pooled[row])


def test_gradients_are_finite_where_there_are_no_words(case: tuple[TextEncoder, Prompts]) -> None:
    """And reach everything but what no prompt uses."""
    encoder, prompts = case
    states = encoder(prompts)
    generator = torch.Generator().manual_seed(1)
    loss = (states.states * torch.randn(states.states.shape, generator=generator)).sum() + states.pooled.square().sum()
    gradients = torch.autograd.grad(loss, [*encoder.parameters()])
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_parameters_are_those_of_the_config(text_config: TransformerConfig) -> None:
    """Of the encoder and of the whole, with a vocabulary or frozen states."""
    frozen = text_config.reading(frozen=12, tokens=8)
    assert frozen.text is not None
    none = dataclasses.replace(frozen, text=dataclasses.replace(frozen.text, depth=0), normalized_attention=False)
    for config in (text_config, frozen, none):
        model = VAR(config, seed=None)
        assert model.text is not None
        assert config.text is not None
        assert sum(parameter.numel() for parameter in model.text.parameters()) == config.text.parameters
        assert sum(parameter.numel() for parameter in model.parameters()) == config.parameters
