"""What the two models are made of, as frozen dataclasses that torch is not needed to read.

Architecture fields have no defaults: a model is what its config says. Contradictions raise when the config is made.
Training settings are not here (they do not change what a checkpoint is); see `training`.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, TypeVar

from nextscale.errors import InputError
from nextscale.scales import Scales

GROUPS = 32  # of every GroupNorm in the convnet, as in VQGAN

# Far beyond any model, so that a mistaken file ends in a line and not in hours of work.
MOST_MODULES = 4_096  # blocks of a transformer, or blocks and phis of a tokenizer, each
MOST_LEVELS = 16
LARGEST = 1 << 24  # channels, codes, classes
MOST_BITS = 62  # of a token that is made of digits, which int64 holds
COUNTABLE = 1 << 16  # codes that are counted one by one; of more, the digits of their numbers are
WAVES = 64  # pairs of a sine and a cosine that tell a transformer of order refined how much of a map is right
WIDEST_SPHERE = 181  # channels of quantizer sphere, whose codes are counted one by one

OPTION = {"option": True}  # marks fields of architectures that the public release has not got
Quantizer = Literal["codebook", "fsq", "bsq", "sphere"]
Order = Literal["scale", "raster", "masked", "refined"]
Activation = Literal["gelu", "relu2", "swiglu"]


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise InputError(message)


def _require_within(what: str, value: int, most: int) -> None:
    bound = "at least 1" if value < 1 else f"at most {most}"
    _require(1 <= value <= most, f"{what}: expected {bound}, got {reprlib.repr(value)}")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """`MultiScaleVQVAE`: VQGAN's convnet around the residual multi-scale quantizer."""

    scales: Scales
    """Token maps, coarse to fine; the last is the latent's own size."""
    codebook_size: int
    """V, codes in the codebook that all scales share."""
    code_channels: int
    """C, channels of a code and of the latent."""
    channels: int
    """Width of the convnet at full resolution."""
    multipliers: tuple[int, ...]
    """Width of each resolution level, in units of `channels`; every level after the first halves the resolution."""
    residual_blocks: int
    """Residual blocks a level in the encoder; the decoder has one more."""
    phi_sharing: Literal["all", "partial", "none"]
    """Which scales share a phi: all of them one, `phi_count` of them by nearest tick, or one each."""
    phi_count: int
    """Number of phi convolutions; 0 leaves phi out."""
    distance: Literal["euclidean", "cosine"]
    """What "nearest code" means, in a learned codebook."""
    # added later: left out of files and fingerprints at the default, so that those of older tokenizers stay the same
    quantizer: Quantizer = field(default="codebook", repr=False)
    """A learned codebook, or fixed codes: scalars rounded to levels (FSQ), corners of a cube on a sphere (BSQ), or unit
    vectors with two channels that are not 0 (sphere; V follows from C)."""
    levels: tuple[int, ...] = field(default=(), repr=False)
    """Levels of each channel, for fsq; V and C follow."""
    bits: int = field(default=0, repr=False)
    """Bits of a code, for bsq; V and C follow."""
    reparametrised: bool = field(default=False, repr=False)
    """Of a codebook: fixed random codes times one learned matrix, so that all codes move together (SimVQ)."""

    def __post_init__(self) -> None:
        self._settle_digits()
        for name in ("codebook_size", "code_channels", "channels"):
            most = 2**MOST_BITS if name == "codebook_size" and self.digits else LARGEST
            _require_within(f"tokenizer {name}", getattr(self, name), most)
        _require_within("tokenizer residual_blocks", self.residual_blocks, MOST_MODULES // MOST_LEVELS)
        levels = len(self.multipliers)
        _require(levels <= MOST_LEVELS, f"tokenizer multipliers: expected at most {MOST_LEVELS} levels, got {levels}")
        for name, options in (("phi_sharing", ("all", "partial", "none")), ("distance", ("euclidean", "cosine"))):
            told = f"tokenizer {name}: expected one of {', '.join(options)}, got {reprlib.repr(getattr(self, name))}"
            _require(getattr(self, name) in options, told)
        _require(bool(self.multipliers), "tokenizer multipliers: expected at least one level, got none")
        for multiplier in self.multipliers:
            _require(
                multiplier <= LARGEST,
                f"tokenizer multipliers: expected at most {LARGEST}, got {reprlib.repr(multiplier)}",
            )
            _require(
                multiplier > 0 and self.channels * multiplier % GROUPS == 0,
                f"tokenizer channels: expected every level a multiple of {GROUPS}, got {self.channels} x {multiplier}",
            )
        counts = {"all": (1,), "none": (len(self.scales),), "partial": range(1, MOST_MODULES + 1)}[self.phi_sharing]
        _require(
            self.phi_count == 0 or self.phi_count in counts,
            f"tokenizer phi_count: {reprlib.repr(self.phi_count)} does not go with sharing {self.phi_sharing!r} "
            f"and {len(self.scales)} scales",
        )

    def _settle_digits(self) -> None:
        """Set V and C of fixed codes to those of their levels, bits or channels, whatever is given."""
        self._check_digits()
        if self.quantizer == "sphere":
            object.__setattr__(self, "codebook_size", 2 * self.code_channels * (self.code_channels - 1))
        if self.digits:
            object.__setattr__(self, "codebook_size", math.prod(self.digits))
            object.__setattr__(self, "code_channels", len(self.digits))

    def _check_digits(self) -> None:
        options, levels = typing.get_args(Quantizer), reprlib.repr(self.levels)
        told = f"tokenizer quantizer: expected one of {', '.join(options)}, got {reprlib.repr(self.quantizer)}"
        _require(self.quantizer in options, told)
        for name, kind in (("levels", "fsq"), ("bits", "bsq")):
            told = f"tokenizer {name}: expected for quantizer {kind} and for no other"
            got = f"got {reprlib.repr(getattr(self, name))} for {self.quantizer}"
            _require(bool(getattr(self, name)) == (self.quantizer == kind), f"{told}, {got}")
        _require(
            not self.reparametrised or self.quantizer == "codebook",
            f"tokenizer reparametrised: expected of a codebook alone, got it for {self.quantizer}",
        )
        _require(
            all(3 <= level <= COUNTABLE for level in self.levels),
            f"tokenizer levels: expected 3 .. {COUNTABLE} each (for two, take bsq), got {levels}",
        )
        _require(0 <= self.bits <= MOST_BITS, f"tokenizer bits: expected at most {MOST_BITS}, got {self.bits}")
        _require_digits("tokenizer levels", self.digits)
        _require(
            self.quantizer != "sphere" or 2 <= self.code_channels <= WIDEST_SPHERE,
            f"tokenizer code_channels: expected 2 .. {WIDEST_SPHERE} for quantizer sphere, "
            f"got {reprlib.repr(self.code_channels)}",
        )

    @property
    def fixed(self) -> bool:
        """Whether the codes are fixed, not learned."""
        return self.quantizer != "codebook"

    @property
    def digits(self) -> tuple[int, ...]:
        """How many values each channel of a code has, where codes combine them freely (fsq, bsq); none otherwise."""
        return (2,) * self.bits if self.bits else self.levels

    @property
    def countable(self) -> bool:
        """Whether there are few enough codes to be counted one by one."""
        return self.codebook_size <= COUNTABLE or not self.digits

    @property
    def counted(self) -> tuple[int, ...]:
        """Sizes of what is counted: all codes, or the values of each of their digits where codes are too many."""
        return (self.codebook_size,) if self.countable else self.digits

    @property
    def picture_bits(self) -> float:
        """sum_k l_k log2 V: how many bits the tokens of a picture hold at most."""
        return self.scales.total * math.log2(self.codebook_size)

    @property
    def stride(self) -> int:
        """Pixels a side of one token of the last map."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def blocks(self) -> int:
        """Residual blocks and phis, each with tensors of its own."""
        return (2 * self.residual_blocks + 1) * len(self.multipliers) + self.phi_count

    @property
    def parameters(self) -> int:
        """Trained parameters, computed from the shapes."""
        c, widths = self.code_channels, [self.channels * multiplier for multiplier in self.multipliers]
        encoder = _convolution(3, self.channels) + _levels([self.channels, *widths], self.residual_blocks, widths[-1])
        decoder = _convolution(c, widths[-1]) + _levels(
            [widths[-1], *reversed(widths)], self.residual_blocks + 1, widths[-1]
        )
        last = _convolution(widths[-1], c) + 2 * widths[-1] + _convolution(widths[0], 3) + 2 * widths[0]
        codes = 0 if self.fixed else self.codebook_size * c + (c * c if self.reparametrised else 0)
        between = codes + (2 + self.phi_count) * _convolution(c, c)
        return encoder + decoder + 2 * _middle(widths[-1]) + last + between

    @property
    def height(self) -> int:
        """Rows of pixels of an image."""
        return self.scales.height * self.stride

    @property
    def width(self) -> int:
        """Columns of pixels of an image."""
        return self.scales.width * self.stride


def _require_digits(what: str, sizes: tuple[int, ...]) -> None:
    """That tokens of as many codes as their product fit into int64."""
    _require(
        len(sizes) <= MOST_BITS and math.prod(sizes) <= 2**MOST_BITS,
        f"{what}: expected a product of at most 2^{MOST_BITS}, got {reprlib.repr(sizes)}",
    )


def _convolution(channels_in: int, channels_out: int, side: int = 3) -> int:
    """Weights of a convolution with a bias."""
    return (channels_in * side * side + 1) * channels_out


def _block(channels_in: int, channels_out: int) -> int:
    """Weights of a residual block."""
    shortcut = _convolution(channels_in, channels_out, 1) if channels_in != channels_out else 0
    norms = 2 * channels_in + 2 * channels_out
    return norms + _convolution(channels_in, channels_out) + _convolution(channels_out, channels_out) + shortcut


def _attention(channels: int) -> int:
    return 2 * channels + _convolution(channels, 3 * channels, 1) + _convolution(channels, channels, 1)


def _middle(channels: int) -> int:
    return 2 * _block(channels, channels) + _attention(channels)


def _levels(widths: Sequence[int], blocks: int, coarsest: int) -> int:
    """Weights of an encoder's or decoder's levels: blocks, attention at the coarsest, changes of resolution between."""
    inside = sum(_block(before, width) + (blocks - 1) * _block(width, width) for before, width in pairwise(widths))
    return inside + blocks * _attention(coarsest) + sum(_convolution(width, width) for width in widths[1:-1])


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text encoder inside a `VAR` that reads prompts."""

    tokens: int
    """T, pieces of a prompt at most; what is longer is cut."""
    vocabulary: int
    """Pieces that prompts are written in; 0 where a frozen encoder's states come in."""
    frozen: int
    """Channels of a frozen encoder's states; 0 where prompts come in as pieces."""
    depth: int
    """Layers that are trained with the transformer; behind a frozen encoder there may be none."""
    width: int
    """Channels of the states that the transformer's blocks look at."""
    heads: int
    """Attention heads, of the layers and of the blocks where they look at the states."""

    def __post_init__(self) -> None:
        for name in ("tokens", "width", "heads"):
            _require_within(f"text {name}", getattr(self, name), LARGEST)
        for name, most in (("vocabulary", LARGEST), ("frozen", LARGEST), ("depth", MOST_MODULES)):
            value = getattr(self, name)
            _require(0 <= value <= most, f"text {name}: expected 0 .. {most}, got {reprlib.repr(value)}")
        _require(
            (self.vocabulary > 0) != (self.frozen > 0),
            f"text: expected a vocabulary or frozen states, one of them 0, got {self.vocabulary} and {self.frozen}",
        )
        _require(self.depth > 0 or self.frozen > 0, "text depth: expected at least 1 layer over a vocabulary, got 0")
        _require(
            self.width % self.heads == 0,
            f"text heads: expected a divisor of the width {self.width}, got {self.heads}",
        )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Trained parameters of the encoder, computed from the shapes."""
        w = self.width
        given = self.vocabulary * w if self.vocabulary else (self.frozen + 1) * w
        return given + (self.tokens + 1) * w + self.depth * (12 * w * w + 9 * w + self.heads)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """`VAR`: the next-scale transformer."""

    scales: Scales
    """Token maps, coarse to fine, as the tokenizer's."""
    codebook_size: int
    """V, codes to choose from."""
    code_channels: int
    """C, channels of the teacher inputs."""
    classes: int
    """Number of classes; label `classes` itself means "no class"."""
    depth: int
    """Blocks."""
    width: int
    """Channels of the residual stream."""
    heads: int
    """Attention heads; width / heads is the head dimension."""
    feed_forward: int
    """Hidden channels of the feed-forward network."""
    normalized_attention: bool
    """L2-normalised queries and keys with a learned temperature a head (else scaled by 0.25 / sqrt(head dimension))."""
    shared_modulation: bool
    """One AdaLN projection for all blocks plus a table a block (else one projection a block)."""
    text: TextConfig | None = field(default=None, repr=False)  # models without have the fingerprint they always had
    """What reads prompts; None: a model of classes alone."""
    groups: tuple[int, ...] = field(default=(), repr=False)  # likewise
    """Sizes of the digits in which a token is predicted, each with a softmax of its own, the least significant first;
    their product is V. None: one softmax over all codes."""
    order: Order = field(default="scale", repr=False)  # likewise
    """What is predicted from what: each token map from the coarser ones, or as a rival does it (`rivals`)."""
    activation: Activation = field(default="gelu", repr=False, metadata=OPTION)
    """Of the feed-forward network: GELU (tanh), the square of ReLU, or SiLU times a second linear (SwiGLU)."""
    logit_cap: float = field(default=0.0, repr=False, metadata=OPTION)
    """c of the head's logits, c tanh(logits / c); 0 leaves them as they are."""

    def __post_init__(self) -> None:
        self._check_groups()
        self._check_order()
        self._check_options()
        for name in ("codebook_size", "code_channels", "classes", "depth", "width", "heads", "feed_forward"):
            most = MOST_MODULES if name == "depth" else LARGEST
            most = 2**MOST_BITS if name == "codebook_size" and self.groups else most
            _require_within(f"transformer {name}", getattr(self, name), most)
        _require(
            self.width % self.heads == 0,
            f"transformer heads: expected a divisor of the width {self.width}, got {self.heads}",
        )

    def _check_groups(self) -> None:
        shown = reprlib.repr(self.groups)
        sizes_fit = all(2 <= size <= LARGEST for size in self.groups)
        _require(sizes_fit, f"transformer groups: expected 2 .. {LARGEST} each, got {shown}")
        _require_digits("transformer groups", self.groups)
        _require(
            not self.groups or math.prod(self.groups) == self.codebook_size,
            f"transformer groups: expected a product of {self.codebook_size}, the number of codes, got {shown}",
        )

    def _check_options(self) -> None:
        told = f"expected one of {', '.join(typing.get_args(Activation))}, got {reprlib.repr(self.activation)}"
        _require(self.activation in typing.get_args(Activation), f"transformer activation: {told}")
        told = f"transformer logit_cap: expected 0 (none) .. {LARGEST}, got {reprlib.repr(self.logit_cap)}"
        _require(0 <= self.logit_cap <= LARGEST, told)

    @property
    def options(self) -> dict[str, Any]:
        """What the release's transformers do not have, by name, where it is not as theirs."""
        parts = [part for part in dataclasses.fields(self) if part.metadata.get("option")]
        values = {part.name: getattr(self, part.name) for part in parts}
        return {part.name: values[part.name] for part in parts if values[part.name] != part.default}

    @property
    def opened(self) -> int:
        """Channels that the first layer of the feed-forward network gives."""
        return (2 if self.activation == "swiglu" else 1) * self.feed_forward

    def _check_order(self) -> None:
        options, maps = typing.get_args(Order), len(self.scales)
        told = f"transformer order: expected one of {', '.join(options)}, got {reprlib.repr(self.order)}"
        _require(self.order in options, told)
        told = (
            f"order {self.order}: expected a tokenizer of one scale (--set architecture.scales=N makes one), got {maps}"
        )
        _require(self.order == "scale" or maps == 1, told)

    @property
    def walk(self) -> Scales:
        """What is predicted at once, one after the other: token maps; in raster order each token is one of 1x1."""
        return Scales([1] * self.scales.total) if self.order == "raster" else self.scales

    @property
    def keeps(self) -> bool:
        """Whether a token stays once it is predicted, and with it its keys and values."""
        return self.order in ("scale", "raster")

    @property
    def logits(self) -> int:
        """Numbers that the head gives for each token."""
        return sum(self.groups) or self.codebook_size

    def of_depth(self, depth: int) -> TransformerConfig:
        """The same at another size, by the paper's rule (section 4.2): width = 64 * depth, depth heads."""
        config = replace(self, depth=depth, width=64 * depth, heads=depth, feed_forward=4 * 64 * depth)
        if self.text is None:
            return config
        given = {name: getattr(self.text, name) for name in ("vocabulary", "frozen", "tokens")}
        return config.reading(**given)

    def reading(self, *, vocabulary: int = 0, frozen: int = 0, tokens: int = 32) -> TransformerConfig:
        """The same with text: half the width, heads as wide as here if they divide it, three layers over a vocabulary.

        Arguments:
            vocabulary: pieces, or 0.
            frozen: channels of a frozen encoder's states, or 0.
        """
        width = max(self.width // 2, 1)
        heads = max(width // self.head_dim, 1)
        text = TextConfig(
            tokens=tokens,
            vocabulary=vocabulary,
            frozen=frozen,
            depth=3 if vocabulary else 1,
            width=width // heads * heads,
            heads=heads,
        )
        return replace(self, text=text)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Trained parameters, computed from the shapes."""
        d, f, opened = self.width, self.feed_forward, self.opened
        projection = 6 * d * d + 6 * d
        attention = (self.heads if self.normalized_attention else 0) + 2 * d + 3 * d * d + d * d + d
        block = attention + (d + 1) * opened + (f + 1) * d + (6 * d if self.shared_modulation else projection)
        positions = (self.walk.lengths[0] + self.scales.total + len(self.scales)) * d
        embeddings = (self.code_channels + 1) * d + (self.classes + 1) * d
        head = 2 * d * d + 2 * d + (d + 1) * self.logits
        shared = projection if self.shared_modulation else 0
        rights = (2 * WAVES + 1) * d if self.order == "refined" else 0
        return positions + embeddings + self.depth * block + head + shared + rights + self._text_parameters

    @property
    def _text_parameters(self) -> int:
        if self.text is None:
            return 0
        d, w, temperatures = self.width, self.text.width, self.text.heads if self.normalized_attention else 0
        looking = 2 * w * w + 2 * w + (d + 1) * w + (w + 1) * d + temperatures
        return self.text.parameters + w * d + self.depth * looking


def check_pair(tokenizer: TokenizerConfig, transformer: TransformerConfig) -> None:
    """Raise `InputError`, naming every difference, unless the two models belong together."""
    names = ("scales", "codebook_size", "code_channels")
    pairs = ((name, getattr(tokenizer, name), getattr(transformer, name)) for name in names)
    wrong = [f"{name} {ours} and {theirs}" for name, ours, theirs in pairs if ours != theirs]
    _require(not wrong, f"tokenizer and transformer do not belong together: {', '.join(wrong)}")


def check_classes(names: Sequence[str], count: int) -> None:
    """Raise `InputError` unless there are `count` names, no two the same: a name has to say which class is meant."""
    _require(len(names) == count, f"classes: expected {count} names, got {len(names)}")
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        _require(isinstance(name, str), f"classes: expected names, got {reprlib.repr(name)}")
        half = any("\ud800" <= letter <= "\udfff" for letter in name)  # of a pair: no file can hold it
        _require(not half, f"classes: expected names that can be written in UTF-8, got {name!r}")
        before = first.setdefault(name, number)
        _require(before == number, f"classes: expected every name once, got {name!r} for {before} and {number}")


Config = TypeVar("Config", TokenizerConfig, TransformerConfig, TextConfig)


def to_json(config: TokenizerConfig | TransformerConfig | TextConfig) -> dict[str, Any]:
    """The config as plain JSON values, without fields at their defaults, which older configs do not have."""
    values = {part.name: (getattr(config, part.name), part.default) for part in dataclasses.fields(config)}
    return {name: _plain(value) for name, (value, default) in values.items() if value != default}


def _plain(value: Any) -> Any:
    if isinstance(value, TextConfig):
        return to_json(value)
    return value.to_list() if isinstance(value, Scales) else value


def from_json(kind: type[Config], values: Any) -> Config:
    """The reverse of `to_json`. Raises `InputError` naming the field that is missing, unknown or of the wrong type."""
    what = f"config of {kind.__name__.removesuffix('Config').lower()}"
    _require(isinstance(values, dict), f"{what}: expected an object, got {type(values).__name__}")
    hints = typing.get_type_hints(kind)
    needed = {part.name for part in dataclasses.fields(kind) if part.default is dataclasses.MISSING}
    missing, unknown = sorted(needed - values.keys()), sorted(values.keys() - hints.keys())
    _require(not missing, f"{what}: missing {', '.join(missing)}")
    _require(not unknown, f"{what}: unknown {', '.join(unknown)[:200]}")
    return kind(**{name: _read(f"{what}: {name}", hints[name], value) for name, value in values.items()})


def _read(what: str, hint: Any, value: Any) -> Any:
    """`value` from JSON as the type `hint`; one of the few types the configs use."""
    if hint == TextConfig | None:
        return from_json(TextConfig, value)
    if hint is Scales:
        _require(isinstance(value, list), f"{what}: expected a list, got {reprlib.repr(value)}")
        return Scales(value)
    if typing.get_origin(hint) is Literal:
        options = typing.get_args(hint)
        _require(value in options, f"{what}: expected one of {', '.join(options)}, got {reprlib.repr(value)}")
        return value
    if isinstance(hint, types.GenericAlias):
        ok = isinstance(value, (list, tuple)) and all(type(item) is int for item in value)
        _require(ok, f"{what}: expected a list of ints, got {reprlib.repr(value)}")
        return tuple(value)
    _require(type(value) is hint, f"{what}: expected {hint.__name__}, got {reprlib.repr(value)}")
    return value
