"""Laws of the embedded emoji: what is in the pack, how it is split, and what a batch gives."""

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch

from nextscale import data
from nextscale.data import emoji
from nextscale.data.pictures import DataSet
from nextscale.errors import InputError
from nextscale.training.order import views

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def at_32() -> DataSet:
    """The embedded data at 32 px."""
    return data.load("emoji", height=32, width=32)


def test_pack_holds_what_it_promises(at_32: DataSet) -> None:
    """3,777 pictures of 1,906 subjects in two styles and nine classes, none of them rare in either split."""
    rows = emoji.entries()
    assert len(rows) == len(at_32.train) + len(at_32.validation) == 3777
    assert len({row.subject for row in rows}) == 1906
    assert Counter(row.style for row in rows) == {"fluent": 1871, "noto": 1906}
    assert len(at_32.classes) == 9
    assert "Component" not in at_32.classes
    for split in (at_32.train, at_32.validation):
        assert torch.bincount(split.labels, minlength=9).min() >= 20
    assert at_32.broken == ()


def test_pack_is_small_and_as_its_script_left_it() -> None:
    """At most 6 MB with licences, and the hashes that the script stated."""
    assert sum(path.stat().st_size for path in emoji.PACK.rglob("*") if path.is_file()) <= 6_000_000
    stated = json.loads((emoji.PACK / "provenance.json").read_text())["outputs"]
    for name, digest in stated.items():
        assert hashlib.sha256((emoji.PACK / name).read_bytes()).hexdigest() == digest


def test_licences_travel_with_the_pack() -> None:
    """The notice names both styles, and every licence that it names is there."""
    notice = (ROOT / "NOTICE").read_text()
    for needle in ("Microsoft", "Google", "MIT License", "Apache License, Version 2.0"):
        assert needle in notice
    for licence in (
        "fluent-emoji-MIT.txt",
        "noto-emoji-Apache-2.0.txt",
        "emoji-datasource-MIT.txt",
        "unicode-data.txt",
    ):
        assert licence in notice
        assert (emoji.PACK / "licences" / licence).stat().st_size > 500


def test_no_subject_is_on_both_sides() -> None:
    """Neither a subject in another style nor a variant of it by gender or direction."""
    sides = defaultdict(set)
    for row in emoji.entries():
        sides[row.subject].add(row.split)
        sides[row.family].add(row.split)
    assert all(len(found) == 1 for found in sides.values())
    held_out = sum(row.split == "validation" for row in emoji.entries())
    assert 0.08 < held_out / 3777 < 0.12


def test_no_skin_tones() -> None:
    """They would multiply the people by six."""
    tones = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
    assert all(tones.isdisjoint(row.subject.split("-")) for row in emoji.entries())


@pytest.mark.slow
def test_names_are_unique_and_say_the_style(at_32: DataSet) -> None:
    """A name points at one picture."""
    names = at_32.train.names + at_32.validation.names
    assert len(set(names)) == 3777
    assert "grinning face (fluent)" in names
    assert "grinning face (noto)" in names


def test_labels_are_the_groups_of_the_names(at_32: DataSet) -> None:
    """Label and name come from the same row."""
    group_of = {row.name: row.group for row in emoji.entries()}
    for split in (at_32.train, at_32.validation):
        assert [split.classes[label] for label in split.labels.tolist()] == [group_of[name] for name in split.names]


def test_batch_has_the_promised_shape_and_range(at_32: DataSet) -> None:
    """(n, 3, H, W) float32 in [-1, 1] on white, labels int64; an index tensor does as well as a list."""
    pictures, labels = at_32.train.batch([0, 5, 9])
    assert (pictures.shape, pictures.dtype) == ((3, 3, 32, 32), torch.float32)
    assert (labels.dtype, labels.tolist()) == (torch.int64, at_32.train.labels[[0, 5, 9]].tolist())
    assert pictures.min() >= -1
    assert pictures[:, :, 0, 0].eq(1).all()
    assert torch.equal(at_32.train.batch(torch.tensor([0, 5, 9]))[0], pictures)
    assert at_32.train.batch([])[0].shape == (0, 3, 32, 32)
    with pytest.raises(IndexError):
        at_32.train.batch([len(at_32.train)])


def test_picture_shows_what_its_name_says(at_32: DataSet) -> None:
    """The index and the pictures run in the same order."""
    colours = {"red heart (noto)": 0, "green heart (noto)": 1, "blue heart (noto)": 2}
    for name, channel in colours.items():
        split = at_32.train if name in at_32.train.names else at_32.validation
        picture = split.batch([split.names.index(name)])[0][0]
        assert picture[:, 12:20, 12:20].mean(dim=(1, 2)).argmax() == channel


def test_no_crop_shifts_by_more_than_a_sixteenth(at_32: DataSet) -> None:
    """Each is one of the windows of the picture with a white border, and they differ."""
    centred, shifted = at_32.train.batch(range(16))[0], at_32.train.batch(range(16), views=views(16, 0, 0))[0]
    assert not torch.equal(centred, shifted)
    for still, moved in zip(centred, shifted, strict=True):
        padded = torch.nn.functional.pad(still, (2, 2, 2, 2), value=1.0)
        windows = padded.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 32, 32)
        assert (windows == moved).flatten(1).all(dim=1).any()


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24), (20, 12)])
def test_any_rectangle_works(height: int, width: int) -> None:
    """Where the size is not square, the picture stands whole in the middle of white."""
    pictures, _ = data.load("emoji", height=height, width=width).validation.batch([0, 1])
    assert pictures.shape == (2, 3, height, width)
    assert pictures[:, :, 0, 0].eq(1).all()


def test_fingerprint_tells_splits_and_sizes_apart(at_32: DataSet) -> None:
    """It is the same on every load, and another for another size or split."""
    again, smaller = data.load("emoji", height=32, width=32), data.load("emoji", height=16, width=16)
    assert again.train.fingerprint == at_32.train.fingerprint
    marks = {part.fingerprint for loaded in (at_32, smaller) for part in (loaded.train, loaded.validation)}
    assert len(marks) == 4


def test_size_below_one_pixel_is_refused() -> None:
    """The message says what came."""
    with pytest.raises(InputError, match="got 0×32"):
        data.load("emoji", height=0, width=32)
