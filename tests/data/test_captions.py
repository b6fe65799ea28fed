"""Laws of captions: each stays with its picture, wherever it came from; those of no use are counted, and cost none."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from data import noise
from data.test_labels import flat, picture, put, table
from hypothesis import given
from hypothesis import strategies as st

from nextscale import MultiScaleVQVAE, data
from nextscale.data import Captions, captions, encoding, tokens
from nextscale.data.pictures import fingerprint
from nextscale.data.reading import OnDemand, Size
from nextscale.errors import InputError

TEXTS = st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=3))
TOO_LONG = "word " * 200_000


def load(source: Path | str, how: Path | str | None) -> data.DataSet:
    """At 16 px."""
    return data.load(source, height=16, width=16, captions=how)


def by_name(loaded: data.DataSet) -> dict[str, tuple[str, ...]]:
    """The captions of each picture."""
    found: dict[str, tuple[str, ...]] = {}
    for split in (loaded.train, loaded.validation):
        assert split.captions is not None
        found |= dict(zip(split.names, split.captions, strict=True))
    return found


def shard(path: Path, files: Mapping[str, bytes]) -> Path:
    """A tar of these files in the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path.parent


# ---- as they are kept ------------------------------------------------------------------------------------------------


@given(TEXTS)
def test_captions_come_out_as_they_went_in(texts: list[list[str]]) -> None:
    """Any number a picture, any language, by index and by slice."""
    kept = Captions(texts)
    assert list(kept) == [tuple(those) for those in texts] == list(kept[:])
    assert kept.total == sum(map(len, texts))
    assert list(kept.chosen(reversed(range(len(texts))))) == list(kept)[::-1]


def test_captions_are_a_sequence() -> None:
    """From the end too, and not behind it."""
    kept = Captions([["a"], [], ["고양이", "b"]])
    assert (kept[-1], kept[1], len(kept), kept.captioned) == (("고양이", "b"), (), 3, 2)
    with pytest.raises(IndexError):
        kept[3]


def test_fingerprints_of_captions_tell_texts_and_pictures_apart() -> None:
    """The same letters at other pictures, or divided in another way, are other captions."""
    kinds = [[["ab"], []], [[], ["ab"]], [["a", "b"], []], [["a"], ["b"]], [["ab"], ["b"]]]
    assert len({Captions(kind).fingerprint for kind in kinds}) == len(kinds)
    assert Captions(kinds[0]).fingerprint == Captions(kinds[0]).fingerprint


@pytest.mark.parametrize(
    ("ends", "firsts"), [([2, 1], [0, 2]), ([2], [0, 1, 0]), ([2], [0]), ([3], [0, 1]), ([2], [1, 1]), ([2], [])]
)
def test_offsets_that_do_not_fit_are_refused(ends: list[int], firsts: list[int]) -> None:
    """As a damaged file would have them."""
    with pytest.raises(ValueError, match="offsets"):
        Captions.mapped(np.zeros(2, dtype=np.uint8), np.array(ends), np.array(firsts, dtype=np.int64))


def test_a_picture_that_stands_in_brings_its_captions() -> None:
    """What is told of an index is what is shown for it."""
    stand_ins: dict[int, int] = {}
    kept = Captions([["a"], ["b"]], stand_ins=stand_ins)
    stand_ins[0] = 1
    assert list(kept) == [("b",), ("b",)]


# ---- where they come from --------------------------------------------------------------------------------------------


def test_a_text_file_beside_a_picture_captions_it(tmp_path: Path) -> None:
    """A line each, blanks put in order; pictures without one have none, and such files are not told as left out."""
    root = flat(tmp_path / "p", count=4)
    (root / "0.txt").write_text("a  red\theart\n\na heart\na heart\n", encoding="utf-8-sig")
    (root / "2.txt").write_text("하트", encoding="utf-8")
    loaded = load(root, "own")
    assert by_name(loaded) == {"0.png": ("a red heart", "a heart"), "1.png": (), "2.png": ("하트",), "3.png": ()}
    assert loaded.told[1:] == ["3 captions of 2 of 4 pictures"]


def test_file_names_are_captions_on_demand(tmp_path: Path) -> None:
    """Their words, without a number at the end; a name of a number alone is none."""
    for name in ("a/red-heart_12.png", "a/12.png", "b/blue_heart.old.png"):
        put(tmp_path / name)
    found = by_name(load(tmp_path, "names"))
    assert found == {"a/red-heart_12.png": ("red heart",), "a/12.png": (), "b/blue_heart.old.png": ("blue heart",)}


def test_a_table_has_any_number_of_rows_a_picture(tmp_path: Path) -> None:
    """In any order, with other columns, and none for some."""
    root = flat(tmp_path / "p", count=3)
    rows = ("caption,file,by", '"red, round",0.png,me', "blue,2.png,me", "a ball,./0.png,you")
    loaded = load(root, table(tmp_path / "captions.csv", *rows))
    assert by_name(loaded) == {"0.png": ("red, round", "a ball"), "1.png": (), "2.png": ("blue",)}


def test_shards_caption_their_samples(tmp_path: Path) -> None:
    """By text, by JSON of a text or of a list, by both, or not at all; classes beside them are read as ever."""
    files = {
        **{f"{key}.png": picture(number) for number, key in enumerate("abcd")},
        "a.txt": b"red\nround\n",
        "b.json": json.dumps({"caption": "blue", "label": "x"}).encode(),
        "c.txt": b"green",
        "c.json": json.dumps({"caption": ["green", "square"], "label": "y"}).encode(),
        "d.json": json.dumps({"caption": None, "label": "y"}).encode(),
        "a.json": json.dumps({"label": "x"}).encode(),
    }
    loaded = load(shard(tmp_path / "s" / "0.tar", files), "own")
    names = {name: f"0.tar/{name}.png" for name in "abcd"}
    texts = {"a": ("red", "round"), "b": ("blue",), "c": ("green", "square"), "d": ()}
    assert by_name(loaded) == {names[key]: those for key, those in texts.items()}
    assert loaded.classes == ("x", "y")


def test_keys_of_shards_are_captions_on_demand(tmp_path: Path) -> None:
    """Their last part alone."""
    files = {f"seen/noto/{key}.png": picture(number) for number, key in enumerate(("cat-face", "dog_2"))}
    found = by_name(load(shard(tmp_path / "s" / "0.tar", files), "names"))
    assert found == {"0.tar/seen/noto/cat-face.png": ("cat face",), "0.tar/seen/noto/dog_2.png": ("dog",)}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["own", "names"])
def test_emoji_are_captioned_by_what_they_show(how: str) -> None:
    """And by that in the words of their style."""
    train = load("emoji", how).train
    assert train.captions is not None
    assert train.captions[train.names.index("grinning face (fluent)")] == (
        "grinning face",
        "grinning face, in the style of fluent",
    )
    assert all(train.captions)


def test_captions_change_no_fingerprint_and_no_picture(tmp_path: Path) -> None:
    """So that runs and caches on classes alone are what they were; without a word there are none."""
    root = flat(tmp_path / "p")
    (root / "0.txt").write_text("red", encoding="utf-8")
    for source in (root, "emoji"):
        plain, told = load(source, None), load(source, "own")
        assert plain.train.captions is plain.validation.captions is None
        assert plain.train.fingerprint == told.train.fingerprint
        assert plain.validation.fingerprint == told.validation.fingerprint
        assert torch.equal(plain.train.batch([0])[0], told.train.batch([0])[0])


# ---- those of no use -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "1 empty caption"),
        (b" \n\x00\n", "1 empty caption"),
        (b"caf\xe9", "1 caption not in UTF-8"),
        (TOO_LONG.encode(), "1 caption of more than 10,000 characters"),
        (TOO_LONG[:20_000].encode(), "1 caption of more than 10,000 characters"),
    ],
)
def test_captions_of_no_use_are_counted(tmp_path: Path, content: bytes, why: str) -> None:
    """In folders and in shards alike, in one line; the picture stays."""
    root = flat(tmp_path / "p", count=2)
    (root / "0.txt").write_bytes(content)
    (root / "1.txt").write_bytes(b"blue")
    files = {"0.png": picture(0), "1.png": picture(1), "0.txt": content, "1.txt": b"blue"}
    for loaded in (load(root, "own"), load(shard(tmp_path / "s" / "0.tar", files), "own")):
        assert loaded.told[1:] == ["1 caption of 1 of 2 pictures", f"left out: {why}"]
        assert len(loaded.train) + len(loaded.validation) == 2


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"caption": 3}', "1 caption other than text"),
        (b'{"caption": ["a", {}]}', "1 caption other than text"),
        (b'{"caption": "\\ud800"}', "1 caption not in UTF-8"),
        (b'{"caption": ""}', "1 empty caption"),
        (b"{", "1 unreadable file of captions"),
        (b"[" * 100_000, "1 unreadable file of captions"),
        (b"\xff", "1 caption not in UTF-8"),
    ],
)
def test_json_of_no_use_is_counted(content: bytes, why: str) -> None:
    """What is no text, and what is no JSON."""
    bad: Counter[str] = Counter()
    captions.of_json(content, bad)
    assert [f"{count} {kind.replace('{s}', '')}" for kind, count in bad.items()] == [why]


def test_cells_of_no_use_are_counted(tmp_path: Path) -> None:
    """Empty ones and those of a million characters."""
    root = flat(tmp_path / "p", count=2)
    rows = ("file,caption", "0.png,", f"0.png,{TOO_LONG}", "1.png,blue")
    loaded = load(root, table(tmp_path / "captions.csv", *rows))
    assert loaded.told[-1] == f"left out: 1 {captions.LONG.replace('{s}', '')}, 1 empty caption"


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (("file,caption", "9.png,red"), "line 2: expected a picture below .*, found nothing at '9.png'"),
        (("file,caption", ",red"), "line 2: expected a file and a caption, got no file"),
        (("file,label", "0.png,red"), "columns file,caption, got 'file,label'"),
        (("file,caption", "0.png"), "line 2: expected 2 columns, got 1"),
        (("file,caption", "../0.png,red"), "line 2: expected a path below"),
        (("file,caption", "0.png,"), r"expected captions .*, found none \(1 empty caption\)"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, rows: tuple[str, ...], match: str) -> None:
    """With file and line."""
    root = flat(tmp_path / "p", count=2)
    with pytest.raises(InputError, match=match):
        load(root, table(tmp_path / "captions.csv", *rows))


def test_captions_that_are_not_there_are_refused(tmp_path: Path) -> None:
    """A file that is missing, pictures without any, and tables where none can be had."""
    root = flat(tmp_path / "p", count=2)
    with pytest.raises(InputError, match="expected own, names or a file of captions .*, found nothing at"):
        load(root, tmp_path / "captions.csv")
    with pytest.raises(InputError, match=r"expected captions \(own\) of the pictures in .*, found none"):
        load(root, "own")
    with pytest.raises(InputError, match="expected own or names as captions of the embedded emoji"):
        load("emoji", "captions.csv")
    with pytest.raises(InputError, match="expected own or names as captions of the shards"):
        load(shard(tmp_path / "s" / "0.tar", {"0.png": picture(0), "1.png": picture(1)}), "captions.csv")


# ---- in a cache ------------------------------------------------------------------------------------------------------


@pytest.fixture
def captioned() -> data.DataSet:
    """Noise with captions; the held-out pictures have none."""
    found = noise.data_set()
    words = Captions([f"picture {index}"] * (index % 3) for index in range(noise.TRAIN))
    return dataclasses.replace(
        found,
        train=dataclasses.replace(found.train, captions=words),
        validation=dataclasses.replace(found.validation, captions=Captions([()] * noise.HELD_OUT)),
    )


@pytest.fixture
def encode(tokenizer: MultiScaleVQVAE) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.no_grad()(tokenizer.encode)


def made_of(tokenizer: MultiScaleVQVAE, found: data.DataSet) -> tokens.Meta:
    """With the captions."""
    both = (found.train.captions, found.validation.captions)
    known = fingerprint([each.fingerprint for each in both if each is not None])
    return dataclasses.replace(noise.made_of(tokenizer, found), captions=known)


def test_a_cache_holds_the_captions(captioned, encode, tokenizer: MultiScaleVQVAE, tmp_path: Path) -> None:
    """Those of both splits, in the order of the pictures; the tokens' fingerprints are those without."""
    encoding.write(tmp_path / "with", captioned, encode, made_of(tokenizer, captioned))
    cache = tokens.load(tmp_path / "with")
    assert cache.train.captions is not None
    assert list(cache.train.captions) == list(captioned.train.captions)
    assert cache.train.captions.fingerprint == captioned.train.captions.fingerprint
    assert list(cache.validation.captions or ()) == [()] * noise.HELD_OUT


@pytest.mark.parametrize("spoil", ["captions", "caption-ends", "caption-firsts"])
def test_damaged_captions_are_found_and_mended(captioned, encode, tokenizer, tmp_path: Path, spoil: str) -> None:
    """As tokens and labels are: by their checksum, by the same command."""
    meta = made_of(tokenizer, captioned)
    encoding.write(tmp_path, captioned, encode, meta)
    file = tmp_path / f"train-{spoil}.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"train-{spoil}.npy: expected a file of a token cache"):
        tokens.load(tmp_path)
    assert encoding.write(tmp_path, captioned, encode, meta) == 0
    assert list(tokens.load(tmp_path).train.captions or ()) == list(captioned.train.captions)


def test_other_captions_are_another_cache(captioned, encode, tokenizer: MultiScaleVQVAE, tmp_path: Path) -> None:
    """Which does not go on in the place of the first; nor does one without, whose settings know nothing of captions."""
    meta = made_of(tokenizer, captioned)
    encoding.write(tmp_path, captioned, encode, meta)
    bare = noise.data_set()
    assert "captions" not in noise.made_of(tokenizer, bare).to_json()
    with pytest.raises(InputError, match="captions is"):
        encoding.write(tmp_path, bare, encode, noise.made_of(tokenizer, bare))


class Lost:
    """A picture that is listed and cannot be read."""

    name, label, held_out = "lost", 0, False

    def open(self) -> io.BytesIO:
        """See `nextscale.data.listing.Item`."""
        raise FileNotFoundError


class There(Lost):
    """One that can."""

    name = "there"

    def open(self) -> io.BytesIO:
        """See `nextscale.data.listing.Item`."""
        return io.BytesIO(picture(0))


def test_a_cache_captions_what_it_shows(encode, tokenizer: MultiScaleVQVAE, tmp_path: Path) -> None:
    """Where another picture stood in for a lost one, its captions do too, in the data set and in the cache."""
    stand_ins: dict[int, int] = {}
    size = Size(height=8, width=8)
    fetch = OnDemand(items=[Lost(), There()], size=size, report=lambda name, why: None, stand_ins=stand_ins)
    words = Captions([["lost"], ["there"]], stand_ins=stand_ins)
    train = dataclasses.replace(noise.split("train", 2), fetch=fetch, captions=words)
    found = dataclasses.replace(noise.data_set(), train=train)
    validation = dataclasses.replace(found.validation, captions=Captions([()] * noise.HELD_OUT))
    found = dataclasses.replace(found, validation=validation)
    encoding.write(tmp_path, found, encode, made_of(tokenizer, found))
    assert list(words) == [("there",), ("there",)]
    assert list(tokens.load(tmp_path).train.captions or ()) == [("there",), ("there",)]
