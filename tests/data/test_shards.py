"""Laws of WebDataset shards: they give what folders of the same pictures give, and what is unsure is refused."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale import data
from nextscale.data import patterns, reading, shards
from nextscale.data.pictures import in_threads
from nextscale.data.tar import members
from nextscale.errors import InputError
from nextscale.training.order import views

Entry = tuple[str, bytes]  # a file in a shard: its name and its content


def picture(seed: int, *, picture_format: str = "png") -> bytes:
    """Smooth noise, 40 pixels wide and more, 30 high."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((40 + seed % 7, 30), Image.Resampling.BILINEAR).save(buffer, picture_format)
    return buffer.getvalue()


def sample(index: int, stated: object = None, *, key: str | None = None) -> list[Entry]:
    """A picture, and its class beside it if one is stated."""
    key = f"{index:04}" if key is None else key
    beside = [] if stated is None else [(f"{key}.cls", str(stated).encode())]
    return [(f"{key}.png", picture(index)), *beside]


def samples(indices: Iterable[int]) -> list[Entry]:
    """Odd ones are dogs, the others cats."""
    return [entry for index in indices for entry in sample(index, "dog" if index % 2 else "cat")]


def put(path: Path, entries: Iterable[Entry], *, tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    """A shard with these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def two_shards(root: Path) -> Path:
    """Thirty samples, the first half in one shard and the second in another."""
    put(root / "a-0.tar", samples(range(15)))
    put(root / "a-1.tar", samples(range(15, 30)))
    return root


def load(source: Path | str, *, max_broken: float = 0.01) -> data.DataSet:
    """Shards at 16 px."""
    return data.load(source, height=16, width=16, max_broken=max_broken)


def everything(loaded: data.DataSet) -> dict[str, tuple[bytes, str]]:
    """Pixels and class by the last part of the name."""
    return {
        Path(name).name: (image.numpy().tobytes(), split.classes[label])
        for split in (loaded.train, loaded.validation)
        for name, image, label in zip(split.names, *batch(split, range(len(split))), strict=True)
    }


def batch(split: data.Pictures, indices: Iterable[int]) -> tuple[torch.Tensor, list[int]]:
    """A batch with its labels as numbers."""
    pictures, labels = split.batch(list(indices))
    return pictures, labels.tolist()


# ---- the same as folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 2**31], ids=["on demand", "in memory"])
def test_shards_give_what_folders_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    """The same pixels and classes of the same pictures, bit for bit, decoded once or batch by batch."""
    monkeypatch.setattr(reading, "MEMORY", memory)
    for index in range(30):
        path = tmp_path / "folders" / ("dog" if index % 2 else "cat") / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(index))
    in_folders, in_shards = load(tmp_path / "folders"), load(two_shards(tmp_path / "shards"))
    assert in_shards.classes == in_folders.classes == ("cat", "dog")
    assert everything(in_shards) == everything(in_folders)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_is_read(tmp_path: Path, tar_format: int) -> None:
    """Long names and letters outside ASCII change nothing but the names, nor does `./` in front."""
    keys = ["./plain", "é" * 40, "d" * 60 + "/" + "n" * 90]
    if tar_format != tarfile.USTAR_FORMAT:  # which knows no longer ones
        keys[2] += "n" * 300
    entries = [entry for index, key in enumerate(keys) for entry in sample(index, "cat", key=key)]
    put(tmp_path / "train.tar", entries, tar_format=tar_format)
    put(tmp_path / "val.tar", sample(9, "cat"))
    put(tmp_path / "plain" / "train.tar", [entry for index in range(3) for entry in sample(index, "cat")])
    put(tmp_path / "plain" / "val.tar", sample(9, "cat"))
    loaded = load(tmp_path)
    assert loaded.train.names == tuple(f"train.tar/{key.removeprefix('./')}.png" for key in keys)
    assert torch.equal(batch(loaded.train, range(3))[0], batch(load(tmp_path / "plain").train, range(3))[0])


def test_all_suffixes_count_in_capitals_too(tmp_path: Path) -> None:
    """JPEG, PNG and WebP; other files of a sample, hidden files and folders do not count."""
    pictures = [
        ("a.jpg", picture(0, picture_format="jpeg")),
        ("b.JPEG", picture(1, picture_format="jpeg")),
        ("in/c.png", picture(2)),
        ("in/d.webp", picture(3, picture_format="webp")),
    ]
    others = [("a.txt", b"a caption"), ("a.seg.png", b"a mask"), ("in/._c.png", b"left by a camera"), ("README", b"")]
    put(tmp_path / "x.tar", [*pictures, *others])
    loaded = load(tmp_path)
    assert sorted(loaded.train.names + loaded.validation.names) == [f"x.tar/{name}" for name, _ in pictures]
    assert loaded.broken == ()


# ---- any order -------------------------------------------------------------------------------------------------------


def test_memory_and_disk_give_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pictures, crops, labels and fingerprints."""
    root, found = two_shards(tmp_path), []
    for memory in (2**31, 0):
        monkeypatch.setattr(reading, "MEMORY", memory)
        train = load(root).train
        found.append((train.fingerprint, *train.batch([3, 1, 12, 3], views=views(4, 0, 0, flip=True))))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2])


def test_many_threads_read_one_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None moves the place where another one reads."""
    put(tmp_path / "a.tar", [(f"{index}.bin", bytes([index]) * 5000) for index in range(50)])
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    found = list(members(tmp_path / "a.tar")) * 4
    for member, content in zip(found, in_threads(lambda member: member.open().read(), found), strict=True):
        assert content == bytes([int(member.name.removesuffix(".bin"))]) * 5000


def test_a_member_is_a_file_of_its_own(tmp_path: Path) -> None:
    """It begins and ends where the member does, whatever stands around it."""
    put(tmp_path / "a.tar", [("before", b"x" * 700), ("member", b"0123456789"), ("after", b"y" * 700)])
    member = list(members(tmp_path / "a.tar"))[1]
    with member.open() as stream:
        assert stream.read() == b"0123456789"
        assert stream.seek(-3, io.SEEK_END) == 7
        assert stream.read(9) == b"789"
        stream.seek(2)
        stream.seek(2, io.SEEK_CUR)
        assert (stream.tell(), stream.read(1)) == (4, b"4")
        stream.seek(50)
        assert stream.read() == b""
        with pytest.raises(ValueError, match="got -1"):
            stream.seek(-11, io.SEEK_END)


# ---- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("train-000", "val-000"), ("photos-train-0", "photos-validation-0"), ("train", "test"), ("Train0", "VAL0")],
)
def test_ready_splits_are_used(tmp_path: Path, train: str, held_out: str) -> None:
    """By the words in the names of the shards; others beside them are not read."""
    put(tmp_path / f"{train}.tar", samples(range(6)))
    put(tmp_path / f"{held_out}.tar", samples([7]))
    put(tmp_path / "extra.tar", samples([8]))
    loaded = load(tmp_path)
    assert loaded.train.names == tuple(f"{train}.tar/{index:04}.png" for index in range(6))
    assert loaded.validation.names == (f"{held_out}.tar/0007.png",)
    assert loaded.validation.labels.tolist() == [1]


def test_one_in_twenty_is_held_out_wherever_it_lies(tmp_path: Path) -> None:
    """By its key: one shard or two, the same samples are held out."""
    put(tmp_path / "one" / "train.tar", samples(range(60)))
    put(tmp_path / "two" / "a.tar", samples(range(20)))
    put(tmp_path / "two" / "b.tar", samples(range(20, 60)))
    held_out = [{Path(name).name for name in load(tmp_path / way).validation.names} for way in ("one", "two")]
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == 3


def test_shards_may_number_their_samples_alike(tmp_path: Path) -> None:
    """A key in two shards is two samples."""
    put(tmp_path / "a.tar", samples([0, 1]))
    put(tmp_path / "b.tar", samples([0, 1]))
    loaded = load(tmp_path)
    assert sorted(loaded.train.names + loaded.validation.names) == [
        f"{shard}.tar/{index:04}.png" for shard in "ab" for index in (0, 1)
    ]


def sides(source: Path | str) -> tuple[list[str], list[str], str]:
    """Names to train on, those held out, and how that is told."""
    found = shards.find(source)
    assert found is not None
    listing = shards.survey(found)
    names: tuple[list[str], list[str]] = [], []
    for item in listing.items:
        names[item.held_out].append(item.name)
    return *names, listing.held_out


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train-0", "valid-0"),
        ("a_training_0", "a_dev_0"),
        ("train2017", "val2017"),
        ("Trainset", "EVAL"),
        ("train/0", "val/0"),
        ("data/train/0", "data/val/0"),
    ],
)
def test_splits_may_have_any_usual_name(tmp_path: Path, train: str, held_out: str) -> None:
    """In the names of the shards or of the folders they lie in; a folder around them changes nothing."""
    put(tmp_path / f"{train}.tar", samples([0, 1]))
    put(tmp_path / f"{held_out}.tar", samples([2]))
    trained, held, told = sides(tmp_path)
    assert [len(trained), len(held)] == [2, 1]
    assert told == f"{held_out.removeprefix('data/')}.tar"


def test_shards_that_are_not_read_are_told(tmp_path: Path) -> None:
    """A test split beside the others; held-out ones without `train` are trained on as ever, which is said too."""
    for number, name in enumerate(("train-0", "val-0", "val-1", "test-0", "extra")):
        put(tmp_path / "a" / f"{name}.tar", samples([2 * number]))
    assert sides(tmp_path / "a")[2] == "val-0.tar and 1 more; extra.tar and 1 more not used"
    for number, name in enumerate(("photos", "val")):
        put(tmp_path / "b" / f"{name}.tar", samples([number]))
    told = "5 % by hash of the key; val.tar trained on as well, as no shard is called train"
    assert sides(tmp_path / "b")[2] == told


# ---- nothing is left out in silence ----------------------------------------------------------------------------------


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    """An entry of a tar that is no file of its own."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "0000.png"
    return info


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    """Links, folders and devices in a tar, named fields, other suffixes, and what lies beside the shards."""
    put(
        tmp_path / "a.tar",
        [*samples(range(3)), ("0.seg.png", b""), ("0000.left.png", b""), ("0.txt", b""), ("0.heic", b"")],
    )
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE):
            tar.addfile(special("entry", kind))
    (tmp_path / "README.md").touch()
    (tmp_path / "more").mkdir()
    (tmp_path / "b.tar").symlink_to("nothing.tar")
    assert str(load(tmp_path).left_out) == (
        "2 links in shards, 2 other files, 1 .heic, 1 folder entry in shards, 1 folder beside the shards, "
        "1 link to nothing, 1 picture in named fields of samples, 1 picture with dots in their keys, "
        "1 special file in shards"
    )


def test_a_tar_behind_a_tar_is_told_by_its_bytes(tmp_path: Path) -> None:
    """As `cat` joins them; the zeros at the end of a tar are nothing."""
    first, second = (put(tmp_path / f"{name}.tar", samples(range(3))) for name in ("a", "b"))
    assert not load(first).left_out.counts
    content = second.read_bytes()
    first.write_bytes(first.read_bytes() + content)
    assert str(load(first).left_out) == f"{len(content):,} bytes behind the end of a shard"


def test_samples_left_out_are_told_where_no_others_are(tmp_path: Path) -> None:
    """The message says what was found instead."""
    put(tmp_path / "a.tar", [("0.x.png", b""), ("1.x.png", b"")])
    with pytest.raises(InputError, match=r"found none \(2 pictures with dots in their keys\)"):
        load(tmp_path)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_names_that_cannot_be_printed_are_escaped(tmp_path: Path) -> None:
    """Keys and classes of shards."""
    raw = os.fsdecode(b"\xff")
    put(tmp_path / "a.tar", [*sample(0, "a\nb", key=raw), *sample(1, "b", key="x\ny")], tar_format=tarfile.GNU_FORMAT)
    loaded = load(tmp_path)
    assert loaded.classes == (r"a\nb", "b")
    assert {*loaded.train.names, *loaded.validation.names} == {r"a.tar/\xff.png", r"a.tar/x\ny.png"}


# ---- patterns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{8..10}", ["a-8", "a-9", "a-10"]),
        ("a-{08..10}", ["a-08", "a-09", "a-10"]),
        ("a-{0..0}", ["a-0"]),
        ("{val,train}-{000..001}", ["val-000", "val-001", "train-000", "train-001"]),
        ("{train-{0..1},val-{00,7}}.tar", ["train-0.tar", "train-1.tar", "val-00.tar", "val-7.tar"]),
        ("{a,{b,{c,d}}}", ["a", "b", "c", "d"]),
        ("{a,b", ["{a,b"]),
        ("{a}{b,c}}", ["{a}b}", "{a}c}"]),
        ("a{b}", ["a{b}"]),
    ],
)
def test_braces_mean_what_a_shell_means(pattern: str, expected: list[str]) -> None:
    """Ranges, padded as they are written, and lists."""
    assert patterns.expand(pattern) == expected


def test_a_pattern_is_the_same_as_its_folder(tmp_path: Path) -> None:
    """And one shard by name is enough; a pattern over two folders keeps them apart."""
    root = two_shards(tmp_path / "here")
    assert load(f"{root}/a-{{0..1}}.tar").train.fingerprint == load(root).train.fingerprint
    assert len(load(root / "a-0.tar").train) == 14
    put(tmp_path / "train" / "0.tar", samples(range(3)))
    put(tmp_path / "val" / "0.tar", samples([4]))
    loaded = load(f"{tmp_path}/{{train,val}}/0.tar")
    assert (len(loaded.train), loaded.validation.names) == (3, ("val/0.tar/0004.png",))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("t*-?.tar", ["train-0", "train-1"]),
        ("{train,va?}-*.tar", ["train-0", "train-1", "val-0"]),
        ("[a]-0.tar", ["[a]-0"]),
        ("[a]*.tar", ["[a]-0"]),
        ("x*.tar", ["x*"]),
    ],
)
def test_stars_and_question_marks_mean_what_a_shell_means(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    """Also inside braces; brackets are themselves, and so is a file that is called like a pattern."""
    for name in ("train-0", "train-1", "val-0", "[a]-0", "x*", "x1"):
        (tmp_path / f"{name}.tar").touch()
    found = shards.find(f"{tmp_path}/{pattern}")
    assert found is not None
    assert [path.stem for path in found.paths] == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("x*.tar", "found nothing like .*x\\*.tar"),
        ("*", "got the folder .*folder"),
        ("*.txt", "expected .tar shards as .* says, got .*notes.txt"),
        ("{0..99999999999}.tar", "at most 1,000,000 files, got more"),
        ("{0..9}" * 9 + ".tar", "at most 1,000,000 files, got more"),
        ("{a," * 500 + "}" * 500 + ".tar", "at most 60 pairs of braces"),
        ("{1..9" + "9" * 5000 + "}.tar", "expected a range of numbers"),
    ],
)
def test_patterns_without_shards_are_refused(tmp_path: Path, pattern: str, message: str) -> None:
    """In one line and at once, however many files they stand for."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=message):
        load(f"{tmp_path}/{pattern}")


# ---- classes ---------------------------------------------------------------------------------------------------------


def names_of(root: Path, stated: list[object]) -> list[str]:
    """The class of each sample in a shard that states these."""
    put(root / "a.tar", [entry for index, each in enumerate(stated) for entry in sample(index, each)])
    found = everything(load(root))
    return [found[f"{index:04}.png"][1] for index in range(len(stated))]


def test_numbers_are_their_own_names_sorted_as_numbers(tmp_path: Path) -> None:
    """Nine before ten."""
    assert names_of(tmp_path, [10, 9, 9, "2\n"]) == ["10", "9", "9", "2"]
    assert load(tmp_path).classes == ("2", "9", "10")


def test_names_are_sorted_behind_numbers(tmp_path: Path) -> None:
    """As they are found."""
    assert names_of(tmp_path, ["dog", 7, "a cat", "dog"]) == ["dog", "7", "a cat", "dog"]
    assert load(tmp_path).classes == ("7", "a cat", "dog")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "bird\ncat\n\n"),
        ("classes.json", '["bird", "cat"]'),
        ("classes.json", '{"1": "cat", "0": "bird"}'),
    ],
)
def test_a_list_names_the_classes(tmp_path: Path, name: str, content: str) -> None:
    """Numbers count from 0 in it; names may stand in the samples too; a class without pictures keeps its place."""
    (tmp_path / name).write_text(content)
    assert names_of(tmp_path, [1, "cat", "1"]) == ["cat", "cat", "cat"]
    assert load(tmp_path).classes == ("bird", "cat")


def test_of_two_classes_with_one_name_the_first_is_meant(tmp_path: Path) -> None:
    """Their numbers stay apart."""
    (tmp_path / "classes.txt").write_text("bird\ncat\nbird\n")
    names_of(tmp_path, ["bird", 2, 0, "cat"])
    loaded = load(tmp_path)
    assert loaded.classes == ("bird", "cat", "bird~2")
    numbers = {
        name: batch(split, [i])[1] for split in (loaded.train, loaded.validation) for i, name in enumerate(split.names)
    }
    assert [numbers[f"a.tar/000{index}.png"] for index in range(4)] == [[0], [2], [0], [1]]


@pytest.mark.parametrize("content", ["", "[]", "[1, 2]", '{"1": "cat"}', '"cat"', "{", "null"])
def test_a_list_of_anything_else_is_refused(tmp_path: Path, content: str) -> None:
    """The message names the file."""
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(InputError, match=r"one for each number from 0 on, in .*classes\.json"):
        names_of(tmp_path, [0, 0])


@pytest.mark.parametrize("stated", [2, -1, "dog"])
def test_a_class_outside_the_list_is_refused(tmp_path: Path, stated: object) -> None:
    """It has no name."""
    (tmp_path / "classes.txt").write_text("bird\ncat\n")
    with pytest.raises(InputError, match=rf"one of the 2 classes in a\.tar/0001\.png, got {stated!r}"):
        names_of(tmp_path, [0, stated])


def test_json_states_the_class_unless_a_class_file_does(tmp_path: Path) -> None:
    """Under label, class or cls, in this order."""
    entries = [
        *sample(0),
        ("0000.json", json.dumps({"cls": "cow", "label": 3, "class": "no"}).encode()),
        *sample(1),
        ("0001.json", json.dumps({"class": "cow"}).encode()),
        *sample(2, "dog"),
        ("0002.json", json.dumps({"cls": "cow"}).encode()),
    ]
    put(tmp_path / "a.tar", entries)
    found = everything(load(tmp_path))
    assert [found[f"000{index}.png"][1] for index in range(3)] == ["3", "cow", "dog"]


def test_without_classes_there_is_one(tmp_path: Path) -> None:
    """Named as the folder; what a JSON says of other things changes nothing."""
    put(tmp_path / "flowers" / "a.tar", [*sample(0), *sample(1), ("0001.json", b'{"caption": "a rose"}')])
    assert load(tmp_path / "flowers").classes == ("flowers",)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            ("0001.txt", b""),
            r"a class \(\.cls or \.json\) for each of the 2 samples .*, 1 are without, such as a\.tar/0001",
        ),
        (("0001.cls", b" "), r"a whole number or a name, in 0001\.cls of .*a\.tar, got ' '"),
        (("0001.cls", b"\xff"), r"text in 0001\.cls of .*a\.tar"),
        (("0001.json", b'{"label": 1.5}'), r"a whole number or a name, in 0001\.json of .*, got 1\.5"),
        (("0001.json", b'{"label": true}'), r"got True"),
        (("0001.json", b'{"label": null}'), r"got None"),
        (("0001.json", b"cat"), r"JSON, got 0001\.json in .*a\.tar"),
    ],
)
def test_a_class_that_is_none_is_refused(tmp_path: Path, entry: Entry, message: str) -> None:
    """The message says which sample, in which shard."""
    put(tmp_path / "a.tar", [*sample(0, "cat"), *sample(1), entry])
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_held_out_class_unknown_to_training_is_refused(tmp_path: Path) -> None:
    """It would have no label."""
    put(tmp_path / "train.tar", samples(range(4)))
    put(tmp_path / "val.tar", sample(5, "bird"))
    with pytest.raises(InputError, match=r"one of the 2 classes in val\.tar/0005\.png, got 'bird'"):
        load(tmp_path)


# ---- what is broken --------------------------------------------------------------------------------------------------


def test_unreadable_and_missing_pictures_are_left_out_and_named(tmp_path: Path) -> None:
    """Under the same rule as files in folders."""
    put(tmp_path / "a.tar", [*samples(range(8)), ("x.png", b"a text"), ("x.cls", b"cat"), ("y.cls", b"dog")])
    loaded = load(tmp_path, max_broken=0.2)
    assert loaded.broken == ("a.tar/x.png", "a.tar/y")
    assert len(loaded.train) + len(loaded.validation) == 8
    with pytest.raises(InputError, match=r"at most 1\.0%.*2 of 10 \(20\.0%\): a\.tar/x\.png, a\.tar/y"):
        load(tmp_path)


def test_a_shard_that_goes_away_later_ends_in_a_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stands in when all are gone."""
    monkeypatch.setattr(reading, "MEMORY", 0)
    loaded = load(two_shards(tmp_path))
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"a readable picture among 28 such as a-0\.tar/"):
        loaded.train.batch([0])


@pytest.mark.parametrize("kept", [0, 300, 512, 700, 1024, 1024 + 300, -3000])
def test_a_shard_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    """In a header, behind one, in a picture, between two files; nobody knows what it held."""
    path = put(tmp_path / "a.tar", [("0000.png", b"x" * 400), ("0001.png", b"x" * 9000)])
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content[:kept])
    with pytest.raises(InputError, match=r"a whole, uncompressed tar, got .*a\.tar: ") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_damaged_header_is_refused(tmp_path: Path, tar_format: int) -> None:
    """What follows it would be lost without a word."""
    name = "n" * 120 + ".png" if tar_format == tarfile.PAX_FORMAT else "1.png"
    path = put(tmp_path / "a.tar", [*sample(0), (name, picture(1)), *sample(2)], tar_format=tar_format)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        start = tar.getmembers()[1].offset
    content[start + 100 : start + 140] = b"?" * 40
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=rf"a whole, uncompressed tar, got .*a\.tar: damaged or cut short at byte {start}"
    ):
        load(tmp_path)


def test_other_bytes_called_tar_are_refused(tmp_path: Path) -> None:
    """Compressed ones and texts."""
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + b"zipped" * 200)
    with pytest.raises(InputError, match="a whole, uncompressed tar"):
        load(tmp_path)


def test_an_empty_shard_adds_nothing(tmp_path: Path) -> None:
    """Whole, but without files; if all are empty, there is nothing to train on."""
    put(tmp_path / "a.tar", [])
    with pytest.raises(InputError, match=r"samples with a picture \(\.jpg, .*\) in .*a\.tar, found none"):
        load(tmp_path)
    put(tmp_path / "b.tar", samples(range(3)))
    assert len(load(tmp_path).train) == 2


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([*sample(0), *sample(1), *sample(0)], r"every key once in .*a\.tar, got 0000\.png twice"),
        ([*sample(0), ("0000.jpg", b"x")], r"one picture a key in .*a\.tar, got 0000\.jpg and 0000\.png"),
        ([("0.txt", b"x")], r"samples with a picture"),
        ([("0.cls", b"1"), ("1.cls", b"1")], r"samples with a picture"),
        (sample(0), r"at least 2 pictures in"),
    ],
)
def test_unclear_samples_are_refused(tmp_path: Path, entries: list[Entry], message: str) -> None:
    """A key twice, two pictures, none, or only one to train on."""
    put(tmp_path / "a.tar", entries)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


# ---- which source ----------------------------------------------------------------------------------------------------


def test_compressed_shards_are_refused_with_a_way_out(tmp_path: Path) -> None:
    """In a folder, or by name; bytes inside cannot be found without reading all before them."""
    put(tmp_path / "a.tar", samples(range(3)))
    (tmp_path / "b.tar.gz").write_bytes(b"")
    for source in (tmp_path, tmp_path / "b.tar.gz", f"{tmp_path}/a-{{0..9}}.tgz"):
        with pytest.raises(InputError, match="expected uncompressed .tar shards, got .*: unpack it first"):
            load(source)


def test_missing_shards_are_refused(tmp_path: Path) -> None:
    """All that a pattern says must be there."""
    put(tmp_path / "a-0.tar", samples(range(3)))
    with pytest.raises(InputError, match=r"expected 2 shards .*, found nothing at .*a-1\.tar"):
        load(f"{tmp_path}/a-{{0..1}}.tar")
    with pytest.raises(InputError, match=r"a range that rises, got \{2\.\.1\}"):
        load(f"{tmp_path}/a-{{2..1}}.tar")


def test_a_table_is_refused_with_what_is_accepted(tmp_path: Path) -> None:
    """A list of files in a CSV is no data set."""
    (tmp_path / "labels.csv").write_text("file,class\na.png,cat\n")
    with pytest.raises(InputError, match=r"a folder of pictures, got the file .*labels\.csv; \.tar shards would do"):
        load(tmp_path / "labels.csv")


def test_folders_of_pictures_beside_an_archive_stay_folders(tmp_path: Path) -> None:
    """It is what they were unpacked from; loose pictures beside shards might be either."""
    put(tmp_path / "original.tar", samples(range(9)))
    for index in range(3):
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / f"{index}.png").write_bytes(picture(index))
    assert load(tmp_path).classes == ("cat",)
    two_shards(tmp_path / "shards")
    (tmp_path / "shards" / "a.png").write_bytes(picture(0))
    with pytest.raises(InputError, match=r"either pictures or shards in .*, got a\.png beside a-0\.tar"):
        load(tmp_path / "shards")


def test_fingerprint_follows_the_data(tmp_path: Path) -> None:
    """The same in every place; another for another class, picture or key."""
    assert len({load(two_shards(tmp_path / place)).train.fingerprint for place in ("here", "there")}) == 1
    first, others = sample(0, "cat"), [*sample(1, "dog"), *sample(2, "dog")]
    contents = [
        [*first, *others],
        [*sample(0, "dog"), *others],
        [*sample(5, "cat", key="0000"), *others],
        [*sample(0, "cat", key="9"), *others],
    ]
    for index, entries in enumerate(contents):
        put(tmp_path / str(index) / "train.tar", entries)
        put(tmp_path / str(index) / "val.tar", others)
    assert len({load(tmp_path / str(index)).train.fingerprint for index in range(len(contents))}) == len(contents)


def test_progress_is_told(tmp_path: Path) -> None:
    """Shards first, then headers, then pictures, each up to the total."""
    calls: list[tuple[int, int]] = []
    put(tmp_path / "a.tar", samples(range(3)))
    data.load(tmp_path, height=16, width=16, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 1)] + [(done, 3) for done in range(1, 4)] * 2


def test_a_class_of_any_length_is_told_in_one_line(tmp_path: Path) -> None:
    """5,000 digits are no number that Python reads."""
    put(tmp_path / "a.tar", [*samples(range(3)), *sample(3, "9" * 5000)])
    with pytest.raises(InputError, match=r"a class of at most 255 characters in 0003\.cls of .*, got 5,000$"):
        load(tmp_path)


def test_a_sample_without_a_picture_is_called_so(tmp_path: Path) -> None:
    """Its class alone, or pictures in named fields, are none of its own."""
    put(tmp_path / "a.tar", [*samples(range(3)), ("9.cls", b"cat"), ("9.left.png", picture(9))])
    with pytest.raises(InputError, match="got 1 of 4 .*: a.tar/9; the first: a sample without a picture of its own"):
        load(tmp_path)


# ---- spellings, and what is often there instead ----------------------------------------------------------------------


def stated(root: Path, *classes: str) -> Path:
    """A sample of each class."""
    put(root / "x.tar", [entry for index, name in enumerate(classes) for entry in sample(index, name)])
    return root


def test_whole_numbers_with_a_point_are_whole_numbers(tmp_path: Path) -> None:
    """As in tables, and as it is said there; +1 is 1 as 007 is 7. Beside other numbers they stay names."""
    loaded = load(stated(tmp_path / "a", "0.0", "1.0", "10.0", "+1"))
    assert loaded.classes == ("0", "1", "10")
    assert any("taken as the whole numbers" in line for line in loaded.told)
    assert load(stated(tmp_path / "b", "0.5", "1.0", "2")).classes == ("2", "0.5", "1.0")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("1", "1e0"), r"every number written in one way, got 1e0 in x.tar/0001.png and 1 in x.tar/0000.png"),
        (("1", "nan"), r"0001.cls of .*x.tar: expected a label, got nan"),
        (("\3\0\0\0", "a"), r"0000.cls of .*x.tar: expected a label in text, got the bytes"),
    ],
)
def test_what_stands_for_no_class_is_refused(classes: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """A number in two ways, a missing value, a number in binary."""
    with pytest.raises(InputError, match=message):
        load(stated(tmp_path, *classes))


def test_folders_inside_shards_that_look_like_classes_are_told(tmp_path: Path) -> None:
    """Of samples without a class, and of splits; folders beside stated classes are a matter of the names alone."""
    put(tmp_path / "a" / "x.tar", [*sample(0, key="cat/0"), *sample(1, key="dog/1")])
    assert load(tmp_path / "a").told[1].startswith("folders inside the shards, such as cat/ and dog/, are neither")
    put(tmp_path / "b" / "x.tar", [*sample(0, "cat", key="train/0"), *sample(1, "cat", key="val/1")])
    assert load(tmp_path / "b").told[1].startswith("folders inside the shards, such as train/ and val/, are neither")
    put(tmp_path / "c" / "x.tar", [*sample(0, "cat", key="a/0"), *sample(1, "cat", key="b/1")])
    assert load(tmp_path / "c").told == ["held out: 5 % by hash of the key"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git-LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"PK\3\4", "a zip archive"),
        (b"", "empty"),
    ],
)
def test_what_is_often_there_instead_of_a_shard_is_named(content: bytes, told: str, tmp_path: Path) -> None:
    """What a checkout without Git LFS leaves, what a failed download leaves, and other archives."""
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(InputError, match=rf"expected a whole, uncompressed tar, got .*x.tar: {told}"):
        load(tmp_path)


@pytest.mark.parametrize(("name", "content"), [("classes.json", "[" * 3000), ("classes.txt", "cat\n\ndog")])
def test_a_list_of_classes_that_is_none_is_one_line(name: str, content: str, tmp_path: Path) -> None:
    """Brackets by the thousand, and a class without a name."""
    (stated(tmp_path, "0", "1") / name).write_text(content)
    with pytest.raises(InputError, match=f"expected the names of the classes, one for each number .*{name}"):
        load(tmp_path)
