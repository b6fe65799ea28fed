"""What the two models are made of, as frozen dataclasses that torch is not needed to read.

Architecture fields have no defaults: a model is what its config says. Contradictions raise when the config is made.
Training settings are not here (they do not change what a checkpoint is); see `training`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from nextscale.errors import InputError
from nextscale.scales import Scales

GROUPS = 32  # of every GroupNorm in the convnet, as in VQGAN


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise InputError(message)


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
    """What "nearest code" means."""

    def __post_init__(self) -> None:
        for name in ("codebook_size", "code_channels", "channels", "residual_blocks"):
            _require(getattr(self, name) > 0, f"tokenizer {name}: expected at least 1, got {getattr(self, name)}")
        _require(bool(self.multipliers), "tokenizer multipliers: expected at least one level, got none")
        for multiplier in self.multipliers:
            _require(
                multiplier > 0 and self.channels * multiplier % GROUPS == 0,
                f"tokenizer channels: expected every level a multiple of {GROUPS}, got {self.channels} x {multiplier}",
            )
        counts = {"all": (1,), "none": (len(self.scales),), "partial": range(1, 1 << 16)}[self.phi_sharing]
        _require(
            self.phi_count == 0 or self.phi_count in counts,
            f"tokenizer phi_count: {self.phi_count} does not go with sharing {self.phi_sharing!r} "
            f"and {len(self.scales)} scales",
        )

    @property
    def stride(self) -> int:
        """Pixels a side of one token of the last map."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def height(self) -> int:
        """Rows of pixels of an image."""
        return self.scales.height * self.stride

    @property
    def width(self) -> int:
        """Columns of pixels of an image."""
        return self.scales.width * self.stride


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

    def __post_init__(self) -> None:
        for name in ("codebook_size", "code_channels", "classes", "depth", "width", "heads", "feed_forward"):
            _require(getattr(self, name) > 0, f"transformer {name}: expected at least 1, got {getattr(self, name)}")
        _require(
            self.width % self.heads == 0,
            f"transformer heads: expected a divisor of the width {self.width}, got {self.heads}",
        )

    def of_depth(self, depth: int) -> TransformerConfig:
        """The same at another size, by the paper's rule (section 4.2): width = 64 * depth, depth heads."""
        return replace(self, depth=depth, width=64 * depth, heads=depth, feed_forward=4 * 64 * depth)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Trained parameters, computed from the shapes."""
        d, f = self.width, self.feed_forward
        projection = 6 * d * d + 6 * d
        attention = (self.heads if self.normalized_attention else 0) + 2 * d + 3 * d * d + d * d + d
        block = attention + 2 * d * f + f + d + (6 * d if self.shared_modulation else projection)
        positions = (self.scales.lengths[0] + self.scales.total + len(self.scales)) * d
        embeddings = (self.code_channels + 1) * d + (self.classes + 1) * d
        head = 2 * d * d + 2 * d + (d + 1) * self.codebook_size
        return positions + embeddings + self.depth * block + head + (projection if self.shared_modulation else 0)


def check_pair(tokenizer: TokenizerConfig, transformer: TransformerConfig) -> None:
    """Raise `InputError`, naming every difference, unless the two models belong together."""
    names = ("scales", "codebook_size", "code_channels")
    pairs = ((name, getattr(tokenizer, name), getattr(transformer, name)) for name in names)
    wrong = [f"{name} {ours} and {theirs}" for name, ours, theirs in pairs if ours != theirs]
    _require(not wrong, f"tokenizer and transformer do not belong together: {', '.join(wrong)}")


Config = TypeVar("Config", TokenizerConfig, TransformerConfig)


def to_json(config: TokenizerConfig | TransformerConfig) -> dict[str, Any]:
    """The config as plain JSON values."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: value.to_list() if isinstance(value, Scales) else value for name, value in values.items()}


def from_json(kind: type[Config], values: Any) -> Config:
    """The reverse of `to_json`. Raises `InputError` naming the field that is missing, unknown or of the wrong type."""
    what = f"config of {kind.__name__.removesuffix('Config').lower()}"
    _require(isinstance(values, dict), f"{what}: expected an object, got {type(values).__name__}")
    hints = typing.get_type_hints(kind)
    missing, unknown = sorted(hints.keys() - values.keys()), sorted(values.keys() - hints.keys())
    _require(not missing, f"{what}: missing {', '.join(missing)}")
    _require(not unknown, f"{what}: unknown {', '.join(unknown)}")
    return kind(**{name: _read(f"{what}: {name}", hint, values[name]) for name, hint in hints.items()})


def _read(what: str, hint: Any, value: Any) -> Any:
    """`value` from JSON as the type `hint`; one of the few types the two configs use."""
    if hint is Scales:
        _require(isinstance(value, list), f"{what}: expected a list, got {value!r}")
        return Scales(value)
    if typing.get_origin(hint) is Literal:
        options = typing.get_args(hint)
        _require(value in options, f"{what}: expected one of {', '.join(options)}, got {value!r}")
        return value
    if isinstance(hint, types.GenericAlias):
        ok = isinstance(value, (list, tuple)) and all(type(item) is int for item in value)
        _require(ok, f"{what}: expected a list of ints, got {value!r}")
        return tuple(value)
    _require(type(value) is hint, f"{what}: expected {hint.__name__}, got {value!r}")
    return value
