"""`nextscale demo`: both stages from scratch on the embedded pictures, then everything there is to see, on one page.

OUT/tokenizer/    the run of stage 1
OUT/              the run of stage 2, which is also what `--model OUT` loads
OUT/report.html   the page
OUT-default.png   what the model that comes with nextscale paints, to look at meanwhile
"""

from __future__ import annotations

import contextlib
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nextscale.cli import memory
from nextscale.cli.data import load_data
from nextscale.cli.options import Directory, Precision
from nextscale.cli.output import check_json, directory, say, write_json
from nextscale.cli.training import watch
from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.cli.sheet import Row
    from nextscale.data import DataSet
    from nextscale.pipeline import Pipeline
    from nextscale.tokenizer import MultiScaleVQVAE
    from nextscale.training.tokenizer.health import ScaleUsage

PRESET = "emoji-32"
TOKENIZER_SHARE, TRANSFORMER_SHARE = 0.46, 0.46  # of the minutes; the rest is for starting, sampling and the page
CHECKS = 20  # points of the curves
SAMPLES = 10  # pictures a class
GROWING = 4  # pictures shown scale by scale
RECONSTRUCTED = 12  # held-out pictures shown
PROMPTS = ("cat face", "red heart", "rocket", "mushroom", "house")  # for the default model,
STYLES = ("noto", "fluent flat", "twemoji", "emojione", "icon park")  # in these of its drawing styles

# What a reader who is new to all this needs to know, a sentence or two a section.
ABOUT_DEFAULT = (
    "Two hours of one core on 23,181 icons with captions, which is what `nextscale sample --prompt` uses without "
    "--model. The model below had minutes, and a seventh of the pictures."
)
ABOUT_SAMPLES = "Drawn by the transformer from a class and a random seed alone; a row is a class."
ABOUT_SCALES = (
    "A picture is a pyramid of token maps, coarse to fine: a scale is one map, drawn all at once, given the class and "
    "the coarser maps. From left to right, one scale more is painted."
)
ABOUT_RECONSTRUCTIONS = (
    "Pictures that training never saw, turned into tokens and back: the best that any sample can look like. PSNR is "
    "the error on a logarithmic scale: 6 dB more is half the error."
)
ABOUT_CODES = (
    "A token is the number of a code in the codebook. Perplexity is how many equally frequent codes would carry as "
    "much information: near 1, a scale says almost nothing."
)
ABOUT_CURVES = (
    "Held-out figures that get worse while the loss still falls mean overfitting. Cross-entropy is the surprise "
    "at the right token; unigram is that of a guess by how often each code occurs at its scale, and below it more has "
    "been learned."
)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train both stages on the embedded emoji, sample every class, and write a report."""

    out: Directory = Path("runs/demo")
    """Directory of runs and report; existing runs are continued or reused."""
    minutes: float = 8.5
    """Budget in minutes; more gives better pictures. Another budget needs another --out."""
    seed: int = 0
    """Seed of weights, order of the data, and samples."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available."""
    precision: Precision = "auto"
    """auto is bf16 where the hardware supports it natively, else fp32."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Also write the metrics as JSON; - is stdout."""

    def run(self) -> None:
        if not self.minutes > 0:
            raise InputError(f"--minutes: expected more than 0, got {self.minutes:g}")
        directory("--out", self.out)
        check_json(self.json)
        with contextlib.redirect_stdout(sys.stderr if str(self.json) == "-" else sys.stdout):
            figures = self._everything()
        if self.json is not None:
            write_json(self.json, figures)

    def _everything(self) -> dict[str, Any]:
        """Both stages, the page and what is said; the figures."""
        say(
            "demo: trains a tokenizer, then a transformer, from nothing on emoji: "
            f"about {self.minutes:g} minutes in all, less what {self.out} holds already; "
            "Ctrl-C is safe, the same command continues"
        )
        memory.keep_freed()
        started = time.monotonic()
        default = self._default()
        data, tokenizer, figures = self._train()

        from nextscale.pipeline import Pipeline
        from nextscale.training.tokenizer.health import scale_usage

        pipe = Pipeline.load(self.out, device=self.device, precision=self.precision)
        figures |= {"minutes": (time.monotonic() - started) / 60}
        usage = scale_usage(tokenizer.config, figures["tokenizer"], len(data.validation))
        self._report(pipe, tokenizer, data, figures, usage, default)
        self._tell(figures, usage)
        return figures

    def _default(self) -> list[Row]:
        """What the default model paints: a row a prompt, a column a style; as a picture beside OUT too."""
        from nextscale import images
        from nextscale.cli.sheet import Row, drawn
        from nextscale.pipeline import Pipeline

        pipe = Pipeline.load(device=self.device, precision=self.precision)
        rows = []
        for prompt in PROMPTS:
            painted = pipe.generate([*STYLES], self.seed, prompts=prompt)
            rows.append(Row(prompt, images.from_unit(painted.images.cpu()), STYLES))
        place = self.out.parent / f"{self.out.resolve().name}-default.png"
        images.save(place, drawn(rows))
        say(f"demo: what the model that comes with nextscale paints is in {place}")
        return rows

    def _train(self) -> tuple[DataSet, MultiScaleVQVAE, dict[str, Any]]:
        """Both stages; their figures at the end."""
        from nextscale import presets
        from nextscale.training import recipes
        from nextscale.training.loop import Length, Rhythm, train
        from nextscale.training.tokenizer.stage import TokenizerStage
        from nextscale.training.transformer.stage import TransformerStage, fitted

        preset = presets.get(PRESET)
        config = preset.tokenizer
        data = load_data("emoji", height=config.height, width=config.width)
        recipe, _ = recipes.for_preset(PRESET)
        first = TokenizerStage(
            config, data, recipe=recipe, seed=self.seed, device=self.device, precision=self.precision
        )
        rhythm, tokenizer = Rhythm(checks=CHECKS), self.out / "tokenizer"
        length = Length(minutes=self.minutes, share=TOKENIZER_SHARE)
        watch("tokenizer", train(first, tokenizer, length, seed=self.seed, rhythm=rhythm), tokenizer)
        second = TransformerStage(
            fitted(preset.transformer, first.best_model, classes=len(data.classes)),
            first.best_model,
            data,
            recipe=recipes.for_transformer(PRESET)[0],
            seed=self.seed,
            device=self.device,
            precision=self.precision,
        )
        length = Length(minutes=self.minutes, share=TRANSFORMER_SHARE)
        watch("transformer", train(second, self.out, length, seed=self.seed, rhythm=rhythm), self.out)
        figures = {"tokenizer": first.validate(), "transformer": second.validate()}
        return data, first.best_model, figures

    def _report(
        self,
        pipe: Pipeline,
        tokenizer: MultiScaleVQVAE,
        data: DataSet,
        figures: dict[str, Any],
        usage: Sequence[ScaleUsage],
        default: Sequence[Row],
    ) -> None:
        """Write OUT/report.html."""
        from nextscale.cli import report
        from nextscale.files.checkpoint import read_json

        stages = {name: read_json(path / "history.json") for name, path in self._runs().items()}
        sections = [
            report.Section("In short", report.tiles(_headlines(figures))),
            report.Section("What the default model paints", report.rows(default, zoom=1), ABOUT_DEFAULT),
            report.Section("Samples", report.rows(self._samples(pipe), zoom=2), ABOUT_SAMPLES),
            report.Section("Growing, scale by scale", report.rows(self._growing(pipe), zoom=3), ABOUT_SCALES),
            report.Section(
                "Held-out pictures through the tokenizer",
                report.rows(_reconstructions(tokenizer, data), zoom=2),
                ABOUT_RECONSTRUCTIONS,
            ),
            report.Section("Codes in use on held-out pictures", _usage(usage), ABOUT_CODES),
            report.Section(
                "Curves", report.curves(_curves(stages, figures["transformer"]["unigram"]), columns=2), ABOUT_CURVES
            ),
            report.Section("Settings", report.table(("what", "value"), self._settings(pipe, data, figures))),
            report.Section("What to try next", report.commands(self._next_steps(data))),
        ]
        report.write(
            self.out / "report.html",
            title="nextscale demo",
            lead="A tokenizer and a next-scale transformer, trained from nothing on this machine on embedded emoji.",
            sections=sections,
        )

    def _runs(self) -> dict[str, Path]:
        return {"tokenizer": self.out / "tokenizer", "transformer": self.out}

    def _samples(self, pipe: Pipeline) -> list[Row]:
        """A row a class; picture i of the page has seed `seed` + i."""
        from nextscale.cli.sheet import Row
        from nextscale.images import from_unit

        seeds = range(self.seed, self.seed + len(pipe.classes) * SAMPLES)
        parts = [list(seeds)[i * SAMPLES : (i + 1) * SAMPLES] for i in range(len(pipe.classes))]
        return [
            Row(name, from_unit(pipe.generate([name] * SAMPLES, part).images.cpu()))
            for name, part in zip(pipe.classes, parts, strict=True)
        ]

    def _growing(self, pipe: Pipeline) -> list[Row]:
        """The first picture of some classes after each scale."""
        import torch

        from nextscale.cli.sheet import Row, scale_names
        from nextscale.images import from_unit

        labels = list(pipe.classes[:GROWING])
        steps = [
            step.preview().cpu() for step in pipe.stream(labels, [self.seed + i * SAMPLES for i in range(GROWING)])
        ]
        over = scale_names(pipe.transformer.config.scales)
        return [Row(label, from_unit(torch.stack(strip)), over) for label, *strip in zip(labels, *steps, strict=True)]

    def _settings(self, pipe: Pipeline, data: DataSet, figures: dict[str, Any]) -> list[tuple[str, str]]:
        """What a reader needs to get the same pictures."""
        import torch

        from nextscale import __version__
        from nextscale.files.checkpoint import read_json
        from nextscale.sampling.loop import Choice

        choice, steps = Choice(), {name: read_json(path / "run.json")["steps"] for name, path in self._runs().items()}
        return [
            ("preset", PRESET),
            ("scales", str(pipe.transformer.config.scales)),
            ("data", f"emoji: {len(data.train)} pictures to train on, {len(data.validation)} held out by subject"),
            ("seeds", f"{self.seed} of training; samples from {self.seed} on, row by row"),
            (
                "sampling",
                f"guidance 1.5, top-k {choice.top_k}, top-p {choice.top_p}, temperature {choice.temperature:g}",
            ),
            ("steps", ", ".join(f"{name} {count}" for name, count in steps.items())),
            ("budget", f"{self.minutes:g} minutes (this call took {figures['minutes']:.1f})"),
            ("precision", f"{pipe.arithmetic.name} on {pipe.device}"),
            ("versions", f"nextscale {__version__}, torch {torch.__version__}, Python {platform.python_version()}"),
        ]

    def _next_steps(self, data: DataSet) -> list[str]:
        return [
            f"nextscale sample --model {self.out} --label '{data.classes[3]}' --count 8 --growing",
            f"nextscale reconstruct PICTURE.png --model {self.out}",
            "nextscale demo --minutes 60 --out runs/longer",
            "nextscale train tokenizer --data FOLDER --out runs/tokenizer --minutes 60",
            "nextscale train transformer --data FOLDER --tokenizer runs/tokenizer --out runs/mine --minutes 60",
            f"tensorboard --logdir {self.out}",
        ]

    def _tell(self, figures: dict[str, Any], usage: Sequence[ScaleUsage]) -> None:
        """The figures that matter, and where the page is."""
        tokenizer, transformer = figures["tokenizer"], figures["transformer"]
        say(f"tokenizer: PSNR on held-out subjects {tokenizer['psnr']:.2f} dB")
        counts = ", ".join(f"{row.size}: {row.used} of {row.possible}" for row in usage)
        say(f"tokenizer: codes used by scale {counts}")
        for row in usage:
            if row.collapsed:
                say(f"tokenizer: {row.warning()}")
        say(
            f"transformer: held-out cross-entropy {transformer['cross_entropy']:.3f} nats a token, "
            f"unigram {transformer['unigram']:.3f}"
        )
        say(f"report: {self.out / 'report.html'} (after {figures['minutes']:.1f} minutes)")


def _headlines(figures: dict[str, Any]) -> list[tuple[str, str]]:
    tokenizer, transformer = figures["tokenizer"], figures["transformer"]
    return [
        (f"{tokenizer['psnr']:.2f} dB", "PSNR of held-out pictures through the tokenizer"),
        (f"{transformer['cross_entropy']:.3f}", "held-out cross-entropy of the transformer, nats a token"),
        (f"{transformer['unigram']:.3f}", "unigram, the cross-entropy of a guess by frequency: the bar to beat"),
        (f"{transformer['accuracy']:.1%}", "held-out tokens guessed right"),
    ]


def _reconstructions(tokenizer: MultiScaleVQVAE, data: DataSet) -> list[Row]:
    """Held-out pictures spread over the split, above what their tokens say."""
    import torch

    from nextscale.cli.sheet import Row

    count = len(data.validation)
    originals, _ = data.validation.batch(range(0, count, -(-count // RECONSTRUCTED)))
    device = tokenizer.quantizer.device
    with torch.no_grad():
        painted = tokenizer.decode(tokenizer.encode(originals.to(device))).cpu()
    return [Row("held out", originals), Row("reconstructed", painted)]


def _usage(usage: Sequence[ScaleUsage]) -> str:
    from nextscale.cli import report

    body = [(row.size, str(row.used), str(row.possible), f"{row.perplexity:.1f}") for row in usage]
    found = [row.warning() for row in usage if row.collapsed]
    return report.warnings(found) + report.table(("scale", "codes used", "possible", "perplexity"), body)


def _curves(histories: dict[str, Any], unigram: float) -> list[Any]:
    from nextscale.cli.report import Curve

    def points(stage: str, figure: str) -> list[tuple[float, float]]:
        return [(entry["step"], entry[figure]) for entry in histories[stage]]

    return [
        Curve("tokenizer: loss of training batches", points("tokenizer", "loss")),
        Curve("tokenizer: held-out PSNR (dB)", points("tokenizer", "psnr")),
        Curve("transformer: loss of training batches (nats)", points("transformer", "loss")),
        Curve(
            "transformer: held-out cross-entropy (nats)",
            points("transformer", "cross_entropy"),
            ("unigram", unigram),
        ),
    ]
