"""How fast this machine does the parts of a cell, and how many steps a budget in minutes therefore holds.

All cells of a study take the same steps, so that they have learned from as many pictures; how many is decided once, by
a short trial, and kept beside the cells. Seconds here are of the clock on the wall.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nextscale.config import TokenizerConfig, TransformerConfig
from nextscale.evaluation.card import Setting
from nextscale.files.checkpoint import read_json, write_json
from nextscale.studies.cells import fingerprint, held
from nextscale.studies.training import Shared
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.training.recipes import TokenizerRecipe, TransformerRecipe
from nextscale.training.tokenizer.stage import LOOKED_THROUGH, TokenizerStage
from nextscale.training.transformer.stage import TransformerStage, fitted

PACE = "pace.json"
TRIED = 2  # steps that are timed, after one that is not
LOOKED = 16  # pictures that are judged in a trial
LEAST = 0.3  # share of the minutes that goes into steps, whatever the rest takes
FIRST_STAGE = 0.6  # of that; the second has what is left
MANY = 1 << 30  # steps, so many that none of a trial is the last


class Steps(NamedTuple):
    """Of both stages."""

    tokenizer: int
    transformer: int


class Counts(NamedTuple):
    """Pictures that a cell works on, beside those of its steps."""

    encoded: int
    """All views of them."""
    held_out: int
    generated: int


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that things take; of pictures, each."""

    start: float
    """What a tokenizer does before its first step."""
    tokenizer_step: float
    transformer_step: float
    """From tokens."""
    encoded: float
    decoded: float
    """Through each scale, one after the other."""
    seen: float
    """By the judging network."""
    painted: float
    """By the transformer."""
    checked: float
    """By the transformer's trainer."""

    def seconds(self, steps: Steps, counts: Counts) -> float:
        """That a cell takes."""
        trained = steps.tokenizer * self.tokenizer_step + steps.transformer * self.transformer_step
        return trained + self.besides(counts)

    def besides(self, counts: Counts) -> float:
        """That a cell takes beside its steps: to begin, to encode, to check both stages once, and to judge them."""
        judged = counts.held_out * (self.encoded + self.decoded + 3 * self.seen)
        checked = min(counts.held_out, LOOKED_THROUGH) * self.decoded
        checked += counts.held_out * (self.encoded + self.checked)
        made = counts.encoded * self.encoded + counts.generated * (self.painted + self.seen)
        return self.start + judged + checked + made

    def steps(self, minutes: float, counts: Counts) -> Steps:
        """That fit into so many minutes a cell; at least one of each."""
        left = max(60 * minutes - self.besides(counts), LEAST * 60 * minutes)
        shares = (FIRST_STAGE / self.tokenizer_step, (1 - FIRST_STAGE) / self.transformer_step)
        return Steps(*(max(int(left * share), 1) for share in shares))


def kept(root: Path, study: str, settings: Mapping[str, Any], trial: Callable[[], Mapping[str, float]]) -> Any:
    """The seconds that an earlier call has found in `root` with the same settings, or else a trial's, kept there.

    Raises `InputError` as `cells.run` does.
    """
    with held(root, study):
        file, key = root / PACE, fingerprint(dict(settings))
        stored = read_json(file) if file.exists() else {}
        if key not in stored:
            stored[key] = dict(trial())
            write_json(file, stored)
        return stored[key]


def tried(
    shared: Shared,
    tokenizer: TokenizerConfig,
    tokenizer_recipe: TokenizerRecipe,
    transformer: TransformerConfig,
    transformer_recipe: TransformerRecipe,
    setting: Setting,
) -> Pace:
    """A few steps of both stages and a few pictures through all that judges, with weights that know nothing."""
    device, precision, data = shared.device, shared.precision, shared.data
    first = TokenizerStage(tokenizer, data, recipe=tokenizer_recipe, device=device, precision=precision)
    start, step = seconds(first.prepare), of_a_step(first.update)
    model = first.best_model.requires_grad_(False)
    config = fitted(transformer, model, classes=len(data.classes))
    second = TransformerStage(config, model, data, recipe=transformer_recipe, device=device, precision=precision)
    encoded, decoded, seen = _of_pictures(shared, model)
    own = second.batch * encoded  # by this stage; a cell's tokens come from a cache
    learned = of_a_step(second.update)
    return Pace(
        start=start,
        tokenizer_step=step,
        transformer_step=max(learned - own, learned / 10),
        encoded=encoded,
        decoded=decoded,
        seen=seen,
        painted=_of_painting(second, setting),
        checked=max(learned - own, learned / 10) / second.batch / 3,
    )


def seconds(work: Callable[[], object]) -> float:
    """That some work takes, on accelerators too."""
    before = time.monotonic()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - before


def of_a_step(update: Callable[[int, int | None], object]) -> float:
    """After the first."""
    taken = [seconds(partial(update, step, MANY)) for step in range(1 + TRIED)]
    return statistics.median(taken[1:])


@torch.no_grad()
def _of_pictures(shared: Shared, model: MultiScaleVQVAE) -> tuple[float, float, float]:
    """Encoded, decoded through every scale, seen by the judging network."""
    held_out = shared.data.validation
    originals = held_out.batch(range(min(LOOKED, len(held_out))))[0].to(model.quantizer.device)
    tokens = model.encode(originals)
    works: tuple[Callable[[], object], ...] = (
        lambda: model.encode(originals),
        lambda: [model.paint(canvas) for canvas in model.quantizer.canvases(tokens)],
        lambda: shared.judges.network(originals),
    )
    encoded, decoded, seen = (seconds(work) / len(originals) for work in works)
    return encoded, decoded, seen


def _of_painting(stage: TransformerStage, setting: Setting) -> float:
    """A picture, by the stage's models as they are."""
    stage.gather()
    pipe, labels = stage.pipeline(), [index % len(stage.data.classes) for index in range(LOOKED)]
    return seconds(lambda: pipe.generate(labels, **vars(setting))) / LOOKED
