"""The parts of a block: modulation, attention, feed-forward. They know nothing of scales, tokens or classes.

Shapes: B batch, L positions, D width, H heads, d head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.config import TransformerConfig

MAX_TEMPERATURE = math.log(100)
Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Drop = Callable[[Tensor], Tensor]


class Modulation(NamedTuple):
    """What the class does to one branch of a block; each (B, 1, D)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def modulate(x_BLD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """AdaLN: norm(x) * (1 + scale) + shift, the norm without gains of its own."""
    return F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=1e-6).mul(scale + 1).add(shift)


class Attention(nn.Module):
    """Multi-head attention; `remember` stores this call's keys and values and returns all there are."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(config.width))
        self.v_bias = nn.Parameter(torch.empty(config.width))
        self.temperature = nn.Parameter(torch.empty(config.heads, 1, 1)) if config.normalized_attention else None
        self.scale = 1.0 if config.normalized_attention else 0.25 / math.sqrt(config.head_dim)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x_BLD: Tensor, remember: Remember, bias_LL: Tensor | None = None) -> Tensor:
        qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x_BLD, self.qkv.weight, qkv_bias.to(self.qkv.weight.dtype))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, L, d)
        if self.temperature is not None:
            q = F.normalize(q, dim=-1) * self.temperature.clamp_max(MAX_TEMPERATURE).exp().to(q.dtype)
            k = F.normalize(k, dim=-1)
        k, v = remember(k.to(v.dtype), v)
        h = attend(q.to(v.dtype), k, v, None if bias_LL is None else bias_LL.to(v.dtype), scale=self.scale)
        return self.out(h.transpose(1, 2).flatten(2))


def attend(q_BHLd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, bias_LL: Tensor | None, *, scale: float) -> Tensor:
    """softmax(scale * q k^T + bias) v, (B, H, L, d).

    With a bias on a CPU as plain products: there the fused kernel's backward takes five times as long (64 x 3 heads of
    64 channels, L = 130, bf16: 107 against 24 ms a layer).
    """
    if bias_LL is None or q_BHLd.device.type != "cpu":
        return F.scaled_dot_product_attention(q_BHLd, k_BHLd, v_BHLd, attn_mask=bias_LL, scale=scale)
    with torch.autocast("cpu", enabled=False):
        return ((q_BHLd * scale) @ k_BHLd.transpose(-1, -2) + bias_LL).softmax(dim=-1) @ v_BHLd


class FeedForward(nn.Module):
    """Linear, GELU (tanh), linear."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.feed_forward)
        self.down = nn.Linear(config.feed_forward, config.width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BLD), approximate="tanh"))


class Block(nn.Module):
    """Attention, then feed-forward, each modulated by the class and gated onto the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        if config.shared_modulation:
            self.modulation_table = nn.Parameter(torch.empty(1, 1, 6, config.width))
        else:
            self.modulation = nn.Linear(config.width, 6 * config.width)

    def modulations(self, condition_BD: Tensor, shared_B16D: Tensor | None) -> tuple[Modulation, Modulation]:
        """Of the two branches, from SiLU(condition); `shared_B16D` is the shared projection where there is one.

        Order of the six, as in the release's weights: gate, gate, scale, scale, shift, shift.
        """
        if shared_B16D is not None:
            six = self.modulation_table + shared_B16D
        else:
            weight = self.modulation.weight
            six = self.modulation(F.silu(condition_BD).to(weight.dtype)).unflatten(-1, (6, -1)).unsqueeze(1)
        gate1, gate2, scale1, scale2, shift1, shift2 = six.unbind(2)
        return Modulation(shift1, scale1, gate1), Modulation(shift2, scale2, gate2)

    def forward(
        self,
        x_BLD: Tensor,
        modulations: tuple[Modulation, Modulation],
        remember: Remember,
        bias_LL: Tensor | None = None,
        drop: Drop | None = None,
    ) -> Tensor:
        first, second = modulations
        keep = drop or _everything
        h = self.attention(modulate(x_BLD, first.shift, first.scale), remember, bias_LL)
        x_BLD = x_BLD + keep(h * first.gate)
        h = self.feed_forward(modulate(x_BLD, second.shift, second.scale))
        return x_BLD + keep(h * second.gate)


def _everything(branch: Tensor) -> Tensor:
    return branch


class DropPath:
    """Stochastic depth: a block's branch is left out for a random image, the others scaled up to keep the mean.

    Arguments:
        rate: of the last block; it grows linearly from 0 at the first.
        generator: the caller's; on the device of the activations.
    """

    def __init__(self, rate: float, generator: torch.Generator) -> None:
        self.rate, self.generator = rate, generator

    def of_block(self, index: int, depth: int) -> Drop | None:
        """The function that drops a branch of block `index` of `depth`; None where nothing is dropped."""
        rate = self.rate * index / max(depth - 1, 1)
        return (lambda branch_BLD: self._drop(branch_BLD, 1 - rate)) if rate else None

    def _drop(self, branch_BLD: Tensor, keep: float) -> Tensor:
        shape = (len(branch_BLD), 1, 1)
        draw = torch.rand(shape, generator=self.generator, device=branch_BLD.device)
        return branch_BLD * ((draw < keep).to(branch_BLD.dtype) / keep)
