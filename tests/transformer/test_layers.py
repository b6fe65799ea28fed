"""Laws of a block's parts: each against its formula, and stochastic depth against its statistics."""

import dataclasses
import math
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from nextscale import VAR, Scales
from nextscale.config import TransformerConfig
from nextscale.transformer import DropPath
from nextscale.transformer.attention import block_causal
from nextscale.transformer.layers import Attention, Block, FeedForward, Modulation, attend, modulate

Layer = TypeVar("Layer", bound=torch.nn.Module)


@pytest.fixture(autouse=True)
def same_weights() -> None:
    """Layers made by hand here draw from torch's own stream."""
    torch.manual_seed(0)


def redrawn(layer: Layer) -> Layer:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.2)
    return layer


def as_they_are(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return k, v


def slow_attention(layer: Attention, x: Tensor, mask: Tensor, *, normalized: bool) -> Tensor:
    """One head and one query after another; queries and values have a learned bias, keys have none."""
    width = x.shape[-1]
    w_q, w_k, w_v = layer.qkv.weight.split(width)
    q, k, v = x @ w_q.T + layer.q_bias, x @ w_k.T, x @ w_v.T + layer.v_bias
    d = width // layer.heads
    heads = []
    for h in range(layer.heads):
        part = slice(h * d, h * d + d)
        q_h, k_h, v_h = q[:, part], k[:, part], v[:, part]
        if normalized:
            sharpness = min(layer.temperature[h].item(), math.log(100))
            q_h = q_h / q_h.norm(dim=1, keepdim=True) * math.exp(sharpness)
            k_h = k_h / k_h.norm(dim=1, keepdim=True)
            scale = 1.0
        else:
            scale = 0.25 / math.sqrt(d)
        rows = []
        for i in range(len(x)):
            weights = (q_h[i] @ k_h[mask[i]].T * scale).softmax(dim=0)
            rows.append(weights @ v_h[mask[i]])
        heads.append(torch.stack(rows))
    return layer.out(torch.cat(heads, dim=1))


@pytest.mark.parametrize("normalized", [True, False])
@torch.no_grad()
def test_attention_is_its_formula(transformer_config: TransformerConfig, normalized: bool) -> None:
    """Both kinds, under the block-causal mask and without one; a temperature beyond log 100 counts as log 100."""
    layer = redrawn(Attention(dataclasses.replace(transformer_config, normalized_attention=normalized)))
    if normalized:
        layer.temperature.copy_(torch.tensor([0.3, 1.0, 9.0, -1.0]).view(4, 1, 1))
    else:
        assert layer.temperature is None
    x = torch.randn(2, 14, 64)
    mask = transformer_config.scales.block_causal_mask()[:14, :14]
    expected = torch.stack([slow_attention(layer, row, mask, normalized=normalized) for row in x])
    look = block_causal(Scales(transformer_config.scales.sizes[:3]), torch.device("cpu"))
    torch.testing.assert_close(layer(x, as_they_are, look), expected, atol=1e-5, rtol=1e-4)
    everything = torch.ones(14, 14, dtype=torch.bool)
    expected = torch.stack([slow_attention(layer, row, everything, normalized=normalized) for row in x])
    torch.testing.assert_close(layer(x, as_they_are), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_attending_is_its_formula_at_any_scale(dtype: torch.dtype, scale: float) -> None:
    """In both formats, which take different ways on CPUs; scores of 4 or so are rounded by 2^-8 in bfloat16."""
    q, k, v = (torch.randn(2, 3, n, 16).to(dtype) for n in (5, 9, 9))
    expected = (q.float() @ k.float().transpose(-1, -2) * scale).softmax(dim=-1) @ v.float()
    got = attend(q, k, v, scale)
    assert got.dtype == dtype
    assert (got.float() - expected).norm() / expected.norm() < (1e-5 if dtype == torch.float32 else 2**-6)


@torch.no_grad()
def test_feed_forward_is_its_formula(transformer_config: TransformerConfig) -> None:
    """GELU in its tanh form."""
    layer, x = redrawn(FeedForward(transformer_config)), torch.randn(2, 5, 64)
    h = layer.up(x)
    gelu = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    torch.testing.assert_close(layer(x), layer.down(gelu), atol=1e-5, rtol=1e-4)


def test_modulation_shifts_and_scales_a_norm_without_gains() -> None:
    """Scale 0 and shift 0 leave mean 0 and variance 1; a constant input does not divide by zero."""
    x = torch.randn(2, 5, 64) * 3 + 1
    plain = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
    shift, scale = torch.randn(2, 1, 64), torch.randn(2, 1, 64)
    torch.testing.assert_close(modulate(x, shift, scale), plain * (1 + scale) + shift, atol=1e-5, rtol=1e-4)
    assert torch.equal(modulate(torch.ones(1, 1, 8), torch.zeros(8), torch.zeros(8)), torch.zeros(1, 1, 8))


@torch.no_grad()
def test_block_is_its_formula(transformer_config: TransformerConfig) -> None:
    """Each branch normalised, modulated, and gated onto the residual stream."""
    block, x = redrawn(Block(transformer_config)), torch.randn(2, 5, 64)
    first, second = (Modulation(*torch.randn(3, 2, 1, 64)) for _ in range(2))
    middle = x + first.gate * block.attention(modulate(x, first.shift, first.scale), as_they_are)
    expected = middle + second.gate * block.feed_forward(modulate(middle, second.shift, second.scale))
    torch.testing.assert_close(block(x, (first, second), as_they_are), expected)


@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_six_modulations_come_in_the_order_of_the_release(transformer_config: TransformerConfig, shared: bool) -> None:
    """gate1, gate2, scale1, scale2, shift1, shift2: from the block's own projection, or a table plus the shared one."""
    block = redrawn(Block(dataclasses.replace(transformer_config, shared_modulation=shared)))
    condition = torch.randn(2, 64)
    silu = condition * condition.sigmoid()
    if shared:
        projected = torch.randn(2, 1, 6, 64)
        six = [block.modulation_table[0, 0, i] + projected[:, :, i] for i in range(6)]
    else:
        projected = None
        six = [row.unsqueeze(1) for row in block.modulation(silu).split(64, dim=1)]
    (shift1, scale1, gate1), (shift2, scale2, gate2) = block.modulations(condition, projected)
    for got, expected in zip((gate1, gate2, scale1, scale2, shift1, shift2), six, strict=True):
        torch.testing.assert_close(got, expected)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean() -> None:
    """An image's branch is 0 everywhere or scaled up everywhere; the mean over 4000 images stays within 4 sigma."""
    rate = 0.3
    drop = DropPath(rate, torch.Generator().manual_seed(0)).of_block(4, 5)
    assert drop is not None
    out = drop(torch.ones(4000, 3, 2))
    first = out[:, :1, :1]
    assert torch.equal(out, first.expand_as(out))
    torch.testing.assert_close(first.unique(), torch.tensor([0.0, 1 / (1 - rate)]))
    sigma = math.sqrt(rate / (1 - rate) / 4000)
    assert abs(first.mean().item() - 1) < 4 * sigma


def test_stochastic_depth_grows_linearly_over_the_blocks() -> None:
    """Nothing at the first block, the whole rate at the last."""
    drop_path = DropPath(0.4, torch.Generator().manual_seed(0))
    assert drop_path.of_block(0, 5) is None
    assert DropPath(0.4, torch.Generator()).of_block(0, 1) is None
    for index in range(1, 5):
        drop = drop_path.of_block(index, 5)
        assert drop is not None
        out = drop(torch.ones(1, 1, 1).expand(1000, 1, 1))
        assert out.max().item() == pytest.approx(1 / (1 - 0.1 * index))


def test_parts_of_a_batch_drop_what_the_batch_would() -> None:
    """However it is cut."""

    def dropped(part: slice) -> Tensor:
        drop = DropPath(0.5, torch.Generator().manual_seed(3), batch=12, part=part).of_block(1, 2)
        assert drop is not None
        return drop(torch.ones(12, 1, 4)[part])

    whole = dropped(slice(None))
    assert torch.equal(torch.cat([dropped(slice(0, 6)), dropped(slice(6, 8)), dropped(slice(8, 12))]), whole)
    assert 0 < whole.count_nonzero() < whole.numel()


@torch.no_grad()
def test_stochastic_depth_of_the_model_follows_the_callers_generator(
    transformer: VAR, random_inputs: Callable[..., Tensor]
) -> None:
    """Same generator, same logits; another, others; without, the plain ones, in training mode too."""
    labels, inputs = torch.arange(4), random_inputs(batch=4)

    def dropped(seed: int) -> Tensor:
        return transformer(labels, inputs, drop_path=DropPath(0.5, torch.Generator().manual_seed(seed)))

    assert torch.equal(dropped(0), dropped(0))
    assert not torch.equal(dropped(0), dropped(1))
    assert transformer.training
    assert torch.equal(transformer(labels, inputs), transformer(labels, inputs))
    assert not torch.equal(transformer(labels, inputs), dropped(0))
