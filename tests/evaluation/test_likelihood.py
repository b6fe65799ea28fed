"""Laws of likelihood over a data set: each picture under its own condition, figures with intervals, the gap."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nextscale import InputError, Pipeline, Scales, images
from nextscale.data.captions import Captions
from nextscale.data.pictures import Split
from nextscale.evaluation.likelihood import (
    Asked,
    Looked,
    asked,
    caption_gain,
    class_figures,
    class_numbers,
    classify,
    gap,
    look,
    share,
    split_figures,
    under_other_captions,
)
from nextscale.transformer.likelihood import Classified

SIZES = Scales([1, 2])


@pytest.fixture
def labelled(split: Split) -> Split:
    """Of the model's classes, in another order."""
    return dataclasses.replace(split, classes=("dog", "ant", "cat"), labels=torch.arange(24) % 3)


def test_pictures_are_evenly_spread_over_a_split(pipe: Pipeline, labelled: Split) -> None:
    """All of few, some of many, each under its own class by name."""
    assert asked(pipe, labelled, most=99).indices == tuple(range(24))
    some = asked(pipe, labelled, most=5)
    assert some.indices == (0, 4, 9, 14, 19)
    assert some.labels == (3, 0, 3, 2, 0)  # dog, ant, dog, cat, ant of ant bee cat dog eel
    assert some.prompts is None
    with pytest.raises(InputError, match="expected at least one picture in each split, got none"):
        asked(pipe, labelled, most=0)


def test_classes_that_the_model_does_not_know_are_no_class(pipe: Pipeline, labelled: Split) -> None:
    """All of them: it would not be fair to some."""
    strangers = dataclasses.replace(labelled, classes=("dog", "fox", "cat"))
    assert class_numbers(pipe, strangers.classes) is None
    assert set(asked(pipe, strangers, most=9).labels) == {5}
    assert class_numbers(pipe, labelled.classes) == [3, 0, 2]


def test_first_captions_are_prompts_of_models_that_read(pipe: Pipeline, text_pipe: Pipeline, labelled: Split) -> None:
    """Nothing where there is none, and of models of classes alone."""
    captions = Captions([["a red heart", "a heart"], [], *(["a cat face"] for _ in range(22))])
    told = dataclasses.replace(labelled, captions=captions)
    assert asked(text_pipe, told, most=24).prompts == ("a red heart", "", *["a cat face"] * 22)
    assert asked(pipe, told, most=24).prompts is None
    found = look(text_pipe, asked(text_pipe, told, most=2), batch=2)
    pictures = images.to_unit(told.batch([0, 12])[0])
    expected = text_pipe.log_likelihood(pictures, ["dog", "dog"], ["a red heart", "a cat face"])
    torch.testing.assert_close(found.nats, -expected.scales, atol=1e-3, rtol=0)


def test_other_captions_are_those_of_other_pictures(text_pipe: Pipeline, labelled: Split) -> None:
    """Never a picture's own words, whichever picture they come from; classes stay, and all alike have no others."""
    captions = Captions([[f"picture {number % 5}"] for number in range(24)])
    own = asked(text_pipe, dataclasses.replace(labelled, captions=captions), most=24)
    others = under_other_captions(own)
    assert others is not None
    assert own.prompts is not None
    assert others.prompts is not None
    assert all(one != other for one, other in zip(own.prompts, others.prompts, strict=True))
    assert (others.indices, others.labels) == (own.indices, own.labels)
    assert under_other_captions(dataclasses.replace(own, prompts=("a heart",) * 24)) is None
    assert under_other_captions(dataclasses.replace(own, prompts=None)) is None


def test_gain_by_captions_is_a_mean_over_pictures() -> None:
    """By hand: two pictures of 5 tokens, paired, so that what is hard in both does not widen the interval."""
    own, others = looked([2.0, 8.0], [40.0, 60.0]), looked([3.0, 9.0], [42.0, 60.0])
    found = caption_gain(own, others, SIZES)
    assert found.value == pytest.approx(2 / 5)
    assert (found.low, found.high) == (pytest.approx(2 / 5), pytest.approx(2 / 5))


def test_looking_does_not_depend_on_the_batch(pipe: Pipeline, labelled: Split) -> None:
    """Each picture's figures are its own; progress counts pictures."""
    wanted, told = asked(pipe, labelled, most=7), list[tuple[int, int]]()
    together = look(pipe, wanted, batch=7)
    apart = look(pipe, wanted, batch=3, progress=lambda done, total: told.append((done, total)))
    torch.testing.assert_close(apart.nats, together.nats, atol=1e-3, rtol=0)
    torch.testing.assert_close(apart.entropy, together.entropy, atol=1e-3, rtol=0)
    assert told == [(3, 7), (6, 7), (7, 7)]
    pictures = images.to_unit(labelled.batch(list(wanted.indices))[0])
    expected = pipe.log_likelihood(pictures, list(wanted.labels))
    torch.testing.assert_close(together.nats, -expected.scales, atol=1e-3, rtol=0)


def looked(*nats: Sequence[float]) -> Looked:
    rows = torch.tensor(nats, dtype=torch.float64)
    return Looked(rows, rows / 2)


def test_figures_of_a_split_are_means_over_pictures_and_tokens() -> None:
    """By hand: two pictures of 1 + 4 tokens on 8 pixels."""
    figures = split_figures(looked([2.0, 8.0], [4.0, 6.0]), SIZES, 8)
    assert figures.pictures == 2
    assert figures.nats_per_picture.value == 10
    assert figures.nats_per_token.value == 2
    assert figures.bits_per_pixel.value == pytest.approx(10 / math.log(2) / 8)
    first, second = figures.scales
    assert (first.size, first.tokens, first.nats_per_token, first.entropy_per_token) == ("1x1", 1, 3.0, 1.5)
    assert (second.size, second.tokens, second.nats_per_token, second.entropy_per_token) == ("2x2", 4, 1.75, 0.875)
    for figure in (figures.nats_per_picture, figures.nats_per_token, figures.bits_per_pixel):
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high
    json.dumps(dataclasses.asdict(figures))


def test_gap_is_held_out_less_trained_on() -> None:
    """And the share of pairs in which the training picture is the likelier; ties count half."""
    trained, held_out = looked([1.0, 4.0], [1.0, 9.0]), looked([2.0, 8.0], [3.0, 12.0])
    found = gap(trained, held_out, SIZES)
    assert found.nats_per_token.value == pytest.approx((10 + 15) / 10 - (5 + 10) / 10)
    assert found.auc.value == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert gap(trained, trained, SIZES).auc.value == 0.5
    assert gap(trained, looked([9.0, 90.0]), SIZES).auc.value == 1
    assert gap(looked([9.0, 90.0]), trained, SIZES).auc.value == 0


def test_intervals_of_the_gap_hold_the_truth_as_often_as_they_say() -> None:
    """Of 300 experiments with 40 and 60 pictures from known normal distributions: 95 %, give or take 4 deviations."""
    generator, hits = torch.Generator().manual_seed(0), torch.zeros(2)
    true_auc = 0.5 * (1 + math.erf(1 / math.sqrt(2) / math.sqrt(2)))
    for _ in range(300):
        ours = torch.randn(40, 1, generator=generator, dtype=torch.float64)
        theirs = torch.randn(60, 1, generator=generator, dtype=torch.float64) + 1
        found = gap(Looked(ours, ours), Looked(theirs, theirs), Scales([1]))
        for place, (figure, truth) in enumerate(((found.nats_per_token, 1.0), (found.auc, true_auc))):
            assert figure.low is not None
            assert figure.high is not None
            hits[place] += figure.low <= truth <= figure.high
    assert (hits > 300 * 0.95 - 4 * math.sqrt(300 * 0.95 * 0.05)).all()


def test_accuracy_by_the_first_scales_and_by_all() -> None:
    """By hand: the first scale errs on the second picture."""
    scales = torch.tensor([[[-1.0, -9.0], [-2.0, -9.0]], [[-1.0, -5.0], [-2.0, -1.0]]])
    found = class_figures(Classified(scales.double(), ("ant", "bee")), [0, 1])
    assert (found.accuracy.value, found.through, found.most_frequent) == (1.0, (0.5, 1.0), 0.5)
    assert found.accuracy.low == pytest.approx(0.342, abs=1e-3)  # Wilson's for 2 of 2
    assert found.accuracy.high == 1


@pytest.mark.parametrize(("hits", "low", "high"), [(0, 0.0, 0.278), (5, 0.237, 0.763), (10, 0.722, 1.0)])
def test_shares_have_wilson_s_interval(hits: int, low: float, high: float) -> None:
    """Of ten; not a point at the ends."""
    found = share("x", torch.tensor([1.0] * hits + [0.0] * (10 - hits)))
    assert (found.value, found.low, found.high) == pytest.approx((hits / 10, low, high), abs=2e-3)


def test_pictures_are_classified_without_words_in_any_batches(pipe: Pipeline, labelled: Split) -> None:
    """Progress counts pairs and ends at their number."""
    wanted = asked(pipe, labelled, most=4)
    told: list[tuple[int, int]] = []
    found = classify(pipe, wanted, batch=12, progress=lambda done, total: told.append((done, total)))
    pictures = images.to_unit(labelled.batch(list(wanted.indices))[0])
    torch.testing.assert_close(found.scales, pipe.classify(pictures).scales, atol=1e-3, rtol=0)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (20, 20)
    assert found.names == pipe.classes


def test_parts_are_what_was_asked(pipe: Pipeline, labelled: Split, levels: Tensor) -> None:
    """Pictures in [0, 1] beside their labels."""
    parts = list(asked(pipe, labelled, most=5).parts(2))
    assert [part.labels for _, part in parts] == [(3, 0), (3, 2), (0,)]
    assert isinstance(parts[0][1], Asked)
    torch.testing.assert_close(parts[0][0], levels[[0, 4]] / 255)
