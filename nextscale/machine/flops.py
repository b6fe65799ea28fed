"""Floating-point operations of both models, counted from their configs: 2 a multiply-add, an image, needs no torch.

Counted is what runs as a matrix product or a convolution; norms, activations, softmax, resizing and the draw are not.
Shapes: D width, F hidden channels, C code channels, V codes, l tokens of a scale, L of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from nextscale.config import TokenizerConfig, TransformerConfig


@dataclass(frozen=True)
class Work:
    """Floating-point operations, by the kind of kernel that does them."""

    matrix: int = 0
    convolution: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.matrix + other.matrix, self.convolution + other.convolution)

    @property
    def total(self) -> int:
        return self.matrix + self.convolution


class Convolution(NamedTuple):
    """The shape of a convolution; height and width are those of its output."""

    channels_in: int
    channels_out: int
    kernel: int
    height: int
    width: int

    @property
    def flops(self) -> int:
        return 2 * self.channels_in * self.channels_out * self.kernel**2 * self.height * self.width


# -- the transformer ---------------------------------------------------------------------------------------------------


def condition_work(config: TransformerConfig, *, guided: bool) -> Work:
    """All modulations of the blocks (six a block, or six in all) and of the head (two), once an image; the text."""
    projections = 6 * (1 if config.shared_modulation else config.depth) + 2
    return Work(matrix=_rows(guided) * (2 * projections * config.width**2 + _reading_work(config)))


def _reading_work(config: TransformerConfig) -> int:
    """Of a prompt of all its places: the encoder, what is pooled, and each block's keys and values."""
    if config.text is None:
        return 0
    places, w = config.text.tokens, config.text.width
    layers = config.text.depth * (12 * w**2 + 2 * places * w)
    return 2 * (places * (config.text.frozen * w + layers + config.depth * 2 * w**2) + w * config.width)


def scale_work(config: TransformerConfig, k: int, *, guided: bool, reach: int | None = None) -> Work:
    """Of scale k, in raster order of token k: the embedding of its inputs, the blocks, and the head.

    It looks at the last `reach` scales.
    """
    walk = config.walk
    tokens, seen = walk.lengths[k], walk.slices()[k].stop - walk.firsts(reach)[k]
    linears = 4 * config.width**2 + config.width * (config.opened + config.feed_forward)  # q, k, v, out; up, down
    attention = 2 * seen * config.width  # q k^T, and its softmax times v
    if config.text is not None:
        linears += 2 * config.width * config.text.width  # query, out
        attention += 2 * config.text.tokens * config.text.width
    outside = config.width * (config.logits + (config.code_channels if k else 0))
    return Work(matrix=_rows(guided) * 2 * tokens * (config.depth * (linears + attention) + outside))


def step_guidance_work(config: TransformerConfig, k: int) -> Work:
    """What scale k is expected to be by the scale before, of the logits of both."""
    lengths = config.scales.lengths
    return Work(matrix=2 * lengths[k] * lengths[k - 1] * config.logits if k else 0)


def _rows(guided: bool) -> int:
    return 2 if guided else 1


# -- the tokenizer -----------------------------------------------------------------------------------------------------


def painting_work(config: TokenizerConfig) -> Work:
    """What one scale paints onto the canvas: its phi."""
    side = config.code_channels
    phi = Convolution(side, side, 3, config.scales.height, config.scales.width)
    return Work(convolution=phi.flops if config.phi_count else 0)


def decoder_work(config: TokenizerConfig) -> Work:
    """From the canvas to pixels."""
    attentions = 1 + config.residual_blocks + 1
    return _convnet_work(config, decoder_convolutions(config), attentions)


def encoder_work(config: TokenizerConfig) -> Work:
    """From pixels to features; `quantizer_work` is the rest of encoding."""
    attentions = 1 + config.residual_blocks
    return _convnet_work(config, encoder_convolutions(config), attentions)


def quantizer_work(config: TokenizerConfig) -> Work:
    """Features to tokens: the distance to every code at every position, and what each scale paints."""
    compared = 0 if config.fixed else config.codebook_size
    distances = 2 * config.scales.total * config.code_channels * compared
    painted = len(config.scales) * painting_work(config).convolution
    return Work(matrix=distances, convolution=painted)


def decoder_convolutions(config: TokenizerConfig) -> list[Convolution]:
    """All of them, from the one before the decoder proper to the pixels."""
    return [*_decoder(config)]


def encoder_convolutions(config: TokenizerConfig) -> list[Convolution]:
    """All of them, from the pixels to the one before the quantizer."""
    return [*_encoder(config)]


def heaviest(convolutions: list[Convolution]) -> Convolution:
    """The shape in which most of the work is done."""
    return max(convolutions, key=lambda shape: shape.flops * convolutions.count(shape))


def _decoder(config: TokenizerConfig) -> Iterator[Convolution]:
    levels = [*_levels(config)][::-1]
    widest, h, w = levels[0]
    yield Convolution(config.code_channels, config.code_channels, 3, h, w)
    yield Convolution(config.code_channels, widest, 3, h, w)
    yield from _middle(widest, h, w)
    before = widest
    for depth, (width, h, w) in enumerate(levels):
        yield from _blocks(before, width, config.residual_blocks + 1, h, w, attention=depth == 0)
        if depth + 1 < len(levels):
            yield Convolution(width, width, 3, 2 * h, 2 * w)
        before = width
    yield Convolution(before, 3, 3, h, w)


def _encoder(config: TokenizerConfig) -> Iterator[Convolution]:
    levels = [*_levels(config)]
    yield Convolution(3, config.channels, 3, config.height, config.width)
    before = config.channels
    for depth, (width, h, w) in enumerate(levels):
        last = depth + 1 == len(levels)
        yield from _blocks(before, width, config.residual_blocks, h, w, attention=last)
        if not last:
            yield Convolution(width, width, 3, h // 2, w // 2)
        before = width
    yield from _middle(before, h, w)
    yield Convolution(before, config.code_channels, 3, h, w)
    yield Convolution(config.code_channels, config.code_channels, 3, h, w)


def _levels(config: TokenizerConfig) -> Iterator[tuple[int, int, int]]:
    """(channels, height, width) of each resolution, pixels first."""
    for level, multiplier in enumerate(config.multipliers):
        yield config.channels * multiplier, config.height >> level, config.width >> level


def _blocks(before: int, width: int, count: int, h: int, w: int, *, attention: bool) -> Iterator[Convolution]:
    """Residual blocks, each followed by attention where there is some."""
    for channels_in, channels_out in pairwise([before] + [width] * count):
        yield Convolution(channels_in, channels_out, 3, h, w)
        yield Convolution(channels_out, channels_out, 3, h, w)
        if channels_in != channels_out:
            yield Convolution(channels_in, channels_out, 1, h, w)
        if attention:
            yield Convolution(channels_out, 3 * channels_out, 1, h, w)
            yield Convolution(channels_out, channels_out, 1, h, w)


def _middle(width: int, h: int, w: int) -> Iterator[Convolution]:
    yield from _blocks(width, width, 1, h, w, attention=True)
    yield from _blocks(width, width, 1, h, w, attention=False)


def _convnet_work(config: TokenizerConfig, convolutions: list[Convolution], attentions: int) -> Work:
    """The convolutions, and the two products of each attention at the lowest resolution."""
    cells, channels = config.scales.lengths[-1], config.channels * config.multipliers[-1]
    return Work(attentions * 4 * cells**2 * channels, sum(convolution.flops for convolution in convolutions))
