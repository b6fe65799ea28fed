"""Masked prediction: all tokens of one map at once, from those that are known, in a few steps (MaskGIT).

After Chang et al. 2022 (arXiv:2202.04200). In training a share of the tokens is hidden, cos(pi r / 2) with r uniform in
0 .. 1, and predicted from the others. Sampling begins with all hidden; each step draws every hidden token, keeps those
it is surest of, and hides the others again. Attention is not causal, so there is no cache.

Shapes: B batch, T steps, D width, C code channels, L = H W tokens, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from nextscale import digits
from nextscale.config import Order, TransformerConfig
from nextscale.errors import InputError
from nextscale.rivals.whole import Guided, canvas_of, codes_of, require_steps
from nextscale.sampling.guidance import Guidance
from nextscale.sampling.loop import Choice, Painted, Process, choose, gumbel, random_keys
from nextscale.scales import Scales
from nextscale.text.prompts import Prompts
from nextscale.tokenizer.quantizer import MultiScaleQuantizer
from nextscale.transformer import VAR, Condition
from nextscale.transformer.model import Inputs, check_given

# ---- the model -------------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What the transformer sees of a map."""

    codes: Tensor
    """(B, L, C) float; of hidden tokens anything."""
    known: Tensor
    """(B, L) bool, False where a token is hidden."""


class Masked(VAR):
    """VAR on one map, of which some tokens are told; the others begin as VAR's first scale does: class and place."""

    order: ClassVar[Order] = "masked"

    def check(self, labels_B: Tensor, inputs: Inputs) -> None:
        if not isinstance(inputs, Seen):
            raise InputError(f"inputs: expected masked.Seen, got {type(inputs).__name__}")
        check_given(labels_B, inputs.codes, self.config.classes)

    def embedded(self, inputs: Inputs, condition: Condition) -> tuple[Tensor, Scales]:
        known_BLD, hidden_BLD = self.embed_codes(inputs.codes, 0, 1), self.embed_start(condition)
        return torch.where(inputs.known[..., None], known_BLD, hidden_BLD), self.walk


# ---- what is hidden --------------------------------------------------------------------------------------------------


# gamma(r) = cos(pi r / 2)
def hidden_at(r: float) -> float:
    """The share of tokens that are hidden at r, 0 .. 1."""
    return math.cos(math.pi * r / 2)


def hide(ratios_B: Tensor, total: int, numbers: torch.Generator) -> Tensor:
    """Which of `total` tokens are hidden, (B, L) bool: gamma(r) of each picture's at random places, at least one."""
    counts_B = (torch.cos(math.pi * ratios_B / 2) * total).ceil().clamp(1, total)
    ranks_BL = torch.rand(len(ratios_B), total, generator=numbers).argsort(dim=1).argsort(dim=1)
    return ranks_BL < counts_B[:, None]


# ---- sampling --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskedSampler:
    """Draw all hidden tokens, keep the surest, and again. Raises `InputError` for values out of range."""

    steps: int = 12
    """Looks at the whole map; the authors take 8 to 12."""
    annealing: float = 4.5
    """Of the noise that is added to log p where the surest are chosen; falls to 0 along the steps."""

    def __post_init__(self) -> None:
        require_steps(self.steps)
        if not 0 <= self.annealing < math.inf:
            raise InputError(f"annealing: expected 0 or more, got {self.annealing}")

    def count(self, config: TransformerConfig) -> int:
        return self.steps

    @torch.inference_mode()
    def paint(
        self,
        transformer: VAR,
        quantizer: MultiScaleQuantizer,
        labels: Sequence[int],
        seeds: Sequence[int],
        *,
        guidance: Guidance,
        choice: Sequence[Choice],
        prompts: Prompts | None = None,
        negative: Prompts | None = None,
        process: Process | None = None,
        **of_scales: object,
    ) -> Iterator[Painted]:
        """As `loop.generate`; yields the whole map after each step, hidden tokens as they were last drawn."""
        if choice[0].smooth:
            raise InputError("smooth: expected with a model that paints a token once, got one of order masked")
        total, groups = transformer.walk.total, transformer.config.groups
        look = Guided(transformer, labels, prompts, negative, guidance=guidance, steps=self.steps, process=process)
        keys_BTL = random_keys(seeds, self.steps * total).unflatten(1, (self.steps, total)).to(quantizer.device)
        tokens_BL = torch.zeros_like(keys_BTL[:, 0])
        known_BL = torch.zeros_like(tokens_BL, dtype=torch.bool)
        for k, keys_BL in enumerate(keys_BTL.unbind(1)):
            logits_BLV = look(k, Seen(codes_of(quantizer, tokens_BL), known_BL))
            drawn_BL, _ = choose(logits_BLV, keys_BL, choice[k], progress=0.0, groups=groups)
            tokens_BL = torch.where(known_BL, tokens_BL, drawn_BL)
            sure_BL = log_probability(logits_BLV, tokens_BL, groups) + self._noise(k, keys_BL, transformer.config)
            hidden = round(hidden_at((k + 1) / self.steps) * total)
            known_BL = surest(sure_BL, known_BL, hidden)
            yield Painted(k, tokens_BL.unflatten(1, transformer.walk.sizes[0]), canvas_of(quantizer, tokens_BL))

    def _noise(self, k: int, keys_BL: Tensor, config: TransformerConfig) -> Tensor:
        """annealing * (1 - r) * Gumbel, (B, L): independent of that of all codes, as it is of a code that is none."""
        number = torch.tensor(config.codebook_size, device=keys_BL.device)
        return self.annealing * (1 - (k + 1) / self.steps) * gumbel(keys_BL, number)


def log_probability(logits_BLV: Tensor, tokens_BL: Tensor, groups: Sequence[int]) -> Tensor:
    """log p of each token, (B, L) float32; of a head in groups the sum over its digits."""
    sizes = [*groups] or [logits_BLV.shape[-1]]
    pairs = zip(logits_BLV.split(sizes, dim=-1), digits.split(tokens_BL, sizes).unbind(-1), strict=True)
    parts = [part.log_softmax(dim=-1).gather(-1, digit[..., None])[..., 0] for part, digit in pairs]
    return torch.stack(parts).sum(dim=0)


def surest(sure_BL: Tensor, known_BL: Tensor, hidden: int) -> Tensor:
    """Which tokens are known next, (B, L) bool: those that are, and of the others all but the `hidden` least sure.

    At least one more becomes known, where one is left.
    """
    ranks_BL = sure_BL.masked_fill(known_BL, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    most_B1 = (~known_BL).sum(dim=1, keepdim=True) - 1
    return known_BL | (ranks_BL >= most_B1.clamp(max=hidden))
