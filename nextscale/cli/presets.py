"""`nextscale presets`: the models that have names, as tables or as JSON. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nextscale import config, presets
from nextscale.cli.output import console, table, write_json

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Presets:
    """The models that have names, and what was published about them."""

    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the table as JSON instead; - is stdout."""

    def run(self) -> None:
        every = [presets.get(name) for name in presets.names()]
        if self.json is not None:
            write_json(self.json, [describe(preset) for preset in every])
            return
        console().print(_pyramids(every), "", _transformers(every), sep="\n")


def describe(preset: presets.Preset) -> dict[str, Any]:
    """The preset as plain JSON values; `config.from_json` reads `tokenizer` and `transformer` back."""
    return {
        "name": preset.name,
        "height": preset.tokenizer.height,
        "width": preset.tokenizer.width,
        "tokens": preset.tokenizer.scales.total,
        "parameters": preset.transformer.parameters,
        "published": None if preset.published == "-" else preset.published,
        "tokenizer": config.to_json(preset.tokenizer),
        "transformer": config.to_json(preset.transformer),
    }


def _pyramids(every: list[presets.Preset]) -> Table:
    rows: list[tuple[object, ...]] = [
        (p.name, t.scales, t.scales.total, f"{t.height}x{t.width}", t.codebook_size, t.code_channels)
        for p in every
        for t in (p.tokenizer,)
    ]
    return table("Tokenizers", ("name", "scales"), ("tokens L", "pixels", "codes V", "channels C"), rows)


def _transformers(every: list[presets.Preset]) -> Table:
    rows: list[tuple[object, ...]] = [
        (p.name, p.published, t.classes, t.depth, t.width, t.heads, f"{t.parameters / 1e6:,.1f} M")
        for p in every
        for t in (p.transformer,)
    ]
    names = ("name", "published FID"), ("classes", "depth", "width", "heads", "parameters")
    return table("Transformers", *names, rows)
