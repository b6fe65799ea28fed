"""Matrix products in int8 on CPUs: weights quantized once, a scale a row; activations at each call, a scale a token.

    W ≈ w · Ŵ,   x ≈ r · x̂,   x Wᵀ ≈ r · w · (x̂ Ŵᵀ),   Ŵ in -127 .. 127, x̂ in -127 .. 127, summed in int32

Because a token's scale is its own, its product depends on no other token. The multiplication is torch's own kernel, the
one that `torch.compile` uses for quantized models. It takes activations as unsigned with a zero point of 128: signed
ones are as fast where there is AMX, and many times slower where there is AVX512-VNNI alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 127
ROOM = 126  # of activations: their scale is rounded to bfloat16, and 127 of a scale that was rounded down would be 128
ZERO = 128  # what stands for 0 in an unsigned byte
TINY = 1e-30  # scale of a token that is all zeros
KERNELS = ("qlinear_prepack", "qlinear_pointwise")
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
    weight_NK = weight_NK.detach().float()
    scales_N = weight_NK.abs().amax(dim=1).clamp_min(TINY) / LEVELS
    levels_NK = (weight_NK / scales_N[:, None]).round_().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(levels_NK, None)
    return Int8Weight(packed, scales_N, torch.zeros(len(scales_N), dtype=torch.int32), dtype)


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
