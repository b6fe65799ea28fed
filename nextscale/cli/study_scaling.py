"""`nextscale study scaling`: a family of transformers trained alike, and power laws of their losses.

With --points the laws alone, fitted to the points of a table.
"""

from __future__ import annotations

import csv
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from nextscale.cli import models, study
from nextscale.cli.options import Count, Json, Precision, Settings, TokenizerSource
from nextscale.cli.output import at_least, at_most, check_json, console, directory, say, table, write_json
from nextscale.cli.training import together
from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.studies.cells import Outcome
    from nextscale.studies.laws import Fit
    from nextscale.studies.scaling import Scaling

NAME = "scaling"
DEPTHS = (2, 3, 4, 5, 6, 8)
MOST_SEEDS = 1000

SIZE, COMPUTE = "parameters", "compute"
NAMES = {SIZE: "N, billions of parameters", COMPUTE: "C, PFLOP of training"}
SHORT = {SIZE: "N (billions)", COMPUTE: "C (PFLOP)"}
PLOT = "scaling.png"
OF_POINTS = ("points", "irreducible", "predict", "out", "json")  # options that --points goes with
Place = Annotated[
    Path | None,
    tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/study-scaling, with --points runs/scaling-law)"),
]
Table = Annotated[Path | None, tyro.conf.arg(metavar="FILE.csv", help_behavior_hint="")]
Sizes = Annotated[tuple[float, ...], tyro.conf.arg(metavar="N", help_behavior_hint="")]


class Points(NamedTuple):
    """A row of the table."""

    parameters: float
    loss: float
    compute: float | None


@dataclass(frozen=True, kw_only=True)
class StudyScaling:
    """Train transformers of several sizes alike, and fit the paper's scaling law.

    L = irreducible + (beta N)^alpha; docs/studies.md explains the metrics

    The same command continues. With --points, only fit the law to losses you have.
    """

    points: Table = None
    """Columns parameters, loss and, if known, compute (operations of training), in units, not billions; a row a model,
    or a row a checkpoint, of which the law of sizes takes those with the most compute."""
    irreducible: Annotated[float | None, tyro.conf.arg(metavar="L", help_behavior_hint="(default: fitted)")] = None
    """With --points: the irreducible loss, if it is known; 0 for error rates."""
    predict: Sizes = ()
    """With --points: parameters of models whose loss is to be predicted."""
    data: Path = Path("runs/tokens")
    """Token cache that nextscale encode made."""
    tokenizer: TokenizerSource = Path("runs/tokenizer")
    """The tokenizer that made it."""
    preset: str = "emoji-64"
    """Whose recipe."""
    depths: tuple[int, ...] = DEPTHS
    """Sizes: blocks, with width = 64 * depth."""
    hold_back: bool = False
    """Fit without the largest, and write down a prediction for it before it is trained."""
    minutes: float = 120.0
    """Budget for all sizes together, about; the number of steps is measured once and the same for all."""
    steps: Count = None
    """Steps of each instead."""
    seed: int = 0
    """Seed of the weights and the order of the data."""
    seeds: int = 1
    """Runs of each size, with seeds from --seed on."""
    set: Settings = ()
    """Values of the recipe, for all sizes."""
    out: Place = None
    """Directory of cells, table and plot."""
    dry_run: bool = False
    """Only list the sizes and their estimated cost."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available."""
    precision: Precision = "auto"
    """Of training; auto is bf16 where the hardware supports it natively, else fp32."""
    json: Json = None
    """Also write all metrics as JSON; - is stdout, without the table."""

    def run(self) -> None:
        self._check()
        check_json(self.json)
        if self.points is not None:
            self._fit(self.points)
            return
        out = self.out or Path("runs/study-scaling")
        with study.apart(self.json), together(self.device) as device:
            found = self._study(device, out)
            if self.dry_run:
                study.forecast(found, out)
                return
            outcomes = study.conduct(found, out)
            _tell_laws(found, outcomes, out)
        study.give(found, outcomes, out, self.json)

    def _check(self) -> None:
        """What can be known to be wrong before anything is read."""
        for size in self.predict:
            if not 0 < size < float("inf"):
                raise InputError(f"--predict: expected more than 0, got {size:g}")
        if self.points is None and (self.predict or self.irreducible is not None):
            raise InputError("--predict, --irreducible: expected --points too, got none")
        changed = [each.name for each in dataclasses.fields(self) if getattr(self, each.name) != each.default]
        others = [name for name in changed if name not in OF_POINTS]
        if self.points is not None and others:
            raise InputError(f"--points: expected no options of training, got --{others[0].replace('_', '-')}")
        if not 0 < self.minutes < float("inf"):
            raise InputError(f"--minutes: expected more than 0, got {self.minutes:g}")
        at_least("--steps", 1, 1 if self.steps is None else self.steps)
        at_least("--seeds", 1, self.seeds)
        at_most("--seeds", MOST_SEEDS, self.seeds)

    def _study(self, device: str, out: Path) -> Scaling:
        from nextscale.data import tokens
        from nextscale.files.checkpoint import fingerprint
        from nextscale.studies.scaling import Asked, planned
        from nextscale.studies.training import Training

        seeds = tuple(range(self.seed, self.seed + self.seeds))
        asked = Asked(
            preset=self.preset, depths=self.depths, hold_back=self.hold_back, changes=tuple(self.set), seeds=seeds
        )
        _ = asked.recipe  # what is wrong with --set is told before anything is read
        if not tokens.is_cache(self.data):
            raise InputError(f"--data: expected a token cache, which nextscale encode makes, got {self.data}")
        tokenizer = models.tokenizer_alone(self.tokenizer)
        data = tokens.load(self.data, tokenizer=fingerprint(tokenizer.state_dict()))
        running = Training(device=device, precision=self.precision, watching=study.watching(NAME))
        found = planned(out, asked, running, tokenizer, data, minutes=self.minutes, steps=self.steps)
        say(f"{NAME}: {found.steps} steps of each of {len(found.configs)} sizes")
        return found

    def _fit(self, table: Path) -> None:
        """The law of the points in a table."""
        from nextscale.studies import laws

        points = read(table)
        try:
            with models.notes():
                fits = self._fits(points)
        except InputError as error:
            raise InputError(f"--points {table}: {error}") from None
        place = directory("--out", self.out or Path("runs/scaling-law")) / PLOT
        _plot(points, fits, place)
        predictions = [(size, *fits[SIZE].predict(size / laws.BILLION)) for size in self.predict]
        if self.json is not None:
            write_json(self.json, _plain(fits, predictions, len(points)))
        with study.apart(self.json):
            _tell(fits, predictions)
            say(f"plot in {place}")

    def _fits(self, points: Sequence[Points]) -> dict[str, Fit]:
        """Over sizes, and where compute is known over the compute of the frontier, if that has points enough."""
        from nextscale.studies import laws

        final = _final(points)
        sizes = [point.parameters / laws.BILLION for point in final]
        fits = {SIZE: laws.fit(sizes, [point.loss for point in final], irreducible=self.irreducible)}
        spent = [point.compute for point in points if point.compute is not None]
        places = laws.frontier(spent, [point.loss for point in points]) if spent else []
        if len(places) > 3:
            across, losses = [spent[place] / laws.PETA for place in places], [points[place].loss for place in places]
            fits[COMPUTE] = laws.fit(across, losses, irreducible=self.irreducible)
        elif spent:
            warnings.warn(f"compute: no law, as only {len(places)} points lie on the frontier", stacklevel=2)
        return fits


def _tell_laws(found: Scaling, outcomes: Sequence[Outcome], out: Path) -> None:
    """The fits, and how the size that was held back compares with what they had said of it."""
    from nextscale.files.checkpoint import read_json
    from nextscale.studies import tables
    from nextscale.studies.scaling import MEASURES, PREDICTION

    rows = tables.rows(outcomes)
    for key, fit in found.fits(rows).items():
        say(f"{MEASURES[key][0]}: " + ", ".join(f"{name} {told}" for name, told in _cells(fit).items()))
        for warning in fit.warnings:
            say(f"warning: {warning}")
    measured = next((row for row in rows if row.name == found.held_back and row.values), None)
    if measured is None or not (out / PREDICTION).exists():
        return
    for key, told in read_json(out / PREDICTION)["predicted"].items():
        value, inside = measured.values[key].mean, told["low"] <= measured.values[key].mean <= told["high"]
        say(
            f"{measured.name}, {MEASURES[key][0]}: predicted {told['value']:.4f} ({told['low']:.4f} to "
            f"{told['high']:.4f}), measured {value:.4f}, {'inside' if inside else 'outside'}"
        )


def read(file: Path) -> list[Points]:
    """The rows of a table. Raises `InputError` with the line where something is wrong."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        told = error.strerror if isinstance(error, OSError) else "expected a table in UTF-8"
        raise InputError(f"--points: cannot read {file}: {told}") from None
    names = [*rows[0]] if rows else []
    if not {*names} >= {SIZE, "loss"}:
        found = ", ".join(map(str, names)) or "none"
        raise InputError(f"--points {file}: expected the columns parameters and loss, got {found}")
    return [_point(file, line, row) for line, row in enumerate(rows, start=2)]


def _point(file: Path, line: int, row: Mapping[str, str | None]) -> Points:
    def number(name: str) -> float:
        try:
            return float(row.get(name) or "")
        except ValueError:
            told = f"expected a number as {name}, got {row.get(name)!r}"
            raise InputError(f"--points {file}, line {line}: {told}") from None

    return Points(number(SIZE), number("loss"), number(COMPUTE) if COMPUTE in row else None)


def _final(points: Sequence[Points]) -> list[Points]:
    """Of each size those with the most compute; all where no compute is told."""
    most: dict[float, float] = {}
    for point in points:
        most[point.parameters] = max(most.get(point.parameters, 0.0), point.compute or 0.0)
    return [point for point in points if (point.compute or 0.0) == most[point.parameters]]


def _tell(fits: Mapping[str, Fit], predictions: Sequence[tuple[float, float, Any]]) -> None:
    columns = [_cells(fit) for fit in fits.values()]
    rows: list[tuple[object, ...]] = [(name, *(column[name] for column in columns)) for name in columns[0]]
    names = tuple(f"over {SHORT[name]}" for name in fits)
    console().print(table("L(x) = irreducible + (beta x)^alpha", ("",), names, rows), "", sep="\n")
    for size, loss, (low, high) in predictions:
        say(f"predicted for {size:,.0f} parameters: {loss:.4f} ({low:.4f} to {high:.4f})")
    for name, fit in fits.items():
        for warning in fit.warnings:
            say(f"warning: {name}: {warning}")
    say("intervals: 95 %, by resampling the errors of the points; of few points they are too narrow by a tenth or so")


def _cells(fit: Fit) -> dict[str, str]:
    """A law's column."""
    told = {
        name: f"{getattr(fit.law, name):.4g} ({low:.3g} to {high:.3g})" for name, (low, high) in fit.intervals.items()
    }
    return {"irreducible": f"{fit.law.irreducible:.4g}, given", **told, "Pearson": f"{fit.pearson:.4f}"}


def _plain(fits: Mapping[str, Fit], predictions: Sequence[tuple[float, float, Any]], points: int) -> dict[str, Any]:
    """JSON values: of the law over sizes at the top, of that over compute beneath."""
    told = {name: _law(fit) for name, fit in fits.items()}
    more = {COMPUTE: told[COMPUTE]} if COMPUTE in told else {}
    asked = [{"parameters": size, "loss": loss, "low": low, "high": high} for size, loss, (low, high) in predictions]
    return {**told[SIZE], "points": points, "predictions": asked, **more}


def _law(fit: Fit) -> dict[str, Any]:
    law = {"alpha": fit.law.alpha, "beta": fit.law.beta, "irreducible": fit.law.irreducible}
    intervals = {name: {"low": low, "high": high} for name, (low, high) in fit.intervals.items()}
    told = {"irreducible_given": fit.given, "pearson": fit.pearson, "deviation": fit.deviation}
    return {**law, **told, "intervals": intervals, "warnings": list(fit.warnings)}


def _plot(points: Sequence[Points], fits: Mapping[str, Fit], place: Path) -> None:
    from nextscale.files.durable import write_beside
    from nextscale.studies import laws, plots

    panels, units = [], {SIZE: laws.BILLION, COMPUTE: laws.PETA}
    for name, fit in fits.items():
        shown = [(value, point.loss) for point in points if (value := getattr(point, name)) is not None]
        panels.append(plots.LawPanel(NAMES[name], [(value / units[name], loss) for value, loss in shown], fit))
    figure = plots.laws(panels)
    write_beside(place, lambda beside: figure.savefig(beside, format="png", metadata={"Software": None}))
