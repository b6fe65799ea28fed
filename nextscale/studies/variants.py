"""What the study of tokenizers compares: kinds of codes, of one or several sizes, with and without scale dropout.

With one size of codes all variants have as many tokens and, within 3 %, as many bits a picture. More sizes come twice:
with the same token maps, and with fewer of them, so that a picture has as many bits as with the first size.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from nextscale import presets
from nextscale.config import WIDEST_SPHERE, TokenizerConfig, TransformerConfig
from nextscale.errors import InputError
from nextscale.evaluation.card import Setting
from nextscale.scales import Scales
from nextscale.training import recipes
from nextscale.training.recipes import TokenizerRecipe, TransformerRecipe

KINDS = ("vq", "simvq", "fsq", "hbq", "bsq", "sphere")
LEVELS = {8: (8, 6, 5), 10: (8, 5, 5, 5), 12: (7, 5, 5, 5, 5), 14: (8, 8, 8, 6, 5), 16: (8, 8, 8, 5, 5, 5)}
"""Of FSQ, as its authors choose them, by the bits of a code."""
SIZES = tuple(LEVELS)
LEAST_SCALES = 3  # that a picture with scale dropout keeps
UNCUT = Setting(guidance=1.5, top_k=0, top_p=0.0)
SECOND, MODEL = "transformer.", "architecture."  # begin the names of changes that are not of the tokenizers' recipe
CHOSEN = tuple(MODEL + name for name in ("quantizer", "levels", "bits", "reparametrised", "codebook_size"))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to compare."""

    preset: str = "emoji-64"
    """Whose convnet, picture size and recipes."""
    depth: int = 4
    """Blocks of the transformer; its width is 64 times as much."""
    bits: tuple[int, ...] = (10,)
    """Bits of a code, about; of `SIZES`."""
    dropout: tuple[float, ...] = (0.0, 0.1)
    """Shares of pictures that are painted with their first scales only: each variant with each."""
    only: tuple[str, ...] = ()
    """Kinds, or names of cells; none: all."""
    seeds: tuple[int, ...] = (0,)
    views: int = 2
    """Of each training picture, encoded."""
    count: int = 900
    """Generated pictures to judge, rounded up to as many of each class."""
    setting: Setting = UNCUT
    """Of sampling. To cut off unlikely codes means another thing for a digit than for a code."""
    changes: tuple[str, ...] = ()
    """Of recipes and architecture, as `--set` takes them; of the transformer's recipe as `transformer.NAME=VALUE`."""

    def __post_init__(self) -> None:
        for size in self.bits:
            if size not in SIZES:
                raise InputError(f"bits: expected some of {', '.join(map(str, SIZES))}, got {size}")
        for name, values in (("bits", self.bits), ("dropout", self.dropout), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise InputError(f"{name}: expected at least one value, and each once, got {values}")
        for share in self.dropout:
            if not 0 <= share <= 1:
                raise InputError(f"dropout: expected shares from 0 to 1, got {share:g}")
        for name in ("depth", "views", "count"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for change in self.changes:
            name = change.partition("=")[0].strip()
            if name in CHOSEN:
                raise InputError(f"set: expected {name} of the study, got it as a setting")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A tokenizer to train, and the digits in which its tokens are predicted."""

    name: str
    kind: str
    size: int
    """Bits of a code, about."""
    thin: bool
    """With fewer token maps than the preset."""
    dropout: float
    config: TokenizerConfig
    recipe: TokenizerRecipe
    groups: tuple[int, ...]
    """None: as the codes have digits."""


# -- what is compared --------------------------------------------------------------------------------------------------


def variants(asked: Asked) -> list[Variant]:
    """All that is asked for. Raises `InputError` for settings that do not fit a variant, and names that are none's."""
    transformer_of(asked, first_of(asked))  # whose changes may be wrong, too
    made = [
        _variant(asked, kind, size, thin, dropout)
        for size in asked.bits
        for thin in ((False, True) if size > asked.bits[0] else (False,))  # fewer bits a code cannot be made up for
        for kind in KINDS
        for dropout in asked.dropout
    ]
    known = {name for variant in made for name in (variant.kind, variant.name)}
    if unknown := [name for name in asked.only if name not in known]:
        raise InputError(f"only: expected some of {', '.join(KINDS)}, or names of cells, got {unknown[0]!r}")
    return [variant for variant in made if not asked.only or {variant.kind, variant.name} & {*asked.only}]


def first_of(asked: Asked) -> Variant:
    """A learned codebook of the first size, without dropout."""
    return _variant(asked, KINDS[0], asked.bits[0], False, 0.0)


def _variant(asked: Asked, kind: str, size: int, thin: bool, dropout: float) -> Variant:
    config, settings = _base(asked)
    config, more, groups = _of_kind(config, kind, size)
    if thin:
        tokens = config.scales.total * asked.bits[0] / size
        config = _with_scales(config, thinned(config.scales, tokens))
    settings += more
    if dropout:
        least = min(LEAST_SCALES, max(len(config.scales) - 1, 1))
        settings += [f"codebook.dropout={dropout:g}", f"codebook.dropout_from={least}"]
    recipe = recipes.changed(recipes.for_preset(asked.preset)[0].suited(config), settings)
    name = _name(asked, kind, size, thin, dropout)
    try:
        recipe.check(config)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return Variant(
        name=name, kind=kind, size=size, thin=thin, dropout=dropout, config=config, recipe=recipe, groups=groups
    )


def _name(asked: Asked, kind: str, size: int, thin: bool, dropout: float) -> str:
    """`fsq-16-thin-dropout`: with what tells it from others."""
    several = sum(share > 0 for share in asked.dropout) > 1
    words = [kind, str(size) if size != asked.bits[0] else "", "thin" if thin else ""]
    words += [f"dropout{dropout:g}" if several else "dropout"] if dropout else []
    return "-".join(word for word in words if word)


def _base(asked: Asked) -> tuple[TokenizerConfig, list[str]]:
    """The preset's architecture with the changes asked for, and the changes of the recipe."""
    architecture = [change for change in asked.changes if change.startswith(MODEL)]
    others = [change for change in asked.changes if not change.startswith((MODEL, SECOND))]
    return recipes.changed(presets.get(asked.preset).tokenizer, architecture, MODEL), others


def _of_kind(config: TokenizerConfig, kind: str, size: int) -> tuple[TokenizerConfig, list[str], tuple[int, ...]]:
    """The config with codes of a kind, what the recipe wants for them, and groups if they are not the codes' digits."""
    changes: dict[str, dict[str, Any]] = {
        "vq": {"codebook_size": 2**size},
        "simvq": {"codebook_size": 2**size, "reparametrised": True},
        "fsq": {"quantizer": "fsq", "levels": LEVELS[size]},
        "hbq": {"quantizer": "fsq", "levels": (4,) * (size // 2)},
        "bsq": {"quantizer": "bsq", "bits": size},
        "sphere": {"quantizer": "sphere", "code_channels": _sphere(size)},
    }
    settings = ["codebook.gradient=rotation"] if kind == "simvq" else []
    return dataclasses.replace(config, **changes[kind]), settings, (2,) * size if kind == "hbq" else ()


def _sphere(size: int) -> int:
    """Channels of the smallest sphere of 2^size codes or more: 2 d (d - 1)."""
    enough = (d for d in range(2, WIDEST_SPHERE) if 2 * d * (d - 1) >= 2**size)
    return next(enough, WIDEST_SPHERE)


def thinned(scales: Scales, tokens: float) -> Scales:
    """Some of the token maps, the first and the last among them, that come nearest to so many tokens."""
    ends = scales.lengths[0] + scales.lengths[-1]
    found: dict[int, tuple[int, ...]] = {ends: ()}
    for k in range(1, len(scales) - 1):
        found |= {total + scales.lengths[k]: (*kept, k) for total, kept in [*found.items()]}
    middle = found[min(found, key=lambda total: abs(total - tokens))]
    return Scales([scales.sizes[k] for k in dict.fromkeys((0, *middle, len(scales) - 1))])


def _with_scales(config: TokenizerConfig, scales: Scales) -> TokenizerConfig:
    """A phi for each scale stays one for each."""
    each = config.phi_sharing == "none" and config.phi_count > 0
    return dataclasses.replace(config, scales=scales, phi_count=len(scales) if each else config.phi_count)


# -- the same for all -------------------------------------------------------------------------------------------------


def size_of(asked: Asked) -> tuple[int, int]:
    """(height, width) of the pictures."""
    config, _ = _base(asked)
    return config.height, config.width


def transformer_of(asked: Asked, variant: Variant) -> tuple[TransformerConfig, TransformerRecipe]:
    """The same for all variants, but for what their codes ask of the head; and its recipe."""
    config = dataclasses.replace(presets.get(asked.preset).transformer.of_depth(asked.depth), text=None)
    if variant.groups:
        config = dataclasses.replace(config, codebook_size=variant.config.codebook_size, groups=variant.groups)
    recipe = recipes.for_transformer(asked.preset)[0]
    changes = [change for change in asked.changes if change.startswith(SECOND)]
    return config, recipes.changed(recipe, changes, SECOND)


def told(variant: Variant) -> str:
    """The codes in a few words."""
    config = variant.config
    told = {
        "vq": f"{config.codebook_size:,} learned",
        "simvq": f"{config.codebook_size:,} moved together",
        "fsq": f"levels {','.join(map(str, config.levels))}",
        "hbq": f"{len(variant.groups)} bits of levels",
        "bsq": f"{config.bits} bits",
        "sphere": f"{config.codebook_size:,} fixed",
    }
    return told[variant.kind]


AnyRecipe = TypeVar("AnyRecipe", TokenizerRecipe, TransformerRecipe)


def warmed(recipe: AnyRecipe, steps: int) -> AnyRecipe:
    """A recipe whose warm-up is a tenth of the run at most: presets' runs are longer than a study's."""
    own = recipe.optimization
    warmup = min(own.warmup_steps, steps // 10)
    return dataclasses.replace(recipe, optimization=dataclasses.replace(own, warmup_steps=warmup))
