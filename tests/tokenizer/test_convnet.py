"""Laws of the convnet: shapes of every level, VQGAN's padding, attention that sees everything."""

import dataclasses

import pytest
import torch

from nextscale import Scales
from nextscale.config import TokenizerConfig
from nextscale.tokenizer.convnet import (
    Decoder,
    Downsample,
    Encoder,
    ResidualBlock,
    SelfAttention,
    Upsample,
)


@pytest.fixture(autouse=True)
def same_weights() -> None:
    """Layers made by hand here draw from torch's own stream."""
    torch.manual_seed(0)


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (2, 1, 1)])
def test_every_level_after_the_first_halves_the_resolution(
    tokenizer_config: TokenizerConfig, multipliers: tuple[int, ...]
) -> None:
    """Rectangles too, and the decoder brings it all back."""
    config = dataclasses.replace(tokenizer_config, multipliers=multipliers, scales=Scales([1, (3, 4)]))
    images = torch.rand(2, 3, config.height, config.width)
    latent = Encoder(config)(images)
    assert latent.shape == (2, 8, 3, 4)
    assert Decoder(config)(latent).shape == images.shape


def test_decoder_has_one_residual_block_a_level_more_than_the_encoder(tokenizer_config: TokenizerConfig) -> None:
    """And only the lowest resolution and the middle attend."""
    config = dataclasses.replace(tokenizer_config, residual_blocks=2, multipliers=(1, 2, 2))

    def kinds(level: torch.nn.Module) -> tuple[int, int]:
        parts = list(level.modules())
        return sum(isinstance(m, ResidualBlock) for m in parts), sum(isinstance(m, SelfAttention) for m in parts)

    encoder, decoder = Encoder(config), Decoder(config)
    assert [kinds(level) for level in encoder.levels] == [(2, 0), (2, 0), (2, 2)]
    assert [kinds(level) for level in decoder.levels] == [(3, 3), (3, 0), (3, 0)]
    assert kinds(encoder.middle) == kinds(decoder.middle) == (2, 1)


def test_downsampling_pads_right_and_bottom_only() -> None:
    """Output cell (i, j) is the 3x3 window whose corner is pixel (2i, 2j)."""
    layer = Downsample(1)
    x = torch.rand(1, 1, 4, 6)
    with torch.no_grad():
        got = layer(x)
        padded = torch.zeros(1, 1, 5, 7)
        padded[:, :, :4, :6] = x
        for i in range(2):
            for j in range(3):
                window = padded[0, 0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                expected = (window * layer.conv.weight[0, 0]).sum() + layer.conv.bias[0]
                torch.testing.assert_close(got[0, 0, i, j], expected)


def test_upsampling_repeats_each_cell_before_its_convolution() -> None:
    """With a convolution that does nothing, every cell becomes 2x2 equal pixels."""
    layer = Upsample(1)
    with torch.no_grad():
        layer.conv.weight.zero_()[0, 0, 1, 1] = 1.0
        layer.conv.bias.zero_()
        x = torch.rand(1, 1, 2, 3)
        assert torch.equal(layer(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_attention_is_softmax_of_products_over_root_channels() -> None:
    """Against the formula, cell by cell."""
    layer, x = SelfAttention(32), torch.randn(1, 32, 2, 3)
    with torch.no_grad():
        q, k, v = layer.qkv(layer.norm(x)).flatten(2)[0].chunk(3)
        weights = (q.T @ k / 32**0.5).softmax(dim=1)
        expected = x + layer.out((v @ weights.T).view(1, 32, 2, 3))
        torch.testing.assert_close(layer(x), expected)


def test_residual_block_is_its_formula() -> None:
    """x, through a 1x1 shortcut where the width changes, plus two normalised convolutions."""
    layer, x = ResidualBlock(32, 64), torch.randn(2, 32, 4, 4)

    def silu_of_norm(h: torch.Tensor) -> torch.Tensor:
        groups = h.unflatten(1, (32, -1))
        mean, variance = groups.mean((2, 3, 4), keepdim=True), groups.var((2, 3, 4), keepdim=True, correction=0)
        h = ((groups - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
        return h * h.sigmoid()

    with torch.no_grad():
        expected = layer.shortcut(x) + layer.conv2(silu_of_norm(layer.conv1(silu_of_norm(x))))
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
