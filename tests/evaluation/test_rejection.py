"""Laws of rejection sampling: of every class those stay that the classifier is surest of, and exactly as many."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from nextscale import Pipeline
from nextscale.errors import InputError
from nextscale.evaluation.card import Setting
from nextscale.evaluation.generation import Painted, Plan, balanced, paint
from nextscale.evaluation.rejection import accepted, nearest_mean
from nextscale.features import FeatureNetwork


@pytest.fixture
def plan() -> Plan:
    """Six candidates of each of three classes."""
    return balanced(3, 6, first_seed=100)


def shades(plan: Plan, batch: int) -> list[Painted]:
    """Pictures of one grey each; that of candidate i is i * 5 mod 18."""
    greys = torch.arange(len(plan)) * 5 % 18
    pictures = greys.float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    parts = (range(start, min(start + batch, len(plan))) for start in range(0, len(plan), batch))
    return [Painted(part, pictures[part.start : part.stop]) for part in parts]


def brightness(images_B3HW: Tensor, labels_B: Tensor) -> Tensor:
    """A scorer."""
    assert len(images_B3HW) == len(labels_B)
    return images_B3HW.mean(dim=(1, 2, 3))


def test_the_surest_of_every_class_stay(plan: Plan) -> None:
    """In the order of the plan, each with its own seed, whatever the batch."""
    kept = accepted(shades(plan, 18), plan, brightness, each=2)
    assert kept == accepted(shades(plan, 5), plan, brightness, each=2)
    assert Counter(kept.labels) == {0: 2, 1: 2, 2: 2}
    greys = {seed: (seed - 100) * 5 % 18 for seed in plan.seeds}
    for label in range(3):
        of_class = sorted((greys[seed] for seed, own in zip(plan.seeds, plan.labels, strict=True) if own == label))
        stayed = sorted(greys[seed] for seed, own in zip(kept.seeds, kept.labels, strict=True) if own == label)
        assert stayed == of_class[-2:]
    assert list(kept.seeds) == sorted(kept.seeds)


def test_of_equals_the_first_stay(plan: Plan) -> None:
    """So that a classifier without an opinion changes nothing."""
    kept = accepted(shades(plan, 4), plan, lambda images, labels: torch.zeros(len(labels)), each=2)
    assert kept == balanced(3, 2, first_seed=100)


def test_what_stays_is_painted_as_it_was(pipe: Pipeline) -> None:
    """A seed alone decides its picture."""
    candidates, setting = balanced(5, 2), Setting(1.0, 40, 0.9)
    (all_of_them,) = paint(pipe, candidates, setting)
    kept = accepted([all_of_them], candidates, brightness, each=1)
    (again,) = paint(pipe, kept, setting)
    assert torch.equal(again.images, all_of_them.images[list(kept.seeds)])


def test_scores_that_are_no_numbers_and_too_few_candidates_are_refused(plan: Plan) -> None:
    """Two `InputError`s."""
    with pytest.raises(InputError, match="finite"):
        accepted(shades(plan, 18), plan, lambda images, labels: torch.full((len(labels),), torch.nan), each=1)
    with pytest.raises(InputError, match="at least 7 candidates of each class, got 6"):
        accepted(shades(plan, 18), plan, brightness, each=7)


def test_a_nearest_mean_is_sure_of_its_own_class(glance: FeatureNetwork) -> None:
    """The more, the nearer its mean is than the nearest other; below 0 where another is nearer."""
    pictures = torch.linspace(-1, 1, 9).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    features = glance(pictures)
    classifier = nearest_mean(glance, features, labels, classes=3)
    means = torch.stack([features[labels == label].double().mean(dim=0) for label in range(3)])
    squares = (features.double()[:, None] - means).square().sum(dim=2)
    for label in range(3):
        others = squares[:, [other for other in range(3) if other != label]].amin(dim=1)
        scores = classifier(pictures, torch.full((9,), label))
        assert torch.allclose(scores, others - squares[:, label], atol=1e-4)
    assert classifier.accuracy == float((squares.argmin(dim=1) == labels).double().mean())


def test_a_class_without_examples_is_refused(glance: FeatureNetwork) -> None:
    """And one too many."""
    for labels in ([0, 0, 2], [0, 1, 3]):
        with pytest.raises(InputError, match="expected pictures of each of 3 classes"):
            nearest_mean(glance, torch.rand(3, 7), torch.tensor(labels), classes=3)
