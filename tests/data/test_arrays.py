"""Laws of arrays: NumPy's files, MNIST's and CIFAR's give the pictures that are in them, and run nothing."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nextscale import data
from nextscale.data import Columns, arrays, cifar, reading
from nextscale.errors import InputError


def pictures(count: int, *sides: int, seed: int = 0) -> np.ndarray:
    """Noise of 20x16 pixels and three colours, unless other sides are given."""
    return np.random.default_rng(seed).integers(0, 256, (count, *(sides or (20, 16, 3))), dtype=np.uint8)


def load(source: Path, **given: Any) -> data.DataSet:
    """At the pictures' own size."""
    return data.load(source, **{"height": 20, "width": 16, **given})


def levels(split: data.Pictures) -> torch.Tensor:
    """A split's pictures as they are shown at 1/1.125 of their size, so that they are only cut: not scaled."""
    return split.batch(range(len(split)))[0]


def shown(content: np.ndarray) -> torch.Tensor:
    """What `load` shows of (N, 20, 16, 3)."""
    from PIL import Image

    from nextscale import images

    scaled = [
        images.uint8_from_pil(images.resize_to_cover(Image.fromarray(each), height=20, width=16, margin=1.125))
        for each in content
    ]
    return images.from_uint8(torch.stack([images.center_crop(each, height=20, width=16) for each in scaled]))


def by_place(loaded: data.DataSet) -> dict[str, tuple[torch.Tensor, str]]:
    """By name the picture and its class."""
    return {
        name: (image, loaded.classes[label])
        for split in (loaded.train, loaded.validation)
        for name, image, label in zip(split.names, levels(split), split.labels.tolist(), strict=True)
    }


# ---- NumPy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 2**31], ids=["on demand", "in memory"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read(save: Any, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored or packed; classes are numbers, sorted as such."""
    monkeypatch.setattr(reading, "MEMORY", memory)
    content, labels = pictures(12), np.array([10, 9, 2] * 4)
    save(tmp_path / "x.npz", content, labels)
    loaded = load(tmp_path / "x.npz")
    assert loaded.classes == ("2", "9", "10")
    found = by_place(loaded)
    for place, expected in enumerate(shown(content)):
        image, label = found[f"arr_0/{place}"]
        assert torch.equal(image, expected)
        assert label == str(labels[place])
    assert loaded.told == ["held out: 5 % by hash of name and place", "pictures are arr_0, classes arr_1"]


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        (("x_train", "y_train"), ("x_test", "y_test")),
        (("train_images", "train_labels"), ("val_images", "val_labels")),
        (("train/pictures", "train/cls"), ("valid/pictures", "valid/cls")),
    ],
)
def test_names_of_keys_are_splits(train: tuple[str, str], held_out: tuple[str, str], tmp_path: Path) -> None:
    """As Keras and MedMNIST call them; a third one is not used, and told."""
    every = {
        train[0]: pictures(5),
        train[1]: np.arange(5) % 2,
        held_out[0]: pictures(3, seed=1),
        held_out[1]: [[1], [0], [1]],
    }
    every |= {"test_pictures": pictures(2), "test_classes": [0, 1]} if "test" not in held_out[0] else {}
    np.savez(tmp_path / "x.npz", **{name: np.asarray(array) for name, array in every.items()})
    loaded = load(tmp_path / "x.npz")
    assert loaded.train.labels.tolist() == [0, 1, 0, 1, 0]
    assert loaded.validation.labels.tolist() == [1, 0, 1]
    assert torch.equal(levels(loaded.validation), shown(pictures(3, seed=1)))
    assert loaded.held_out == held_out[0] + ("" if "test" in held_out[0] else "; test_pictures not used")


def test_npy_files_belong_together_by_their_names(tmp_path: Path) -> None:
    """Alone, one class; in a folder, one of pictures and one of labels a split. They are mapped, not read."""
    np.save(tmp_path / "images.npy", pictures(6))
    assert load(tmp_path / "images.npy").classes == ("images",)
    np.save(tmp_path / "labels.npy", np.array(["b", "a", "é"] * 2))
    np.save(tmp_path / "weights.npy", np.ones((6, 3)))
    loaded = load(tmp_path)
    assert loaded.classes == ("a", "b", "é")
    assert [by_place(loaded)[f"images/{n}"][1] for n in range(6)] == ["b", "a", "é"] * 2
    assert loaded.told[-1] == "left out: 1 array of other kinds"
    assert load(tmp_path, labels="none").classes == (tmp_path.name,)


def test_several_npz_files_are_splits_by_their_names(tmp_path: Path) -> None:
    """With the same keys in each."""
    for name, count in (("train", 4), ("test", 2)):
        np.savez(tmp_path / f"{name}.npz", data=pictures(count), labels=np.arange(count) % 2)
    loaded = load(tmp_path)
    assert (loaded.train.names[0], len(loaded.train), loaded.validation.names) == (
        "train/data/0",
        4,
        ("test/data/0", "test/data/1"),
    )


@pytest.mark.parametrize("sides", [(20, 16, 1), (20, 16), (1, 20, 16), (3, 20, 16)])
@pytest.mark.parametrize("by_columns", [False, True])
def test_pictures_may_be_grey_or_have_channels_in_front(
    sides: tuple[int, ...], by_columns: bool, tmp_path: Path
) -> None:
    """In either order of an array; the same pixels as plain ones."""
    content = pictures(4, *sides)
    np.save(tmp_path / "x.npy", np.asfortranarray(content) if by_columns else content)
    loaded = load(tmp_path / "x.npy")
    last = content[..., None] if len(sides) == 2 else content.transpose(0, 2, 3, 1) if sides[0] in (1, 3) else content
    expected = shown(np.broadcast_to(last, (4, 20, 16, 3)))
    for place in range(4):
        assert torch.equal(by_place(loaded)[f"x/{place}"][0], expected[place])
    assert any("channels in front" in line for line in loaded.told) == (sides[0] in (1, 3))


def test_arrays_that_may_be_several_are_asked_for(tmp_path: Path) -> None:
    """By their keys."""
    every = {
        "left": pictures(4),
        "right": pictures(4, seed=1),
        "kind_label": np.arange(4),
        "size_label": np.zeros(4, int),
    }
    np.savez(tmp_path / "x.npz", **every)
    with pytest.raises(InputError, match="one array of pictures in .*, got left, right: --image-column names one"):
        load(tmp_path / "x.npz")
    with pytest.raises(InputError, match="for left in .*, got kind_label, size_label: --label-column names one"):
        load(tmp_path / "x.npz", columns=Columns(image="left"))
    loaded = load(tmp_path / "x.npz", columns=Columns(image="right", label="kind_label"))
    assert loaded.classes == ("0", "1", "2", "3")
    assert torch.equal(by_place(loaded)["right/2"][0], shown(every["right"])[2])
    with pytest.raises(InputError, match=r"expected other with a class for each of right in .*, got \['kind_label', "):
        load(tmp_path / "x.npz", columns=Columns(image="right", label="other"))


def test_what_is_read_on_demand_can_go_to_other_processes(tmp_path: Path) -> None:
    """A mapped array goes as the name of its file."""
    np.save(tmp_path / "x.npy", pictures(5000))
    found = arrays.find(tmp_path / "x.npy", Columns())
    assert found is not None
    store = arrays.survey(found).items.chosen(np.array([4999])).store
    assert len(pickle.dumps(store)) < 100_000
    assert pickle.loads(pickle.dumps(store)).open(0).read() == store.open(0).read()


@pytest.mark.parametrize(
    ("every", "message"),
    [
        ({"a": np.ones((4, 20, 16, 3), np.float32)}, r"pictures as uint8, .*, got a float32 \(4, 20, 16, 3\)"),
        ({"a": np.ones((4, 20, 16, 2), np.uint8)}, r"got a uint8 \(4, 20, 16, 2\)"),
        ({}, "got none"),
        ({"a": pictures(4), "y": np.array([b"x", b"nan"] * 2)}, r"y in .*: expected a label, got nan"),
        (
            {"x_train": pictures(4), "y_train": [0, 1] * 2, "x_val": pictures(2), "y_val": [0, 2]},
            "the 2 classes in x_val, got '2'",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_one_clear_line(every: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    """With what there is."""
    np.savez(tmp_path / "x.npz", **{name: np.asarray(array) for name, array in every.items()})
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / "x.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"captions": "own"}, "expected no captions and no files outside of the arrays in"),
        ({"columns": Columns(outside=True)}, "expected no captions and no files outside of the arrays in"),
        ({"labels": "x.csv"}, "expected none as labels of the arrays in"),
        (
            {"labels": "none", "columns": Columns(label="arr_1")},
            "--label-column arr_1: expected no other labels, got none",
        ),
        ({"columns": Columns(image="other")}, "expected other of pictures as uint8"),
    ],
)
def test_what_arrays_cannot_give_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    """One line each."""
    np.savez(tmp_path / "x.npz", pictures(4), np.arange(4))
    with pytest.raises(InputError, match=message):
        load(tmp_path / "x.npz", **given)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    """Whatever they would do."""
    np.save(tmp_path / "x.npy", np.array([Trap(tmp_path / "sprung")] * 4, dtype=object), allow_pickle=True)
    np.savez(tmp_path / "y.npz", pictures(4), np.array([Trap(tmp_path / "sprung")] * 4, dtype=object))
    for name in ("x.npy", "y.npz"):
        with pytest.raises(InputError, match="expected arrays as NumPy saves them, got .*: an array of object"):
            load(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x\.npy: EOF: reading magic string"),
        (b"\x93NUMPY\x01\x00" + b"\xff" * 70, "x.npy: a damaged header"),
        (b"\x93NUMPY\x01\x00\x02\x00((", "x.npy: a damaged header"),
        (b"\x93NUMPY\x07\x00" + b" " * 70, r"x\.npy: .*version.*7"),
        (None, "cut short: 3,840 bytes for an array of"),
    ],
)
def test_damaged_files_are_one_clear_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    """In .npy, and in an .npz that packs less than it declares."""
    np.save(tmp_path / "x.npy", pictures(5))
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[: 128 + 3840] if content is None else content)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / "x.npy")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="expected a file of arrays, found nothing at"):
        load(tmp_path / "y.npy")


def test_an_array_that_unpacks_to_other_than_it_declares_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it takes room: more than a bound, or more and less than the header says."""
    import zipfile

    np.save(tmp_path / "x.npy", np.zeros((9, 20, 16, 3), np.uint8))
    whole = (tmp_path / "x.npy").read_bytes()
    huge = whole.replace(b"(9, 20, 16, 3)", b"(9**0, 2, 1, 3)"[:14])
    assert huge != whole
    for content, message in (
        (whole.replace(b"(9, 20", b"(8, 20"), "other than the 7,680 bytes that it declares"),
        (whole[:-1], "other than the 8,640 bytes that it declares"),
        (huge, "x.npz: "),
    ):
        with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as out:
            out.writestr("a.npy", content)
        with pytest.raises(InputError, match=message):
            load(tmp_path / "x.npz")
    monkeypatch.setattr(arrays, "MOST_UNPACKED", 8639)
    np.savez_compressed(tmp_path / "x.npz", np.zeros((9, 20, 16, 3), np.uint8))
    with pytest.raises(InputError, match="8,640 bytes, of more than 8,639 only those that are not packed are read"):
        load(tmp_path / "x.npz")


def test_a_file_cut_short_later_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another process, since it was listed."""
    np.save(tmp_path / "x.npy", pictures(6))
    found = arrays.find(tmp_path / "x.npy", Columns())
    assert found is not None
    store = pickle.loads(pickle.dumps(arrays.survey(found).items.store))
    os.truncate(tmp_path / "x.npy", 200)
    with pytest.raises(OSError, match="cut short since it was listed"):
        store.open(3)


# ---- MNIST -----------------------------------------------------------------------------------------------------------


def idx(path: Path, content: np.ndarray) -> None:
    """As the files of MNIST are; packed if the name says so."""
    head = bytes([0, 0, 8, content.ndim]) + struct.pack(f">{content.ndim}I", *content.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(head + content.tobytes()) if path.suffix == ".gz" else head + content.tobytes())


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dash", ["-", "."])
def test_idx_files_are_read(suffix: str, dash: str, tmp_path: Path) -> None:
    """Train and t10k, pictures and labels, packed or not, also one folder down."""
    for split, count in (("train", 8), ("t10k", 4)):
        content = pictures(count, 20, 16, seed=count)
        idx(tmp_path / "raw" / f"{split}-images{dash}idx3-ubyte{suffix}", content)
        idx(tmp_path / "raw" / f"{split}-labels{dash}idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 4)
    loaded = load(tmp_path)
    assert loaded.classes == ("0", "1", "2", "3")
    assert loaded.validation.labels.tolist() == [0, 1, 2, 3]
    assert torch.equal(levels(loaded.validation), shown(np.repeat(pictures(4, 20, 16, seed=4)[..., None], 3, axis=3)))
    assert loaded.held_out == "t10k-images"


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no array of bytes|expected an idx file"),
        (b"\0\0\x0d\1\0\0\0\1" + bytes(4), "no array of bytes"),
        (b"\0\0\x08\3\0\0\0\1", "cut short"),
        (b"\0\0\x08\1\0\0\0\5" + bytes(4), "expected 5 bytes behind 8|other than the 5 bytes"),
        (b"\0\0\x08\1\0\0\0\5" + bytes(6), "expected 5 bytes behind 8|other than the 5 bytes"),
        (
            b"\0\0\x08\2\xff\xff\xff\xff\xff\xff\xff\xff",
            "bytes, of more than|expected 18,446,744,065,119,617,025 bytes",
        ),
    ],
)
def test_damaged_idx_files_are_one_clear_line(content: bytes, message: str, suffix: str, tmp_path: Path) -> None:
    """Whatever they declare."""
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    if suffix:
        path.write_bytes(gzip.compress(bytes(1000))[:-9])
        with pytest.raises(InputError, match="expected an idx file of bytes, got"):
            load(tmp_path)


# ---- CIFAR -----------------------------------------------------------------------------------------------------------


class Trap:
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def batch(path: Path, content: Mapping[Any, Any], *, protocol: int = 2) -> None:
    """A pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(dict(content), protocol=protocol))


def cifar_10(root: Path, *, protocol: int = 2) -> np.ndarray:
    """Five batches, a test, and names: as in Python 2, keys are bytes. The pictures to train on come back."""
    every = pictures(20, 3, 32, 32)
    for number in range(5):
        rows = every[4 * number : 4 * number + 4].reshape(4, -1)
        content = {b"data": rows, b"labels": [0, 1, 2, 1], b"filenames": [b"x.png"] * 4, b"batch_label": b"x"}
        batch(root / f"data_batch_{number + 1}", content, protocol=protocol)
    batch(root / "test_batch", {b"data": every[:2].reshape(2, -1), b"labels": [2, 0]}, protocol=protocol)
    batch(root / "batches.meta", {b"label_names": [b"plane", b"car", b"bird"], b"num_vis": 3072}, protocol=protocol)
    (root / "readme.html").write_text("text")
    return every


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_batches_of_cifar_10_are_read(protocol: int, tmp_path: Path) -> None:
    """With the names of their classes; the test is held out."""
    every = cifar_10(tmp_path / "cifar-10-batches-py", protocol=protocol)
    loaded = load(tmp_path, height=32, width=32)
    assert loaded.classes == ("plane", "car", "bird")
    assert loaded.train.labels.tolist() == [0, 1, 2, 1] * 5
    assert loaded.validation.labels.tolist() == [2, 0]
    assert loaded.train.names[5] == "data_batch_2/1"
    np.save(tmp_path / "same.npy", every.transpose(0, 2, 3, 1))
    same = by_place(load(tmp_path / "same.npy", height=32, width=32))
    assert torch.equal(levels(loaded.train)[7], same["same/7"][0])
    assert loaded.told[:2] == ["held out: test_batch", "pictures are data_batch_1 and 5 more, classes labels"]


def test_cifar_100_has_two_kinds_of_classes(tmp_path: Path) -> None:
    """One of which is asked for."""
    for name, count in (("train", 6), ("test", 2)):
        rows = pictures(count, 3072)
        content = {b"data": rows, b"fine_labels": [n % 3 for n in range(count)], b"coarse_labels": [0] * count}
        batch(tmp_path / name, content)
    batch(tmp_path / "meta", {b"fine_label_names": [b"a", b"b", b"c"], b"coarse_label_names": [b"all", b"none"]})
    with pytest.raises(InputError, match="got fine_labels, coarse_labels: --label-column names one"):
        load(tmp_path)
    assert load(tmp_path, columns=Columns(label="fine_labels")).classes == ("a", "b", "c")
    assert load(tmp_path, columns=Columns(label="coarse_labels")).classes == ("all", "none")


TRAPS: dict[str, Any] = {
    "in the data": lambda trap: {b"data": trap},
    "among the labels": lambda trap: {b"data": pictures(2, 3072), b"labels": [0, trap]},
    "as a key": lambda trap: {b"data": pictures(2, 3072), b"labels": [0, 1], trap: 1},
}


@pytest.mark.parametrize("make", TRAPS.values(), ids=TRAPS.keys())
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_is_run_by_reading_a_batch(make: Any, protocol: int, tmp_path: Path) -> None:
    """What it asks for is named."""
    batch(tmp_path / "d" / "data_batch_1", make(Trap(tmp_path / "sprung")), protocol=protocol)
    with pytest.raises(InputError, match=r"data_batch_1: it asks for (posix|nt)\.mkdir, which was not run"):
        load(tmp_path / "d")
    assert not (tmp_path / "sprung").exists()


def nested(depth: int) -> bytes:
    """A pickle of a tuple in a tuple, and so on, as a key: its hash would leave the stack."""
    return b"\x80\x02}" + b")" + b"\x85" * depth + b"K\x01s."


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"cposix\nsystem\n(S'true'\ntR.",
        b"cnumpy\nndarray\n((I99999999999\ntS'u1'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR.",
        nested(100_000),
        b"\x80\x02\x8b\x7f\xff\xff\xff.",
        b"\x80\x04\x96" + struct.pack("<Q", 2**60) + b".",
        b"\x80\x05\x82\x01.",
        b"Pid\n.",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": 7}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.float32), b"labels": [0, 1]}, protocol=2),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, protocol=2),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, "x"]}, protocol=2),
        pickle.dumps({b"data": np.array([object()] * 2), b"labels": [0, 1]}, protocol=2),
    ],
)
def test_any_other_pickle_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    """Damaged, made to harm, or of something else."""
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(InputError, match=r"expected .*data_batch_1") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_names_alone_are_no_data(tmp_path: Path) -> None:
    """And those of a class that is no text are refused."""
    batch(tmp_path / "meta", {b"fine_label_names": [b"a"]})
    with pytest.raises(InputError, match=r"expected batches of CIFAR in .*, got meta alone"):
        load(tmp_path)
    batch(tmp_path / "meta", {b"fine_label_names": [7]})
    with pytest.raises(InputError, match=r"expected names of classes in .*meta, got '7'"):
        load(tmp_path)
    assert "train" in cifar.NAMES
