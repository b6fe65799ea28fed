"""Laws of judging generated pictures: the protocol decides which pictures, and nothing but the pictures the figures."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from torch import Tensor, nn

from nextscale import Pipeline, images
from nextscale.data.pictures import Split
from nextscale.errors import InputError
from nextscale.evaluation import generation, reference
from nextscale.evaluation.card import Card, Setting
from nextscale.evaluation.gathering import Gathered, eight_bits, gather
from nextscale.evaluation.generation import (
    ClassFigure,
    Painted,
    Plan,
    balanced,
    best,
    judge,
    paint,
    repeated,
    settings,
    shown_to,
)
from nextscale.evaluation.judging import Figure
from nextscale.evaluation.reference import ReferenceFeatures
from nextscale.features import FeatureNetwork

SETTING = Setting(guidance=1.0, top_k=40, top_p=0.9)
ALL = [
    "frechet_distance",
    "spatial_frechet_distance",
    "kernel_distance",
    "precision",
    "recall",
    "density",
    "coverage",
]


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Four pictures of each of the five classes."""
    return balanced(5, 4, first_seed=3)


@pytest.fixture(scope="module")
def painted(pipe: Pipeline, plan: Plan) -> Tensor:
    """Its pictures, all at once."""
    (batch,) = paint(pipe, plan, SETTING, batch=100)
    return batch.images


@pytest.fixture(scope="module")
def compared(split: Split, glance: FeatureNetwork, tmp_path_factory: pytest.TempPathFactory) -> ReferenceFeatures:
    """24 smooth pictures, seen."""
    return reference.of_split(split, name="smooth").features(glance, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def make_card(pipe: Pipeline, glance: FeatureNetwork, split: Split, compared: ReferenceFeatures) -> Callable[..., Card]:
    def make(setting: Setting = SETTING) -> Card:
        used = generation.reference_used(reference.of_split(split, name="smooth"), compared)
        return generation.card_of(pipe, glance, used, setting, each=4, first_seed=3, name="tiny")

    return make


def whole(images_N3HW: Tensor, network: FeatureNetwork, *, batch: int = 7, keep: int = 1000) -> Gathered:
    """Pictures seen, so many at a time."""
    total = len(images_N3HW)
    parts = (range(start, min(start + batch, total)) for start in range(0, total, batch))
    return gather(
        ((part, images_N3HW[part.start : part.stop]) for part in parts),
        network,
        total=total,
        keep=keep,
        keep_spatial=True,
    )


# ---- which pictures --------------------------------------------------------------------------------------------------


def test_every_class_has_as_many_pictures_and_every_picture_its_own_seed(plan: Plan) -> None:
    """Also any beginning of them that is a multiple of the classes."""
    assert Counter(plan.labels) == dict.fromkeys(range(5), 4)
    assert Counter(plan.labels[:10]) == dict.fromkeys(range(5), 2)
    assert plan.seeds == tuple(range(3, 23))


def test_more_pictures_of_each_class_continue_the_fewer(plan: Plan) -> None:
    """So that a small evaluation is the beginning of a large one."""
    larger = balanced(5, 9, first_seed=3)
    assert (larger.labels[:20], larger.seeds[:20]) == (plan.labels, plan.seeds)


def test_less_than_one_picture_of_a_class_is_refused() -> None:
    """An `InputError`."""
    with pytest.raises(InputError, match="at least 1, got 0"):
        balanced(5, 0)


def test_chosen_pictures_keep_label_and_seed(plan: Plan) -> None:
    """In the order of the choice."""
    assert plan.chosen([7, 1]) == Plan((2, 1), (10, 4))


def test_several_values_are_all_their_combinations() -> None:
    """Each once; and what sampling would refuse is refused before the first picture."""
    found = settings([1.0, 2.0, 1.0], [900, 600], [0.96], [1.0])
    assert [(setting.guidance, setting.top_k) for setting in found] == [(1, 900), (1, 600), (2, 900), (2, 600)]
    for wrong in (([float("nan")], [1], [0.5], [1.0]), ([1.0], [-1], [0.5], [1.0]), ([1.0], [1], [1.5], [1.0])):
        with pytest.raises(InputError):
            settings(*wrong)


# ---- painting --------------------------------------------------------------------------------------------------------


def test_a_seed_alone_decides_its_picture(pipe: Pipeline, plan: Plan, painted: Tensor) -> None:
    """Whatever the batch, and alone."""
    for batch in (1, 6):
        parts = list(paint(pipe, plan, SETTING, batch=batch))
        assert [index for part in parts for index in part.indices] == list(range(20))
        assert torch.equal(torch.cat([part.images for part in parts]), painted)
    (alone,) = paint(pipe, plan.chosen([13]), SETTING)
    assert torch.equal(alone.images[0], painted[13])


def test_pictures_are_those_of_the_pipeline_in_8_bits(pipe: Pipeline, plan: Plan, painted: Tensor) -> None:
    """As if they had been saved as PNG and read again."""
    made = pipe.generate(plan.labels, plan.seeds, guidance=1.0, top_k=40, top_p=0.9).images
    levels = (made * 255).round().to(torch.uint8)
    assert torch.equal(painted, images.from_uint8(levels))
    assert torch.equal(eight_bits(painted), painted)


def test_progress_tells_of_all_pictures(pipe: Pipeline, plan: Plan) -> None:
    """After each batch."""
    told: list[tuple[int, int]] = []
    list(paint(pipe, plan, SETTING, batch=8, progress=lambda *done: told.append(done)))
    assert told == [(8, 20), (16, 20), (20, 20)]


def test_processes_share_the_batches(pipe: Pipeline, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is one process's, and the same as when there is one process."""
    alone = [part.indices for part in paint(pipe, plan, SETTING, batch=3)]
    monkeypatch.setattr("nextscale.machine.distributed.world", lambda: 2)
    shared = []
    for rank in (0, 1):
        monkeypatch.setattr("nextscale.machine.distributed.rank", lambda rank=rank: rank)
        shared += [part.indices for part in paint(pipe, plan, SETTING, batch=3)]
    assert sorted(shared, key=lambda part: part.start) == alone


def test_pictures_can_be_had_on_the_way(pipe: Pipeline, plan: Plan, painted: Tensor) -> None:
    """Before they go on, all of them."""
    seen: list[Painted] = []
    passed = list(shown_to(paint(pipe, plan, SETTING, batch=8), seen.append))
    assert len(passed) == len(seen) == 3
    assert torch.equal(torch.cat([part.images for part in seen]), painted)


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_batches_do_not_change_the_figures(
    painted: Tensor, glance: FeatureNetwork, compared: ReferenceFeatures, make_card: Callable[..., Card]
) -> None:
    """To 1e-6 of themselves."""
    one, other = (judge(whole(painted, glance, batch=batch), compared, glance, make_card()) for batch in (3, 20))
    assert list(one.figures) == ALL
    for key, figure in one.figures.items():
        assert figure.value == pytest.approx(other.figures[key].value, rel=1e-6), key


def test_an_evaluation_is_its_steps_in_a_row(
    pipe: Pipeline,
    painted: Tensor,
    glance: FeatureNetwork,
    compared: ReferenceFeatures,
    make_card: Callable[..., Card],
) -> None:
    """The pictures of the card's plan, judged; each batch is handed on."""
    card, batches = make_card(), list[Tensor]()
    found = generation.evaluate(pipe, glance, compared, card, batch=8, also=lambda made: batches.append(made.images))
    assert found == judge(whole(painted, glance, batch=8), compared, glance, card)
    assert torch.equal(torch.cat(batches), painted)


def test_the_reference_itself_is_at_distance_zero(
    levels: Tensor, glance: FeatureNetwork, compared: ReferenceFeatures, make_card: Callable[..., Card]
) -> None:
    """Its precision, recall and coverage are 1, and its neighbours its own."""
    figures = judge(whole(images.from_uint8(levels), glance), compared, glance, make_card()).figures
    assert figures["frechet_distance"].value == pytest.approx(0, abs=1e-6)
    assert figures["spatial_frechet_distance"].value == pytest.approx(0, abs=1e-4)
    assert [figures[key].value for key in ("precision", "recall", "coverage")] == [1, 1, 1]


def test_noise_moves_the_distances_away(
    levels: Tensor, glance: FeatureNetwork, compared: ReferenceFeatures, make_card: Callable[..., Card]
) -> None:
    """The more, the further."""
    noise = torch.randn(levels.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for strength in (0.1, 0.4, 1.6):
        noisy = eight_bits(images.from_uint8(levels) + strength * noise)
        found.append(judge(whole(noisy, glance), compared, glance, make_card()).figures)
    for key in ("frechet_distance", "kernel_distance"):
        values = [figures[key].value for figures in found]
        assert values == sorted(values)
        assert values[0] < values[-1] / 2


def test_figures_carry_the_name_of_the_network(
    painted: Tensor, glance: FeatureNetwork, compared: ReferenceFeatures, make_card: Callable[..., Card]
) -> None:
    """All of them; none is called FID."""
    names = [figure.name for figure in judge(whole(painted, glance), compared, glance, make_card()).figures.values()]
    assert names[:3] == ["FD-Glance", "sFD-Glance", "KD-Glance"]
    assert all(name.endswith("-Glance") for name in names)


def test_an_interval_lies_about_its_figure(
    painted: Tensor, glance: FeatureNetwork, compared: ReferenceFeatures, make_card: Callable[..., Card]
) -> None:
    """Also where fewer features were kept than there are pictures, which changes nothing else of the distance."""
    figures = judge(whole(painted, glance), compared, glance, make_card()).figures
    for key in ALL:
        figure = figures[key]
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high, key
    assert figures["frechet_distance"].low < figures["frechet_distance"].high
    fewer = judge(whole(painted, glance, keep=10), compared, glance, make_card()).figures["frechet_distance"]
    assert fewer.value == figures["frechet_distance"].value
    assert fewer.low < fewer.value < fewer.high


def test_stored_statistics_have_frechet_distances_alone(
    painted: Tensor, glance: FeatureNetwork, compared: ReferenceFeatures, make_card: Callable[..., Card]
) -> None:
    """The others need the pictures; the card says what is not known."""
    stored = dataclasses.replace(compared, features=None, labels=None, count=None, size=None)
    seen = whole(painted, glance)
    figures = judge(seen, stored, glance, make_card()).figures
    assert list(figures) == ["frechet_distance", "spatial_frechet_distance"]
    assert figures["frechet_distance"] == judge(seen, compared, glance, make_card()).figures["frechet_distance"]


def test_a_reference_is_described_whatever_was_kept_of_it(
    split: Split, glance: FeatureNetwork, compared: ReferenceFeatures, tmp_path: Path
) -> None:
    """Labels are counted among all pictures; stored statistics leave open what they do not tell."""
    uneven = dataclasses.replace(split, labels=torch.tensor([0] * 8 + [1] * 16))
    found = reference.of_split(uneven, name="uneven")
    used = generation.reference_used(found, found.features(glance, keep=5, cache=tmp_path))
    assert (used.name, used.pictures, used.fewest, used.most) == ("uneven", 24, 8, 16)
    stored = dataclasses.replace(compared, features=None, labels=None, count=None, size=None)
    used = generation.reference_used(dataclasses.replace(found, labels=None), stored)
    assert (used.pictures, used.height, used.width, used.fewest, used.most) == (None,) * 5


def test_a_network_with_a_classifier_gives_a_score(
    painted: Tensor, glance: FeatureNetwork, compared: ReferenceFeatures, make_card: Callable[..., Card]
) -> None:
    """From the features that were kept; 1, and nothing else, for one that is never sure of anything."""
    glance.classifier = nn.Linear(7, 3)
    try:
        nn.init.zeros_(glance.classifier.weight)
        figure = judge(whole(painted, glance), compared, glance, make_card()).figures["score"]
    finally:
        del glance.classifier
    assert (figure.name, figure.value) == ("score-Glance", pytest.approx(1))
    assert (figure.low, figure.high) == pytest.approx((1, 1))


def test_repetitions_are_told_as_their_mean_and_deviation(
    painted: Tensor, levels: Tensor, glance: FeatureNetwork, compared: ReferenceFeatures, make_card: Callable[..., Card]
) -> None:
    """Of every figure, whose values stay; a single one stays as it is."""
    results = [
        dataclasses.replace(
            judge(whole(pictures, glance), compared, glance, make_card()),
            per_class=(ClassFigure(label=2, pictures=4, reference=5, frechet_distance=distance),),
        )
        for pictures, distance in ((painted, 1.0), (painted.flip(3), 3.0), (images.from_uint8(levels)[:20], 8.0))
    ]
    found = repeated(results)
    for key in ALL:
        values = [result.figures[key].value for result in results]
        figure = found.figures[key]
        assert figure.repeats == tuple(values)
        assert (figure.value, figure.deviation) == pytest.approx((mean(values), stdev(values)))
        assert (figure.name, figure.low, figure.high) == (results[0].figures[key].name, None, None)
    assert found.card == dataclasses.replace(make_card(), repeats=3)
    assert [each.frechet_distance for each in found.per_class] == [4.0]
    assert repeated(results[:1]) is results[0]


def test_the_best_setting_has_the_least_distance(
    painted: Tensor, levels: Tensor, glance: FeatureNetwork, compared: ReferenceFeatures, make_card: Callable[..., Card]
) -> None:
    """Wherever it stands."""
    far, near = (
        judge(whole(pictures, glance), compared, glance, make_card())
        for pictures in (painted, images.from_uint8(levels))
    )
    assert (best([far, near]), best([near, far, far])) == (1, 0)


@pytest.mark.parametrize("wrong", [{"value": nan}, {"value": inf}, {"low": nan}, {"deviation": nan}], ids=str)
def test_a_figure_is_a_finite_number(wrong: dict[str, float]) -> None:
    """With its interval and its deviation; none is told otherwise, whatever it was made of."""
    with pytest.raises(InputError, match="FD-Glance: expected a finite figure"):
        Figure(**{"name": "FD-Glance", "value": 1.0, "low": 0.5, "high": 2.0} | wrong)


# ---- the card --------------------------------------------------------------------------------------------------------


def test_the_card_tells_model_reference_and_network(
    pipe: Pipeline, make_card: Callable[..., Card], split: Split, glance: FeatureNetwork
) -> None:
    """By fingerprints, sizes and counts."""
    card = make_card()
    assert (card.model.height, card.model.width, card.model.classes, card.model.codes) == (8, 8, 5, 64)
    assert (card.model.precision, card.model.device) == ("fp32", "cpu")
    assert (card.reference.fingerprint, card.reference.pictures, card.reference.most) == (split.fingerprint, 24, 24)
    assert (card.network.name, card.network.fingerprint, card.network.side) == ("Glance", glance.fingerprint, 8)
    assert {"torch", "nextscale", "torchmetrics"} <= set(card.versions)
    assert any("fewer than 50,000" in line for line in card.warnings())
    assert Card.from_json(card.to_json()) == card


def test_the_model_s_fingerprint_changes_with_any_weight(pipe: Pipeline) -> None:
    """Of either stage."""
    before = generation.model_fingerprint(pipe)
    for weight in (pipe.tokenizer.quantizer.codebook.weight, pipe.transformer.start):
        kept = weight.flatten()[0].clone()
        with torch.no_grad():
            weight.view(-1)[0] += 1
            changed = generation.model_fingerprint(pipe)
            weight.view(-1)[0] = kept
        assert changed != before
    assert generation.model_fingerprint(pipe) == before
