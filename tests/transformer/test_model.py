"""Laws of the transformer: steps agree with the forward, information flows to finer scales only."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextscale import VAR, InputError, MultiScaleVQVAE, Scales
from nextscale.config import TransformerConfig
from nextscale.transformer import KeyValueCache

BF16_ERROR = 0.02  # of the logits' standard deviation; 0.005 .. 0.009 was measured

VARIANTS: list[dict[str, Any]] = [
    {},
    {"normalized_attention": False},
    {"shared_modulation": True},
    {"normalized_attention": False, "shared_modulation": True},
    {"scales": Scales([1, (2, 1), (3, 2), (4, 6)])},
    {"scales": Scales([(2, 2), 3, 4])},
    {"scales": Scales([(3, 4)])},
    {"depth": 1},
]


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest, make_transformer: Callable[..., VAR]) -> VAR:
    return make_transformer(**request.param)


def step_by_step(model: VAR, labels: Tensor, inputs: Tensor) -> list[Tensor]:
    """The logits of each scale from `step` and a cache."""
    scales = model.config.scales
    condition = model.condition(labels)
    cache = KeyValueCache(model.config, len(labels), dtype=model.compute_dtype, device=inputs.device)
    first = scales.lengths[0]
    codes = [None, *(inputs[:, part.start - first : part.stop - first] for part in scales.slices()[1:])]
    return [model.step(k, codes_k, condition, cache) for k, codes_k in enumerate(codes)]


@torch.no_grad()
def test_forward_equals_step_by_step_with_a_cache(variant: VAR, random_inputs: Callable[..., Tensor]) -> None:
    """To 1e-4 in float32, for every kind of model; the logits are of healthy size, so that 1e-4 means something."""
    labels, inputs = torch.tensor([0, 4, 5]), random_inputs(variant.config.scales, batch=3)
    logits = variant(labels, inputs)
    assert (logits.shape, logits.dtype) == ((3, variant.config.scales.total, 64), torch.float32)
    assert logits.std() > 0.5
    torch.testing.assert_close(torch.cat(step_by_step(variant, labels, inputs), dim=1), logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_teacher_forcing_sees_what_sampling_would_see(
    make_tokenizer: Callable[..., MultiScaleVQVAE],
    make_transformer: Callable[..., VAR],
    random_tokens: Callable[..., Tensor],
) -> None:
    """Forward on `teacher_inputs` equals steps on the canvas pooled scale by scale, as sampling walks it."""
    for scales in (Scales([1, 2, 3, 4]), Scales([(2, 1), (3, 2), (4, 6)])):
        tokenizer, transformer = make_tokenizer(scales=scales), make_transformer(scales=scales)
        tokens, labels = random_tokens(scales), torch.tensor([1, 3])
        logits = scales.split(torch.arange(scales.total)[None])  # which positions each scale has
        whole = transformer(labels, tokenizer.teacher_inputs(tokens))
        condition = transformer.condition(labels)
        cache = KeyValueCache(transformer.config, 2, dtype=torch.float32, device=torch.device("cpu"))
        codes = None
        for k, canvas in enumerate(tokenizer.quantizer.canvases(tokens)):
            step = transformer.step(k, codes, condition, cache)
            torch.testing.assert_close(step, whole[:, logits[k].flatten()], atol=1e-4, rtol=0)
            if k + 1 < len(scales):
                codes = tokenizer.quantizer.pool(canvas, k + 1).flatten(2).transpose(1, 2)


@torch.no_grad()
def test_token_moves_the_logits_of_all_finer_scales_and_of_no_other(
    tokenizer: MultiScaleVQVAE, transformer: VAR, random_tokens: Callable[..., Tensor]
) -> None:
    """One token of scale j changed: scales <= j bit for bit the same, every position of every scale > j different."""
    scales, labels = transformer.config.scales, torch.tensor([2])
    tokens = random_tokens(batch=1)
    before = transformer(labels, tokenizer.teacher_inputs(tokens))
    for part in scales.slices():
        changed = tokens.clone()
        changed[:, part.start] = (changed[:, part.start] + 17) % 64
        moved = (transformer(labels, tokenizer.teacher_inputs(changed)) - before).abs().amax(dim=-1)[0]
        assert moved[: part.stop].max() == 0
        assert (moved[part.stop :] > 1e-4).all()


@torch.no_grad()
def test_input_moves_all_positions_of_its_own_and_finer_scales_and_of_no_coarser(
    variant: VAR, random_inputs: Callable[..., Tensor]
) -> None:
    """Attention is full inside a scale: one input of scale k disturbs every position from k's first on."""
    scales, labels = variant.config.scales, torch.tensor([2])
    inputs, first = random_inputs(scales, batch=1), scales.lengths[0]
    before = variant(labels, inputs)
    for part in scales.slices()[1:]:
        changed = inputs.clone()
        changed[:, part.stop - 1 - first] += 3.0
        moved = (variant(labels, changed) - before).abs().amax(dim=-1)[0]
        assert moved[: part.start].max() == 0
        assert (moved[part.start :] > 1e-4).all()


@torch.no_grad()
def test_every_position_hears_the_class_and_its_own_place(
    transformer: VAR, random_inputs: Callable[..., Tensor]
) -> None:
    """Another label moves all logits; equal inputs at two places of a scale give different logits."""
    inputs = random_inputs(batch=1)
    a, b = (transformer(torch.tensor([label]), inputs) for label in (0, 1))
    assert ((a - b).abs().amax(dim=-1) > 1e-3).all()
    blank = transformer(torch.tensor([0]), torch.zeros_like(inputs))
    assert torch.pdist(blank[0]).min() > 1e-3


@torch.no_grad()
def test_no_class_is_the_last_row_of_the_class_embedding(
    make_transformer: Callable[..., VAR], random_inputs: Callable[..., Tensor]
) -> None:
    """Label 5 of 5 classes reads row 5, and that row concerns no other label."""
    model, inputs = make_transformer(), random_inputs(batch=2)
    labels = torch.tensor([4, 5])
    before = model(labels, inputs)
    model.class_embedding.weight[5] += 1.0
    after = model(labels, inputs)
    assert torch.equal(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 0.1
    with pytest.raises(InputError, match=r"labels: expected 0 \.\. 5 \(5: no class\), got 6 \.\. 6"):
        model(torch.tensor([6, 6]), inputs)


@torch.no_grad()
def test_logits_of_an_image_do_not_depend_on_its_batch(transformer: VAR, random_inputs: Callable[..., Tensor]) -> None:
    """Alone or among others, up to rounding."""
    labels, inputs = torch.arange(6), random_inputs(batch=6)
    together = transformer(labels, inputs)
    for i in range(6):
        alone = transformer(labels[i : i + 1], inputs[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)


def test_every_weight_is_trained(variant: VAR, random_inputs: Callable[..., Tensor]) -> None:
    """A gradient reaches each tensor; the code projection alone has nothing to do when there is a single scale."""
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    logits = variant(labels, random_inputs(variant.config.scales, batch=6))
    nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(logits.shape[:2].numel()) % 64).backward()
    idle = {name for name, p in variant.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    single = len(variant.config.scales) == 1
    assert idle == ({"code_projection.weight", "code_projection.bias"} if single else set())


@torch.no_grad()
def test_first_scales_alone_give_the_logits_they_give_among_all(
    variant: VAR, random_inputs: Callable[..., Tensor]
) -> None:
    """Whatever comes later is not seen, so it may be left out."""
    scales, labels = variant.config.scales, torch.tensor([0, 5])
    inputs, first = random_inputs(scales, batch=2), scales.lengths[0]
    whole = variant(labels, inputs)
    for part in scales.slices():
        some = variant(labels, inputs[:, : part.stop - first])
        torch.testing.assert_close(some, whole[:, : part.stop], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 30, 8), (2, 29, 9), (1, 29, 8), (2, 8, 29), (2, 3, 8)], ids=str)
def test_teacher_inputs_of_another_shape_are_refused(transformer: VAR, shape: tuple[int, ...]) -> None:
    """With the shape that fits."""
    with pytest.raises(InputError, match=r"^teacher inputs: expected shape \(2, 29, 8\), got "):
        transformer(torch.tensor([0, 1]), torch.zeros(shape))


@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_lower_precision_holds_the_blocks_and_nothing_else(
    make_transformer: Callable[..., VAR], random_inputs: Callable[..., Tensor], shared: bool
) -> None:
    """bfloat16 blocks, float32 embeddings and head; logits in float32, close to the exact ones but not equal."""
    model, inputs, labels = make_transformer(shared_modulation=shared), random_inputs(batch=2), torch.tensor([1, 2])
    exact = model(labels, inputs)
    assert model.lower_precision(torch.bfloat16) is model
    for name, parameter in model.named_parameters():
        inside = name.startswith(("blocks.", "shared_modulation."))
        assert parameter.dtype == (torch.bfloat16 if inside else torch.float32), name
    assert model.compute_dtype == torch.bfloat16
    lowered = model(labels, inputs)
    assert lowered.dtype == torch.float32
    assert 0 < (lowered - exact).std() / exact.std() < BF16_ERROR
    steps = torch.cat(step_by_step(model, labels, inputs), dim=1)
    assert (steps - exact).std() / exact.std() < BF16_ERROR


@torch.no_grad()
def test_autocast_keeps_logits_in_float32_and_close(transformer: VAR, random_inputs: Callable[..., Tensor]) -> None:
    """As in training with mixed precision: float32 weights, products in bfloat16, the head exact."""
    labels, inputs = torch.tensor([1, 2]), random_inputs(batch=2)
    exact = transformer(labels, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = transformer(labels, inputs)
    assert lowered.dtype == torch.float32
    assert 0 < (lowered - exact).std() / exact.std() < BF16_ERROR


def test_weights_follow_the_seed(transformer_config: TransformerConfig, untouched: Callable[[], Any]) -> None:
    """Same seed, same weights; another seed, others; torch's own state is not asked."""
    with untouched():
        first, again, other = (VAR(transformer_config, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("depth", [4, 22, 30, 36])
@pytest.mark.parametrize("shared", [False, True])
def test_initial_weights_have_the_published_statistics(depth: int, shared: bool) -> None:
    """Standard deviations within 5 % (of the gates too, which shrink with depth), biases 0, temperatures log 4."""
    width = 96
    config = TransformerConfig(
        scales=Scales([1, 4, 12]),
        codebook_size=128,
        code_channels=32,
        classes=100,
        depth=depth,
        width=width,
        heads=4,
        feed_forward=4 * width,
        normalized_attention=True,
        shared_modulation=shared,
    )
    model = VAR(config, seed=0)
    std = math.sqrt(1 / (3 * width))
    gamma = {4: 1e-3, 22: 1e-4, 30: 1e-5, 36: 5e-6}[depth]
    block = model.blocks[1]
    expected = {
        model.class_embedding.weight: std,
        model.positions: std,
        model.code_projection.weight: std,
        block.attention.qkv.weight: std,
        block.feed_forward.up.weight: std,
        block.attention.out.weight: std / math.sqrt(2 * depth),
        block.feed_forward.down.weight: std / math.sqrt(2 * depth),
        model.head.weight: 0.02 * std,
        model.head_modulation.weight: 0.5 * std,
    }
    if shared:
        assert model.shared_modulation is not None
        tables = torch.cat([b.modulation_table for b in model.blocks])
        expected |= {
            model.shared_modulation.weight: std,
            tables[:, :, :2]: gamma * width**-0.5,
            tables[:, :, 2:]: 0.5 * width**-0.5,
        }
    else:
        expected |= {
            block.modulation.weight[: 2 * width]: gamma * std,
            block.modulation.weight[2 * width :]: 0.5 * std,
        }
    for weight, value in expected.items():
        slack = 0.05 if weight.numel() > 2000 else 0.15
        assert weight.std().item() == pytest.approx(value, rel=slack)
        assert abs(weight.mean().item()) < 5 * value / math.sqrt(weight.numel())
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        if name.endswith("temperature"):
            assert torch.equal(parameter, torch.full((4, 1, 1), math.log(4))), name


def test_untrained_model_expects_every_code_alike(
    transformer_config: TransformerConfig, random_inputs: Callable[..., Tensor]
) -> None:
    """The head starts near zero, so the first loss is log V."""
    model = VAR(dataclasses.replace(transformer_config, depth=16), seed=0)
    logits = model(torch.tensor([0, 1]), random_inputs(batch=2))
    targets = torch.arange(60) % 64
    assert nn.functional.cross_entropy(logits.flatten(0, 1), targets).item() == pytest.approx(math.log(64), abs=1e-3)
