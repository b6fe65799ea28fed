"""Make the embedded emoji pictures, `nextscale/data/emoji_pack/`, from three public inputs.

Two drawing styles of every emoji without skin tones, flattened onto white, 64 px, WebP; nine Unicode groups as classes.
The inputs are got like this (any directory will do):

    npm pack @lobehub/fluent-emoji-3d@1.1.0 emoji-datasource-google@16.0.0
    apt-get install unicode-data                       # /usr/share/unicode/emoji/emoji-test.txt
    python scripts/make_emoji_pack.py lobehub-fluent-emoji-3d-1.1.0.tgz emoji-datasource-google-16.0.0.tgz \
        /usr/share/unicode/emoji/emoji-test.txt

The same inputs and libwebp give the same bytes; `provenance.json` states the versions and hashes of both sides.
The licences beside the pack are kept by hand, not written here.
"""

import argparse
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, features

SIDE = 64
QUALITY = 90
HELD_OUT = 0.10
PACK = Path(__file__).resolve().parent.parent / "nextscale" / "data" / "emoji_pack"

VARIATION_SELECTOR = "fe0f"
JOINER = "200d"
CANCEL_TAG = "e007f"
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
GENDER_SIGNS = {"2640", "2642"}
RIGHT_ARROW = "27a1"  # "facing right": the mirror image of another subject

# Code points that draw the same thing with another gender: woman and man are a person, girl and boy a child …
SAME_FIGURE = {
    "1f468": "1f9d1",  # man
    "1f469": "1f9d1",  # woman
    "1f466": "1f9d2",  # boy
    "1f467": "1f9d2",  # girl
    "1f474": "1f9d3",  # old man
    "1f475": "1f9d3",  # old woman
    "1f934": "1f478",  # prince
    "1f936": "1f385",  # Mrs. Claus
    "1f46c": "1f46b",  # men holding hands
    "1f46d": "1f46b",  # women holding hands
}

Subject = tuple[str, ...]  # lower-case code points, four digits or more, without variation selectors


@dataclass(frozen=True, kw_only=True)
class Named:
    """What Unicode says about a subject; `order` is its place in the standard's own list."""

    order: int
    name: str
    group: str


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One picture of the pack, as it came out of its package."""

    subject: Subject
    style: str
    file: str
    encoded: bytes


def subject_of(text: str) -> Subject:
    """`"1F441-FE0F-200D-1F5E8"` or `"39 fe0f 20e3"` as a subject."""
    points = [f"{int(point, 16):04x}" for point in re.split(r"[-_ ]+", text.strip())]
    if points[-1].startswith("e00") and points[-1] != CANCEL_TAG:
        points.append(CANCEL_TAG)  # the fluent package has the flags of England, Scotland and Wales also without it
    return tuple(point for point in points if point != VARIATION_SELECTOR)


def family_of(subject: Subject) -> str:
    """The key that decides the split: subjects that differ only in gender, number of figures or direction share it."""
    dropped = SKIN_TONES | GENDER_SIGNS | {JOINER, RIGHT_ARROW}
    figures = [SAME_FIGURE.get(point, point) for point in subject if point not in dropped]
    return "-".join(dict.fromkeys(figures))


def split_of(family: str) -> str:
    """`validation` for about one family in ten, by hash alone: no seed, no list, no order."""
    share = int.from_bytes(hashlib.sha256(family.encode()).digest()[:8], "big") / 2**64
    return "validation" if share < HELD_OUT else "train"


def read_emoji_test(text: str) -> dict[Subject, Named]:
    """Groups and names of all fully qualified emoji of Unicode's emoji-test.txt."""
    named: dict[Subject, Named] = {}
    group = ""
    for line in text.splitlines():
        if line.startswith("# group:"):
            group = line.removeprefix("# group:").strip()
        elif match := re.match(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E\S+ (.+)", line):
            named[subject_of(match[1])] = Named(order=len(named), name=match[2], group=group)
    return named


def add_newer(named: dict[Subject, Named], records: list[dict[str, str]]) -> None:
    """Add the emoji younger than emoji-test.txt from the datasource's own table, which repeats Unicode's groups."""
    for record in records:
        name = re.sub(r"(.+) Flag$", r"flag: \1", record["name"])
        name = name.lower() if name.isupper() else name
        new = Named(order=len(named), name=name, group=record["category"])
        named.setdefault(subject_of(record["unified"]), new)


def drawings(package: tarfile.TarFile, *, folder: str, style: str) -> Iterator[Drawing]:
    """All pictures of one package without skin tones, in the order of their file names."""
    for member in sorted(package.getmembers(), key=lambda member: member.name):
        path = Path(member.name)
        if str(path.parent) != folder or path.suffix not in {".png", ".webp"}:
            continue
        subject, stream = subject_of(path.stem), package.extractfile(member)
        if SKIN_TONES.isdisjoint(subject) and stream is not None:
            yield Drawing(subject=subject, style=style, file=path.name, encoded=stream.read())


def small_webp(encoded: bytes) -> bytes:
    """A picture flattened onto white, fitted into a square and encoded again."""
    picture = Image.open(io.BytesIO(encoded)).convert("RGBA")
    side = max(picture.size)  # four pictures of the fluent style are 264 px high
    white = Image.new("RGBA", (side, side), "white")
    white.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    small = white.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()


def titled(name: str, style: str, earlier: int) -> str:
    """`grinning face (fluent)`; sixteen subjects were drawn twice, and the second says so."""
    return f"{name} ({style}, second drawing)" if earlier else f"{name} ({style})"


def write_pack(found: list[Drawing], named: dict[Subject, Named]) -> dict[str, int]:
    """Write `pictures.bin` and `index.tsv`; returns the counts that `provenance.json` states."""
    found = sorted(found, key=lambda drawing: (named[drawing.subject].order, drawing.style, drawing.file))
    rows, blobs, seen = ["subject\tstyle\tname\tgroup\tfamily\tsplit\tbytes"], [], dict[tuple[Subject, str], int]()
    for drawing in found:
        about, family, key = named[drawing.subject], family_of(drawing.subject), (drawing.subject, drawing.style)
        blobs.append(small_webp(drawing.encoded))
        name, seen[key] = titled(about.name, drawing.style, seen.get(key, 0)), seen.get(key, 0) + 1
        fields = ["-".join(drawing.subject), drawing.style, name, about.group, family, split_of(family)]
        rows.append("\t".join([*fields, str(len(blobs[-1]))]))
    (PACK / "pictures.bin").write_bytes(b"".join(blobs))
    (PACK / "index.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    subjects = {drawing.subject for drawing in found}
    held_out = sum(split_of(family_of(drawing.subject)) == "validation" for drawing in found)
    return {"pictures": len(found), "subjects": len(subjects), "validation_pictures": held_out}


def stated(path: Path, version: str) -> dict[str, str]:
    """One line of provenance: which file, which version, which bytes."""
    return {"file": path.name, "version": version, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def package_version(package: tarfile.TarFile) -> str:
    """The version an npm package gives itself."""
    stream = package.extractfile("package/package.json")
    assert stream is not None
    return str(json.load(stream)["version"])


def main() -> None:
    """Read the three inputs named on the command line and write the pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fluent", type=Path, help="tarball of @lobehub/fluent-emoji-3d")
    parser.add_argument("noto", type=Path, help="tarball of emoji-datasource-google")
    parser.add_argument("emoji_test", type=Path, help="Unicode's emoji-test.txt")
    arguments = parser.parse_args()

    PACK.mkdir(parents=True, exist_ok=True)
    test_text = arguments.emoji_test.read_text(encoding="utf-8")
    named = read_emoji_test(test_text)
    with tarfile.open(arguments.fluent) as fluent, tarfile.open(arguments.noto) as noto:
        table = noto.extractfile("package/emoji.json")
        assert table is not None
        add_newer(named, json.load(table))
        found = [
            *drawings(fluent, folder="package/assets", style="fluent"),
            *drawings(noto, folder="package/img/google/64", style="noto"),
        ]
        fluent_version, noto_version = package_version(fluent), package_version(noto)
    test_version = re.search(r"# Version: (\S+)", test_text)
    provenance = {
        "inputs": {
            "@lobehub/fluent-emoji-3d": stated(arguments.fluent, fluent_version),
            "emoji-datasource-google": stated(arguments.noto, noto_version),
            "emoji-test.txt": stated(arguments.emoji_test, test_version[1] if test_version else "unknown"),
        },
        "encoder": {"libwebp": features.version("webp"), "side": SIDE, "quality": QUALITY},
        "counts": write_pack(found, named),
        "outputs": {
            name: hashlib.sha256((PACK / name).read_bytes()).hexdigest() for name in ("pictures.bin", "index.tsv")
        },
    }
    report = json.dumps(provenance, indent=2)
    (PACK / "provenance.json").write_text(report + "\n", encoding="utf-8")
    print(report)


if __name__ == "__main__":
    main()
