"""Laws of raster order: causal, the cache changes nothing, and sampling sees what training saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from conftest import awaken
from torch import Tensor

from nextscale import VAR, InputError, MultiScaleVQVAE, Pipeline, Scales
from nextscale.config import TransformerConfig
from nextscale.rivals import orders
from nextscale.rivals.raster import Line, Raster, teacher_inputs
from nextscale.sampling.loop import Choice, choose, random_keys
from nextscale.transformer import KeyValueCache
from nextscale.transformer.adapted import adapted


def inputs_of(single: MultiScaleVQVAE, *, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Tokens and what is seen of them."""
    tokens_BL = torch.randint(64, (batch, 16), generator=torch.Generator().manual_seed(0))
    return tokens_BL, teacher_inputs(single.quantizer, tokens_BL)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"shared_modulation": True}, {"normalized_attention": False}], ids=str)
def test_forward_equals_token_by_token_with_a_cache(
    single: MultiScaleVQVAE, make_rival: Callable[..., VAR], changes: dict[str, bool]
) -> None:
    """To 1e-4 in float32."""
    model, labels = make_rival("raster", **changes), torch.tensor([0, 4, 5])
    _, inputs = inputs_of(single)
    whole, condition = model(labels, inputs), model.condition(labels)
    cache = KeyValueCache(model.config, 3, dtype=torch.float32, device=torch.device("cpu"))
    steps = [model.step(k, inputs[:, k - 1 : k] if k else None, condition, cache) for k in range(16)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-4, rtol=0)
    assert whole.std() > 0.5


@torch.no_grad()
def test_a_token_moves_all_later_logits_and_none_before(
    single: MultiScaleVQVAE, make_rival: Callable[..., VAR]
) -> None:
    """Its own are not moved either: bit for bit."""
    model, labels = make_rival("raster"), torch.tensor([2])
    tokens, inputs = inputs_of(single, batch=1)
    before = model(labels, inputs)
    for place in range(15):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 17) % 64
        moved = (model(labels, teacher_inputs(single.quantizer, changed)) - before).abs().amax(dim=-1)[0]
        assert moved[: place + 1].max() == 0
        assert (moved[place + 1 :] > 1e-4).all()


@torch.no_grad()
def test_sampling_draws_from_the_logits_of_teacher_forcing(single: MultiScaleVQVAE, make_pipe) -> None:
    """Every token is the one that the whole-picture forward, guided, would have drawn with the same noise."""
    pipe: Pipeline = make_pipe("raster")
    out = pipe.generate(labels=[0, 3], seeds=[4, 9], guidance=1.0, top_k=20)
    seen = teacher_inputs(single.quantizer, out.tokens)
    t_L1 = torch.linspace(0, 1, 16)[:, None]
    with_class, without = (pipe.transformer(labels, seen) for labels in (torch.tensor([0, 3]), torch.tensor([5, 5])))
    logits = (1 + t_L1) * with_class - t_L1 * without
    tokens, _ = choose(logits, random_keys([4, 9], 16), Choice(top_k=20), progress=0.0)
    assert torch.equal(tokens, out.tokens)


def test_the_canvas_fills_row_by_row(single: MultiScaleVQVAE) -> None:
    """What is seen is the code before; the end is the canvas of the tokens; no earlier canvas changes."""
    tokens, inputs = inputs_of(single)
    line, codes = Line(single.quantizer, 3), single.quantizer.lookup(tokens.view(3, 4, 4))
    canvases = []
    for k in range(16):
        if k:
            assert torch.equal(line.seen(k), inputs[:, k - 1 : k])
        canvases.append(line.paint(k, codes[:, :, k // 4, k % 4, None, None]))
        assert torch.equal(line.codes_BCHW.flatten(2).ne(0).any(1), torch.arange(16).le(k).expand(3, 16))
    (expected,) = single.quantizer.canvases(tokens)
    assert torch.equal(canvases[-1], expected)
    assert len({canvas.sum().item() for canvas in canvases}) == 16


def test_a_raster_model_moves_to_another_grid_and_other_classes(make_rival: Callable[..., VAR]) -> None:
    """Places are resized, classes taken over by name, the first token's start stays."""
    model = make_rival("raster")
    config = dataclasses.replace(model.config, scales=Scales([6]), classes=2)
    new = adapted(model, config, known=[*"abcde"], classes=["e", "new"])
    assert isinstance(new, Raster)
    assert new.positions.shape == (1, 36, 64)
    assert torch.equal(new.start, model.start)
    assert torch.equal(new.class_embedding.weight, model.class_embedding.weight[[4, 5, 5]])
    same = adapted(model, model.config, known=[*"abcde"], classes=[*"abcde"])
    assert all(torch.equal(weight, same.state_dict()[name]) for name, weight in model.state_dict().items())


def test_raster_order_of_a_wide_map(transformer_config: TransformerConfig) -> None:
    """64 x 64 tokens are 4,096 steps; a wide map is read row by row too."""
    config = dataclasses.replace(transformer_config, order="raster", scales=Scales([64]))
    assert len(config.walk) == 4096
    model = awaken(Raster(dataclasses.replace(config, scales=Scales([(2, 3)]))))
    assert model(torch.tensor([1]), torch.zeros(1, 5, 8)).shape == (1, 6, 64)


@torch.no_grad()
def test_log_likelihood_is_that_of_token_after_token(
    single: MultiScaleVQVAE, make_pipe: Callable[..., Pipeline]
) -> None:
    """By steps with a cache; classes by the same."""
    pipe, (tokens, inputs) = make_pipe("raster"), inputs_of(single)
    model, labels = pipe.transformer, torch.tensor([0, 4, 5])
    condition = model.condition(labels)
    cache = KeyValueCache(model.config, 3, dtype=torch.float32, device=torch.device("cpu"))
    steps = [model.step(k, inputs[:, k - 1 : k] if k else None, condition, cache) for k in range(16)]
    expected = torch.cat(steps, dim=1).log_softmax(dim=-1).gather(-1, tokens[..., None]).squeeze(-1)
    found = pipe.log_likelihood(labels=[0, 4, 5], tokens=tokens)
    torch.testing.assert_close(found.tokens, expected, atol=1e-4, rtol=0)
    assert found.scales.shape == (3, 1)
    told = pipe.classify(tokens=tokens).log_likelihoods
    torch.testing.assert_close(told[0, 0], found.images[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(told[1, 4], found.images[1], atol=1e-3, rtol=0)


def test_orders_without_a_likelihood_say_so(
    make_pipe: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line."""
    monkeypatch.delitem(orders.TEACHERS, "raster")
    with pytest.raises(InputError, match="^likelihood: expected a model of order scale, got one of order raster$"):
        make_pipe("raster").log_likelihood(tokens=torch.zeros(1, 16, dtype=torch.int64))
