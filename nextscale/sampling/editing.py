"""Editing: functions given to `sampling.loop.generate(edit=...)` that replace codes before they are painted.

Ours: where the mask keeps, every scale takes the codes nearest to what the canvas still lacks of the picture there, so
that errors made beside it are corrected; no token is copied, and the encoder sees the repainted region filled from
around it. The release's way is here for parity and comparison: the picture's own
codes wherever the mask keeps. Hidden content leaks through its coarse codes, and residual codes stop fitting.

Shapes: B batch, C code channels, H W sides of the picture, L tokens of all scales, h w a scale's sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.errors import InputError
from nextscale.scales import Scales
from nextscale.tokenizer.quantizer import MultiScaleQuantizer, check_tokens

LEAST = 0.25  # share of a position that must be kept for it to be

# ---- what is kept ----------------------------------------------------------------------------------------------------


def filled(images_B3HW: Tensor, hole_B1HW: Tensor) -> Tensor:
    """The pictures with their holes filled smoothly from around them, whatever was inside; grey where all is hole.

    Pull and push (Gortler et al. 1996, section 3.4): averages of what is known at halved and halved sizes, and back up,
    each size filling what the finer one does not know.

    Arguments:
        images_B3HW: floats.
        hole_B1HW: bool, True inside.
    """
    known_B1HW = (~hole_B1HW).to(images_B3HW)
    values_B3HW = images_B3HW.masked_fill(hole_B1HW, 0)  # not a product: of what is inside even NaN must not reach out
    return _filled(values_B3HW, known_B1HW)


def _filled(values_B3HW: Tensor, known_B1HW: Tensor) -> Tensor:
    """`values` are 0 where `known`, 0 .. 1, is 0."""
    size = values_B3HW.shape[-2:]
    if size == (1, 1):
        return values_B3HW
    halved = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    weight_B1hw = F.adaptive_avg_pool2d(known_B1HW, halved)
    coarse_B3hw = F.adaptive_avg_pool2d(values_B3HW * known_B1HW, halved) / weight_B1hw.clamp(min=1e-12)
    below_B3hw = _filled(coarse_B3hw, (weight_B1hw > 0).to(weight_B1hw))
    smooth_B3HW = F.interpolate(below_B3hw, size, mode="bilinear", align_corners=False)
    return torch.where(known_B1HW > 0, values_B3HW, smooth_B3HW)


def known(scales: Scales, hole_B1HW: Tensor) -> Tensor:
    """The share of each position of the last grid that is kept: (B, 1, h_K, w_K) float32; `hole` is bool in pixels."""
    return F.interpolate((~hole_B1HW).float(), scales.sizes[-1], mode="area")


def kept(scales: Scales, known_B1HW: Tensor, *, keep_scales: int = 0) -> list[Tensor]:
    """For each scale the positions of which at least a quarter is kept: K of (B, 1, h_k, w_k) bool.

    A position stands for the area that `MultiScaleQuantizer.pool` averages for it. From less than a quarter, what is
    painted in the rest of it would be told by a sliver.

    Arguments:
        known_B1HW: of `known`.
        keep_scales: so many scales are kept everywhere, inside the hole too.
    """
    shares = [F.interpolate(known_B1HW, size, mode="area") for size in scales]
    return [share >= (0 if k < keep_scales else LEAST) for k, share in enumerate(shares)]


class Keeping:
    """An `Edit` for one walk, which paints tokens of its own where it keeps; `own` are these, as far as it has come."""

    def __init__(self, quantizer: MultiScaleQuantizer, keep: Sequence[Tensor]) -> None:
        self.quantizer, self.keep = quantizer, keep
        self.own: list[Tensor] = []

    def tokens(self, k: int) -> Tensor:
        """(B, h_k, w_k) int64, of which those count that are kept."""
        raise NotImplementedError

    def __call__(self, k: int, codes_BChw: Tensor) -> Tensor:
        self.own.append(self.tokens(k))
        return torch.where(self.keep[k], self.quantizer.lookup(self.own[k]), codes_BChw)

    def painted(self, drawn_BL: Tensor) -> Tensor:
        """(B, L) int64: all that was painted, its own tokens and those drawn beside them."""
        own_BL = torch.cat([tokens.flatten(1) for tokens in self.own], dim=1)
        keep_BL = torch.cat([keep.expand(len(own_BL), -1, -1, -1).flatten(1) for keep in self.keep], dim=1)
        return torch.where(keep_BL, own_BL, drawn_BL)


class ResidualEdit(Keeping):
    """Kept positions take the code nearest to what the canvas still lacks of the picture, where that is kept.

    z_k = nearest(pool_k(m (f - f_hat_(k-1))) / pool_k(m)): Algorithm 1 of the paper against the canvas as it was
    painted, what was drawn beside it included, so that each scale takes back what the one before put over the border;
    and averaged over the share m that is kept, so that what lies in the hole has no say in it.

    Arguments:
        quantizer: of the tokenizer.
        f_BCHW: the picture's features, not quantized.
        keep: K of (B, 1, h_k, w_k) bool, such as `kept` gives.
        known_B1HW: m, such as `known` gives.
    """

    def __init__(
        self, quantizer: MultiScaleQuantizer, f_BCHW: Tensor, keep: Sequence[Tensor], known_B1HW: Tensor
    ) -> None:
        super().__init__(quantizer, keep)
        self._lacking_BCHW, self._known_B1HW = f_BCHW, known_B1HW

    def tokens(self, k: int) -> Tensor:
        """See `Keeping`."""
        share_B1hw = self.quantizer.pool(self._known_B1HW, k).clamp(min=LEAST)
        z_BChw = self.quantizer.pool(self._lacking_BCHW * self._known_B1HW, k) / share_B1hw
        return self.quantizer.quantized(z_BChw, k)

    def __call__(self, k: int, codes_BChw: Tensor) -> Tensor:
        codes_BChw = super().__call__(k, codes_BChw)
        self._lacking_BCHW = self._lacking_BCHW - self.quantizer.contribution(codes_BChw, k)
        return codes_BChw


class CopyEdit(Keeping):
    """Kept positions take the picture's own tokens (B, L), whatever was painted beside them before."""

    def __init__(self, quantizer: MultiScaleQuantizer, tokens_BL: Tensor, keep: Sequence[Tensor]) -> None:
        super().__init__(quantizer, keep)
        self._tokens = quantizer.scales.split(tokens_BL.to(quantizer.device))

    def tokens(self, k: int) -> Tensor:
        """See `Keeping`."""
        return self._tokens[k]


def composed(painted_B3HW: Tensor, images_B3HW: Tensor, mask_B1HW: Tensor) -> Tensor:
    """The painted pictures where the mask is 1, the given ones, bit for bit, where it is 0, and mixtures in between."""
    mixed_B3HW = images_B3HW + mask_B1HW * (painted_B3HW - images_B3HW)
    return torch.where(mask_B1HW == 0, images_B3HW, torch.where(mask_B1HW == 1, painted_B3HW, mixed_B3HW))


def feathered(mask_B1HW: Tensor, width: int) -> Tensor:
    """The mask with a border that falls from 1 to 0 over `width` pixels, inside of it: what it kept stays kept."""
    if not width:
        return mask_B1HW
    inside = F.pad(mask_B1HW, (width,) * 4, value=1.0)
    eroded = -F.max_pool2d(-inside, 2 * width + 1, stride=1)
    blurred = F.avg_pool2d(F.pad(eroded, (width,) * 4, mode="replicate"), 2 * width + 1, stride=1)
    return torch.minimum(mask_B1HW, blurred)


# ---- the release's way -----------------------------------------------------------------------------------------------

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


def release_edit(quantizer: MultiScaleQuantizer, tokens_BL: Tensor, keep: Tensor) -> CopyEdit:
    """Keep parts of a picture as the release does; the rest is whatever is sampled.

    At each scale the mask is resized bilinearly and what exceeds 0.5 is kept; a map of one token is always kept.

    Arguments:
        quantizer: of the tokenizer.
        tokens_BL: (B, L) int64, the pictures' tokens, all scales.
        keep: (h_K, w_K) or (B, h_K, w_K), bool or float, 1 = keep.

    Raises `InputError` for tokens or a mask of another shape.
    """
    scales = quantizer.scales
    check_tokens(tokens_BL, scales.total, quantizer.codes)
    grid = (scales.height, scales.width)
    if tuple(keep.shape) not in (grid, (len(tokens_BL), *grid)):
        raise InputError(f"mask: expected shape {grid} or {(len(tokens_BL), *grid)}, got {tuple(keep.shape)}")
    keep_B1HW = keep.to(quantizer.device, torch.float32).expand(len(tokens_BL), *grid)[:, None]
    resized = [F.interpolate(keep_B1HW, size, mode="bilinear", align_corners=False) > 0.5 for size in scales]
    whole = [torch.ones_like(keep) if keep[0].numel() == 1 else keep for keep in resized]
    return CopyEdit(quantizer, tokens_BL, whole)
