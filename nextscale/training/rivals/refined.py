"""Training of global refinement: all tokens are predicted from right ones among random ones."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.rivals import refined
from nextscale.rivals.whole import codes_of
from nextscale.training.order import generator
from nextscale.training.rivals.masked import GOLDEN
from nextscale.training.transformer.stage import Lesson, TransformerStage


class RefinedStage(TransformerStage):
    """GRN: the loss covers every token, including those shown unchanged."""

    def _lesson(self, tokens_BL: Tensor, seen_BL: Tensor, step: int, part: slice, total: float | None) -> Lesson:
        numbers = generator(self.seed, "refinement", step)
        rights_B = refined.rights_of(torch.randn(self.batch, generator=numbers))
        return self._mixing(tokens_BL, seen_BL, rights_B, numbers, part)

    def _exam(self, tokens_BL: Tensor, first: int) -> Lesson:
        """With shares and codes that are a picture's own, by its number; shares lie as evenly as can be."""
        even_B = torch.arange(first + 1, first + 1 + len(tokens_BL)) * GOLDEN % 1
        rights_B = refined.rights_of(torch.special.ndtri(even_B))
        return self._mixing(tokens_BL, tokens_BL, rights_B, generator("exam", first), slice(None))

    def _mixing(
        self, tokens_BL: Tensor, seen_BL: Tensor, rights_B: Tensor, numbers: torch.Generator, part: slice
    ) -> Lesson:
        """Of a part of a batch, for all of which numbers are drawn."""
        shape = (len(rights_B), tokens_BL.shape[1])
        random_BL = torch.randint(self.model.config.codebook_size, shape, generator=numbers)
        keys_BL = torch.rand(shape, generator=numbers)
        random_BL, keys_BL, rights_B = (each[part].to(self.device) for each in (random_BL, keys_BL, rights_B))
        mixed_BL = refined.mix(seen_BL, random_BL, keys_BL, rights_B)
        seen = refined.Mixed(codes_of(self.tokenizer.quantizer, mixed_BL), rights_B)
        return Lesson(seen, tokens_BL, torch.ones(shape[1], device=self.device))
