"""Text in `train transformer`: which reader there is, what it asks of the model, what it makes of captions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nextscale import hub
from nextscale.cli.output import say
from nextscale.errors import InputError
from nextscale.text.frozen import FrozenEncoder, kept
from nextscale.text.prompts import Reader
from nextscale.text.vocabulary import Vocabulary
from nextscale.training.recipes import Reading, TransformerRecipe

if TYPE_CHECKING:
    from nextscale.config import TransformerConfig
    from nextscale.data import DataSet
    from nextscale.data.tokens import TokenSet
    from nextscale.pipeline import Pipeline

NONE, EMBEDDED = "none", "embedded"
VOCABULARY = 4096  # pieces that captions are read in, unless the preset says
STATES = Path("text", "states.safetensors")  # in a token cache


def reader_before(text: str | None, first: Pipeline | None) -> Reader | None:
    """The reader that is there before any caption is: that of the model to begin from, or a frozen encoder.

    Arguments:
        text: of --text.
        first: the model to begin from.

    Raises `InputError` where the two contradict each other, or there is no such encoder.
    """
    own = first.reader if first is not None else None
    if text is None or (text == EMBEDDED and not isinstance(own, FrozenEncoder)) or (text == NONE and own is None):
        return own
    if hub.is_name(text):
        hub.encoder(text)
    found = FrozenEncoder.open(text) if text not in (NONE, EMBEDDED) else None
    if own is not None and (found is None or found.fingerprint != own.fingerprint):
        raise InputError(
            f"--text {text}: expected as --init a model that reads so, or none, got one that reads otherwise"
        )
    return found


def with_text(config: TransformerConfig, text: str | None, reader: Reader | None) -> TransformerConfig:
    """The architecture with the encoder that `--text` and the reader ask for."""
    if text == NONE:
        return replace(config, text=None)
    if isinstance(reader, FrozenEncoder) and not (config.text and config.text.frozen):
        return config.reading(frozen=reader.channels, tokens=reader.tokens)
    return config.reading(vocabulary=VOCABULARY) if text == EMBEDDED and config.text is None else config


def recipe_of(recipe: TransformerRecipe, reader: Reader | None) -> TransformerRecipe:
    """The recipe of a model that reads; a frozen encoder's states are made once, of captions as they are."""
    return replace(
        recipe, text=Reading(word_dropout=0.0, shuffle=False) if isinstance(reader, FrozenEncoder) else Reading()
    )


def read(
    config: TransformerConfig, reader: Reader | None, recipe: TransformerRecipe, data: DataSet | TokenSet, source: str
) -> tuple[Reader, TransformerConfig]:
    """The reader that training uses, and the architecture that goes with it; says what was learned, or made, and cut.

    Raises `InputError` for data without captions, and for changes of captions whose states are made once.
    """
    if data.train.captions is None:
        raise InputError(
            f"--data {source}: expected captions, for a model that reads text, got none; --captions own reads those "
            "that come with the pictures, --text none trains a model that reads none"
        )
    captions = [caption for every in data.train.captions for caption in every]
    frozen = reader if isinstance(reader, FrozenEncoder) else None
    if reader is None:
        assert config.text is not None
        reader = learned = Vocabulary.learned(captions, size=config.text.vocabulary, tokens=config.text.tokens)
        config = replace(config, text=replace(config.text, vocabulary=learned.size))
        say(f"text: {learned.size} pieces, learned from {len(captions)} captions of the training pictures")
    cut = sum(length > reader.tokens for length in reader.lengths(captions))
    if cut:
        say(f"text: {cut} captions are longer than {reader.tokens} pieces, their ends are not read")
    return (reader if frozen is None else _kept(frozen, recipe, data, source)), config


def _kept(reader: FrozenEncoder, recipe: TransformerRecipe, data: DataSet | TokenSet, source: str) -> Reader:
    """With the states of all captions; in a token cache, they are there the next time."""
    from nextscale.data import tokens

    if recipe.text is not None and (recipe.text.word_dropout or recipe.text.shuffle):
        raise InputError("--set: expected text.word_dropout=0 and text.shuffle=false with a frozen encoder, got others")
    splits = (data.train.captions or (), data.validation.captions or ())
    captions = [caption for split in splits for every in split for caption in every]
    say(f"text: states of {len(set(captions))} captions by {reader.source}")
    return kept(reader, captions, file=Path(source) / STATES if tokens.is_cache(source) else None)
