"""Editing: functions given to `sampling.loop.generate(edit=...)` that replace codes before they are painted.

Here is the release's way, kept to its rule for parity: the picture's own codes wherever the mask keeps, coarse to fine.
Its faults are known: hidden content leaks through coarse codes, and residual codes stop fitting once the hole differs.
Shapes: B batch, C code channels, L tokens of all scales, h w a scale's sides.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.errors import InputError
from nextscale.sampling.loop import Edit
from nextscale.scales import Scales
from nextscale.tokenizer.quantizer import MultiScaleQuantizer, check_tokens

Box = tuple[float, float, float, float]


def release_mask(scales: Scales, box: Box, *, inside: bool) -> Tensor:
    """What the release keeps: (h_K, w_K) float32 on the last grid, 1 = keep.

    Arguments:
        box: (top, left, bottom, right) as fractions of the sides, rounded to whole tokens.
        inside: keep the box (out-painting) rather than what surrounds it (in-painting).

    Raises `InputError` for a box that leaves the picture or is upside down.
    """
    top, left, bottom, right = box
    if not (0 <= top <= bottom <= 1 and 0 <= left <= right <= 1):
        raise InputError(f"box: expected (top, left, bottom, right) in order and within 0 .. 1, got {box}")
    keep = torch.full((scales.height, scales.width), float(not inside), dtype=torch.float32, device="cpu")
    rows = slice(round(top * scales.height), round(bottom * scales.height))
    keep[rows, round(left * scales.width) : round(right * scales.width)] = float(inside)
    return keep


def release_edit(quantizer: MultiScaleQuantizer, tokens_BL: Tensor, keep: Tensor) -> Edit:
    """Keep parts of a picture as the release does; the rest is whatever is sampled.

    At each scale the mask is resized bilinearly and what exceeds 0.5 is kept; a map of one token is always kept.

    Arguments:
        quantizer: of the tokenizer.
        tokens_BL: (B, L) int64, the pictures' tokens, all scales.
        keep: (h_K, w_K) or (B, h_K, w_K), bool or float, 1 = keep.

    Raises `InputError` for tokens or a mask of another shape.
    """
    scales = quantizer.scales
    codes = quantizer.codebook
    check_tokens(tokens_BL, scales.total, codes.num_embeddings)
    grid = (scales.height, scales.width)
    if tuple(keep.shape) not in (grid, (len(tokens_BL), *grid)):
        raise InputError(f"mask: expected shape {grid} or {(len(tokens_BL), *grid)}, got {tuple(keep.shape)}")
    keep_B1HW = keep.to(codes.weight).expand(len(tokens_BL), *grid)[:, None]
    pictures = scales.split(tokens_BL.to(codes.weight.device))

    def edit(k: int, codes_BChw: Tensor) -> Tensor:
        size = scales.sizes[k]
        own_BChw = quantizer.lookup(pictures[k])
        if size == (1, 1):
            return own_BChw
        keep_B1hw = F.interpolate(keep_B1HW, size, mode="bilinear", align_corners=False) > 0.5
        return torch.where(keep_B1hw, own_BChw, codes_BChw)

    return edit
