"""What sampling runs instead of the two models: the same weights in the layouts and formats that kernels like.

In float32 these are the models themselves, the slow path that everything else is held against. In lower precision the
decoder is converted once, channels last, and so are the blocks where they are held in another format; on CPUs the
products of the blocks and the head are prepacked, and where int8 is asked for quantized. All of it belongs to the
engine: the models stay as they are. It is made on the first picture and made anew when weights have changed.
"""

from __future__ import annotations

import hashlib
import operator
import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nextscale.files.checkpoint import checksum
from nextscale.machine.int8 import Int8Convolution, Int8Weight, int8_weight, multiplies_with_amx
from nextscale.machine.precision import Arithmetic
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.tokenizer.convnet import Decoder
from nextscale.transformer import VAR

PACKING = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")  # what torch.compile uses too
PACKED = ("qkv.weight", "query.weight", "out.weight", "up.weight", "down.weight", "head.weight")  # ends of their names
INT8 = ("attention.qkv", "attention.out", "feed_forward.up")  # ends of names, of what runs in int8
INT8_BESIDE_AMX = ("feed_forward.up",)
PIXELS = 256 * 256  # painted together on CPUs
SAMPLES = 64  # of a weight: optimizers change nearly all values, and each one looked at may have to come from memory


class Engine(NamedTuple):
    """The two halves of sampling."""

    transformer: VAR
    """Predicts; only `condition` and `step` are called."""
    tokenizer: MultiScaleVQVAE
    """Holds the quantizer and the convolution behind it, in float32."""
    decoder: Decoder
    """Paints, in the dtype and memory format of its weights."""

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


# -- made once, and anew when weights have changed ---------------------------------------------------------------------


class Engines:
    """The engine of one pipeline, kept as long as it fits the weights. Threads may share it; a copy begins empty."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._copied: Seen | None = None
        self._others: Seen | None = None
        self._fingerprint = ""

    def __reduce__(self) -> tuple[type[Engines], tuple[()]]:
        return Engines, ()

    def of(self, tokenizer: MultiScaleVQVAE, transformer: VAR, arithmetic: Arithmetic) -> Engine:
        """The engine for these models; whoever asks while it is being made waits for it."""
        with self._lock:
            return self._of(tokenizer, transformer, arithmetic)

    def named(self, tokenizer: MultiScaleVQVAE, transformer: VAR, arithmetic: Arithmetic) -> tuple[Engine, str]:
        """The engine and the `fingerprint` of these models, computed once as long as all of their weights stay."""
        with self._lock:
            engine, others = self._of(tokenizer, transformer, arithmetic), (tokenizer,)
            if self._others is None or not self._others.still(others, but=tokenizer.decoder):
                self._others = look(others, but=tokenizer.decoder)
                self._fingerprint = fingerprint(tokenizer, transformer)
            return engine, self._fingerprint

    def _of(self, tokenizer: MultiScaleVQVAE, transformer: VAR, arithmetic: Arithmetic) -> Engine:
        copied = (tokenizer.decoder, transformer)
        if self._engine is None or self._copied is None or not self._copied.still(copied):
            self._engine = self._others = None  # not two at a time
            self._copied = look(copied)
            self._engine = make_engine(tokenizer, transformer, arithmetic)
        return self._engine

    def drop(self) -> None:
        """Drop the engine; the next picture makes a new one."""
        with self._lock:
            self._engine = self._copied = self._others = None


class Seen(NamedTuple):
    """The weights of some modules at a time, as far as a look at them tells."""

    modules: tuple[nn.Module, ...]
    places: list[tuple[int, int]]
    """Address and version of each weight: torch counts most writes, and what is replaced is elsewhere."""
    views: list[Tensor]
    """Some values of each weight, where they are: fused optimizers and writes through `.data` count nothing."""
    bits: Tensor
    """(n,) int32, what those values were."""

    @torch.no_grad()
    def still(self, modules: tuple[nn.Module, ...], *, but: nn.Module | None = None) -> bool:
        """Whether these are the modules, and unchanged. Waits for the device."""
        same = all(map(operator.is_, self.modules, modules))
        same = same and self.places == places(weights(modules, but=but))
        return same and (self.bits.is_meta or torch.equal(self.bits, bits(self.views)))


@torch.no_grad()
def look(modules: tuple[nn.Module, ...], *, but: nn.Module | None = None) -> Seen:
    """A look at the weights of modules as they are now, those of one of their parts left out."""
    watched = weights(modules, but=but)
    views = [sampled(weight) for weight in watched]
    return Seen(modules, places(watched), views, bits(views))


def weights(modules: tuple[nn.Module, ...], *, but: nn.Module | None = None) -> list[Tensor]:
    """All their parameters, in some order: `Module.parameters` makes their names too, which takes as long as a look."""
    found, waiting = list[Tensor](), list[nn.Module | None](modules)
    while waiting:
        module = waiting.pop()
        if module is not None and module is not but:
            found += [weight for weight in module._parameters.values() if weight is not None]
            waiting += module._modules.values()
    return found


def places(weights: list[Tensor]) -> list[tuple[int, int]]:
    return [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]


def bits(views: list[Tensor]) -> Tensor:
    return torch.cat(views).float().view(torch.int32)


def sampled(weight: Tensor) -> Tensor:
    """A view of `SAMPLES` values of a weight, or a few more; of a small one, of all. Any 1/32 in a row has some."""
    span = 1 + sum((side - 1) * stride for side, stride in zip(weight.shape, weight.stride(), strict=True))
    step = max(1, span // SAMPLES) | 1  # odd: an even one would stay in half of the columns, or in a few
    return weight.as_strided((-(-span // step),), (step,))


@torch.no_grad()
def fingerprint(tokenizer: MultiScaleVQVAE, transformer: VAR) -> str:
    """16 hex digits of all that decides a picture: both models' configurations and weights; empty for shapes alone.

    Weights count as bfloat16 rounds them, so that a model held in that is the model it was made of.
    """
    if transformer.positions.is_meta:
        return ""
    digest = hashlib.sha256(repr((tokenizer.config, transformer.config)).encode())
    if tokenizer.config.fixed:
        told = f"{tokenizer.config.quantizer} {tokenizer.config.digits} {checksum(tokenizer.quantizer.gain_K)}"
        digest.update(told.encode())
    digest.update(b"" if transformer.order == "scale" else transformer.order.encode())
    digest.update(repr(transformer.config.groups).encode() if transformer.config.groups else b"")
    digest.update(repr(transformer.config.options).encode() if transformer.config.options else b"")
    digest.update(repr(transformer.config.text).encode() if transformer.config.text else b"")
    for model in (tokenizer, transformer):
        for name, weight in model.named_parameters():
            digest.update(f"{name} {checksum(weight.to(torch.bfloat16))}".encode())
    return digest.hexdigest()[:16]


# -- how it is made ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def make_engine(tokenizer: MultiScaleVQVAE, transformer: VAR, arithmetic: Arithmetic) -> Engine:
    """The engine for models on one device; the models themselves stay as they are."""
    dtype = arithmetic.dtype
    int8 = int8_layers() if arithmetic.int8 else ()
    quantizes = arithmetic.int8 and convolves_int8(tokenizer)
    decoder = tokenizer.decoder if dtype == torch.float32 and not quantizes else lowered_decoder(tokenizer, dtype)
    return Engine(
        view_in(transformer, dtype, int8=int8), tokenizer, quantized_decoder(decoder) if quantizes else decoder
    )


def view_in(transformer: VAR, dtype: torch.dtype, *, int8: tuple[str, ...] = ()) -> VAR:
    """The transformer with its blocks in `dtype` and the rest in float32, products prepacked where that can be.

    What needs no conversion is shared; the transformer itself where that is everything. Products of layers whose names
    end in one of `int8` run in int8.
    """
    packs = dtype == torch.bfloat16 and transformer.positions.device.type == "cpu" and packs_bf16()
    view = type(transformer)(transformer.config, seed=None).lower_precision(dtype)
    held = transformer.state_dict()
    wanted = {name: weight.dtype for name, weight in view.state_dict().items()}
    if not packs and not int8 and all(weight.dtype == wanted[name] for name, weight in held.items()):
        return transformer
    if packs or int8:
        wanted["head.bias"] = dtype
    quantized = [name for name, _ in transformer.named_modules() if name.endswith(int8)]
    plain = {f"{name}.weight" for name in quantized}
    converted = {
        name: _packed(weight) if packs and name.endswith(PACKED) and name not in plain else weight.to(wanted[name])
        for name, weight in held.items()
    }
    view.load_state_dict(converted, assign=True)
    for name in quantized:
        layer, weight = view.get_submodule(name), int8_weight(held[f"{name}.weight"], dtype)
        view.set_submodule(name, Int8Linear(weight, layer.bias))
    return view.requires_grad_(False)


class Int8Linear(nn.Module):
    """Stands where a linear layer stood, for `layers.linear` to take its weight and bias from."""

    def __init__(self, weight: Int8Weight, bias: Any) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias


def int8_layers() -> tuple[str, ...]:
    """Ends of the names of the layers whose products run in int8: where that is faster, and good enough.

    Of VAR-d16's largest scale, 512 rows of one core of a Xeon, in ms, bfloat16 -> int8 and what quantizes around it:

        AVX512      qkv 43.7 -> 8.0    out 14.4 -> 3.5    up and GELU 8.8 -> 2.4 (72 rows)
        AMX         qkv  3.8 -> 4.3    out  1.4 -> 2.2    up and GELU 7.8 -> 6.6

    AMX multiplies int8 in half the time of bfloat16, too, but what is saved goes into quantizing; the exact GELU alone
    pays there. Two stay as they are: the down projection, whose inputs have the largest outliers, and the head, which
    is 2 % of the work and adds to the logits' divergence what the three together do three times over.
    """
    return INT8_BESIDE_AMX if multiplies_with_amx() else INT8


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


def convolves_int8(tokenizer: MultiScaleVQVAE) -> bool:
    """Whether the decoder's 3x3 convolutions run in int8: where that is faster, on pictures painted one at a time.

    160 channels at 256 px take 436 ms in bfloat16 without AMX and 50 in int8, quantizing 15; with AMX 28, 20 and 15.
    """
    pixels = tokenizer.config.height * tokenizer.config.width
    return not multiplies_with_amx() and pixels >= PIXELS


def quantized_decoder(decoder: Decoder) -> Decoder:
    """The same decoder, changed in place: its 3x3 convolutions in int8, but for the first and the last."""
    for name, layer in [*decoder.named_modules()]:
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and name not in ("stem", "head"):
            decoder.set_submodule(name, Int8Convolution(layer))
    return decoder


def packs_bf16() -> bool:
    """Whether this torch, on this CPU, multiplies bfloat16 by prepacked weights."""
    there = torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in PACKING)
    return there and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.to(torch.bfloat16))
