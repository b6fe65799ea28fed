"""How likely the transformer takes tokens to be that are there already, and how unsure it was of them.

A discrete autoregressive model tells both exactly, in one pass with teacher forcing: log p(tokens | class, text) is the
sum of what each token has given all coarser scales. What is told here is about tokens; pixels are the tokenizer's.

Shapes: B pictures, L positions, K scales, D width, V codes, N candidates; n positions of a chunk, g digits of m values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextscale import digits
from nextscale.scales import Scales
from nextscale.transformer.model import VAR, Condition

LOGITS = {"cpu": 8 << 20, "accelerator": 256 << 20}  # bytes of float32 logits at a time
Reading = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""(logits (n, V) float32, tokens (n,), sizes of the head's groups) -> (n,), what is read off a token's distribution."""


# log p(x | c) = sum_k sum_i log p(x_ki | x_<k, c): tokens of one scale are independent given the coarser ones
@dataclass(frozen=True, eq=False)
class Likelihood:
    """Of B pictures. In nats, unless it says otherwise: divided by ln 2 they are bits."""

    tokens: Tensor
    """(B, L) float32: log p of each token given class, text and all coarser scales, at most 0."""
    entropy: Tensor
    """(B, L) float32: of the distribution each token was predicted with, 0 where the model is sure, ln V at most."""
    sizes: Scales
    """Of the maps that the L positions are."""
    pixels: int
    """Height times width of a picture."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def images(self) -> Tensor:
        """(B,) float64: log p of each picture's tokens."""
        return self.tokens.double().sum(dim=1)

    @property
    def scales(self) -> Tensor:
        """(B, K) float64: log p of each scale's tokens, given all coarser ones."""
        return by_scale(self.tokens, self.sizes)

    @property
    def bits_per_pixel(self) -> Tensor:
        """(B,) float64: the length of a picture's tokens, -log2 p, over its pixels (of three channels each)."""
        return -self.images / (math.log(2) * self.pixels)

    def maps(self, values_BL: Tensor) -> list[Tensor]:
        """`tokens`, `entropy` or others like them as K maps (B, h_k, w_k), coarse to fine."""
        return self.sizes.split(values_BL)


@dataclass(frozen=True, eq=False)
class Classified:
    """Of B pictures, how likely each is under each of N candidates."""

    scales: Tensor
    """(B, N, K) float64: log p in nats of each scale's tokens under each candidate."""
    names: tuple[str, ...]
    """Of the candidates."""

    def __len__(self) -> int:
        return len(self.scales)

    @property
    def log_likelihoods(self) -> Tensor:
        """(B, N) float64 in nats."""
        return self.scales.sum(dim=-1)

    # p(c | x) = p(x | c) p(c) / sum_c' p(x | c') p(c'), all p(c) equal
    @property
    def probabilities(self) -> Tensor:
        """(B, N) float64: of the candidates, if they were equally frequent and nothing else could be."""
        return self.log_likelihoods.softmax(dim=-1)

    @property
    def best(self) -> Tensor:
        """(B,) int64: the likeliest candidate, of equal ones the first."""
        return self.log_likelihoods.argmax(dim=-1)

    def through(self, scales: int) -> Classified:
        """By the first scales alone."""
        return Classified(self.scales[..., :scales], self.names)


def by_scale(values_BL: Tensor, sizes: Scales) -> Tensor:
    """Sums over the tokens of each scale, (B, K) float64."""
    return torch.stack([part.double().sum(dim=(1, 2)) for part in sizes.split(values_BL)], dim=1)


def read(
    transformer: VAR, condition: Condition, inputs_BLC: Tensor, tokens_BL: Tensor, readings: Sequence[Reading]
) -> list[Tensor]:
    """What `readings` read off the distribution of each token, a (B, L) float32 of each of them.

    No more logits exist at a time than `LOGITS` holds: all of them would be 11 MB for a picture of 680 tokens.

    Arguments:
        condition: of the same B pictures.
        inputs_BLC: teacher inputs of the tokens, or of the first scales alone.
        tokens_BL: (B, L) int64, of as many scales.
    """
    h_ND = transformer.states(inputs_BLC, condition).flatten(0, 1)
    config = transformer.config
    groups = config.groups or (config.logits,)
    rows = max(1, LOGITS["cpu" if h_ND.device.type == "cpu" else "accelerator"] // (4 * config.logits))
    found: list[list[Tensor]] = [[] for _ in readings]
    for h_nD, tokens_n in zip(h_ND.split(rows), tokens_BL.flatten().split(rows), strict=True):
        logits_nV = transformer.through_head(h_nD)
        for kept, reading in zip(found, readings, strict=True):
            kept.append(reading(logits_nV, tokens_n, groups))
    return [torch.cat(parts).view_as(tokens_BL) for parts in found]


# log p(x) = sum_g log p_g(digit g of x)
def log_probability(logits_nV: Tensor, tokens_n: Tensor, groups: Sequence[int]) -> Tensor:
    """A `Reading`: log p of the token, of a head in groups the sum over its digits."""
    digits_nG = digits.split(tokens_n, groups)
    parts = []
    for run in digits.runs(groups):
        logits_ngm, wanted_ng1 = logits_nV[:, run.columns].unflatten(1, run.shape), digits_nG[:, run.digits, None]
        parts.append((logits_ngm.gather(-1, wanted_ng1).squeeze(-1) - logits_ngm.logsumexp(dim=-1)).sum(dim=1))
    return torch.stack(parts).sum(dim=0)


# H = -sum_g sum_v p_g(v) log p_g(v): the digits of a token are independent given the coarser scales
def entropy(logits_nV: Tensor, tokens_n: Tensor, groups: Sequence[int]) -> Tensor:
    """A `Reading`: the entropy of the distribution, whatever the token."""
    parts = []
    for run in digits.runs(groups):
        log_p_ngm = logits_nV[:, run.columns].unflatten(1, run.shape).log_softmax(dim=-1)
        parts.append(-(log_p_ngm.exp() * log_p_ngm).sum(dim=(1, 2)))
    return torch.stack(parts).sum(dim=0)
