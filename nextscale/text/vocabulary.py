"""A vocabulary of one's own: byte-level BPE, learned from the captions and saved with the model.

Any text in any language is a sequence of its pieces, since the bytes are pieces too: there are no unknown words. Case
and the kind and number of spaces do not matter. Nothing but the list of merges is stored; the 256 bytes come first.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from nextscale.config import TextConfig
from nextscale.errors import InputError
from nextscale.text.prompts import Prompts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTES = 256
LONGEST = 10_000  # characters of a prompt that are looked at: far more than any that is not cut


@dataclass(frozen=True)
class Vocabulary:
    """A `Reader`: prompts as pieces.

    Raises `InputError` for merges of pieces that are not there.
    """

    merges: tuple[str, ...]
    """Two pieces each, with a space between, in the order in which they are merged."""
    tokens: int
    """T, pieces of a prompt at most."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InputError(f"vocabulary: expected at least 1 piece a prompt, got {self.tokens}")
        known = set(_alphabet())
        for merge in self.merges:
            first, space, second = merge.partition(" ")
            if not space or not {first, second} <= known:
                raise InputError(f"vocabulary: expected merges of two known pieces, got {reprlib.repr(merge)}")
            known.add(first + second)

    @classmethod
    def learned(cls, captions: Iterable[str], *, size: int, tokens: int) -> Vocabulary:
        """From captions, a function of them alone: the pairs of pieces that are most frequent are merged.

        Arguments:
            size: pieces at most, at least 256; few captions give fewer.

        Raises `InputError` for a size below that.
        """
        from tokenizers.trainers import BpeTrainer

        if size < BYTES:
            raise InputError(f"vocabulary: expected at least {BYTES} pieces, the bytes, got {size}")
        learning = _tokenizer((), {})
        trainer = BpeTrainer(vocab_size=size, initial_alphabet=_alphabet(), show_progress=False)
        learning.train_from_iterator((caption[:LONGEST] for caption in captions), trainer)
        merges = json.loads(learning.to_str())["model"]["merges"]
        return cls(tuple(" ".join(pair) for pair in merges), tokens)

    @classmethod
    def from_json(cls, values: Any) -> Vocabulary:
        """From that section of config.json. Raises `InputError` for something else."""
        merges, tokens = (values.get(name) for name in ("merges", "tokens")) if isinstance(values, dict) else (None, 0)
        if (
            not isinstance(merges, list)
            or not all(isinstance(merge, str) for merge in merges)
            or type(tokens) is not int
        ):
            raise InputError(f"vocabulary: expected merges and tokens, got {reprlib.repr(values)}")
        return cls(tuple(merges), tokens)

    def to_json(self) -> dict[str, Any]:
        """Of config.json, the section "vocabulary"."""
        return {"vocabulary": {"tokens": self.tokens, "merges": list(self.merges)}}

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()[:16]

    @property
    def size(self) -> int:
        """How many pieces there are."""
        return len(self._numbers)

    def check(self, config: TextConfig) -> None:
        """See `Reader.check`."""
        if not self.size <= config.vocabulary or self.tokens != config.tokens:
            wanted = f"{config.vocabulary} pieces and {config.tokens} a prompt, as the model has"
            raise InputError(f"vocabulary: expected at most {wanted}, got {self.size} and {self.tokens}")

    def pieces(self, prompt: str) -> list[int]:
        """The numbers of all its pieces."""
        return list(self._tokenizer.encode(prompt[:LONGEST]).ids)

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """See `Reader.lengths`."""
        return [len(self.pieces(prompt)) for prompt in prompts]

    def read(self, prompts: Sequence[str]) -> Prompts:
        """(B, T) int64 and its mask."""
        values_BT = torch.zeros(len(prompts), self.tokens, dtype=torch.int64, device="cpu")
        mask_BT = torch.zeros(len(prompts), self.tokens, dtype=torch.bool, device="cpu")
        for row, prompt in enumerate(prompts):
            pieces = self.pieces(prompt)[: self.tokens]
            values_BT[row, : len(pieces)] = torch.tensor(pieces, dtype=torch.int64, device="cpu")
            mask_BT[row, : len(pieces)] = True
        return Prompts(values_BT, mask_BT)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Number of each piece: bytes, then what is merged, once each."""
        merged = ("".join(merge.split(" ")) for merge in self.merges)
        return {piece: number for number, piece in enumerate(dict.fromkeys([*_alphabet(), *merged]))}

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return _tokenizer(self.merges, self._numbers)


def _alphabet() -> list[str]:
    """A printable character for each byte, as GPT-2 has them."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _tokenizer(merges: Sequence[str], numbers: dict[str, int]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    made = Tokenizer(BPE(numbers, pairs))
    made.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return made
