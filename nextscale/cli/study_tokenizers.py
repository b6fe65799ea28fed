"""`nextscale study tokenizers`: kinds of codes beside each other, and the same transformer on each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nextscale.cli import study
from nextscale.cli.data import check_outside, load_data
from nextscale.cli.options import Directory, Indices, Json, Precision, Settings
from nextscale.cli.output import at_least, at_most, bar, check_json, say
from nextscale.cli.training import together
from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.studies.tokenizers import Tokenizers
    from nextscale.studies.variants import Asked

NAME = "tokenizers"
MOST_SEEDS, MOST_COUNT = 1000, 10_000_000
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: all)")]


@dataclass(frozen=True, kw_only=True)
class StudyTokenizers:
    """Train a tokenizer with each kind of codes, and the same transformer on each.

    The same command continues; docs/studies.md explains the table.

    kinds: vq (learned codes), simvq (that move together), fsq (levels), hbq (levels as bits), bsq (bits on a sphere),
    sphere (fixed vectors, the control); each with and without scale dropout
    """

    data: str = "emoji"
    """emoji (embedded), figures (drawn, extra figures), a folder of pictures (DIR/class/picture or flat) or of
    WebDataset shards."""
    preset: str = "emoji-64"
    """Convnet, picture size and recipes."""
    depth: int = 4
    """Blocks of the transformer, the same for all; width = 64 * depth."""
    minutes: float = 14.0
    """Approximate minutes per cell; the number of steps is measured once, and is the same for all."""
    steps: Indices = ()
    """Steps of tokenizer and transformer, two numbers, instead of --minutes."""
    bits: tuple[int, ...] = (10,)
    """Approximate bits per code: 8, 10, 12, 14, 16. With several, all but the first are trained twice: with as many
    tokens, and with as many bits per picture."""
    dropout: tuple[float, ...] = (0.0, 0.1)
    """Shares of pictures that are painted with their first scales only: every variant with each."""
    only: Names = ()
    """Kinds, or cells as --dry-run names them."""
    seed: int = 0
    """Seed of the weights and the order of the data."""
    seeds: int = 1
    """Number of seeds per cell, from --seed on."""
    views: int = 2
    """Crops of each training picture, encoded for the transformer."""
    count: int = 900
    """Generated pictures to evaluate, rounded up to the same number per class."""
    guidance: float = 1.5
    """Strength of classifier-free guidance at the last scale; 0 is none."""
    top_k: int = 0
    """Sample from the k likeliest codes, or values of a digit; 0 is all."""
    top_p: float = 0.0
    """Sample from the likeliest that together have this probability; 0 is all."""
    temperature: float = 1.0
    """Divides the logits: above 1 more varied, below 1 more typical."""
    features: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")] = "efficientnet-lite0"
    """Feature network to compare pictures."""
    set: Settings = ()
    """Values of the tokenizers' recipe or architecture, for all; those of the transformer's recipe as
    transformer.label_dropout=0.2."""
    out: Directory = Path("runs/study-tokenizers")
    """Directory of cells, table and plot."""
    dry_run: bool = False
    """Only list the cells and the time they will take."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available."""
    precision: Precision = "auto"
    """Of training; auto is bf16 where the hardware supports it natively, else fp32."""
    json: Json = None
    """Also write all metrics as JSON; - is stdout, without the table."""

    def run(self) -> None:
        self._check()
        with study.apart(self.json), together(self.device) as device:
            found = self._study(device)
            if self.dry_run:
                study.forecast(found, self.out)
                return
            outcomes = study.conduct(found, self.out)
        study.give(found, outcomes, self.out, self.json)

    def _check(self) -> None:
        """What can be known to be wrong before anything is read."""
        from nextscale.data.tokens import MOST_VIEWS

        if not 0 < self.minutes < float("inf"):
            raise InputError(f"--minutes: expected more than 0, got {self.minutes:g}")
        if len(self.steps) not in (0, 2):
            raise InputError(f"--steps: expected two numbers, of tokenizer and transformer, got {len(self.steps)}")
        for count in self.steps:
            at_least("--steps", 1, count)
        for option in ("depth", "seeds", "views", "count"):
            at_least(f"--{option}", 1, getattr(self, option))
        at_most("--views", MOST_VIEWS, self.views)
        at_most("--seeds", MOST_SEEDS, self.seeds)
        at_most("--count", MOST_COUNT, self.count)
        check_json(self.json)
        check_outside(self.out, self.data)

    def _study(self, device: str) -> Tokenizers:
        """With everything read that it needs, and its steps found."""
        from nextscale import features
        from nextscale.studies.pace import Steps
        from nextscale.studies.tokenizers import planned
        from nextscale.studies.training import Shared, judges_of
        from nextscale.studies.variants import size_of, variants

        asked = self._asked()
        variants(asked)  # what is wrong with these is told before anything is read
        network, (height, width) = features.load(self.features, device=device), size_of(asked)
        data = load_data(self.data, height=height, width=width)
        with bar("reference features") as told:
            judges = judges_of(data, self.data, network, progress=told)
        shared = Shared(
            data=data,
            name=self.data,
            judges=judges,
            device=device,
            precision=self.precision,
            watching=study.watching(NAME),
        )
        steps = Steps(*self.steps) if self.steps else None
        found = planned(self.out, asked, shared, minutes=self.minutes, steps=steps)
        say(f"{NAME}: {found.steps.tokenizer} steps of each tokenizer, {found.steps.transformer} of each transformer")
        return found

    def _asked(self) -> Asked:
        from nextscale.evaluation.generation import settings
        from nextscale.studies.variants import Asked

        (setting,) = settings((self.guidance,), (self.top_k,), (self.top_p,), (self.temperature,))
        return Asked(
            preset=self.preset,
            depth=self.depth,
            bits=self.bits,
            dropout=self.dropout,
            only=self.only,
            seeds=tuple(range(self.seed, self.seed + self.seeds)),
            views=self.views,
            count=self.count,
            setting=setting,
            changes=self.set,
        )
