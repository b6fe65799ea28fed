"""Laws of the protocol card: nothing is lost on the way to JSON and back, and known mistakes are named."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from nextscale.errors import InputError
from nextscale.evaluation import card as cards
from nextscale.evaluation.card import Card, Model, NetworkUsed, ReferenceUsed, Rejection, Setting, figure_name

CARD = Card(
    model=Model(
        name="runs/demo",
        fingerprint="0123456789abcdef",
        height=64,
        width=64,
        classes=10,
        codes=4096,
        precision="bf16",
        device="cpu",
    ),
    setting=Setting(),
    per_class=5000,
    first_seed=7,
    kept=10_000,
    reference=ReferenceUsed(
        name="emoji, train",
        fingerprint="fedcba9876543210",
        pictures=50_000,
        height=64,
        width=64,
        fewest=5000,
        most=5000,
    ),
    network=NetworkUsed(name="Glance", fingerprint="0011223344556677", side=224, resize="bicubic", dimensions=1280),
    rejection=None,
    versions={"torch": "2.13.0"},
)

REJECTION = Rejection(
    rate=0.5,
    candidates=10_000,
    classifier="nearest class mean in Owl, emoji",
    network="Owl",
    fingerprint="8899aabbccddeeff",
    accuracy=0.75,
)

OWN = dataclasses.replace(REJECTION, network="Glance")


def changed(**changes: Any) -> Card:
    """`changed(model={"width": 96})`: fields of the card, or of what is in it."""
    return dataclasses.replace(
        CARD,
        **{
            name: dataclasses.replace(getattr(CARD, name), **value) if isinstance(value, dict) else value
            for name, value in changes.items()
        },
    )


def test_a_card_comes_back_from_json_as_it_was() -> None:
    """Through text, and with what stored statistics do not tell."""
    unknown = changed(reference={"pictures": None, "height": None, "width": None, "fewest": None, "most": None})
    for card in (CARD, unknown, changed(rejection=REJECTION)):
        assert Card.from_json(json.loads(json.dumps(card.to_json()))) == card
    assert CARD.to_json()["pictures"] == 50_000


def test_a_setting_of_each_scale_comes_back_from_json() -> None:
    """Lists become tuples again; cards of earlier versions, without the newest values, are read."""
    card = changed(setting=Setting((0, 1.5), (9, 0), 0.5, (1.0, 0.5), (0, 0.25), 1))
    values = json.loads(json.dumps(card.to_json()))
    assert Card.from_json(values) == card
    told = "guidance 0,1.5, top-k 9,0, top-p 0.5, temperature 1,0.5, step guidance 0,0.25, reach 1"
    assert str(card.setting) == told
    for name in ("step_guidance", "reach"):
        del values["setting"][name]
    assert Card.from_json(values).setting == Setting((0, 1.5), (9, 0), 0.5, (1.0, 0.5))


def test_what_is_missing_is_named() -> None:
    """The field, and of what."""
    values = CARD.to_json()
    del values["model"]["precision"]
    with pytest.raises(InputError, match="expected precision in Model, got none"):
        Card.from_json(values)
    with pytest.raises(InputError, match="expected .*network.* in Card"):
        Card.from_json({})


def test_a_sound_protocol_is_not_warned_of() -> None:
    """50,000 pictures, even labels, one size, guidance."""
    assert CARD.warnings() == []


@pytest.mark.parametrize(
    ("sound", "mistake", "told"),
    [
        ({}, {"per_class": 4999}, "FD-Glance is made from 49,990 pictures, fewer than 50,000"),
        ({"per_class": 5001}, {"per_class": 128}, "the model's 1,280 pictures do not fill the 1,280 dimensions"),
        (
            {"reference": {"pictures": 1281}},
            {"reference": {"pictures": 1280}},
            "the reference's 1,280 pictures do not fill",
        ),
        ({"reference": {"most": 7500}}, {"reference": {"most": 7501}}, "5,000 to 7,501 pictures of a class"),
        ({"reference": {"width": None}}, {"reference": {"width": 96}}, "the reference's pictures are 64x96"),
        ({"setting": Setting(0, 900, 0)}, {"setting": Setting(0, 0, 0)}, "guidance is 0 and truncation is off"),
        ({"setting": Setting(0, 4095, 1)}, {"setting": Setting(0, 4096, 1)}, "guidance is 0 and truncation is off"),
        ({"setting": Setting(0.1, 0, 0)}, {"setting": Setting(0, 0, 1)}, "guidance is 0 and truncation is off"),
        (
            {"rejection": REJECTION},
            {"rejection": dataclasses.replace(REJECTION, network="Glance")},
            "figures flatter them",
        ),
        ({}, {"model": {"width": 96}}, "pictures of 64x96 are squeezed to 224x224"),
    ],
)
def test_a_mistake_is_named_from_its_threshold_on(sound: dict[str, Any], mistake: dict[str, Any], told: str) -> None:
    """And not one step before."""
    assert not any(told[-30:] in line for line in changed(**sound).warnings())
    assert any(told in line for line in changed(**mistake).warnings())


def test_names_of_inception_are_inception_s_alone() -> None:
    """FID and IS stand for nothing else; rejection sampling is marked."""
    figures = ("FD", "sFD", "KD", "score", "precision")
    assert [figure_name(figure, "EffNetLite0") for figure in figures] == [f"{name}-EffNetLite0" for name in figures]
    inception = [figure_name(figure, cards.INCEPTION) for figure in figures]
    assert inception == ["FID", "sFID", "KID", "IS", "precision"]
    assert figure_name("FD", "EffNetLite0", rejected=True) == "FD-EffNetLite0-re"
    assert figure_name("FD", cards.INCEPTION, rejected=True) == "FID-re"


def test_the_block_tells_everything() -> None:
    """Every value of the JSON that is text, and the numbers by which pictures are made again."""
    block = "\n".join(CARD.lines())
    for part in (
        "0123456789abcdef",
        "fedcba9876543210",
        "0011223344556677",
        "runs/demo",
        "emoji, train",
        "torch 2.13.0",
    ):
        assert part in block
    for part in (
        "5,000 of each of 10 classes",
        "guidance 1.5, top-k 900, top-p 0.96, temperature 1",
        "seeds 7 .. 50006",
    ):
        assert part in block


def test_rejection_sampling_is_told_of() -> None:
    """The rate, the classifier, and the seeds of all that were painted."""
    card = changed(rejection=REJECTION)
    assert (card.pictures, card.painted) == (50_000, 100_000)
    block = "\n".join(card.lines())
    assert "0.5: the surest of 10,000 of each class, by nearest class mean in Owl, emoji (8899aabbccddeeff)" in block
    assert "right in 75.0%" in block
    assert "seeds 7 .. 100006" in block


def test_repetitions_are_told_of() -> None:
    """How many sets there were, and the seeds of all of them; a set's pictures are what warnings count."""
    card = changed(repeats=3, rejection=REJECTION)
    assert card.pictures == 50_000
    assert Card.from_json(json.loads(json.dumps(card.to_json()))) == card
    block = "\n".join(card.lines())
    assert "in each of 3 sets" in block
    assert "seeds 7 .. 300006" in block
    assert "± standard deviation over sets" in block
    assert "bootstrapped" not in block
    assert not any("fewer than" in line for line in card.warnings())
