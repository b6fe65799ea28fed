"""Laws of indexes: what is mapped is what would be listed and read, as long as no file has changed."""

from __future__ import annotations

import os
import pickle
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nextscale import data
from nextscale.data import imagenet, index, reading
from nextscale.errors import InputError

COUNT, OLD = 60, 1_600_000_000  # pictures, and the second in which all files were written


def picture(level: int) -> bytes:
    """Of one colour, in bytes that no library decides."""
    return b"P6 9 8 255\n" + bytes([level, 2 * level % 256, 255 - level]) * 72


def contents() -> dict[str, bytes]:
    """Sixty pictures of two classes, one of them in no ASCII, with captions; one picture is none."""
    files = {}
    for number in range(COUNT):
        folder = ("cat", "d\u00f6g")[number % 2]
        name = f"{folder}/{number:02}"
        files[f"{name}.ppm"] = picture(number) if number != 7 else b"<html></html>"
        files[f"{name}.txt"] = b"one\ntwo" * (number % 3)
    return files


def in_a_folder(root: Path) -> Path:
    """As they are."""
    for name, content in contents().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def in_a_zip(root: Path) -> Path:
    """The same."""
    with zipfile.ZipFile(root.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents().items():
            archive.writestr(name, content)
    return root.with_suffix(".zip")


def in_shards(root: Path) -> Path:
    """Two of them."""
    files = in_a_folder(root.with_name("files"))
    root.mkdir()
    for shard in range(2):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for path in sorted(files.rglob("*.*")):
                if int(path.stem) % 2 == shard:
                    tar.add(path, path.relative_to(files).as_posix())
    return root


def in_a_table(root: Path) -> Path:
    """Rows of a parquet file."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    pictures = [content for name, content in contents().items() if name.endswith(".ppm")]
    texts = [["one", "two"][: number % 3] for number in range(COUNT)]
    rows = {"image": pictures, "label": [number % 2 for number in range(COUNT)], "text": texts}
    root.mkdir()
    parquet.write_table(pyarrow.table(rows), root / "rows.parquet")
    return root


FORMS = (in_a_folder, in_a_zip, in_shards, in_a_table)


def aged(root: Path) -> Path:
    """All files in it are old."""
    for path in [root, *root.rglob("*")]:
        os.utime(path, (OLD, OLD))
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nextscale" / "indexes"


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are opened for their sizes and marks, as they are."""
    found: list[str] = []
    plain = reading.look
    monkeypatch.setattr(reading, "look", lambda item: (found.append(item.name), plain(item))[1])
    return found


def load(root: Path, **how: Any) -> data.DataSet:
    """At 6 x 6, with captions."""
    return data.load(root, height=6, width=6, **{"captions": "own", "max_broken": 0.1, **how})


def said(found: data.DataSet) -> list[Any]:
    """All that is known of a data set, pixels and captions included."""
    known: list[Any] = [found.classes, found.told, found.broken]
    for split in (found.train, found.validation):
        captions = None if split.captions is None else ([*split.captions], split.captions.fingerprint)
        known += [split.fingerprint, [*split.names], split.labels.tolist(), captions]
        known += [split.batch(range(len(split)))[0].tolist()]
    return known


@pytest.mark.parametrize("memory", [0, reading.MEMORY], ids=["on demand", "in memory"])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_mapped_is_what_would_be_read(
    form: Callable[[Path], Path], memory: int, tmp_path: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first time and the second, of any form; then no picture is opened before one is wanted."""
    monkeypatch.setattr(reading, "MEMORY", memory)
    root, at = aged(form(tmp_path / "d")), tmp_path / "index"
    expected = said(load(root))
    assert said(load(root, index=at)) == expected
    looks.clear()
    reasons: list[tuple[str, str]] = []
    assert said(load(root, index=at, broken=lambda name, why: reasons.append((name, why)))) == expected
    assert looks == []
    assert len(reasons) == 1
    assert reasons[0][1] == "a web page"


def test_splits_from_an_index_can_be_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And read on in another process."""
    monkeypatch.setattr(reading, "MEMORY", 0)
    root = aged(in_a_folder(tmp_path / "d"))
    split = [load(root, index=tmp_path / "index") for _ in range(2)][1].train
    assert torch.equal(pickle.loads(pickle.dumps(split)).batch(range(9))[0], split.batch(range(9))[0])


def test_one_folder_may_be_called_by_several_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative ones are looked up where the program runs now."""
    aged(in_a_folder(tmp_path / "here" / "d"))
    (tmp_path / "there").mkdir()
    os.symlink(tmp_path / "here" / "d", tmp_path / "there" / "e")
    expected = None
    for place, name in (("here", "d"), ("there", "e"), ("here", "../here/d"), (".", "here/d")):
        monkeypatch.chdir(tmp_path / place)
        found = load(Path(name), index=tmp_path / "index").train.batch(range(20))[0]
        expected = found if expected is None else expected
        assert torch.equal(found, expected)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a picture more": lambda root: shutil.copy2(root / "cat/00.ppm", root / "cat/99.ppm"),
    "a picture less": lambda root: (root / "cat/00.ppm").unlink(),
    "another size": lambda root: ((root / "cat/00.ppm").write_bytes(picture(1) + b"\0"), aged(root)),
    "another date": lambda root: os.utime(root / "cat/00.ppm", (OLD, OLD + 1)),
    "another name": lambda root: (root / "cat/00.ppm").rename(root / "cat/00b.ppm"),
    "another caption": lambda root: ((root / "cat/02.txt").write_bytes(b"three"), aged(root)),
    "a table beside": lambda root: ((root / "metadata.csv").write_text("file_name,label\ncat/00.ppm,x\n"), aged(root)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_noticed(change: Callable[[Path], object], tmp_path: Path, looks: list[str]) -> None:
    """Then all is read anew, once."""
    root, at = aged(in_a_folder(tmp_path / "d")), tmp_path / "index"
    load(root, index=at)
    change(root)
    looks.clear()
    first = said(load(root, index=at, labels="folders"))
    assert looks
    looks.clear()
    assert said(load(root, index=at, labels="folders")) == first
    assert looks == []


def test_what_is_asked_for_counts(tmp_path: Path, looks: list[str]) -> None:
    """Other labels, captions or tables are another listing; a table that is edited is, too."""
    root, at, table = aged(in_a_folder(tmp_path / "d")), tmp_path / "index", tmp_path / "labels.csv"
    rows = [f"{name},x{number % 5}" for number, name in enumerate(contents()) if name.endswith("ppm")]
    for times in range(2):
        table.write_text("\n".join(["file,label", *rows, *[""] * times]))
        os.utime(table, (OLD, OLD + times))
        looks.clear()
        assert len(load(root, index=at, labels=table).classes) == 5
        assert looks
    assert load(root, index=at, labels="none").classes == ("d",)
    assert load(root, index=at, captions=None).train.captions is None
    assert load(root, index=at).train.captions is not None


def test_few_pictures_are_not_kept_unasked_and_many_are(
    tmp_path: Path, cache: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the user's cache, in one file; another size of pictures needs no other."""
    root = aged(in_a_folder(tmp_path / "d"))
    load(root)
    assert not cache.exists()
    monkeypatch.setattr(index, "MANY", COUNT)
    load(root)
    looks.clear()
    assert data.load(root, height=3, width=4, captions="own", max_broken=0.1).train[0][0].shape == (3, 3, 4)
    assert looks == []
    assert len([*cache.glob("*.safetensors")]) == 1


def test_old_indexes_are_removed(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of data that nobody has read for three months, when another is written."""
    monkeypatch.setattr(index, "MANY", COUNT)
    load(aged(in_a_folder(tmp_path / "d")))
    (old,) = cache.glob("*.safetensors")
    os.utime(old, (OLD, OLD))
    load(aged(in_a_folder(tmp_path / "e")))
    assert not old.exists()
    assert len([*cache.glob("*.safetensors")]) == 1


def test_files_that_may_still_change_are_not_kept(tmp_path: Path) -> None:
    """Within the two seconds that a date may be too coarse for."""
    root = in_a_folder(tmp_path / "d")
    assert "no index is kept, as files have changed within the last 2 seconds" in load(root, index=tmp_path / "i").told
    assert not (tmp_path / "i").exists()


def test_a_picture_takes_less_than_two_hundred_bytes(tmp_path: Path) -> None:
    """Beside captions, with names as long as ImageNet's."""
    root = tmp_path / "d"
    (root / "n01440764").mkdir(parents=True)
    for number in range(600):
        (root / "n01440764" / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(picture(number % 99))
    load(aged(root), index=tmp_path / "index", captions=None)
    assert os.path.getsize(tmp_path / "index") < 600 * 100 + 4000


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"{}" * 999])
def test_a_damaged_index_is_made_anew(
    content: bytes, tmp_path: Path, cache: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short, or overwritten."""
    monkeypatch.setattr(index, "MANY", COUNT)
    root = aged(in_a_folder(tmp_path / "d"))
    expected = said(load(root))
    (path,) = cache.glob("*.safetensors")
    for damaged in (content, path.read_bytes()[:-100]):
        path.write_bytes(damaged)
        looks.clear()
        assert said(load(root)) == expected
        assert looks
        looks.clear()
        load(root)
        assert looks == []


def test_no_other_file_is_overwritten(tmp_path: Path) -> None:
    """Such as a picture, or a model's weights."""
    root, at = aged(in_a_folder(tmp_path / "d")), tmp_path / "precious"
    at.write_bytes(b"precious")
    with pytest.raises(
        InputError, match="--index: expected an index or no file, got .*precious, which is something else"
    ):
        load(root, index=at)
    assert at.read_bytes() == b"precious"


def test_an_index_that_cannot_be_written_is_refused_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And otherwise told; so is one among the pictures, and of data that have none."""
    root = aged(in_a_folder(tmp_path / "d"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"--index: expected a file to write, got .*file/index \("):
        load(root, index=tmp_path / "file" / "index")
    with pytest.raises(InputError, match="--index: expected a file outside of the data in"):
        load(root, index=root / "index")
    with pytest.raises(InputError, match="--index: expected no index of the embedded emoji"):
        data.load("emoji", height=6, width=6, index=tmp_path / "index")
    with pytest.raises(InputError, match="--index: expected no index of shards that are read in windows"):
        data.load(root, height=6, width=6, index=tmp_path / "index", window=2)
    with pytest.raises(InputError, match=r"--index: expected no index of what lies at an address, s3://pets/0\.tar"):
        data.load("s3://pets/0.tar", height=6, width=6, index=tmp_path / "index")
    np.save(tmp_path / "x.npy", np.zeros((4, 8, 8), dtype=np.uint8))
    os.utime(tmp_path / "x.npy", (OLD, OLD))
    with pytest.raises(
        InputError, match=r"--index: expected a file to write, got .*index \(arrays are not kept in one\)"
    ):
        data.load(tmp_path / "x.npy", height=6, width=6, index=tmp_path / "index")
    monkeypatch.setattr(index, "MANY", COUNT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load(root).told[-2].startswith(f"no index of the pictures is kept in {tmp_path / 'file'}")


def test_one_makes_it_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And take what it has made, without another look at the files."""
    root, at = aged(in_a_folder(tmp_path / "d")), tmp_path / "index"
    started, go, snapshots = threading.Event(), threading.Event(), []
    plain, of = reading.opened, index.Snapshot.of

    def opened(*args: Any, **kwargs: Any) -> Any:
        started.set()
        assert go.wait(60)
        return plain(*args, **kwargs)

    monkeypatch.setattr(reading, "opened", opened)
    monkeypatch.setattr(index.Snapshot, "of", lambda *args: (snapshots.append(threading.get_ident()), of(*args))[1])
    found: dict[str, Any] = {}
    first = threading.Thread(target=lambda: found.update(first=load(root, index=at)))
    second = threading.Thread(target=lambda: found.update(second=load(root, index=at)))
    first.start()
    assert started.wait(60)
    waiting = _announced(monkeypatch)
    second.start()
    assert waiting.wait(60)
    go.set()
    first.join(60)
    second.join(60)
    monkeypatch.undo()
    assert said(found["first"]) == said(found["second"])
    assert len(set(snapshots)) == 1


def _announced(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a process is about to wait."""
    waiting, plain = threading.Event(), index._locked
    monkeypatch.setattr(index, "_locked", lambda path: (waiting.set(), plain(path))[1])
    return waiting


def test_what_lies_beside_files_counts(tmp_path: Path, looks: list[str]) -> None:
    """The names of the classes of shards; other files, such as the index itself, do not."""
    root = aged(in_shards(tmp_path / "d"))
    pattern, at = f"{root}/{{0,1}}.tar", root / "index"
    assert data.load(pattern, height=6, width=6, max_broken=0.1, index=at).classes == ("d",)
    looks.clear()
    data.load(pattern, height=6, width=6, max_broken=0.1, index=at)
    assert looks == []
    (root / "classes.txt").write_text("cat\ndog\n")
    os.utime(root / "classes.txt", (OLD, OLD))
    data.load(pattern, height=6, width=6, max_broken=0.1, index=at)
    assert looks


def test_a_folder_in_a_circle_has_an_end(tmp_path: Path) -> None:
    """Links back are not followed, and links to nothing are no hindrance."""
    root = in_a_folder(tmp_path / "d")
    os.symlink("..", root / "cat" / "up")
    os.symlink("nowhere", root / "cat" / "x.ppm")
    snapshot = index.Snapshot.of(str(root), ())
    assert snapshot.files == 2 * COUNT + 1 + len(imagenet.beside(root))
    assert snapshot == index.Snapshot.of(str(root), ())
