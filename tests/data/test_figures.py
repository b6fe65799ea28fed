"""Laws of drawn figures: their numbers decide them, their captions are true, and held-out pairs are nowhere else."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from nextscale import data
from nextscale.data import figures
from nextscale.data.figures import COLOURS, GROUNDS, KINDS, Figure
from nextscale.errors import InputError

pytest.importorskip("dicebear")
pytest.importorskip("resvg_py")


@pytest.fixture(scope="module")
def loaded() -> data.DataSet:
    return data.load("figures", height=16, width=16, captions="own")


def test_a_figure_is_a_function_of_its_number(loaded: data.DataSet) -> None:
    """Whatever was drawn before it, and whoever asks; its name tells the number."""
    again = data.load("figures", height=16, width=16)
    again.train.batch([7])
    assert torch.equal(loaded.train.batch([3, 7, 3])[0], again.train.batch([3, 7, 3])[0])
    assert loaded.train.fingerprint == again.train.fingerprint
    train, _ = figures.numbers()
    assert loaded.train.names[3] == train[3].name
    assert figures.of_name(train[3].name) == train[3]
    with pytest.raises(InputError, match="expected the name of a figure"):
        figures.of_name("seen/face/nobody")


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_colours_of_captions_are_those_of_pictures(kind: figures.Kind) -> None:
    """The background at the corner, the figure's colour somewhere, exactly."""
    figure = next(each for each in map(Figure, range(1000)) if each.kind is kind)
    picture = figures.draw(figure, side=72)
    colours = {tuple(pixel) for pixel in picture.flatten(1).T.tolist()}
    assert tuple(picture[:, 0, 0].tolist()) == _rgb(GROUNDS[figure.values["background"]])
    assert _rgb(COLOURS[figure.values["colour"]]) in colours
    assert all(value.removeprefix("a ") in figure.captions()[0] for value in figure.values.values())


def _rgb(code: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(code.removeprefix("#")))


def test_the_style_knows_every_value() -> None:
    """Each is an option of its own, and makes another picture than the others."""
    for kind in KINDS:
        first = next(each for each in map(Figure, range(1000)) if each.kind is kind)
        for attribute in kind.attributes:
            drawn = set()
            for value in attribute.values:
                figure = Figure(first.number)
                figure.values[attribute.name] = value
                drawn.add(figure.svg())
            assert len(drawn) == len(attribute.values), attribute.name


def test_unseen_pairs_are_held_out_and_nothing_else_of_them(loaded: data.DataSet) -> None:
    """Each colour and each part is trained on; no held-out figure has all attributes of one that is."""
    train, held_out = figures.numbers()
    assert (
        (len(train), len(held_out)) == (figures.TRAIN, figures.HELD_OUT) == (len(loaded.train), len(loaded.validation))
    )
    assert [figure.is_unseen for figure in held_out] == [False] * 600 + [True] * 600
    assert not any(figure.is_unseen for figure in train)
    assert {figure.key for figure in train}.isdisjoint(figure.key for figure in held_out)
    for kind in KINDS:
        for attribute in kind.attributes:
            known = {figure.values[attribute.name] for figure in train if figure.kind is kind}
            assert known == set(attribute.values)
            assert {figure.values[attribute.name] for figure in held_out if figure.kind is kind} <= known


def test_captions_tell_all_or_some_of_it(loaded: data.DataSet) -> None:
    """In a sentence, in short, in words; without a word there are none."""
    assert loaded.train.captions is not None
    assert loaded.train.captions[0] == (
        "a pink creature with horns, three eyes and a frown on a dark blue background",
        "a pink creature",
        "creature, pink, horns, three eyes, a frown, dark blue",
    )
    assert all(len(those) == 3 for those in loaded.train.captions)
    assert not any("a orange" in caption for those in loaded.train.captions for caption in those)
    assert data.load("figures", height=16, width=16).train.captions is None


def test_kinds_are_classes_or_there_are_none(loaded: data.DataSet) -> None:
    """As with other data."""
    assert loaded.classes == ("creature", "plant", "face")
    assert loaded.train.labels.bincount().min() > 2500
    assert data.load("figures", height=16, width=24, labels="none").classes == ("figure",)
    with pytest.raises(InputError, match="labels of figures"):
        data.load("figures", height=16, width=16, labels="labels.csv")


def test_a_folder_of_that_name_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody trains on other pictures than before."""
    (tmp_path / "figures").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"the folder is \./figures"):
        data.load("figures", height=16, width=16)


def test_missing_packages_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence with the way out."""

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(figures, "version", version)
    with pytest.raises(
        InputError, match=r"found no package dicebear-core; pip install 'nextscale\[figures\]' brings it"
    ):
        data.load("figures", height=16, width=16)
