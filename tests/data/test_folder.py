"""Laws of picture folders: layouts, the held-out share, broken files, and batches that never depend on the reading."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale import data
from nextscale.data import reading
from nextscale.errors import InputError
from nextscale.training.order import views


def put(path: Path, *, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    """A small file of smooth noise; `size` is (width, height) like Pillow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR).save(path)
    return path


def two_classes(root: Path, *, count: int = 10) -> Path:
    """`count` pictures in each of the classes cat and dog."""
    for group in ("dog", "cat"):
        for index in range(count):
            put(root / group / f"{index:02}.png", seed=index + 100 * (group == "dog"), size=(40 + index, 30))
    return root


def load(root: Path, *, max_broken: float = 0.01) -> data.DataSet:
    """A folder at 16 px."""
    return data.load(root, height=16, width=16, max_broken=max_broken)


# ---- layouts ---------------------------------------------------------------------------------------------------------


def test_subfolders_are_the_classes(tmp_path: Path) -> None:
    """Sorted by name, whatever order the disk has; names are paths below the folder; labels follow the names."""
    loaded = load(two_classes(tmp_path))
    assert loaded.classes == ("cat", "dog")
    for split in (loaded.train, loaded.validation):
        assert [split.classes[label] for label in split.labels.tolist()] == [
            Path(name).parts[0] for name in split.names
        ]
    assert loaded.broken == ()


def test_flat_folder_is_one_class(tmp_path: Path) -> None:
    """Its name is the folder's."""
    for index in range(3):
        put(tmp_path / "flowers" / f"{index}.jpg", seed=index)
    assert load(tmp_path / "flowers").classes == ("flowers",)


def test_deeper_folders_belong_to_the_first(tmp_path: Path) -> None:
    """The class is the first folder on the way; suffixes count in capitals too."""
    put(tmp_path / "cat" / "big" / "old" / "a.PNG")
    put(tmp_path / "cat" / "b.jpeg")
    put(tmp_path / "dog" / "c.webp")
    loaded = load(tmp_path)
    assert loaded.classes == ("cat", "dog")
    assert sorted(loaded.train.names + loaded.validation.names) == ["cat/b.jpeg", "cat/big/old/a.PNG", "dog/c.webp"]


def test_hidden_and_other_files_are_ignored(tmp_path: Path) -> None:
    """Hidden files and folders, texts and empty folders neither count nor make classes."""
    two_classes(tmp_path, count=2)
    put(tmp_path / ".thumbnails" / "a.png")
    put(tmp_path / "cat" / ".hidden.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("a text")
    loaded = load(tmp_path)
    assert loaded.classes == ("cat", "dog")
    assert len(loaded.train) + len(loaded.validation) == 4


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    """A linked class counts; a link back up ends there."""
    put(tmp_path / "elsewhere" / "a.png")
    put(tmp_path / "set" / "dog" / "b.png")
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "set" / "dog" / "round").symlink_to(tmp_path / "set", target_is_directory=True)
    loaded = load(tmp_path / "set")
    assert sorted(loaded.train.names + loaded.validation.names) == ["cat/a.png", "dog/b.png"]


@pytest.mark.parametrize("held_out", ["val", "validation", "test"])
def test_ready_splits_are_used(tmp_path: Path, held_out: str) -> None:
    """`train` beside a held-out folder decides the split, and neither becomes a class."""
    two_classes(tmp_path / "train", count=3)
    put(tmp_path / held_out / "dog" / "x.png")
    loaded = load(tmp_path)
    assert loaded.classes == ("cat", "dog")
    assert len(loaded.train) == 6
    assert loaded.validation.names == (f"{held_out}/dog/x.png",)
    assert loaded.validation.labels.tolist() == [1]


def test_held_out_class_unknown_to_training_is_refused(tmp_path: Path) -> None:
    """It would have no label."""
    two_classes(tmp_path / "train", count=2)
    put(tmp_path / "val" / "bird" / "x.png")
    with pytest.raises(InputError, match="got 'bird'"):
        load(tmp_path)


# ---- the held-out share ----------------------------------------------------------------------------------------------


def test_one_in_twenty_is_held_out(tmp_path: Path) -> None:
    """Every picture is on exactly one side."""
    loaded = load(two_classes(tmp_path, count=30))
    assert (len(loaded.train), len(loaded.validation)) == (57, 3)
    assert set(loaded.train.names).isdisjoint(loaded.validation.names)


def test_split_depends_on_the_relative_names_alone(tmp_path: Path) -> None:
    """Neither the place of the folder nor the size of the pictures moves a file to the other side."""
    here, there = load(two_classes(tmp_path / "here")), two_classes(tmp_path / "there")
    assert data.load(there, height=8, width=24).validation.names == here.validation.names


def test_two_pictures_are_enough(tmp_path: Path) -> None:
    """One to train on and one held out."""
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    loaded = load(tmp_path)
    assert (len(loaded.train), len(loaded.validation)) == (1, 1)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_wrong_places_are_refused_in_one_clear_line(tmp_path: Path) -> None:
    """A missing folder, a file, an empty folder, one without pictures and one with a single picture."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a text")
    put(tmp_path / "single" / "cat" / "a.png")
    for name, message in (
        ("nowhere", "found nothing at"),
        ("texts/a.txt", "got the file"),
        ("empty", r"\.jpg, \.jpeg, \.png, \.webp.*found none"),
        ("texts", r"\.jpg, \.jpeg, \.png, \.webp.*found none"),
        ("single", "at least 2 pictures"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_loose_pictures_beside_class_folders_are_refused(tmp_path: Path) -> None:
    """Their class would be a guess."""
    two_classes(tmp_path, count=2)
    put(tmp_path / "stray.png")
    with pytest.raises(InputError, match=r"got both: stray\.png beside cat/"):
        load(tmp_path)


# ---- broken files ----------------------------------------------------------------------------------------------------


def cut_short(path: Path) -> None:
    """Keep the header and half of the rest."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_broken_pictures_are_left_out_and_named(tmp_path: Path) -> None:
    """Cut short or no picture at all: the others are used, and the names are kept."""
    two_classes(tmp_path)
    cut_short(tmp_path / "cat" / "03.png")
    (tmp_path / "dog" / "05.png").write_text("a text")
    loaded = load(tmp_path, max_broken=0.2)
    assert loaded.broken == ("cat/03.png", "dog/05.png")
    assert len(loaded.train) + len(loaded.validation) == 18
    assert not set(loaded.broken) & set(loaded.train.names + loaded.validation.names)


def test_too_many_broken_pictures_are_refused(tmp_path: Path) -> None:
    """The message gives the share and the first names."""
    two_classes(tmp_path)
    for index in range(4):
        cut_short(tmp_path / "cat" / f"{index:02}.png")
    with pytest.raises(
        InputError, match=r"at most 1\.0%.*4 of 20 \(20\.0%\): cat/00\.png, cat/01\.png, cat/02\.png, …"
    ):
        load(tmp_path)


def test_a_broken_held_out_picture_leaves_no_side_empty(tmp_path: Path) -> None:
    """Another picture takes its place."""
    root = two_classes(tmp_path, count=5)
    cut_short(root / load(root).validation.names[0])
    loaded = load(root, max_broken=0.2)
    assert (len(loaded.train), len(loaded.validation)) == (8, 1)


def test_a_picture_that_breaks_later_is_replaced_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder too large for memory the next readable picture stands in, with its own label, every time the same."""
    monkeypatch.setattr(reading, "MEMORY", 0)
    loaded = load(two_classes(tmp_path))
    names = loaded.train.names
    last_cat = max(index for index, name in enumerate(names) if name.startswith("cat"))
    cut_short(tmp_path / names[last_cat])
    for _ in range(2):
        pictures, labels = loaded.train.batch([last_cat, 0])
        assert labels.tolist() == [1, 0]
        assert torch.equal(pictures[0], loaded.train.batch([last_cat + 1])[0][0])
    assert loaded.broken == (names[last_cat],)


def test_a_split_without_a_readable_picture_left_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for a stand-in ends."""
    monkeypatch.setattr(reading, "MEMORY", 0)
    loaded = load(two_classes(tmp_path))
    cut_short(tmp_path / loaded.validation.names[0])
    with pytest.raises(InputError, match="expected a readable picture among 1"):
        loaded.validation.batch([0])


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_memory_and_disk_give_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decoded up front and what is decoded on demand are the same pictures, crops, labels and fingerprints."""
    root = two_classes(tmp_path)
    in_memory = load(root)
    monkeypatch.setattr(reading, "MEMORY", 0)
    on_disk = load(root)
    assert on_disk.train.fingerprint == in_memory.train.fingerprint
    for seed in (None, 0, 1):
        batches = [
            loaded.train.batch([3, 1, 12], views=None if seed is None else views(3, 0, seed, flip=True))
            for loaded in (in_memory, on_disk)
        ]
        assert torch.equal(batches[0][0], batches[1][0])
        assert torch.equal(batches[0][1], batches[1][1])


def test_batches_do_not_depend_on_the_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One processor or nine give the same pictures in the same order."""
    root, found = two_classes(tmp_path), []
    for processors in (1, 9):
        monkeypatch.setattr(os, "cpu_count", lambda processors=processors: processors)
        loaded = load(root)
        found.append(loaded.train.batch(range(len(loaded.train)), views=views(len(loaded.train), 0, 3))[0])
    assert torch.equal(*found)


def test_random_crops_stay_inside_the_margin(tmp_path: Path) -> None:
    """Seeds differ, the shape and the range do not, also for a rectangle."""
    loaded = data.load(two_classes(tmp_path), height=16, width=24)
    one, other = (loaded.train.batch([0, 1], views=views(2, 0, seed))[0] for seed in (0, 1))
    assert one.shape == (2, 3, 16, 24)
    assert not torch.equal(one, other)
    assert -1 <= one.min() <= one.max() <= 1


def test_only_what_is_asked_for_is_mirrored(tmp_path: Path) -> None:
    """A picture dark on the left is dark on the left in every crop, unless the view says otherwise."""
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    for name in ("a.png", "b.png"):
        Image.fromarray(ramp).save(tmp_path / name)
    loaded = load(tmp_path)
    for view in views(20, 0, 0, flip=True):
        picture = loaded.train.batch([0], views=view[None])[0][0]
        assert (picture[:, :, 0].mean() > picture[:, :, -1].mean()) == (view[2] == 0.5)


def test_fingerprint_follows_the_data(tmp_path: Path) -> None:
    """The same on every load and in every place; another for another size, split, content, or number of pictures."""
    root = two_classes(tmp_path / "here")
    first = load(root)
    assert load(two_classes(tmp_path / "there")).train.fingerprint == first.train.fingerprint
    marks = {first.train.fingerprint, first.validation.fingerprint}
    marks.add(data.load(root, height=16, width=24).train.fingerprint)
    put(root / first.train.names[0], seed=77)
    marks.add(load(root).train.fingerprint)
    put(root / "cat" / "new.png")
    marks.add(load(root).train.fingerprint)
    assert len(marks) == 5


def test_progress_is_told(tmp_path: Path) -> None:
    """Headers first, then pictures, each up to the total."""
    calls: list[tuple[int, int]] = []
    data.load(
        two_classes(tmp_path, count=3), height=16, width=16, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(done, 6) for done in range(1, 7)] * 2
