"""Laws of retrieval: what is alike is found, what is not is found by chance, and a drawing style is no help."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextscale.errors import InputError
from nextscale.evaluation.retrieval import Looks, answerable, hits, mistaken, numbered, ranks

SUBJECTS, CLASSES, AMONG = 30, 3, 20


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(noise: float, *, style: float = 0.0) -> Looks:
    """Every subject in every class: a direction of its own, one of its class, and noise."""
    of_subject, of_class = torch.randn(SUBJECTS, 64, generator=chance(1)), torch.randn(CLASSES, 64, generator=chance(2))
    subjects = torch.arange(SUBJECTS).repeat_interleave(CLASSES)
    classes = torch.arange(CLASSES).repeat(SUBJECTS)
    own = torch.randn(len(subjects), 64, generator=chance(3))
    return Looks(
        features=of_subject[subjects] + style * of_class[classes] + noise * own, subjects=subjects, classes=classes
    )


def found(asked: Looks, real: Looks) -> Tensor:
    return ranks(asked, real, generator=chance(4), among=AMONG, draws=5)


def test_pictures_of_the_same_subject_are_the_nearest() -> None:
    """Whatever they are drawn like, and whoever else is there."""
    real = drawn(0.1, style=0.5)
    assert found(real, real).tolist() == [[0] * 5] * len(real)


def test_noise_is_found_by_chance() -> None:
    """Each rank as often as another: k of 20 among the k nearest, to four standard errors."""
    real = drawn(0.0)
    asked = Looks(
        features=torch.randn(len(real), 64, generator=chance(9)), subjects=real.subjects, classes=real.classes
    )
    told = found(asked, real)
    for nearest in (1, 5, 10):
        share = nearest / AMONG
        error = (share * (1 - share) / len(real)) ** 0.5
        assert float(hits(told, nearest).mean()) == pytest.approx(share, abs=4 * error)


def test_the_style_alone_is_no_help() -> None:
    """Pictures that show their class and nothing else are found by chance, too: their own class is not looked at."""
    real = drawn(0.0, style=2.0)
    of_class = torch.randn(CLASSES, 64, generator=chance(2))
    asked = Looks(features=of_class[real.classes], subjects=real.subjects, classes=real.classes)
    assert float(hits(found(asked, real), 1).mean()) < 0.2


def test_less_noise_is_found_more_often() -> None:
    """Up to all of them."""
    real = drawn(0.5)
    shares = [float(hits(found(drawn(noise), real), 1).mean()) for noise in (8.0, 3.0, 0.5)]
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.9


def test_a_hit_is_a_rank_below() -> None:
    """As a share of the draws."""
    told = torch.tensor([[0, 4, 9], [10, 5, 0]])
    assert hits(told, 1).tolist() == pytest.approx([1 / 3, 1 / 3])
    assert hits(told, 5).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert hits(told, 10).tolist() == pytest.approx([1, 2 / 3])


def test_the_same_draw_gives_the_same_ranks() -> None:
    """And another one others."""
    real = drawn(3.0)
    assert torch.equal(found(real, real), found(real, real))
    assert not torch.equal(found(real, real), ranks(real, real, generator=chance(5), among=AMONG, draws=5))


def test_only_subjects_with_pictures_in_another_class_can_be_asked_about() -> None:
    """A subject that is there once, or in the class that is asked for alone, has no answer."""
    asked = Looks(features=torch.zeros(4, 2), subjects=torch.tensor([0, 1, 1, 2]), classes=torch.tensor([0, 0, 1, 0]))
    real = Looks(features=torch.zeros(3, 2), subjects=torch.tensor([0, 1, 1]), classes=torch.tensor([0, 0, 2]))
    assert answerable(asked, real).tolist() == [False, True, True, False]


def test_mistaken_pictures_are_of_another_subject() -> None:
    """With the questions as they were."""
    real = drawn(0.0)
    swapped = mistaken(real, generator=chance(7))
    assert torch.equal(swapped.subjects, real.subjects)
    owners = torch.cdist(swapped.features, real.features).argmin(dim=1)
    assert not (real.subjects[owners] == real.subjects).any()


def test_names_are_numbered_alike_in_all_sets() -> None:
    """In the order in which they come."""
    first, second = numbered(["cat", "dog", "cat"], ["emu", "dog"])
    assert (first.tolist(), second.tolist()) == ([0, 1, 0], [2, 1])


def test_too_few_subjects_are_refused() -> None:
    """As are shapes that do not belong together, and one subject alone."""
    real = drawn(0.0)
    with pytest.raises(InputError, match="the subject and of 30 others, got 30 subjects"):
        ranks(real, real, generator=chance(), among=31)
    with pytest.raises(InputError, match="features \\(N, D\\), subjects"):
        Looks(features=torch.zeros(3, 2), subjects=torch.zeros(2, dtype=torch.int64), classes=torch.zeros(3))
    with pytest.raises(InputError, match="at least two subjects"):
        mistaken(real.chosen(torch.tensor([0, 1])), generator=chance())
