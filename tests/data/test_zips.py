"""Laws of zip archives: they give what folders of the same files give, and unpack to no more than they declare."""

from __future__ import annotations

import copy
import io
import json
import pickle
import re
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale import data
from nextscale.data import archive, reading, zips
from nextscale.data.archive import Inflated
from nextscale.data.tar import window
from nextscale.errors import InputError

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def picture(seed: int, *, kind: str = "bmp") -> bytes:
    """Noise of 20x20 pixels; as BMP it can be packed."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 4, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(noise * 60).save(buffer, kind)
    return buffer.getvalue()


def files(count: int = 12) -> dict[str, bytes]:
    """Pictures of two classes."""
    return {f"{('dog', 'cat')[n % 2]}/{n:02}.bmp": picture(n) for n in range(count)}


def packed(path: Path, content: Mapping[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """As Python's own module writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as out:
        for name, each in content.items():
            out.writestr(name, each)
    return path


def unpacked(root: Path, content: Mapping[str, bytes]) -> Path:
    """A folder of the same."""
    for name, each in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(each)
    return root


def load(source: Path, **given: Any) -> data.DataSet:
    """At 16 px."""
    return data.load(source, **{"height": 16, "width": 16, **given})


def check_same(one: data.DataSet, other: data.DataSet) -> None:
    """Pictures, labels, names, captions, splits, and so runs that go on with either."""
    assert one.classes == other.classes
    assert one.told == other.told
    for mine, its in ((one.train, other.train), (one.validation, other.validation)):
        assert mine.names == its.names
        assert mine.fingerprint == its.fingerprint
        assert torch.equal(mine.labels, its.labels)
        assert torch.equal(mine.batch(range(len(mine)))[0], its.batch(range(len(its)))[0])
        assert list(mine.captions or ()) == list(its.captions or ())


# ---- the same as folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 2**31], ids=["on demand", "in memory"])
@pytest.mark.parametrize("method", METHODS, ids=["stored", "deflated"])
def test_a_zip_gives_what_its_folder_gives(
    method: int, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the fingerprint: a run that began with one goes on with the other."""
    monkeypatch.setattr(reading, "MEMORY", memory)
    content = files()
    check_same(load(packed(tmp_path / "z.zip", content, method=method)), load(unpacked(tmp_path / "f", content)))


LAYOUTS = {
    "flat": {f"{n}.bmp": picture(n) for n in range(4)},
    "splits": {f"{split}/{kind}/{n}.bmp": picture(n) for split in ("train", "val") for kind in "ab" for n in range(3)},
    "wrapped": {f"pets/{name}": each for name, each in files(6).items()},
    "captions": files(6) | {f"{name[:-4]}.txt": f"says {name}".encode() for name in files(6)},
    "metadata": {f"{n}.bmp": picture(n) for n in range(3)}
    | {"metadata.csv": b"file_name,label,text\n0.bmp,x,one\n1.bmp,y,two\n2.bmp,x,three\n"},
    "of others": files(4) | {"cat/a.heic": b"?", ".hidden.png": b"?", "__MACOSX/dog/._1.png": b"?", "read.me": b"?"},
    "sorted names": {f"{kind}/{n}.bmp": picture(n) for kind in ("a", "a-b", "a b", "a.b") for n in range(2)},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_zip_may_have_any_layout_of_folders(layout: dict[str, bytes], tmp_path: Path) -> None:
    """Splits, wrapping folders, text files, metadata, and what is left out."""
    captions = "own" if any(name.endswith((".txt", ".csv")) for name in layout) else None
    zipped = load(packed(tmp_path / "x.zip", layout), captions=captions)
    check_same(zipped, load(unpacked(tmp_path / "x", layout), captions=captions))


def test_labels_may_come_from_a_table(tmp_path: Path) -> None:
    """Of names in the archive."""
    content = LAYOUTS["flat"]
    (tmp_path / "l.csv").write_text("file,label\n" + "".join(f"{name},{name[0] > '1'}\n" for name in content))
    loaded = load(packed(tmp_path / "z.zip", content), labels=tmp_path / "l.csv")
    assert loaded.classes == ("False", "True")
    (tmp_path / "l.csv").write_text("file,label\n0.bmp,1\n9.bmp,2\n")
    with pytest.raises(InputError, match=r"l\.csv, line 3: expected a picture below .*z\.zip, found nothing at"):
        load(tmp_path / "z.zip", labels=tmp_path / "l.csv")


def test_large_archives_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the 64-bit kind, as from 65,536 files or 4 GiB on, and those with something in front."""
    content = files(6)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    path = packed(tmp_path / "z.zip", content)
    monkeypatch.undo()
    assert b"PK\6\6" in path.read_bytes()  # the 64-bit record at the end
    same = load(unpacked(tmp_path / "f", content))
    check_same(load(path), same)
    path.write_bytes(b"#!/bin/sh\n" + packed(path, content).read_bytes())
    check_same(load(path), same)


def test_archives_of_other_programs_are_read(tmp_path: Path) -> None:
    """`zip -r`, if it is there: with entries of folders, and other notes behind names."""
    if shutil.which("zip") is None:
        pytest.skip("there is no program zip")
    root = unpacked(tmp_path / "f", files())
    subprocess.run(["zip", "-qr", tmp_path / "z.zip", "."], cwd=root, check=True)
    check_same(load(tmp_path / "z.zip"), load(root))


def test_what_is_read_on_demand_can_go_to_other_processes(tmp_path: Path) -> None:
    """A store is pickled with what it needs alone."""
    tree = zips.tree(packed(tmp_path / "z.zip", files()))
    store = tree.store(tree.names_N[3:5])
    again = pickle.loads(pickle.dumps(store))
    assert again.open(1).read() == store.open(1).read() == files()[tree.names_N[4]]


# ---- dataset.json ----------------------------------------------------------------------------------------------------


def edm(path: Path, labels: object, *, count: int = 6) -> Path:
    """As StyleGAN's and EDM's tools write it: stored, in numbered folders."""
    names = [f"{n // 3:05}/img{n:08}.png" for n in range(count)]
    content = {name: picture(n, kind="png") for n, name in enumerate(names)}
    given = labels if not callable(labels) else [[name, labels(n)] for n, name in enumerate(names)]
    return packed(path, content | {"dataset.json": json.dumps({"labels": given}).encode()}, method=zipfile.ZIP_STORED)


@pytest.mark.parametrize("as_vector", [False, True])
def test_dataset_json_tells_the_classes(as_vector: bool, tmp_path: Path) -> None:
    """Numbers, or vectors with a single one; folders of a thousand are none."""
    path = edm(tmp_path / "z.zip", lambda n: [float(k == n % 3) for k in range(3)] if as_vector else n % 3)
    loaded = load(path)
    assert loaded.classes == ("0", "1", "2")
    for split in (loaded.train, loaded.validation):
        assert split.labels.tolist() == [int(Path(name).stem[3:]) % 3 for name in split.names]
    assert loaded.told == ["held out: 5 % by hash of the name", "classes are the column label of dataset.json"]
    assert load(path, labels="folders").classes == ("00000", "00001")


@pytest.mark.parametrize("labels", [None, lambda n: None])
def test_without_labels_there_is_one_class(labels: object, tmp_path: Path) -> None:
    """Named as the archive; which is told."""
    loaded = load(edm(tmp_path / "faces.zip", labels))
    assert loaded.classes == ("faces",)
    assert "dataset.json tells no classes: there is one" in loaded.told
    assert not loaded.left_out.counts


def test_it_may_lie_in_a_folder_too(tmp_path: Path) -> None:
    """As these tools write it where they are not asked for a zip; of another kind it is anyone's."""
    with zipfile.ZipFile(edm(tmp_path / "z.zip", lambda n: n % 2)) as made:
        made.extractall(tmp_path / "f")
    check_same(load(tmp_path / "z.zip"), load(tmp_path / "f"))
    (tmp_path / "f" / "dataset.json").write_text('{"name": "faces"}')
    loaded = load(tmp_path / "f")
    assert loaded.classes == ("00000", "00001")
    assert "dataset.json has no labels and is not used" in loaded.told


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            lambda n: [0.5, 0.5],
            r"dataset\.json, entry 1: expected a class or a vector with a single one, got \[0\.5, 0\.5\]",
        ),
        (lambda n: [1, 1], "entry 1: expected a class or a vector with a single one"),
        (lambda n: [[1]], "entry 1: expected a class or a vector with a single one"),
        (lambda n: None if n else 3, "entry 2: expected a file and a label"),
        (lambda n: {"a": 1}, "entry 1: expected a label, text or a number"),
        ([["00000/img00000000.png"]], r'expected {"labels": \[\[name, class\], ...\]}, got'),
        ("text", r'expected {"labels"'),
        (5, r'expected {"labels"'),
        ([["other.png", 1]], "entry 1: expected a picture below .*, found nothing at 'other.png'"),
        ([["../img.png", 1]], "entry 1: expected a path below .*, got '../img.png'$"),
        ([[7, 1]], "entry 1: expected the name of a file as text, got '7'"),
    ],
)
def test_labels_that_do_not_fit_are_one_clear_line(labels: object, message: str, tmp_path: Path) -> None:
    """With the file and the entry."""
    with pytest.raises(InputError, match=message) as caught:
        load(edm(tmp_path / "z.zip", labels))
    assert "\n" not in str(caught.value)


# ---- damaged and hostile ones ----------------------------------------------------------------------------------------


def spoilt(path: Path, name: str, **fields: int) -> Path:
    """The archive with other numbers declared for one file in the list at its end."""
    places = {"size": (24, "<I"), "packed": (20, "<I"), "crc": (16, "<I"), "method": (10, "<H"), "flags": (8, "<H")}
    content = bytearray(path.read_bytes())
    start = content.rindex(name.encode()) - 46
    assert content[start : start + 4] == b"PK\1\2"
    for field, value in fields.items():
        at, kind = places[field]
        struct.pack_into(kind, content, start + at, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"size": 2**31 + 7}, "2,147,483,655 bytes declared, more than .* deflated ones can hold"),
        ({"size": 100_000}, "cut short in the archive"),
        ({"size": 700}, "other bytes than the archive declares|truncated"),
        ({"crc": 7}, "other bytes than the archive declares"),
        ({"method": zipfile.ZIP_LZMA}, "packed by LZMA, not stored or deflated"),
        ({"method": 77}, "packed by method 77, not stored or deflated"),
        ({"flags": 1}, "needs a password"),
    ],
)
def test_a_file_that_is_not_as_declared_is_one_unreadable_picture(
    fields: dict[str, int], told: str, tmp_path: Path
) -> None:
    """Left out and named, with the reason."""
    path, reasons = spoilt(packed(tmp_path / "z.zip", files()), "cat/01.bmp", **fields), dict[str, str]()
    loaded = load(path, max_broken=0.5, broken=reasons.__setitem__)
    assert loaded.broken == ("cat/01.bmp",)
    assert len(loaded.train) + len(loaded.validation) == 11
    assert re.search(told, reasons["cat/01.bmp"])


def test_damaged_bytes_are_one_unreadable_picture(tmp_path: Path) -> None:
    """In a header, and in what is packed."""
    for place in (0, 60):
        path = packed(tmp_path / "z.zip", files())
        with zipfile.ZipFile(path) as whole:
            offset = whole.getinfo("cat/01.bmp").header_offset + place
        content = bytearray(path.read_bytes())
        content[offset : offset + 4] = b"\xff\xff\xff\xff"
        path.write_bytes(content)
        assert load(path, max_broken=0.5).broken == ("cat/01.bmp",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"<html></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git-LFS pointer"),
        (b"x" * 3000, "File is not a zip file"),
        (None, r"cut short or damaged \(File is not a zip file\)"),
    ],
)
def test_what_is_no_zip_is_one_clear_line(content: bytes | None, told: str, tmp_path: Path) -> None:
    """Cut short it has no list of its files."""
    path = packed(tmp_path / "z.zip", files())
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    with pytest.raises(InputError, match=rf"expected a whole zip archive, got .*z\.zip: {told}") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="expected a zip archive, found nothing at"):
        load(tmp_path / "other.zip")


def test_files_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """As in a bomb, where many names stand for one long file."""
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("a.bmp", picture(0))
        for name in ("b.bmp", "c.bmp"):
            again = copy.copy(out.filelist[0])
            again.filename = again.orig_filename = name
            out.filelist.append(again)
    with pytest.raises(InputError, match="the places of its files overlap"):
        load(path)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """Which of the files is meant is not guessed."""
    path = packed(tmp_path / "z.zip", files(4))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as out:
        out.writestr("cat/01.bmp", picture(7))
    with pytest.raises(InputError, match=r"expected every name once in .*z\.zip, got cat/01.bmp twice"):
        load(path)


def test_names_that_lead_out_and_links_are_counted(tmp_path: Path) -> None:
    """Nothing is ever written, and nothing but the archive is read."""
    link = zipfile.ZipInfo("cat/link.bmp")
    link.external_attr = 0o120777 << 16
    path = packed(tmp_path / "z.zip", files(4) | {"../out.bmp": b"?", "/etc/x.bmp": b"?", "cat/../../y.bmp": b"?"})
    with zipfile.ZipFile(path, "a") as out:
        out.writestr(link, "/etc/passwd")
    loaded = load(path)
    assert loaded.told[-1] == "left out: 3 entries with an absolute name or .. in it, 1 link in the archive"
    assert len(loaded.train) + len(loaded.validation) == 4


# ---- unpacking -------------------------------------------------------------------------------------------------------


def inflated(path: Path, content: bytes, **declared: int) -> Inflated:
    """Over a file that holds nothing else."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    path.write_bytes(packer.compress(content) + packer.flush())
    whole = {"size": len(content), "crc32": zlib.crc32(content), **declared}
    return Inflated(window(path, offset=0, size=path.stat().st_size), **whole)


def test_what_is_unpacked_is_read_at_any_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forwards, backwards and behind the end, in pieces of any length."""
    content = np.random.default_rng(0).integers(0, 3, 5000, dtype=np.uint8).tobytes()
    for chunk in (7, 1000, 1 << 16):
        monkeypatch.setattr(archive, "_CHUNK", chunk)
        with io.BufferedReader(inflated(tmp_path / "x", content)) as stream:
            assert stream.read() == content
            for place, count in ((4000, 900), (10, 5), (4999, 9), (0, 5000), (6000, 1)):
                assert stream.seek(place) == place
                assert stream.read(count) == content[place : place + count]
            assert stream.seek(-3, io.SEEK_END) == 4997
            assert stream.read() == content[-3:]


def test_a_bomb_is_unpacked_as_far_as_it_is_read(tmp_path: Path) -> None:
    """Whatever it declares."""
    bomb = inflated(tmp_path / "x", bytes(1 << 23), size=1 << 40)
    assert bomb.read(10) == bytes(10)
    bomb.seek(1 << 30)
    with pytest.raises(OSError, match="cut short in the archive"):
        bomb.read(1)
