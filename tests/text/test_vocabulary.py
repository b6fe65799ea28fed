"""Laws of the vocabulary: any text is read, captions alone decide it, and it comes back from JSON."""

from __future__ import annotations

import json
import pickle

import pytest
from conftest import CAPTIONS
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.config import TextConfig
from nextscale.errors import InputError
from nextscale.text.vocabulary import Vocabulary

BYTES_ALONE = Vocabulary((), 64)


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_no_word_is_unknown(text: str) -> None:
    """Any text is pieces that there are; nothing but spaces is none."""
    pieces = BYTES_ALONE.pieces(text)
    assert all(0 <= piece < 256 for piece in pieces)
    assert bool(pieces) == bool(text.strip()) or not text.isprintable()


def test_case_and_spaces_do_not_matter(vocabulary: Vocabulary) -> None:
    """Nor how an accent is written."""
    assert vocabulary.pieces("A  Red\tHeart ") == vocabulary.pieces("a red heart")
    assert vocabulary.pieces("café") == vocabulary.pieces("café")
    assert vocabulary.pieces("a red heart") != vocabulary.pieces("a red cat")


def test_frequent_words_are_few_pieces(vocabulary: Vocabulary) -> None:
    """What merges are for; in any language."""
    for caption in CAPTIONS:
        assert len(vocabulary.pieces(caption)) < 0.6 * len(caption.encode())


def test_captions_alone_decide_it(vocabulary: Vocabulary) -> None:
    """Learned again it is the same; others give another."""
    again = Vocabulary.learned(iter(CAPTIONS), size=300, tokens=8)
    assert again == vocabulary
    assert again.fingerprint == vocabulary.fingerprint
    assert Vocabulary.learned(CAPTIONS[:2], size=300, tokens=8).fingerprint != vocabulary.fingerprint
    assert Vocabulary.learned(CAPTIONS, size=260, tokens=8).size == 260
    assert Vocabulary.learned([], size=300, tokens=8) == Vocabulary((), 8)


def test_it_comes_back_from_json(vocabulary: Vocabulary) -> None:
    """And from a pickle; what is something else is told."""
    section = json.loads(json.dumps(vocabulary.to_json()))["vocabulary"]
    assert Vocabulary.from_json(section) == vocabulary
    assert pickle.loads(pickle.dumps(vocabulary)).pieces("a red heart") == vocabulary.pieces("a red heart")
    for wrong in (None, [], {"merges": "a b", "tokens": 8}, {"merges": ["a b"]}, {"merges": [1], "tokens": 8}):
        with pytest.raises(InputError, match="vocabulary: expected merges and tokens, got "):
            Vocabulary.from_json(wrong)
    with pytest.raises(InputError, match="expected merges of two known pieces, got 'ab c'"):
        Vocabulary.from_json({"merges": ["ab c"], "tokens": 8})
    with pytest.raises(InputError, match="expected at least 256 pieces, the bytes, got 255"):
        Vocabulary.learned(CAPTIONS, size=255, tokens=8)


def test_what_is_too_long_is_cut(vocabulary: Vocabulary) -> None:
    """From the end; a short prompt is padded, and one without words is all padding."""
    prompts = ["a red heart", " ", "a cat face " * 5]
    values, mask = vocabulary.read(prompts)
    assert values.shape == mask.shape == (3, 8)
    lengths = vocabulary.lengths(prompts)
    assert mask.sum(dim=1).tolist() == [min(length, 8) for length in lengths]
    assert lengths[1] == 0
    assert lengths[2] > 8
    assert values[2].tolist() == vocabulary.pieces(prompts[2])[:8]


def test_a_model_of_fewer_pieces_is_refused(vocabulary: Vocabulary) -> None:
    """And one that reads more of a prompt; spare pieces do no harm."""
    config = {"frozen": 0, "depth": 1, "width": 8, "heads": 1}
    vocabulary.check(TextConfig(tokens=8, vocabulary=1000, **config))
    for tokens, pieces in ((8, vocabulary.size - 1), (9, vocabulary.size)):
        with pytest.raises(InputError, match=f"got {vocabulary.size} and 8"):
            vocabulary.check(TextConfig(tokens=tokens, vocabulary=pieces, **config))
