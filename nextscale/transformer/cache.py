"""The keys and values of the scales already predicted, allocated once at their final size and owned by the caller.

`cache_bytes` says how large it is.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from nextscale.config import TransformerConfig


def cache_bytes(
    config: TransformerConfig, images: int, *, guided: bool, dtype: torch.dtype, reach: int | None = None
) -> int:
    """Bytes of the cache: 2 (keys, values) * depth * rows * L * width * bytes an element.

    rows is one an image, two with guidance. VAR-d30 with guidance in bfloat16: 313,344,000 bytes (299 MiB) an image.
    Nothing where each scale sees itself alone, which is a `reach` of 1.
    """
    rows = 0 if reach == 1 else images * (2 if guided else 1)
    return 2 * config.depth * rows * config.scales.total * config.width * dtype.itemsize


class KeyValueCache:
    """Room for all L positions of `rows` sequences.

    Arguments:
        config: of the transformer that will fill it.
        rows: sequences, unconditional ones counted.
        dtype, device: of the keys and values.
        reach: how many scales one looks at, its own counted; None: at all so far. For 1 nothing is kept.
    """

    def __init__(
        self,
        config: TransformerConfig,
        rows: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        reach: int | None = None,
    ) -> None:
        kept = 0 if reach == 1 else config.scales.total
        self.memory = torch.empty(
            (config.depth, 2, rows, config.heads, kept, config.head_dim), dtype=dtype, device=device
        )
        self.length = 0
        self.firsts = (
            {} if reach is None else dict(zip(config.scales.offsets, config.scales.firsts(reach), strict=True))
        )
        self.keeps = kept > 0

    def extend(self, layer: int, k_BHLD: Tensor, v_BHLD: Tensor) -> tuple[Tensor, Tensor]:
        """Append a scale's keys and values to a layer; returns all of that layer that it looks at, as views."""
        if not self.keeps:
            return k_BHLD, v_BHLD
        first, end = self.firsts.get(self.length, 0), self.length + k_BHLD.shape[2]
        assert end <= self.memory.shape[4], "a scale more than the cache has room for"
        keys, values = self.memory[layer]
        keys[:, :, self.length : end] = k_BHLD
        values[:, :, self.length : end] = v_BHLD
        return keys[:, :, first:end], values[:, :, first:end]

    def first(self, rows: int) -> KeyValueCache:
        """The same memory for the first sequences alone."""
        part = copy.copy(self)
        part.memory = self.memory[:, :, :rows]
        return part

    def advance(self, tokens: int) -> None:
        """Count a scale's tokens as stored, once every layer has them."""
        self.length += tokens
