"""The text encoder inside the transformer, which learns with it: pieces, or a frozen encoder's states, to states.

Pre-norm layers of bidirectional attention with normalised queries and keys. A prompt without words becomes one learned
state: "no text". What stands at masked places, how many there are and where, changes nothing.

Shapes: B prompts, T places, D width, H heads, d head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.config import TextConfig
from nextscale.machine.precision import as_held
from nextscale.text.prompts import Prompts, States

MAX_TEMPERATURE = math.log(100)  # of attention, as in the blocks


class Layer(nn.Module):
    """Attention over all pieces of a prompt, then feed-forward."""

    MATRICES: ClassVar[Mapping[str, int]] = {"inside": 3, "outside": 1, "wide": 1, "narrow": 1}

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.inside = nn.Linear(config.width, 3 * config.width)
        self.outside = nn.Linear(config.width, config.width)
        self.wide = nn.Linear(config.width, 4 * config.width)
        self.narrow = nn.Linear(4 * config.width, config.width)
        self.temperature = nn.Parameter(torch.empty(config.heads, 1, 1))

    def forward(self, x_BTD: Tensor, mask_B11T: Tensor) -> Tensor:
        x_BTD = x_BTD + self._attended(norm(x_BTD), mask_B11T)
        return x_BTD + self.narrow(F.gelu(self.wide(norm(x_BTD)), approximate="tanh"))

    def _attended(self, x_BTD: Tensor, mask_B11T: Tensor) -> Tensor:
        q, k, v = self.inside(x_BTD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        warm = self.temperature.clamp_max(MAX_TEMPERATURE).exp()
        q, k = F.normalize(q, dim=-1) * warm.to(q.dtype), F.normalize(k, dim=-1)
        scores_BHTT = q.to(v.dtype) @ k.to(v.dtype).transpose(-1, -2)  # a few dozen places: fused kernels are slower
        h_BHTd = scores_BHTT.masked_fill(~mask_B11T, -torch.inf).softmax(dim=-1).to(v.dtype) @ v
        return self.outside(h_BHTd.transpose(1, 2).flatten(2))


class TextEncoder(nn.Module):
    """`Prompts` to `States`; the layers compute in what their weights are held in.

    Weights are the transformer's to draw.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.pieces = nn.Embedding(config.vocabulary, config.width) if config.vocabulary else None
        self.projection = nn.Linear(config.frozen, config.width) if config.frozen else None
        self.positions = nn.Parameter(torch.empty(config.tokens, config.width))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.no_words = nn.Parameter(torch.empty(config.width))

    def forward(self, prompts: Prompts) -> States:
        """Float32 states. The layers run in the caller's autocast."""
        mask_BT = prompts.mask
        empty_B1 = ~mask_BT.any(dim=1, keepdim=True)
        x_BTD = self._embedded(prompts).to(self.compute_dtype)
        look_B11T = (mask_BT | empty_B1)[:, None, None]  # a row that looks at nothing would be NaN, and so its gradient
        for layer in self.layers:
            x_BTD = layer(x_BTD, look_B11T)
        states_BTD = torch.where(empty_B1.unsqueeze(2), self.no_words, norm(x_BTD.float()))
        first_T = torch.arange(mask_BT.shape[1], device=mask_BT.device) == 0
        counted_BT = mask_BT | (empty_B1 & first_T)
        states_BTD = states_BTD.masked_fill(~counted_BT.unsqueeze(2), 0.0)
        return States(states_BTD, counted_BT, states_BTD.sum(dim=1) / counted_BT.sum(dim=1, keepdim=True))

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the layers' weights are held in."""
        return next((parameter.dtype for parameter in self.layers.parameters()), torch.float32)

    def _embedded(self, prompts: Prompts) -> Tensor:
        """Pieces, or projected states, with their positions: the n-th that counts has the n-th, wherever it stands."""
        values, mask_BT = prompts
        if self.pieces is not None:
            x_BTD = self.pieces(values.masked_fill(~mask_BT, 0))
        else:
            assert self.projection is not None
            with as_held(values.device):
                x_BTD = self.projection(norm(values.float().masked_fill(~mask_BT.unsqueeze(2), 0.0)))
        place_BT = (mask_BT.cumsum(dim=1) - 1).clamp(0, self.config.tokens - 1)
        return x_BTD + self.positions[place_BT]


def norm(x: Tensor) -> Tensor:
    """Layer norm without gains of its own."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)
