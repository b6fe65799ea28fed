"""Many short texts, such as the names of a million pictures, in two arrays instead of a million Python objects.

Knows nothing of what is named. Letters of shapes: N texts, B bytes of all of them in UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

import numpy as np

from nextscale.errors import printable

_CHUNK = 1 << 16  # texts that are Python objects at a time


class Names(Sequence[str]):
    """Texts in order, never changed; `text_B` uint8 holds one behind the other, `ends_N` int64 where each ends.

    What is not UTF-8 in a file's name (`os.fsdecode`) comes back as it was. The arrays may be mapped from files.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        """The texts, put together."""
        parts, lengths, rest = [], [np.empty(0, dtype=np.int64)], iter(names)
        while chunk := [_bytes(name) for name in islice(rest, _CHUNK)]:
            parts.append(b"".join(chunk))
            lengths.append(np.fromiter(map(len, chunk), dtype=np.int64, count=len(chunk)))
        self.text_B = np.frombuffer(b"".join(parts), dtype=np.uint8)
        self.ends_N = np.cumsum(np.concatenate(lengths))

    @classmethod
    def mapped(cls, text_B: np.ndarray, ends_N: np.ndarray) -> Names:
        """Those in arrays, which are not copied."""
        names = cls()
        names.text_B, names.ends_N = text_B, ends_N
        return names

    def __len__(self) -> int:
        return len(self.ends_N)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Names: ...

    def __getitem__(self, index: int | slice) -> str | Names:
        if isinstance(index, slice):
            return self.chosen(np.arange(len(self))[index])
        place = range(len(self))[index]  # raises IndexError, and counts from the end
        start = int(self.ends_N[place - 1]) if place else 0
        return _text(self.text_B[start : int(self.ends_N[place])].tobytes())

    def __iter__(self) -> Iterator[str]:
        return map(_text, self.encoded())

    def encoded(self) -> Iterator[bytes]:
        """The bytes of each."""
        start = 0
        for first in range(0, len(self), _CHUNK):
            ends = self.ends_N[first : first + _CHUNK]
            chunk, begin = self.text_B[start : int(ends[-1])].tobytes(), 0
            for end in (ends - start).tolist():
                yield chunk[begin:end]
                begin = end
            start = int(ends[-1])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __add__(self, other: Sequence[str]) -> tuple[str, ...]:
        return (*self, *other)

    def __repr__(self) -> str:
        some = ", ".join(map(repr, self[:2])) + (", ..." if len(self) > 2 else "")
        return f"Names({len(self):,}: {some})"

    def chosen(self, places_M: np.ndarray) -> Names:
        """Those at some places, in that order; of a row of neighbours the text is not copied."""
        if (row := row_of(places_M)) is not None:
            start = int(self.ends_N[row.start - 1]) if row.start else 0
            ends_M = self.ends_N[row]
            stop = int(ends_M[-1]) if len(ends_M) else start
            return Names.mapped(self.text_B[start:stop], ends_M - start if start else ends_M)
        starts_N = np.concatenate([[0], self.ends_N[:-1]]) if len(self) else self.ends_N
        lengths_M = (self.ends_N - starts_N)[places_M]
        parts = [np.empty(0, dtype=np.uint8)]
        for first in range(0, len(places_M), _CHUNK):
            lengths = lengths_M[first : first + _CHUNK]
            begins = starts_N[places_M[first : first + _CHUNK]]
            within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            parts.append(self.text_B[np.repeat(begins, lengths) + within])
        return Names.mapped(np.concatenate(parts), np.cumsum(lengths_M))

    def joined(self) -> Iterator[bytes]:
        """The bytes of all, a zero behind each, in large pieces."""
        rest = self.encoded()
        while chunk := list(islice(rest, _CHUNK)):
            yield b"\0".join(chunk) + b"\0"

    def printable(self) -> Names:
        """These with what cannot be printed as escapes; themselves where there is nothing of the kind."""
        pieces = (self.text_B[first : first + (1 << 22)] for first in range(0, len(self.text_B), 1 << 22))
        if all(((piece >= 0x20) & (piece < 0x7F)).all() for piece in pieces):
            return self
        rest = iter(self)
        while chunk := list(islice(rest, _CHUNK)):
            if not "".join(chunk).isprintable():
                return Names(map(printable, self))
        return self


def row_of(places_M: np.ndarray) -> slice | None:
    """The places as a slice, if each follows the one before it: what is chosen by that is no copy."""
    if not len(places_M):
        return slice(0, 0)
    first, count = int(places_M[0]), len(places_M)
    rises = int(places_M[-1]) - first == count - 1 and bool((np.diff(places_M) == 1).all())
    return slice(first, first + count) if rises else None


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")
