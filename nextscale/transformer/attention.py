"""Block-causal attention over a whole sequence: queries of a scale look at the keys of all scales up to their own.

The mask of all positions by all positions is full of nothing: at the 256 px schedule 38 % of the products are thrown
away. So it is split: the small scales at the start are masked together, each large one looks at what it may, unmasked.

Shapes: B batch, H heads, N = B H, L positions, d head dimension; l queries and s keys of a part.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._compile import _disable_dynamo

from nextscale.machine.precision import as_held
from nextscale.scales import Scales
from nextscale.transformer.layers import SCORES, Look

LARGE = 64  # tokens of a scale from which on it gets products of its own


class Part(NamedTuple):
    """Queries `start .. stop - 1` look at keys `first .. stop - 1`, but for the hidden ones."""

    start: int
    stop: int
    hidden: Tensor | None = None
    """(stop, stop) bool, True where a query must not look; of a part that begins at 0 and holds several scales."""
    first: int = 0


def block_causal(scales: Scales, device: torch.device, reach: int | None = None) -> Look:
    """Attention of all L queries to all L keys in which finer scales are not seen.

    Of the others only the last `reach`, the query's own counted, if that is given.

    Exact. A layer forward and backward at the 256 px schedule in bfloat16, 4 x 16 heads, one core with AVX512-BF16: 239
    ms under the dense mask, 134 split and left to autograd, 79 split in `_Split`; at 32 x 6 heads and L = 130: 23, 18
    and 15; in float32 at 4 x 8 heads 268, 130 and 102. The fused kernel is slower there, with the mask (4 x 8 heads,
    bfloat16: 156 ms, where the others take 86, 48 and 41) and split (101). Other devices run the fused kernel on the
    same parts.
    """
    of_scales = parts(scales, device, reach)

    def look(q_BHLd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, scale: float) -> Tensor:
        kernel = split if q_BHLd.device.type == "cpu" else fused
        return kernel(q_BHLd, k_BHLd, v_BHLd, of_scales, scale)

    return look


def parts(scales: Scales, device: torch.device, reach: int | None = None) -> list[Part]:
    """Of the sequence, in order: the scales before the first large one, masked; each of the others alone."""
    together = next((k for k, length in enumerate(scales.lengths) if length >= LARGE), len(scales))
    slices, firsts = scales.slices(), scales.firsts(reach)
    large = [Part(slices[k].start, slices[k].stop, first=firsts[k]) for k in range(together, len(scales))]
    if together == 0:
        return large
    stop = slices[together - 1].stop
    hidden = ~scales.block_causal_mask(reach)[:stop, :stop]
    return [Part(0, stop, hidden.to(device) if together > 1 else None), *large]


def fused(q_BHLd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, parts: list[Part], scale: float) -> Tensor:
    """Each part by torch's fused kernel, (B, H, L, d)."""
    seen = [
        F.scaled_dot_product_attention(
            q_BHLd[:, :, start:stop],
            k_BHLd[:, :, first:stop],
            v_BHLd[:, :, first:stop],
            attn_mask=None if hidden is None else ~hidden,
            scale=scale,
        )
        for start, stop, hidden, first in parts
    ]
    return torch.cat(seen, dim=2)


def split(q_BHLd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, parts: list[Part], scale: float) -> Tensor:
    """Each part in plain products whose scores stay in the cache, (B, H, L, d); `torch.compile` calls them as they are.

    Whoever does not compile is spared the import of the compiler, 1.3 s.
    """
    may_be_compiled = torch.compiler.is_compiling() or "torch._dynamo" in sys.modules
    run = _uncompiled_products if may_be_compiled else _products
    return run(q_BHLd, k_BHLd, v_BHLd, parts, scale)


def _products(q_BHLd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, parts: list[Part], scale: float) -> Tensor:
    with as_held(q_BHLd.device):  # which would do the softmax in float32
        q = q_BHLd * scale if scale != 1 else q_BHLd
        flat = (x.contiguous().flatten(0, 1) for x in (q, k_BHLd, v_BHLd))
        out: Tensor = _Split.apply(*flat, parts)
        return out.view(q_BHLd.shape)


_uncompiled_products = _disable_dynamo(_products)  # `torch.compiler.disable`, which imports what it is for when called


class _Split(torch.autograd.Function):
    """softmax(q k^T) v part by part, (N, L, d), so many heads at a time that their scores stay in the cache.

    Autograd would fill a gradient of all keys with zeros for each part and add them up; here each part adds to what is
    there.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: list[Part]) -> Tensor:
        out, kept = torch.empty_like(q), []
        for heads in _heads(q, parts):
            for start, stop, hidden, first in parts:
                scores = torch.bmm(q[heads, start:stop], k[heads, first:stop].transpose(1, 2))
                if hidden is not None:
                    scores.masked_fill_(hidden, -torch.inf)
                weights_Nls = scores.softmax(dim=-1)
                out[heads, start:stop] = torch.bmm(weights_Nls, v[heads, first:stop])
                if any(ctx.needs_input_grad):
                    kept.append(weights_Nls)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.parts = parts
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        check_once("block-causal attention")
        q, k, v, *kept = ctx.saved_tensors
        out, remaining = grads[0].contiguous(), iter(kept)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for heads in _heads(q, ctx.parts):
            for start, stop, _, first in ctx.parts:
                of_part, weights_Nls = out[heads, start:stop], next(remaining)
                looked = torch.bmm(of_part, v[heads, first:stop].transpose(1, 2))
                scores = torch.ops.aten._softmax_backward_data(looked, weights_Nls, -1, weights_Nls.dtype)
                dq[heads, start:stop] = torch.bmm(scores, k[heads, first:stop])
                dk[heads, first:stop] += torch.bmm(scores.transpose(1, 2), q[heads, start:stop])
                dv[heads, first:stop] += torch.bmm(weights_Nls.transpose(1, 2), of_part)
        return dq, dk, dv, None


def check_once(what: str) -> None:
    """For a hand-written `backward`: raise `RuntimeError` where its own gradient is asked for, which it has not got.

    torch's `once_differentiable` gives zeros in silence where the gradient that comes in needs none itself.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{what} cannot be differentiated twice: expected create_graph=False, got True")


def _heads(q: Tensor, parts: list[Part]) -> list[slice]:
    """Which of the N heads go together."""
    largest = max((part.stop - part.start) * part.stop for part in parts) * q.element_size()
    together = max(1, SCORES // largest)
    return [slice(first, first + together) for first in range(0, len(q), together)]
