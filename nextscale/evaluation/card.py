"""The protocol card: everything needed to believe a figure, or to get it again, and the known mistakes it can see.

A card is plain values; it goes to JSON and back, and reads as a block of at most 80 columns. What every card says is
`Protocol`; `Card` adds what was painted, `ReconstructionCard` which tokenizer pictures went through. Nothing here
computes a figure. Needs no torch.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from nextscale.errors import InputError

ENOUGH = 50_000  # pictures, the number that published Fréchet distances are made from
ENOUGH_PROMPTS = 200
INCEPTION = "Inception-2015"  # the one network whose figures are called FID, sFID, KID and IS
UNEVEN = 1.5  # times as many pictures of one class as of another

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """How tokens are drawn; the values of `Pipeline.generate`, one for all scales or a tuple of one a scale."""

    guidance: float | tuple[float, ...] = 1.5
    """At the last scale, growing linearly from 0 at the first; or at each scale."""
    top_k: int | tuple[int, ...] = 900
    """0: all codes."""
    top_p: float | tuple[float, ...] = 0.96
    """0 or 1: all codes."""
    temperature: float | tuple[float, ...] = 1.0
    step_guidance: float | tuple[float, ...] = 0.0
    """Of guidance by the scale before."""
    reach: int | None = None
    """How many scales a token attends to; None: all."""
    rerank: str | None = None
    """How many maps were drawn at which scales, and by which function one was chosen; None: none was."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, tuple(value) if isinstance(value, list | tuple) else value)  # JSON has lists

    @property
    def values(self) -> dict[str, Any]:
        """What `sampling.settings.Settings` takes."""
        return {name: value for name, value in vars(self).items() if name != "rerank"}

    def __str__(self) -> str:
        k, p = (
            f"top-k {shown(self.top_k)}" if self.top_k else "no top-k",
            "no top-p" if self.top_p in (0, 1) else f"top-p {shown(self.top_p)}",
        )
        others = f", step guidance {shown(self.step_guidance)}" if self.step_guidance else ""
        others += f", reach {self.reach}" if self.reach is not None else ""
        others += f", {self.rerank}" if self.rerank is not None else ""
        return f"guidance {shown(self.guidance)}, {k}, {p}, temperature {shown(self.temperature)}{others}"


def shown(value: float | tuple[float, ...]) -> str:
    """A setting as it is typed: `1.5`, or `0,1,1.5` of three scales."""
    if isinstance(value, tuple):
        return ",".join(map(shown, value))
    return str(value) if isinstance(value, int) else f"{value:g}"


@dataclass(frozen=True, kw_only=True)
class Model:
    """Whose pictures they are."""

    name: str
    """As it was named."""
    fingerprint: str
    """Of both architectures and all weights, as they are held at `precision`."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    classes: int
    codes: int
    """V, of the codebook."""
    precision: str
    """fp32, bf16, fp16 or int8."""
    device: str
    sampler: str | None = None
    """Settings of the sampler, such as "steps 12", where it has some: those of rivals have."""


@dataclass(frozen=True, kw_only=True)
class ReferenceUsed:
    """What they are compared with."""

    name: str
    """As it was named."""
    fingerprint: str
    """Of its pictures, or of its statistics."""
    pictures: int | None
    """None where statistics were stored and do not tell."""
    height: int | None
    """Pixels; None where stored statistics do not tell."""
    width: int | None
    fewest: int | None
    """Pictures of its rarest class; None where labels are not known."""
    most: int | None
    """Pictures of its most frequent class."""


@dataclass(frozen=True, kw_only=True)
class NetworkUsed:
    """Through whose eyes."""

    name: str
    fingerprint: str
    """Of its weights."""
    side: int
    """Pixels a side that pictures are resized to."""
    resize: str
    """How."""
    dimensions: int
    """D, its features."""


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Which of the pictures that were painted were judged."""

    rate: float
    """The share of them."""
    candidates: int
    """Pictures of each class they were chosen from."""
    classifier: str
    """Which chose them: those it was surest of."""
    network: str
    """Name of the network it looks through."""
    fingerprint: str
    """Of that network's weights and of the pictures it learned from."""
    accuracy: float
    """Share of those pictures that it puts into their class."""


@dataclass(frozen=True, kw_only=True)
class TokenizerUsed:
    """What pictures went through."""

    name: str
    """As it was named."""
    fingerprint: str
    """Of architecture and weights."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    tokens: int
    """L, of one picture."""
    codes: int
    """V, of the codebook."""
    precision: str
    """fp32, bf16, fp16 or int8."""
    device: str


@dataclass(frozen=True, kw_only=True)
class PerceptualUsed:
    """What the perceptual distance was measured with."""

    name: str
    """Of the network."""
    fingerprint: str
    """Of its weights, the heads and the side."""
    learned: bool
    """Whether channels weigh what LPIPS's heads say; else all weigh the same."""
    side: int | None
    """Pixels that the short side of smaller pictures is enlarged to; None: it is not."""


@dataclass(frozen=True, kw_only=True)
class ClipUsed:
    """Which CLIP scored pictures beside prompts."""

    name: str
    """As it was named."""
    fingerprint: str
    """Of its weights."""
    side: int
    """Pixels a side of what it sees."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What every card says."""

    kept: int
    """Pictures, of either set, from which all figures but Fréchet distances are made, at most."""
    reference: ReferenceUsed
    network: NetworkUsed
    versions: dict[str, str]
    """Of the libraries."""

    @property
    def pictures(self) -> int:
        """How many were judged."""
        raise NotImplementedError

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pictures that were judged."""
        raise NotImplementedError

    @property
    def sets(self) -> dict[str, int | None]:
        """How many pictures each Fréchet distance has on either side, by whose they are."""
        raise NotImplementedError

    @property
    def rejected(self) -> bool:
        """Whether figures are of chosen pictures alone."""
        return False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, and `pictures` beside them."""
        return dataclasses.asdict(self) | {"pictures": self.pictures}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The reverse of `to_json`. Raises `InputError` naming what is missing."""
        return _read(cls, values)

    def lines(self) -> list[str]:
        """For people; each line is a name and what is to be known, not yet broken where a terminal ends."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return [*self._own_lines(), _features_line(self.network), *self._kept_lines(), f"versions   {versions}"]

    def warnings(self) -> list[str]:
        """What to keep in mind when the figures are compared with others, in plain words; none of it is an error."""
        return list(self._mistakes())

    def _own_lines(self) -> Iterator[str]:
        raise NotImplementedError

    def _kept_lines(self) -> Iterator[str]:
        yield f"kept       {min(self.kept, self.pictures):,} features a set, for all but Fréchet distances"

    def _mistakes(self) -> Iterator[str]:
        for check in (_few, _singular, _squeezed):
            yield from check(self)


@dataclass(frozen=True, kw_only=True)
class Card(Protocol):
    """What was painted, how, and what it was compared with."""

    model: Model
    setting: Setting
    per_class: int
    """Pictures of each class."""
    first_seed: int
    """Picture i has this seed + i, and shows class i modulo their number."""
    repeats: int = 1
    """Sets of as many pictures, each with the seeds after those of the last; figures are their means."""
    rejection: Rejection | None
    """None: all pictures that were painted were judged."""

    @property
    def pictures(self) -> int:
        """How many were painted and judged, of each set."""
        return self.per_class * self.model.classes

    @property
    def painted(self) -> int:
        """How many were painted to have them."""
        return self.pictures if self.rejection is None else self.rejection.candidates * self.model.classes

    @property
    def size(self) -> tuple[int, int]:
        return self.model.height, self.model.width

    @property
    def sets(self) -> dict[str, int | None]:
        return {"the model's": self.pictures, "the reference's": self.reference.pictures}

    @property
    def rejected(self) -> bool:
        return self.rejection is not None

    def _own_lines(self) -> Iterator[str]:
        return _generation_lines(self)

    def _mistakes(self) -> Iterator[str]:
        yield from super()._mistakes()
        for check in (_uneven, _other_size, _unguided, _partial):
            yield from check(self)


@dataclass(frozen=True, kw_only=True)
class AlignmentCard(Protocol):
    """Which prompts were painted, and among which pictures their subjects were looked for."""

    model: Model
    setting: Setting
    first_seed: int
    """Prompt i has this seed + i."""
    prompts: dict[str, int]
    """How many of each kind."""
    among: int
    """Subjects, of which one is right."""
    draws: int
    """Of the others, a prompt."""
    clip: ClipUsed | None = None
    """None where no CLIP was named."""

    @property
    def pictures(self) -> int:
        return sum(self.prompts.values())

    @property
    def size(self) -> tuple[int, int]:
        return self.model.height, self.model.width

    @property
    def sets(self) -> dict[str, int | None]:
        return {}

    def _own_lines(self) -> Iterator[str]:
        return _alignment_lines(self)

    def _kept_lines(self) -> Iterator[str]:
        return iter(())  # all of them

    def _mistakes(self) -> Iterator[str]:
        for check in (_few_prompts, _squeezed):
            yield from check(self)


@dataclass(frozen=True, kw_only=True)
class ReconstructionCard(Protocol):
    """Which tokenizer pictures went through; the reference is these pictures themselves."""

    tokenizer: TokenizerUsed
    split: str
    """"validation" or "train"."""
    left_out: int
    """Pictures of the data that cannot be read."""
    perceptual: PerceptualUsed

    @property
    def pictures(self) -> int:
        assert self.reference.pictures is not None
        return self.reference.pictures

    @property
    def size(self) -> tuple[int, int]:
        return self.tokenizer.height, self.tokenizer.width

    @property
    def sets(self) -> dict[str, int | None]:
        return {"": self.pictures}

    def _own_lines(self) -> Iterator[str]:
        return _reconstruction_lines(self)

    def _mistakes(self) -> Iterator[str]:
        yield from super()._mistakes()
        for check in (_trained_on, _left_out):
            yield from check(self)


LATER: dict[type, set[str]] = {  # what cards of earlier versions are without
    Setting: {"step_guidance", "reach", "rerank"},
    Model: {"sampler"},
}


def _read(kind: type[T], values: Any) -> T:
    """A dataclass of dataclasses from JSON's dictionaries."""
    hints = typing.get_type_hints(kind)
    missing = sorted(hints.keys() - LATER.get(kind, set()) - (values.keys() if isinstance(values, dict) else set()))
    if missing:
        raise InputError(f"card: expected {', '.join(missing)} in {kind.__name__}, got none")
    return kind(**{name: _value(hint, values[name]) for name, hint in hints.items() if name in values})


def _value(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return None if value is None else _value(typing.get_args(hint)[0], value)
    return _read(hint, value) if dataclasses.is_dataclass(hint) and isinstance(hint, type) else value


# ---- names -----------------------------------------------------------------------------------------------------------


def figure_name(figure: str, network: str, *, rejected: bool = False) -> str:
    """What a figure is called wherever it stands: "FD-EffNetLite0"; FID, sFID, KID and IS are Inception's alone."""
    inception = {"FD": "FID", "sFD": "sFID", "KD": "KID", "score": "IS"}
    name = inception.get(figure, figure) if network == INCEPTION else f"{figure}-{network}"
    return f"{name}-re" if rejected else name


# ---- for people ------------------------------------------------------------------------------------------------------


def size(height: int | None, width: int | None) -> str:
    """64x64."""
    return "an unknown size" if height is None or width is None else f"{height}x{width}"


def _generation_lines(card: Card) -> Iterator[str]:
    model, reference = card.model, card.reference
    last = card.first_seed + card.repeats * card.painted - 1
    each = f"{card.per_class:,} of each of {model.classes:,} classes"
    sets = f", in each of {card.repeats} sets" if card.repeats > 1 else ""
    sampler = f", {model.sampler}" if model.sampler else ""
    yield f"pictures   {card.pictures:,}, {each}{sets}, rounded to 8 bits, not compressed"
    yield f"sampling   {card.setting}, seeds {card.first_seed} .. {last}"
    if card.rejection is not None:
        yield (
            f"rejection  {card.rejection.rate:g}: the surest of {card.rejection.candidates:,} of each class, by "
            f"{card.rejection.classifier} ({card.rejection.fingerprint}), right in {card.rejection.accuracy:.1%}"
        )
    yield (
        f"model      {model.name} ({model.fingerprint}), {size(model.height, model.width)}, "
        f"{model.precision} on {model.device}{sampler}"
    )
    count = "statistics" if reference.pictures is None else f"{reference.pictures:,} pictures"
    yield f"reference  {reference.name} ({reference.fingerprint}), {count} of {size(reference.height, reference.width)}"
    if card.repeats > 1:
        yield f"figures    means over {card.repeats} sets of seeds, ± standard deviation over sets"
    else:
        yield "intervals  95 %, bootstrapped over pictures; the reference is taken as given"


def _alignment_lines(card: AlignmentCard) -> Iterator[str]:
    model, reference = card.model, card.reference
    counts = ", ".join(f"{count:,} {kind}" for kind, count in card.prompts.items())
    yield f"prompts    {card.pictures:,} captions ({counts}), a picture each, rounded to 8 bits"
    yield f"sampling   {card.setting}, seeds {card.first_seed} .. {card.first_seed + card.pictures - 1}"
    yield (
        f"model      {model.name} ({model.fingerprint}), {size(model.height, model.width)}, "
        f"{model.precision} on {model.device}"
    )
    yield (
        f"reference  {reference.name} ({reference.fingerprint}), {reference.pictures:,} pictures of "
        f"{size(reference.height, reference.width)}"
    )
    yield (
        f"retrieval  the right subject among {card.among}, by one real picture each, of other classes than the "
        f"prompt's; mean of {card.draws} draws"
    )
    if card.clip is not None:
        yield (
            f"CLIP       {card.clip.name} ({card.clip.fingerprint}), {size(card.clip.side, card.clip.side)}: 100 "
            "max(cos, 0), nothing before the prompt (CLIPScore of 2021: 2.5 max(cos, 0))"
        )
    yield "intervals  95 %, bootstrapped over prompts; the reference is taken as given"


def _reconstruction_lines(card: ReconstructionCard) -> Iterator[str]:
    tokenizer, reference, perceptual = card.tokenizer, card.reference, card.perceptual
    yield (
        f"pictures   {card.pictures:,} of {size(*card.size)}, {reference.name} ({reference.fingerprint}), each beside "
        "its reconstruction, rounded to 8 bits, not compressed"
    )
    yield (
        f"tokenizer  {tokenizer.name} ({tokenizer.fingerprint}), {tokenizer.tokens:,} tokens of {tokenizer.codes:,} "
        f"codes, {tokenizer.precision} on {tokenizer.device}"
    )
    side = "as they are" if perceptual.side is None else f"at {perceptual.side} pixels at least"
    yield (
        f"perceptual {perceptual.name} ({perceptual.fingerprint}), pictures {side}, "
        f"{'learned heads' if perceptual.learned else 'all channels alike'}"
    )
    yield "intervals  95 %, bootstrapped over pictures, each together with its reconstruction"


def _features_line(network: NetworkUsed) -> str:
    return (
        f"features   {network.name} ({network.fingerprint}), {network.dimensions:,} of {network.side}x{network.side} "
        f"pixels, {network.resize}"
    )


# ---- known mistakes --------------------------------------------------------------------------------------------------


def _few(card: Protocol) -> Iterator[str]:
    name = figure_name("FD", card.network.name)
    if card.pictures < ENOUGH:
        yield (
            f"{name} is made from {card.pictures:,} pictures, fewer than {ENOUGH:,}: it falls as pictures are added, "
            "and compares only with figures from as many"
        )


def _few_prompts(card: AlignmentCard) -> Iterator[str]:
    if few := [f"{count:,} {kind}" for kind, count in card.prompts.items() if count < ENOUGH_PROMPTS]:
        yield f"{' and '.join(few)}: fewer than {ENOUGH_PROMPTS} prompts: metrics vary by several hundredths"


def _singular(card: Protocol) -> Iterator[str]:
    dimensions = card.network.dimensions
    small = [
        f"{whose} {count:,}".strip() for whose, count in card.sets.items() if count is not None and count <= dimensions
    ]
    if small:
        yield (
            f"{' and '.join(small)} pictures do not fill the {card.network.dimensions:,} dimensions of the features: "
            f"a covariance is singular, and {figure_name('FD', card.network.name)} a rough figure"
        )


def _uneven(card: Card) -> Iterator[str]:
    fewest, most = card.reference.fewest, card.reference.most
    if fewest is not None and most is not None and most > UNEVEN * fewest:
        yield (
            f"the reference holds {fewest:,} to {most:,} pictures of a class and the model painted as many of each: "
            "part of every distance is that difference"
        )


def _other_size(card: Card) -> Iterator[str]:
    model, reference = card.model, card.reference
    known = reference.height is not None and reference.width is not None
    if known and (reference.height, reference.width) != (model.height, model.width):
        yield (
            f"the reference's pictures are {size(reference.height, reference.width)}, the model's "
            f"{size(model.height, model.width)}: the features also see the difference in sharpness"
        )


def _unguided(card: Card) -> Iterator[str]:
    setting = card.setting
    cut = any(top_k in range(1, card.model.codes) for top_k in _each(setting.top_k))
    if not any(_each(setting.guidance)) and not cut and {0, 1}.issuperset(_each(setting.top_p)):
        yield (
            "guidance is 0 and truncation is off: the bare distribution; published figures are made with "
            "--guidance 1.5 --top-k 900 --top-p 0.96"
        )


def _each(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _squeezed(card: Protocol) -> Iterator[str]:
    height, width = card.size
    if height != width:
        yield (
            f"pictures of {size(height, width)} are squeezed to "
            f"{size(card.network.side, card.network.side)} before the network sees them"
        )


def _partial(card: Card) -> Iterator[str]:
    if card.rejection is not None and card.rejection.network == card.network.name:
        yield (
            f"the classifier that chose the pictures looks through {card.network.name}, and so does the judge: "
            "the figures flatter them"
        )


def _trained_on(card: ReconstructionCard) -> Iterator[str]:
    if card.split == "train":
        yield "these pictures are there to train on: a tokenizer may know them; --split validation judges it"


def _left_out(card: ReconstructionCard) -> Iterator[str]:
    if card.left_out:
        yield f"{card.left_out:,} pictures of the data cannot be read and are left out"
