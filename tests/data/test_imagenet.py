"""Laws of ImageNet: as its site gives it or as Kaggle does, it is the folder that people unpack it to."""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextscale import data
from nextscale.errors import InputError

NUMBERS = {  # of the devkit, which has another order than the names
    1: "n02119789",
    2: "n02100735",
    3: "n02110185",
    4: "n02096294",
    5: "n02102040",
    6: "n02066245",
    7: "n02509815",
    8: "n02124075",
    9: "n02417914",
    10: "n02123394",
    173: "n02085620",
    214: "n01871265",
    223: "n02672831",
    229: "n07745940",
    327: "n12267677",
    333: "n03854065",
    358: "n12057211",
    383: "n01514668",
    442: "n01484850",
    449: "n01440764",
    450: "n01443537",
    501: "n01644900",
    505: "n03483316",
    622: "n02165456",
}
DEVKIT, DOG = "ILSVRC2012_devkit_t12", (1001, "n02084071")  # a group of classes, which is no class
TRUTH = [*reversed(NUMBERS), 449, 1]  # of the held-out pictures in their order


def picture(level: int) -> bytes:
    """Of one colour, in bytes that no library decides."""
    return b"P6 4 5 255\n" + bytes([level, 2 * level, 255 - level]) * 20


TRAIN = {f"{wnid}/{wnid}_{number}.JPEG": picture(number % 99) for number, wnid in NUMBERS.items()}
HELD_OUT = {f"ILSVRC2012_val_{place:08}.JPEG": picture(place + 99) for place in range(1, len(TRUTH) + 1)}


def tar_of(files: Mapping[str, bytes], mode: Any = "w") -> bytes:
    """A tar with these files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def meta(rows: Sequence[tuple[int, str]]) -> bytes:
    """The devkit's table, as far as it is looked at."""
    scipy_io = pytest.importorskip("scipy.io", reason="the devkit's table is read by scipy")
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    synsets = np.array([[(number, wnid, f"words, of {wnid}", 0)] for number, wnid in rows], dtype=kinds)
    stream = io.BytesIO()
    scipy_io.savemat(stream, {"synsets": synsets}, do_compression=True)
    return stream.getvalue()


def devkit(**files: bytes) -> dict[str, bytes]:
    """What lies in it; names end where theirs do, and other contents can be given."""
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    found = {"readme.txt": b"?", "data/ILSVRC2012_validation_ground_truth.txt": files.get("truth", truth)}
    found["data/meta.mat"] = files["meta"] if "meta" in files else meta([*NUMBERS.items(), DOG])
    return {f"{DEVKIT}/{name}": content for name, content in found.items()}


def site(root: Path, **files: bytes) -> Path:
    """The three files, in miniature."""
    root.mkdir()
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of({f"{wnid}.tar": inner(wnid) for wnid in NUMBERS.values()}))
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of(HELD_OUT))
    (root / f"{DEVKIT}.tar.gz").write_bytes(tar_of(devkit(**files), "w:gz"))
    return root


def inner(wnid: str) -> bytes:
    """The tar of a class."""
    return tar_of({name.partition("/")[2]: content for name, content in TRAIN.items() if name.startswith(wnid)})


def unpacked(root: Path) -> Path:
    """What people make of it."""
    sides = {f"train/{name}": content for name, content in TRAIN.items()}
    for number, (name, content) in zip(TRUTH, HELD_OUT.items(), strict=True):
        sides[f"val/{NUMBERS[number]}/{name}"] = content
    return put(root, sides)


def put(root: Path, files: Mapping[str, bytes]) -> Path:
    """Files in folders."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def kaggle() -> dict[str, bytes]:
    """Its files."""
    boxes = "85 1 499 272"
    answers = [
        f"{name.removesuffix('.JPEG')},{NUMBERS[number]} {boxes} {NUMBERS[number]} {boxes} \n"
        for number, name in zip(TRUTH, HELD_OUT, strict=True)
    ]
    place = "ILSVRC/Data/CLS-LOC"
    return {
        "LOC_val_solution.csv": f"ImageId,PredictionString\n{''.join(reversed(answers))}".encode(),
        "LOC_synset_mapping.txt": "".join(f"{wnid} words\n" for wnid in sorted(NUMBERS.values())).encode(),
        "ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml": b"<annotation/>",
        f"{place}/test/ILSVRC2012_test_00000001.JPEG": picture(1),
        **{f"{place}/train/{name}": content for name, content in TRAIN.items()},
        **{f"{place}/val/{name}": content for name, content in HELD_OUT.items()},
    }


def load(root: Path, **how: Any) -> data.DataSet:
    """At 4 x 4."""
    return data.load(root, height=4, width=4, **how)


def said(found: data.DataSet) -> list[object]:
    """All that matters of a data set."""
    sides = (found.train, found.validation)
    return [found.classes, *((side.fingerprint, [*side.names], side.labels.tolist()) for side in sides)]


def test_a_held_out_picture_is_of_the_class_that_the_devkit_means(tmp_path: Path) -> None:
    """Number 449 is n01440764, the first of the sorted names and class 0 of every model; number 1 is another."""
    found = load(site(tmp_path / "site"))
    assert found.classes == tuple(sorted(NUMBERS.values()))
    assert found.classes[0] == NUMBERS[449]
    numbers = {name.rpartition("/")[2]: place for place, name in enumerate(found.validation.names)}
    for number, name in zip(TRUTH, HELD_OUT, strict=True):
        place = numbers[name]
        assert found.classes[found.validation.labels[place]] == NUMBERS[number]
        assert found.validation.names[place] == f"val/{NUMBERS[number]}/{name}"
    levels = (found.validation.batch([numbers["ILSVRC2012_val_00000001.JPEG"]])[0][0, :, 0, 0] + 1) * 127.5
    assert levels.round().tolist() == [100, 200, 155], "and its pixels are its own"


def test_the_tars_are_the_folder_that_is_made_of_them(tmp_path: Path) -> None:
    """To the fingerprints: a run that began on one goes on with the other. The training tar may be named as well."""
    expected = said(load(unpacked(tmp_path / "folder")))
    root = site(tmp_path / "site")
    assert said(load(root)) == said(load(root / "ILSVRC2012_img_train.tar")) == expected
    (root / f"{DEVKIT}.tar.gz").unlink()
    put(root, devkit())
    assert said(load(root)) == expected, "with the devkit unpacked"


def test_kaggles_layout_is_that_folder_too(tmp_path: Path) -> None:
    """From any folder on the way to the pictures, and in a zip; the test split has no classes, and is told."""
    expected = said(load(unpacked(tmp_path / "folder")))
    root = put(tmp_path / "kaggle", kaggle())
    for step in ("", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"):
        assert said(load(root / step)) == expected
    with zipfile.ZipFile(tmp_path / "kaggle.zip", "w") as archive:
        for name, content in kaggle().items():
            archive.writestr(f"imagenet/{name}", content)
    assert said(load(tmp_path / "kaggle.zip")) == expected
    assert "left out: 1 picture of the test split, which has no classes" in load(root).told
    assert load(root / "ILSVRC/Data/CLS-LOC/train").told[0] == "held out: 5 % by hash of the name"


def test_without_a_devkit_a_share_is_held_out(tmp_path: Path) -> None:
    """And what would tell the classes is said; without the pictures there is nothing to say."""
    root = site(tmp_path / "site")
    (root / f"{DEVKIT}.tar.gz").unlink()
    told = load(root).told
    assert told[0].startswith("held out: 5 % by hash of the name")
    assert told[-1].startswith(
        f"left out: {len(TRUTH)} pictures of ILSVRC2012_img_val.tar, whose classes {DEVKIT}.tar.gz"
    )
    (root / "ILSVRC2012_img_val.tar").unlink()
    assert not any(line.startswith("left out") for line in load(root).told)


def test_any_tar_of_tars_is_a_class_from_each(tmp_path: Path) -> None:
    """Whatever they are called; what else is in it is counted."""
    files = {"b.tar": tar_of({"x/1.ppm": picture(1), "notes.doc": b"?"}), "a.tar": tar_of({"2.ppm": picture(2)})}
    (tmp_path / "pets.tar").write_bytes(tar_of({**files, "c.tar": tar_of({"3.ppm": picture(3), "../4.ppm": b""})}))
    found = load(tmp_path / "pets.tar")
    assert found.classes == ("a", "b", "c")
    assert sorted([*found.train.names, *found.validation.names]) == [
        "train/a/2.ppm",
        "train/b/x/1.ppm",
        "train/c/3.ppm",
    ]
    assert "left out: 1 .doc, 1 entry with an absolute name or .. in it" in found.told


def test_pictures_that_nobody_tells_the_class_of_are_counted(tmp_path: Path) -> None:
    """In a table that is too short, by the site or by Kaggle."""
    short = "".join(f"{number}\n" for number in TRUTH[:-1]).encode()
    assert load(site(tmp_path / "site", truth=short)).told[1] == (
        "left out: 1 held-out picture without a class in the devkit"
    )
    files = kaggle()
    files["LOC_val_solution.csv"] = files["LOC_val_solution.csv"].rpartition(b"ILSVRC2012_val_")[0]
    told = load(put(tmp_path / "kaggle", files)).told[1]
    assert told.startswith("left out: 1 held-out picture without a row in LOC_val_solution.csv, 1 picture of the test")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"truth": b"1\n7x\n"},
            r"ground_truth\.txt of .*, line 2: expected a number of a class in meta\.mat, got b'7x'",
        ),
        ({"truth": b"1\n2000\n"}, "line 2: expected a number of a class"),
        ({"meta": b"MATLAB 5.0 MAT-file" * 20}, r"expected the devkit's table of classes, got meta\.mat of"),
        ({"meta": b""}, r"expected the devkit's table of classes, got meta\.mat of"),
    ],
)
def test_a_damaged_devkit_is_one_line(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    """That names the file in it."""
    with pytest.raises(InputError, match=message) as caught:
        load(site(tmp_path / "site", **files))
    assert "\n" not in str(caught.value)


def test_a_devkit_without_its_table_is_one_line(tmp_path: Path) -> None:
    """Packed or not, cut short, or called what it is not."""
    root = site(tmp_path / "site")
    packed = root / f"{DEVKIT}.tar.gz"
    whole = packed.read_bytes()
    for content, message in [
        (tar_of({f"{DEVKIT}/readme.txt": b"?"}, "w:gz"), r"expected meta\.mat in the devkit .*, found none"),
        (whole[: len(whole) // 2], r"expected a whole devkit, a \.tar\.gz, got"),
        (b"<html></html>", r"expected a whole devkit, a \.tar\.gz, got"),
    ]:
        packed.write_bytes(content)
        with pytest.raises(InputError, match=message):
            load(root)
    put(root, {f"{DEVKIT}/data/meta.mat": b""})
    with pytest.raises(InputError, match=r"expected the devkit's ILSVRC2012_validation_ground_truth\.txt, cannot read"):
        load(root)


def test_the_package_that_reads_the_devkit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is missing; without held-out pictures it is not needed."""
    root = site(tmp_path / "site")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(InputError, match=r"the package scipy.*pip install 'nextscale\[imagenet\]'"):
        load(root)
    (root / "ILSVRC2012_img_val.tar").unlink()
    assert len(load(root).classes) == len(NUMBERS)


def test_a_damaged_tar_inside_is_named(tmp_path: Path) -> None:
    """With the tar that it lies in."""
    root = site(tmp_path / "site")
    tars = {f"{wnid}.tar": inner(wnid) for wnid in NUMBERS.values()}
    tars["n02119789.tar"] = tars["n02119789.tar"][:700]
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(tars))
    with pytest.raises(InputError, match=r"uncompressed tar, got n02119789\.tar in .*ILSVRC2012_img_train\.tar: "):
        load(root)


@pytest.mark.parametrize("content", [b"image,label\n", b"", b'ImageId,PredictionString\n"x\n\x00'])
def test_another_table_of_kaggles_is_one_line(content: bytes, tmp_path: Path) -> None:
    """Whose first line tells it; a row without an answer is none."""
    root = put(tmp_path / "kaggle", {**kaggle(), "LOC_val_solution.csv": content})
    if content.startswith(b"ImageId"):
        assert load(root).told[0].startswith("held out: 5 %")
        return
    with pytest.raises(InputError, match=r"LOC_val_solution\.csv: expected a first line ImageId,PredictionString"):
        load(root)


def test_other_folders_beside_kaggles_table_are_read_as_they_are(tmp_path: Path) -> None:
    """A folder of the user's own is no part of it."""
    root = put(tmp_path / "kaggle", kaggle())
    shutil.copytree(unpacked(tmp_path / "folder"), root / "mine")
    assert said(load(root / "mine")) == said(load(tmp_path / "folder"))
