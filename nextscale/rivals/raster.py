"""Raster order: the tokens of one map are predicted one by one, row by row, each from all before it.

As in VQGAN (Esser et al. 2021) and LlamaGen (Sun et al. 2024). It is VAR on as many maps of 1x1 as there are tokens:
attention is causal, the cache grows by one token a step, and what a step sees is the code before.

Shapes: B batch, D width, C code channels, H W sides of the map, L = H W tokens, l of some steps.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from nextscale.config import Order
from nextscale.rivals.whole import codes_of
from nextscale.tokenizer.quantizer import MultiScaleQuantizer
from nextscale.transformer import VAR


class Raster(VAR):
    """The next-token transformer. Steps are tokens; places are learned; there is one level, as there is one scale."""

    order: ClassVar[Order] = "raster"

    def _place(self, x_BlD: Tensor, first: int, end: int) -> Tensor:
        place_1lD = self.positions[:, first:end] + self.levels.weight
        return (x_BlD + place_1lD).to(self.compute_dtype)


def teacher_inputs(quantizer: MultiScaleQuantizer, tokens_BL: Tensor) -> Tensor:
    """Tokens (B, L) int64 -> the code before each but the first, (B, L - 1, C) float32."""
    return codes_of(quantizer, tokens_BL)[:, :-1]


class Line:
    """A `loop.Canvas` that is written on row by row."""

    def __init__(self, quantizer: MultiScaleQuantizer, batch: int) -> None:
        self.quantizer, self.codes_BCHW = quantizer, quantizer.blank(batch)

    def paint(self, k: int, codes_BC11: Tensor) -> Tensor:
        row, column = divmod(k, self.quantizer.scales.width)
        self.codes_BCHW = self.codes_BCHW.clone()  # the one before may be in a caller's hands
        self.codes_BCHW[:, :, row, column] = codes_BC11[:, :, 0, 0]
        return self.quantizer.contribution(self.codes_BCHW, 0)

    def seen(self, k: int) -> Tensor:
        row, column = divmod(k - 1, self.quantizer.scales.width)
        return self.codes_BCHW[:, None, :, row, column]
