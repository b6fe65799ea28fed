"""What sampling runs instead of the two models: the same weights in the layouts and formats that kernels like.

In float32 these are the models themselves, the slow path that everything else is held against. In lower precision the
decoder is converted once, channels last; on CPUs the products of the blocks and the head are prepacked once. Both are
made on the first picture and made anew when weights have changed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.tokenizer.convnet import Decoder
from nextscale.transformer import VAR
from nextscale.transformer.layers import Attention, FeedForward

PACKING = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")  # what torch.compile uses too
PIXELS = 256 * 256  # painted together on CPUs
Signature = tuple[tuple[int, int], ...]


class Engine(NamedTuple):
    """The two halves of sampling, and the state of the weights they were made of."""

    transformer: VAR
    """Predicts; only `condition` and `step` are called."""
    tokenizer: MultiScaleVQVAE
    """Holds the quantizer and the convolution behind it, in float32."""
    decoder: Decoder
    """Paints, in the dtype and memory format of its weights."""
    signature: Signature

    def paint(self, canvas_BCHW: Tensor) -> Tensor:
        """A canvas f_hat (B, C, h_K, w_K) -> the image it shows, (B, 3, H, W) float32 in [-1, 1].

        On CPUs few at a time: at 256 px a picture takes 0.60 s alone and 0.72 s among four, whose activations outgrow
        what the allocator keeps.
        """
        config = self.tokenizer.config
        pixels = config.height * config.width
        together = max(1, PIXELS // pixels) if canvas_BCHW.device.type == "cpu" else len(canvas_BCHW)
        return torch.cat([self._paint(part) for part in canvas_BCHW.split(together)])

    def _paint(self, canvas_BCHW: Tensor) -> Tensor:
        latent = self.tokenizer.post_quantizer(canvas_BCHW)
        weight = self.decoder.stem.weight
        memory_format = torch.contiguous_format if weight.is_contiguous() else torch.channels_last
        return self.decoder(latent.to(weight.dtype, memory_format=memory_format)).float().clamp(-1, 1)


def signature(*models: nn.Module) -> Signature:
    """Changes with any weight that is replaced or written to; what goes through `.data` torch itself does not see."""
    weights = (weight for model in models for weight in model.parameters())
    return tuple((weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights)


@torch.no_grad()
def make_engine(tokenizer: MultiScaleVQVAE, transformer: VAR, dtype: torch.dtype) -> Engine:
    """The engine for models on one device, in `dtype`; the models themselves stay as they are."""
    state = signature(tokenizer, transformer)
    if dtype == torch.float32:
        return Engine(transformer, tokenizer, tokenizer.decoder, state)
    return Engine(
        packed(transformer) if can_pack(transformer) else transformer,
        tokenizer,
        lowered_decoder(tokenizer, dtype),
        state,
    )


def lowered_decoder(tokenizer: MultiScaleVQVAE, dtype: torch.dtype) -> Decoder:
    """A copy of the decoder in `dtype`, its convolutions channels last."""
    with torch.device("meta"):
        decoder = Decoder(tokenizer.config)
    weights = {
        name: weight.to(dtype, memory_format=torch.channels_last if weight.ndim == 4 else torch.preserve_format)
        for name, weight in tokenizer.decoder.state_dict().items()
    }
    decoder.load_state_dict(weights, assign=True)
    return decoder.requires_grad_(False)


def packs_bf16() -> bool:
    """Whether this torch, on this CPU, multiplies bfloat16 by prepacked weights."""
    there = torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in PACKING)
    return there and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def can_pack(transformer: VAR) -> bool:
    """Whether the transformer's products can be prepacked: held in bfloat16, on a CPU that does it."""
    on_cpu = transformer.positions.device.type == "cpu"
    return transformer.compute_dtype == torch.bfloat16 and on_cpu and packs_bf16()


def packed(transformer: VAR) -> VAR:
    """A view of the transformer whose blocks and head multiply with prepacked weights; all else is shared."""
    view = VAR(transformer.config, seed=None)
    view.load_state_dict(transformer.state_dict(), assign=True)
    for module in view.blocks.modules():
        if isinstance(module, Attention):
            _pack(module.qkv)
            _pack(module.out)
        elif isinstance(module, FeedForward):
            _pack(module.up)
            _pack(module.down)
    view.head.bias = nn.Parameter(view.head.bias.to(torch.bfloat16), requires_grad=False)
    _pack(view.head)
    return view.requires_grad_(False)


def _pack(layer: nn.Linear) -> None:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(torch.bfloat16))
    layer.weight = nn.Parameter(weight, requires_grad=False)
