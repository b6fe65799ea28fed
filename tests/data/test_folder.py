"""Laws of picture folders: layouts, the held-out share, broken files, and batches that never depend on the reading."""

import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale import data
from nextscale.data import folder, reading
from nextscale.data.folder import survey
from nextscale.data.listing import Listing, hold_out
from nextscale.data.walk import LeftOut
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


# ---- splits by any usual name ----------------------------------------------------------------------------------------


def empty(root: Path, *names: str) -> Path:
    """Files without content: enough to be listed."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def sides(listing: Listing) -> tuple[list[str], list[str]]:
    """Names to train on, and those held out."""
    names: tuple[list[str], list[str]] = [], []
    for item in listing.items:
        names[item.held_out].append(item.name)
    return names


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train", "valid"),
        ("Training", "VALIDATION"),
        ("trainset", "dev"),
        ("train2017", "val2017"),
        ("train_images", "val_images"),
        ("training-set", "test set"),
        ("trainval", "testing"),
        ("ILSVRC_train", "ILSVRC_val"),
        ("TRAIN", "Eval"),
    ],
)
def test_splits_may_have_any_usual_name(tmp_path: Path, train: str, held_out: str) -> None:
    """In any case, with years and with what stands around; how the split came about is told."""
    listing = survey(empty(tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", f"{held_out}/b/3.png"))
    assert sides(listing) == ([f"{train}/a/1.png", f"{train}/b/2.png"], [f"{held_out}/b/3.png"])
    assert (listing.classes, listing.held_out) == (("a", "b"), f"{held_out}/")


def test_train_alone_gives_a_share(tmp_path: Path) -> None:
    """The same pictures as ever, by their names; the classes are those inside."""
    names = [f"train/{group}/{number}.png" for group in ("cat", "dog") for number in range(20)]
    listing = survey(empty(tmp_path, *names))
    assert listing.classes == ("cat", "dog")
    assert set(sides(listing)[1]) == {names[place] for place in hold_out(names, root=tmp_path).nonzero()[0]}
    assert (listing.held_out, listing.notes) == ("5 % by hash of the name", ("classes are the folders in train/",))


def test_a_held_out_folder_without_classes_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    """As ImageNet's `val` is unpacked, and the `test` of competitions."""
    for other in ("val", "test"):
        root = empty(tmp_path / other, "train/a/1.png", "train/b/2.png", f"{other}/3.png")
        listing = survey(root)
        assert sorted(item.name for item in listing.items) == ["train/a/1.png", "train/b/2.png"]
        told = f"5 % of train/ by hash of the name; {other}/ has no folders of classes and is not used"
        assert listing.held_out == told


def test_a_test_split_beside_the_others_is_not_looked_into(tmp_path: Path) -> None:
    """Which is said, as of folders that are no split."""
    root = empty(tmp_path, "train/a/1.png", "val/a/2.png", "test/b/3.png", "unlabeled/4.png")
    listing = survey(root)
    assert [item.name for item in listing.items] == ["train/a/1.png", "val/a/2.png"]
    assert listing.held_out == "val/; test/ not used; unlabeled/ not used"


@pytest.mark.parametrize("around", ["PetImages", "archive/PetImages", "train", "data/train/train"])
def test_a_folder_around_everything_changes_no_class(tmp_path: Path, around: str) -> None:
    """However many there are, and whatever lies beside them without pictures."""
    root = empty(tmp_path, f"{around}/Cat/1.png", f"{around}/Dog/2.png", "__MACOSX/Cat/._1.png", "readme.txt")
    listing = survey(root)
    assert listing.classes == ("Cat", "Dog")
    assert {item.name for item in listing.items} == {f"{around}/Cat/1.png", f"{around}/Dog/2.png"}
    assert str(listing.left_out) == "1 folder of the system, 1 other file"


def test_folders_that_systems_put_among_the_others_are_left_out(tmp_path: Path) -> None:
    """Thumbnails of a network disk, and what was deleted: at any depth they are neither classes nor pictures."""
    names = ("a/1.png", "a/@eaDir/1.png/thumb.jpg", "@eaDir/x.png", "$RECYCLE.BIN/2.png", "b/3.png")
    listing = survey(empty(tmp_path, *names))
    assert [item.name for item in listing.items] == ["a/1.png", "b/3.png"]
    assert str(listing.left_out) == "3 folders of the system"


def test_a_class_with_splits_of_its_own_is_refused(tmp_path: Path) -> None:
    """It would be trained on, held-out pictures and all."""
    root = empty(tmp_path / "d", "data/train/a/1.png", "data/valid/a/2.png", "docs/figure.png")
    with pytest.raises(
        InputError, match=r"folders of classes in .*, got data/ with the splits train/ and valid/ in it"
    ):
        survey(root)
    assert survey(empty(tmp_path / "e", "a/train/1.png", "b/2.png")).classes == ("a", "b")


def test_held_out_pictures_in_one_folder_of_no_class_are_not_used(tmp_path: Path) -> None:
    """As Tiny ImageNet has `val/images`; a class that is called so is one."""
    tiny = survey(empty(tmp_path / "t", "train/n1/images/1.png", "train/n2/images/2.png", "val/images/3.png"))
    assert tiny.classes == ("n1", "n2")
    assert tiny.held_out == "5 % of train/ by hash of the name; val/ has no folders of classes and is not used"
    assert survey(empty(tmp_path / "u", "train/images/1.png", "train/n2/2.png", "val/images/3.png")).held_out == "val/"


def test_splits_in_a_folder_around_them_are_splits(tmp_path: Path) -> None:
    """Names stay those below the folder that was given."""
    listing = survey(empty(tmp_path, "set/train/a/1.png", "set/train/b/2.png", "set/val/b/3.png"))
    assert sides(listing)[1] == ["set/val/b/3.png"]


def test_a_single_class_stays_one(tmp_path: Path) -> None:
    """Folders that end in pictures alone are the first one's."""
    assert survey(empty(tmp_path, "cat/big/1.png", "cat/big/2.png")).classes == ("cat",)


@pytest.mark.parametrize(
    "names",
    [
        ("train/1.png", "test/2.png", "cat/3.png"),
        ("cat/1.png", "dog/2.png", "val/3.png"),
        ("train/a/1.png", "train/b/2.png", "plane/3.png"),
        ("val/a/1.png", "test/a/2.png"),
        ("train1/a/1.png", "train2/a/2.png", "val/a/1.png"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    """In one sentence that names two of them."""
    with pytest.raises(InputError, match=r"expected (folders of splits|one folder to train on).*got \w+/ (beside|and)"):
        survey(empty(tmp_path, *names))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """Among other classes, as in CIFAR-100; so may one that a split's name is only part of."""
    assert survey(empty(tmp_path / "a", "train/1.png", "plane/2.png")).classes == ("plane", "train")
    assert survey(empty(tmp_path / "b", "test-pilots/1.png", "dogs/2.png")).classes == ("dogs", "test-pilots")


# ---- nothing is left out in silence ----------------------------------------------------------------------------------


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    """By suffix, the usual companions together; links, empty folders; hidden files are not."""
    root = empty(tmp_path, "a/1.png", "b/2.png", "a/.DS_Store", "c/notes.txt", "a/1.json", "b/x.heic", "b/y.HEIC")
    (root / "d").mkdir()
    (root / "a" / "no.png").symlink_to("nothing.png")
    (root / "a" / "one.png").symlink_to("other.png")
    (root / "a" / "other.png").symlink_to("one.png")
    (root / "b" / "up").symlink_to("..")
    os.mkfifo(root / "b" / "pipe.png")
    told = "3 links in a circle, 2 .heic, 2 folders without pictures, 2 other files, 1 link to nothing, 1 special file"
    assert str(survey(root).left_out) == told


def test_rare_suffixes_are_told_together() -> None:
    """The most frequent ones by name."""
    counts = Counter({f".{letter}": 9 - number for number, letter in enumerate("abcdef")})
    assert str(LeftOut(counts)) == "9 .a, 8 .b, 7 .c, 6 .d, and 9 others"


def test_what_was_left_out_comes_with_the_data(tmp_path: Path) -> None:
    """From the listing to `DataSet.told`, and into the message where nothing else was there."""
    (two_classes(tmp_path, count=2) / "cat" / "x.heic").touch()
    assert load(tmp_path).told == ["held out: 5 % by hash of the name", "left out: 1 .heic"]
    with pytest.raises(InputError, match=r"found none \(1 \.heic\)"):
        survey(empty(tmp_path / "other", "x.heic"))


def test_what_nextscale_wrote_is_no_class(tmp_path: Path) -> None:
    """Runs, token caches, models and samples; a file that is only called so changes nothing."""
    root = empty(tmp_path, "a/1.png", "b/2.png", "b/run.json", "run/samples/3.png", "tokens/4.png", "model/5.png")
    empty(root, "model/config.json", "model/vae.safetensors", "samples/0-a-seed0.png", "samples/grid.png")
    for name in ("run/run.json", "tokens/tokens.json"):
        (root / name).write_text('{"settings": {}}')
    listing = survey(root)
    assert [item.name for item in listing.items] == ["a/1.png", "b/2.png"]
    told = "1 folder of samples, 1 model, 1 other file, 1 run of nextscale, 1 token cache"
    assert str(listing.left_out) == told
    with pytest.raises(InputError, match="expected a folder of pictures, got .*, which is a run of nextscale"):
        survey(root / "run")


# ---- names -----------------------------------------------------------------------------------------------------------


def test_names_that_cannot_be_printed_are_escaped(tmp_path: Path) -> None:
    """Classes and pictures whose names are not UTF-8, hold line breaks or 255 bytes; no two classes become one."""
    raw = os.fsdecode(b"caf\xe9")
    groups = (raw, r"caf\xe9", "a\nb", "x" * 255)
    for number, group in enumerate(groups):
        put(tmp_path / group / f"{number}\t\N{SNOWMAN}{raw}.png", seed=number)
    loaded = load(tmp_path)
    assert loaded.classes == (r"a\nb", r"caf\xe9", r"caf\xe9~2", "x" * 255)
    names = (*loaded.train.names, *loaded.validation.names)
    assert all(name.isprintable() and name.endswith(r"\t☃caf\xe9.png") for name in names)


def test_classes_are_compared_as_they_look(tmp_path: Path) -> None:
    """`é` is one character on Linux and two on a Mac."""
    one, two = (normalize(form, "café") for form in ("NFC", "NFD"))
    listing = survey(empty(tmp_path, f"train/{two}/1.png", "train/x/2.png", f"val/{one}/3.png"))
    assert [item.label for item in listing.items] == [0, 1, 0]


def test_whole_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    """If all classes are; otherwise all are names."""
    assert survey(empty(tmp_path / "a", *(f"{n}/1.png" for n in (10, 9, 2)))).classes == ("2", "9", "10")
    assert survey(empty(tmp_path / "b", *(f"{n}/1.png" for n in (10, 9, "x")))).classes == ("10", "9", "x")


# ---- scale -----------------------------------------------------------------------------------------------------------


def test_a_file_is_not_asked_about_when_its_folder_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing looks at folders alone."""
    root = empty(tmp_path, *(f"{n % 2}/{n}.png" for n in range(50)))
    asked: list[str] = []

    def lstat(path: str, real: Callable[..., os.stat_result] = os.lstat) -> os.stat_result:
        asked.append(path)
        return real(path)

    monkeypatch.setattr(os, "lstat", lstat)
    assert len(survey(root).items) == 50
    assert asked
    assert not [path for path in asked if str(path).endswith(".png")]


def test_folders_may_be_nested_deeper_than_python(tmp_path: Path) -> None:
    """A thousand calls would be too many."""
    where = os.open(empty(tmp_path, "a/1.png", "b/2.png") / "a", os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=where)
        inner = os.open("d", os.O_RDONLY, dir_fd=where)
        os.close(where)
        where = inner
    os.close(os.open("3.png", os.O_CREAT, dir_fd=where))
    os.close(where)
    try:
        assert len(survey(tmp_path).items) == 3
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "a"], check=True)  # `shutil.rmtree` goes no deeper than Python either


def test_the_walk_tells_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of classes done, of all; not more often than every so many pictures."""
    monkeypatch.setattr(folder, "EVERY", 4)
    calls: list[tuple[int, int]] = []
    survey(empty(tmp_path, *(f"{n % 5}/{n}.png" for n in range(10))), progress=lambda *told: calls.append(told))
    assert calls == [(2, 5), (4, 5)]


# ---- all broken ones -------------------------------------------------------------------------------------------------


def test_every_broken_picture_is_told_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before too many are refused, and when one breaks later; each once."""
    monkeypatch.setattr(reading, "MEMORY", 0)
    root, told = two_classes(tmp_path), dict[str, str]()
    for index in range(4):
        (root / "cat" / f"{index:02}.png").write_text("a text")
    with pytest.raises(InputError, match="4 of 20"):
        data.load(root, height=16, width=16, broken=told.__setitem__)
    assert sorted(told) == [f"cat/{index:02}.png" for index in range(4)]
    assert set(told.values()) == {"in no known format"}
    loaded = data.load(root, height=16, width=16, max_broken=0.5, broken=told.__setitem__)
    cut_short(root / loaded.train.names[0])
    for _ in range(2):
        loaded.train.batch([0])
    assert loaded.train.names[0] in told
