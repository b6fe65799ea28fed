"""Losses, pure functions of tensors: each term alone, its weight elsewhere (`recipes`).

Shapes: B images, L positions, N vectors or tokens, V codes, C channels, D width of the transformer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import digits
from nextscale.machine.precision import as_held
from nextscale.transformer.attention import check_once

# ---- pixels ----------------------------------------------------------------------------------------------------------


def l2(painted_B3HW: Tensor, images_B3HW: Tensor) -> Tensor:
    """Mean of (painted - image)^2 over all elements."""
    return F.mse_loss(painted_B3HW, images_B3HW)


def l1(painted_B3HW: Tensor, images_B3HW: Tensor) -> Tensor:
    """Mean of |painted - image| over all elements."""
    return F.l1_loss(painted_B3HW, images_B3HW)


# ---- features --------------------------------------------------------------------------------------------------------


# mean over b, h, w of  1 - a.b / (|a| |b|)
def misaligned(ours_BDhw: Tensor, theirs_BDhw: Tensor) -> Tensor:
    """One less the cosine of features at each place, averaged: 0 where directions agree, 2 where they are opposite."""
    return 1 - F.cosine_similarity(ours_BDhw, theirs_BDhw, dim=1).mean()


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


# H(q(c|u)) = sum_i H(q_i) exactly, since softmax(-tau |u - c|^2) over all corners c is independent across bits
def bit_entropy(units_Nd: Tensor, *, tau: float = 100.0) -> Tensor:
    """mean_n sum_i H(q_ni) - sum_i H(mean_n q_ni), in nats, q_ni = sigmoid(4 tau u_ni / sqrt(d)) (BSQ, section 3.2).

    Low when each vector is sure of its bits and every bit is set half of the time. The second term is an upper bound of
    the entropy of the mean over all 2^d corners, of which there is no table.

    Arguments:
        units_Nd: (N, d) of length 1.
        tau: how sharply corners are told apart.
    """
    logits_Nd = 4 * tau * units_Nd * units_Nd.shape[1] ** -0.5
    q_Nd = logits_Nd.sigmoid()
    # H(q) = -q ln q - (1 - q) ln(1 - q) = softplus(l) - q l, which no rounding of q to 0 or 1 harms
    sure = (F.softplus(logits_Nd) - q_Nd * logits_Nd).sum(dim=1).mean()
    q_d = q_Nd.mean(dim=0)
    even = -(q_d * q_d.clamp_min(1e-30).log() + (1 - q_d) * (1 - q_d).clamp_min(1e-30).log()).sum()
    return sure - even


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

LOGITS = {"cpu": 8 << 20, "accelerator": 256 << 20}  # bytes of float32 logits at a time


def cross_entropy(logits_BLV: Tensor, tokens_BL: Tensor, *, groups: Sequence[int] = ()) -> Tensor:
    """-log p of each token, (B, L) float32 in nats; with `groups` the sum over its digits (`digits`)."""
    if groups:
        parts, sizes = digits.split(tokens_BL, groups).unbind(-1), [*groups]
        pairs = zip(logits_BLV.split(sizes, dim=-1), parts, strict=True)
        return torch.stack([cross_entropy(logits, part) for logits, part in pairs]).sum(dim=0)
    losses = F.cross_entropy(logits_BLV.float().flatten(0, 1), tokens_BL.flatten(), reduction="none")
    return losses.view_as(tokens_BL)


def chunked_cross_entropy(
    h_BLD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    tokens_BL: Tensor,
    weights_L: Tensor,
    *,
    smoothing: float = 0.0,
    groups: Sequence[int] = (),
    cap: float = 0.0,
    chunk: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of the logits h W^T + b, of which never more than `chunk` rows exist at a time.

    The gradients are made along the way, while a chunk's logits are there: all (B, L, V) of them would be 11 MB an
    image of 680 tokens in float32. At 4 images of 256 px and width 512, one core with AVX512-BF16, forward and backward
    took 121 ms in bfloat16, against 168 with the chunks computed a second time in the backward pass, 195 with all
    logits at once, and 449 with all of them in float32; in float32 383 against 558 and 436.

    Arguments:
        h_BLD: (B, L, D) float, `VAR.hidden`.
        weight_VD, bias_V: of the head; they get gradients in their own dtype.
        tokens_BL: (B, L) int64, the targets.
        weights_L: (L,) float, at least 0 and not all 0: what each position counts; or (B, L), what each token does.
        smoothing: s, 0 .. 1: the target is (1 - s) one-hot + s / V.
        groups: sizes of the digits that a token is predicted in; V is their sum. None: one softmax over all codes.
        cap: c of logits c tanh((h W^T + b) / c); 0: none.
        chunk: rows of logits at a time; None takes as many as `LOGITS` holds.
        dtype: of the matrix products. Softmax and sums are in float32 all the same.

    Returns the loss, sum_L(weights * loss) / sum(weights) averaged over the batch, differentiable; -log p of each
    token, (B, L) float32 in nats, without smoothing and detached; and (B, L) bool, whether it is the likeliest.
    """
    rows = chunk or max(1, LOGITS["cpu" if h_BLD.device.type == "cpu" else "accelerator"] // (4 * len(weight_VD)))
    with as_held(h_BLD.device):
        learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (h_BLD, weight_VD, bias_V))
        return _ChunkedCrossEntropy.apply(
            h_BLD, weight_VD, bias_V, tokens_BL, weights_L, smoothing, tuple(groups), cap, rows, dtype, learns
        )


class _ChunkedCrossEntropy(torch.autograd.Function):
    """d loss / d logits = weight / (B sum(weights)) * (p - target), with the factor 1 / (B L) left for `backward`.

    So that in a half precision of small range nothing is lost.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h_BLD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        tokens_BL: Tensor,
        weights_L: Tensor,
        smoothing: float,
        groups: tuple[int, ...],
        cap: float,
        chunk: int,
        dtype: torch.dtype,
        learns: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows_ND, targets_N1, low_VD = h_BLD.flatten(0, 1), tokens_BL.flatten()[:, None], weight_VD.to(dtype)
        weights_N1 = (weights_L.float() / weights_L.float().mean()).expand(tokens_BL.shape).reshape(-1, 1)
        dh_ND, dw_VD = torch.empty_like(rows_ND), torch.zeros_like(weight_VD, dtype=torch.float32)
        db_V = torch.zeros_like(bias_V, dtype=torch.float32)
        total, losses, hits = torch.zeros((), device=h_BLD.device), [], []
        for part in _slices(len(rows_ND), chunk):
            low_nD = rows_ND[part].to(dtype)
            logits_nV = F.linear(low_nD, low_VD).float().add_(bias_V.float())
            slope_nV = _cap(logits_nV, cap) if cap else None
            given = (logits_nV, targets_N1[part], weights_N1[part], smoothing)
            seen = _descend_digits(*given, groups) if groups else _descend(*given)
            total += (weights_N1[part] * seen.smoothed_n1).sum()
            losses.append(seen.loss_n1)
            hits.append(seen.hit_n1)
            if slope_nV is not None:
                seen.gradient.mul_(slope_nV)
            if learns:
                low_nV = seen.gradient.to(dtype)
                dh_ND[part] = low_nV @ low_VD
                dw_VD += low_nV.T @ low_nD
                db_V += seen.gradient.sum(dim=0)
        if learns:
            ctx.save_for_backward(dh_ND.view_as(h_BLD), dw_VD.to(weight_VD.dtype), db_V.to(bias_V.dtype))
        ctx.count = len(rows_ND)
        loss_BL, hit_BL = (torch.cat(parts).view_as(tokens_BL) for parts in (losses, hits))
        ctx.mark_non_differentiable(loss_BL, hit_BL)
        return total / ctx.count, loss_BL, hit_BL

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        check_once("chunked cross-entropy")
        factor = grads[0] / ctx.count
        dh_BLD, dw_VD, db_V = (factor * gradient for gradient in ctx.saved_tensors)
        return dh_BLD, dw_VD, db_V, *(None for _ in range(8))


# y = c tanh(x / c), y' = 1 - (y / c)^2
def _cap(logits_nV: Tensor, cap: float) -> Tensor:
    """Cap logits in place; the slope of the cap at each."""
    shares_nV = logits_nV.div_(cap).tanh_()
    slope_nV = 1 - shares_nV.square()
    logits_nV.mul_(cap)
    return slope_nV


class _Descent(NamedTuple):
    """Of a chunk of logits."""

    loss_n1: Tensor
    """-log p of the targets."""
    smoothed_n1: Tensor
    """The same against smoothed targets."""
    hit_n1: Tensor
    gradient: Tensor
    """(n, V): weight * (p - target)."""


def _descend_digits(
    logits_nV: Tensor, targets_n1: Tensor, weights_n1: Tensor, smoothing: float, groups: Sequence[int]
) -> _Descent:
    """`_descend` in each group: losses add up, and a token is right when all of its digits are."""
    digits_nG, parts = digits.split(targets_n1[:, 0], groups), []
    for run in digits.runs(groups):
        targets_ng1 = digits_nG[:, run.digits, None]
        part_ngm = logits_nV[:, run.columns].unflatten(1, run.shape)
        parts.append(_descend(part_ngm, targets_ng1, weights_n1[..., None].expand_as(targets_ng1), smoothing))
    loss_n1, smoothed_n1 = (torch.cat([part[place] for part in parts], dim=1).sum(dim=1) for place in range(2))
    hit_n1 = torch.cat([part.hit_n1 for part in parts], dim=1).all(dim=1)
    return _Descent(loss_n1, smoothed_n1, hit_n1, logits_nV)


def _descend(logits_nV: Tensor, targets_n1: Tensor, weights_n1: Tensor, smoothing: float) -> _Descent:
    """Writes over the logits: a chunk of them is large, and passes over it are what takes time."""
    top_n1, likeliest_n1 = logits_nV.max(dim=-1, keepdim=True)
    logits_nV -= top_n1
    of_target_n1 = logits_nV.gather(-1, targets_n1)
    mean_n1 = logits_nV.mean(dim=-1, keepdim=True) if smoothing else of_target_n1
    p_nV = logits_nV.exp_()
    sum_n1 = p_nV.sum(dim=-1, keepdim=True)
    gradient_nV = p_nV.mul_(weights_n1 / sum_n1).scatter_add_(-1, targets_n1, (smoothing - 1) * weights_n1)
    if smoothing:
        gradient_nV -= smoothing / logits_nV.shape[-1] * weights_n1
    log_n1 = sum_n1.log()
    smoothed_n1 = log_n1 - torch.lerp(of_target_n1, mean_n1, smoothing)
    return _Descent(log_n1 - of_target_n1, smoothed_n1, likeliest_n1 == targets_n1, gradient_nV)


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(first, first + size) for first in range(0, count, size))
