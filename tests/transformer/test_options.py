"""Laws of what the release's transformers do not have: each option works wherever a plain model does, and says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale import VAR, InputError, MultiScaleVQVAE, Pipeline
from nextscale.config import TransformerConfig, from_json, to_json
from nextscale.machine import flops
from nextscale.release import convert
from nextscale.sampling.engine import fingerprint, view_in
from nextscale.training.muon import hidden_matrices
from nextscale.training.transformer.learner import Learner

OPTIONS: list[dict[str, Any]] = [{"activation": "relu2"}, {"activation": "swiglu"}, {"logit_cap": 2.0}]


@pytest.fixture(params=OPTIONS, ids=str)
def option(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture
def model(option: dict[str, Any], make_transformer: Callable[..., VAR]) -> VAR:
    return make_transformer(**option)


def test_every_option_is_tried_here(transformer_config: TransformerConfig) -> None:
    """None is left out of these laws, and the default of each is the release's."""
    assert not transformer_config.options
    tried = {name for option in OPTIONS for name in dataclasses.replace(transformer_config, **option).options}
    known = {part.name for part in dataclasses.fields(TransformerConfig) if part.metadata.get("option")}
    assert tried == known


@torch.no_grad()
def test_an_option_changes_what_is_computed(
    model: VAR, make_transformer: Callable[..., VAR], random_inputs: Callable[..., Tensor]
) -> None:
    """It is not silently left out: where weights are the same, logits are not."""
    plain, labels, inputs = make_transformer(), torch.tensor([0, 5]), random_inputs(batch=2)
    same = {name: weight for name, weight in plain.state_dict().items() if name in model.state_dict()}
    fits = {name: weight for name, weight in same.items() if model.state_dict()[name].shape == weight.shape}
    model.load_state_dict(model.state_dict() | fits)
    assert (model(labels, inputs) - plain(labels, inputs)).abs().max() > 0.1


@torch.no_grad()
def test_logits_of_an_image_do_not_depend_on_its_batch(model: VAR, random_inputs: Callable[..., Tensor]) -> None:
    """Alone or among others, up to rounding."""
    labels, inputs = torch.arange(6), random_inputs(batch=6)
    together = model(labels, inputs)
    for i in range(6):
        torch.testing.assert_close(model(labels[i : i + 1], inputs[i : i + 1])[0], together[i], atol=1e-5, rtol=1e-5)


def test_a_saved_pipeline_paints_the_same(
    option: dict[str, Any], model: VAR, make_tokenizer: Callable[..., MultiScaleVQVAE], tmp_path: Path
) -> None:
    """Configuration and weights come back, bit for bit, and so do pictures, with guidance and without."""
    pipe = Pipeline(make_tokenizer(), model, precision="fp32")
    pipe.save(tmp_path)
    again = Pipeline.load(tmp_path, precision="fp32")
    assert again.transformer.config == model.config
    for guidance in (0.0, 1.5):
        ours, theirs = (made.generate([1, 4], seeds=[2, 3], guidance=guidance).tokens for made in (pipe, again))
        assert torch.equal(ours, theirs)
    alone = pipe.generate([4], seeds=[3], guidance=1.5).tokens
    assert torch.equal(alone[0], theirs[1])


def test_a_configuration_tells_an_option_only_where_there_is_one(
    option: dict[str, Any], transformer_config: TransformerConfig
) -> None:
    """Files and fingerprints of plain models are what they were; options come back as they went."""
    config = dataclasses.replace(transformer_config, **option)
    assert not to_json(transformer_config).keys() & option.keys()
    assert from_json(TransformerConfig, to_json(config)) == config
    assert repr(config) == repr(transformer_config)


def test_a_model_with_an_option_has_a_fingerprint_of_its_own(
    model: VAR, make_transformer: Callable[..., VAR], make_tokenizer: Callable[..., MultiScaleVQVAE]
) -> None:
    """Also where its weights are the plain model's."""
    tokenizer = make_tokenizer()
    assert fingerprint(tokenizer, model) != fingerprint(tokenizer, make_transformer())


def test_parameters_and_work_are_counted(model: VAR, random_inputs: Callable[..., Tensor]) -> None:
    """From the shapes; an option that adds weights adds work, as torch counts it."""
    config = model.config
    assert config.parameters == sum(weight.numel() for weight in model.parameters())
    linear = [module for block in model.blocks for module in block.modules() if isinstance(module, nn.Linear)]
    inside = sum(layer.weight.numel() for layer in linear if layer is not None)
    inside -= sum(block.modulation.weight.numel() for block in model.blocks)
    attention = config.depth * 2 * config.width * 1  # of one position that sees itself
    outside = config.width * config.logits
    assert flops.scale_work(config, 0, guided=False).matrix == 2 * (inside + attention + outside)


def test_the_loss_is_that_of_the_logits(model: VAR, random_inputs: Callable[..., Tensor]) -> None:
    """In chunks or all at once, gradients too."""
    labels, inputs = torch.tensor([0, 5]), random_inputs(batch=2)
    tokens = torch.randint(64, (2, model.config.scales.total), generator=torch.Generator().manual_seed(0))
    ours, loss_BL, _ = Learner(model)(labels, inputs, tokens)
    theirs = F.cross_entropy(model(labels, inputs).flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(loss_BL.mean(), theirs)
    gradients = [torch.autograd.grad(loss, [*model.parameters()]) for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_blocks_in_bfloat16_stay_near(model: VAR, random_inputs: Callable[..., Tensor]) -> None:
    """As an engine holds them, prepacked where the processor can."""
    labels, inputs = torch.tensor([0, 5]), random_inputs(batch=2)
    exact, low = model(labels, inputs), view_in(model, torch.bfloat16)(labels, inputs)
    assert (low - exact).std() < 0.03 * exact.std()


def test_the_releases_format_does_not_hold_it(
    option: dict[str, Any], model: VAR, make_tokenizer: Callable[..., MultiScaleVQVAE]
) -> None:
    """Told in one line, by its name."""
    (name,) = option
    with pytest.raises(InputError, match=f"^expected a transformer built as the release's are, got one with {name}"):
        convert.export(Pipeline(make_tokenizer(), model, precision="fp32"))


def test_text_goes_with_it(option: dict[str, Any], make_transformer: Callable[..., VAR]) -> None:
    """Parameters are counted with both."""
    config = make_transformer().config.reading(vocabulary=300)
    model = make_transformer(**option, text=config.text)
    assert model.config.parameters == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"activation": "tanh"}, "transformer activation: expected one of gelu, relu2, swiglu, got 'tanh'"),
        ({"logit_cap": -1.0}, r"transformer logit_cap: expected 0 \(none\) .. [0-9]+, got -1.0"),
        ({"logit_cap": float("nan")}, "transformer logit_cap: expected 0 .*, got nan"),
    ],
)
def test_what_is_no_option_is_refused(transformer_config: TransformerConfig, wrong: dict[str, Any], told: str) -> None:
    """By what was expected."""
    with pytest.raises(InputError, match=told):
        dataclasses.replace(transformer_config, **wrong)


# ---- one by one ------------------------------------------------------------------------------------------------------


def test_a_gate_and_a_value_are_matrices_apart(make_transformer: Callable[..., VAR]) -> None:
    """To an optimiser that takes matrices as a whole."""
    model = make_transformer(activation="swiglu")
    up = model.blocks[0].feed_forward.up.weight
    assert [matrix.shape for matrix in hidden_matrices(model) if matrix.weight is up] == [(128, 64)] * 2


@torch.no_grad()
def test_feed_forwards_follow_their_formulas(make_transformer: Callable[..., VAR]) -> None:
    """relu(up)^2 and silu(gate) * value, then down."""
    x_BLD = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0))
    squared, gated = (make_transformer(activation=name).blocks[0].feed_forward for name in ("relu2", "swiglu"))
    torch.testing.assert_close(squared(x_BLD), squared.down(squared.up(x_BLD).clamp(min=0) ** 2))
    gate, value = gated.up(x_BLD).split(128, dim=-1)
    torch.testing.assert_close(gated(x_BLD), gated.down(gate * gate.sigmoid() * value))


@torch.no_grad()
def test_logits_stay_below_their_cap(
    make_transformer: Callable[..., VAR], random_inputs: Callable[..., Tensor]
) -> None:
    """Small ones as they are, none above; their order stays."""
    plain, capped = make_transformer(), make_transformer(logit_cap=2.0)
    labels, inputs = torch.tensor([0, 5]), random_inputs(batch=2)
    before, after = plain(labels, inputs), capped(labels, inputs)
    assert before.abs().max() > 2 > after.abs().max()
    torch.testing.assert_close(after, 2 * (before / 2).tanh())
