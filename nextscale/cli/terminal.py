"""What the program prints on: streams that end no work.

What a console cannot show is escaped, and what cannot be written, for the disk behind it is full or it is closed, is
dropped and told of at the end. Only a reader that goes away (`| head`) still ends the program, as readers expect.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any, TextIO, cast


class Tolerant:
    """A text stream whose writes fail in silence; `failed` is the first reason."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.failed: OSError | None = None
        with suppress(AttributeError):  # one that a test or a notebook put there may know no encodings
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        with self._tolerance():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._tolerance():
            self._stream.flush()

    @contextmanager
    def _tolerance(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            self.failed = self.failed or error
            discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def tolerant() -> Iterator[Tolerant]:
    """stdout and stderr as such streams while the block runs; gives stdout's."""
    before = sys.stdout, sys.stderr
    with ExitStack() as opened:
        out, err = (
            Tolerant(stream or opened.enter_context(open(os.devnull, "w", encoding="utf-8")))  # None: it is closed
            for stream in before
        )
        sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
        try:
            yield out
        finally:
            sys.stdout, sys.stderr = before


def discard(stream: Any) -> None:
    """Send what the stream still holds nowhere: on its way out, the interpreter writes it again and complains."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
