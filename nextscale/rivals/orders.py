"""Which model and which sampler belong to an order of prediction; VAR's own is one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from nextscale.config import Order, TransformerConfig
from nextscale.errors import InputError
from nextscale.rivals import raster
from nextscale.rivals.masked import Masked, MaskedSampler
from nextscale.rivals.raster import Line, Raster
from nextscale.rivals.refined import Refined, RefinedSampler
from nextscale.sampling.loop import Canvas, Painted, Pyramid, generate
from nextscale.tokenizer.quantizer import MultiScaleQuantizer
from nextscale.transformer import VAR


class Sampler(Protocol):
    """How pictures are painted by the models of an order."""

    def count(self, config: TransformerConfig) -> int:
        """How many steps a picture takes."""
        ...

    def paint(self, *given: Any, **options: Any) -> Iterator[Painted]:
        """As `loop.generate`."""
        ...


class OneAfterTheOther:
    """What is predicted stays, and the next step sees it: `loop.generate`, on a canvas of the order's own."""

    def __init__(self, on: Callable[[MultiScaleQuantizer, int], Canvas]) -> None:
        self.on = on

    def count(self, config: TransformerConfig) -> int:
        return len(config.walk)

    def paint(self, *given: Any, **options: Any) -> Iterator[Painted]:
        return generate(*given, **options, on=self.on)


class Kind(NamedTuple):
    """What belongs to an order."""

    model: type[VAR]
    sampler: Sampler
    """As it usually is; a dataclass where it has settings."""


KINDS: dict[Order, Kind] = {
    "scale": Kind(VAR, OneAfterTheOther(Pyramid)),
    "raster": Kind(Raster, OneAfterTheOther(Line)),
    "masked": Kind(Masked, MaskedSampler()),
    "refined": Kind(Refined, RefinedSampler()),
}


# What the transformer of an order that has a likelihood sees of finished tokens, under teacher forcing.
TEACHERS: dict[Order, Callable[[MultiScaleQuantizer, Tensor], Tensor]] = {
    "scale": MultiScaleQuantizer.teacher_inputs,
    "raster": raster.teacher_inputs,
}


def teacher_inputs(config: TransformerConfig, quantizer: MultiScaleQuantizer, tokens_BL: Tensor) -> Tensor:
    """Tokens (B, L) int64 -> what all steps but the first begin with, (B, l, C) float32.

    Raises `InputError` for an order whose pictures have no likelihood.
    """
    if config.order not in TEACHERS:
        known = " or ".join(TEACHERS)
        raise InputError(f"likelihood: expected a model of order {known}, got one of order {config.order}")
    return TEACHERS[config.order](quantizer, tokens_BL)


def settings_of(sampler: Sampler) -> dict[str, Any]:
    """What may be chosen of it, as JSON can hold it."""
    return dict(vars(sampler)) if dataclasses.is_dataclass(sampler) else {}


def changed(sampler: Sampler, settings: Mapping[str, Any]) -> Sampler:
    """With other settings, which may be none. Raises `InputError` for those that it has not got."""
    unknown = [name for name in settings if name not in settings_of(sampler)]
    if unknown:
        told = ", ".join(settings_of(sampler)) or "none, which is all this order has"
        raise InputError(f"sampler: expected settings among {told}, got {unknown[0]}")
    return dataclasses.replace(sampler, **settings) if settings else sampler  # type: ignore[type-var]


def kind_of(config: TransformerConfig) -> Kind:
    """What belongs to the order of a transformer."""
    return KINDS[config.order]
