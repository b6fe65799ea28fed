"""`nextscale evaluate generation --prompts held-out`: whether pictures show what their prompts say."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nextscale.cli import evaluate_attributes, models
from nextscale.cli.data import written_to
from nextscale.cli.figures import tell_card
from nextscale.cli.options import SamplingPrecision
from nextscale.cli.output import bar, console, directory, say, table, wrapped, write_json
from nextscale.errors import InputError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from nextscale.evaluation.alignment import Alignment, Question, Real, Row
    from nextscale.evaluation.card import AlignmentCard, Setting
    from nextscale.evaluation.generation import Painted, Plan
    from nextscale.evaluation.judging import Figure
    from nextscale.features import FeatureNetwork
    from nextscale.pipeline import Pipeline

EACH = 300  # prompts of each kind when no number is given
SHEET, SHOWN = "prompts.png", 12  # pictures of each kind


@dataclass(frozen=True, kw_only=True)
class Asking:
    """The options of `evaluate generation` that go with prompts."""

    model: tuple[str, ...]
    depth: int | None
    reference: str
    captions: str
    max_broken: float | None
    list_broken: Path | None
    count: int | None
    seed: int
    guidance_until: int | None
    sampler: tuple[str, ...]
    features: str
    clip: str | None
    batch: int
    precision: SamplingPrecision
    json: Path | None
    out: Path | None


def ask(command: Asking, settings: Sequence[Setting], device: str) -> None:
    """All of it, all processes together; the first one judges and tells."""
    from nextscale import features
    from nextscale.evaluation import alignment, generation
    from nextscale.evaluation.gathering import gather
    from nextscale.machine import distributed

    pipe = models.load(command.model, command.depth, device=device, precision=command.precision)
    pipe = models.with_sampler(pipe, command.sampler)
    (setting,) = generation.fitted(settings, pipe.steps, until=command.guidance_until)
    if pipe.reader is None:
        raise InputError(f"--prompts: expected a model that reads text, got {models.called(command.model)}")
    if command.reference == "figures":
        if command.out is not None:
            raise InputError(f"--out: expected none with --prompts and --reference figures, got {command.out}")
        if command.clip is not None:
            raise InputError(f"--clip: expected none with --reference figures, got {command.clip}")
        painting = evaluate_attributes.Painting(
            pipe=pipe,
            name=models.called(command.model),
            setting=setting,
            count=command.count,
            seed=command.seed,
            batch=command.batch,
            json=command.json,
        )
        evaluate_attributes.ask(painting, device)
        return
    if command.clip is not None and distributed.world() > 1:
        raise InputError(f"--clip: expected one process, got {distributed.world()}")
    scored = None if command.clip is None else _Scored(command.clip, device)
    network = features.load(command.features, device=device)
    real = _real(command, pipe)
    asked = alignment.questions(real, each=command.count or EACH, seed=command.seed)
    if command.out is not None:
        directory("--out", command.out)
    plan = alignment.plan(asked, real, pipe.classes, first_seed=command.seed)
    pictures = alignment.gallery(asked, real, seed=command.seed)
    with bar("features of real pictures") as told:
        real_ND = alignment.seen(pictures, real, network, batch=command.batch, progress=told)
    sheet = _Sheet(asked, plan)
    with bar("painting") as told:
        painted = generation.paint(pipe, plan, setting, batch=command.batch, progress=told)
        batches = generation.shown_to(painted, sheet.add)
        if scored is not None:
            batches = generation.shown_to(batches, scored.add)
        painted_QD = gather(batches, network, total=len(plan), keep=len(plan)).features
    if distributed.is_first():
        card = _card(command, setting, pipe, network, real, asked, len(pictures))
        if scored is not None:
            card = dataclasses.replace(card, clip=scored.clip.used)
        result = alignment.judge(asked, painted_QD, pictures, real_ND, card)
        if scored is not None and plan.prompts is not None:
            result = dataclasses.replace(result, clip=scored.rows(asked, real, plan.prompts))
        _give(result, sheet, command.json, command.out)


def _real(command: Asking, pipe: Pipeline) -> Real:
    """The reference's pictures at the model's size, with their captions."""
    from nextscale import data
    from nextscale.evaluation.alignment import Real
    from nextscale.evaluation.reference import MOST_BROKEN
    from nextscale.machine import distributed

    size = pipe.tokenizer.config
    with bar("finding the reference") as told:
        found = data.load(
            command.reference,
            height=size.height,
            width=size.width,
            captions=command.captions,
            max_broken=MOST_BROKEN if command.max_broken is None else command.max_broken,
            broken=None if command.list_broken is None else written_to(command.list_broken),
            progress=told,
        )
    for line in found.told if distributed.is_first() else ():
        print(wrapped(f"reference: {line}"), file=sys.stderr if str(command.json) == "-" else sys.stdout)
    return Real.of(found)


def _card(
    command: Asking,
    setting: Setting,
    pipe: Pipeline,
    network: FeatureNetwork,
    real: Real,
    asked: Sequence[Question],
    pictures: int,
) -> AlignmentCard:
    from nextscale.data.pictures import fingerprint
    from nextscale.evaluation import generation, judging, retrieval
    from nextscale.evaluation.alignment import KINDS
    from nextscale.evaluation.card import AlignmentCard, ReferenceUsed

    counts = {kind: sum(one.kind == kind for one in asked) for kind in KINDS}
    captions = [split.captions.fingerprint if split.captions is not None else "" for split in real.splits]
    reference = ReferenceUsed(
        name=printable(command.reference),
        fingerprint=fingerprint([*(split.fingerprint for split in real.splits), *captions]),
        pictures=pictures,
        height=pipe.tokenizer.config.height,
        width=pipe.tokenizer.config.width,
        fewest=None,
        most=None,
    )
    return AlignmentCard(
        model=generation.model_used(pipe, models.called(command.model)),
        setting=setting,
        first_seed=command.seed,
        prompts={kind: count for kind, count in counts.items() if count},
        among=retrieval.AMONG,
        draws=retrieval.DRAWS,
        kept=len(asked),
        reference=reference,
        network=judging.network_used(network),
        versions=judging.versions(),
    )


class _Scored:
    """What a CLIP sees in the pictures that are painted, in their order."""

    def __init__(self, source: str, device: str) -> None:
        from nextscale.evaluation.clip import Clip

        self.clip = Clip(source, device=device)
        self.painted: list[Tensor] = []

    def add(self, painted: Painted) -> None:
        self.painted.append(self.clip.pictures(painted.images))

    def rows(self, asked: Sequence[Question], data: Real, prompts: Sequence[str]) -> tuple[Row, ...]:
        import torch

        from nextscale.evaluation import clip

        real_QE = clip.real(self.clip, asked, data)
        return clip.judge(asked, torch.cat(self.painted), real_QE, self.clip.prompts(prompts))


class _Sheet:
    """The first pictures of each kind of prompts."""

    def __init__(self, asked: Sequence[Question], plan: Plan) -> None:
        self.asked, self.plan = asked, plan
        self.kept: dict[str, list[tuple[str, Tensor]]] = {}

    def add(self, painted: Painted) -> None:
        for index, image in zip(painted.indices, painted.images.unbind(), strict=True):
            row = self.kept.setdefault(self.asked[index].kind, [])
            if len(row) < SHOWN and self.plan.prompts is not None:
                row.append((self.plan.prompts[index], image.cpu()))

    def save(self, file: Path) -> None:
        """A row a kind, each picture under its prompt."""
        import torch

        from nextscale import images
        from nextscale.cli.sheet import Row, drawn

        rows = [
            Row(kind, torch.stack([image for _, image in row]), over=[prompt for prompt, _ in row])
            for kind, row in self.kept.items()
        ]
        images.save(file, drawn(rows))


def _give(result: Alignment, sheet: _Sheet, json: Path | None, out: Path | None) -> None:
    """Files first: what is printed may have nowhere to go."""
    if out is not None:
        sheet.save(out / SHEET)
    if json is not None:
        write_json(json, result.to_json())
    if str(json) == "-":
        return
    rows: list[tuple[object, ...]] = [
        (row.kind, row.whose, row.prompts, *map(_told, row.figures.values())) for row in result.rows
    ]
    title = f"retrieval-{result.card.network.name}, ± half of the interval"
    heads = tuple(name.removeprefix("retrieval") for name in result.rows[0].figures)
    console().print(table(title, ("prompts", "pictures of"), ("count", *heads), rows), "", sep="\n")
    if result.clip:
        rows = [(row.kind, row.whose, row.prompts, _told(row.figures["clip_score"])) for row in result.clip]
        title = "CLIP score, 0 .. 100, ± half of the interval"
        console().print(table(title, ("prompts", "pictures of"), ("count", "mean"), rows), "", sep="\n")
    tell_card(result.card, result.card.warnings())
    if out is not None:
        say(f"pictures in {out}")


def _told(figure: Figure) -> str:
    assert figure.low is not None
    assert figure.high is not None
    return f"{figure.value:.3f} ±{(figure.high - figure.low) / 2:.3f}"
