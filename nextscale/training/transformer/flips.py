"""Self-correction: errors put into the input tokens, which the targets of finer scales make up for.

A digit of a token (a bit, a level; of a learned codebook the whole code) is replaced by another value before it is
painted, and each scale's targets quantize what the canvas then lacks (Infinity, arXiv:2412.04431). So the model learns
to correct the errors of its own sampling.

Shapes: B pictures, L tokens, K scales, G digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale import digits
from nextscale.config import TokenizerConfig
from nextscale.tokenizer.quantizer import Replace


def sizes_of(config: TokenizerConfig) -> tuple[int, ...]:
    """Sizes of the digits that are flipped: those of fixed codes; a code of a codebook is one digit."""
    return config.digits or (config.codebook_size,)


def turns(config: TokenizerConfig, most: float, *, batch: int, numbers: torch.Generator) -> Tensor:
    """By how much each digit is turned on, modulo its size: (B, L, G) int64, 0 where it stays.

    Arguments:
        most: the largest share of digits that are turned; for each picture and scale a share is drawn from 0 to it.
    """
    scales, sizes = config.scales, sizes_of(config)
    share_BK = most * torch.rand(batch, len(scales), generator=numbers)
    turned_BLG = torch.rand(batch, scales.total, len(sizes), generator=numbers) < share_BK[:, scales.level_ids(), None]
    by_BLG = torch.rand(batch, scales.total, len(sizes), generator=numbers, dtype=torch.float64)
    return torch.where(turned_BLG, 1 + (by_BLG * (torch.tensor(sizes) - 1)).long(), 0)


def flipping(by_BLG: Tensor, config: TokenizerConfig) -> Replace:
    """What `MultiScaleQuantizer.corrected` takes: a scale's tokens with their digits turned on."""
    sizes, parts = sizes_of(config), by_BLG.split([*config.scales.lengths], dim=1)

    def flip(k: int, tokens_Bhw: Tensor) -> Tensor:
        values = digits.split(tokens_Bhw, sizes) + parts[k].unflatten(1, tokens_Bhw.shape[1:])
        return digits.joined(values.remainder(torch.tensor(sizes, device=values.device)), sizes)

    return flip
