"""Losses and figures of merit, pure functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reconstruction(painted_B3HW: Tensor, images_B3HW: Tensor) -> Tensor:
    """L2 + 0.2 * L1, means over elements (the weights of the authors' single-scale tokenizer trainer)."""
    return F.mse_loss(painted_B3HW, images_B3HW) + 0.2 * F.l1_loss(painted_B3HW, images_B3HW)


def psnr(painted_B3HW: Tensor, images_B3HW: Tensor) -> Tensor:
    """10 log10(peak^2 / MSE) of each image, (B,) in dB; both in [-1, 1], so the peak is 2."""
    error_B = (painted_B3HW.float() - images_B3HW.float()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / error_B.clamp_min(1e-12))


def cross_entropy(logits_BLV: Tensor, tokens_BL: Tensor) -> Tensor:
    """-log p of each token, (B, L) float32 in nats."""
    losses = F.cross_entropy(logits_BLV.float().flatten(0, 1), tokens_BL.flatten(), reduction="none")
    return losses.view_as(tokens_BL)


def unigram_entropy(tokens_NL: Tensor, codes: int) -> Tensor:
    """-sum p ln p of the tokens at each position over N images, (L,) float64 in nats: what position alone tells.

    The plug-in estimate, which is too low for few images, so that beating it means something.
    """
    counts_LV = torch.zeros(tokens_NL.shape[1], codes, dtype=torch.float64)
    counts_LV.scatter_add_(1, tokens_NL.T, torch.ones_like(tokens_NL.T, dtype=torch.float64))
    return torch.special.entr(counts_LV / len(tokens_NL)).sum(dim=1)
