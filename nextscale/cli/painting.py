"""What `sample` and `edit` share: which model paints what, how it chooses, and the command that does it again."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextscale.cli import models
from nextscale.cli.options import (
    Depth,
    Each,
    Encoder,
    Guided,
    Indices,
    Labels,
    Model,
    NumberPerScale,
    Prompts,
    Reach,
    SamplingPrecision,
    Text,
    Until,
    WholePerScale,
)
from nextscale.cli.output import at_least, at_most
from nextscale.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from nextscale.pipeline import Pipeline, Request, Rerank, Step
    from nextscale.sampling.guidance import Guidance

MOST = 100_000  # pictures of a class: all of them are kept for the sheet
TOP_K = 900  # as in published results


@dataclass(frozen=True, kw_only=True)
class Painting:
    """The options of a command that paints pictures."""

    model: Model = ()
    """Directory such as `nextscale demo` leaves, hub name, or the public release's tokenizer and transformer files
    (default: the model that comes with nextscale)."""
    depth: Depth = None
    """Depth of the release's transformer, if --model is a folder or hub name with several: 16, 20, 24 ..."""
    label: Labels = ()
    """Classes to paint, by name, or by number where no class has that name."""
    label_index: Indices = ()
    """Classes to paint, by number, whatever their names are."""
    prompt: Prompts = ()
    """Prompts, for models that read text; with --label, each class with each prompt."""
    negative_prompt: Text = None
    """Prompt that guidance moves away from, instead of no text."""
    text_encoder: Encoder = None
    """Path of the frozen text encoder that the model was trained with, if it has moved."""
    count: int = 1
    """Pictures of each class or prompt."""
    seed: int = 0
    """Seed of the first picture; the next ones count up. A seed alone determines its picture."""
    guidance: Guided = None
    """Strength of classifier-free guidance at the last scale, growing linearly from 0 (0: none); or one per scale."""
    guidance_until: Until = None
    """No guidance from this scale on, counted from 0; half of the work there."""
    top_k: WholePerScale = TOP_K
    """Sample from the k likeliest codes; 0 is all."""
    top_p: NumberPerScale = 0.96
    """Sample from the likeliest codes that together have this probability; 0 is all."""
    temperature: NumberPerScale = 1.0
    """Divides the logits: above 1 more varied, below 1 more typical."""
    step_guidance: NumberPerScale = 0.0
    """Strength of guidance away from the enlarged logits of the scale before, one value or one per scale."""
    reach: Reach = None
    """Number of scales a token attends to, its own included."""
    smooth: bool = False
    """Mix codes (Gumbel-softmax) instead of sampling one: smoother pictures, not for evaluation."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available."""
    precision: SamplingPrecision = "auto"
    """auto is bf16 where the hardware supports it natively, else fp32; int8 is for CPUs."""

    no_metadata: bool = False
    """Do not store settings in PNGs (model, class, seed and so on; `nextscale sample --like` reads them)."""

    def check(self) -> None:
        """What can be known to be wrong before torch is imported."""
        at_least("--count", 1, self.count)
        at_most("--count", MOST, self.count)
        at_least("--seed", 0, self.seed)

    def pipeline(self) -> Pipeline:
        """The model."""
        return models.load(
            self.model, self.depth, device=self.device, precision=self.precision, text_encoder=self.text_encoder
        )

    def asked(self, pipe: Pipeline) -> list[int]:
        """The numbers of the classes that were named."""
        return [*(models.class_called(pipe, word) for word in self.label), *map(pipe.label, self.label_index)]

    def settings(self) -> dict[str, Any]:
        """How tokens are chosen, as the methods of `Pipeline` take it."""
        from nextscale.sampling.guidance import usual_guidance

        names = ("top_k", "top_p", "temperature", "smooth", "step_guidance", "reach", "negative_prompt")
        own = usual_guidance(prompted=self.prompted) if self.guidance is None else self.guidance
        guidance = schedule(own, self.guidance_until)
        return {"guidance": guidance, **{name: getattr(self, name) for name in names}}

    @property
    def prompted(self) -> bool:
        """Whether words say what is to be seen."""
        return bool(self.prompt)

    def notes(self, request: Request) -> Mapping[str, str] | None:
        """What its PNG carries along."""
        return None if self.no_metadata else request.notes


def schedule(guidance: float | tuple[float, ...] | Guidance, until: int | None) -> Any:
    """What --guidance and --guidance-until ask for, as `Pipeline.generate` takes it."""
    from nextscale.sampling.guidance import guidance_until

    return guidance if until is None else guidance_until(guidance, until)


def reranking(count: int | None, by: str | None, scales: Sequence[int]) -> Rerank | None:
    """What --rerank, --rerank-by and --rerank-scales ask for; None where they are not given.

    Raises `InputError` for a function that cannot be imported, and for one of the options without the others.
    """
    if count is None and by is None and not scales:
        return None
    if count is None or by is None:
        raise InputError("--rerank: expected N maps and --rerank-by MODULE:FUNCTION, got one without the other")
    from nextscale.pipeline import Rerank

    return Rerank(scoring(by), count, scales or None)


def scoring(by: str) -> Callable[[Step], Tensor]:
    """The function that is called so, which may be anybody's: what it raises is told in one line."""
    from nextscale.features import custom

    function = custom.called("--rerank-by", by)
    if not callable(function):
        raise InputError(f"--rerank-by: expected a function of a Step, got {by}, which is {type(function).__name__}")

    @functools.wraps(function)
    def score(step: Step) -> Tensor:
        try:
            return function(step)
        except InputError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise InputError(f"--rerank-by {by}: expected a function of a Step, got one that fails: {what}") from error

    return score


def is_file(path: Path) -> bool:
    """Whether a picture is meant rather than a directory, by its suffix."""
    from nextscale.images import SUFFIXES

    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def again(name: str, command: Painting, *files: Path) -> str:
    """The line that tells how to do the same once more, to `files`."""
    return f"again: {shlex.join(['nextscale', name, *map(str, files), *_options(command)])}"


def changed(command: Painting) -> list[str]:
    """The options that differ from their defaults, in order; not the positional `pictures`."""
    fields = [field for field in dataclasses.fields(command) if field.name != "pictures"]
    return [field.name for field in fields if getattr(command, field.name) != field.default]


def _options(command: Painting) -> list[str]:
    """Those as they are typed."""
    words = []
    for name in changed(command):
        value = getattr(command, name)
        words.append(f"--{name.replace('_', '-')}")
        several = isinstance(value, tuple) and not isinstance(value, Each)
        words += [] if value is True else [str(item) for item in (value if several else (value,))]
    return words
