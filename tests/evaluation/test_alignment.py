"""Laws of judging prompts: which are asked, what a model is told of them, and what pictures that show them score."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextscale.data import Captions, DataSet
from nextscale.data.pictures import Split, from_memory
from nextscale.errors import InputError
from nextscale.evaluation.alignment import KINDS, WHOSE, Question, Real, gallery, judge, plan, questions, seen
from nextscale.evaluation.card import AlignmentCard, Model, NetworkUsed, ReferenceUsed, Setting
from nextscale.features import FeatureNetwork

STYLES = ("round", "square")
SUBJECTS, HELD_OUT, NEW = 40, 12, 4  # of which so many are held out in one style, and so many in both


def split(pairs: list[tuple[int, int]]) -> Split:
    """A picture a pair of subject and style: a colour of the subject's own, a little brighter in the second style."""
    colours = torch.rand(SUBJECTS, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    pictures = [
        ((colours[subject] * 245 + 4 * style).to(torch.uint8)).expand(3, 12, 12).clone() for subject, style in pairs
    ]
    names = [(f"thing {subject}", f"thing {subject}, {STYLES[style]}") for subject, style in pairs]
    return Split(
        classes=STYLES,
        labels=torch.tensor([style for _, style in pairs]),
        names=tuple(f"{subject} {style}" for subject, style in pairs),
        fingerprint=f"{len(pairs)}",
        fetch=from_memory(pictures),
        height=8,
        width=8,
        captions=Captions(names),
    )


@pytest.fixture(scope="module")
def real() -> Real:
    """Subjects 0 .. 3 are held out in both styles, 4 .. 11 in the second."""
    held_out = [(subject, style) for subject in range(HELD_OUT) for style in range(2) if subject < NEW or style]
    train = [(subject, style) for subject in range(SUBJECTS) for style in range(2) if (subject, style) not in held_out]
    return Real.of(DataSet(train=split(train), validation=split(held_out), classes=STYLES, unreadable=[]))


class Colours(FeatureNetwork):
    """Sees the mean colour of a picture."""

    name, fingerprint, dimensions, channels, side = "Colours", "0", 3, (), 8

    def embed(self, images_B3HW: Tensor) -> Tensor:
        return images_B3HW.mean(dim=(2, 3))


def test_each_kind_of_prompt_is_what_it_says(real: Real) -> None:
    """By what is trained on; at most so many of each, the same for the same seed."""
    asked = questions(real, each=10, seed=0)
    counts = {kind: [one for one in asked if one.kind == kind] for kind in KINDS}
    assert [len(some) for some in counts.values()] == [10, 8, 8]
    assert all(one.train for one in counts["seen"])
    known = {int(one.subject.split()[1]) for one in counts["unseen combination"]}
    new = {int(one.subject.split()[1]) for one in counts["unseen subject"]}
    assert (known, new) == (set(range(NEW, HELD_OUT)), set(range(NEW)))
    assert questions(real, each=10, seed=0) == asked
    assert questions(real, each=10, seed=1) != asked


def test_a_model_is_told_the_class_or_the_words(real: Real) -> None:
    """A class that it knows by its number; another in a caption that names it."""
    asked = questions(real, each=2, seed=0)
    told = plan(asked, real, ["square"], first_seed=5)
    assert told.seeds == tuple(range(5, 5 + len(asked)))
    assert told.prompts is not None
    for one, label, prompt in zip(asked, told.labels, told.prompts, strict=True):
        square = STYLES[one.label] == "square"
        assert (label, prompt) == ((0, one.subject) if square else (1, f"{one.subject}, round"))


def card(among: int) -> AlignmentCard:
    """With nothing in it that matters here but the number of subjects."""
    model = Model(name="m", fingerprint="", height=8, width=8, classes=1, codes=1, precision="fp32", device="cpu")
    reference = ReferenceUsed(name="r", fingerprint="", pictures=1, height=8, width=8, fewest=None, most=None)
    network = NetworkUsed(name="Colours", fingerprint="", side=8, resize="", dimensions=3)
    return AlignmentCard(
        model=model,
        setting=Setting(),
        first_seed=0,
        prompts={"seen": 10, "unseen subject": 300},
        among=among,
        draws=3,
        kept=1,
        reference=reference,
        network=network,
        versions={},
    )


def test_pictures_that_show_their_prompts_score_as_real_ones_do(real: Real) -> None:
    """Those of other prompts score as chance does, and the marks of a perfect model are the real pictures'."""
    network = Colours()
    asked = questions(real, each=40, seed=0)
    pictures = gallery(asked, real, seed=0, among=20)
    features_ND = seen(pictures, real, network, batch=7)
    own = {(one.train, one.index): row for one, row in zip(pictures, features_ND, strict=True)}
    painted = torch.stack([own[one.train, one.index] for one in asked])
    found = judge(asked, painted, pictures, features_ND, card(20))
    assert [(row.kind, row.whose) for row in found.rows] == [(kind, whose) for kind in KINDS for whose in WHOSE]
    for start in range(0, len(found.rows), 3):
        ours, real_ones, others = (row.figures for row in found.rows[start : start + 3])
        assert ours == real_ones
        assert ours["retrieval@1"].value > 0.5
        assert others["retrieval@1"].value < 0.3
        assert all(figures["retrieval@1"].value <= figures["retrieval@10"].value for figures in (ours, others))
    assert found.rows[0].figures["retrieval@1"].name == "retrieval@1-Colours"


def test_the_card_goes_to_json_and_back_and_warns_of_few_prompts() -> None:
    """In lines of a name and what is to be known."""
    made = card(100)
    assert AlignmentCard.from_json(made.to_json()) == made
    assert made.warnings()[0].startswith("10 seen: fewer than 200 prompts")
    assert any("the right subject among 100" in line for line in made.lines())
    assert not any("Fréchet" in line for line in [*made.lines(), *made.warnings()])


def test_pictures_without_captions_or_other_styles_are_refused(real: Real) -> None:
    """Nothing can be asked of them."""
    data = real.data
    bare = DataSet(
        train=split([(0, 0), (1, 0)]), validation=split([(2, 0)]), classes=STYLES, unreadable=[], held_out=data.held_out
    )
    with pytest.raises(InputError, match="one subject \\(first caption\\) in two classes or more, got none"):
        questions(Real.of(bare), each=5, seed=0)


def test_subjects_that_are_too_few_are_joined_by_others(real: Real) -> None:
    """Up to twice as many as are drawn, whoever is asked about."""
    one = Question(kind="seen", train=True, index=0, subject="thing 20", label=0, styled="")
    for among, count in ((5, 10), (15, 30), (40, 40)):
        assert len({other.subject for other in gallery([one], real, seed=0, among=among)}) == count
