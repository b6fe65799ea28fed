"""Two models of a few thousand weights, for programs that are about something else: each call takes milliseconds."""

from __future__ import annotations

from collections.abc import Sequence

from nextscale import VAR, MultiScaleVQVAE, Pipeline, Scales
from nextscale.config import TokenizerConfig, TransformerConfig
from nextscale.text.vocabulary import Vocabulary

TOKENIZER = TokenizerConfig(
    scales=Scales([1, 2, 4]),
    codebook_size=32,
    code_channels=8,
    channels=32,
    multipliers=(1, 1),
    residual_blocks=1,
    phi_sharing="partial",
    phi_count=4,
    distance="euclidean",
)


def transformer(*, classes: int) -> TransformerConfig:
    """The one that belongs to it, for so many classes."""
    return TransformerConfig(
        scales=TOKENIZER.scales,
        codebook_size=TOKENIZER.codebook_size,
        code_channels=TOKENIZER.code_channels,
        classes=classes,
        depth=1,
        width=32,
        heads=2,
        feed_forward=64,
        normalized_attention=True,
        shared_modulation=False,
    )


def pipeline(classes: Sequence[str]) -> Pipeline:
    """Both, in float32."""
    models = MultiScaleVQVAE(TOKENIZER), VAR(transformer(classes=len(classes)))
    return Pipeline(*models, classes=classes, precision="fp32")


def reading_pipeline(classes: Sequence[str]) -> Pipeline:
    """The same, which reads prompts byte by byte."""
    config, reader = transformer(classes=len(classes)), Vocabulary((), 8)
    model = VAR(config.reading(vocabulary=reader.size, tokens=reader.tokens))
    return Pipeline(MultiScaleVQVAE(TOKENIZER), model, classes=classes, precision="fp32", reader=reader)
