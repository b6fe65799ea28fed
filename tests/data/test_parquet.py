"""Laws of parquet and Arrow files: what `datasets` writes is read as it reads it, and what is unsure is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from nextscale import data
from nextscale.data import Columns, arrow, parquet, reading
from nextscale.errors import InputError

PAIR = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(seed: int) -> bytes:
    """Noise of 20x20 pixels as PNG."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "png")
    return buffer.getvalue()


def pictures(numbers: Sequence[int]) -> pa.Array:
    """A column as `datasets` writes it."""
    return pa.array([{"bytes": picture(n), "path": f"pet-{n}.png"} for n in numbers], PAIR)


def pets(numbers: Sequence[int], **columns: Any) -> pa.Table:
    """With the classes of `datasets` and captions, unless other columns are given."""
    usual = {"label": [n % 2 for n in numbers], "text": [f"pet {n}" for n in numbers]}
    table = pa.table({"image": pictures(numbers), **(columns or usual)})
    return noted(table, label={"_type": "ClassLabel", "names": ["zebra", "ant"]}) if not columns else table


def noted(table: pa.Table, **features: Any) -> pa.Table:
    """With the types that `datasets` notes in a schema."""
    every = {"image": {"_type": "Image"}, **features}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": every}})})


def put(path: Path, table: pa.Table, **options: Any) -> Path:
    """As pyarrow writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, **options)
    return path


def load(source: Path | str, **given: Any) -> data.DataSet:
    """At 16 px."""
    return data.load(source, **{"height": 16, "width": 16, **given})


def everything(loaded: data.DataSet) -> dict[str, tuple[bytes, str, tuple[str, ...]]]:
    """By name the pixels, the class and the captions."""
    return {
        name: (image.numpy().tobytes(), loaded.classes[label], those)
        for split in (loaded.train, loaded.validation)
        for name, image, label, those in zip(
            split.names,
            split.batch(range(len(split)))[0],
            split.labels.tolist(),
            split.captions or [()] * len(split),
            strict=True,
        )
    }


def in_folder(root: Path, numbers: Sequence[int]) -> dict[int, bytes]:
    """The pixels that a folder of the same pictures gives."""
    for n in numbers:
        (root / f"{n:03}.png").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{n:03}.png").write_bytes(picture(n))
    return {int(Path(name).stem): pixels for name, (pixels, _, _) in everything(load(root)).items()}


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 2**31], ids=["on demand", "in memory"])
def test_files_of_the_hub_are_read(memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures, names of the classes in their order, captions, and the splits that the names say."""
    monkeypatch.setattr(reading, "MEMORY", memory)
    for part in range(2):
        put(tmp_path / f"hub/data/train-0000{part}-of-00002-d34db33f.parquet", pets(range(8 * part, 8 * part + 8)))
    put(tmp_path / "hub/data/validation-00000-of-00001.parquet", pets(range(16, 20)), row_group_size=3)
    put(tmp_path / "hub/data/test-00000-of-00001.parquet", pets(range(20, 22)))
    (tmp_path / "hub/README.md").write_text("card")
    loaded = load(tmp_path / "hub", captions="own")
    assert loaded.classes == ("zebra", "ant")
    assert (len(loaded.train), len(loaded.validation)) == (16, 4)
    pixels = in_folder(tmp_path / "folder", range(20))
    for name, (found, label, captions) in everything(loaded).items():
        file, _, row = name.rpartition("/")
        number = int(row) + {"train-00000": 0, "train-00001": 8, "validation-": 16}[Path(file).name[:11]]
        assert (found, label, captions) == (pixels[number], ("zebra", "ant")[number % 2], (f"pet {number}",))
    assert loaded.told[:3] == [
        "held out: data/validation-00000-of-00001.parquet; data/test-00000-of-00001.parquet not used",
        "pictures are the column image, classes label, captions text",
        "20 captions of 20 of 20 pictures",
    ]
    assert loaded.told[-1] == "left out: 1 other file"


def test_a_file_a_pattern_and_a_folder_are_the_same(tmp_path: Path) -> None:
    """Without splits 5 % is held out, by file and row."""
    path = put(tmp_path / "all.parquet", pets(range(40)))
    loaded = [load(source) for source in (path, f"{tmp_path}/*.parquet", f"{tmp_path}/{{all,all}}.parquet", tmp_path)]
    assert {one.train.fingerprint for one in loaded} == {loaded[0].train.fingerprint}
    assert {one.validation.names for one in loaded} == {loaded[0].validation.names}
    assert len(loaded[0].validation) == 2
    assert loaded[0].held_out == "5 % by hash of file and row"


def test_plain_bytes_are_pictures_too(tmp_path: Path) -> None:
    """As pandas writes them, with classes in numbers or texts, which are sorted; the schema says nothing."""
    for label, classes in (
        (["b", "a", "b", "a"], ("a", "b")),
        ([10, 9, 9, 10], ("9", "10")),
        ([1.0, 2.0] * 2, ("1", "2")),
    ):
        table = pa.table({"jpg": pa.array([picture(n) for n in range(4)]), "cls": label})
        loaded = load(put(tmp_path / "x.parquet", table))
        assert loaded.classes == classes
        numbers = {int(name[-1]): shown for name, (_, shown, _) in everything(loaded).items()}
        assert [numbers[n] for n in range(4)] == [str(value).removesuffix(".0") for value in label]


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_files_of_both_kinds_are_read(kind: str, tmp_path: Path) -> None:
    """Mapped, with several batches."""
    table = pets(range(12))
    writer = {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}[kind]
    with writer(tmp_path / "x.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=5)
    put(tmp_path / "x.parquet", table)
    one, other = (everything(load(tmp_path / f"x.{suffix}", captions="own")) for suffix in ("arrow", "parquet"))
    assert [one[name] for name in sorted(one)] == [other[name.replace("arrow", "parquet")] for name in sorted(one)]


def test_columns_that_may_be_several_are_asked_for(tmp_path: Path) -> None:
    """By name; each is told of with what it may be."""
    table = pa.table(
        {
            "front": pictures(range(4)),
            "back": pictures(range(4, 8)),
            "fine": [0, 1, 0, 1],
            "coarse": [1, 1, 0, 0],
            "english": ["a", "b", "c", "d"],
            "german": [["e"], ["f", "g"], [], None],
        }
    )
    classes = {name: {"_type": "ClassLabel", "names": [f"{name} {n}" for n in range(2)]} for name in ("fine", "coarse")}
    path = put(tmp_path / "x.parquet", noted(table, front={"_type": "Image"}, back={"_type": "Image"}, **classes))
    with pytest.raises(InputError, match="one column of pictures, got front, back: --image-column names one"):
        load(path)
    with pytest.raises(InputError, match="one column of classes, got fine, coarse: --label-column names one"):
        load(path, columns=Columns(image="back"))
    with pytest.raises(InputError, match="one column of captions, got english, german: --caption-column names one"):
        load(path, captions="own", columns=Columns(image="back", label="fine"))
    loaded = load(path, columns=Columns(image="back", label="coarse", caption="german"))
    found = everything(loaded)
    assert [found[f"x.parquet/{n}"][1:] for n in range(4)] == [
        ("coarse 1", ("e",)),
        ("coarse 1", ("f", "g")),
        ("coarse 0", ()),
        ("coarse 0", ()),
    ]
    pixels = in_folder(tmp_path / "folder", range(8))
    assert found["x.parquet/2"][0] == pixels[6]
    assert load(path, labels="none", columns=Columns(image="front")).classes == (tmp_path.name,)


def test_names_of_pictures_are_captions_on_demand(tmp_path: Path) -> None:
    """The words of their paths, without the numbers at their ends."""
    loaded = load(put(tmp_path / "x.parquet", pets(range(4))), captions="names")
    assert {those for _, _, those in everything(loaded).values()} == {("pet",)}


def test_a_test_split_without_classes_is_not_used(tmp_path: Path) -> None:
    """As many have on the hub: -1, or nothing."""
    put(tmp_path / "train-0.parquet", pets(range(40)))
    for nothing in (-1, None):
        labels = pa.array([nothing] * 4, pa.int64())
        hidden = pets(range(40, 44)).set_column(1, "label", labels)
        put(tmp_path / "test-0.parquet", hidden.replace_schema_metadata(pets([0]).schema.metadata))
        loaded = load(tmp_path)
        assert loaded.held_out == "5 % by hash of file and row; test-0.parquet has no classes and is not used"
        assert (len(loaded.train), len(loaded.validation)) == (38, 2)


def test_pictures_may_lie_beside(tmp_path: Path) -> None:
    """By their paths, where a row has no bytes; out of the folder only where the user says so."""
    for name in ("in/a.png", "in/b.png", "out.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture(len(name)))
    there = str(tmp_path / "out.png")
    for name in (there, "../out.png"):
        cells = [{"bytes": None, "path": each} for each in ("a.png", "b.png", name)]
        path = put(tmp_path / "in" / "x.parquet", noted(pa.table({"image": pa.array(cells, PAIR)})))
        reasons: dict[str, str] = {}
        loaded = load(path, max_broken=0.5, broken=reasons.__setitem__)
        assert len(loaded.train) + len(loaded.validation) == 2
        assert reasons == {"x.parquet/2": "a path out of the folder (--outside-files takes others, too)"}
        loaded = load(path, columns=Columns(outside=True))
        assert len(loaded.train) + len(loaded.validation) == 3


def test_a_folder_of_pictures_with_tables_beside_stays_one(tmp_path: Path) -> None:
    """Metadata in parquet is metadata, and other parquet files are counted."""
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    put(
        tmp_path / "metadata.parquet", pa.table({"file_name": [f"{n}.png" for n in range(3)], "label": ["a", "b", "a"]})
    )
    put(tmp_path / "other.parquet", pa.table({"x": [1]}))
    loaded = load(tmp_path)
    assert loaded.classes == ("a", "b")
    assert loaded.told[-1] == "left out: 1 .parquet"


def test_what_is_read_on_demand_can_go_to_other_processes(tmp_path: Path) -> None:
    """A store is pickled without what it has read."""
    found = parquet.find(put(tmp_path / "x.parquet", pets(range(6))))
    assert found is not None
    store = parquet.survey(found).items.store
    assert store.open(3).read() == picture(3)
    again = pickle.loads(pickle.dumps(store))
    assert again.open(5).read() == picture(5)
    assert len(pickle.dumps(store)) < 3000


def test_large_pieces_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where much is unpacked for each picture, and not all of it is kept."""
    path = put(tmp_path / "x.parquet", pets(range(40)))
    assert not any("unpacked" in line for line in load(path).told)
    monkeypatch.setattr(parquet, "LARGE", 1000)
    monkeypatch.setattr(parquet, "MEMORY", 1000)
    assert "0 MB are unpacked to read a picture: smaller row groups, or shards, are faster" in load(path).told


# ---- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, None, 1, 1]}, "a class in each of 4 rows, 1 has none, such as x.parquet/1; labels none takes"),
        ({"label": ["a", "", "b", "b"]}, "a class in each of 4 rows, 1 has none, such as x.parquet/1"),
        ({"label": ["1", "01", "1", "2"]}, "every number written in one way in label of .*, got 1 and 01"),
        ({"label": ["nan", "a", "a", "a"]}, "x.parquet: expected a label, got nan"),
        ({"label": ["a\tb\0", "a", "a", "a"]}, r"classes of at most 255 letters that print, got 'a b\\x00'"),
        ({"label": ["a" * 256, "a", "a", "a"]}, "classes of at most 255 letters that print"),
        ({"image": pa.array([1, 2, 3, 4])}, "x.parquet: expected a column of pictures as bytes, got image"),
    ],
)
def test_classes_that_are_none_are_one_clear_line(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    """With the file, and the row where it can be told."""
    table = pa.table({"image": pictures(range(4)), **columns})
    with pytest.raises(InputError, match=message) as caught:
        load(put(tmp_path / "x.parquet", table))
    assert "\n" not in str(caught.value)


def test_a_number_of_no_class_is_refused(tmp_path: Path) -> None:
    """By the names in the schema."""
    table = pets(range(4)).set_column(1, "label", pa.array([0, 1, 2, 1]))
    path = put(tmp_path / "x.parquet", table.replace_schema_metadata(pets([0]).schema.metadata))
    with pytest.raises(InputError, match=r"x\.parquet, row 3: expected one of 2 classes, got 2"):
        load(path)


@pytest.mark.parametrize("names", ["ant", [], [1, 2], ["ant", ""]])
def test_names_that_are_none_are_refused(names: object, tmp_path: Path) -> None:
    """In the schema."""
    path = put(tmp_path / "x.parquet", noted(pets(range(4)), label={"_type": "ClassLabel", "names": names}))
    with pytest.raises(InputError, match="the names of the classes of label as a list, got"):
        load(path)


def test_a_class_that_is_held_out_alone_is_refused(tmp_path: Path) -> None:
    """As in folders."""
    put(tmp_path / "train.parquet", pets(range(4), label=["a", "b", "a", "b"]))
    put(tmp_path / "val.parquet", pets(range(4), label=["a", "b", "c", "b"]))
    with pytest.raises(InputError, match=r"expected one of the 2 classes in val\.parquet, got 'c'"):
        load(tmp_path)


def test_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    """Other names, other types, other classes."""
    put(tmp_path / "a.parquet", pets(range(4)))
    others = {
        "expected a column label as in .*a.parquet, got none": pets(range(4), kind=[1, 2, 3, 4]),
        "expected label of the type int64 as in .*a.parquet, got string": pets(
            range(4), label=list("abcd"), text=list("abcd")
        ),
        "expected the classes of label as in .*a.parquet, got others": noted(
            pets(range(4)), label={"_type": "ClassLabel", "names": ["ant", "zebra"]}
        ),
    }
    for message, table in others.items():
        put(tmp_path / "b.parquet", table)
        with pytest.raises(InputError, match=message):
            load(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"labels": "folders"},
            "expected none as labels of the files in .*, which lie in no folders of classes, got fo",
        ),
        ({"labels": "x.csv"}, "expected none as labels of the files in .*, which no table can name, got x.csv"),
        ({"captions": "x.csv"}, "expected own or names as captions of the files in"),
        ({"columns": Columns(image="x")}, "expected a column x, got image, label, text"),
        ({"columns": Columns(caption="x")}, "expected a column x"),
        (
            {"columns": Columns(label="label"), "labels": "none"},
            "--label-column label: expected no other labels, got none",
        ),
        ({"columns": Columns(caption="x"), "captions": "names"}, "--caption-column x: expected no other captions"),
        ({"columns": Columns(image="text")}, "expected at most 1.0% unreadable pictures"),
    ],
)
def test_what_is_asked_for_and_cannot_be_had_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    """One line; a column of texts is one of paths."""
    with pytest.raises(InputError, match=message):
        load(put(tmp_path / "x.parquet", pets(range(4))), **given)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 1000, None])
def test_damaged_files_are_one_clear_line(suffix: str, content: bytes | None, tmp_path: Path) -> None:
    """Also those cut short, and links to nothing."""
    path = tmp_path / f"x{suffix}"
    if content is None:
        table = pets(range(12))
        put(path, table)
        if suffix == ".arrow":
            with pa.ipc.new_stream(path, table.schema) as out:
                out.write_table(table)
        content = path.read_bytes()[:-5]
    path.write_bytes(content)
    kind = "parquet" if suffix == ".parquet" else "Arrow"
    with pytest.raises(InputError, match=rf"expected a whole {kind} file, got .*x\{suffix}: ") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    os.unlink(path)
    with pytest.raises(InputError, match="expected a parquet or Arrow file, found nothing at"):
        load(path)


def test_a_damaged_page_is_one_unreadable_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and when it breaks later."""
    monkeypatch.setattr(reading, "MEMORY", 0)
    monkeypatch.setattr(arrow, "MEMORY", 0)
    options = {"use_dictionary": False, "write_statistics": False, "data_page_size": 1, "write_batch_size": 1}
    path = put(tmp_path / "x.parquet", pets(range(12)), **options)
    whole = path.read_bytes()
    at = whole.index(picture(5)[100:160])  # noise is not packed
    path.write_bytes(whole[: at - 80] + b"\xff" * 30 + whole[at - 50 :])
    loaded = load(path, max_broken=0.5)
    assert loaded.broken == ("x.parquet/5",)
    path.write_bytes(whole)
    loaded = load(path)
    loaded.validation.batch([0])  # the page that was read last stays in memory
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(InputError, match="expected a readable picture among"):
        loaded.train.batch([0])


# ---- beside the library that writes them -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A data set of `datasets`, 30 pictures in two splits, and a folder to write to."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["zebra", "ant", "bee"]),
            "caption": datasets.List(datasets.Value("string")),
        }
    )

    def split(numbers: Sequence[int]) -> Any:
        columns = {
            "image": [{"bytes": picture(n), "path": f"{n}.png"} for n in numbers],
            "label": [n % 3 for n in numbers],
            "caption": [[f"number {n}", "more"] for n in numbers],
        }
        return datasets.Dataset.from_dict(columns, features=features)

    return datasets.DatasetDict(train=split(range(24)), test=split(range(24, 30))), tmp_path_factory.mktemp("written")


def to_parquet(made: Any, folder: Path) -> None:
    """A file a split."""
    for name, split in made.items():
        split.to_parquet(str(folder / f"{name}-00000-of-00001.parquet"), batch_size=10)


def to_disk(made: Any, folder: Path) -> None:
    """Several files a split, and caches of what was done since."""
    made.save_to_disk(str(folder), num_shards={"train": 3, "test": 1})
    (folder / "train" / "cache-0123456789abcdef.arrow").write_bytes(b"anything")


@pytest.mark.slow
@pytest.mark.parametrize("write", [to_parquet, to_disk])
def test_what_datasets_writes_is_read_as_it_reads_it(
    write: Callable[[Any, Path], None], written: Any, tmp_path: Path
) -> None:
    """Pictures, labels, captions and splits, in their order."""
    made, _ = written
    (tmp_path / "d").mkdir()
    write(made, tmp_path / "d")
    loaded = load(tmp_path / "d", captions="own", height=20, width=20)
    assert loaded.classes == tuple(made["train"].features["label"].names)
    for split, theirs in ((loaded.train, made["train"]), (loaded.validation, made["test"])):
        assert split.labels.tolist() == theirs["label"]
        assert list(split.captions or ()) == [tuple(those) for those in theirs["caption"]]
    pixels = in_folder(tmp_path / "folder", range(30))
    found = [value[0] for value in everything(load(tmp_path / "d")).values()]
    assert found == [pixels[n] for n in range(30)]
    if write is to_disk:
        assert loaded.told[-1] == "left out: 1 file of a cache"
