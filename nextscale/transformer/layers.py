"""The parts of a block: modulation, attention, feed-forward. They know nothing of scales, tokens or classes.

`MATRICES` names the layers whose weights are matrices from hidden channels to hidden channels, and how many matrices
each weight stacks: an optimiser may treat those in another way (`training.muon`).
Shapes: B batch, L positions, D width, H heads, d head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.config import Activation, TextConfig, TransformerConfig
from nextscale.machine.int8 import Int8Weight

MAX_TEMPERATURE = math.log(100)
SCORES = 4 << 20  # bytes of attention scores at a time on CPUs: what the last level of their cache holds easily
Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Look = Callable[[Tensor, Tensor, Tensor, float], Tensor]
Drop = Callable[[Tensor], Tensor]


class Modulation(NamedTuple):
    """What the class does to one branch of a block; each (B, 1, D)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def modulate(x_BLD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """AdaLN: norm(x) * (1 + scale) + shift, the norm without gains of its own."""
    return torch.addcmul(shift, F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=1e-6), scale + 1)


def linear(x: Tensor, weight: Tensor | Int8Weight, bias: Tensor, *, gelu: bool = False) -> Tensor:
    """x weight^T + bias, then GELU (tanh) if asked; `weight` may be prepacked, which fuses the GELU, or in int8."""
    if isinstance(weight, Int8Weight):
        return weight.product(x, bias, gelu=gelu)
    if weight.is_mkldnn:
        activation, kind = ("gelu", "tanh") if gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], kind)
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") if gelu else y


class Attention(nn.Module):
    """Multi-head attention; `remember` stores this call's keys and values and returns all there are, `look` attends."""

    MATRICES: ClassVar[Mapping[str, int]] = {"qkv": 3, "out": 1}

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(config.width))
        self.v_bias = nn.Parameter(torch.empty(config.width))
        self.temperature = nn.Parameter(torch.empty(config.heads, 1, 1)) if config.normalized_attention else None
        self.scale = 1.0 if config.normalized_attention else 0.25 / math.sqrt(config.head_dim)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x_BLD: Tensor, remember: Remember, look: Look | None = None) -> Tensor:
        qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = linear(x_BLD, self.qkv.weight, qkv_bias.to(self.qkv.weight.dtype))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, L, d)
        if self.temperature is not None:
            q = F.normalize(q, dim=-1) * self.temperature.clamp_max(MAX_TEMPERATURE).exp().to(q.dtype)
            k = F.normalize(k, dim=-1)
        k, v = remember(k.to(v.dtype), v)
        h = (look or attend)(q.to(v.dtype), k, v, self.scale)
        return linear(h.transpose(1, 2).flatten(2), self.out.weight, self.out.bias)


def attend(q_BHLd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T) v, (B, H, L, d).

    On CPUs with fast bf16 products the fused kernel is the slow one: sampling a picture of VAR-d16 spends 300 ms in it
    against 140 in plain products whose scores stay in the cache.
    """
    if q_BHLd.device.type == "cpu" and q_BHLd.dtype == torch.bfloat16 and not q_BHLd.requires_grad:
        return attend_in_parts(q_BHLd * scale if scale != 1 else q_BHLd, k_BHSd, v_BHSd)
    return F.scaled_dot_product_attention(q_BHLd, k_BHSd, v_BHSd, scale=scale)


def attend_in_parts(q_BHLd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor) -> Tensor:
    """softmax(q k^T) v, (B, H, L, d), so many heads at a time that their scores fit in `SCORES` bytes."""
    batch, heads, length, _ = q_BHLd.shape
    together = SCORES // (length * k_BHSd.shape[2] * q_BHLd.element_size())
    if together >= batch * heads:
        return (q_BHLd @ k_BHSd.transpose(-1, -2)).softmax(dim=-1) @ v_BHSd
    h_BHLd = torch.empty_like(q_BHLd, memory_format=torch.contiguous_format)
    for b in range(batch):
        for first in range(0, heads, max(together, 1)):
            some = slice(first, first + max(together, 1))
            scores = torch.bmm(q_BHLd[b, some], k_BHSd[b, some].transpose(-1, -2))
            torch.bmm(scores.softmax(dim=-1), v_BHSd[b, some], out=h_BHLd[b, some])
    return h_BHLd


class Words(NamedTuple):
    """What one block sees of a picture's text: T places, the same at every scale."""

    keys: Tensor
    """(B, heads of the text, T, d)."""
    values: Tensor
    mask: Tensor
    """(B, 1, 1, T) bool, True where there is something."""


class TextKeys(nn.Module):
    """A block's keys and values of the text. Apart from `CrossAttention`, as they are made once a picture."""

    MATRICES: ClassVar[Mapping[str, int]] = {"kv": 2}

    def __init__(self, config: TransformerConfig, text: TextConfig) -> None:
        super().__init__()
        self.heads, self.normalized = text.heads, config.normalized_attention
        self.kv = nn.Linear(text.width, 2 * text.width)

    def forward(self, states_BTD: Tensor, mask_BT: Tensor) -> Words:
        kv = self.kv(states_BTD.to(self.kv.weight.dtype))
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k = F.normalize(k, dim=-1) if self.normalized else k
        return Words(k.to(v.dtype), v, mask_BT[:, None, None])


class CrossAttention(nn.Module):
    """Attention to the text, as wide as the text is, added to the residual stream.

    The output projection begins at 0. A gate of D numbers that begins at 0 does, too, what a model of classes did, but
    takes five times as many steps to let words through: what a gate's gradient sees is the mean over all texts.
    """

    MATRICES: ClassVar[Mapping[str, int]] = {"query": 1, "out": 1}

    def __init__(self, config: TransformerConfig, text: TextConfig) -> None:
        super().__init__()
        self.heads = text.heads
        self.query = nn.Linear(config.width, text.width)
        self.temperature = nn.Parameter(torch.empty(text.heads, 1, 1)) if config.normalized_attention else None
        self.scale = 1.0 if config.normalized_attention else 0.25 / math.sqrt(text.head_dim)
        self.out = nn.Linear(text.width, config.width)

    def forward(self, x_BLD: Tensor, words: Words) -> Tensor:
        h_BLD = F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=1e-6)
        q = linear(h_BLD, self.query.weight, self.query.bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if self.temperature is not None:
            q = F.normalize(q, dim=-1) * self.temperature.clamp_max(MAX_TEMPERATURE).exp().to(q.dtype)
        h = attend_to_words(q.to(words.values.dtype), words, self.scale)
        return x_BLD + linear(h.transpose(1, 2).flatten(2), self.out.weight, self.out.bias)


def attend_to_words(q_BHLd: Tensor, words: Words, scale: float) -> Tensor:
    """softmax(scale * q k^T) v over the places of the text that are there, (B, H, L, d).

    In plain products, as the fused kernel is slower on CPUs where so few keys are masked.
    """
    k, v, mask = words
    if q_BHLd.device.type != "cpu":
        return F.scaled_dot_product_attention(q_BHLd, k, v, attn_mask=mask, scale=scale)
    scores = (q_BHLd * scale if scale != 1 else q_BHLd) @ k.transpose(-1, -2)
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1).to(v.dtype) @ v


class FeedForward(nn.Module):
    """Linear, GELU (tanh), linear."""

    MATRICES: ClassVar[Mapping[str, int]] = {"up": 1, "down": 1}

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.opened)
        self.down = nn.Linear(config.feed_forward, config.width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return linear(self.inside(x_BLD), self.down.weight, self.down.bias)

    def inside(self, x_BLD: Tensor) -> Tensor:
        return linear(x_BLD, self.up.weight, self.up.bias, gelu=True)


class SquaredFeedForward(FeedForward):
    """Linear, the square of ReLU, linear (So et al. 2021, arXiv:2109.08668)."""

    def inside(self, x_BLD: Tensor) -> Tensor:
        return F.relu(linear(x_BLD, self.up.weight, self.up.bias)).square()


class GatedFeedForward(FeedForward):
    """SwiGLU: SiLU of one linear times another, linear (Shazeer 2020, arXiv:2002.05202)."""

    MATRICES: ClassVar[Mapping[str, int]] = {"up": 2, "down": 1}

    def inside(self, x_BLD: Tensor) -> Tensor:
        gate, value = linear(x_BLD, self.up.weight, self.up.bias).chunk(2, dim=-1)
        return F.silu(gate) * value


FEED_FORWARDS: dict[Activation, type[FeedForward]] = {
    "gelu": FeedForward,
    "relu2": SquaredFeedForward,
    "swiglu": GatedFeedForward,
}


class Block(nn.Module):
    """Attention, then feed-forward, each modulated by the class and gated onto the residual stream.

    Between them attention to the text, in a model that reads text.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FEED_FORWARDS[config.activation](config)
        if config.shared_modulation:
            self.modulation_table = nn.Parameter(torch.empty(1, 1, 6, config.width))
        else:
            self.modulation = nn.Linear(config.width, 6 * config.width)
        if config.text is not None:
            self.text_keys = TextKeys(config, config.text)
            self.cross_attention = CrossAttention(config, config.text)

    @property
    def gates(self) -> Tensor:
        """What both gates are before the class moves them; a view."""
        if hasattr(self, "modulation_table"):
            return self.modulation_table[:, :, :2]
        return self.modulation.bias[: 2 * self.modulation.in_features]

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
        look: Look | None = None,
        words: Words | None = None,
    ) -> Tensor:
        first, second = modulations
        h = self.attention(modulate(x_BLD, first.shift, first.scale), remember, look)
        x_BLD = torch.addcmul(x_BLD, h, first.gate)
        x_BLD = x_BLD if words is None else self.cross_attention(x_BLD, words)
        h = self.feed_forward(modulate(x_BLD, second.shift, second.scale))
        return torch.addcmul(x_BLD, h, second.gate)


class DropPath:
    """Stochastic depth: a block's branch is left out for a random image, the others scaled up to keep the mean.

    Arguments:
        rate: of the last block; it grows linearly from 0 at the first.
        generator: the caller's; on the device of the activations.
        batch, part: where a batch is walked in parts, as by several processes: how many images it has, and which of
            them are walked here. What is dropped then does not depend on how it is cut.
    """

    def __init__(
        self, rate: float, generator: torch.Generator, *, batch: int | None = None, part: slice = slice(None)
    ) -> None:
        self.rate, self.generator, self.batch, self.part = rate, generator, batch, part

    def of_block(self, index: int, depth: int) -> Drop | None:
        """The function that drops a branch of block `index` of `depth` by its gate; None where nothing is dropped."""
        rate = self.rate * index / max(depth - 1, 1)
        return (lambda gate_B1D: self._drop(gate_B1D, 1 - rate)) if rate else None

    def _drop(self, gate_B1D: Tensor, keep: float) -> Tensor:
        shape = (self.batch or len(gate_B1D), 1, 1)
        draw = torch.rand(shape, generator=self.generator, dtype=torch.float32, device=gate_B1D.device)[self.part]
        return gate_B1D * ((draw < keep).to(gate_B1D.dtype) / keep)
