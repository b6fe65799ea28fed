"""Names of classes in a file of the user's: a line each, a CSV table, or JSON such as imagenet_class_index.json.

The release's models know their thousand classes by number only. Where a file has both words and WordNet's identifiers
(n01440764), these are the names: they are those of ImageNet's folders, and unlike the words no two are the same.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nextscale.errors import InputError
from nextscale.files import checkpoint

WORDNET = re.compile(r"n\d{8}")
NAMES = ("wnid", "synset", "id", "class", "name", "label")  # columns of a table that may hold them, the first that does
NUMBERS = ("index", "number")  # and those that may hold their order
SHOWN = 60  # characters of a name in a message


def read(path: Path, count: int) -> list[str]:
    """The names of `count` classes, in their order.

    Raises `InputError` for a file that cannot be read, another number of names, and names that are empty or repeated.
    """
    if path.suffix.lower() == ".json":
        names = _from_json(path, checkpoint.read_json(path))
    else:
        lines = _text(path).splitlines()
        names = (
            _from_table(path, lines)
            if path.suffix.lower() == ".csv"
            else [_first_word(line) for line in _unnumbered(lines)]
        )
    names = [name.strip() for name in names]
    if len(names) != count:
        raise InputError(f"{path}: expected the names of {count} classes, got {len(names)}")
    if "" in names:
        raise InputError(f"{path}: expected a name for every class, got none for class {names.index('')}")
    (name, times), *_ = Counter(names).most_common(1)
    if times > 1:
        first, second, *_ = (number for number, other in enumerate(names) if other == name)
        raise InputError(f"{path}: expected every name once, got {name[:SHOWN]!r} for classes {first} and {second}")
    return names


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"expected a file {path}, found none") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected names of classes in UTF-8, got other bytes") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _unnumbered(lines: Sequence[str]) -> Sequence[str]:
    """What follows the numbers, where every line begins with its own, from 0: `0: cat`, `1 dog`."""
    found = [re.fullmatch(rf"\s*{number}(?:\s*[:,]\s*|\s+)(.*\S)\s*", line) for number, line in enumerate(lines)]
    return [match[1] for match in found if match] if all(found) else lines


def _first_word(line: str) -> str:
    """A line that begins with an identifier is known by it, whatever words follow; any other is a name as it is."""
    word = re.split(r"[\s,:]", line.strip(), maxsplit=1)[0]
    return word if WORDNET.fullmatch(word) else line


def _from_table(path: Path, lines: Sequence[str]) -> list[str]:
    """The column of names, in the order of the column of numbers, if there is one."""
    try:
        header, *rows = [row for row in csv.reader(lines, strict=True) if row] or [[]]
    except csv.Error as error:
        raise InputError(f"{path}: expected a CSV table, got one with {error}") from None
    columns = [column.strip().lower() for column in header]
    named = next((columns.index(name) for name in NAMES if name in columns), None)
    if named is None:
        raise InputError(f"{path}: expected a column called {', '.join(NAMES[:-1])} or {NAMES[-1]}, got {columns[:8]}")
    short = next((line for line, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if short is not None:
        raise InputError(
            f"{path}: expected {len(header)} columns in every row, got {len(rows[short - 2])} in row {short}"
        )
    numbered = next((columns.index(number) for number in NUMBERS if number in columns), None)
    if numbered is None:
        return [row[named] for row in rows]
    return _in_order(path, [(row[numbered], row[named]) for row in rows])


def _from_json(path: Path, values: Any) -> list[str]:
    """A list of names, or an object whose keys are the numbers 0, 1 ...; an entry may be a list that begins with it."""
    if isinstance(values, list):
        return [_entry(path, value) for value in values]
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a list or an object with the names of classes, got {type(values).__name__}")
    return _in_order(path, [(key, _entry(path, value)) for key, value in values.items()])


def _entry(path: Path, value: Any) -> str:
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, str):
        raise InputError(f"{path}: expected names of classes, got an entry of type {type(first).__name__}")
    return _first_word(first)


def _in_order(path: Path, numbered: Sequence[tuple[str, str]]) -> list[str]:
    """The names by their numbers, which must be 0, 1, 2 ..."""
    names = {number.strip(): name for number, name in numbered}
    missing = next((number for number in range(len(numbered)) if str(number) not in names), None)
    if missing is not None:
        raise InputError(f"{path}: expected classes 0 .. {len(numbered) - 1}, got none of number {missing}")
    return [names[str(number)] for number in range(len(numbered))]
