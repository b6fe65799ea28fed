"""scripts/make_icon_pack.py on three tiny icon sets made here: neither npm nor resvg is needed."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nextscale import data

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_icon_pack.py"
SPEC = importlib.util.spec_from_file_location("make_icon_pack", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
icon_pack = importlib.util.module_from_spec(SPEC)
sys.modules["make_icon_pack"] = icon_pack
SPEC.loader.exec_module(icon_pack)

ANIMALS = ("ant", "bee", "cow", "dog", "eel", "fox", "gnu", "hen", "imp", "jay", "kid", "lark", "mole", "newt", "owl")
SUBJECTS = [f"thing-{animal}" for animal in ANIMALS]
LICENCE = {"title": "MIT", "spdx": "MIT"}


def noise(svg: str) -> bytes:
    """A picture that the SVG alone decides, unlike any other's; a blank one for those that say so."""
    cells = np.frombuffer(hashlib.sha512(svg.encode()).digest()[:48], dtype=np.uint8).reshape(4, 4, 3)
    picture = Image.fromarray(cells * np.uint8("blank" not in svg)).convert("RGBA")
    if "blank" in svg:
        picture.putalpha(0)
    buffer = io.BytesIO()
    picture.resize((128, 128), Image.Resampling.BILINEAR).save(buffer, "PNG")
    return buffer.getvalue()


def packed(path: Path, files: dict[str, Any]) -> Path:
    """A package of npm with JSON files."""
    with tarfile.open(path, "w:gz") as package:
        for name, content in files.items():
            encoded = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(encoded)
            package.addfile(member, io.BytesIO(encoded))
    return path


def icons(prefix: str, names: list[str], **more: Any) -> dict[str, Any]:
    """A set that draws each name in its own way."""
    return {"prefix": prefix, "icons": {name: {"body": f"<{prefix} {name}/>"} for name in names}, **more}


def packages(folder: Path, *, licence: dict[str, str] = LICENCE) -> tuple[Path, Path]:
    """Three sets, and names of one emoji."""
    noto = icons("noto", ["cat-face", "cat-face-dark-skin-tone", *SUBJECTS], chars={"1f431": "cat-face"})
    noto["icons"]["old"] = {"body": "<old/>", "hidden": True}
    twemoji = icons("twemoji", ["cat-face", "blank", *SUBJECTS])
    color = icons("streamline-color", ["google", "cup-1", "cup-2", "cup-1-flat", *SUBJECTS])
    about = {"name": "Set", "author": {"name": "Somebody"}, "license": licence}
    files = {
        "package.json": {"version": "1.2.3"},
        "collections.json": {each["prefix"]: about for each in (noto, twemoji, color)},
        **{f"json/{each['prefix']}.json": each for each in (noto, twemoji, color)},
    }
    names = {
        f"annotations/{language}/annotations.json": {
            "annotations": {"annotations": {"🐱": {"tts": [short], "default": [short, "pet"]}}}
        }
        for language, short in (("de", "Katzengesicht"), ("en", "cat face"), ("ko", "고양이 얼굴"))
    }
    names["annotations/xx/annotations.json"] = {"annotations": {"identity": {"language": "xx"}}}  # nothing yet
    return packed(folder / "icons.tgz", files), packed(folder / "names-48.2.0.tgz", names)


def make(folder: Path, out: str, **more: Any) -> dict[str, Any]:
    """The pack of those sets."""
    inputs, names = packages(folder, **more)
    provenance: dict[str, Any] = icon_pack.make(
        inputs, [names], folder / out, languages=["en", "ko"], draw=noise, processes=1
    )
    return provenance


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack, made once."""
    folder = tmp_path_factory.mktemp("icons")
    make(folder, "pack")
    return folder / "pack"


def described(pack: Path) -> list[dict[str, Any]]:
    """What the JSON files of all shards say."""
    found = []
    for path in sorted(pack.glob("*.tar")):
        with tarfile.open(path) as shard:
            for name in shard.getnames():
                stream = shard.extractfile(name)
                assert stream is not None
                found += [json.load(stream)] if name.endswith(".json") else []
    return found


def test_two_runs_give_equal_shards(pack: Path) -> None:
    """Byte for byte."""
    again = make(pack.parent, "again")
    for path in [*pack.glob("*.tar"), *pack.glob("*.txt"), *pack.glob("*.md")]:
        assert path.read_bytes() == (pack.parent / "again" / path.name).read_bytes(), path.name
    assert again["outputs"].keys() == {path.name for path in pack.glob("*.tar")}


def test_a_subject_is_held_out_in_all_styles_or_in_one(pack: Path) -> None:
    """`unseen-subject`: nowhere to train on; `unseen-combination`: in another style, and not in this one."""
    found = described(pack)
    seen = {(each["subject"], each["style"]) for each in found if each["held_out"] is None}
    subjects = {subject for subject, _ in seen}
    held_out = [each for each in found if each["held_out"]]
    assert {each["held_out"] for each in held_out} == {"unseen-subject", "unseen-combination"}
    for each in held_out:
        assert (each["subject"] in subjects) == (each["held_out"] == "unseen-combination")
        assert (each["subject"], each["style"]) not in seen


def test_brands_skin_tones_hidden_and_blank_icons_stay_out(pack: Path) -> None:
    """All other icons are there, the two drawings of a cup under one subject."""
    found = [(each["set"], each["icon"]) for each in described(pack)]
    assert len(found) == len(set(found)) == 3 * len(SUBJECTS) + 5
    assert not {"google", "cat-face-dark-skin-tone", "old", "blank"} & {icon for _, icon in found}
    assert {each["subject"] for each in described(pack) if each["icon"].startswith("cup")} == {"cup"}


@pytest.mark.slow
def test_captions_are_names_styles_and_what_unicode_says(pack: Path) -> None:
    """In English for all, in Korean for emoji."""
    cat = next(each for each in described(pack) if each["icon"] == "cat-face" and each["set"] == "twemoji")
    assert cat["caption"][:2] == ["cat face", "cat face, in the style of twemoji"]
    assert "고양이 얼굴" in cat["caption"]
    assert sorted(set(cat["languages"])) == ["en", "ko"]
    flat = next(each for each in described(pack) if each["icon"] == "cup-1-flat")
    assert flat["style"] == flat["label"] == "streamline flat"
    assert set(flat["languages"]) == {"en"}


def test_any_languages_of_the_packages_may_be_chosen(pack: Path) -> None:
    """English always, which names the subjects; one that is not there is told, with those that are."""
    tables = [pack.parent / "names-48.2.0.tgz"]
    there = icon_pack.languages_in(tables)
    assert there == icon_pack.chosen_languages("all", there) == ["en", "de", "ko", "xx"]
    assert icon_pack.chosen_languages("ko, de", there) == ["en", "ko", "de"]
    names = icon_pack.read_names(tables, there)
    assert [names.short[language]["🐱"] for language in there[:3]] == ["cat face", "Katzengesicht", "고양이 얼굴"]
    with pytest.raises(ValueError, match="^expected some of en, de, ko, xx, or all, got fr$"):
        icon_pack.chosen_languages("en,fr", there)


def test_a_pack_is_data_as_it_is(pack: Path) -> None:
    """`--data FOLDER`, the styles as classes."""
    found = data.load(pack, height=16, width=16)
    assert found.classes == ("noto", "streamline duo", "streamline flat", "twemoji")
    assert found.held_out == "val-000.tar"
    assert len(found.train) + len(found.validation) == len(described(pack))


def test_attribution_names_every_set(pack: Path) -> None:
    """With author and licence."""
    text = (pack / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert all(f"(`{name}`)" in text for name in ("noto", "twemoji", "streamline-color"))
    assert "48.2.0" in text


def test_a_licence_that_asks_for_more_is_refused(tmp_path: Path) -> None:
    """Share-alike, for one."""
    with pytest.raises(ValueError, match="CC-BY-SA-4.0"):
        make(tmp_path, "pack", licence={"title": "CC BY-SA", "spdx": "CC-BY-SA-4.0"})


def test_names_become_words() -> None:
    """Slugs of Unicode's names, numbers of drawings, names written without hyphens."""
    assert icon_pack.slug("flag: Côte d’Ivoire") == "flag-cote-divoire"
    assert icon_pack.slug("keycap: #") == "keycap-hash"
    assert icon_pack.unnumbered("cup-two", source="icon-park") == "cup"
    assert icon_pack.unnumbered("glasses-2", source="streamline-color") == "glasses"
    words = icon_pack.Counter({"red": 5, "triangle": 3, "down": 4, "pointing": 2})
    known = icon_pack.Subjects(characters={}, short={}, words=words)
    assert known.split("downpointingredtriangle") == ["down", "pointing", "red", "triangle"]


@pytest.mark.parametrize(
    ("pixel", "name"),
    [((255, 0, 0), "red"), ((250, 220, 40), "yellow"), ((120, 70, 30), "brown"), ((20, 20, 20), "black")],
)
def test_colours_have_everyday_names(pixel: tuple[int, int, int], name: str) -> None:
    """White is the ground, and told of none."""
    pixels = np.full((64, 64, 3), 255, dtype=np.uint8)
    pixels[:32] = pixel
    assert icon_pack.colours_of(pixels) == (name,)


def test_near_duplicates_of_other_styles_stand_on_one_side() -> None:
    """Their subjects are one for the split."""
    drawn = [icon_pack.drawn(svg, draw=noise) for svg in ("one", "one", "two")]
    assert icon_pack.near_duplicates(drawn, ["noto", "twemoji", "noto"]) == [(0, 1)]
    assert icon_pack.components("abc", [("b", "c")]) == {"a": "a", "b": "b", "c": "b"}
