"""The classes that files with many pictures state of their rows, put together: one list, and a number for each row.

Opens nothing. Letters of shapes: N rows of a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from nextscale.data.labels import LONGEST, NONE, check_label, numbers_first, one_number, text_of, whole_numbers
from nextscale.errors import InputError

ABSENT = -1


class Stated(NamedTuple):
    """Of a file by name: the classes that it knows, and the place of each row's among them or `ABSENT`, (N,) int64."""

    file: str
    texts: Sequence[str]
    numbers: np.ndarray

    @property
    def is_unlabelled(self) -> bool:
        """Whether it knows of no classes at all."""
        return list(self.texts) == [""]

    @property
    def is_empty(self) -> bool:
        """Whether no row has a class."""
        return bool((self.numbers == ABSENT).all())


def unlabelled(file: str, count: int) -> Stated:
    """A file without classes: its rows are of one, which has no name yet."""
    return Stated(file, [""], np.zeros(count, dtype=np.int64))


def of_values(file: str, values: Sequence[object], places_N: np.ndarray, *, where: str) -> Stated:
    """Where classes are texts or numbers: `values` are the different ones, `places_N` says which one a row has.

    Raises `InputError` for what is no class.
    """
    texts = [_text(value, where) for value in values]
    known = np.array([*(ABSENT if not text else place for place, text in enumerate(texts)), ABSENT], dtype=np.int64)
    return Stated(file, texts, known[places_N])


def of_names(file: str, names: Sequence[str], numbers_N: np.ndarray, *, where: str) -> Stated:
    """Where classes are numbers that have `names`. Raises `InputError` for another number, and takes -1 for none."""
    outside_N = np.flatnonzero((numbers_N < ABSENT) | (numbers_N >= len(names)))
    if len(outside_N):
        row = int(outside_N[0])
        raise InputError(f"{where}, row {row + 1}: expected one of {len(names)} classes, got {numbers_N[row]}")
    return Stated(file, names, numbers_N)


def _text(value: object, where: str) -> str:
    text = text_of(value, where=where)
    if len(text) > LONGEST or not text.isprintable():
        raise InputError(f"{where}: expected classes of at most {LONGEST} letters that print, got {text[:60]!r}")
    check_label(text, where=where)
    return text


def together(
    train: Sequence[Stated], held_out: Sequence[Stated], *, named: bool, where: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes in their order, and the number of each row of all files, those to train on first.

    `named` says that the files have one list of names, whose numbers stay; other classes are sorted, whole numbers as
    numbers; of files without any there is one, "". Raises `InputError` for rows without a class, numbers in two
    spellings, and classes that are held out alone.
    """
    every = [*train, *held_out]
    _check_complete(every)
    if named or all(each.is_unlabelled for each in every):
        return tuple(train[0].texts), np.concatenate([each.numbers for each in every])
    whole = _spelled(every, where)
    classes = sorted({whole.get(text, text) for each in train for text in each.texts if text}, key=numbers_first)
    numbers = {name: number for number, name in enumerate(classes)}
    return tuple(classes), np.concatenate([_numbered(each, whole, numbers) for each in every])


def _spelled(every: Iterable[Stated], where: str) -> dict[str, str]:
    """Texts such as 1.0 as the whole numbers that they are, where all are."""
    texts = dict.fromkeys(text for each in every for text in each.texts if text)
    whole, _ = whole_numbers(texts, where=where)
    if not whole and (twice := one_number(texts)):
        raise InputError(f"expected every number written in one way in {where}, got {' and '.join(twice)}")
    return whole


def _numbered(stated: Stated, whole: dict[str, str], numbers: dict[str, int]) -> np.ndarray:
    places = [numbers.get(whole.get(text, text), ABSENT) for text in stated.texts]
    numbers_N = np.array(places, dtype=np.int64)[stated.numbers]
    if (numbers_N == ABSENT).any():
        text = stated.texts[int(stated.numbers[numbers_N.argmin()])]
        raise InputError(f"expected one of the {len(numbers)} classes in {stated.file}, got {text!r}")
    return numbers_N


def _check_complete(every: Sequence[Stated]) -> None:
    missing = [(each.file, int(row)) for each in every for row in np.flatnonzero(each.numbers == ABSENT)[:1]]
    if missing:
        count = sum(int((each.numbers == ABSENT).sum()) for each in every)
        total = sum(len(each.numbers) for each in every)
        raise InputError(
            f"expected a class in each of {total} rows, {count} {'have' if count > 1 else 'has'} none, such as "
            f"{missing[0][0]}/{missing[0][1]}; labels {NONE} takes all as one class"
        )
