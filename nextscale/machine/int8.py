"""Products in int8 on CPUs: weights quantized once, a scale a row; activations at each call, a scale a token.

    W ≈ w · Ŵ,   x ≈ r · x̂,   x Wᵀ ≈ r · w · (x̂ Ŵᵀ),   Ŵ in -127 .. 127, x̂ in -127 .. 127, summed in int32

Because a token's scale is its own, its product depends on no other token. A convolution has one scale and one zero
point for all of its input, so that one picture at a time is given to it. The multiplication is torch's own kernel, the
one that `torch.compile` uses for quantized models. It takes activations as unsigned with a zero point of 128: signed
ones are as fast where there is AMX, and many times slower where there is AVX512-VNNI alone.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 127
ROOM = 126  # of activations: their scale is rounded to bfloat16, and 127 of a scale that was rounded down would be 128
ZERO = 128  # what stands for 0 in an unsigned byte
TINY = 1e-30  # scale of a token that is all zeros
KERNELS = ("qlinear_prepack", "qlinear_pointwise", "qconv_prepack", "qconv_pointwise")
BITS = {torch.float32: (torch.int32, 0x7FFF_FFFF), torch.bfloat16: (torch.int16, 0x7FFF)}


def multiplies_int8_fast(device: torch.device) -> bool:
    """CPUs with AMX or AVX512-VNNI, and a torch with kernels for them."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("amx_int8") or capabilities.get("avx512_vnni")
    return bool(fast) and all(hasattr(torch.ops.onednn, name) for name in KERNELS)


def multiplies_with_amx() -> bool:
    """Whether the kernels use AMX: where it is, unless ONEDNN_MAX_CPU_ISA names a set of instructions before it."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return bool(torch.cpu.get_capabilities().get("amx_int8")) and (allowed in ("", "DEFAULT") or "AMX" in allowed)


@dataclass(frozen=True)
class Int8Weight:
    """The weight of a linear layer in int8, (N, K), in the layout that the kernel likes."""

    packed: Tensor
    scales: Tensor
    """w, (N,) float32."""
    zeros: Tensor
    """(N,) int32, all 0: the range of weights is symmetric."""
    dtype: torch.dtype
    """Of what it takes and gives: bfloat16 or float32."""

    def product(self, x: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor:
        """x (..., K) weightᵀ + bias, then GELU if asked: (..., N).

        GELU here is the exact one. What models are trained with, its approximation by tanh, is nowhere further from it
        than 0.0005, less than the rounding of either, and takes five times as long.
        """
        rows_MK = x.flatten(0, -2)
        scales_M1 = token_scales(rows_MK)
        bytes_MK = quantized(rows_MK, scales_M1)
        y_MN = torch.ops.onednn.qlinear_pointwise(
            bytes_MK, 1.0, ZERO, self.packed, self.scales, self.zeros, None, 1.0, 0, self.dtype, "none", [], ""
        )
        y_MN = torch.addcmul(bias, y_MN, scales_M1, out=y_MN)
        return (F.gelu(y_MN) if gelu else y_MN).unflatten(0, x.shape[:-1])


def int8_weight(weight_NK: Tensor, dtype: torch.dtype) -> Int8Weight:
    """A weight quantized for activations of `dtype`; each output channel has a scale of its own."""
    levels_NK, scales_N = levels_of(weight_NK.detach().float())
    packed = torch.ops.onednn.qlinear_prepack(levels_NK, None)
    return Int8Weight(packed, scales_N, torch.zeros(len(scales_N), dtype=torch.int32), dtype)


def levels_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of N output channels, (N, ...) float32, as int8 of the same shape, and the scale of each, (N,)."""
    scales_N = weight.flatten(1).abs().amax(dim=1).clamp_min(TINY) / LEVELS
    levels = weight / scales_N.view(-1, *[1] * (weight.ndim - 1))
    return levels.round_().to(torch.int8), scales_N


def token_scales(x_MK: Tensor) -> Tensor:
    """r = max |x| / 126 of each row, (M, 1), in the dtype of x.

    Magnitudes are compared as the integers whose bits they are, which takes a third of the time.
    """
    integer, magnitude = BITS[x_MK.dtype]
    largest_M1 = x_MK.view(integer).bitwise_and(magnitude).amax(dim=-1, keepdim=True).view(x_MK.dtype)
    return (largest_M1 / ROOM).clamp_min_(TINY)


def quantized(x_MK: Tensor, scales_M1: Tensor) -> Tensor:
    """x̂ + 128 as unsigned bytes, (M, K). By way of signed ones: torch converts to these four times as fast."""
    signed = (x_MK / scales_M1).round_().to(torch.int8)
    return signed.view(torch.uint8).bitwise_xor_(ZERO)


class Int8Convolution(nn.Module):
    """A convolution in int8 of one picture, (1, C, H, W) channels last, in the dtype that the picture has.

    Arguments:
        layer: with a bias, and without groups.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        levels, self.scales = levels_of(layer.weight.detach().float())
        self.zeros = torch.zeros(len(levels), dtype=torch.int32)
        self.bias = None if layer.bias is None else layer.bias.detach().float()
        self.geometry = [*layer.stride], [int(side) for side in layer.padding], [*layer.dilation], 1
        self.packed = torch.ops.onednn.qconv_prepack(levels, self.scales, 1.0, ZERO, *self.geometry)

    def forward(self, x_1CHW: Tensor) -> Tensor:
        assert len(x_1CHW) == 1, "the scale of a picture must not depend on others"
        scale, zero = picture_scale(x_1CHW)
        weight = self.packed, self.scales, self.zeros, self.bias
        quantized = picture_bytes(x_1CHW, scale, zero)
        kernel = torch.ops.onednn.qconv_pointwise
        y: Tensor = kernel(quantized, scale, zero, *weight, *self.geometry, 1.0, 0, x_1CHW.dtype, "none", [], "")
        return y


def picture_scale(x_1CHW: Tensor) -> tuple[float, int]:
    """What a level is, and which stands for 0, in 1 .. 254: after SiLU most of the range is above it.

    Of values that are not finite NaN, which every product then is.
    """
    low, high = (float(end) for end in torch.aminmax(x_1CHW.permute(0, 2, 3, 1)))
    low, high = min(low, 0.0), max(high, 0.0)
    if not math.isfinite(high - low):
        return math.nan, ZERO
    steps = float(torch.tensor(2 * ROOM / max(high - low, TINY), dtype=x_1CHW.dtype))  # torch adds in steps so rounded
    return 1 / steps, 1 + round(-low * steps)


def picture_bytes(x_1CHW: Tensor, scale: float, zero: int) -> Tensor:
    """Round(x / scale) + zero as unsigned bytes."""
    signed = torch.add(torch.tensor(float(zero - ZERO), dtype=x_1CHW.dtype), x_1CHW, alpha=1 / scale)
    return signed.round_().to(torch.int8).view(torch.uint8).bitwise_xor_(ZERO)
