"""Laws of attribute accuracy: a reader learns to read figures; what it reads is counted by pair and attribute."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from nextscale import data
from nextscale.data.figures import KINDS, Figure
from nextscale.errors import InputError
from nextscale.evaluation import attributes
from nextscale.evaluation.attributes import Reader, accuracy

pytest.importorskip("dicebear")
pytest.importorskip("resvg_py")


@pytest.fixture(scope="module")
def held_out() -> data.Pictures:
    return data.load("figures", height=32, width=32).validation


def told(figure: Figure) -> dict[str, str]:
    """What a reader without a fault reads."""
    return {"kind": figure.kind.name, **figure.values}


@pytest.mark.slow
def test_a_reader_learns_the_same_again(held_out: data.Pictures) -> None:
    """Kinds are read after a few steps; one seed makes one reader, and leaves the caller's random numbers alone."""
    before = torch.random.get_rng_state()
    first, again = (attributes.learn(height=32, width=32, steps=12, count=60, seed=1) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    images, labels = held_out.batch(range(40))
    read = first.read(images)
    assert read == again.read(images)
    right = sum(each["kind"] == KINDS[label].name for each, label in zip(read, labels.tolist(), strict=True))
    assert right > 30
    assert all(each.keys() == told(figure).keys() for each, figure in zip(read, _figures(read), strict=True))


def _figures(read: list[dict[str, str]]) -> list[Figure]:
    """A figure of each kind that was read."""
    return [next(each for each in map(Figure, range(100)) if each.kind.name == one["kind"]) for one in read]


def test_accuracy_counts_what_is_right() -> None:
    """Attribute by attribute, and all together; of a figure of another kind nothing is right."""
    wanted = [Figure(number) for number in range(6)]
    read = [told(figure) for figure in wanted]
    assert {share.share for share in accuracy(read, wanted).values()} == {1.0}
    read[0]["mouth"] = "another"
    read[1] = told(next(each for each in map(Figure, range(100)) if each.kind is not wanted[1].kind))
    found = accuracy(read, wanted)
    assert {name: round(6 * share.share) for name, share in found.items()} == {
        "kind": 5,
        "colour": 5,
        "part": 5,
        "eyes": 5,
        "mouth": 4,
        "background": 5,
        "all": 4,
    }
    assert found["all"].interval.low < found["all"].share < found["all"].interval.high
    with pytest.raises(InputError, match="expected a reading for each figure, got 0 for 1"):
        accuracy([], wanted[:1])


def test_generated_figures_are_judged_beside_real_ones(held_out: data.Pictures) -> None:
    """Of seen and of unseen pairs; a painter of the right figures is as good as they are, one of grey is not."""
    reader = Reader()
    reader(torch.zeros(1, 3, 32, 32))
    asked: list[str] = []

    def paint(prompts, seeds) -> Tensor:
        asked.extend(prompts)
        return held_out.batch(seeds)[0]

    for unseen, judged in attributes.judge(reader.eval(), held_out, paint=paint, count=5, batch=3).items():
        assert judged.generated == judged.real
        assert judged.others is not None
        assert judged.real["all"].count == 5
        assert judged.real["all"].share <= judged.real["kind"].share
        names = [name for name in held_out.names if name.startswith("unseen") == unseen][:5]
        assert asked[5 * unseen :][:5] == [attributes.of_name(name).captions()[0] for name in names]
    assert attributes.judge(reader, held_out, count=2)[True].generated is None
    other = dataclasses.replace(held_out, names=("somebody", *held_out.names[1:]))
    with pytest.raises(InputError, match="expected the name of a figure"):
        attributes.judge(reader, other, count=2)
