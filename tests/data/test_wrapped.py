"""Laws of the two ways to PyTorch's data sets: ours are some, for other people's loaders, and others become ours."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from nextscale import data
from nextscale.data import reading
from nextscale.errors import InputError

COUNT = 40
NOISE = np.random.default_rng(0).integers(0, 256, (COUNT, 20, 24, 3), dtype=np.uint8)


class Listed(Dataset[Any]):
    """The items of a list; one that is an exception is raised."""

    def __init__(self, items: Sequence[Any], classes: Any = None) -> None:
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if isinstance(item := self.items[index], Exception):
            raise item
        return item


def folder(root: Path) -> Path:
    """The noise in files, of three classes."""
    for number, picture in enumerate(NOISE):
        path = root / "abc"[number % 3] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return root


def wrapped(items: Sequence[Any], **how: Any) -> data.DataSet:
    """At 8 x 8."""
    return data.wrap(Listed(items), height=8, width=8, **how)


# ---- ours as PyTorch's -----------------------------------------------------------------------------------------------


@pytest.fixture(params=[0, reading.MEMORY], ids=["on demand", "in memory"])
def split(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> data.Pictures:
    """Of a folder."""
    monkeypatch.setattr(reading, "MEMORY", request.param)
    return data.load(folder(tmp_path / "d"), height=8, width=10).train


def test_a_split_is_a_map_style_data_set(split: Any) -> None:
    """An item is a picture as `batch` gives it, and its class; the end is an `IndexError`, so that it can be walked."""
    assert isinstance(split, Dataset)
    images, labels = split.batch(range(len(split)))
    for number, (image, label) in enumerate(split):
        assert torch.equal(image, images[number])
        assert label == labels[number] == split[number - len(split)][1]
    assert number == len(split) - 1 == COUNT - 3


def test_a_pickled_split_gives_the_same(split: Any) -> None:
    """With its names, captions and fingerprint, and in less than ten bytes a pixel."""
    packed = pickle.dumps(split)
    again = pickle.loads(packed)
    assert torch.equal(again.batch(range(5))[0], split.batch(range(5))[0])
    assert (again.names, again.fingerprint, len(again)) == (split.names, split.fingerprint, len(split))
    assert len(packed) < 30 * COUNT * 20 * 24


@pytest.mark.slow
def test_an_embedded_split_can_be_pickled() -> None:
    """With captions."""
    split = data.load("emoji", height=8, width=8, captions="own").validation
    again = pickle.loads(pickle.dumps(split))
    assert torch.equal(again[3][0], split[3][0])
    assert again.captions[3] == split.captions[3]


@pytest.mark.slow
def test_a_loader_of_two_spawned_processes_reads_it(split: Any) -> None:
    """Nothing is inherited: everything goes there by pickle."""
    context = multiprocessing.get_context("spawn")
    loader = DataLoader(split, batch_size=5, num_workers=2, multiprocessing_context=context)
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(images, split.batch(range(len(split)))[0])
    assert torch.equal(labels, split.labels)


def test_what_turns_out_unreadable_in_another_process_is_a_warning_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody sees what the data set keeps of it."""
    monkeypatch.setattr(reading, "MEMORY", 0)
    told: list[str] = []
    loaded = data.load(folder(tmp_path / "d"), height=8, width=8, broken=lambda name, why: told.append(name))
    again = pickle.loads(pickle.dumps(loaded.train))
    (tmp_path / "d" / loaded.train.names[0]).unlink()
    with pytest.warns(UserWarning, match=r"a/00\.png cannot be read \(No such file or directory\): another picture"):
        again[0]
    assert not told
    assert torch.equal(loaded.train[0][0], loaded.train[1][0])
    assert told == ["a/00.png"] == list(loaded.broken)


def test_a_data_set_is_told_in_one_short_line(split: Any, tmp_path: Path) -> None:
    """However many pictures it has; it was a megabyte."""
    loaded = data.load(tmp_path / "d", height=8, width=10)
    assert repr(loaded) == "DataSet(38 pictures to train on, 2 held out, 3 classes)"
    assert repr(split) == "Split(38 pictures of 8×10, 3 classes)"


# ---- PyTorch's as ours -----------------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "Pillow": Image.fromarray,
    "array": lambda picture: picture,
    "channels first": lambda picture: picture.transpose(2, 0, 1),
    "floats": lambda picture: picture.astype(np.float64) / 255,
    "tensor": lambda picture: torch.from_numpy(picture).permute(2, 0, 1),
    "tensor of floats": lambda picture: torch.from_numpy(picture).permute(2, 0, 1) / 255,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("memory", [0, reading.MEMORY])
def test_pictures_in_any_form_are_those_of_the_same_files(
    form: Callable[[np.ndarray], Any], memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last level, whether they are kept or asked for again."""
    monkeypatch.setattr(reading, "MEMORY", memory)
    pictures = NOISE[:6]
    for side, those in (("train", pictures[:4]), ("val", pictures[4:])):
        for number, picture in enumerate(those):
            path = tmp_path / side / "a" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    files = data.load(tmp_path, height=8, width=8)
    items = [(form(picture), 0) for picture in pictures]
    loaded = wrapped(items[:4], validation=Listed(items[4:]))
    for ours, theirs in ((loaded.train, files.train), (loaded.validation, files.validation)):
        assert torch.equal(ours.batch(range(len(ours)))[0], theirs.batch(range(len(theirs)))[0])


@pytest.mark.parametrize("form", ["L", "LA", "P", "CMYK", "I;16", "(H, W)", "(1, H, W)", "(H, W, 1)"])
def test_grey_and_other_pictures_are_rgb(form: str) -> None:
    """As those of files are."""
    grey = NOISE[0][:, :, 0]
    arrays = {"(H, W)": grey, "(1, H, W)": grey[None], "(H, W, 1)": grey[:, :, None]}
    picture = arrays.get(form)
    if picture is None:
        picture = (
            Image.fromarray(grey.astype(np.uint16) * 257) if form == "I;16" else Image.fromarray(grey).convert(form)
        )
    image = wrapped([(picture, 0)] * 2).train[0][0]
    expected = wrapped([(Image.fromarray(grey), 0)] * 2).train[0][0]
    torch.testing.assert_close(image, expected, atol=0.05 if form in ("P", "CMYK") else 0, rtol=0)


def test_classes_are_numbers_names_or_what_the_data_set_calls_them() -> None:
    """Numbers are sorted as such; names that are given, or that the data set has, are told by their places."""
    numbers = [(picture, (10, 9)[place % 2]) for place, picture in enumerate(NOISE)]
    assert wrapped(numbers).classes == ("9", "10")
    assert set(wrapped(numbers).train.labels[:2].tolist()) == {0, 1}
    named = wrapped([(picture, {"label": "bee"}) for picture in NOISE[:5]] + [(NOISE[5], {"class": "ant"})])
    assert named.classes == ("ant", "bee")
    places = [(picture, torch.tensor(place % 2)) for place, picture in enumerate(NOISE)]
    own = data.wrap(Listed(places, classes=["zebra", "ant"]), height=8, width=8)
    assert own.classes == ("zebra", "ant")
    assert "the names of classes are those of Listed.classes" in own.told
    assert wrapped(places, classes=["x", "y", "z"]).classes == ("x", "y", "z")
    assert wrapped([(picture, None) for picture in NOISE]).classes == ("Listed",)


def test_captions_are_texts_or_stand_in_a_mapping() -> None:
    """With or without classes."""
    items = [(NOISE[0], "a cat"), (NOISE[1], ["a dog", "a  hound"]), (NOISE[2], {"caption": "a cow"}), (NOISE[3], {})]
    loaded = wrapped(items, validation=Listed(items[:1]))
    assert [*loaded.train.captions] == [("a cat",), ("a dog", "a hound"), ("a cow",), ()]
    assert "5 captions of 4 of 5 pictures" in loaded.told
    both = wrapped([(picture, {"label": 1, "text": "x"}) for picture in NOISE], classes=["a", "b"])
    assert (both.train[0][1], both.train.captions[0]) == (1, ("x",))


def test_held_out_items_stay_the_same() -> None:
    """By the hash of the number: a longer data set moves few; another data set is held out as it is."""
    items = [(picture, 0) for picture in NOISE]
    loaded = wrapped(items)
    assert loaded.told[0] == "held out: 5 % by hash of the number"
    assert set(wrapped(items).validation.names) == set(loaded.validation.names)
    two = wrapped(items, validation=Listed(items[:3]))
    assert (len(two.train), two.validation.names) == (COUNT, ("validation/0", "validation/1", "validation/2"))
    assert two.told[0] == "held out: the 3 items of Listed"


def test_fingerprints_change_with_a_pixel_in_the_middle() -> None:
    """Of a picture in memory all is marked, not its ends alone."""
    large = np.zeros((4, 90, 90, 3), dtype=np.uint8)
    before = [wrapped([(picture, 0) for picture in large], validation=Listed([(NOISE[0], 0)])) for _ in range(2)]
    large[2, 45, 45] = 1
    after = wrapped([(picture, 0) for picture in large], validation=Listed([(NOISE[0], 0)]))
    assert before[0].train.fingerprint == before[1].train.fingerprint != after.train.fingerprint


def test_an_item_that_fails_is_an_unreadable_picture() -> None:
    """Left out and named with the error; too many are refused."""
    items: list[Any] = [(picture, place % 2) for place, picture in enumerate(NOISE)]
    items[7] = KeyError("gone")
    told: list[tuple[str, str]] = []
    loaded = wrapped(items, max_broken=0.1, broken=lambda name, why: told.append((name, why)))
    assert (loaded.broken, told) == (("7",), [("7", "KeyError: 'gone'")])
    assert len(loaded.train) + len(loaded.validation) == COUNT - 1
    with pytest.raises(InputError, match=r"at most 1\.0% unreadable pictures in Listed, got 1 of 40 .*KeyError"):
        wrapped(items)


class Endless(IterableDataset[Any]):
    """One without length."""

    def __iter__(self) -> Any:
        return iter(())


class Moody(Listed):
    """Other pictures each time."""

    def __getitem__(self, index: int) -> Any:
        self.times = getattr(self, "times", 0) + 1
        return np.full((8, 8, 3), self.times, dtype=np.uint8), 0


NORMAL = torch.linspace(-1, 1, 192).view(3, 8, 8)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Endless(), r"expected a map-style data set, with len\(\) and items by number, got Endless"),
        (7, "map-style data set, .* got int"),
        (Listed([]), "expected at least 2 pictures in Listed, .* got 0"),
        (Listed([(NOISE[0], 0, 1)] * 2), "item 0 of Listed: expected a pair of a picture and its class"),
        ("ab", "item 0 of str: expected a pair"),
        (Listed([("cat.png", 0)] * 2), "item 0 of Listed: expected a Pillow image, a tensor or an array, got str"),
        (
            Listed([(NOISE[:2], 0)] * 2),
            r"item 0 of Listed: expected \(3, H, W\) or \(1, H, W\), .* got \(2, 3, 20, 24\)",
        ),
        (Listed([(NOISE[0].astype(np.int64), 0)] * 2), "uint8 or floats in .*, got .* int64"),
        (Listed([(NORMAL, 0)] * 2), r"expected floats in \[0, 1\], got -1 .. 1; \(x \+ 1\) / 2 brings"),
        (Listed([(NOISE[0], 0.5)] * 2), "item 0 of Listed: expected a class as a whole number or a name, got 0.5"),
        (Listed([(NOISE[0], 1), (NOISE[1], None)]), "item 1 of Listed: expected one of 1 classes, got none"),
        (Listed([(NOISE[0], 5)] * 2, classes=["a"]), "item 0 of Listed: expected one of 1 classes, got 5"),
        (Moody([None] * 3), "item 0 of Moody: expected the same picture each time, got two: leave out transforms"),
    ],
)
def test_what_cannot_be_taken_is_one_line(dataset: Any, message: str) -> None:
    """That says which item it is."""
    with pytest.raises(InputError, match=message) as caught:
        data.wrap(dataset, height=8, width=8)
    assert "\n" not in str(caught.value)


def test_a_data_set_is_never_read_by_two_threads_at_once() -> None:
    """Few are made for that, and pictures are read by several."""

    class Lone(Listed):
        inside = 0

        def __getitem__(self, index: int) -> Any:
            type(self).inside += 1
            assert self.inside == 1
            item = super().__getitem__(index)
            type(self).inside -= 1
            return item

    loaded = data.wrap(Lone([(picture, 0) for picture in NOISE] * 20), height=8, width=8, max_broken=0)
    assert not loaded.broken
