"""Weights and pictures as pure functions of a seed and a name, so that golden numbers need no weight file.

For a tensor `name` of `shape`, x is standard normal, drawn by numpy's RandomState(crc32("seed:name")).
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

# What the architecture determines, or what starts at zero.
STATIC = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "quantize.ema_vocab_hit_SV")
TABLES = ("class_emb.weight", "lvl_embed.weight", "pos_start", "pos_1LC", "ada_gss")


def value(seed: int, name: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """The float32 array of this name, or None where the model's own buffer stays."""
    if name.endswith(STATIC):
        return None
    x = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("scale_mul_1H11"):
        return np.float32(math.log(4.0)) + np.float32(0.1) * x
    if name.endswith("quantize.embedding.weight"):
        return x
    if name.endswith(TABLES):
        return np.float32(0.5) * x
    if len(shape) >= 2:
        return x / np.float32(math.sqrt(math.prod(shape[1:])))
    return np.float32(1.0) + np.float32(0.1) * x if name.endswith("weight") else np.float32(0.02) * x


def image(seed: int, batch: int, size: int) -> NDArray[np.float32]:
    """Smooth pictures (batch, 3, size, size) in [-1, 1]: eight random low frequencies a side."""
    coefficients = np.random.RandomState(zlib.crc32(f"{seed}:image".encode())).standard_normal((batch, 3, 8, 8))
    coefficients = coefficients / (1.0 + np.add.outer(np.arange(8), np.arange(8)))
    at = (np.arange(size, dtype=np.float64) + 0.5) / size
    basis = np.stack([np.cos(math.pi * k * at) for k in range(8)])
    return np.tanh(1.5 * np.einsum("bcij,ih,jw->bchw", coefficients, basis, basis)).astype(np.float32)
