"""The residual multi-scale quantizer: a latent grid to K token maps and back (Algorithms 1 and 2 of the paper).

One primitive serves encoding, decoding, teacher inputs and sampling: what the codes of scale k paint onto the canvas
(`contribution`). Its running sum is the canvas f_hat; pooled (`pool`), the canvas is the transformer's next input.
Everything here computes in float32: which code is nearest must not depend on the precision of the convnet.

Shapes: B batch, C code channels, H W sides of the latent (h_K, w_K), h w sides of a scale, L tokens in all, V codes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.config import TokenizerConfig
from nextscale.errors import InputError
from nextscale.machine.precision import as_held
from nextscale.scales import Scales

ROWS = 1 << 16  # vectors compared with all codes at a time: 1 GB of distances for 4,096 codes


class Quantized(NamedTuple):
    """What the training forward of the quantizer gives."""

    f_hat: Tensor
    """(B, C, H, W) float32, straight-through: its gradient goes to the features unchanged."""
    tokens: Tensor
    """(B, L) int64."""
    loss: Tensor
    """Scalar: codebook and commitment loss, averaged over scales."""


class Walk(NamedTuple):
    """What the walk over scales leaves behind: all that losses and the care of the codebook need."""

    tokens: Tensor
    """(B, L) int64."""
    canvases: tuple[Tensor, ...]
    """f_hat after each scale, (B, C, H, W); gradients go to the codes and the phis."""
    residuals: tuple[Tensor, ...]
    """What each scale had to say, one vector a token, (B * h * w, C); gradients go to the features."""

    def f_hat(self, f_BCHW: Tensor) -> Tensor:
        """The last canvas, straight-through: its gradient goes to the features unchanged."""
        return f_BCHW + (self.canvases[-1] - f_BCHW).detach()


def codebook_loss(canvases: Sequence[Tensor], f_BCHW: Tensor) -> Tensor:
    """1/K sum_k |f_hat_k - sg[f]|^2, means over elements: the codes go to the features (paper, equation 5)."""
    return torch.stack([F.mse_loss(canvas, f_BCHW.detach()) for canvas in canvases]).mean()


def commitment_loss(canvases: Sequence[Tensor], f_BCHW: Tensor) -> Tensor:
    """1/K sum_k |sg[f_hat_k] - f|^2, means over elements: the features stay near the codes (paper, equation 5)."""
    return torch.stack([F.mse_loss(canvas.detach(), f_BCHW) for canvas in canvases]).mean()


class Phi(nn.Conv2d):
    """phi(h) = h / 2 + conv3x3(h) / 2: repairs what upsampling blurs (paper, section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        with as_held(h.device):
            return h.mul(0.5) + super().forward(h).mul(0.5)


def nearest_phi(scales: int, phis: int) -> list[int]:
    """Which of `phis` convolutions each of `scales` scales uses: argmin_j |ticks_j - k / (K - 1)|."""
    margin = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    ticks = np.linspace(margin, 1 - margin, phis)
    return [int(np.argmin(np.abs(ticks - k / max(scales - 1, 1)))) for k in range(scales)]


class MultiScaleQuantizer(nn.Module):
    """Codebook Z, the phis, and the walk over scales."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.scales = config.scales
        self.distance = config.distance
        self.codebook = nn.Embedding(config.codebook_size, config.code_channels)
        self.phis = nn.ModuleList(Phi(config.code_channels) for _ in range(config.phi_count))
        self.phi_of = nearest_phi(len(config.scales), config.phi_count) if config.phi_count else []
        self.register_buffer("hits_KV", torch.zeros(len(config.scales), config.codebook_size))
        self.hits_KV: Tensor

    # -- the primitives ------------------------------------------------------------------------------------------------

    def nearest(self, z_NC: Tensor) -> Tensor:
        """(N, C) float32 -> (N,) int64, the nearest code of each vector.

        Euclidean: argmin |z - e|^2 = argmin |e|^2 - 2 z.e; cosine: argmax of the normalised product.
        """
        if len(z_NC) > ROWS:
            return torch.cat([self.nearest(part_NC) for part_NC in z_NC.split(ROWS)])
        e_VC = self.codebook.weight.detach()
        with as_held(z_NC.device):
            if self.distance == "cosine":
                return (F.normalize(z_NC, dim=-1) @ F.normalize(e_VC, dim=-1).T).argmax(dim=-1)
            return torch.addmm(e_VC.square().sum(dim=-1), z_NC, e_VC.T, alpha=-2).argmin(dim=-1)

    def lookup(self, tokens_Bhw: Tensor) -> Tensor:
        """(B, h, w) int64 -> codes (B, C, h, w)."""
        return self.codebook(tokens_Bhw).permute(0, 3, 1, 2)

    def contribution(self, codes_BChw: Tensor, k: int) -> Tensor:
        """phi_k(interpolate(z_k, h_K, w_K)): what codes (B, C, h_k, w_k) of scale k add to the canvas, (B, C, H, W)."""
        if k < len(self.scales) - 1:
            codes_BChw = F.interpolate(codes_BChw, size=self.scales.sizes[-1], mode="bicubic")
        return self.phis[self.phi_of[k]](codes_BChw) if self.phi_of else codes_BChw

    def pool(self, canvas_BCHW: Tensor, k: int) -> Tensor:
        """interpolate(f, h_k, w_k): the canvas or residual at scale k, averaged over areas, (B, C, h_k, w_k)."""
        if k == len(self.scales) - 1:
            return canvas_BCHW
        return F.interpolate(canvas_BCHW, size=self.scales.sizes[k], mode="area")

    def blank(self, batch: int) -> Tensor:
        """The canvas before the first scale: zeros (B, C, H, W) float32 on the codebook's device."""
        weight = self.codebook.weight
        return torch.zeros(batch, weight.shape[1], *self.scales.sizes[-1], dtype=weight.dtype, device=weight.device)

    # -- the walks over scales -----------------------------------------------------------------------------------------

    def encode(self, f_BCHW: Tensor) -> Tensor:
        """Algorithm 1: features -> tokens (B, L) int64, each scale quantizing what the coarser ones left."""
        return torch.cat([tokens for tokens, _, _ in self._residual_pyramid(f_BCHW)], dim=1)

    def canvases(self, tokens_BL: Tensor) -> Iterator[Tensor]:
        """Algorithm 2: f_hat (B, C, H, W) after each scale; the last is what the decoder paints."""
        canvas = self.blank(len(tokens_BL))
        for k, tokens_Bhw in enumerate(self.scales.split(tokens_BL)):
            canvas = canvas + self.contribution(self.lookup(tokens_Bhw), k)
            yield canvas

    def teacher_inputs(self, tokens_BL: Tensor) -> Tensor:
        """The canvas after scales 1 .. K-1, each pooled to the next scale: (B, L - h_1*w_1, C) float32."""
        if len(self.scales) == 1:
            return self.blank(len(tokens_BL)).flatten(2).transpose(1, 2)[:, :0]
        walk = zip(range(1, len(self.scales)), self.canvases(tokens_BL), strict=False)
        return torch.cat([self.pool(canvas, k).flatten(2).transpose(1, 2) for k, canvas in walk], dim=1)

    def forward(self, f_BCHW: Tensor, through_B: Tensor | None = None) -> Walk:
        """Training: the walk of `encode`, with everything on the way kept.

        Arguments:
            f_BCHW: features.
            through_B: (B,) int64, how many scales each picture is painted with; None paints all.
        """
        f = f_BCHW.float()
        canvas, tokens, canvases, residuals = torch.zeros_like(f), [], [], []
        for k, (tokens_k, contribution, residual) in enumerate(self._residual_pyramid(f)):
            if through_B is not None:
                contribution = contribution * (k < through_B).view(-1, 1, 1, 1)
            canvas = canvas + contribution
            tokens.append(tokens_k)
            canvases.append(canvas)
            residuals.append(residual)
        return Walk(torch.cat(tokens, dim=1), tuple(canvases), tuple(residuals))

    def rescaled(self, scales: Scales) -> MultiScaleQuantizer:
        """The same codebook and phis, walking other scales that end at the same size."""
        if scales.sizes[-1] != self.scales.sizes[-1]:
            raise InputError(f"scales: expected the last to be {self.scales.sizes[-1]}, got {scales.sizes[-1]}")
        other = copy.copy(self)
        other.scales = scales
        other.phi_of = nearest_phi(len(scales), len(self.phis)) if len(self.phis) else []
        return other

    def _residual_pyramid(self, f_BCHW: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each scale: its tokens (B, h*w), their contribution, which the next residual lacks, and the residual."""
        residual = f_BCHW
        for k, (h, w) in enumerate(self.scales):
            z_NC = self.pool(residual, k).permute(0, 2, 3, 1).flatten(0, 2)
            tokens_Bhw = self.nearest(z_NC.detach()).view(-1, h, w)
            contribution = self.contribution(self.lookup(tokens_Bhw), k)
            residual = residual - contribution.detach()
            yield tokens_Bhw.flatten(1), contribution, z_NC

    # -- usage of the codebook -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def count_hits(self, tokens_BL: Tensor, step: int) -> None:
        """Fold a batch into `hits_KV`, the running average of hits a scale and code (0.9 for 100 steps, then 0.99)."""
        codes = self.hits_KV.shape[1]
        parts = self.scales.split(tokens_BL)
        hits = torch.stack([torch.bincount(part.flatten(), minlength=codes) for part in parts]).to(self.hits_KV)
        decay = 0.0 if step == 0 else 0.9 if step < 100 else 0.99
        self.hits_KV.mul_(decay).add_(hits, alpha=1 - decay)


def usage(tokens: Sequence[Tensor], codes: int) -> list[tuple[int, float]]:
    """For each scale's tokens: how many of `codes` occur, and the perplexity exp(-sum p ln p) of their distribution."""
    figures = []
    for part in tokens:
        p = torch.bincount(part.flatten(), minlength=codes).double() / part.numel()
        figures.append((int((p > 0).sum()), float(torch.special.entr(p).sum().exp())))
    return figures


def check_tokens(tokens_BL: Tensor, total: int, codes: int) -> None:
    """Raise `InputError` unless tokens are (B, total) int64 in [0, codes)."""
    if tokens_BL.ndim != 2 or tokens_BL.shape[1] != total or tokens_BL.dtype != torch.int64:
        got = f"{tuple(tokens_BL.shape)} {tokens_BL.dtype}"
        raise InputError(f"tokens: expected shape (batch, {total}) int64, got {got}")
    if tokens_BL.is_meta or not tokens_BL.numel():
        return
    if not 0 <= int(tokens_BL.min()) <= int(tokens_BL.max()) < codes:
        got = f"{int(tokens_BL.min())} .. {int(tokens_BL.max())}"
        raise InputError(f"tokens: expected values in 0 .. {codes - 1}, got {got}")
