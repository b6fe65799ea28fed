"""Training of masked prediction: some tokens are hidden, and predicted from the others."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.rivals import masked
from nextscale.rivals.whole import codes_of
from nextscale.training.order import generator
from nextscale.training.transformer.stage import Lesson, TransformerStage

GOLDEN = 0.6180339887498949  # its multiples, modulo 1, are spread evenly however many there are


class MaskedStage(TransformerStage):
    """MaskGIT: the hidden tokens of a batch count alike, the others not at all."""

    def _lesson(self, tokens_BL: Tensor, seen_BL: Tensor, step: int, part: slice, total: float | None) -> Lesson:
        numbers = generator(self.seed, "masks", step)
        ratios_B = torch.rand(self.batch, generator=numbers)
        hidden_BL = masked.hide(ratios_B, tokens_BL.shape[1], numbers)
        share = hidden_BL[part].float().mean() / hidden_BL.float().mean()
        return self._hiding(hidden_BL[part], tokens_BL, seen_BL)._replace(share=share.to(self.device))

    def _exam(self, tokens_BL: Tensor, first: int) -> Lesson:
        """Under masks that are a picture's own, by its number: shares spread evenly, places at random."""
        ratios_B = torch.arange(first + 1, first + 1 + len(tokens_BL)) * GOLDEN % 1
        hidden_BL = masked.hide(ratios_B, tokens_BL.shape[1], generator("exam", first))
        return self._hiding(hidden_BL, tokens_BL, tokens_BL)

    def _hiding(self, hidden_BL: Tensor, tokens_BL: Tensor, seen_BL: Tensor) -> Lesson:
        hidden_BL = hidden_BL.to(self.device)
        seen = masked.Seen(codes_of(self.tokenizer.quantizer, seen_BL), ~hidden_BL)
        return Lesson(seen, tokens_BL, hidden_BL.float())
