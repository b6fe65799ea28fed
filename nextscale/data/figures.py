"""Drawn figures whose captions are true by construction: creatures, plants in pots and faces, as many as are asked for.

A figure is a function of its number: its attributes first, drawn from the tables below by a hash, then its picture,
which dicebear (extra `[figures]`) makes of them and resvg renders, when a batch asks for it. Nothing is stored but what
was drawn in this process. All three drawing styles are in the public domain (CC0).

Of all pairs of colour and part (what grows on a creature's head, what grows in a pot, the shape of a face) a tenth is
held out: each colour and each part is trained on, those pairs are not. Half of the held-out figures are of such pairs,
half of others; no held-out figure has the attributes of one that is trained on.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nextscale import images
from nextscale.data.captions import Captioning, Captions, counted, no_table
from nextscale.data.labels import Labels, no_classes
from nextscale.data.pictures import DataSet, Split, fingerprint, in_threads
from nextscale.data.reading import MARGIN, MEMORY
from nextscale.errors import InputError

if TYPE_CHECKING:
    from dicebear import Style

PACKAGES = ("dicebear-core", "dicebear-styles", "resvg-py")
TRAIN, HELD_OUT = 9_000, 1_200
UNSEEN_PAIRS = 0.10
BEYOND = 10**6  # the number from which held-out figures are taken
SPLIT = "half of pairs of colour and part that are not trained on, half of others"
SEEN, UNSEEN = "seen", "unseen-combination"

# What a value is called in captions, and what the drawing style calls it; None is left out.
COLOURS = {
    "red": "#f87171",
    "orange": "#fb923c",
    "yellow": "#fde047",
    "green": "#4ade80",
    "blue": "#60a5fa",
    "purple": "#a78bfa",
    "pink": "#f472b6",
    "white": "#f1f5f9",
}
GROUNDS = {
    "white": "#ffffff",
    "grey": "#94a3b8",
    "black": "#1e293b",
    "brown": "#78350f",
    "dark green": "#14532d",
    "dark blue": "#1e3a8a",
}
TOPS = {
    "nothing on its head": None,
    "horns": "horns",
    "an antenna": "antenna",
    "round ears": "earsRound",
    "pointed ears": "earsPointy",
    "a crown": "crown",
    "a leaf on its head": "sprout",
    "spikes": "spikes",
}
PLANTS = {
    "a cactus": "cactus",
    "a flower": "flower",
    "a tulip": "tulip",
    "a palm": "palm",
    "a bush": "bush",
    "grass": "grass",
}
SHAPES = {"a round": "circle", "a square": "softSquare", "a hexagonal": "hexagon", "an oval": "tall"}
CREATURE_EYES = {
    "two eyes": "round",
    "one eye": "mono",
    "three eyes": "trio",
    "laughing eyes": "happy",
    "closed eyes": "closedLine",
    "angry eyes": "angry",
}
POT_EYES = {
    "open eyes": "round",
    "laughing eyes": "happy",
    "closed eyes": "closedLine",
    "a wink": "wink",
    "angry eyes": "angry",
}
FACE_EYES = {
    "open eyes": "pupils",
    "laughing eyes": "happy",
    "closed eyes": "closed",
    "a wink": "wink",
    "angry eyes": "angry",
}
MOUTHS = {"a smile": "smile", "a frown": "frown", "a wavy mouth": "wavy", "its tongue out": "tongue"}
# What captions would have to tell and can hardly be seen at 64 px; bodies that hide what grows on them, or are as high
# as the picture; and growths in the colour of the background.
PLAIN: Mapping[str, Any] = {
    "patternProbability": 0,
    "cheeksProbability": 0,
    "bodyVariant": ["dome", "block", "squat", "blob", "round", "bell", "wedge", "wedgeInv"],
    "accentColor": ["#06b6d4"],
}


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One thing that a figure has: the option of the drawing style, and the values that captions and it know."""

    name: str
    option: str
    values: Mapping[str, str | None]

    def options(self, value: str) -> dict[str, Any]:
        """What the drawing style is asked for."""
        drawn = self.values[value]
        if drawn is None:
            return {f"{self.option}Probability": 0}
        if drawn.startswith("#"):
            return {f"{self.option}Color": [drawn]}
        return {f"{self.option}Variant": drawn, f"{self.option}Probability": 100}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of figures, which one drawing style draws; some pairs of `colour` and `part` are held out."""

    name: str
    style: str
    sentence: str
    """Their captions, the attributes' names in braces."""
    attributes: tuple[Attribute, ...]

    def is_unseen(self, values: Mapping[str, str]) -> bool:
        """Whether a figure's pair is held out."""
        mark = hashlib.sha256(f"{self.name} {values['colour']} {values['part']}".encode()).digest()
        return int.from_bytes(mark[:8], "big") / 2**64 < UNSEEN_PAIRS


def _attributes(colour: str, part: tuple[str, Mapping[str, str | None]], *more: Attribute) -> tuple[Attribute, ...]:
    ground = Attribute(name="background", option="background", values=GROUNDS)
    first = Attribute(name="colour", option=colour, values=COLOURS)
    return first, Attribute(name="part", option=part[0], values=part[1]), *more, ground


def _face(eyes: Mapping[str, str | None]) -> tuple[Attribute, Attribute]:
    return Attribute(name="eyes", option="eyes", values=eyes), Attribute(name="mouth", option="mouth", values=MOUTHS)


KINDS = (
    Kind(
        name="creature",
        style="critters",
        sentence="a {colour} creature with {part}, {eyes} and {mouth} on a {background} background",
        attributes=_attributes("body", ("top", TOPS), *_face(CREATURE_EYES)),
    ),
    Kind(
        name="plant",
        style="sprouts",
        sentence="{part} in a {colour} pot with {eyes} and {mouth} on a {background} background",
        attributes=_attributes("pot", ("plant", PLANTS), *_face(POT_EYES)),
    ),
    Kind(
        name="face",
        style="moods",
        sentence="{part} {colour} face with {eyes} and {mouth} on a {background} background",
        attributes=_attributes("face", ("face", SHAPES), *_face(FACE_EYES)),
    ),
)


@dataclass(frozen=True)
class Figure:
    """One figure by its number, which decides all of it."""

    number: int

    @cached_property
    def kind(self) -> Kind:
        """One of `KINDS`."""
        return KINDS[self._digest[0] % len(KINDS)]

    @cached_property
    def values(self) -> dict[str, str]:
        """By the names of the kind's attributes, in the words of captions."""
        drawn = zip(self.kind.attributes, self._digest[1:], strict=False)
        return {each.name: list(each.values)[byte % len(each.values)] for each, byte in drawn}

    @property
    def is_unseen(self) -> bool:
        """Whether its pair of colour and part is held out."""
        return self.kind.is_unseen(self.values)

    @property
    def key(self) -> tuple[str, ...]:
        """All that is known of it."""
        return self.kind.name, *self.values.values()

    @property
    def name(self) -> str:
        """`unseen-combination/face/1000017`."""
        return f"{UNSEEN if self.is_unseen else SEEN}/{self.kind.name}/{self.number:07}"

    def captions(self) -> tuple[str, ...]:
        """A sentence of all attributes, one of colour and part alone, and a list of words."""
        whole = re.sub(r"\ba (?=[aeiou])", "an ", self.kind.sentence.format(**self.values))
        return whole, whole.partition(" with ")[0], ", ".join((self.kind.name, *self.values.values()))

    def svg(self) -> str:
        """The drawing; what no attribute tells (a creature's outline) is drawn by the number, too."""
        from dicebear import Avatar

        options: dict[str, Any] = {"seed": str(self.number), **PLAIN}
        for attribute in self.kind.attributes:
            options |= attribute.options(self.values[attribute.name])
        return str(Avatar(_style(self.kind.style), options).to_string())

    @cached_property
    def _digest(self) -> bytes:
        return hashlib.sha256(f"figure {self.number}".encode()).digest()


@cache
def _style(name: str) -> Style:
    from dicebear import Style

    return Style(json.loads(resources.files("dicebear_styles").joinpath(f"{name}.json").read_text("utf-8")))


def of_name(name: str) -> Figure:
    """The figure that a picture's name tells. Raises `InputError` for another name."""
    number = name.rpartition("/")[2]
    if not number.isdecimal() or Figure(int(number)).name != name:
        raise InputError(f"expected the name of a figure, such as {Figure(0).name}, got {name}")
    return Figure(int(number))


@cache
def numbers() -> tuple[tuple[Figure, ...], tuple[Figure, ...]]:
    """The figures to train on, and the held-out ones, in their order."""
    every = map(Figure, range(BEYOND))
    train = tuple(_taken((figure for figure in every if not figure.is_unseen), TRAIN))
    known = {figure.key for figure in train}
    candidates = (figure for figure in map(Figure, range(BEYOND, 2 * BEYOND)) if figure.key not in known)
    sides: dict[bool, list[Figure]] = {False: [], True: []}
    for figure in candidates:
        if len(sides[figure.is_unseen]) < HELD_OUT // 2:
            sides[figure.is_unseen].append(figure)
        if sum(map(len, sides.values())) == HELD_OUT:
            break
    return train, (*sides[False], *sides[True])


def others(count: int) -> tuple[Figure, ...]:
    """Figures of all pairs, none of which has the attributes of a held-out one: to learn to read figures from."""
    known = {figure.key for figure in numbers()[1]}
    every = (figure for figure in map(Figure, range(2 * BEYOND, 3 * BEYOND)) if figure.key not in known)
    return tuple(_taken(every, count))


def _taken(figures: Iterator[Figure], count: int) -> Iterator[Figure]:
    return (figure for figure, _ in zip(figures, range(count), strict=False))


# ---- as data ---------------------------------------------------------------------------------------------------------


def load(*, height: int, width: int, labels: Labels | None = None, captions: Captioning | None = None) -> DataSet:
    """The figures at any size, their kinds as classes.

    `labels` may be "none": one class. `captions` are "own" or "names", which are the same. Raises `InputError` where
    the packages that draw are missing.
    """
    versions = _versions()
    alike = no_classes(labels, of="figures")
    captioned = no_table(captions, of="figures") is not None
    classes = ("figure",) if alike else tuple(kind.name for kind in KINDS)
    known = [height, width, MARGIN, *versions, *classes, _tables()]
    train, validation = (
        Split(
            classes=classes,
            labels=torch.tensor([0 if alike else KINDS.index(figure.kind) for figure in figures]),
            names=tuple(figure.name for figure in figures),
            fingerprint=fingerprint(["figures", name, *known]),
            fetch=Drawing(figures=figures, side=math.ceil(MARGIN * max(height, width))),
            height=height,
            width=width,
            captions=Captions(figure.captions() for figure in figures) if captioned else None,
        )
        for name, figures in zip(("train", "validation"), numbers(), strict=True)
    )
    return DataSet(
        train=train,
        validation=validation,
        classes=classes,
        unreadable=[],
        held_out=SPLIT,
        notes=counted(train.captions, validation.captions),
    )


def _versions() -> list[str]:
    try:
        return [f"{name} {version(name)}" for name in PACKAGES]
    except PackageNotFoundError as error:
        raise InputError(
            f"expected what draws figures, found no package {error.name}; pip install 'nextscale[figures]' brings it"
        ) from None


@cache
def _tables() -> str:
    """Changes with what figures there are, and with how they are asked for."""
    return fingerprint([KINDS, PLAIN, TRAIN, HELD_OUT, UNSEEN_PAIRS])


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """Draws figures when a batch asks, and keeps as many as fit into 2 GiB; a `nextscale.data.pictures.Fetch`."""

    figures: Sequence[Figure]
    side: int
    kept: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, wanted: list[int]) -> tuple[list[int], list[Tensor]]:
        """The pictures, (3, side, side) uint8 each."""
        missing = [index for index in dict.fromkeys(wanted) if index not in self.kept]
        drawn = dict(zip(missing, in_threads(self._draw, missing), strict=True))
        room = MEMORY // (3 * self.side**2) - len(self.kept)
        self.kept.update(list(drawn.items())[: max(0, room)])
        return wanted, [drawn[index] if index in drawn else self.kept[index] for index in wanted]

    def _draw(self, index: int) -> Tensor:
        return draw(self.figures[index], side=self.side)


def draw(figure: Figure, *, side: int) -> Tensor:
    """A figure's picture, (3, side, side) uint8."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=figure.svg(), width=side, height=side, skip_system_fonts=True)
    return images.uint8_from_pil(images.open_rgb(io.BytesIO(png)))
