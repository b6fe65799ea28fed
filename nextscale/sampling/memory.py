"""How much memory sampling takes for each image painted at the same time: what a stated budget is divided by.

Counted, not measured, and rounded upwards where kernels differ. Weights, results and torch itself are not in it: they
do not grow with the batch, or only by the pictures one gets.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from nextscale.config import TokenizerConfig, TransformerConfig
from nextscale.transformer import cache_bytes

FLOAT = 4  # bytes of a float32
DRAW = 64  # bytes a code while one is drawn: value, code, probability, noise, and the integers the noise is made of
MAPS = 4  # feature maps a residual block of the decoder holds: its input, the branch, the branch normalised, its SiLU


def image_bytes(
    tokenizer: TokenizerConfig,
    transformer: TransformerConfig,
    *,
    guided: bool,
    dtype: torch.dtype,
    step_guided: bool = False,
    reach: int | None = None,
    candidates: Mapping[int, int] = MappingProxyType({}),
) -> int:
    """Bytes an image takes at its peak: the larger of sampling and decoding, for the cache is let go before the latter.

    Arguments:
        guided: two rows an image, conditional and unconditional.
        dtype: what the blocks compute in; logits and, to be safe, the decoder's maps count as float32.
        step_guided: with guidance by the scale before.
        reach: scales that are looked at, see `cache_bytes`.
        candidates: maps drawn at a scale, where there are several; what a score of them takes is not counted.
    """
    given: dict[str, Any] = {"guided": guided, "dtype": dtype, "step_guided": step_guided, "reach": reach}
    return max(sampling_bytes(transformer, **given, candidates=candidates), decoding_bytes(tokenizer))


def sampling_bytes(
    config: TransformerConfig,
    *,
    guided: bool,
    dtype: torch.dtype,
    step_guided: bool = False,
    reach: int | None = None,
    candidates: Mapping[int, int] = MappingProxyType({}),
) -> int:
    """The cache, the text's keys and values; of the largest step a block's activations, the logits, and the draw."""
    rows = 2 if guided else 1
    largest = max(config.walk.lengths)
    block = rows * largest * (4 * config.width + config.opened) * dtype.itemsize
    terms = rows + 2 * (rows - 1) + (3 if step_guided else 0)  # guided: two terms and their sum; prior, term and sum
    logits = terms * largest * config.logits * FLOAT
    drawn = max(length * candidates.get(k, 1) for k, length in enumerate(config.walk.lengths))
    draw = drawn * config.logits * DRAW
    words = 2 * config.depth * rows * config.text.tokens * config.text.width * dtype.itemsize if config.text else 0
    cache = cache_bytes(config, 1, guided=guided, dtype=dtype, reach=reach) if config.keeps else 0
    return cache + words + block + logits + draw


def decoding_bytes(config: TokenizerConfig) -> int:
    """`MAPS` feature maps of the decoder where they are largest; a level's first map still has the width before it."""
    widths = [config.channels * multiplier for multiplier in config.multipliers]
    widest = max(
        max(here, before) * (config.height >> level) * (config.width >> level)
        for level, (here, before) in enumerate(zip(widths, [*widths[1:], 0], strict=True))
    )
    return MAPS * widest * FLOAT
