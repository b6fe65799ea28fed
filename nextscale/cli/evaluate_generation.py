"""`nextscale evaluate generation`: how good a model's pictures are, in figures that say how they were made."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro

from nextscale.cli import models
from nextscale.cli.data import ListBroken, check_broken, written_to
from nextscale.cli.options import (
    AtScales,
    Depth,
    Function,
    Json,
    Maps,
    Model,
    NumberPerScale,
    SamplingPrecision,
    Settings,
    Until,
    WholePerScale,
)
from nextscale.cli.output import at_least, at_most, bar, check_json, directory, wrapped
from nextscale.cli.painting import reranking
from nextscale.cli.training import together
from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.evaluation.card import Card, ReferenceUsed, Rejection, Setting
    from nextscale.evaluation.generation import Painted, Plan, Result
    from nextscale.evaluation.reference import ReferenceFeatures
    from nextscale.evaluation.rejection import Scorer
    from nextscale.features import FeatureNetwork
    from nextscale.pipeline import Pipeline, Rerank

TOP_K = 900  # as in published results
MOST = 10_000_000  # pictures: a list of seeds and labels of them is made at once
VARIED = ("guidance", "top_k", "top_p", "temperature", "step_guidance")  # options of several values
UNASKED = 2000  # pictures when no number is given: a minute or two for a small model on a CPU
Number = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]


class Choosing(NamedTuple):
    """Rejection sampling: who chooses, and what the card tells of it."""

    scorer: Scorer
    rejection: Rejection


class Parts(NamedTuple):
    """What stays the same whatever the setting."""

    pipe: Pipeline
    network: FeatureNetwork
    reference: ReferenceFeatures
    choosing: Choosing | None
    rerank: Rerank | None
    card: Card
    """Of the first setting."""


@dataclass(frozen=True, kw_only=True)
class EvaluateGeneration:
    """Compare a model's samples with real pictures, with a protocol card.

    several values of --guidance, --top-k ...: all combinations, a row each; 0,1,2 is one value, of three scales

    FD: Fréchet distance, named after the network whose features it compares

    behind torchrun: processes share the pictures
    """

    model: Model = ()
    """Directory such as `nextscale demo` leaves, hub name, or the public release's tokenizer and transformer files
    (default: the model that comes with nextscale)."""
    depth: Depth = None
    """Depth of the release's transformer, if --model is a folder or hub name with several: 16, 20, 24 ..."""
    reference: Annotated[str, tyro.conf.arg(metavar="emoji|DIR|FILE.npz")] = "emoji"
    """emoji (embedded), a folder of pictures or of WebDataset shards, or samples or statistics for ADM's evaluator."""
    split: Annotated[
        Literal["train", "validation"] | None, tyro.conf.arg(metavar="train|validation", help_behavior_hint="")
    ] = None
    """Split of the reference to compare with (default: train; all of a folder)."""
    max_broken: Annotated[float | None, tyro.conf.arg(metavar="SHARE", help_behavior_hint="")] = None
    """Largest share of unreadable reference pictures to leave out; with more, it is refused (default: 0.01; none for a
    folder that is taken whole)."""
    list_broken: ListBroken = None
    """File for the list of unreadable pictures, name and reason, one per line."""
    prompts: Annotated[Literal["held-out"] | None, tyro.conf.arg(metavar="held-out", help_behavior_hint="")] = None
    """Ask the model for captions of the reference instead, and whether each subject is recognised among 100; of
    --reference figures, whether each attribute is as asked for."""
    captions: Annotated[str, tyro.conf.arg(metavar="own|names|FILE.csv")] = "own"
    """Source of the captions for --prompts: with the pictures, file names, or a table."""
    per_class_count: Number = None
    """Pictures of each class."""
    count: Number = None
    """Pictures in all, rounded up to as many of each class (default: 2000); of each kind of --prompts (300)."""
    seed: int = 0
    """Seed of the first picture; the next ones count up. A seed alone determines its picture."""
    repeats: int = 1
    """Number of sets with different seeds: metrics are means, with their standard deviation."""
    guidance: tuple[NumberPerScale, ...] = (1.5,)
    """Strength of classifier-free guidance at the last scale, growing linearly from 0 (0: none); or one per scale."""
    guidance_until: Until = None
    """No guidance from this scale on, counted from 0."""
    top_k: tuple[WholePerScale, ...] = (TOP_K,)
    """Sample from the k likeliest codes; 0 is all."""
    top_p: tuple[NumberPerScale, ...] = (0.96,)
    """Sample from the likeliest codes that together have this probability; 0 is all."""
    temperature: tuple[NumberPerScale, ...] = (1.0,)
    """Divides the logits: above 1 more varied, below 1 more typical."""
    step_guidance: tuple[NumberPerScale, ...] = (0.0,)
    """Strength of guidance by the scale before, one value or one per scale."""
    reach: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SCALES", help_behavior_hint="(default: all)")] = ()
    """Number of scales a token attends to, its own included."""
    sampler: Settings = ()
    """Sampler settings of a rival of VAR, such as steps=8 (docs/rivals.md)."""
    rerank: Maps = None
    """Draw this many maps at the coarse scales and keep the one with the best --rerank-by score."""
    rerank_by: Function = None
    """MODULE:FUNCTION from a Step with the candidates to their scores; the module must be importable from here."""
    rerank_scales: AtScales = ()
    """Scales to rerank, counted from 0."""
    rejection: Annotated[float | None, tyro.conf.arg(metavar="RATE", help_behavior_hint="")] = None
    """Share of the pictures to keep: those of each class that the classifier is surest of."""
    classifier: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")] = "efficientnet-lite0"
    """Network of that classifier, which picks the class with the nearest mean feature."""
    classifier_data: Annotated[str | None, tyro.conf.arg(metavar="emoji|DIR", help_behavior_hint="")] = None
    """Data the classifier learns from, training split (default: the reference)."""
    per_class: bool = False
    """Also the Fréchet distance of each class."""
    features: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")] = "efficientnet-lite0"
    """Feature network: inception-2015 for FID (downloaded once), a file with weights, a hub name, or
    MODULE:FUNCTION."""
    clip: Annotated[str | None, tyro.conf.arg(metavar="NAME|PATH", help_behavior_hint="")] = None
    """Also the CLIP score of --prompts, by these weights: a folder or hub name of the transformers library."""
    keep: int = 10_000
    """Largest number of pictures for metrics other than Fréchet distances; time grows with the square."""
    batch: int = 32
    """Pictures per batch; affects the time, not the metrics (in bf16, at most near ties)."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available."""
    precision: SamplingPrecision = "auto"
    """auto is bf16 where the hardware supports it natively, else fp32; int8 is for CPUs."""
    json: Json = None
    """Also write metrics and cards as JSON; - is stdout, without the block."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Directory for a sheet of the first pictures, one row per class, and, with several settings, a plot."""
    save_npz: bool = False
    """Also write all pictures to --out, one .npz per setting, for ADM's evaluator."""

    def run(self) -> None:
        self._check()
        with together(self.device) as device:
            self._evaluate(device)

    def _check(self) -> None:
        """What can be known to be wrong before torch is imported."""
        models.release_files(self.model, self.depth)
        if self.count is not None and self.per_class_count is not None:
            raise InputError(
                f"expected --count or --per-class-count, got both ({self.count} and {self.per_class_count})"
            )
        at_least("--count", 1, 1 if self.count is None else self.count)
        at_least("--per-class-count", 1, 1 if self.per_class_count is None else self.per_class_count)
        at_most("--count, --per-class-count", MOST, max(self.count or 0, self.per_class_count or 0))
        at_least("--keep", 4, self.keep)
        at_least("--batch", 1, self.batch)
        at_least("--seed", 0, self.seed)
        at_least("--repeats", 1, self.repeats)
        check_json(self.json)
        check_broken(self.max_broken or 0.0)
        if self.rejection is not None and not 0 < self.rejection <= 1:
            raise InputError(f"--rejection: expected a share above 0, at most 1, got {self.rejection:g}")
        if self.save_npz and self.out is None:
            raise InputError("--save-npz: expected --out, the directory to put it in, got none")
        if self.prompts is not None:
            self._check_prompts()
        elif self.clip is not None:
            raise InputError(f"--clip: expected --prompts held-out beside it, got {self.clip} alone")
        for option in VARIED:
            if not getattr(self, option):
                raise InputError(f"--{option.replace('_', '-')}: expected at least one value, got none")

    def _check_prompts(self) -> None:
        """What goes with prompts."""
        unused = ("split", "per_class_count", "rejection", "per_class", "save_npz", "rerank", "rerank_by")
        for name in unused:
            if getattr(self, name):
                raise InputError(f"--{name.replace('_', '-')}: expected without --prompts, got both")
        if self.repeats > 1:
            raise InputError(f"--repeats: expected 1 with --prompts, got {self.repeats}")
        for option in (*VARIED, "reach"):
            if len(values := getattr(self, option)) > 1:
                told = " ".join(map(str, values))
                raise InputError(f"--{option.replace('_', '-')}: expected one value with --prompts, got {told}")

    # -- the work ------------------------------------------------------------------------------------------------------

    def _evaluate(self, device: str) -> None:
        from nextscale.cli import evaluate_prompts, generation_report
        from nextscale.evaluation.generation import fitted, repeated, settings
        from nextscale.machine import distributed

        drawn = (self.guidance, self.top_k, self.top_p, self.temperature)
        chosen = settings(*drawn, self.step_guidance, self.reach or (None,))
        if self.prompts is not None:
            names = [field.name for field in dataclasses.fields(evaluate_prompts.Asking)]
            asking = evaluate_prompts.Asking(**{name: getattr(self, name) for name in names})
            evaluate_prompts.ask(asking, chosen, device)
            return
        if self.save_npz and distributed.world() > 1:
            raise InputError(f"--save-npz: expected one process, got {distributed.world()}")
        pipe = models.load(self.model, self.depth, device=device, precision=self.precision)
        pipe = models.with_sampler(pipe, self.sampler)
        chosen = fitted(chosen, pipe.steps, until=self.guidance_until)
        rerank = reranking(self.rerank, self.rerank_by, self.rerank_scales)
        words = None if rerank is None else rerank.words(pipe.steps)
        chosen = [dataclasses.replace(setting, rerank=words) for setting in chosen]
        parts = self._parts(pipe, chosen[0], device, rerank)
        if self.out is not None:
            directory("--out", self.out)
        results = []
        for number, setting in enumerate(chosen, start=1):
            which = f" {number} of {len(chosen)}" if len(chosen) > 1 else ""
            keeping = setting if which else None
            sets = [self._set(parts, setting, keeping, which, number) for number in range(self.repeats)]
            judged = [result for result in sets if result is not None]
            results += [repeated(judged)] if judged else []
        if results:
            generation_report.give(results, parts.pipe.classes, self.json, self.out)

    def _parts(self, pipe: Pipeline, setting: Setting, device: str, rerank: Rerank | None) -> Parts:
        from nextscale import features
        from nextscale.evaluation.generation import card_of

        models.note_top_k(pipe, self.top_k, usual=TOP_K)
        network = features.load(self.features, device=device)
        each = self._each(len(pipe.classes))
        choosing = self._choosing(pipe, each, device)
        used, reference = self._reference(pipe, network)
        card = card_of(
            pipe,
            network,
            used,
            setting,
            each=each,
            first_seed=self.seed,
            keep=self.keep,
            name=models.called(self.model),
            rejection=choosing.rejection if choosing is not None else None,
        )
        return Parts(pipe, network, reference, choosing, rerank, card)

    def _each(self, classes: int) -> int:
        """Pictures of each class."""
        from nextscale.evaluation.judging import LEAST

        asked = -(-(UNASKED if self.count is None else self.count) // classes)
        each = self.per_class_count or asked
        at_least("pictures in all", LEAST, each * classes)
        return each

    def _choosing(self, pipe: Pipeline, each: int, device: str) -> Choosing | None:
        """The classifier of rejection sampling, and how the card tells of it."""
        if self.rejection is None:
            return None
        from nextscale import features
        from nextscale.evaluation import reference
        from nextscale.evaluation.rejection import nearest_mean, rejection_used

        network = features.load(self.classifier, device=device)
        source, size = (
            self.classifier_data or self.reference,
            (pipe.tokenizer.config.height, pipe.tokenizer.config.width),
        )
        found = reference.load(source, size=size, split="train", max_broken=self.max_broken).ordered(pipe.classes)
        with bar("classifier features") as told:
            seen = found.features(network, batch=self.batch, progress=told)
        if seen.features is None or seen.labels is None:
            raise InputError(f"--classifier-data: expected pictures with classes, got {source}")
        classifier = nearest_mean(network, seen.features, seen.labels, classes=len(pipe.classes))
        return Choosing(classifier, rejection_used(classifier, seen, rate=self.rejection, each=each))

    def _plan(self, parts: Parts, setting: Setting, first_seed: int, which: str) -> Plan:
        """The pictures to judge; of rejection sampling, all candidates are painted to find them."""
        from nextscale.evaluation.generation import balanced, paint
        from nextscale.evaluation.rejection import accepted

        pipe, choosing = parts.pipe, parts.choosing
        if choosing is None:
            return balanced(len(pipe.classes), parts.card.per_class, first_seed=first_seed)
        candidates = balanced(len(pipe.classes), choosing.rejection.candidates, first_seed=first_seed)
        with bar(f"choosing{which}") as told:
            batches = paint(pipe, candidates, setting, rerank=parts.rerank, batch=self.batch, progress=told)
            return accepted(batches, candidates, choosing.scorer, each=parts.card.per_class)

    def _reference(self, pipe: Pipeline, network: FeatureNetwork) -> tuple[ReferenceUsed, ReferenceFeatures]:
        from nextscale.evaluation import reference
        from nextscale.evaluation.generation import has_classes, reference_used
        from nextscale.machine import distributed

        size, classes = (pipe.tokenizer.config.height, pipe.tokenizer.config.width), len(pipe.classes)
        with bar("finding the reference") as told:
            found = reference.load(
                self.reference,
                size=size,
                split=self.split,
                max_broken=self.max_broken,
                broken=None if self.list_broken is None else written_to(self.list_broken),
                progress=told,
            ).ordered(pipe.classes)
        for line in found.told if distributed.is_first() else ():
            print(wrapped(f"reference: {line}"), file=sys.stderr if str(self.json) == "-" else sys.stdout)
        with bar("reference features") as told:
            seen = found.features(network, batch=self.batch, keep=self.keep, progress=told)
        if self.per_class and not has_classes(seen, classes):
            raise InputError(
                f"--per-class: expected a reference with pictures of each of {classes} classes among the {self.keep:,} "
                f"of --keep, got {self.reference}"
            )
        return reference_used(found, seen), seen

    def _set(self, parts: Parts, setting: Setting, keeping: Setting | None, which: str, number: int) -> Result | None:
        """Paint and look, all processes together; the first one judges. Sets follow each other's seeds.

        `keeping` names the files of a sweep.
        """
        from nextscale.evaluation.gathering import gather
        from nextscale.evaluation.generation import judge, paint, per_class, shown_to
        from nextscale.machine import distributed

        first_seed = self.seed + number * parts.card.painted
        if self.repeats > 1:
            which = f"{which}, set {number + 1} of {self.repeats}"
        plan = self._plan(parts, setting, first_seed, which)
        with bar(f"painting{which}") as told, self._keeping(plan, parts.pipe.classes, keeping, first_seed) as also:
            painted = paint(parts.pipe, plan, setting, rerank=parts.rerank, batch=self.batch, progress=told)
            batches = shown_to(painted, also)
            seen = gather(batches, parts.network, total=len(plan), keep=self.keep, keep_spatial=True)
        if not distributed.is_first():
            return None
        card = dataclasses.replace(parts.card, setting=setting, first_seed=first_seed)
        result = judge(seen, parts.reference, parts.network, card)
        if not self.per_class:
            return result
        return dataclasses.replace(result, per_class=per_class(seen, plan.labels, parts.reference))

    @contextmanager
    def _keeping(
        self, plan: Plan, classes: Sequence[str], setting: Setting | None, first_seed: int
    ) -> Iterator[Callable[[Painted], None]]:
        """Inside, what comes of the pictures beside figures: files in --out, named after setting and seed."""
        from nextscale.cli.generation_report import Sheet, named
        from nextscale.evaluation import samples
        from nextscale.machine import distributed

        if self.out is None or not distributed.is_first():
            yield lambda painted: None
            return
        seed = first_seed if self.repeats > 1 else None
        sheet = Sheet(self.out / named("sheet.png", setting, seed), classes)
        takers: list[Callable[[Painted], object]] = [
            lambda painted: sheet.add(painted.images, [plan.labels[index] for index in painted.indices])
        ]
        with ExitStack() as files:
            if self.save_npz:
                file = self.out / named("samples.npz", setting, seed)
                store = files.enter_context(samples.writing(file, count=len(plan), labels=plan.labels))
                takers.append(lambda painted: store(painted.images))

            def keep(painted: Painted) -> None:
                for take in takers:
                    take(painted)

            yield keep
        sheet.save()
