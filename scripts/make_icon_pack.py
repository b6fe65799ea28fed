"""Make a captioned data set, some 25,000 icons in three dozen drawing styles, from three public npm packages.

    pip install resvg_py==0.5.0
    npm pack @iconify/json@2.2.535 cldr-annotations-full@48.2.0 cldr-annotations-derived-full@48.2.0
    python scripts/make_icon_pack.py iconify-json-2.2.535.tgz --names cldr-annotations-full-48.2.0.tgz \
        cldr-annotations-derived-full-48.2.0.tgz --out icons
    nextscale train tokenizer --data icons …

The tarball of `@iconify/json` has the SHA-256 stated in `ICONS_SHA256`; another one is refused unless
`--any-version` is given. Icons are rendered at 128 px over white, halved (Lanczos) and stored as lossless WebP, which
keeps flat edges clean, beside a JSON file (`captions_of` and `described` tell what it says). The class is the drawing
style. Only sets under the licences of `LICENCES` are read; brands are left out, and so are skin tones.

Held out, by hashes alone: 5 % of the subjects in all styles (`unseen-subject`), and of another 10 % of those drawn in
two styles or more one style each (`unseen-combination`). Subjects of one family (man and woman artist) and
near-duplicates stand on one side. A picture's key says where it belongs: `seen/noto/cat-face`. The same inputs,
resvg_py and libwebp give the same bytes. Takes a few minutes on two cores, so that nothing is kept for another run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import sys
import tarfile
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

ANNOTATIONS, ENGLISH = "annotations.json", "en"  # of a language in Unicode's packages; the one of the subjects
ICONS_SHA256 = "1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91"
LICENCES = {"MIT", "Apache-2.0", "CC0-1.0", "CC-BY-4.0"}
DRAWN, SIDE = 128, 64
PER_SHARD = 5000
HELD_OUT_SUBJECTS, HELD_OUT_COMBINATIONS = 0.05, 0.10
KEYWORDS = 6  # a caption
LEAST_INK = 0.5  # mean darkness, of 255, below which a picture counts as blank: white on white

# Near-duplicates: hashes of 64 bits that differ in at most so many, and thumbnails whose difference is at most this
# share of their ink; found by looking at the pairs on either side. Within a style, where all faces and all clocks
# look alike, only what is the same picture (the flags of French islands).
NEAR_BITS, NEAR_INK, SAME_INK = 4, 0.12, 0.02


@dataclass(frozen=True, kw_only=True)
class Source:
    """One icon set: `styles` gives the drawing style for each suffix of its icons' names, "" for those without.

    `kind` is "emoji" (names are Unicode's), "flags" (names are countries' codes) or "icons".
    """

    prefix: str
    kind: str
    styles: Mapping[str, str]


def _source(prefix: str, kind: str, **styles: str) -> Source:
    return Source(
        prefix=prefix, kind=kind, styles={suffix.removeprefix("plain"): name for suffix, name in styles.items()}
    )


SOURCES = (
    _source("noto", "emoji", plain="noto"),
    _source("noto-v1", "emoji", plain="noto blob"),
    _source("twemoji", "emoji", plain="twemoji"),
    _source("fluent-emoji", "emoji", plain="fluent"),
    _source("fluent-emoji-flat", "emoji", plain="fluent flat"),
    _source("emojione", "emoji", plain="emojione"),
    _source("fxemoji", "emoji", plain="firefox"),
    _source("streamline-emojis", "emoji", plain="streamline emoji"),
    _source("flag", "flags", **{"4x3": "flag icons"}),
    _source("circle-flags", "flags", plain="circle flags"),
    _source("flagpack", "flags", plain="flagpack"),
    _source("streamline-color", "icons", plain="streamline duo", flat="streamline flat"),
    _source("streamline-plump-color", "icons", plain="plump duo", flat="plump flat"),
    _source("streamline-flex-color", "icons", plain="flex duo", flat="flex flat"),
    _source("streamline-sharp-color", "icons", plain="sharp duo", flat="sharp flat"),
    _source("streamline-kameleon-color", "icons", plain="kameleon", duo="kameleon duo"),
    _source("streamline-stickies-color", "icons", plain="stickies", duo="stickies duo"),
    _source("streamline-ultimate-color", "icons", plain="ultimate"),
    _source("streamline-freehand-color", "icons", plain="freehand"),
    _source("streamline-cyber-color", "icons", plain="cyber"),
    _source("icon-park", "icons", plain="icon park"),
    _source("fluent-color", "icons", **dict.fromkeys(("16", "20", "24", "28", "32", "48"), "fluent color")),
    _source("flat-color-icons", "icons", plain="flat color"),
    _source("meteocons", "icons", plain="meteocons line", fill="meteocons"),
    _source("marketeq", "icons", plain="marketeq"),
    _source("glyphs-poly", "icons", plain="glyphs poly"),
)

BRAND_GROUPS = {"Brand", "Logos"}
BRAND_NAMES = """
adobe airbnb alipay amazon android apple behance benz bing bitcoin blackberry blogger chrome discord
dribbble dribble dropbox ethereum facebook figma firefox fitbit github gitlab google imdb instagram
ipad iphone ipod linkedin linux logo macbook magicmouse mastercard meta microsoft netflix nintendo
osx paypal photoshop pinterest playstation reddit safari skype slack snapchat soundcloud spotify
squarespace steam telegram tesla tiktok tinder trello tumblr twitch twitter uber vespa vimeo visa
wechat weibo whatsapp wii wikipedia windows wordpress xbox yelp youtube
"""
BRANDS = frozenset(BRAND_NAMES.split())
MOVING = re.compile(r'attributeName="(?:opacity|d|r|stroke-dashoffset)"')  # parts that are not there to begin with
TONES = re.compile(r"(.+?)-(?:medium-light|medium-dark|light|medium|dark)")  # as the fluent sets write them
ORDINALS = re.compile(r"(.+)-(?:one|two|three|four|five|six|seven|eight|nine|ten)")  # how icon-park counts its variants
GENDERED = frozenset(
    ("man", "woman", "person", "men", "women", "people", "boy", "girl", "male", "female", "child", "adult", "old")
)


# ---- which icons -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Icon:
    """One icon of a set, before it is drawn; `subject` is a slug such as `cat-face`, `emoji` its character or ""."""

    source: str
    name: str
    style: str
    subject: str
    group: str
    emoji: str
    licence: str
    svg: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Names:
    """What Unicode calls its characters, by language: short names and keywords."""

    short: Mapping[str, Mapping[str, str]]
    keywords: Mapping[str, Mapping[str, Sequence[str]]]

    def slugs(self) -> dict[str, str]:
        """The character of each English short name, as a slug."""
        return {slug(name): emoji for emoji, name in reversed(self.short["en"].items())}


def slug(name: str) -> str:
    """`"flag: Côte d’Ivoire"` as `flag-cote-divoire`."""
    spelled = name.replace("#", " hash ").replace("*", " asterisk ").replace("’", "").replace("'", "")
    plain = unicodedata.normalize("NFKD", spelled.replace("&", " and ")).encode("ascii", "ignore").decode()
    return "-".join(re.findall(r"[a-z0-9]+", plain.lower()))


def character(points: str) -> str:
    """`"1f441-fe0f"` as the character, without the variation selector, as Unicode's tables write it."""
    return "".join(chr(int(point, 16)) for point in points.split("-") if point != "fe0f")


def is_brand(name: str, group: str) -> bool:
    """Whether an icon shows somebody's trademark."""
    return group in BRAND_GROUPS or not BRANDS.isdisjoint(name.split("-"))


def has_skin_tone(name: str, names: Iterable[str]) -> bool:
    """Whether an emoji is the variant in one skin tone of another one."""
    toned = TONES.fullmatch(name)
    return "skin-tone" in name or (toned is not None and toned[1] in names)


def unnumbered(name: str, *, source: str) -> str:
    """The name without the number that tells several drawings of one subject apart: `glasses-2`, `cup-one`."""
    rest = re.sub(r"(?<=[a-z])-[0-9]{1,2}$", "", name)
    words = ORDINALS.fullmatch(rest) if source == "icon-park" else None
    return words[1] if words else rest


def styled(names: Iterable[str], source: Source) -> dict[str, tuple[str, str]]:
    """Style and bare name of each icon that is read; of one drawing in several sizes only the largest."""
    found: dict[tuple[str, str], str] = {}
    for name in sorted(names):
        bare, dash, last = name.rpartition("-")
        suffix = last if dash and last in source.styles else ""
        if suffix in source.styles:
            found[source.styles[suffix], bare if suffix else name] = name  # 16, 20 … 48: the last is the largest
    return {name: about for about, name in found.items()}


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """Finds what an icon shows: characters by the names that sets give them, words for names without hyphens."""

    characters: Mapping[str, str]
    short: Mapping[str, str]
    words: Counter[str]

    def of(self, name: str, source: Source, group: str) -> tuple[str, str]:
        """Subject and character (or "")."""
        if source.kind == "flags":
            emoji = "".join(chr(0x1F1E6 + ord(letter) - ord("a")) for letter in name)
            return slug(self.short[emoji]), emoji
        bare = name if name in self.characters else unnumbered(name, source=source.prefix)
        if source.kind == "icons":
            return bare, ""
        for candidate in self._candidates(bare, group):
            if emoji := self.characters.get(candidate, ""):
                return slug(self.short[emoji]) if emoji in self.short else candidate, emoji
        return "-".join(self.split(bare)), ""

    def _candidates(self, name: str, group: str) -> Iterator[str]:
        yield f"flag-{name}" if group == "Flags" else name
        yield name.replace("flag-for-", "flag-")
        yield name.replace("-", "")
        yield " ".join(sorted(self.split(name)))

    def split(self, name: str) -> list[str]:
        """The words of `downpointingredtriangle`: those that are the most usual together."""
        return [part for piece in name.split("-") for part in ([piece] if piece in self.words else self._cut(piece))]

    def _cut(self, piece: str) -> list[str]:
        total = sum(self.words.values())
        best: list[tuple[float, list[str]]] = [(0.0, [])]
        for end in range(1, len(piece) + 1):
            options = []
            for start in range(max(0, end - 20), end):
                word, (cost, before) = piece[start:end], best[start]
                price = np.log(total / self.words[word]) if word in self.words else 12.0 + 4.0 * len(word)
                options.append((cost + float(price), [*before, word]))
            best.append(min(options))
        return best[-1][1]


def subjects(sets: Mapping[str, Any], names: Names) -> Subjects:
    """The table of names: Unicode's own, and what sets that state characters call them."""
    by_slug = names.slugs()
    characters = dict(by_slug)
    for prefix in (source.prefix for source in SOURCES if source.kind == "emoji" and source.prefix in sets):
        for points, name in sets[prefix].get("chars", {}).items():
            if "skin-tone" not in name:
                characters.setdefault(name, character(points))
        for alias, about in sets[prefix].get("aliases", {}).items():
            if about["parent"] in characters and not set(about) - {"parent"}:
                characters.setdefault(alias, characters[about["parent"]])
    named = [*characters, *(name for data in sets.values() for name in data["icons"])]
    words = Counter(word for name in named for word in name.split("-") if len(word) > 2 or word in {"no", "of"})
    for known, emoji in list(by_slug.items()):
        characters.setdefault(known.replace("-", ""), emoji)
        characters.setdefault(" ".join(sorted(known.split("-"))), emoji)
    return Subjects(characters=characters, short=names.short["en"], words=words)


def icons_of(source: Source, data: Mapping[str, Any], licence: str, known: Subjects) -> Iterator[Icon]:
    """The icons of a set that go into the pack, by name."""
    groups = {name: group for group, members in sorted(data.get("categories", {}).items()) for name in members}
    icons = data["icons"].items()
    shown = {name: about for name, about in icons if not about.get("hidden") and not MOVING.search(about["body"])}
    for name, (style, bare) in sorted(styled(shown, source).items()):
        group = groups.get(name, "")
        if source.kind == "flags" and (len(bare) != 2 or f"flag-{bare}" in known.short):
            continue
        if (source.kind == "icons" and is_brand(bare, group)) or has_skin_tone(name, shown):
            continue
        try:
            subject, emoji = known.of(bare, source, group)
        except KeyError:
            continue  # the code of no country
        yield Icon(
            source=source.prefix,
            name=name,
            style=style,
            subject=subject,
            group=group_words("Flags" if source.kind == "flags" else group),
            emoji=emoji,
            licence=licence,
            svg=svg_of(shown[name], data),
        )


def group_words(group: str) -> str:
    """`MoneyShopping` and `Food & Drink` as small words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", group).replace("&", "and").lower()


def svg_of(icon: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The icon in the middle of a square; what it does not say of its size the set does."""
    left, top = (icon.get(key, data.get(key, 0)) for key in ("left", "top"))
    width, height = (icon.get(key, data.get(key, 16)) for key in ("width", "height"))
    side = max(width, height)
    box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{box}">{icon["body"]}</svg>'


def with_groups(icons: Sequence[Icon]) -> dict[str, str]:
    """The group of each character by the first set that states one."""
    groups: dict[str, str] = {}
    for icon in icons:
        if icon.emoji and icon.group:
            groups.setdefault(icon.emoji, icon.group)
    return groups


# ---- drawing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawn icon: `thumb` is its (16, 16, 3) uint8 thumbnail, `bits` its difference hash, `ink` its darkness."""

    webp: bytes = field(repr=False)
    thumb: np.ndarray = field(repr=False)
    bits: int
    ink: float
    colours: tuple[str, ...]


Draw = Callable[[str], bytes]  # SVG to PNG of DRAWN × DRAWN


def resvg(svg: str) -> bytes:
    """An SVG as a PNG."""
    import resvg_py  # type: ignore[import-not-found, import-untyped, unused-ignore]

    png: bytes = resvg_py.svg_to_bytes(svg_string=svg, width=DRAWN, height=DRAWN, skip_system_fonts=True)
    return png


def drawn(svg: str, *, draw: Draw = resvg) -> Picture:
    """One icon over white, halved and encoded."""
    picture = Image.open(io.BytesIO(draw(svg))).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    small = white.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", lossless=True, quality=75, method=4)
    pixels = np.asarray(small)
    return Picture(
        webp=buffer.getvalue(),
        thumb=np.asarray(small.resize((16, 16), Image.Resampling.BOX)),
        bits=difference_hash(small),
        ink=float(255 - pixels.mean()),
        colours=colours_of(pixels),
    )


def difference_hash(picture: Image.Image) -> int:
    """64 bits: whether brightness rises from each of 8 × 9 cells to the one at its right."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


HUES = ((15, "red"), (40, "orange"), (66, "yellow"), (160, "green"), (190, "turquoise"), (255, "blue"), (290, "purple"))


def colours_of(pixels: np.ndarray) -> tuple[str, ...]:
    """Up to three names of colours, each of at least a sixth of what is not white, the most frequent first."""
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV")).reshape(-1, 3).astype(np.float32)
    counts = Counter(colour(hue * 360 / 255, rich / 255, bright / 255) for hue, rich, bright in hsv[::3].tolist())
    counts.pop("white", None)
    least = sum(counts.values()) / 6
    return tuple(name for name, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])) if count >= least)[
        :3
    ]


def colour(hue: float, saturation: float, brightness: float) -> str:
    """The everyday name of a colour: hue in degrees, the others in [0, 1]."""
    if brightness < 0.22:
        return "black"
    if saturation < 0.13:
        return "white" if brightness > 0.93 else "grey"
    name = next((name for limit, name in HUES if hue < limit), "pink" if hue < 345 else "red")
    if name in {"red", "orange"} and 8 <= hue < 40 and brightness < 0.7:
        return "brown"
    return "pink" if name == "red" and saturation < 0.55 and brightness > 0.75 else name


def draw_all(icons: Sequence[Icon], *, draw: Draw, processes: int) -> list[Picture]:
    """All icons, drawn by several processes; says how far it is and how long it takes."""
    work, found, start = partial(_chunk, draw=draw), list[Picture](), time.monotonic()
    chunks = [[icon.svg for icon in icons[start : start + 64]] for start in range(0, len(icons), 64)]
    with ProcessPoolExecutor(processes) if processes > 1 else _Inline() as pool:
        for chunk in pool.map(work, chunks):
            found.extend(chunk)
            left = (time.monotonic() - start) / len(found) * (len(icons) - len(found))
            print(f"\rdrawn {len(found):,} of {len(icons):,}, {left:.0f} s left ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def _chunk(svgs: Sequence[str], *, draw: Draw) -> list[Picture]:
    return [drawn(svg, draw=draw) for svg in svgs]


class _Inline:
    """A pool of no processes."""

    def __enter__(self) -> _Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    map = staticmethod(map)


# ---- which side ------------------------------------------------------------------------------------------------------


def share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def family(subject: str) -> str:
    """What subjects that differ only in gender or age share."""
    rest = [word for word in subject.split("-") if word not in GENDERED]
    return "-".join(rest) or subject


def near_duplicates(pictures: Sequence[Picture], styles: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of indices of pictures that look the same."""

    def same(one: int, other: int) -> bool:
        limit = SAME_INK if styles[one] == styles[other] else NEAR_INK
        return difference(pictures[one], pictures[other]) <= limit

    bits = np.array([picture.bits for picture in pictures], dtype=np.uint64)
    pairs = []
    for index in range(len(bits) - 1):
        near = np.flatnonzero(np.bitwise_count(bits[index + 1 :] ^ bits[index]) <= NEAR_BITS) + index + 1
        pairs += [(index, other) for other in near.tolist() if same(index, other)]
    return pairs


def difference(one: Picture, other: Picture) -> float:
    """How much two thumbnails differ, as a share of what there is to see."""
    inks = [255.0 - picture.thumb.astype(np.float32) for picture in (one, other)]
    return float(np.abs(inks[0] - inks[1]).mean() / (inks[0] + inks[1]).mean() * 2)


def components(nodes: Iterable[str], links: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each node the first name among all that are linked with it, over any number of steps."""
    above = {node: node for node in nodes}

    def top(node: str) -> str:
        while above[node] != node:
            above[node] = above[above[node]]
            node = above[node]
        return node

    for one, other in links:
        low, high = sorted((top(one), top(other)))
        above[high] = low
    return {node: top(node) for node in above}


def sides(icons: Sequence[Icon], near: Sequence[tuple[int, int]]) -> list[str]:
    """`seen`, `unseen-subject` or `unseen-combination` for each icon."""
    families = [family(icon.subject) for icon in icons]
    together = components(families, ((families[one], families[other]) for one, other in near))
    held = [share(f"subject {together[each]}") < HELD_OUT_SUBJECTS for each in families]
    neighbours = defaultdict[int, set[int]](set)
    for one, other in near:
        neighbours[one].add(other)
        neighbours[other].add(one)
    cells = defaultdict[str, dict[str, set[int]]](lambda: defaultdict(set))
    for index, icon in enumerate(icons):
        cells[icon.subject][icon.style].add(index)
    found = ["unseen-subject" if out else "seen" for out in held]
    for subject, styles in cells.items():
        if len(styles) > 1 and share(f"combination {subject}") < HELD_OUT_COMBINATIONS:
            for index in _one_style(subject, styles, neighbours, found):
                found[index] = "unseen-combination"
    return found


def _one_style(
    subject: str, styles: Mapping[str, set[int]], neighbours: Mapping[int, set[int]], found: Sequence[str]
) -> set[int]:
    """The pictures of the style to hold out: one that no training picture looks the same as; or none."""
    for style in sorted(styles, key=lambda style: share(f"{subject} {style}")):
        cell = styles[style]
        if all(found[index] == "seen" and neighbours.get(index, set()) <= cell for index in cell):
            return cell
    return set()


# ---- captions --------------------------------------------------------------------------------------------------------


def captions_of(icon: Icon, picture: Picture, names: Names, group: str) -> list[tuple[str, str]]:
    """Language and text of each caption: the name, with style, with colours; Unicode's names and keywords.

    A caption in two or three names the style.
    """
    words = re.sub("^flag ", "flag of ", icon.subject.replace("-", " "))
    found = [("en", words), ("en", f"{words}, in the style of {icon.style}")]
    if picture.colours:
        found.append(("en", f"{_and(picture.colours)} {words}"))
    if not icon.emoji and group:
        found.append(("en", f"{words}, {group}, {icon.style} style"))
    for language in names.short if icon.emoji else ():
        short, keywords = names.short[language].get(icon.emoji), names.keywords[language].get(icon.emoji)
        found += [(language, short)] if short else []
        found += [(language, _listed(keywords, icon, language))] if keywords and len(keywords) > 1 else []
    unique: dict[str, tuple[str, str]] = {}
    for language, text in found:
        unique.setdefault(text.casefold(), (language, text))
    return list(unique.values())


def _and(words: Sequence[str]) -> str:
    """`red, white and blue`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _listed(keywords: Sequence[str], icon: Icon, language: str) -> str:
    """Some keywords, other ones for each picture, and behind every second list the style."""
    mark = f"{icon.source} {icon.name} {language}"
    chosen = sorted(keywords, key=lambda word: share(f"{mark} {word}"))[:KEYWORDS]
    return ", ".join([*chosen, f"{icon.style} style"] if share(mark) < 0.5 else chosen)


def described(icon: Icon, picture: Picture, captions: Sequence[tuple[str, str]], *, side: str, group: str) -> bytes:
    """The JSON beside a picture."""
    about = {
        "caption": [text for _, text in captions],
        "languages": [language for language, _ in captions],
        "label": icon.style,
        "style": icon.style,
        "subject": icon.subject,
        "group": group,
        "colours": picture.colours,
        "emoji": icon.emoji or None,
        "held_out": None if side == "seen" else side,
        "set": icon.source,
        "icon": icon.name,
        "licence": icon.licence,
    }
    return json.dumps(about, ensure_ascii=False).encode()


# ---- reading and writing ---------------------------------------------------------------------------------------------


def read_sets(path: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """What the package says of its sets, the sets that are read, and its version."""
    wanted = {f"package/json/{source.prefix}.json" for source in SOURCES}
    found: dict[str, Any] = {}
    with tarfile.open(path) as package:
        for member in package:
            if member.name in {*wanted, "package/collections.json", "package/package.json"}:
                stream = package.extractfile(member)
                assert stream is not None
                found[member.name] = json.load(stream)
    sets = {Path(name).stem: found[name] for name in sorted(wanted & found.keys())}
    return found["package/collections.json"], sets, found["package/package.json"]["version"]


def languages_in(paths: Sequence[Path]) -> list[str]:
    """The languages that Unicode's packages have names in, English first."""
    found: set[str] = set()
    for path in paths:
        with tarfile.open(path) as package:
            names = (Path(name) for name in package.getnames())
            found |= {name.parent.name for name in names if name.name == ANNOTATIONS}
    return sorted(found, key=lambda language: (language != ENGLISH, language))


def chosen_languages(asked: str, there: Sequence[str]) -> list[str]:
    """`en,ko`, or `all`; English, which names the subjects, always and first.

    Raises `ValueError` for one that is not there.
    """
    if asked == "all":
        return list(there)
    languages = [*dict.fromkeys([ENGLISH, *(name.strip() for name in asked.split(","))])]
    if unknown := [name for name in languages if name not in there]:
        raise ValueError(f"expected some of {', '.join(there)}, or all, got {', '.join(unknown)}")
    return languages


def read_names(paths: Sequence[Path], languages: Sequence[str]) -> Names:
    """Short names and keywords from Unicode's packages."""
    short: dict[str, dict[str, str]] = {language: {} for language in languages}
    keywords: dict[str, dict[str, Sequence[str]]] = {language: {} for language in languages}
    for path in paths:
        with tarfile.open(path) as package:
            for member in package:
                language = Path(member.name).parent.name
                if Path(member.name).name != ANNOTATIONS or language not in short:
                    continue
                stream = package.extractfile(member)
                assert stream is not None
                (tables,) = json.load(stream).values()
                for emoji, about in tables.get("annotations", {}).items():  # some languages have none yet
                    if "tts" in about:
                        short[language].setdefault(emoji, about["tts"][0])
                    if "default" in about:
                        keywords[language].setdefault(emoji, about["default"])
    return Names(short=short, keywords=keywords)


def keys_of(icons: Sequence[Icon], places: Sequence[str]) -> list[str]:
    """The key of each picture; further drawings of a subject in one style are numbered."""
    drawn_before: Counter[str] = Counter()
    keys = []
    for icon, place in zip(icons, places, strict=True):
        key = f"{place}/{slug(icon.style)}/{icon.subject}"
        drawn_before[key] += 1
        keys.append(key if drawn_before[key] == 1 else f"{key}_{drawn_before[key]}")
    return keys


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture as it stands in a shard."""

    key: str
    side: str
    webp: bytes = field(repr=False)
    json: bytes = field(repr=False)
    languages: tuple[str, ...]


def samples_of(drawn: Sequence[tuple[Icon, Picture]], places: Sequence[str], names: Names) -> list[Sample]:
    """The samples of drawn icons, by key."""
    icons = [icon for icon, _ in drawn]
    groups, samples = with_groups(icons), list[Sample]()
    for (icon, picture), side, key in zip(drawn, places, keys_of(icons, places), strict=True):
        group = groups.get(icon.emoji, icon.group)
        captions = captions_of(icon, picture, names, group)
        about = described(icon, picture, captions, side=side, group=group)
        languages = tuple(language for language, _ in captions)
        samples.append(Sample(key=key, side=side, webp=picture.webp, json=about, languages=languages))
    return sorted(samples, key=lambda sample: sample.key)


def write_shards(out: Path, name: str, samples: Sequence[Sample]) -> list[Path]:
    """Tar files of the samples, with nothing in their headers that tells when or by whom."""
    paths = []
    for start in range(0, len(samples), PER_SHARD):
        paths.append(out / f"{name}-{start // PER_SHARD:03d}.tar")
        with tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT) as shard:
            for sample in samples[start : start + PER_SHARD]:
                _add(shard, f"{sample.key}.json", sample.json)
                _add(shard, f"{sample.key}.webp", sample.webp)
    return paths


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    shard.addfile(member, io.BytesIO(content))


def attribution(collections: Mapping[str, Any], counts: Mapping[str, int], *, icons: str, names: str) -> str:
    """Who drew what under which licence, as the package says."""
    lines = [
        "# Who drew the icons",
        "",
        f"The pictures were rendered to {SIDE} × {SIDE} pixels over white from the icon sets below, as collected in",
        f"the npm package @iconify/json {icons}; skin tones and brands were left out, nothing else was changed.",
        f"Names and keywords of emoji: Unicode CLDR {names} (cldr-annotations-full, cldr-annotations-derived-full),",
        "© Unicode, Inc., Unicode-3.0 (https://www.unicode.org/license.txt).",
        "",
        "| set | pictures | author | licence |",
        "|---|---|---|---|",
    ]
    for prefix, count in sorted(counts.items()):
        about = collections[prefix]
        author = _linked(about["author"]["name"], about["author"].get("url"))
        licence = _linked(about["license"]["spdx"], about["license"].get("url"))
        lines.append(f"| {about['name']} (`{prefix}`) | {count:,} | {author} | {licence} |")
    return "\n".join(lines)


def _linked(text: str, url: str | None) -> str:
    return f"[{text}]({url})" if url else text


def sha256(path: Path) -> str:
    """The hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def gather(collections: Mapping[str, Any], sets: Mapping[str, Any], names: Names) -> list[Icon]:
    """The icons of all sets. Raises `ValueError` for a set under a licence that is not among `LICENCES`."""
    known, icons = subjects(sets, names), list[Icon]()
    for source in SOURCES:
        if source.prefix in sets:
            licence = collections[source.prefix]["license"]["spdx"]
            if licence not in LICENCES:
                raise ValueError(f"expected one of {', '.join(sorted(LICENCES))} for {source.prefix}, got {licence}")
            icons += icons_of(source, sets[source.prefix], licence, known)
    return icons


def make(
    package: Path,
    tables: Sequence[Path],
    out: Path,
    *,
    languages: Sequence[str],
    draw: Draw = resvg,
    processes: int = 2,
) -> dict[str, Any]:
    """Write the pack; returns what `provenance.json` states."""
    out.mkdir(parents=True, exist_ok=True)
    collections, sets, icons_version = read_sets(package)
    names = read_names(tables, languages)
    gathered = gather(collections, sets, names)
    every = draw_all(gathered, draw=draw, processes=processes)
    visible = [(icon, picture) for icon, picture in zip(gathered, every, strict=True) if picture.ink >= LEAST_INK]
    icons = [icon for icon, _ in visible]
    near = near_duplicates([picture for _, picture in visible], [icon.style for icon in icons])
    samples = samples_of(visible, sides(icons, near), names)
    shards = [
        *write_shards(out, "train", [sample for sample in samples if sample.side == "seen"]),
        *write_shards(out, "val", [sample for sample in samples if sample.side != "seen"]),
    ]
    counts = Counter(icon.source for icon in icons)
    credit = attribution(collections, counts, icons=icons_version, names=_versions(tables))
    provenance = {
        "inputs": {path.name: sha256(path) for path in (package, *tables)},
        "encoder": {"libwebp": features.version("webp"), "resvg_py": _resvg(), "side": SIDE, "lossless": True},
        "pictures": len(icons),
        "blank": sorted(
            {f"{icon.source}:{icon.name}" for icon in gathered} - {f"{icon.source}:{icon.name}" for icon in icons}
        ),
        "near_duplicates": len(near),
        "subjects": len({icon.subject for icon in icons}),
        "sides": Counter(sample.side for sample in samples),
        "sets": counts,
        "styles": Counter(icon.style for icon in icons),
        "licences": Counter(icon.licence for icon in icons),
        "captions": Counter(language for sample in samples for language in sample.languages),
        "outputs": {path.name: sha256(path) for path in shards},
    }
    _write(out / "classes.txt", "\n".join(sorted({icon.style for icon in icons})))
    _write(out / "ATTRIBUTION.md", credit)
    _write(out / "provenance.json", json.dumps(provenance, indent=2, ensure_ascii=False))
    return provenance


def _write(file: Path, text: str) -> None:
    file.write_text(text + "\n", encoding="utf-8")


def _resvg() -> str | None:
    try:
        return version("resvg_py")
    except PackageNotFoundError:
        return None


def _versions(tables: Sequence[Path]) -> str:
    found = {match[1] for path in tables if (match := re.search(r"-([0-9.]+)\.tgz$", path.name))}
    return ", ".join(sorted(found)) or "of unknown version"


def main() -> None:
    """Make the pack from the packages named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("icons", type=Path, help="tarball of @iconify/json")
    parser.add_argument("--names", type=Path, nargs="+", required=True, help="tarballs of cldr-annotations-*full")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--languages", default="en,ko", help="of Unicode's names, beside English, or all (default: %(default)s)"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--any-version", action="store_true", help="take another @iconify/json than the known one")
    arguments = parser.parse_args()
    if not arguments.any_version and sha256(arguments.icons) != ICONS_SHA256:
        parser.error(f"expected @iconify/json with the SHA-256 {ICONS_SHA256}, got another file: {arguments.icons}")
    try:
        languages = chosen_languages(arguments.languages, languages_in(arguments.names))
    except ValueError as error:
        parser.error(f"--languages: {error}")
    provenance = make(
        arguments.icons,
        arguments.names,
        arguments.out,
        languages=languages,
        processes=arguments.processes,
    )
    print(json.dumps(provenance, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
