"""Training in raster order: each token is predicted from the codes before it."""

from __future__ import annotations

from torch import Tensor

from nextscale.rivals import raster
from nextscale.training.transformer.stage import TransformerStage


class RasterStage(TransformerStage):
    """Next-token prediction."""

    def _teacher_inputs(self, tokens_BL: Tensor) -> Tensor:
        return raster.teacher_inputs(self.tokenizer.quantizer, tokens_BL)
