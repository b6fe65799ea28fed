"""Whether pictures show what their prompts say, without a network that reads: retrieval of the subject.

A picture is generated for a prompt. Among real pictures of `AMONG` subjects, one each, that of its own subject should
be near. They are taken from other classes than the picture was asked for (of an icon: from other drawing styles), so
that what they have in common is the subject and not the way it is drawn.

Shapes: Q pictures asked about, N real ones, n of them in other classes, D features, S subjects, R draws of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.errors import InputError

AMONG = 100  # subjects, the right one included: by chance it is the nearest in 1 of 100 cases
DRAWS = 10  # of the others, over which a picture's hits are averaged
NEAREST = (1, 5, 10)


@dataclass(frozen=True, kw_only=True, eq=False)
class Looks:
    """Pictures as a feature network sees them."""

    features: Tensor
    """(N, D) float."""
    subjects: Tensor
    """(N,) int64 from 0 on, what each shows."""
    classes: Tensor
    """(N,) int64."""

    def __post_init__(self) -> None:
        shapes = [tuple(part.shape) for part in (self.features, self.subjects, self.classes)]
        if self.features.ndim != 2 or shapes[1:] != [shapes[0][:1]] * 2:
            raise InputError(f"expected features (N, D), subjects (N,) and classes (N,), got {shapes}")

    def __len__(self) -> int:
        return len(self.features)

    def chosen(self, rows: Tensor) -> Looks:
        """Some of them, in the order given."""
        return Looks(features=self.features[rows], subjects=self.subjects[rows], classes=self.classes[rows])


def numbered(*names: Sequence[str]) -> list[Tensor]:
    """Subjects of several sets by name, as numbers that are the same in all of them: (N,) int64 each."""
    known = {name: number for number, name in enumerate(dict.fromkeys(name for part in names for name in part))}
    return [torch.tensor([known[name] for name in part], dtype=torch.int64) for part in names]


def answerable(asked: Looks, real: Looks) -> Tensor:
    """(Q,) bool: of which pictures there are real ones of the same subject in another class."""
    pairs = torch.stack([real.subjects, real.classes], dim=1).unique(dim=0)
    subjects = int(torch.cat([asked.subjects, pairs[:, 0]]).max()) + 1 if len(asked) or len(pairs) else 0
    classes_S = torch.bincount(pairs[:, 0], minlength=subjects)
    own = (asked.subjects[:, None] == pairs[:, 0]) & (asked.classes[:, None] == pairs[:, 1])
    return classes_S[asked.subjects] - own.any(dim=1).long() > 0


# rank_q = #{s != s_q : sim(q, x_s) > sim(q, x_{s_q})},  x_s a real picture of subject s in another class than q's
def ranks(asked: Looks, real: Looks, *, generator: torch.Generator, among: int = AMONG, draws: int = DRAWS) -> Tensor:
    """(Q, R) int64: how many of `among` - 1 other subjects, drawn at random, are nearer than the right one.

    Near is the cosine of features. By chance each rank is as likely as another.

    Arguments:
        asked: all of them `answerable`.
        generator: on the CPU; decides which others, and which picture of each subject.

    Raises `InputError` where there are fewer subjects, or none of the right one.
    """
    subjects = int(torch.cat([asked.subjects, real.subjects]).max()) + 1
    asked_QD, real_ND = F.normalize(asked.features, dim=1), F.normalize(real.features, dim=1)
    ranks_QR = torch.zeros(len(asked), draws, dtype=torch.int64)
    for row, (subject, number) in enumerate(zip(asked.subjects.tolist(), asked.classes.tolist(), strict=True)):
        other = real.classes != number
        near_n, subjects_n = (real_ND @ asked_QD[row])[other], real.subjects[other]
        for draw in range(draws):
            ranks_QR[row, draw] = _rank(near_n, subjects_n, subject, subjects, among, generator)
    return ranks_QR


def _rank(
    near_n: Tensor, subjects_n: Tensor, right: int, subjects: int, among: int, generator: torch.Generator
) -> Tensor:
    """Of one picture and one draw, from how near the n real pictures are."""
    order = torch.randperm(len(near_n), generator=generator)
    last_S = torch.full((subjects,), -1).scatter_reduce(0, subjects_n[order], torch.arange(len(order)), "amax")
    there = (last_S >= 0).nonzero().flatten()
    wrong = there[there != right]
    if len(wrong) < among - 1 or last_S[right] < 0:
        raise InputError(f"expected real pictures of the subject and of {among - 1} others, got {len(there)} subjects")
    drawn = wrong[torch.randperm(len(wrong), generator=generator)[: among - 1]]
    near_S = near_n[order[last_S.clamp_min(0)]]  # of one picture each, at random
    return (near_S[drawn] > near_S[right]).sum()


def hits(ranks_QR: Tensor, nearest: int) -> Tensor:
    """(Q,) float64: in what share of the draws the right subject is among so many nearest."""
    return (ranks_QR < nearest).double().mean(dim=1)


def mistaken(asked: Looks, *, generator: torch.Generator) -> Looks:
    """The same questions with each other's pictures, none with one of its own subject: what chance and style give.

    Raises `InputError` where all have one subject.
    """
    rows = torch.arange(len(asked))
    for row in range(len(asked)):
        others = (asked.subjects != asked.subjects[row]).nonzero().flatten()
        if not len(others):
            raise InputError("expected pictures of at least two subjects, got one")
        rows[row] = others[torch.randint(len(others), (), generator=generator)]
    return Looks(features=asked.features[rows], subjects=asked.subjects, classes=asked.classes)
