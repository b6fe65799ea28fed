"""The tokenizer that most tests are about: two levels of a convnet, 64 codes, 8 x 8 pixels."""

from __future__ import annotations

from nextscale import Scales
from nextscale.config import TokenizerConfig

TOKENIZER = TokenizerConfig(
    scales=Scales([1, 2, 3, 4]),
    codebook_size=64,
    code_channels=8,
    channels=32,
    multipliers=(1, 1),
    residual_blocks=1,
    phi_sharing="partial",
    phi_count=4,
    distance="euclidean",
)
