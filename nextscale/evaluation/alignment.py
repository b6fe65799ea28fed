"""Whether a model's pictures show what its prompts say: which prompts, what is painted, and how often it is recognised.

A prompt is a real picture's caption, its subject whatever other captions of the same words are about. Three kinds of
prompts tell how far a model generalises: those it was trained on, subjects that it knows from other classes (an icon's
class is its drawing style), and subjects that it has never seen. `retrieval` says what is measured; here it is asked of
pictures that were painted, of the real ones in their place, and of those of other prompts.

Shapes: Q prompts, N real pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nextscale.data import DataSet, Pictures, Progress
from nextscale.errors import InputError
from nextscale.evaluation.card import AlignmentCard
from nextscale.evaluation.gathering import gather, shares
from nextscale.evaluation.generation import Plan
from nextscale.evaluation.intervals import interval
from nextscale.evaluation.judging import Figure
from nextscale.evaluation.retrieval import AMONG, NEAREST, Looks, answerable, hits, mistaken, numbered, ranks
from nextscale.features import FeatureNetwork

SEEN, NEW_COMBINATION, NEW_SUBJECT = KINDS = ("seen", "unseen combination", "unseen subject")
WHOSE = ("the model", "real pictures", "other prompts")  # of the last two, the upper and the lower mark


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, and the real picture that it is the caption of."""

    kind: str
    """One of `KINDS`."""
    train: bool
    """Whether the picture is one to train on."""
    index: int
    """Of the picture in its split."""
    subject: str
    """The picture's first caption: pictures that have it in common show the same."""
    label: int
    """Class of the picture, as a number of the data set."""
    styled: str
    """The first of its captions that names its class; the first of all, if none does."""


@dataclass(frozen=True)
class Real:
    """All pictures of a data set that have captions."""

    data: DataSet
    subjects: tuple[tuple[str, ...], tuple[str, ...]]
    """Of each training picture, and of each held-out one; "" of one without captions."""

    @classmethod
    def of(cls, data: DataSet) -> Real:
        """Raises `InputError` for data without captions."""
        if data.train.captions is None or data.validation.captions is None:
            raise InputError("prompts: expected pictures with captions, got none")
        both = (data.train.captions, data.validation.captions)
        train, validation = (tuple(next(iter(own), "") for own in captions) for captions in both)
        return cls(data, (train, validation))

    @property
    def splits(self) -> tuple[Pictures, Pictures]:
        """To train on, and held out."""
        return self.data.train, self.data.validation

    def kinds(self) -> Iterator[Question]:
        """A question for each picture with captions, the training pictures first."""
        known = set(self.subjects[0])
        for held_out, (pictures, subjects) in enumerate(zip(self.splits, self.subjects, strict=True)):
            assert pictures.captions is not None
            for index, (subject, label) in enumerate(zip(subjects, pictures.labels.tolist(), strict=True)):
                if subject:
                    kind = SEEN if not held_out else NEW_COMBINATION if subject in known else NEW_SUBJECT
                    name = self.data.classes[label]
                    styled = next((text for text in pictures.captions[index] if name in text), subject)
                    yield Question(
                        kind=kind,
                        train=not held_out,
                        index=index,
                        subject=subject,
                        label=label,
                        styled=styled,
                    )


def questions(real: Real, *, each: int, seed: int) -> list[Question]:
    """At most `each` of every kind, drawn at random by `seed`, of those that other classes' pictures can answer.

    Raises `InputError` where there are none.
    """
    every = list(real.kinds())
    numbers = torch.tensor([question.label for question in every], dtype=torch.int64)
    (subjects,) = numbered([question.subject for question in every])
    looks = Looks(features=torch.zeros(len(every), 1), subjects=subjects, classes=numbers)
    can = answerable(looks, looks).tolist() if every else []
    generator = torch.Generator().manual_seed(seed)
    chosen: list[Question] = []
    for kind in KINDS:
        fitting = [question for question, yes in zip(every, can, strict=True) if yes and question.kind == kind]
        order = torch.randperm(len(fitting), generator=generator)[:each]
        chosen += [fitting[place] for place in order]
    if not chosen:
        raise InputError("prompts: expected pictures of one subject (first caption) in two classes or more, got none")
    return chosen


def plan(asked: Sequence[Question], real: Real, classes: Sequence[str], *, first_seed: int) -> Plan:
    """What a model of these classes is to paint: a class by its name where it knows it, else in the words."""
    known = {name: number for number, name in enumerate(classes)}
    labels = [known.get(real.data.classes[question.label], len(classes)) for question in asked]
    pairs = zip(asked, labels, strict=True)
    prompts = [question.styled if label == len(classes) else question.subject for question, label in pairs]
    return Plan(tuple(labels), tuple(range(first_seed, first_seed + len(asked))), tuple(prompts))


# ---- looking at real pictures ----------------------------------------------------------------------------------------


def gallery(asked: Sequence[Question], real: Real, *, seed: int, among: int = AMONG) -> list[Question]:
    """All pictures of the subjects asked about, and of others at random where these are too few to choose among."""
    every = list(real.kinds())
    names = dict.fromkeys(question.subject for question in asked)
    others = sorted({question.subject for question in every} - names.keys())
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed)).tolist()
    wanted = {*names, *(others[place] for place in order[: max(0, 2 * among - len(names))])}
    return [question for question in every if question.subject in wanted]


def seen(
    pictures: Sequence[Question], real: Real, network: FeatureNetwork, *, batch: int, progress: Progress | None = None
) -> Tensor:
    """(N, D) features of real pictures, at the size of the data set; all processes share them."""

    def batches() -> Iterator[tuple[range, Tensor]]:
        for part in shares(len(pictures), batch):
            some = pictures[part.start : part.stop]
            images = [real.splits[not one.train].batch([one.index])[0] for one in some]
            yield part, torch.cat(images)
            if progress is not None:
                progress(part.stop, len(pictures))

    return gather(batches(), network, total=len(pictures), keep=len(pictures)).features


# ---- figures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """How often a subject was recognised, for one kind of prompts and one kind of pictures."""

    kind: str
    whose: str
    """One of `WHOSE`."""
    prompts: int
    figures: dict[str, Figure]
    """By "retrieval@1" ..., or by "clip_score"."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """All rows, and the card that says how they were made."""

    card: AlignmentCard
    rows: tuple[Row, ...]
    clip: tuple[Row, ...] = ()
    """CLIP scores, where a CLIP was named."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        rows, clip = ([dataclasses.asdict(row) for row in each] for each in (self.rows, self.clip))
        return {"rows": rows, "clip": clip, "warnings": self.card.warnings(), "card": self.card.to_json()}


def judge(
    asked: Sequence[Question], painted_QD: Tensor, pictures: Sequence[Question], real_ND: Tensor, card: AlignmentCard
) -> Alignment:
    """Retrieval of each kind's prompts: by the model's pictures, by the real ones, by those of other prompts.

    Arguments:
        painted_QD: features of what the model painted for `asked`.
        pictures, real_ND: the `gallery`, and its features.
    """
    of_asked, of_real = numbered([one.subject for one in asked], [one.subject for one in pictures])
    classes_N = torch.tensor([one.label for one in pictures], dtype=torch.int64)
    real = Looks(features=real_ND, subjects=of_real, classes=classes_N)
    places = {(one.train, one.index): place for place, one in enumerate(pictures)}
    own = real.chosen(torch.tensor([places[one.train, one.index] for one in asked]))
    painted = Looks(features=painted_QD, subjects=of_asked, classes=own.classes)
    rows: list[Row] = []
    for kind in KINDS:
        some = torch.tensor([place for place, one in enumerate(asked) if one.kind == kind], dtype=torch.int64)
        if len(some):
            shuffled = mistaken(painted, generator=_generator()).chosen(some)
            sets = zip(WHOSE, (painted.chosen(some), own.chosen(some), shuffled), strict=True)
            rows += [_row(kind, whose, looks, real, card) for whose, looks in sets]
    return Alignment(card=card, rows=tuple(rows))


def _row(kind: str, whose: str, looks: Looks, real: Looks, card: AlignmentCard) -> Row:
    ranks_QR, figures = ranks(looks, real, generator=_generator(), among=card.among, draws=card.draws), {}
    for nearest in NEAREST:
        hits_Q = hits(ranks_QR, nearest)
        low, high = interval(hits_Q, generator=_generator())
        name = f"retrieval@{nearest}"
        figures[name] = Figure(name=f"{name}-{card.network.name}", value=float(hits_Q.mean()), low=low, high=high)
    return Row(kind=kind, whose=whose, prompts=len(looks), figures=figures)


def _generator() -> torch.Generator:
    """Of draws and resamples: always the same, so that a figure is too."""
    return torch.Generator().manual_seed(0)
