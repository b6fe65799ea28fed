"""Captions of pictures: where they are found, which ones are no use, and how those of a million pictures are kept.

A caption is one line of text, any language; a picture may have several, or none. Sources: `own`, what comes with the
pictures (`cat.txt` beside `cat.jpg`, a caption a line; `.txt`, or `.json` with "caption", a text or a list, in shards;
the names of the embedded emoji); `names`, the words of file names; or a CSV table with the columns `file,caption`, any
number of rows a picture. A caption that is no use is left out and counted: it costs no picture. Opens no picture.

Letters of shapes: N pictures, C captions of all of them, B bytes of these in UTF-8.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from nextscale.data import tables
from nextscale.data.names import row_of
from nextscale.data.tables import Columns, Source
from nextscale.data.walk import LeftOut, Tree, in_number
from nextscale.errors import InputError

OWN, NAMES = "own", "names"  # `./own` is a file of that name
LONGEST = 10_000  # characters of a caption
MOST_BYTES = 2**20  # of a file with captions

Captioning = str | Path

EMPTY, LONG, NO_TEXT = (
    "empty caption{s}",
    f"caption{{s}} of more than {LONGEST:,} characters",
    "caption{s} not in UTF-8",
)
OTHER, GONE = "caption{s} other than text", "unreadable file{s} of captions"
BAD = (EMPTY, LONG, NO_TEXT, OTHER, GONE)


class Captions(Sequence[tuple[str, ...]]):
    """For each picture its captions, in their order; an empty tuple where it has none.

    Kept as bytes and offsets, which may be mapped from files: `text_B` uint8, `ends_C` int64 (where each caption ends
    in `text_B`), `firsts_N` (N + 1,) int64 (each picture's first caption, and C). `stand_ins` gives by index the
    picture that is shown in place of one that turned out unreadable, whose captions are then given, too.
    """

    def __init__(self, captions: Iterable[Iterable[str]], *, stand_ins: Mapping[int, int] | None = None) -> None:
        """Those of each picture, put together."""
        text, ends, firsts = bytearray(), array("q"), array("q", [0])  # a list of a million pieces takes a gigabyte
        for those in captions:
            for caption in those:
                text += caption.encode()
                ends.append(len(text))
            firsts.append(len(ends))
        self.text_B = np.frombuffer(text, dtype=np.uint8)
        self.ends_C = np.frombuffer(ends, dtype=np.int64)
        self.firsts_N = np.frombuffer(firsts, dtype=np.int64)
        self.stand_ins: Mapping[int, int] = {} if stand_ins is None else stand_ins

    @classmethod
    def mapped(cls, text_B: np.ndarray, ends_C: np.ndarray, firsts_N: np.ndarray) -> Captions:
        """Those in arrays, which are not copied. Raises `ValueError` for offsets that do not fit."""
        rising = bool((np.diff(ends_C) > 0).all() and (np.diff(firsts_N) >= 0).all())
        whole = len(firsts_N) > 0 and firsts_N[0] == 0 and firsts_N[-1] == len(ends_C)
        if not rising or not whole or len(text_B) != (ends_C[-1] if len(ends_C) else 0):
            raise ValueError("expected offsets of captions that rise and end where the text does")
        captions = cls(())
        captions.text_B, captions.ends_C, captions.firsts_N = text_B, ends_C, firsts_N
        return captions

    def __len__(self) -> int:
        return len(self.firsts_N) - 1

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> Captions: ...

    def __getitem__(self, index: int | slice) -> tuple[str, ...] | Captions:
        if isinstance(index, slice):
            return self.chosen(range(*index.indices(len(self))))
        place = range(len(self))[index]  # raises IndexError, and counts from the end
        place = self.stand_ins.get(place, place)
        first, behind = int(self.firsts_N[place]), int(self.firsts_N[place + 1])
        return tuple(self._caption(number) for number in range(first, behind))

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return (self[place] for place in range(len(self)))

    def _caption(self, number: int) -> str:
        start = int(self.ends_C[number - 1]) if number else 0
        return bytes(self.text_B[start : int(self.ends_C[number])]).decode()

    def chosen(self, indices: Iterable[int], *, stand_ins: Mapping[int, int] | None = None) -> Captions:
        """Those of some pictures; of a row of neighbours the text is not copied."""
        places = indices if isinstance(indices, np.ndarray) else np.fromiter(indices, dtype=np.int64)
        row = None if self.stand_ins else row_of(places)
        if row is None:
            return Captions((self[int(place)] for place in places), stand_ins=stand_ins)
        firsts = self.firsts_N[row.start : row.stop + 1] if len(places) else np.zeros(1, dtype=np.int64)
        first, behind = int(firsts[0]), int(firsts[-1])
        start = int(self.ends_C[first - 1]) if first else 0
        ends_C = self.ends_C[first:behind]
        text_B = self.text_B[start : int(ends_C[-1]) if len(ends_C) else start]
        captions = Captions((), stand_ins=stand_ins)
        captions.text_B, captions.ends_C, captions.firsts_N = text_B, ends_C - start, firsts - first
        return captions

    @property
    def total(self) -> int:
        """C."""
        return len(self.ends_C)

    @property
    def captioned(self) -> int:
        """How many pictures have one or more."""
        return int((np.diff(self.firsts_N) > 0).sum())

    @cached_property
    def fingerprint(self) -> str:
        """A hex string of 16 digits that changes with any caption or with the order of the pictures."""
        digest = hashlib.sha256()
        for part in (self.firsts_N, self.ends_C, self.text_B):
            digest.update(part.tobytes())
        return digest.hexdigest()[:16]


# ---- which are of use ------------------------------------------------------------------------------------------------


def cleaned(texts: Iterable[object], bad: Counter[str]) -> tuple[str, ...]:
    """Captions in one line each, each once; those of no use are counted in `bad` by what is wrong."""
    found: dict[str, None] = {}
    for text in texts:
        line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split()) if isinstance(text, str) else ""
        if why := _why_not(text, line):
            bad[why] += 1
        else:
            found[line] = None
    return tuple(found)


def _why_not(text: object, line: str) -> str | None:
    if not isinstance(text, str):
        return OTHER
    if len(line) > LONGEST:
        return LONG
    try:
        line.encode()
    except UnicodeEncodeError:
        return NO_TEXT  # half of a pair, as JSON may spell it
    return None if line else EMPTY


def of_lines(content: bytes, bad: Counter[str]) -> tuple[str, ...]:
    """The captions in a text file, a line each; lines without anything are none."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        bad[NO_TEXT] += 1
        return ()
    return cleaned([line for line in lines if line.strip()] or [""], bad)


def of_json(content: bytes, bad: Counter[str]) -> tuple[str, ...]:
    """What a JSON file holds under "caption": a text or a list of texts; nothing if there is none."""
    try:
        entries: Any = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        bad[NO_TEXT] += 1
        return ()
    except (ValueError, RecursionError):
        bad[GONE] += 1
        return ()
    given = entries.get("caption") if isinstance(entries, dict) else None
    return () if given is None else cleaned(given if isinstance(given, list) else [given], bad)


def of_name(name: str) -> tuple[str, ...]:
    """The words of a file name without its folder, its suffix and a number at its end: `a-cat_12.jpg` is `a cat`."""
    stem = name.rpartition("/")[2].partition(".")[0]
    words = " ".join(re.split(r"[\s_+-]+", stem)).strip()
    return cleaned([words] if (words := re.sub(r"\s*\d+$", "", words)) else [], Counter())


# ---- where they are --------------------------------------------------------------------------------------------------


def no_table(captions: Captioning | None, *, of: str) -> str | None:
    """`own`, `names` or None, where no table can be had. Raises `InputError` for one."""
    if captions is not None and captions not in {OWN, NAMES}:
        raise InputError(f"expected {OWN} or {NAMES} as captions of {of}, which no table can name, got {captions}")
    return None if captions is None else str(captions)


def captions_in(path: Path, tree: Tree, columns: Columns, bad: Counter[str]) -> Mapping[str, tuple[str, ...]]:
    """The captions of each picture of a tree, by its name there as `tables.plain` gives it.

    Raises `InputError`, naming file and line, for what `tables` refuses, rows without a file, and a row whose picture
    is not there; captions of no use are counted in `bad`.
    """
    found = tables.read(
        path,
        column="caption",
        asked=columns.caption,
        expected=f"{OWN}, {NAMES} or a file of captions (CSV, JSON lines or parquet)",
        columns=columns,
    )
    return of_rows([found], tree, columns, bad)


def of_rows(
    sources: Iterable[Source], tree: Tree, columns: Columns, bad: Counter[str]
) -> Mapping[str, tuple[str, ...]]:
    """The captions in the rows of some files. Raises `InputError` likewise."""
    texts: dict[str, list[object]] = {}
    rows: dict[str, str] = {}
    for cells, at, home in sources:
        for file, cell, line in cells:
            where = f"{at} {line}"
            if not file:
                raise InputError(f"{where}: expected a file and a caption, got no file")
            name = tables.name_of(file, tree, home=home, columns=columns, where=where)
            texts.setdefault(tables.plain(name), []).extend(each_of(cell))
            rows.setdefault(name, where)
    tables.check_there(rows.items(), tree)
    return {name: cleaned(those, bad) for name, those in texts.items()}


def each_of(cell: object) -> Sequence[object]:
    """The captions in a cell: a text, a list of them, or none."""
    return cell if isinstance(cell, list) else [] if cell is None else [cell]


def told(captions: Captions, bad: Counter[str], *, root: Path, how: Captioning) -> tuple[str, ...]:
    """What should be known of the captions of a listing. Raises `InputError` where there are none at all."""
    if not captions.total:
        why = f" ({LeftOut(some)})" if (some := Counter({kind: bad[kind] for kind in BAD if bad[kind]})) else ""
        raise InputError(f"expected captions ({how}) of the pictures in {root}, found none{why}")
    return counted(captions)


def counted(*splits: Captions | None) -> tuple[str, ...]:
    """How many captions there are, in a line; none without captions."""
    known = [captions for captions in splits if captions is not None]
    if not known:
        return ()
    total, captioned, pictures = (
        sum(each) for each in zip(*((c.total, c.captioned, len(c)) for c in known), strict=True)
    )
    return (f"{in_number(f'{total:,} caption{{s}}', total)} of {captioned:,} of {pictures:,} pictures",)
