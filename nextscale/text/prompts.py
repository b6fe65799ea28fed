"""Prompts as tensors, and states: what a reader makes of words, and what an encoder makes of that.

A reader (`vocabulary.Vocabulary`) belongs to the pipeline and is no module; the encoder (`encoder.TextEncoder`) is part
of the transformer, which never sees a word. Shapes: B prompts, T places of a prompt, F channels, D width of the states.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from nextscale.config import TextConfig
from nextscale.errors import InputError


class Prompts(NamedTuple):
    """What a reader gives and `VAR` takes."""

    values: Tensor
    """(B, T) int64, numbers of pieces; or (B, T, F) float, states of a frozen encoder."""
    mask: Tensor
    """(B, T) bool, True where there is a piece. A row without any is "no text"; other places are never looked at."""

    def to(self, device: torch.device) -> Prompts:
        return Prompts(self.values.to(device), self.mask.to(device))

    def dropped(self, drop_B: Tensor) -> Prompts:
        """Where `drop_B`, (B,) bool, is True, no text."""
        return Prompts(self.values, self.mask & ~drop_B.to(self.mask.device).unsqueeze(1))

    def none(self) -> Prompts:
        """As many rows of no text."""
        return Prompts(self.values, torch.zeros_like(self.mask))

    def followed_by(self, others: Prompts) -> Prompts:
        """These rows, then those; both have T places."""
        pairs = zip(self, others, strict=True)
        return Prompts(*(torch.cat(pair) for pair in pairs))


class States(NamedTuple):
    """What an encoder gives."""

    states: Tensor
    """(B, T, D) float32, 0 where it is masked."""
    mask: Tensor
    """(B, T) bool, True where there is something to look at: at least once in each row."""
    pooled: Tensor
    """(B, D) float32, the mean of those."""


@runtime_checkable
class Reader(Protocol):
    """Words in, tensors of T places out, on the CPU: a function of each prompt alone."""

    @property
    def tokens(self) -> int:
        """T."""
        ...

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with what any prompt is read as."""
        ...

    def check(self, config: TextConfig) -> None:
        """Raise `InputError` unless a model of this config understands what is read."""
        ...

    def read(self, prompts: Sequence[str]) -> Prompts:
        """What is longer than T is cut; what has no words is no text."""
        ...

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """How many places each would take."""
        ...

    def to_json(self) -> dict[str, Any]:
        """A section of config.json."""
        ...


def no_text(config: TextConfig, batch: int, device: torch.device) -> Prompts:
    """A batch of no text."""
    shape = (batch, 1, config.frozen) if config.frozen else (batch, 1)
    values = torch.zeros(shape, dtype=torch.float32 if config.frozen else torch.int64, device=device)
    return Prompts(values, torch.zeros(batch, 1, dtype=torch.bool, device=device))


def check_reader(reader: Reader | None, config: TextConfig | None) -> None:
    """Raise `InputError` unless a model that takes text has a reader that it understands, and another has none."""
    if reader is None and config is not None:
        raise InputError("reader: expected one, as the transformer takes text, got none")
    if reader is not None and config is None:
        raise InputError("reader: expected none, as the transformer takes no text, got one")
    if reader is not None and config is not None:
        reader.check(config)


def check_prompts(prompts: Prompts, config: TextConfig, batch: int) -> None:
    """Raise `InputError` unless these are `batch` prompts that an encoder of this config takes.

    Waits for the device, as `transformer.model.check_given` does.
    """
    if not isinstance(prompts, Prompts) or not all(isinstance(part, Tensor) for part in prompts):
        raise InputError(f"prompts: expected Prompts, as a reader gives them, got {reprlib.repr(prompts)}")
    values, mask = prompts
    inner = (config.frozen,) if config.frozen else ()
    shaped = values.shape[2:] == inner and values.shape[:2] == mask.shape and len(mask) == batch and mask.shape[1] >= 1
    typed = mask.dtype == torch.bool and (values.is_floating_point() if config.frozen else values.dtype == torch.int64)
    if not (shaped and typed):
        wanted = ", ".join(map(str, (batch, "T", *inner)))
        got = f"{tuple(values.shape)} {values.dtype} and {tuple(mask.shape)} {mask.dtype}"
        raise InputError(f"prompts: expected ({wanted}) and a mask ({batch}, T) bool, got {got}")
    if mask.is_meta or torch.compiler.is_compiling() or not mask.any():
        return
    if int(mask.sum(dim=1).max()) > config.tokens:
        raise InputError(f"prompts: expected at most {config.tokens} pieces, got {int(mask.sum(dim=1).max())}")
    if not config.frozen and not 0 <= int(values[mask].min()) <= int(values[mask].max()) < config.vocabulary:
        low, high = int(values[mask].min()), int(values[mask].max())
        raise InputError(f"prompts: expected pieces 0 .. {config.vocabulary - 1}, got {low} .. {high}")
