"""The models that have names, in one table; the last column is the published result (FID on ImageNet, ADM protocol).

`var-*` are the public release's sizes: VQGAN f16 with V = 4096 and C = 32, and the paper's rule width = 64 * depth.
`emoji-*` are for the embedded data: small enough to be trained on two CPU cores; so is `icons-64`, which reads text, on
tens of thousands of captioned drawings. `small-128` and `base-256` are for data of one's own on one accelerator;
training fits the number of classes to the data, and the vocabulary to its captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from nextscale.checks import checked
from nextscale.config import TokenizerConfig, TransformerConfig
from nextscale.errors import InputError
from nextscale.scales import Scales


@dataclass(frozen=True)
class Preset:
    """A tokenizer, the transformer that goes with it, and what was published about the pair."""

    name: str
    tokenizer: TokenizerConfig
    transformer: TransformerConfig
    published: str


SCALES = {
    "32": Scales([1, 2, 3, 4, 6, 8]),
    "64": Scales([1, 2, 3, 4, 6, 8]),
    "128": Scales([1, 2, 3, 4, 5, 6, 8, 10, 13, 16]),
    "256": Scales([1, 2, 3, 4, 5, 6, 8, 10, 13, 16]),
    "512": Scales([1, 2, 3, 4, 6, 9, 13, 18, 24, 32]),
}

#   tokenizer: V, C, channels, multipliers, residual blocks, distance
TOKENIZERS: dict[str, tuple[int, int, int, tuple[int, ...], int, Literal["euclidean", "cosine"]]] = {
    "tiny": (512, 16, 32, (1, 1, 2), 1, "euclidean"),
    "small": (1024, 16, 32, (1, 2, 4, 4), 1, "cosine"),
    "icons": (2048, 16, 32, (1, 2, 2, 3), 1, "cosine"),
    "medium": (2048, 16, 64, (1, 2, 4, 4), 1, "cosine"),
    "large": (4096, 32, 96, (1, 1, 2, 2, 4), 2, "cosine"),
    "vqgan": (4096, 32, 160, (1, 1, 2, 2, 4), 2, "euclidean"),
}

# fmt: off
#    name           pixels tokenizer classes depth width heads shared  published
TABLE = (
    ("emoji-32",    "32",  "tiny",        9,    4,  256,    4, False, "-"),
    ("emoji-64",    "64",  "small",       9,    8,  384,    6, False, "-"),
    ("icons-64",    "64",  "icons",       1,    6,  256,    4, True,  "-"),
    ("small-128",   "128", "medium",     10,   12,  768,   12, False, "-"),
    ("base-256",    "256", "large",     100,   16, 1024,   16, False, "-"),
    ("var-d16",     "256", "vqgan",    1000,   16, 1024,   16, False, "3.30 (release card 3.55)"),
    ("var-d20",     "256", "vqgan",    1000,   20, 1280,   20, False, "2.57 (2.95)"),
    ("var-d24",     "256", "vqgan",    1000,   24, 1536,   24, False, "2.09 (2.33)"),
    ("var-d30",     "256", "vqgan",    1000,   30, 1920,   30, False, "1.92 (1.97)"),
    ("var-d36-512", "512", "vqgan",    1000,   36, 2304,   36, True,  "2.63"),
)
# fmt: on
VOCABULARIES = {"icons-64": 4096}  # pieces at most, of presets that read text


def names() -> tuple[str, ...]:
    """The presets' names, in the table's order."""
    return tuple(row[0] for row in TABLE)


@checked
def get(name: str) -> Preset:
    """The preset of that name. Raises `InputError`, with the nearest name, when there is none."""
    for row in TABLE:
        if row[0] == name:
            return _build(*row)
    close = get_close_matches(name, names(), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(f"preset: expected one of {', '.join(names())}, got {name!r}{hint}")


def of_tokenizer(config: TokenizerConfig) -> Preset:
    """The preset whose tokenizer has most in common with this one; the first such, of several that share one."""

    def alike(preset: Preset) -> int:
        return sum(getattr(preset.tokenizer, name) == value for name, value in vars(config).items())

    return max(map(get, names()), key=alike)


def _build(
    name: str,
    pixels: str,
    tokenizer: str,
    classes: int,
    depth: int,
    width: int,
    heads: int,
    shared: bool,
    published: str,
) -> Preset:
    codebook_size, code_channels, channels, multipliers, residual_blocks, distance = TOKENIZERS[tokenizer]
    transformer = TransformerConfig(
        scales=SCALES[pixels],
        codebook_size=codebook_size,
        code_channels=code_channels,
        classes=classes,
        depth=depth,
        width=width,
        heads=heads,
        feed_forward=4 * width,
        normalized_attention=True,
        shared_modulation=shared,
    )
    return Preset(
        name,
        TokenizerConfig(
            scales=SCALES[pixels],
            codebook_size=codebook_size,
            code_channels=code_channels,
            channels=channels,
            multipliers=multipliers,
            residual_blocks=residual_blocks,
            phi_sharing="partial",
            phi_count=4,
            distance=distance,
        ),
        transformer.reading(vocabulary=VOCABULARIES[name]) if name in VOCABULARIES else transformer,
        published,
    )
