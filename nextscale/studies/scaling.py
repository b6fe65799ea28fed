"""The study of sizes: a family of transformers by depth, trained alike on as many tokens, and the laws of their losses.

One size may be held back from the fits: what they say of it is written down before it is trained.

OUT/prediction.json   of the size that is held back
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nextscale import presets
from nextscale.bench.transformer import step_work
from nextscale.config import TransformerConfig, to_json
from nextscale.data.tokens import TokenSet
from nextscale.errors import InputError
from nextscale.files.checkpoint import fingerprint, read_json, write_json
from nextscale.studies import laws, pace, plots, tables, training
from nextscale.studies.cells import Cell, Clock, outcomes
from nextscale.studies.laws import BILLION, PETA, Fit
from nextscale.studies.tables import Column, Row
from nextscale.studies.variants import warmed
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.training import recipes
from nextscale.training.loop import Rhythm
from nextscale.training.recipes import TransformerRecipe, recorded
from nextscale.training.transformer.stage import TransformerStage, fitted
from nextscale.transformer import VAR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "scaling"
PREDICTION = "prediction.json"
CHECKS = 8  # points of each curve
MEASURES = {  # by key: what it is, and its irreducible part, None where that is fitted
    "loss_last": ("loss of the last scale, nats", None),
    "loss_all": ("loss of all scales, nats", None),
    "error_last": ("wrong tokens of the last scale", 0.0),
    "error_all": ("wrong tokens of all scales", 0.0),
}
COLUMNS = (
    Column("parameters", "M", digits=2),
    Column("with_embeddings", "M with emb.", digits=2),
    Column("compute", "PFLOP", digits=2),
    Column("loss_last", "L last", digits=3, better="less"),
    Column("loss_all", "L all", digits=3, better="less"),
    Column("error_last", "err. last", digits=4, better="less"),
    Column("error_all", "err. all", digits=4, better="less"),
    Column("seconds", "s", digits=0),
)
EMBEDDINGS = ("start", "positions", "class_embedding", "code_projection", "levels", "head.")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the family is."""

    preset: str
    """Whose recipe."""
    depths: tuple[int, ...]
    """By the paper's rule, width = 64 * depth."""
    hold_back: bool = False
    """Keep the largest out of the fits."""
    changes: tuple[str, ...] = ()
    """Of the recipe, NAME=VALUE."""
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if len({*self.depths}) < len(self.depths) or min(self.depths, default=0) < 1:
            told = " ".join(map(str, self.depths)) or "none"
            raise InputError(f"depths: expected different ones of 1 and more, got {told}")

    @property
    def recipe(self) -> TransformerRecipe:
        """The preset's with the changes."""
        return recipes.changed(recipes.for_transformer(self.preset)[0], self.changes)


@dataclass(frozen=True, eq=False)
class Scaling:
    """The study (`study.Study`). Made by `planned`."""

    asked: Asked
    running: training.Training
    tokenizer: MultiScaleVQVAE
    data: TokenSet
    steps: int
    """The same for all sizes."""
    seconds: Mapping[str, float]
    """A step of each, by name."""
    name = NAME
    columns = COLUMNS

    @cached_property
    def configs(self) -> dict[str, TransformerConfig]:
        """By name, the smallest first."""
        return {f"d{depth}": _config(self, depth) for depth in sorted(self.asked.depths)}

    @cached_property
    def cells(self) -> Sequence[Cell]:
        """The smallest first, so that the one that is held back is the last."""
        return [
            Cell(name=name, settings=self._settings(config), seed=seed)
            for name, config in self.configs.items()
            for seed in self.asked.seeds
        ]

    @property
    def held_back(self) -> str | None:
        """The name of the size that the fits leave out."""
        return [*self.configs][-1] if self.asked.hold_back else None

    @property
    def notes(self) -> Sequence[str]:
        """How the figures were made."""
        data, batch = self.data, self.asked.recipe.optimization.batch
        tokens = self.steps * batch * self.tokenizer.config.scales.total
        changed = f" with {' '.join(self.asked.changes)}" if self.asked.changes else ""
        back = f"; {self.held_back} is held back from the fits" if self.held_back else ""
        return [
            f"data: {len(data.train):,} pictures to train on, {len(data.validation):,} held out, as cached tokens",
            f"each size: {self.steps:,} steps of {batch} pictures, {tokens / 1e6:.1f} M tokens, by the recipe of "
            f"{self.asked.preset}{changed}{back}",
            "M: millions of parameters without embeddings and head; L, err.: cross-entropy in nats, and share of wrong "
            "tokens, held out, of the last scale and of all",
        ]

    def _settings(self, config: TransformerConfig) -> dict[str, Any]:
        return {
            "data": self.data.train.fingerprint,
            "held_out": self.data.validation.fingerprint,
            "tokenizer": fingerprint(self.tokenizer.state_dict()),
            "precision": str(self.running.dtype).removeprefix("torch."),
            "transformer": to_json(config),
            "recipe": recorded(warmed(self.asked.recipe, self.steps)),
            "steps": self.steps,
        }

    def about(self, cell: Cell) -> Mapping[str, object]:
        """Width, and millions of parameters."""
        config = self.configs[cell.name]
        return {"width": config.width, "M": f"{parameters(config)[0] / 1e6:.2f}"}

    def estimate(self, cell: Cell) -> float:
        """Seconds, a tenth for checks included."""
        return 1.1 * self.steps * self.seconds[cell.name]

    def pictures(self, cell: Cell, folder: Path) -> Tensor | None:
        """None: sizes are compared by their losses."""
        return None

    # -- a cell --------------------------------------------------------------------------------------------------------

    def work(self, cell: Cell, folder: Path) -> Mapping[str, Any]:
        """A transformer trained; the largest after what the others let one expect is on the disk."""
        if cell.name == self.held_back:
            self.predict(folder.parent.parent)
        clock, config = Clock(folder), self.configs[cell.name]
        training.transformer(
            self.running,
            folder / "model",
            clock,
            config,
            self.tokenizer,
            self.data,
            warmed(self.asked.recipe, self.steps),
            steps=self.steps,
            seed=cell.seed,
            rhythm=Rhythm(checks=min(CHECKS, self.steps), checkpoint_minutes=5),
        )
        curve = [self._point(config, entry) for entry in read_json(folder / "model" / "history.json")]
        bare, all_of_them = parameters(config)
        figures = {"parameters": bare / 1e6, "with_embeddings": all_of_them / 1e6, **curve[-1], "seconds": clock.total}
        return {"figures": {key: {"value": value} for key, value in figures.items()}, "curve": curve}

    def _point(self, config: TransformerConfig, entry: Mapping[str, float]) -> dict[str, float]:
        """What a check has found, and the arithmetic until then."""
        last, work = len(config.scales), step_work(config).total * self.asked.recipe.optimization.batch
        return {
            "compute": work * entry["step"] / PETA,
            "loss_last": entry[f"cross_entropy_scale_{last}"],
            "loss_all": entry["cross_entropy"],
            "error_last": 1 - entry[f"accuracy_scale_{last}"],
            "error_all": 1 - entry["accuracy"],
        }

    # -- the laws ------------------------------------------------------------------------------------------------------

    def fits(self, rows: Sequence[Row]) -> dict[str, Fit]:
        """By measure, over the sizes that are done but for the one held back; none where these are too few."""
        done = [row for row in rows if row.values and row.name != self.held_back]
        sizes = [row.values["parameters"].mean * 1e6 / BILLION for row in done]
        found = {}
        for key, (_, irreducible) in MEASURES.items():
            try:
                found[key] = laws.fit(sizes, [row.values[key].mean for row in done], irreducible=irreducible)
            except InputError:
                continue  # too few sizes, so far
        return found

    def predict(self, root: Path) -> None:
        """Write down what the laws say of the size that is held back; nothing where there are none."""
        fits = self.fits(tables.rows(outcomes(root, self.cells)))
        if fits and self.held_back:
            size = parameters(self.configs[self.held_back])[0]
            told = {key: fit.predict(size / BILLION) for key, fit in fits.items()}
            values = {key: {"value": value, "low": low, "high": high} for key, (value, (low, high)) in told.items()}
            write_json(root / PREDICTION, {"name": self.held_back, "parameters": size, "predicted": values})

    def plot(self, rows: Sequence[Row]) -> Figure:
        """Four panels, as figure 5 of the paper: losses and errors of the last scale and of all."""
        fits, done = self.fits(rows), [row for row in rows if row.values]
        panels = []
        for key, (name, _) in MEASURES.items():
            points = [(row.values["parameters"].mean * 1e6 / BILLION, row.values[key].mean) for row in done]
            panels.append(plots.LawPanel("N, billions of parameters", points, fits.get(key), name))
        return plots.laws(panels)


def parameters(config: TransformerConfig) -> tuple[int, int]:
    """Weights of a model without embeddings and head, and all of them."""
    with torch.device("meta"):
        counts = {name: weight.numel() for name, weight in VAR(config).named_parameters()}
    every = sum(counts.values())
    return every - sum(count for name, count in counts.items() if name.startswith(EMBEDDINGS)), every


def planned(
    root: Path,
    asked: Asked,
    running: training.Training,
    tokenizer: MultiScaleVQVAE,
    data: TokenSet,
    *,
    minutes: float = 120.0,
    steps: int | None = None,
) -> Scaling:
    """The study in `root`: how many steps fit into so many minutes in all is found by a trial, unless steps are given.

    Raises `InputError` as `cells.run` does.
    """
    study = Scaling(asked, running, tokenizer, data, steps or 1, {})
    settings = {
        "transformers": {name: to_json(config) for name, config in study.configs.items()},
        "recipe": recorded(asked.recipe),
        "device": running.device,
        "precision": str(running.dtype),
    }
    seconds = pace.kept(root, NAME, settings, lambda: _tried(study))
    fitting = int(60 * minutes / 1.1 / (len(asked.seeds) * sum(seconds.values())))
    return dataclasses.replace(study, steps=steps or max(fitting, 1), seconds=seconds)


def _tried(study: Scaling) -> dict[str, float]:
    """Seconds of a step of each size, by a few of them."""
    found = {}
    for name, config in study.configs.items():
        stage = TransformerStage(
            config,
            study.tokenizer,
            study.data,
            recipe=study.asked.recipe,
            device=study.running.device,
            precision=study.running.precision,
        )
        found[name] = pace.of_a_step(stage.update)
    return found


def _config(study: Scaling, depth: int) -> TransformerConfig:
    config = dataclasses.replace(presets.get(study.asked.preset).transformer.of_depth(depth), text=None)
    return fitted(config, study.tokenizer, classes=len(study.data.classes))
