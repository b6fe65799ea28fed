"""The study of tokenizers (`variants`), and of the same small transformer on each: trained alike, judged alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nextscale.config import to_json
from nextscale.evaluation.reference import identity
from nextscale.files.checkpoint import read_tensors, write_tensors
from nextscale.studies import pace, training
from nextscale.studies.cells import Cell, Clock
from nextscale.studies.pace import Counts, Pace, Steps
from nextscale.studies.plots import Look, Panel, scatter
from nextscale.studies.tables import Column, Row
from nextscale.studies.training import Shared, Trained
from nextscale.studies.variants import KINDS, Asked, Variant, first_of, told, transformer_of, variants, warmed
from nextscale.training.recipes import recorded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "tokenizers"
PICTURES = "pictures.safetensors"
COLUMNS = (
    Column("tokens", "tokens", digits=0),
    Column("bits", "bits", digits=0),
    Column("bits_per_pixel", "bpp"),
    Column("psnr", "PSNR", better="more"),
    Column("ssim", "SSIM", digits=3, better="more"),
    Column("perceptual_distance", "perc.", digits=3, better="less"),
    Column("reconstruction_fd", "rFD", digits=1, better="less"),
    Column("usage", "used %", digits=0, better="more"),
    Column("predicted", "pred. bpp", digits=3),
    Column("generation_fd", "gFD", digits=1, better="less"),
    Column("precision", "prec.", digits=3, better="more"),
    Column("recall", "recall", digits=3, better="more"),
    Column("seconds", "s", digits=0),
)


@dataclass(frozen=True, eq=False)
class Tokenizers:
    """The study (`study.Study`). Made by `planned`."""

    asked: Asked
    shared: Shared
    steps: Steps
    """Of both stages, the same for all cells."""
    pace: Pace
    name = NAME
    columns = COLUMNS

    @cached_property
    def variants(self) -> dict[str, Variant]:
        """By name."""
        return {variant.name: variant for variant in variants(self.asked)}

    @cached_property
    def cells(self) -> Sequence[Cell]:
        """Those of the first seed first."""
        judging = _judging(self.asked, self.shared)
        return [
            Cell(name=variant.name, settings=self._settings(variant), judging=judging, seed=seed)
            for seed in self.asked.seeds
            for variant in self.variants.values()
        ]

    def _settings(self, variant: Variant) -> dict[str, Any]:
        data, (config, recipe) = self.shared.data, transformer_of(self.asked, variant)
        return {
            "data": data.train.fingerprint,
            "held_out": data.validation.fingerprint,
            "precision": str(self.shared.dtype).removeprefix("torch."),
            "tokenizer": to_json(variant.config),
            "tokenizer_recipe": recorded(warmed(variant.recipe, self.steps.tokenizer)),
            "transformer": to_json(config),
            "transformer_recipe": recorded(warmed(recipe, self.steps.transformer)),
            "steps": [*self.steps],
            "views": self.asked.views,
        }

    @property
    def notes(self) -> Sequence[str]:
        """How the figures were made."""
        asked, data, judges = self.asked, self.shared.data, self.shared.judges
        generated, network = counts(asked, self.shared).generated, judges.network.name
        changed = f" with {' '.join(asked.changes)}" if asked.changes else ""
        several = len(asked.seeds) > 1
        return [
            f"data: {self.shared.name}, {len(data.train):,} pictures to train on, {len(data.validation):,} held out",
            f"each cell: {self.steps.tokenizer:,} steps of a tokenizer, {self.steps.transformer:,} of a transformer of "
            f"depth {asked.depth}, by the recipes of {asked.preset}{changed}; {asked.views} "
            f"view{'s' if asked.views > 1 else ''} of each picture; "
            f"seeds {', '.join(map(str, asked.seeds))}",
            f"PSNR, SSIM, perc. ({judges.perceptual.network.name}), rFD ({network}): held-out pictures beside their "
            "reconstructions",
            f"gFD ({network}), prec., recall: {generated:,} generated pictures beside the training split, "
            f"{asked.setting}",
            f"±: {'deviation over seeds' if several else 'half of the 95 % interval, bootstrapped over pictures'}",
        ]

    def about(self, cell: Cell) -> Mapping[str, object]:
        """Codes, tokens, bits a picture."""
        variant = self.variants[cell.name]
        return {
            "codes": told(variant),
            "tokens": variant.config.scales.total,
            "bits": round(variant.config.picture_bits),
        }

    def estimate(self, cell: Cell) -> float:
        """Seconds; the same for all, since kinds of codes cost about the same."""
        return self.pace.seconds(self.steps, counts(self.asked, self.shared))

    def plot(self, rows: Sequence[Row]) -> Figure:
        """Generation against reconstruction, and against how many bits the transformer pays."""
        columns = {column.key: column for column in COLUMNS}
        up = columns["generation_fd"]
        panels = [Panel(columns[key], up) for key in ("reconstruction_fd", "predicted")]
        sizes = [*dict.fromkeys((variant.size, variant.thin) for variant in self.variants.values())]
        looks = {
            name: Look(KINDS.index(variant.kind), sizes.index((variant.size, variant.thin)), not variant.dropout)
            for name, variant in self.variants.items()
        }
        return scatter(rows, panels, looks, title="a colour a kind of codes; hollow: with scale dropout")

    def pictures(self, cell: Cell, folder: Path) -> Tensor | None:
        """Held-out pictures through the tokenizer, then generated ones."""
        file = folder / PICTURES
        return torch.cat([*read_tensors(file).values()]) if file.exists() else None

    # -- a cell --------------------------------------------------------------------------------------------------------

    def work(self, cell: Cell, folder: Path) -> Mapping[str, Any]:
        """Both stages trained, both judged."""
        clock = Clock(folder)
        trained = self._trained(cell, folder, clock)
        return self._judged(cell, folder, clock, trained)

    def _trained(self, cell: Cell, folder: Path, clock: Clock) -> Trained:
        variant, shared, (first, second) = self.variants[cell.name], self.shared, self.steps
        config, recipe = transformer_of(self.asked, variant)
        model = training.tokenizer(
            shared,
            folder / "tokenizer",
            clock,
            variant.config,
            warmed(variant.recipe, first),
            steps=first,
            seed=cell.seed,
        )
        data = training.token_set(shared, folder / "tokens", clock, model, views=self.asked.views, seed=cell.seed)
        recipe = warmed(recipe, second)
        place = folder / "model"
        return training.transformer(shared, place, clock, config, model, data, recipe, steps=second, seed=cell.seed)

    def _judged(self, cell: Cell, folder: Path, clock: Clock, trained: Trained) -> dict[str, Any]:
        """Figures and cards; some pictures are kept in the folder."""
        model, shared = trained.pipe.tokenizer, self.shared
        of_tokenizer = training.reconstructed(shared, clock, model, cell.name)
        wanted = each(self.asked, shared)
        of_model, painted = training.generated(shared, clock, trained.pipe, cell.name, self.asked.setting, each=wanted)
        write_tensors(folder / PICTURES, {"1 held out": training.examples(shared, model), "2 generated": painted})
        figures = training.figures_of_tokenizer(of_tokenizer) | training.figures_of_model(of_model)
        counted = {
            "tokens": model.config.scales.total,
            "bits": model.config.picture_bits,
            "predicted": training.predicted_bits(model.config, trained.held_out),
            "seconds": clock.total,
        }
        return {
            "figures": figures | {key: {"value": float(value)} for key, value in counted.items()},
            "seconds": clock.seconds,
            "reconstruction": of_tokenizer.to_json(),
            "generation": of_model.to_json(),
        }


def planned(
    root: Path, asked: Asked, shared: Shared, *, minutes: float = 14.0, steps: Steps | None = None
) -> Tokenizers:
    """The study in `root`: how many steps fit into so many minutes a cell is found by a trial, unless steps are given.

    Raises `InputError` as `cells.run` does, and for what `variants` refuses.
    """
    found = paced(root, asked, shared)
    return Tokenizers(asked, shared, steps or found.steps(minutes, counts(asked, shared)), found)


def paced(root: Path, asked: Asked, shared: Shared) -> Pace:
    """How fast cells go here, by a trial with the first kind of codes; kept in `root`."""
    first = first_of(asked)
    config, recipe = transformer_of(asked, first)
    settings = {
        "tokenizer": to_json(first.config),
        "tokenizer_recipe": recorded(first.recipe),
        "transformer": to_json(config),
        "transformer_recipe": recorded(recipe),
        "network": identity(shared.judges.network),
        "device": shared.device,
        "precision": str(shared.dtype),
    }

    def trial() -> Mapping[str, float]:
        return vars(pace.tried(shared, first.config, first.recipe, config, recipe, asked.setting))

    return Pace(**pace.kept(root, NAME, settings, trial))


def each(asked: Asked, shared: Shared) -> int:
    """Generated pictures of each class."""
    return -(-asked.count // len(shared.data.classes))


def counts(asked: Asked, shared: Shared) -> Counts:
    """Pictures that a cell works on."""
    data = shared.data
    encoded = asked.views * len(data.train) + len(data.validation)
    return Counts(encoded, len(data.validation), each(asked, shared) * len(data.classes))


def _judging(asked: Asked, shared: Shared) -> Mapping[str, Any]:
    judges = shared.judges
    return {
        "network": identity(judges.network),
        "perceptual": judges.perceptual.fingerprint,
        "reference": judges.reference.fingerprint,
        "each": each(asked, shared),
        "setting": dataclasses.asdict(asked.setting),
    }
