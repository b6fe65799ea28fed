"""Which stage trains the transformers of an order."""

from __future__ import annotations

from nextscale.config import Order
from nextscale.training.rivals.masked import MaskedStage
from nextscale.training.rivals.raster import RasterStage
from nextscale.training.rivals.refined import RefinedStage
from nextscale.training.transformer.stage import TransformerStage

STAGES: dict[Order, type[TransformerStage]] = {
    "scale": TransformerStage,
    "raster": RasterStage,
    "masked": MaskedStage,
    "refined": RefinedStage,
}
