"""`nextscale sample`: images from a model, as one PNG a picture and a grid of them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from nextscale.cli import models, sampled
from nextscale.cli.options import AtScales, Function, Maps, SamplingPrecision, Settings
from nextscale.cli.output import at_least, directory, progress
from nextscale.cli.painting import TOP_K, Painting, again, changed, is_file, reranking, scoring
from nextscale.cli.prompts import read
from nextscale.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from nextscale.pipeline import Pipeline, Request

UNASKED = 16  # labels taken when none is given: all of a small model's, and a screenful of a thousand
SHORT: dict[str, SamplingPrecision] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int8": "int8"}
STRIP = 12  # pictures of a strip at most, where steps are no scales
COLUMNS = 8  # of the grid, unless each class has its own row


@dataclass(frozen=True, kw_only=True)
class Sample(Painting):
    """Images of prompts, of named classes, or of up to 16 classes, and a grid."""

    prompts_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """File with more prompts, one per line; blank lines and lines that begin with # are skipped."""
    sampler: Settings = ()
    """Sampler settings of a rival of VAR, such as steps=8 (docs/rivals.md)."""
    rerank: Maps = None
    """Draw this many maps at the coarse scales and keep the one with the best --rerank-by score."""
    rerank_by: Function = None
    """MODULE:FUNCTION from a Step with the candidates to their scores; the module must be importable from here."""
    rerank_scales: AtScales = ()
    """Scales to rerank, counted from 0."""
    batch: int = 8
    """Pictures per batch; affects the time, not the pictures (in bf16, at most a near tie)."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR|FILE.png")] = Path("samples")
    """Directory for pictures and grid; or a file, .png or another picture format, for the picture or a grid alone."""
    growing: bool = False
    """Also save a strip of each picture, from the first scale to the last; small pictures are enlarged."""
    like: Annotated[Path | None, tyro.conf.arg(metavar="PICTURE", help_behavior_hint="")] = None
    """Repeat a picture from the settings stored in it."""

    def run(self) -> None:
        self._check()
        if self.like is not None:
            self._repeat(self.like)
            return
        pipe = models.with_sampler(self.pipeline(), self.sampler)
        models.note_top_k(pipe, (self.top_k,), usual=TOP_K)
        pictures = self._pictures(pipe)
        alone = is_file(self.out)
        folder = directory("--out", self.out.parent if alone else self.out)
        if not alone:
            sampled.refuse_others(folder, pipe.fingerprint)
        finished = []
        with models.notes():
            for request, stages in self._paint(pipe, pictures):
                finished.append((request, stages[-1]))
                if not alone:
                    _save(folder / f"{request.stem}.png", stages[-1], notes=self.notes(request))
                if self.growing:
                    _save_strip(folder / f"{request.stem}-growing.png", stages, pipe, notes=self.notes(request))
        sheet = self.out if alone else folder / "grid.png"
        if len(pictures) == 1 and alone:
            _save(sheet, stages[-1], notes=self.notes(request))
        else:
            self._save_grid(sheet, finished)
        self._tell(len(pictures), sheet, alone=alone)

    @property
    def prompted(self) -> bool:
        return bool(self.prompt or self.prompts_file)

    def _check(self) -> None:
        """What can be known to be wrong before torch is imported."""
        self.check()
        at_least("--batch", 1, self.batch)
        if self.growing and is_file(self.out):
            raise InputError(f"--growing: expected a directory as --out, for the strips, got {self.out}")
        if self.prompt and self.prompts_file:
            raise InputError(
                f"expected --prompt or --prompts-file, got both ({self.prompt[0]!r} and {self.prompts_file})"
            )
        told = {"model", "depth", "text_encoder", "device", "precision", "out", "no_metadata", "like", "rerank_by"}
        others = [name for name in changed(self) if name not in told] if self.like else []
        if others:
            raise InputError(f"--like: expected the settings in {self.like} alone, got --{others[0].replace('_', '-')}")

    def _repeat(self, picture: Path) -> None:
        """Paint it again, and tell whether it is the same."""
        from nextscale import images
        from nextscale.pipeline import Request

        try:
            request = Request.from_notes(images.notes(picture))
            precision = SHORT.get(request.precision, "auto") if self.precision == "auto" else self.precision
            pipe = replace(self, precision=precision).pipeline()
            score = scoring(self.rerank_by) if self.rerank_by and request.rerank is not None else None
            (painted,) = pipe.repeat(request, score=score).pil()
        except InputError as error:
            raise InputError(f"--like {picture}: {error}") from None
        file = self.out if is_file(self.out) else directory("--out", self.out) / f"{request.stem}.png"
        same = painted.tobytes() == images.open_rgb(picture).tobytes()
        images.save(file, painted, notes=self.notes(request))
        print(f"{file}: {'the same pixels as' if same else 'not the same pixels as'} {picture}")

    def _pictures(self, pipe: Pipeline) -> list[Picture]:
        """Class by class, prompt by prompt; picture i of all has seed `seed` + i."""
        prompts: list[str | None] = [*self.prompt, *(read(self.prompts_file) if self.prompts_file else ())]
        labels: list[int | None] = [*self.asked(pipe)]
        if not labels:
            labels = [None] if prompts else list(range(len(pipe.classes))[:UNASKED])
        each = [(label, prompt) for label in labels for prompt in prompts or [None] for _ in range(self.count)]
        return [Picture(label, prompt, seed) for seed, (label, prompt) in enumerate(each, start=self.seed)]

    def _paint(self, pipe: Pipeline, pictures: list[Picture]) -> Iterator[tuple[Request, list[Tensor]]]:
        """Each picture with its stages (3, H, W) in [0, 1]; only the last stage unless they are to be saved growing."""
        with progress() as bar:
            task = bar.add_task("painting", total=len(pictures))
            for start in range(0, len(pictures), self.batch):
                part = pictures[start : start + self.batch]
                yield from self._stages(pipe, part)
                bar.advance(task, len(part))

    def _stages(self, pipe: Pipeline, part: list[Picture]) -> Iterator[tuple[Request, list[Tensor]]]:
        labels, prompts, seeds = ([*column] for column in zip(*part, strict=True))
        known = {"labels": labels, "prompts": prompts}
        asked: dict[str, Any] = {what: each for what, each in known.items() if each[0] is not None}
        rerank = reranking(self.rerank, self.rerank_by, self.rerank_scales)
        steps = pipe.stream(**asked, seeds=seeds, rerank=rerank, **self.settings())
        wanted = shown_steps(pipe) if self.growing else [pipe.steps - 1]
        shown = [(step.requests, step.preview()) for step in steps if step.scale in wanted]
        stages = zip(*(pictures for _, pictures in shown), strict=True)
        return zip(shown[-1][0], map(list, stages), strict=True)

    def _save_grid(self, file: Path, finished: list[tuple[Request, Tensor]]) -> None:
        """A row a class where there are several of each, and else a name over each picture."""
        import torch

        from nextscale import images
        from nextscale.cli.sheet import Row, drawn

        columns = self.count if self.count > 1 else COLUMNS
        rows = []
        for start in range(0, len(finished), columns):
            requests, pictures = zip(*finished[start : start + columns], strict=True)
            names = [request.title for request in requests]
            beside, over = (names[0], []) if self.count > 1 else ("", names)
            rows.append(Row(beside, images.from_unit(torch.stack(pictures)), over))
        images.save(file, drawn(rows))

    def _tell(self, count: int, sheet: Path, *, alone: bool) -> None:
        """What was written, and the command that writes it again."""
        what = f"{count} picture{'s' if count > 1 else ''}"
        print(f"{what} in {sheet}" if alone else f"{what} and {sheet.name} in {sheet.parent}")
        print(again("sample", self))


def shown_steps(pipe: Pipeline) -> list[int]:
    """Of what is painted, which steps a strip shows: every scale; of a rival's many steps some, the last one too."""
    count = pipe.steps if pipe.transformer.order == "scale" else min(pipe.steps, STRIP)
    return [-(-pipe.steps * part // count) - 1 for part in range(1, count + 1)]


class Picture(NamedTuple):
    """What one is to show."""

    label: int | None
    prompt: str | None
    seed: int


def _save(file: Path, image_3HW: Tensor, *, notes: Mapping[str, str] | None) -> None:
    """One image in [0, 1], as it is."""
    from nextscale import images

    images.save(file, images.from_unit(image_3HW), notes=notes)


def _save_strip(file: Path, stages: list[Tensor], pipe: Pipeline, *, notes: Mapping[str, str] | None) -> None:
    """Images (3, H, W) in [0, 1] of all scales, or of some steps, side by side under their names."""
    import torch

    from nextscale import images
    from nextscale.cli.sheet import Row, drawn, scale_names

    by_scale = pipe.transformer.order == "scale"
    over = scale_names(pipe.transformer.config.scales) if by_scale else [f"step {k + 1}" for k in shown_steps(pipe)]
    images.save(file, drawn([Row("", images.from_unit(torch.stack(stages)), over)]), notes=notes)
