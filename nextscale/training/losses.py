"""Losses, pure functions of tensors: each term alone, its weight elsewhere (`recipes`).

Shapes: B images, N vectors or tokens, V codes, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# ---- pixels ----------------------------------------------------------------------------------------------------------


def l2(painted_B3HW: Tensor, images_B3HW: Tensor) -> Tensor:
    """Mean of (painted - image)^2 over all elements."""
    return F.mse_loss(painted_B3HW, images_B3HW)


def l1(painted_B3HW: Tensor, images_B3HW: Tensor) -> Tensor:
    """Mean of |painted - image| over all elements."""
    return F.l1_loss(painted_B3HW, images_B3HW)


# ---- the choice of codes ---------------------------------------------------------------------------------------------


def choice_entropy(residuals_NC: Tensor, codes_VC: Tensor, *, temperature: float = 0.05) -> Tensor:
    """mean_n H(p_n) - H(mean_n p_n), in nats, with p_n = softmax_v(-|z_n - e_v|^2 / (temperature * s)).

    Low when each residual is sure of its code and all codes are chosen equally often (as in MAGVIT-v2, equation 4). s
    is the mean squared distance, so that the term does not change with the latent's size.
    """
    squares = residuals_NC.square().sum(dim=1, keepdim=True) + codes_VC.square().sum(dim=1)
    distances_NV = squares - 2 * residuals_NC @ codes_VC.T
    log_p_NV = F.log_softmax(-distances_NV / (temperature * distances_NV.detach().mean()), dim=-1)
    p_NV = log_p_NV.exp()  # 0 for codes that are far away, where the gradient of -p ln p by itself would be infinite
    p_V = p_NV.mean(dim=0)
    return (p_V * p_V.clamp_min(1e-30).log()).sum() - (p_NV * log_p_NV).sum(dim=-1).mean()


# ---- adversarial -----------------------------------------------------------------------------------------------------


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """(mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(x)))) / 2: the margin beyond which the discriminator is content."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def hinge_generator(fake: Tensor) -> Tensor:
    """-mean D(G(x))."""
    return -fake.mean()


def lecam(real: Tensor, fake: Tensor, *, real_mean: Tensor, fake_mean: Tensor) -> Tensor:
    """mean max(0, D(x) - a_F)^2 + mean max(0, a_R - D(G(x)))^2, a the running means (Tseng et al. 2021, equation 5)."""
    return F.relu(real - fake_mean).square().mean() + F.relu(real_mean - fake).square().mean()


def adaptive_weight(of_reconstruction: Tensor, of_adversary: Tensor, bounds: tuple[float, float]) -> Tensor:
    """|grad reconstruction| / |grad adversary|, clamped, from the gradients at the decoder's last convolution.

    So weighted, both terms pull equally hard at that layer (VQGAN, equation 7).
    """
    ratio = of_reconstruction.norm() / (of_adversary.norm() + 1e-6)
    return ratio.detach().clamp(*bounds)


# ---- tokens ----------------------------------------------------------------------------------------------------------


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
