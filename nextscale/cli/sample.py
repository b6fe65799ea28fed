"""`nextscale sample`: images from a model, as one PNG a picture and a grid of them all."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nextscale.cli import models, sampled
from nextscale.cli.options import Depth, Labels, Model, Precision
from nextscale.cli.output import at_least, at_most, directory, progress
from nextscale.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from nextscale.pipeline import Pipeline, Request

UNASKED = 16  # labels taken when none is given: all of a small model's, and a screenful of a thousand
MOST = 100_000  # pictures of a class: all of them are kept for the grid
TOP_K = 900  # as in published results
COLUMNS = 8  # of the grid, unless each label has its own row


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images from a model: one PNG a picture, and a grid of them all."""

    model: Model = ()
    """Directory such as `nextscale demo` leaves, hub name, or the public release's tokenizer and transformer files."""
    depth: Depth = None
    """Which of the release's transformers, when --model is a folder or hub name that holds them: 16, 20, 24 ..."""
    label: Labels = ()
    """Classes to paint, by name or number (default: each class, the first 16 at most)."""
    count: int = 1
    """Pictures of each class."""
    seed: int = 0
    """Seed of the first picture; the next have the next seeds. A seed alone decides its picture."""
    guidance: float = 1.5
    """Strength of classifier-free guidance at the last scale; 0 is none."""
    top_k: int = TOP_K
    """Choose among the k likeliest codes; 0 is all, as is a k beyond the codebook."""
    top_p: float = 0.96
    """Choose among the likeliest codes that hold this much probability; 0 is all."""
    temperature: float = 1.0
    """Above 1 more varied, below 1 more typical."""
    smooth: bool = False
    """Mix codes (Gumbel-softmax) instead of choosing one: prettier, not for measuring."""
    batch: int = 8
    """Pictures painted at a time; changes the time, not the pictures (in bf16, at most a near tie in one)."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA where there is some."""
    precision: Precision = "auto"
    """auto is bf16 where the hardware is fast at it, else fp32."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR|FILE.png")] = Path("samples")
    """Directory for pictures and grid; or a file, .png or another picture format, for the picture or a grid alone."""
    growing: bool = False
    """Also save each picture's strip, from the first scale to the last."""

    def run(self) -> None:
        self._check()
        pipe = models.load(self.model, self.depth, device=self.device, precision=self.precision)
        models.note_top_k(pipe, (self.top_k,), usual=TOP_K)
        pictures = self._pictures(pipe)
        alone = _is_file(self.out)
        folder = directory("--out", self.out.parent if alone else self.out)
        marked = sampled.mark(pipe)
        if not alone:
            sampled.refuse_others(folder, marked)
        finished = []
        for request, stages in self._paint(pipe, pictures):
            finished.append(stages[-1])
            if not alone:
                _save(folder / f"{request.stem}.png", stages[-1:], columns=1, notes={**request.notes, **marked})
            if self.growing:
                _save(
                    folder / f"{request.stem}-growing.png",
                    stages,
                    columns=len(stages),
                    notes={**request.notes, **marked},
                )
        sheet = self.out if alone else folder / "grid.png"
        notes = {**request.notes, **marked} if len(pictures) == 1 else None
        _save(sheet, finished, columns=self.count if self.count > 1 else COLUMNS, notes=notes)
        self._tell(len(pictures), sheet, alone=alone)

    def _check(self) -> None:
        """What can be known to be wrong before torch is imported."""
        at_least("--count", 1, self.count)
        at_most("--count", MOST, self.count)
        at_least("--batch", 1, self.batch)
        at_least("--seed", 0, self.seed)
        if self.growing and _is_file(self.out):
            raise InputError(f"--growing: expected a directory as --out, for the strips, got {self.out}")

    def _pictures(self, pipe: Pipeline) -> list[tuple[int, int]]:
        """Label and seed of each, label by label; picture i of all has seed `seed` + i."""
        asked = self.label or range(len(pipe.classes))[:UNASKED]
        labels = [pipe.label(label) for label in asked for _ in range(self.count)]
        return [(label, seed) for seed, label in enumerate(labels, start=self.seed)]

    def _paint(self, pipe: Pipeline, pictures: list[tuple[int, int]]) -> Iterator[tuple[Request, list[Tensor]]]:
        """Each picture with its stages (3, H, W) in [0, 1]; only the last stage unless they are to be saved growing."""
        with progress() as bar:
            task = bar.add_task("painting", total=len(pictures))
            for start in range(0, len(pictures), self.batch):
                part = pictures[start : start + self.batch]
                yield from self._stages(pipe, part)
                bar.advance(task, len(part))

    def _stages(self, pipe: Pipeline, part: list[tuple[int, int]]) -> Iterator[tuple[Request, list[Tensor]]]:
        labels, seeds = zip(*part, strict=True)
        steps = pipe.stream(
            labels,
            seeds,
            guidance=self.guidance,
            top_k=self.top_k,
            top_p=self.top_p,
            temperature=self.temperature,
            smooth=self.smooth,
        )
        last = len(pipe.transformer.config.scales) - 1
        shown = [(step.requests, step.preview()) for step in steps if self.growing or step.scale == last]
        stages = zip(*(pictures for _, pictures in shown), strict=True)
        return zip(shown[-1][0], map(list, stages), strict=True)

    def _tell(self, count: int, sheet: Path, *, alone: bool) -> None:
        """What was written, and the command that writes it again."""
        what = f"{count} picture{'s' if count > 1 else ''}"
        print(f"{what} in {sheet}" if alone else f"{what} and {sheet.name} in {sheet.parent}")
        print(f"again: {shlex.join(['nextscale', 'sample', *_options(self)])}")


def _is_file(path: Path) -> bool:
    """Whether a picture is meant rather than a directory, by its suffix."""
    from nextscale.images import SUFFIXES

    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def _save(file: Path, images: list[Tensor], *, columns: int, notes: Mapping[str, str] | None = None) -> None:
    """Images (3, H, W) in [0, 1] side by side."""
    import torch

    from nextscale import images as pictures

    pictures.save(file, pictures.from_unit(pictures.grid(torch.stack(images), columns=columns)), notes=notes)


def _options(command: Sample) -> list[str]:
    """The options that differ from their defaults, as they are typed."""
    words = []
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        if value != field.default:
            words.append(f"--{field.name.replace('_', '-')}")
            words += [] if value is True else [str(item) for item in (value if isinstance(value, tuple) else (value,))]
    return words
