"""Images to multi-scale tokens and back: convnet, residual quantizer, and the model that joins them."""

from nextscale.tokenizer.model import MultiScaleVQVAE
from nextscale.tokenizer.quantizer import Quantized

__all__ = ["MultiScaleVQVAE", "Quantized"]
