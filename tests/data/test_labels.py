"""Laws of labels that do not come from folders: a table says what folders would, and what is unsure is refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale import data
from nextscale.errors import InputError


def put(path: Path, *, seed: int = 0) -> Path:
    """A small picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(seed))
    return path


def picture(seed: int) -> bytes:
    """Noise of 20x20 pixels as PNG."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "png")
    return buffer.getvalue()


def flat(root: Path, *, count: int = 6) -> Path:
    """0.png, 1.png ... directly in a folder."""
    for number in range(count):
        put(root / f"{number}.png", seed=number)
    return root


def table(path: Path, *lines: str) -> Path:
    """A CSV file of these lines."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(root: Path | str, labels: Path | str | None) -> data.DataSet:
    """At 16 px."""
    return data.load(root, height=16, width=16, labels=labels)


def by_name(loaded: data.DataSet) -> dict[str, str]:
    """The class of each picture."""
    return {
        name: loaded.classes[label]
        for split in (loaded.train, loaded.validation)
        for name, label in zip(split.names, split.labels.tolist(), strict=True)
    }


# ---- a table ---------------------------------------------------------------------------------------------------------


def test_a_table_names_the_class_of_each_picture(tmp_path: Path) -> None:
    """In any order of rows and columns, with columns of other things, blanks, empty lines, and a quoted comma."""
    root = flat(tmp_path / "p", count=4)
    labels = table(
        tmp_path / "labels.csv",
        "size, label ,file",
        '1,dog,"3.png"',
        '2,"cat, black",./0.png',
        "",
        "3,  dog ,1.png",
        '4,"cat,  black",2.png',
    )
    loaded = load(root, labels)
    assert loaded.classes == ("cat, black", "dog")
    assert by_name(loaded) == {"0.png": "cat, black", "1.png": "dog", "2.png": "cat, black", "3.png": "dog"}
    assert loaded.train.classes == loaded.validation.classes == loaded.classes


def test_a_table_that_says_what_folders_say_gives_the_same_data(tmp_path: Path) -> None:
    """Order, labels, split and fingerprint: a run that began with one goes on with the other."""
    root = tmp_path / "p"
    for number in range(20):
        put(root / ("dog", "cat", "ant")[number % 3] / f"{number}.png", seed=number)
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    labels = table(tmp_path / "labels.csv", "file,label", *(f"{file},{file.split('/')[0]}" for file in reversed(files)))
    by_folder, by_table = load(root, None), load(root, labels)
    for one, other in ((by_folder.train, by_table.train), (by_folder.validation, by_table.validation)):
        assert one.names == other.names
        assert one.fingerprint == other.fingerprint
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["dog", "cat", "Ant"], ("Ant", "cat", "dog")),
        ([str(number) for number in range(11, -1, -1)], tuple(map(str, range(12)))),
        (["10", "9", "-1", "x", "008", "9" * 5000], ("-1", "008", "9", "10", "9" * 5000, "x")),
        (["2.5", "10", "élan"], ("10", "2.5", "élan")),
    ],
)
def test_classes_are_sorted_and_whole_numbers_as_numbers(
    tmp_path: Path, given: list[str], expected: tuple[str, ...]
) -> None:
    """Names stay as they were given; labels 0 .. C - 1 are their own numbers."""
    root = flat(tmp_path / "p", count=len(given))
    labels = table(tmp_path / "l.csv", "file,label", *(f"{n}.png,{label}" for n, label in enumerate(given)))
    assert load(root, labels).classes == expected


def test_pictures_may_lie_anywhere(tmp_path: Path) -> None:
    """Loose ones beside folders, which are no classes then; the table itself may lie among them."""
    put(tmp_path / "a.png")
    put(tmp_path / "deep" / "er" / "b.PNG")
    put(tmp_path / "deep" / "c.png")
    labels = table(tmp_path / "l.csv", "file,label", "a.png,x", "deep/er/b.PNG,y", "deep/c.png,x")
    assert by_name(load(tmp_path, labels)) == {"a.png": "x", "deep/er/b.PNG": "y", "deep/c.png": "x"}


def test_ready_splits_are_used_and_the_others_need_no_labels(tmp_path: Path) -> None:
    """`train` beside `val`; a `test` whose labels nobody knows is not looked into."""
    root = tmp_path / "p"
    rows = [f"{put(root / split / f'{n}.png').relative_to(root)},{n}" for split in ("train", "val") for n in range(2)]
    put(root / "test" / "0.png")
    loaded = load(root, table(tmp_path / "l.csv", "file,label", *rows))
    assert loaded.validation.names == ("val/0.png", "val/1.png")
    assert loaded.validation.labels.tolist() == [0, 1]
    with pytest.raises(InputError, match="held-out classes.*got '2'"):
        load(root, table(tmp_path / "l.csv", "file,label", *rows[:-1], "val/1.png,2"))


def test_labels_move_no_picture_to_the_other_side_but_the_fingerprint(tmp_path: Path) -> None:
    """The same pictures are held out whatever their classes; each way to label is data of its own."""
    root = flat(tmp_path / "p", count=20)
    one, other = (
        table(tmp_path / f"{step}.csv", "file,label", *(f"{n}.png,{n % step}" for n in range(20))) for step in (2, 3)
    )
    loaded = [load(root, labels) for labels in (one, other, None)]
    assert len({found.validation.names for found in loaded}) == 1
    assert len({found.train.fingerprint for found in loaded}) == 3


def test_names_are_compared_as_they_look(tmp_path: Path) -> None:
    """A table from Linux names the files of a Mac, whose é is two characters, and the other way round."""
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        root = tmp_path / form
        names = [f"{normalize(form, 'café')}/{n}.png" for n in range(2)]
        for name in names:
            put(root / name)
        rows = [
            f"{normalize(other, name)},{normalize(way, 'é')}" for name, way in zip(names, (form, other), strict=True)
        ]
        assert by_name(load(root, table(tmp_path / "l.csv", "file,label", *rows))).keys() == set(names)
        assert len(load(root, tmp_path / "l.csv").classes) == 1


def test_whole_numbers_with_a_point_are_whole_numbers(tmp_path: Path) -> None:
    """As pandas writes a column that had a gap; it is said. Other numbers stay names."""
    root = flat(tmp_path / "p", count=3)
    loaded = load(root, table(tmp_path / "l.csv", "file,label", "0.png,0.0", "1.png,10.0", "2.png,9"))
    assert loaded.classes == ("0", "9", "10")
    assert any("taken as the whole numbers" in line for line in loaded.told)
    other = load(root, table(tmp_path / "l.csv", "file,label", "0.png,0.5", "1.png,10.0", "2.png,9"))
    assert other.classes == ("9", "0.5", "10.0")


def test_a_held_out_folder_that_the_table_leaves_out_is_not_used(tmp_path: Path) -> None:
    """Which is said; covered by the table it is used."""
    root = tmp_path / "p"
    rows = [f"{put(root / f'train/{n}.png', seed=n).relative_to(root)},{n % 2}" for n in range(4)]
    put(root / "val" / "0.png")
    loaded = load(root, table(tmp_path / "l.csv", "file,label", *rows))
    assert by_name(loaded).keys() == {f"train/{n}.png" for n in range(4)}
    assert "val/ has no row in" in loaded.told[0]
    covered = load(root, table(tmp_path / "l.csv", "file,label", *rows, "val/0.png,1"))
    assert covered.validation.names == ("val/0.png",)


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,label", "0.png,a", "1.png,b"], r"l.csv for each of 3 pictures, 1 has none, such as 2.png"),
        (["file,label", "1.png,b"], r"for each of 3 pictures, 2 have none, such as 0.png"),
        (["file,label", "0.png,a", "7.png,b"], r"l.csv, line 3: .* found nothing at '7.png'"),
        (["file,label", "", "0.png,a", "1.png,b", "0.png,b"], r"l.csv, line 5: .* once, got '0.png' as in line 3"),
        (["file,label", "0.png,a", "./0.png,a"], r"l.csv, line 3: expected every picture once"),
        (["file,label", "0.png, "], r"l.csv, line 2: expected a file and a label, got '0.png,'"),
        (["file,label", ",a"], r"l.csv, line 2: expected a file and a label"),
        (["file,label", "0.png,a,b"], r"l.csv, line 2: expected 2 columns, got 3"),
        (["file,label", "0.png,NaN"], r"l.csv, line 2: expected a label, got NaN"),
        (["file,label", "0.png,7", "", "1.png,007"], r"l.csv, line 4: .* in one way, got 007 and, in line 2, 7"),
        (["file,label", "0.png,1e0", "1.png,1"], r"l.csv, line 3: .* in one way, got 1 and, in line 2, 1e0"),
        (["file,label", "0.png,+1", "1.png,1", "2.png,a"], r"l.csv, line 3: .* in one way, got 1 and, in line 2, \+1"),
        (["file,label", "0.png,1.0", "1.png,1", "2.png,a"], r"l.csv, line 3: .* in one way"),
        (["file,label", "0.png,null"], r"l.csv, line 2: expected a label, got null"),
        (["file,label,label", "0.png,a,b"], r"l.csv: expected one column label, got 2"),
        (["file\tlabel", "0.png\ta"], r"columns file,label, got 'file\\tlabel'"),
        (['{"0": ["n01440764", "tench"]}'], r"columns file,label, got '\{"),
        (["file,label", "0.png"], r"l.csv, line 2: expected 2 columns, got 1"),
        (["file,label", "notes.txt,a"], r"l.csv, line 2: expected a picture \(.jpg, .*\), got 'notes.txt'"),
        (["file,label", "../p/0.png,a"], r"l.csv, line 2: expected a path below .*, got '../p/0.png'"),
        (["file,label", "/p/0.png,a"], r"l.csv, line 2: expected a path below"),
        (["file;label", "0.png;a"], r"l.csv: expected a first line with the columns file,label, got 'file;label'"),
        (["name,label", "0.png,a"], r"columns file,label, got 'name,label'"),
        (["0.png,a"], r"columns file,label, got '0.png,a'"),
        ([""], r"columns file,label, got ''"),
        (["file,label"], r"l.csv: expected a row for each picture, found none"),
        (["file,label", '"0\n.png",a'], r"l.csv, line 3: .* found nothing at '0\\n.png'"),
        (["file,label", '0.png,"a'], r"l.csv, line 2: expected CSV"),
        (["file,label", '0.png,"a"b'], r"l.csv, line 2: expected CSV"),
    ],
)
def test_a_table_that_does_not_fit_is_one_clear_line(tmp_path: Path, lines: list[str], message: str) -> None:
    """It names the file, and the line where there is one."""
    (flat(tmp_path / "p", count=3) / "notes.txt").write_text("a text")
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / "p", table(tmp_path / "l.csv", *lines))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            lambda path: None,
            "expected none, folders or a file of labels .*, found nothing at",
        ),
        (lambda path: path.mkdir(), "cannot read .*: Is a directory"),
        (lambda path: path.write_bytes(b"file,label\n0.png,caf\xe9\n"), "l.csv, line 2: expected text in UTF-8"),
        (lambda path: path.write_bytes("file,label\n".encode("utf-16")), "l.csv, line 1: expected text in UTF-8"),
        (
            lambda path: path.write_bytes(b"file,label\n0.png,a\0b\n"),
            "l.csv, line 2: expected a label that can be printed",
        ),
    ],
)
def test_a_table_that_cannot_be_read_is_one_clear_line(
    tmp_path: Path, prepare: Callable[[Path], object], message: str
) -> None:
    """Missing, a folder, bytes of another encoding, or no text at all."""
    prepare(tmp_path / "l.csv")
    with pytest.raises(InputError, match=message) as caught:
        load(flat(tmp_path / "p"), tmp_path / "l.csv")
    assert "\n" not in str(caught.value)


def test_a_table_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    """With a byte order mark and the line ends of Windows, or of a label that has some."""
    (tmp_path / "l.csv").write_bytes('\ufefffile,label\r\n0.png,"größe\r\nzwei"\r\n1.png,ü\r\n2.png,ü\r\n'.encode())
    assert load(flat(tmp_path / "p", count=3), tmp_path / "l.csv").classes == ("größe zwei", "ü")


# ---- none ------------------------------------------------------------------------------------------------------------


def test_none_is_one_class_named_like_that_of_a_flat_folder(tmp_path: Path) -> None:
    """Whatever the folders are called; of a flat folder it is what there was before."""
    root = tmp_path / "pets"
    for number in range(6):
        put(root / ("cat", "dog")[number % 2] / f"{number}.png", seed=number)
    loaded = load(root, "none")
    assert loaded.classes == ("pets",)
    assert set(by_name(loaded).values()) == {"pets"}
    put(root / "stray.png", seed=9)
    assert len(by_name(load(root, "none"))) == 7
    plain = flat(tmp_path / "plain")
    assert load(plain, "none").train.fingerprint == load(plain, None).train.fingerprint


@pytest.mark.slow
def test_none_of_emoji_is_one_class(tmp_path: Path) -> None:
    """The same pictures, another fingerprint; a table has nothing to name there."""
    loaded, grouped = load("emoji", "none"), load("emoji", None)
    for one, other in ((loaded.train, grouped.train), (loaded.validation, grouped.validation)):
        assert one.classes == loaded.classes == ("emoji",)
        assert one.names == other.names
        assert one.fingerprint != other.fingerprint
        assert not one.batch([0, 100])[1].any()
    with pytest.raises(InputError, match="expected none as labels of the embedded emoji"):
        load("emoji", table(tmp_path / "l.csv", "file,label"))


def test_none_of_shards_reads_no_class_at_all(tmp_path: Path) -> None:
    """Not even one that is no class; a table cannot name what lies in a shard."""
    root = tmp_path / "webpages"
    root.mkdir()
    with tarfile.open(root / "0.tar", "w") as tar:
        for number in range(4):
            for suffix, content in (("png", picture(number)), ("json", b'{"label": [1, 2]}')):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    with pytest.raises(InputError, match="expected a class"):
        load(root, None)
    assert load(root, "none").classes == ("webpages",)
    with pytest.raises(InputError, match="expected none as labels of the shards in"):
        load(root, tmp_path / "l.csv")


def test_a_file_called_none_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`./none`, as with every word that means something."""
    root = flat(tmp_path / "p", count=2)
    table(tmp_path / "none", "file,label", "0.png,a", "1.png,b")
    monkeypatch.chdir(tmp_path)
    assert load(root, "./none").classes == ("a", "b")
    assert load(root, "none").classes == ("p",)
