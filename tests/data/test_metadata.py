"""Laws of metadata beside pictures: it says what folders and tables would, and reads no file that was not allowed."""

from __future__ import annotations

import builtins
import csv
import gc
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from nextscale import data
from nextscale.data import Columns
from nextscale.errors import InputError

Rows = Sequence[Mapping[str, Any]]


def put(path: Path, *, seed: int = 0) -> Path:
    """A small picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def as_csv(folder: Path, rows: Rows) -> Path:
    """As Python's own module writes it."""
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "metadata.csv"


def as_json(folder: Path, rows: Rows) -> Path:
    """An object a line."""
    path = folder / "metadata.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def as_parquet(folder: Path, rows: Rows) -> Path:
    """As pyarrow writes it."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), folder / "metadata.parquet")
    return folder / "metadata.parquet"


WRITERS = (as_csv, as_json, as_parquet)


def load(root: Path, **given: Any) -> data.DataSet:
    """At 16 px."""
    return data.load(root, height=16, width=16, **given)


def by_name(loaded: data.DataSet) -> dict[str, str]:
    """The class of each picture."""
    return {
        name: loaded.classes[label]
        for split in (loaded.train, loaded.validation)
        for name, label in zip(split.names, split.labels.tolist(), strict=True)
    }


def captions_of(loaded: data.DataSet) -> dict[str, tuple[str, ...]]:
    """Those of each picture."""
    return {
        name: those
        for split in (loaded.train, loaded.validation)
        for name, those in zip(split.names, split.captions or (), strict=True)
    }


def pets(root: Path, write: Callable[[Path, Rows], Path], **more: Sequence[Any]) -> Path:
    """Six pictures and a row of each."""
    for number in range(6):
        put(root / f"{number}.png", seed=number)
    columns = {"label": ["dog", "cat"] * 3, **more}
    write(root, [{"file_name": f"{n}.png", **{name: column[n] for name, column in columns.items()}} for n in range(6)])
    return root


# ---- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", WRITERS)
def test_metadata_tells_classes_and_captions(write: Callable[[Path, Rows], Path], tmp_path: Path) -> None:
    """In any of its three kinds; that it does is told, and the file is not among what is left out."""
    root = pets(tmp_path / "p", write, text=[f"pet {n}" for n in range(6)])
    loaded = load(root, captions="own")
    (file,) = root.glob("metadata.*")
    assert loaded.classes == ("cat", "dog")
    assert by_name(loaded) == {f"{n}.png": ("dog", "cat")[n % 2] for n in range(6)}
    assert captions_of(loaded) == {f"{n}.png": (f"pet {n}",) for n in range(6)}
    assert loaded.told == [
        "held out: 5 % by hash of the name",
        f"classes are the column label of {file.name}",
        f"captions are the column text of {file.name}",
        "6 captions of 6 of 6 pictures",
    ]


def test_metadata_gives_the_same_data_as_a_table(tmp_path: Path) -> None:
    """Order, labels, split and fingerprint."""
    root = pets(tmp_path / "p", as_csv)
    by_metadata, table = load(root), tmp_path / "labels.csv"
    table.write_text("file,label\n" + "".join(f"{n}.png,{('dog', 'cat')[n % 2]}\n" for n in range(6)))
    by_table = load(root, labels=table)
    assert by_metadata.train.names == by_table.train.names
    assert by_metadata.train.fingerprint == by_table.train.fingerprint
    assert torch.equal(by_metadata.train.labels, by_table.train.labels)


@pytest.mark.parametrize("write", WRITERS)
def test_each_split_may_have_metadata_of_its_own(write: Callable[[Path, Rows], Path], tmp_path: Path) -> None:
    """Its names begin from the folder that it lies in, and may go further down; that of an unused split is not read."""
    for split in ("train", "val", "test"):
        for number in range(3):
            put(tmp_path / split / "deep" / f"{number}.png", seed=number + 10 * len(split))
        write(tmp_path / split, [{"file_name": f"deep/{n}.png", "label": n % 2} for n in range(3)])
    for file in (tmp_path / "test").glob("metadata.*"):
        file.write_bytes(b"\xff\xfe")
    loaded = load(tmp_path)
    assert sorted(loaded.validation.names) == [f"val/deep/{n}.png" for n in range(3)]
    assert loaded.classes == ("0", "1")
    assert loaded.train.labels.tolist() == [0, 0, 1]
    assert loaded.told[0] == "held out: val/; test/ not used"


def test_one_file_may_tell_of_both_splits(tmp_path: Path) -> None:
    """From the root."""
    names = [f"{split}/{number}.png" for split in ("train", "val") for number in range(3)]
    for number, name in enumerate(names):
        put(tmp_path / name, seed=number)
    as_json(tmp_path, [{"file_name": name, "label": name[-5]} for name in names])
    loaded = load(tmp_path)
    assert (loaded.train.names, loaded.validation.names) == (tuple(names[:3]), tuple(names[3:]))
    assert loaded.validation.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("label", ["label", "class", "cls"])
@pytest.mark.parametrize("caption", ["caption", "captions", "text", "prompt"])
def test_columns_may_have_any_usual_name(label: str, caption: str, tmp_path: Path) -> None:
    """And several captions a picture; a picture without any has none."""
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    as_json(
        tmp_path,
        [
            {"file_name": "a.png", label: "x", caption: ["one", "two"]},
            {"file_name": "b.png", label: "y", caption: None},
        ],
    )
    loaded = load(tmp_path, captions="own")
    assert loaded.classes == ("x", "y")
    assert captions_of(loaded) == {"a.png": ("one", "two"), "b.png": ()}


def test_columns_of_other_names_are_asked_for(tmp_path: Path) -> None:
    """A column of captions asks for captions, too."""
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    as_json(tmp_path, [{"path": f"{n}.png", "species": n, "label": "?", "said": f"say {n}"} for n in "ab"])
    loaded = load(tmp_path, columns=Columns(image="path", label="species", caption="said"))
    assert by_name(loaded) == {"a.png": "a", "b.png": "b"}
    assert captions_of(loaded) == {"a.png": ("say a",), "b.png": ("say b",)}


def test_a_column_may_end_in_file_name(tmp_path: Path) -> None:
    """Where it is the only one; of several one is asked for."""
    for name in ("a.png", "b.png", "c.png", "d.png"):
        put(tmp_path / name)
    as_csv(tmp_path, [{"image_file_name": "a.png", "label": 1}, {"image_file_name": "b.png", "label": 2}])
    assert by_name(load(tmp_path)) == {"a.png": "1", "b.png": "2"}
    rows = [
        {"image_file_name": "a.png", "mask_file_name": "c.png", "label": 1},
        {"image_file_name": "b.png", "mask_file_name": "d.png", "label": 2},
    ]
    as_csv(tmp_path, rows)
    with pytest.raises(InputError, match="one column of files, got image_file_name, mask_file_name: --image-column"):
        load(tmp_path)
    loaded = load(tmp_path, columns=Columns(image="mask_file_name"))
    assert by_name(loaded) == {"c.png": "1", "d.png": "2"}
    assert loaded.told[-1] == "left out: 2 pictures without a row in metadata.csv"


def test_names_of_classes_in_a_schema_are_the_classes(tmp_path: Path) -> None:
    """As `datasets` notes them: 0 is the first."""
    features = {"label": {"_type": "ClassLabel", "names": ["zebra", "ant"]}}
    for number in range(4):
        put(tmp_path / f"{number}.png", seed=number)
    table = pyarrow.table({"file_name": [f"{n}.png" for n in range(4)], "label": [0, 1, 1, 0]})
    noted = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(noted, tmp_path / "metadata.parquet")
    assert by_name(load(tmp_path)) == {"0.png": "zebra", "1.png": "ant", "2.png": "ant", "3.png": "zebra"}


def test_folders_are_the_classes_unless_metadata_tells_some(tmp_path: Path) -> None:
    """Or they are asked for; a run on folders of classes goes on when captions come beside them."""
    for name in ("cat/1.png", "dog/2.png"):
        put(tmp_path / name)
    before = load(tmp_path)
    as_csv(tmp_path, [{"file_name": "cat/1.png", "text": "a cat"}, {"file_name": "dog/2.png", "text": "a dog"}])
    with_captions = load(tmp_path, captions="own")
    assert with_captions.train.fingerprint == before.train.fingerprint
    assert captions_of(with_captions) == {"cat/1.png": ("a cat",), "dog/2.png": ("a dog",)}
    as_csv(tmp_path, [{"file_name": "cat/1.png", "label": "x"}, {"file_name": "dog/2.png", "label": "y"}])
    assert load(tmp_path).classes == ("x", "y")
    assert load(tmp_path, labels="folders").train.fingerprint == before.train.fingerprint
    assert load(tmp_path, labels="none").classes == (tmp_path.name,)


def test_files_called_metadata_that_name_no_files_are_told(tmp_path: Path) -> None:
    """They may be anyone's."""
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    as_csv(tmp_path, [{"camera": "x", "label": "y"}])
    loaded = load(tmp_path)
    assert len(loaded.classes) == 1
    assert "metadata.csv has no column file_name and is not used" in loaded.told
    assert loaded.told[-1] == "left out: 1 other file"


def test_tables_of_all_kinds_may_be_named(tmp_path: Path) -> None:
    """Labels and captions from JSON lines and parquet, with `file` or `file_name`, and columns of other names."""
    for number in range(4):
        put(tmp_path / "p" / f"{number}.png", seed=number)
    rows = [{"file": f"{n}.png", "kind": n % 2, "said": f"number {n}"} for n in range(4)]
    lines, parquet = as_json(tmp_path, rows), as_parquet(tmp_path, rows)
    for table in (lines, parquet):
        loaded = load(tmp_path / "p", labels=table, captions=table, columns=Columns(label="kind", caption="said"))
        assert by_name(loaded) == {f"{n}.png": str(n % 2) for n in range(4)}
        assert captions_of(loaded) == {f"{n}.png": (f"number {n}",) for n in range(4)}


# ---- pictures outside ------------------------------------------------------------------------------------------------


def test_pictures_outside_are_read_where_the_user_says_so_alone(tmp_path: Path) -> None:
    """By absolute paths, and by `..`; one that lies inside has the name that it has there."""
    inside, there = put(tmp_path / "p" / "in.png", seed=1), put(tmp_path / "there" / "out.png", seed=2)
    for name in (str(there), "../there/out.png"):
        as_json(tmp_path / "p", [{"file_name": name, "label": "x"}, {"file_name": str(inside), "label": "y"}])
        with pytest.raises(
            InputError, match=r"line 1: expected a path below .*; --outside-files takes others"
        ) as caught:
            load(tmp_path / "p")
        assert "\n" not in str(caught.value)
        loaded = load(tmp_path / "p", columns=Columns(outside=True))
        assert by_name(loaded) == {str(there): "x", "in.png": "y"}
        assert len(loaded.train.batch([0])[0]) == 1


def test_splits_may_be_metadata_alone(tmp_path: Path) -> None:
    """Where all pictures lie outside."""
    for number in range(4):
        put(tmp_path / "all" / f"{number}.png", seed=number)
    for split, numbers in (("train", (0, 1, 2)), ("val", (3,))):
        (tmp_path / "p" / split).mkdir(parents=True)
        as_csv(tmp_path / "p" / split, [{"file_name": tmp_path / "all" / f"{n}.png", "label": "x"} for n in numbers])
    loaded = load(tmp_path / "p", columns=Columns(outside=True))
    assert loaded.validation.names == (f"{tmp_path}/all/3.png",)
    assert len(loaded.train) == 3


# ---- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"file_name": "a.png", "label": "x"}\n[1]\n',
            r"metadata.jsonl, line 2: expected an object in JSON, got '\[1\]'",
        ),
        ('{"file_name": "a.png", "label": \n', "line 1: expected an object in JSON"),
        ("[" * 100_000, "line 1: expected an object in JSON"),
        ('{"file_name": "a.png", "label": ' + "9" * 5000 + "}", "line 1: expected an object in JSON"),
        ('{"file_name": "a.png", "label": ["x"]}', r"line 1: expected a label, text or a number, got \"\['x'\]\""),
        ('{"file_name": "a.png", "label": null}', "line 1: expected a file and a label, got 'a.png,'"),
        ('{"file_name": "a.png", "label": NaN}', "line 1: expected a label, got nan"),
        ('{"file_name": 7, "label": "x"}', "line 1: expected the name of a file as text, got '7'"),
        ('{"file_name": "c.png", "label": "x"}', "line 1: expected a picture below .*, found nothing at 'c.png'"),
        ('{"file_name": "a.txt", "label": "x"}', "line 1: expected a picture .*, got 'a.txt'"),
        ('{"file_name": "a.png", "label": "x"}\n' * 2, "line 2: expected every picture once, got 'a.png' as in line 1"),
        ('{"file_name": "a.png", "label": "x", "label2": 1}', None),
        (b"\xff\xfe\xff", "line 1: expected text in UTF-8, got other bytes"),
    ],
)
def test_metadata_that_does_not_fit_is_one_clear_line(
    content: str | bytes, message: str | None, tmp_path: Path
) -> None:
    """With file and line."""
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    (tmp_path / "metadata.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    if message is None:
        with pytest.raises(InputError, match="expected at least 2 pictures"):
            load(tmp_path)
        return
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 3, 40, -1])
def test_damaged_parquet_is_one_clear_line(kept: int, tmp_path: Path) -> None:
    """Cut anywhere, or with other bytes in the middle."""
    root = pets(tmp_path / "p", as_parquet)
    file = root / "metadata.parquet"
    content = file.read_bytes()
    spoilt = content[:kept] if kept >= 0 else content[:4] + bytes(len(content) - 300) + content[-296:]
    file.write_bytes(spoilt)
    with pytest.raises(InputError, match=r"expected a whole parquet file, got .*metadata\.parquet: ") as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_two_metadata_files_in_a_folder_are_refused(tmp_path: Path) -> None:
    """Which of them is meant is not guessed."""
    root = pets(tmp_path / "p", as_csv)
    pets(root, as_json)
    with pytest.raises(InputError, match=r"one metadata file a folder in .*, got metadata\.csv and metadata\.jsonl"):
        load(root)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"columns": Columns(label="kind")}, "metadata.csv: expected a column kind, got 'file_name,label'"),
        ({"columns": Columns(caption="said")}, "expected a column said"),
        (
            {"columns": Columns(label="label"), "labels": "none"},
            "--label-column label: expected no other labels, got none",
        ),
        ({"columns": Columns(caption="x"), "captions": "names"}, "--caption-column x: expected no other captions"),
    ],
)
def test_columns_that_are_not_there_or_not_wanted_are_refused(given: Any, message: str, tmp_path: Path) -> None:
    """Nothing that is asked for is passed over."""
    with pytest.raises(InputError, match=message):
        load(pets(tmp_path / "p", as_csv), **given)


@pytest.mark.parametrize("source", ["folder", "emoji"])
def test_columns_of_data_without_any_are_refused(source: str, tmp_path: Path) -> None:
    """One line tells what has some."""
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    given = tmp_path if source == "folder" else source
    for columns in (Columns(label="kind"), Columns(image="kind"), Columns(caption="kind"), Columns(outside=True)):
        with pytest.raises(InputError, match=r"^--.*: expected data with columns \(metadata or parquet files\), got "):
            data.load(given, height=16, width=16, columns=columns)


def test_a_missing_library_is_told_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only where it is needed."""
    root, plain = pets(tmp_path / "p", as_parquet), builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"expected pyarrow, .*metadata\.parquet, found none: pip install 'nextscale"):
        load(root)
    (root / "metadata.parquet").unlink()
    as_csv(root, [{"file_name": f"{n}.png", "label": "x"} for n in range(6)])
    assert load(root).classes == ("x",)


# ---- beside the library whose convention it is -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # theirs
@pytest.mark.parametrize("write", WRITERS)
def test_metadata_is_read_as_datasets_reads_it(
    write: Callable[[Path, Rows], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same pixels, labels, captions and splits."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    for split in ("train", "validation"):
        pets(tmp_path / "p" / split, write, text=[f"{split} {n}" for n in range(6)])
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # datasets leaves metadata.csv open
        theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "p"), cache_dir=str(tmp_path / "cache"))
        gc.collect()
    ours = load(tmp_path / "p", captions="own")
    for name, split in (("train", ours.train), ("validation", ours.validation)):
        rows = {row["text"]: row for row in theirs[name]}
        assert len(rows) == len(split) == 6
        for index, ((caption,), label) in enumerate(zip(split.captions or (), split.labels.tolist(), strict=True)):
            assert ours.classes[label] == rows[caption]["label"]
            stored = io.BytesIO()
            rows[caption]["image"].save(stored, "PNG")
            (tmp_path / "one").mkdir(exist_ok=True)
            for copy in "ab":
                (tmp_path / "one" / f"{copy}.png").write_bytes(stored.getvalue())
            assert torch.equal(split.batch([index])[0], load(tmp_path / "one").train.batch([0])[0])
