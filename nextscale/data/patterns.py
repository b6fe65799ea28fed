"""Patterns that stand for several files, as in a shell: `*`, `?`, `{a,b}` and `{00..99}`, also in one another."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from nextscale.errors import InputError

LETTERS = frozenset("*?{")  # that make a pattern
MOST, NESTED = 1_000_000, 60  # names that a pattern may stand for, pairs of braces in it


def matches(pattern: str, what: str) -> tuple[Path, ...]:
    """The files that a pattern stands for, each once, whether they are there or not; messages call them `what`."""
    return tuple(dict.fromkeys(path for each in expand(pattern) for path in _matches(each, what)))


def _matches(pattern: str, what: str) -> list[Path]:
    """The files that `*` and `?` stand for, by name; a file that is called so is itself."""
    if os.path.exists(pattern) or not set(pattern) & set("*?"):
        return [Path(pattern)]
    if not (found := sorted(glob.glob(pattern.replace("[", "[[]")))):
        raise InputError(f"expected {what}, found nothing like {pattern}")
    return list(map(Path, found))


def expand(pattern: str) -> list[str]:
    """What braces stand for, as in a shell: `a-{08..10}.tar` is a-08, a-09 and a-10; `{a,b{1..2}}` is a, b1 and b2.

    Raises `InputError` for more than a million names.
    """
    found = list(islice(_expanded(pattern, 0), MOST + 1))
    if len(found) > MOST:
        raise InputError(f"expected at most {MOST:,} files, got more in {pattern}")
    return found


def _expanded(pattern: str, depth: int) -> Iterator[str]:
    if depth > NESTED:
        raise InputError(f"expected at most {NESTED} pairs of braces, got more in {pattern[:60]}")
    braces = _braces(pattern)
    if braces is None:
        yield pattern
        return
    before, parts, after = braces
    for part in parts:
        for inner in _expanded(part, depth + 1):
            for rest in _expanded(after, depth + 1):
                yield f"{before}{inner}{rest}"


def _braces(pattern: str) -> tuple[str, Iterable[str], str] | None:
    """What stands before the first braces that mean something, what they hold, and what follows."""
    for start, letter in enumerate(pattern):
        if letter == "{" and (end := _closing(pattern, start)) is not None:
            inside = pattern[start + 1 : end]
            numbers = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", inside)
            parts = _range(*numbers.groups()) if numbers else _listed_parts(inside)
            if parts:
                return pattern[:start], parts, pattern[end + 1 :]
    return None


def _closing(pattern: str, start: int) -> int | None:
    depth = 0
    for place in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if depth == 0:
            return place
    return None


def _listed_parts(inside: str) -> list[str]:
    """The parts between commas that are in no inner braces; none if there is no such comma."""
    parts, depth = [""], 0
    for letter in inside:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts if len(parts) > 1 else []


def _range(first: str, last: str) -> Iterable[str]:
    if max(len(first), len(last)) > 18:
        raise InputError(f"expected a range of numbers, got {{{first[:20]}..{last[:20]}}}")
    if int(first) > int(last):
        raise InputError(f"expected a range that rises, got {{{first}..{last}}}")
    padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return (str(number).zfill(width) for number in range(int(first), int(last) + 1))
