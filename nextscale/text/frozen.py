"""Encoders of the `transformers` library as readers: prompts to states, by weights that never change here.

T5, CLIP's text half, BERT and what descends from it, by a folder or a hub name. A model that was trained with one holds
no copy of it, only where it is and what its weights were. `kept` makes states once, so that training never runs it.

Shapes: B prompts, T places, F channels.
"""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.checks import check_place
from nextscale.config import TextConfig
from nextscale.errors import InputError
from nextscale.files.checkpoint import checksum, read_tensors, write_tensors
from nextscale.machine.precision import exact
from nextscale.text.prompts import Prompts

TOGETHER = 64  # prompts encoded at a time
WHAT = "text encoder"
MOVED = " (--text-encoder, or text_encoder= of Pipeline.load, says where a model's encoder is by now)"


@dataclass(frozen=True)
class FrozenEncoder:
    """A `Reader`: prompts as states, each of mean 0 and variance 1, as float16 rounds them."""

    source: str
    """Folder or hub name."""
    tokens: int
    """T, its own beginnings and ends counted."""
    channels: int
    """F."""
    weights: str
    """Fingerprint of its weights."""

    @classmethod
    def open(cls, source: str | Path, *, tokens: int = 32) -> FrozenEncoder:
        """The encoder in a folder, or of a hub name whose files are in the cache (`hub.encoder` brings them there).

        Raises `InputError` when there is none, or the library for it is missing.
        """
        name = _placed(str(source))
        tokenizer, model = opened(name, _kind, what=WHAT, advice=MOVED)
        with torch.no_grad():
            found = cls(name, tokens, int(model.config.hidden_size), fingerprint(model))
        found.__dict__["_parts"] = tokenizer, model
        return found

    @classmethod
    def from_json(cls, values: Any, source: str | Path | None = None) -> FrozenEncoder:
        """From its section of config.json; `source` is where it is by now. Raises `InputError` for something else.

        Nothing is loaded before a prompt is read; then another encoder, or none, is an `InputError`.
        """
        kinds = {"source": str, "tokens": int, "channels": int, "weights": str}
        if not isinstance(values, dict) or any(type(values.get(name)) is not kind for name, kind in kinds.items()):
            raise InputError(f"text_encoder: expected {', '.join(kinds)}, got {reprlib.repr(values)}")
        told = {name: values[name] for name in kinds}
        if source is None:
            return cls(**told)
        found = cls(**told | {"source": _placed(str(source))})
        assert found._parts  # now, not with the first prompt
        return found

    def to_json(self) -> dict[str, Any]:
        """Of config.json, the section "text_encoder"."""
        names = ("source", "tokens", "channels", "weights")
        return {"text_encoder": {name: getattr(self, name) for name in names}}

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.weights} {self.tokens}".encode()).hexdigest()[:16]

    def check(self, config: TextConfig) -> None:
        """See `Reader.check`."""
        if (self.channels, self.tokens) != (config.frozen, config.tokens):
            wanted = f"{config.frozen} channels and {config.tokens} places, as the model has"
            raise InputError(f"text encoder: expected {wanted}, got {self.channels} and {self.tokens}")

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """See `Reader.lengths`."""
        return [len(self._parts[0](prompt)["input_ids"]) if prompt.strip() else 0 for prompt in prompts]

    def read(self, prompts: Sequence[str]) -> Prompts:
        """(B, T, F) float32 and its mask; the encoder is not run for prompts without words."""
        values_BTF = torch.zeros(len(prompts), self.tokens, self.channels, device="cpu")
        mask_BT = torch.zeros(len(prompts), self.tokens, dtype=torch.bool, device="cpu")
        worded = [row for row, prompt in enumerate(prompts) if prompt.strip()]
        for start in range(0, len(worded), TOGETHER):
            rows = worded[start : start + TOGETHER]
            values_BTF[rows], mask_BT[rows] = self._encoded([prompts[row] for row in rows])
        return Prompts(values_BTF, mask_BT)

    @torch.no_grad()
    def _encoded(self, prompts: list[str], padding: str = "max_length") -> tuple[Tensor, Tensor]:
        """States and mask; padded to T places, so that rounding does not depend on the others, or to the longest."""
        tokenizer, model = self._parts
        given = tokenizer(prompts, padding=padding, truncation=True, max_length=self.tokens, return_tensors="pt")
        mask_BT = given["attention_mask"]
        with exact():
            states_BTF = model(input_ids=given["input_ids"], attention_mask=mask_BT).last_hidden_state.float()
        normal_BTF = F.layer_norm(states_BTF, states_BTF.shape[-1:]).half().float()
        return normal_BTF.masked_fill(mask_BT.unsqueeze(2) == 0, 0.0), mask_BT.bool()

    def own(self, prompts: list[str]) -> list[Tensor]:
        """(t, F) float16 of each prompt, without padding."""
        pairs = zip(*self._encoded(prompts, "longest"), strict=True)
        return [states_TF[mask_T].half() for states_TF, mask_T in pairs]

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        """Tokenizer and model, loaded when the first prompt comes."""
        tokenizer, model = opened(self.source, _kind, what=WHAT, advice=MOVED)
        weights = fingerprint(model)
        if weights != self.weights:
            raise InputError(f"text encoder {self.source}: expected weights {self.weights}, got others, {weights}")
        return tokenizer, model


def _placed(source: str) -> str:
    """A folder's full path; a hub name as it is."""
    check_place(WHAT, source)
    return str(Path(source).resolve()) if Path(source).exists() else source


def opened(source: str, kind: Callable[[Any, Any], Any], *, what: str, advice: str = "") -> tuple[Any, Any]:
    """Tokenizer and model, without a download.

    Arguments:
        kind: (the library, the model's config) -> the library's class for it; `ValueError` where it is of no use.
        what: it is, for the `InputError` where there is none, or no library; `advice` ends that.
    """
    try:
        import transformers
    except ImportError:
        told = "expected the library transformers, found none: pip install nextscale[text]"
        raise InputError(f"{what}: {told}") from None
    try:
        if not Path(source).is_dir() and ("/" not in source or Path(source).is_absolute()):
            raise OSError("no such folder")
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(source, local_files_only=True)
            fitting = kind(transformers, config)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
            model = fitting.from_pretrained(source, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{what} {source}: expected one of the transformers library, got: {reason}{advice}") from None
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer, model.eval().requires_grad_(False)


def _kind(transformers: Any, config: Any) -> Any:
    """The class that has the encoder alone."""
    if config.model_type in ("clip", "clip_text_model"):
        return transformers.CLIPTextModel
    both = type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
    return transformers.AutoModelForTextEncoding if both else transformers.AutoModel


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the library's bars and advice; a checkpoint may hold more than the encoder."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def fingerprint(model: Any) -> str:
    """Of all weights, 16 hex digits."""
    told = "".join(f"{name} {checksum(weight)} " for name, weight in sorted(model.named_parameters()))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


# ---- states made once ------------------------------------------------------------------------------------------------


class KeptStates:
    """A reader that has the states of some prompts already, in float16, and runs the other one for the rest alone."""

    def __init__(self, reader: FrozenEncoder, states: dict[str, Tensor]) -> None:
        self.reader, self.states = reader, states

    @property
    def tokens(self) -> int:
        return self.reader.tokens

    @property
    def fingerprint(self) -> str:
        return self.reader.fingerprint

    def check(self, config: TextConfig) -> None:
        """See `Reader.check`."""
        self.reader.check(config)

    def to_json(self) -> dict[str, Any]:
        """The other reader's."""
        return self.reader.to_json()

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """See `Reader.lengths`."""
        return self.reader.lengths(prompts)

    def read(self, prompts: Sequence[str]) -> Prompts:
        """See `Reader.read`; prompts that are not kept are encoded."""
        values_BTF = torch.zeros(len(prompts), self.tokens, self.reader.channels, device="cpu")
        mask_BT = torch.zeros(len(prompts), self.tokens, dtype=torch.bool, device="cpu")
        unknown = [row for row, prompt in enumerate(prompts) if prompt.strip() and prompt not in self.states]
        if unknown:
            values_BTF[unknown], mask_BT[unknown] = self.reader.read([prompts[row] for row in unknown])
        for row, prompt in enumerate(prompts):
            if (states_tF := self.states.get(prompt)) is not None:
                values_BTF[row, : len(states_tF)] = states_tF.float()
                mask_BT[row, : len(states_tF)] = True
        return Prompts(values_BTF, mask_BT)


def kept(reader: FrozenEncoder, prompts: Sequence[str], *, file: Path | None = None) -> KeptStates:
    """`reader` with the states of `prompts` made now, or read from a file where the same ones were kept before.

    Places that count come first: an encoder that is padded in front keeps nothing of that.
    """
    once = sorted({prompt for prompt in prompts if prompt.strip()})
    digest = hashlib.sha256("\0".join([reader.fingerprint, *once]).encode()).hexdigest()[:16]
    place = file.with_name(f"{file.stem}-{digest}{file.suffix}") if file is not None else None
    if place is not None and place.is_file():
        tensors = read_tensors(place)
        return KeptStates(reader, dict(zip(once, tensors["states"].split(tensors["lengths"].tolist()), strict=True)))
    by_length = sorted(once, key=len)
    parts = (by_length[start : start + TOGETHER] for start in range(0, len(once), TOGETHER))
    made = {prompt: states for part in parts for prompt, states in zip(part, reader.own(part), strict=True)}
    states = [made[prompt] for prompt in once]
    if place is not None and states:
        lengths = torch.tensor([len(part) for part in states])
        write_tensors(place, {"states": torch.cat(states), "lengths": lengths})
    return KeptStates(reader, dict(zip(once, states, strict=True)))
