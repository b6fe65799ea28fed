"""Laws of names in a user's file: three kinds of files mean the same, and what is wrong is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextscale import InputError
from nextscale.release import classes

WNIDS = ["n01440764", "n01443537", "n01484850"]
WORDS = ["tench, Tinca tinca", "goldfish", "great white shark"]
PAIRS = list(zip(WNIDS, WORDS, strict=True))

FILES = {
    "lines.txt": "\n".join(WNIDS),
    "ends of lines.txt": "\r\n".join([*WNIDS, ""]),
    "mark.txt": "\ufeff" + "\n".join(WNIDS),
    "synset_words.txt": "\n".join(f"{wnid} {words}" for wnid, words in PAIRS),
    "imagenet_class_index.json": json.dumps({str(i): list(pair) for i, pair in enumerate(PAIRS)}),
    "unordered.json": json.dumps({str(i): PAIRS[i] for i in (2, 0, 1)}),
    "list.json": json.dumps(WNIDS),
    "table.csv": "number,words,wnid\n" + "\n".join(f'{i},"{PAIRS[i][1]}",{WNIDS[i]}' for i in (1, 2, 0)),
    "unnumbered.csv": "WNID,words\n" + "\n".join(f'{wnid},"{words}"' for wnid, words in PAIRS) + "\n\n",
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_identifiers(name: str, tmp_path: Path) -> None:
    """In the order of the classes: what ImageNet's folders are called."""
    (tmp_path / name).write_text(FILES[name], encoding="utf-8", newline="")
    assert classes.read(tmp_path / name, 3) == WNIDS


def test_words_alone_are_names(tmp_path: Path) -> None:
    """In any script, with spaces; not taken apart."""
    (tmp_path / "a.txt").write_text("great white shark\nKatze\n\u732b", encoding="utf-8")
    assert classes.read(tmp_path / "a.txt", 3) == ["great white shark", "Katze", "\u732b"]


def test_the_lines_own_numbers_are_no_names(tmp_path: Path) -> None:
    """If all have theirs, from 0 on; a name may well begin with a number."""
    (tmp_path / "a.txt").write_text("0: great white shark\n1 Katze\n 2,7 up\n", encoding="utf-8")
    assert classes.read(tmp_path / "a.txt", 3) == ["great white shark", "Katze", "7 up"]
    (tmp_path / "a.txt").write_text("0 cat\n2 dogs\n", encoding="utf-8")
    assert classes.read(tmp_path / "a.txt", 2) == ["0 cat", "2 dogs"]


WRONG: dict[str, tuple[str | bytes, str]] = {
    "twice.txt": ("crane\nbee\ncrane", "expected every name once, got 'crane' for classes 0 and 2"),
    "few.txt": ("a\nb", "expected the names of 3 classes, got 2"),
    "none.txt": ("", "expected the names of 3 classes, got 0"),
    "blank.txt": ("a\n \nb", "expected a name for every class, got none for class 1"),
    "latin.txt": ("Käse\n".encode("latin-1"), "expected names of classes in UTF-8, got other bytes"),
    "gap.json": ('{"0": "a", "1": "b", "3": "c"}', "expected classes 0 .. 2, got none of number 2"),
    "numbers.json": ("[1, 2, 3]", "expected names of classes, got an entry of type int"),
    "text.json": ('"a"', "expected a list or an object with the names of classes, got str"),
    "empty.json": ("[[], [], []]", "got an entry of type list"),
    "broken.json": ("{", "expected JSON"),
    "page.json": ("<!doctype html>", "expected JSON, got a web page"),
    "other.csv": ("a,b\n1,2", "expected a column called wnid"),
    "empty.csv": ("", "expected a column called wnid"),
    "short.csv": ("number,name\n0,a\n1\n2,c", "expected 2 columns in every row, got 1 in row 3"),
    "quote.csv": ('name\n"a', "expected a CSV table, got one with"),
    "repeated.csv": ("number,name\n0,a\n0,b\n1,c", "expected classes 0 .. 2, got none of number 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistaken_file_is_one_line(name: str, tmp_path: Path) -> None:
    """Names that are missing, empty, repeated; files of another kind."""
    content, said = WRONG[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        classes.read(tmp_path / name, 3)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """And a folder."""
    with pytest.raises(InputError, match=r"expected a file .*names.txt, found none"):
        classes.read(tmp_path / "names.txt", 3)
    with pytest.raises(InputError, match="cannot read"):
        classes.read(tmp_path, 3)
