"""`nextscale presets`: the models that have names, as tables or as JSON. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nextscale import config, presets
from nextscale.cli.output import console, say, table, write_json
from nextscale.machine import flops
from nextscale.training import recipes

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
        console().print(_pyramids(every), "", _transformers(every), "", _recipes(every), sep="\n")
        say(
            f"hours: of the tokenizer's own arithmetic at {CPU / 1e12:g} TFLOP/s (two CPU cores with fast bf16) and at "
            f"{GPU / 1e12:g} TFLOP/s (an accelerator of a data centre); the perceptual term adds about half at 64 px "
            "and less at larger sizes"
        )


CPU, GPU = 0.5e12, 150e12  # FLOP a second that training gets out of them, roughly


def describe(preset: presets.Preset) -> dict[str, Any]:
    """The preset as plain JSON values; `config.from_json` reads `tokenizer` and `transformer` back."""
    recipe, steps = recipes.for_preset(preset.name)
    return {
        "name": preset.name,
        "height": preset.tokenizer.height,
        "width": preset.tokenizer.width,
        "tokens": preset.tokenizer.scales.total,
        "parameters": preset.transformer.parameters,
        "published": None if preset.published == "-" else preset.published,
        "tokenizer_training": {
            "steps": steps,
            "flop": training_flop(preset),
            "recipe": recipes.recorded(recipe),
        },
        "tokenizer": config.to_json(preset.tokenizer),
        "transformer": config.to_json(preset.transformer),
    }


def training_flop(preset: presets.Preset) -> int:
    """Of a whole run of the tokenizer: forward, and backward at twice that."""
    tokenizer, (recipe, steps) = preset.tokenizer, recipes.for_preset(preset.name)
    work = flops.encoder_work(tokenizer) + flops.quantizer_work(tokenizer) + flops.decoder_work(tokenizer)
    return 3 * work.total * recipe.optimization.batch * steps


def _recipes(every: list[presets.Preset]) -> Table:
    rows: list[tuple[object, ...]] = []
    for preset in every:
        recipe, steps = recipes.for_preset(preset.name)
        flop = training_flop(preset)
        hours = (f"{flop / rate / 3600:,.1f}" for rate in (CPU, GPU))
        told = (preset.name, recipe.adversarial.discriminator, f"{steps:,}", recipe.optimization.batch)
        rows.append((*told, *hours))
    names = ("name", "discriminator"), ("steps", "batch", "CPU hours", "GPU hours")
    return table("Training of the tokenizers", *names, rows)


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
