"""`nextscale evaluate generation`: how good a model's pictures are, in figures that say how they were made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nextscale.cli import models
from nextscale.cli.data import read_data
from nextscale.cli.options import Depth, Json, Model, Precision
from nextscale.cli.output import at_least, check_json, progress, say, write_json
from nextscale.cli.training import together
from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.data import Progress
    from nextscale.evaluation.card import Card, ReferenceUsed, Setting
    from nextscale.evaluation.generation import Plan, Result, Seen
    from nextscale.features import FeatureNetwork
    from nextscale.pipeline import Pipeline

UNASKED = 2000  # pictures when no number is given: a minute or two for a small model on a CPU


@dataclass(frozen=True, kw_only=True)
class EvaluateGeneration:
    """How near a model's pictures come to real ones, and the card that says how the figures were made.

    FD: Fréchet distance, named after the network whose features it compares
    """

    model: Model = ()
    """Directory such as `nextscale demo` leaves, hub name, or the public release's tokenizer and transformer files."""
    depth: Depth = None
    """Which of the release's transformers, when --model is a folder or hub name that holds them: 16, 20, 24 ..."""
    reference: str = "emoji"
    """emoji (embedded), or a folder of pictures (DIR/class/picture or flat), or of WebDataset shards."""
    split: Literal["train", "validation"] = "train"
    """Pictures of the reference: those to train on, as published distances do, or those held out."""
    per_class_count: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Pictures of each class."""
    count: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Pictures in all, rounded up to as many of each class (default: 2000)."""
    seed: int = 0
    """Seed of the first picture; the next have the next seeds. A seed alone decides its picture."""
    guidance: float = 1.5
    """Strength of classifier-free guidance at the last scale; 0 is none."""
    top_k: int = 900
    """Choose among the k likeliest codes; 0 is all."""
    top_p: float = 0.96
    """Choose among the likeliest codes that hold this much probability; 0 is all."""
    temperature: float = 1.0
    """Above 1 more varied, below 1 more typical."""
    features: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")] = "efficientnet-lite0"
    """Network through whose features the pictures are seen."""
    batch: int = 32
    """Pictures at a time; changes the time, not the figures (in bf16, at most near ties)."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA where there is some."""
    precision: Precision = "auto"
    """auto is bf16 where the hardware is fast at it, else fp32."""
    json: Json = None
    """Also write figures and card as JSON; - is stdout, without the block."""

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
        at_least("--batch", 1, self.batch)
        at_least("--seed", 0, self.seed)
        check_json(self.json)

    def _evaluate(self, device: str) -> None:
        from nextscale import distributed, features
        from nextscale.evaluation.generation import balanced

        pipe = models.load(self.model, self.depth, device=device, precision=self.precision)
        network = features.load(self.features, device=device)
        plan = balanced(len(pipe.classes), self._each(len(pipe.classes)), first_seed=self.seed)
        results = self._judge(pipe, network, plan)
        if not distributed.is_first():
            return
        if str(self.json) != "-":
            for result in results:
                _tell(result)
        if self.json is not None:
            write_json(self.json, {"results": [result.to_json() for result in results]})

    def _each(self, classes: int) -> int:
        """Pictures of each class."""
        if self.per_class_count is not None:
            return self.per_class_count
        return -(-(UNASKED if self.count is None else self.count) // classes)

    def _judge(self, pipe: Pipeline, network: FeatureNetwork, plan: Plan) -> list[Result]:
        from nextscale.evaluation.card import Setting
        from nextscale.evaluation.generation import judge, look, paint

        setting = Setting(self.guidance, self.top_k, self.top_p, self.temperature)
        used, reference = self._reference(pipe, network)
        with _bar("painting") as told:
            painted = paint(pipe, plan, setting, batch=self.batch, progress=told)
            seen = look(painted, network, total=len(plan))
        return [judge(seen, reference, self._card(pipe, network, plan, setting, used))]

    def _reference(self, pipe: Pipeline, network: FeatureNetwork) -> tuple[ReferenceUsed, Seen]:
        from nextscale.evaluation.card import ReferenceUsed
        from nextscale.evaluation.generation import look, shown

        height, width = pipe.tokenizer.config.height, pipe.tokenizer.config.width
        found = read_data(self.reference, height=height, width=width)
        pictures = found.train if self.split == "train" else found.validation
        counts = pictures.labels.bincount()
        used = ReferenceUsed(
            name=f"{self.reference}, {self.split}",
            fingerprint=pictures.fingerprint,
            pictures=len(pictures),
            height=height,
            width=width,
            fewest=int(counts.min()),
            most=int(counts.max()),
        )
        with _bar("reference") as told:
            seen = look(shown(pictures, batch=self.batch, progress=told), network, total=len(pictures))
        return used, seen

    def _card(
        self, pipe: Pipeline, network: FeatureNetwork, plan: Plan, setting: Setting, reference: ReferenceUsed
    ) -> Card:
        from nextscale.evaluation import generation
        from nextscale.evaluation.card import Card

        return Card(
            model=generation.model_used(pipe, " ".join(self.model) or "embedded"),
            setting=setting,
            per_class=len(plan) // len(pipe.classes),
            first_seed=self.seed,
            reference=reference,
            network=generation.network_used(network),
            versions=generation.versions(),
        )


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    """A bar with the time that is left, to be told (done, total)."""
    with progress() as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# ---- for people ------------------------------------------------------------------------------------------------------


def _tell(result: Result) -> None:
    """The figures, the card, and what to keep in mind."""
    from nextscale.evaluation.card import warnings

    for figure in result.figures.values():
        print(f"  {figure.name:<26}{figure.value:10.4f}")
    print()
    for line in result.card.lines():
        say(line)
    for warning in warnings(result.card):
        say(f"warning: {warning}")
