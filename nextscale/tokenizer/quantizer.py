"""The residual multi-scale quantizer: a latent grid to K token maps and back (Algorithms 1 and 2 of the paper).

The walk is the same for all kinds of codes, learned or fixed; the kinds themselves are in `codes`.
One primitive serves encoding, decoding, teacher inputs and sampling: what the codes of scale k paint onto the canvas
(`contribution`). Its running sum is the canvas f_hat; pooled (`pool`), the canvas is the transformer's next input.
Everything here computes in float32: which code is nearest must not depend on the precision of the convnet.

Shapes: B batch, C code channels, H W sides of the latent (h_K, w_K), h w sides of a scale, L tokens in all, V codes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale import digits
from nextscale.config import TokenizerConfig
from nextscale.errors import InputError
from nextscale.machine.precision import as_held
from nextscale.scales import Scales
from nextscale.tokenizer.codes import Codebook, ScalarLevels, codes_of

Replace = Callable[[int, Tensor], Tensor]
"""(scale k, tokens (B, h_k, w_k)) -> the tokens to paint instead."""


class Quantized(NamedTuple):
    """What the training forward of the quantizer gives."""

    f_hat: Tensor
    """(B, C, H, W) float32, straight-through: its gradient goes to the features unchanged."""
    tokens: Tensor
    """(B, L) int64."""
    loss: Tensor
    """Scalar, averaged over scales: codebook and commitment loss; for BSQ commitment alone, for FSQ and sphere 0."""


class Walk(NamedTuple):
    """What the walk over scales leaves behind: all that losses and the care of the codebook need."""

    tokens: Tensor
    """(B, L) int64."""
    canvases: tuple[Tensor, ...]
    """f_hat after each scale, (B, C, H, W); gradients go to the codes (where fixed, to the features) and the phis."""
    residuals: tuple[Tensor, ...]
    """What each scale had to say, one vector a token, (B * h * w, C); gradients go to the features."""
    flowing: Tensor | None = None
    """The last canvas where gradients flow through every code to the features; None where they skip the codes."""

    def f_hat(self, f_BCHW: Tensor) -> Tensor:
        """The last canvas for the decoder, whose gradient skips the codes unless it flows through them."""
        return f_BCHW + (self.canvases[-1] - f_BCHW).detach() if self.flowing is None else self.flowing


def codebook_loss(canvases: Sequence[Tensor], f_BCHW: Tensor) -> Tensor:
    """1/K sum_k |f_hat_k - sg[f]|^2, means over elements: the codes go to the features (paper, equation 5)."""
    return torch.stack([F.mse_loss(canvas, f_BCHW.detach()) for canvas in canvases]).mean()


def commitment_loss(canvases: Sequence[Tensor], f_BCHW: Tensor) -> Tensor:
    """1/K sum_k |sg[f_hat_k] - f|^2, means over elements: the features stay near the codes (paper, equation 5)."""
    return torch.stack([F.mse_loss(canvas.detach(), f_BCHW) for canvas in canvases]).mean()


def spherical_commitment(residuals: Sequence[Tensor]) -> Tensor:
    """1/K sum_k mean_n |sg[u_hat_n] - u_n|^2 with u = z / |z| and u_hat its corner (BSQ, arXiv:2406.07548)."""
    units = [F.normalize(z_NC, dim=-1) for z_NC in residuals]
    corners = [torch.where(u_NC > 0, 1.0, -1.0) * u_NC.shape[1] ** -0.5 for u_NC in units]
    pairs = zip(corners, units, strict=True)
    return torch.stack([(corner - u_NC).square().sum(dim=-1).mean() for corner, u_NC in pairs]).mean()


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


def nearest_scale(scales: Scales, others: Scales) -> list[int]:
    """For each of `scales` the one of `others` whose share of the last map's tokens is nearest to its own."""
    ours, theirs = ([math.log(length / of.lengths[-1]) for length in of.lengths] for of in (scales, others))
    return [min(range(len(theirs)), key=lambda j: abs(theirs[j] - share)) for share in ours]


class MultiScaleQuantizer(nn.Module):
    """Codebook Z, the phis, and the walk over scales.

    Fixed codes have one size while residuals shrink from scale to scale. A residual is therefore divided by its scale's
    `gain_K` before the search for its code, and the code is multiplied by it on the canvas.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.scales = config.scales
        self.codes, self.channels = config.codebook_size, config.code_channels
        self.codebook = codes_of(config)
        self.phis = nn.ModuleList(Phi(config.code_channels) for _ in range(config.phi_count))
        self.phi_of = nearest_phi(len(config.scales), config.phi_count) if config.phi_count else []
        self.gain_of = list(range(len(config.scales))) if config.fixed else []
        if config.fixed:
            self.register_buffer("gain_K", torch.ones(len(config.scales)))
        else:
            self.register_buffer("hits_KV", torch.zeros(len(config.scales), config.codebook_size))
        self.gain_K: Tensor
        self.hits_KV: Tensor

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._buffer.device

    @property
    def reach(self) -> float:
        """The length of the longest of fixed codes."""
        return self.channels**0.5 if isinstance(self.codebook, ScalarLevels) else 1.0

    @property
    def _buffer(self) -> Tensor:
        """The buffer of its kind of codes: fixed codes without phis have no weights."""
        return self.gain_K if self.gain_of else self.hits_KV

    @property
    def learned(self) -> Codebook:
        """The codebook. Raises `InputError` for codes that are fixed."""
        if not isinstance(self.codebook, Codebook):
            raise InputError("expected a tokenizer with a learned codebook, got one with fixed codes")
        return self.codebook

    # -- the primitives ------------------------------------------------------------------------------------------------

    def nearest(self, z_NC: Tensor) -> Tensor:
        """(N, C) float32, divided by their scale's gain -> (N,) int64, the nearest code of each vector."""
        return self.codebook.nearest(z_NC)

    def quantized(self, residual_BChw: Tensor, k: int) -> Tensor:
        """What scale k has to say, (B, C, h_k, w_k) float32 -> its tokens (B, h_k, w_k) int64."""
        z_NC = (residual_BChw / self._gain(k)).permute(0, 2, 3, 1).flatten(0, 2)
        return self.nearest(z_NC).view(-1, *residual_BChw.shape[2:])

    def lookup(self, tokens_Bhw: Tensor) -> Tensor:
        """(B, h, w) int64 -> codes (B, C, h, w), before their scale's gain."""
        return self.codebook(tokens_Bhw).permute(0, 3, 1, 2)

    def vectors(self) -> Tensor:
        """All codes (V, C), before any gain; of fixed ones there may be too many."""
        if isinstance(self.codebook, Codebook):
            return self.codebook.vectors()
        return self.codebook(torch.arange(self.codes, device=self.device))

    def contribution(self, codes_BChw: Tensor, k: int) -> Tensor:
        """phi_k(interpolate(z_k, h_K, w_K)): what codes (B, C, h_k, w_k) of scale k add to the canvas, (B, C, H, W)."""
        codes_BChw = codes_BChw * self._gain(k) if self.gain_of else codes_BChw
        if k < len(self.scales) - 1:
            codes_BChw = F.interpolate(codes_BChw, size=self.scales.sizes[-1], mode="bicubic")
        return self.phis[self.phi_of[k]](codes_BChw) if self.phi_of else codes_BChw

    def pool(self, canvas_BCHW: Tensor, k: int) -> Tensor:
        """interpolate(f, h_k, w_k): the canvas or residual at scale k, averaged over areas, (B, C, h_k, w_k)."""
        if k == len(self.scales) - 1:
            return canvas_BCHW
        return F.interpolate(canvas_BCHW, size=self.scales.sizes[k], mode="area")

    def blank(self, batch: int) -> Tensor:
        """The canvas before the first scale: zeros (B, C, H, W) float32 on the quantizer's device."""
        return self._buffer.new_zeros(batch, self.channels, *self.scales.sizes[-1])

    def _gain(self, k: int) -> Tensor | float:
        return self.gain_K[self.gain_of[k]] if self.gain_of else 1.0

    # -- the walks over scales -----------------------------------------------------------------------------------------

    def encode(self, f_BCHW: Tensor) -> Tensor:
        """Algorithm 1: features -> tokens (B, L) int64, each scale quantizing what the coarser ones left."""
        return torch.cat([tokens for tokens, _, _ in self._residual_pyramid(f_BCHW)], dim=1)

    def corrected(self, f_BCHW: Tensor, painted: Replace) -> tuple[Tensor, Tensor]:
        """`encode`, painting other tokens than those found, so that each scale quantizes what the canvas then lacks.

        Returns the tokens found and the tokens painted, (B, L) int64 each.
        """
        seen = list[Tensor]()

        def replace(k: int, tokens_Bhw: Tensor) -> Tensor:
            seen.append(painted(k, tokens_Bhw))
            return seen[k]

        found = [tokens for tokens, _, _ in self._residual_pyramid(f_BCHW, painted=replace)]
        return torch.cat(found, dim=1), torch.cat([tokens.flatten(1) for tokens in seen], dim=1)

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

    def forward(self, f_BCHW: Tensor, through_B: Tensor | None = None, *, rotation: bool = False) -> Walk:
        """Training: the walk of `encode`, with everything on the way kept.

        Arguments:
            f_BCHW: features.
            through_B: (B,) int64, how many scales each picture is painted with; None paints all.
            rotation: the decoder's gradient reaches the features through learned codes, by the rotation trick.
        """
        f, flows = f_BCHW.float(), not isinstance(self.codebook, Codebook)
        tokens, residuals, canvases = zip(*self._painted(f, through_B, flows=flows), strict=True)
        flowing = canvases[-1] if flows else None
        if rotation and not flows:
            *_, (_, _, flowing) = self._painted(f, through_B, flows=True)
        return Walk(torch.cat(tokens, dim=1), canvases, residuals, flowing)

    def _painted(
        self, f_BCHW: Tensor, through_B: Tensor | None, *, flows: bool
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each scale: its tokens, the residual it quantized, and the canvas after it."""
        canvas = torch.zeros_like(f_BCHW)
        for k, (tokens, contribution, z_NC) in enumerate(self._residual_pyramid(f_BCHW, flows=flows)):
            if through_B is not None:
                contribution = contribution * (k < through_B).view(-1, 1, 1, 1)
            canvas = canvas + contribution
            yield tokens, z_NC, canvas

    def rescaled(self, scales: Scales) -> MultiScaleQuantizer:
        """The same codebook and phis, walking other scales that end at the same size."""
        if scales.sizes[-1] != self.scales.sizes[-1]:
            raise InputError(f"scales: expected the last to be {self.scales.sizes[-1]}, got {scales.sizes[-1]}")
        other = copy.copy(self)
        other.scales = scales
        other.phi_of = nearest_phi(len(scales), len(self.phis)) if len(self.phis) else []
        other.gain_of = [self.gain_of[j] for j in nearest_scale(scales, self.scales)] if self.gain_of else []
        return other

    def _residual_pyramid(
        self, f_BCHW: Tensor, *, flows: bool = False, painted: Replace | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each scale: its tokens (B, h*w), their contribution, which the next residual lacks, and the residual.

        Gradients of contributions go to codes and phis. With `flows` they go to the features instead of the codes, also
        by way of the residual that a scale leaves to the next: rounding aside, this is the derivative of the walk.
        """
        residual = f_BCHW
        for k in range(len(self.scales)):
            z_BChw = self.pool(residual, k)
            tokens_Bhw = self.quantized(z_BChw.detach(), k)
            seen_Bhw = tokens_Bhw if painted is None else painted(k, tokens_Bhw)
            codes_BChw = self._passed_through(z_BChw, seen_Bhw, k) if flows else self.lookup(seen_Bhw)
            contribution = self.contribution(codes_BChw, k)
            residual = residual - (contribution if flows else contribution.detach())
            yield tokens_Bhw.flatten(1), contribution, z_BChw.permute(0, 2, 3, 1).flatten(0, 2)

    def _passed_through(self, z_BChw: Tensor, tokens_Bhw: Tensor, k: int) -> Tensor:
        """The codes of `lookup`, with a gradient to the vectors that they replace."""
        z_BhwC = (z_BChw / self._gain(k)).permute(0, 2, 3, 1)
        return self.codebook.through(z_BhwC, tokens_Bhw).permute(0, 3, 1, 2)

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


def evenness(tokens: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """For each scale's tokens: the entropy of each of their digits as a share of the largest possible, (G,)."""
    figures = []
    for part in tokens:
        shares = []
        for digit, size in zip(digits.split(part.flatten(), sizes).unbind(-1), sizes, strict=True):
            p = torch.bincount(digit, minlength=size).double() / len(digit)
            shares.append(torch.special.entr(p).sum() / math.log(size))
        figures.append(torch.stack(shares))
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
