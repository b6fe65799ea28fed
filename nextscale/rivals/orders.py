"""Which model and which sampler belong to an order of prediction; VAR's own is one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from nextscale.config import Order, TransformerConfig
from nextscale.errors import InputError
from nextscale.rivals import raster
from nextscale.rivals.raster import Line, Raster
from nextscale.sampling.loop import Canvas, Painted, Pyramid, generate
from nextscale.tokenizer.quantizer import MultiScaleQuantizer
from nextscale.transformer import VAR


class Sampler(Protocol):
    """How pictures are painted by the models of an order."""

    def steps(self, config: TransformerConfig) -> int:
        """How many steps a picture takes."""
        ...

    def paint(self, *given: Any, **options: Any) -> Iterator[Painted]:
        """As `loop.generate`."""
        ...


@dataclass(frozen=True)
class OneAfterTheOther:
    """What is predicted stays, and the next step sees it: `loop.generate`."""

    on: Callable[[MultiScaleQuantizer, int], Canvas]

    def steps(self, config: TransformerConfig) -> int:
        return len(config.walk)

    def paint(self, *given: Any, **options: Any) -> Iterator[Painted]:
        return generate(*given, **options, on=self.on)


class Kind(NamedTuple):
    """What belongs to an order."""

    model: type[VAR]
    sampler: Sampler


KINDS: dict[Order, Kind] = {
    "scale": Kind(VAR, OneAfterTheOther(Pyramid)),
    "raster": Kind(Raster, OneAfterTheOther(Line)),
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


def kind_of(config: TransformerConfig) -> Kind:
    """What belongs to the order of a transformer."""
    return KINDS[config.order]
