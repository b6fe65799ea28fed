"""Batches made before they are asked for: threads read what the next steps want while the device computes.

What comes out is what `batch` of the source would give, for whatever is asked: a batch that was not announced, or not
in its turn, is read as ever. Where a picture cannot be read, the reader's thread says nothing; it is the caller's that
looks for another one, reports it or raises, in the step that wanted it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

LEAST_THREADS, MOST_THREADS, THREADS_A_CORE = 8, 32, 4  # more than cores: slow disks and networks keep a thread waiting

Batch = tuple[Tensor, Tensor]  # pictures or tokens, and labels
Announced = tuple[Tensor, Tensor]  # indices and views, as `batch` takes them


@dataclass(frozen=True)
class Begun:
    """A batch that is being read."""

    whole: Future[Batch | None]
    """Comes from the threads; None where that did not succeed."""
    mended: Callable[[], Batch]
    """The batch in that case, for the caller's own thread."""


class Source(Protocol):
    """Pictures or tokens, see `Pictures.batch` and `Tokens.batch`."""

    def batch(self, indices: Sequence[int] | Tensor, *, views: Tensor | None = None) -> Batch: ...


@runtime_checkable
class Beginning(Protocol):
    """What a source has too if its batches are worth being made ahead."""

    def begin(self, indices: Tensor, views: Tensor, pool: Executor, *, device: torch.device) -> Begun | None:
        """Start to read a batch in the threads of `pool`, which take up their jobs in the order of their coming.

        None where it would gain nothing on `device`. Raises nothing that reading may raise.
        """
        ...


@dataclass(frozen=True)
class _Waiting:
    """A batch that was announced, and from where it comes."""

    announced: Announced
    whole: Future[Batch | None]
    mended: Callable[[], Batch]

    def is_for(self, indices: Sequence[int] | Tensor, views: Tensor | None) -> bool:
        """Whether it is what is asked for."""
        known = self.announced
        asked = isinstance(indices, Tensor) and views is not None and torch.equal(indices, known[0])
        return asked and views is not None and torch.equal(views, known[1])

    def result(self) -> Batch:
        """Raises what reading it has raised."""
        made = self.whole.result()
        return self.mended() if made is None else made


class Ahead:
    """A source whose next batches are made ahead, inside `reading`; outside it is the source itself.

    Arguments:
        source: gives the batches.
        device: where they go to; for a GPU they come in pinned memory, from where a copy need not wait.
    """

    def __init__(self, source: Source, device: torch.device) -> None:
        self.source, self.device = source, device
        self._waiting = deque[_Waiting]()
        self._more: Iterator[_Waiting] = iter(())

    def batch(self, indices: Sequence[int] | Tensor, *, views: Tensor | None = None) -> Batch:
        """That of the source."""
        if not self._waiting or not self._waiting[0].is_for(indices, views):
            return self.source.batch(indices, views=views)
        found = self._waiting.popleft()
        self._waiting.extend(islice(self._more, 1))
        return found.result()

    @contextmanager
    def reading(self, announced: Iterator[Announced], count: int) -> Iterator[None]:
        """Inside, as many as `count` batches of those announced are made or waiting, besides the one that is asked for.

        Afterwards no thread is left, and nothing that was made.
        """
        if not isinstance(self.source, Beginning):
            yield
            return
        with _threads() as pool:
            self._more = self._begun(self.source, announced, pool)
            try:
                self._waiting.extend(islice(self._more, count))
                yield
            finally:
                self._waiting.clear()
                self._more = iter(())

    def _begun(self, source: Beginning, announced: Iterator[Announced], pool: Executor) -> Iterator[_Waiting]:
        for indices, views in announced:
            begun = source.begin(indices, views, pool, device=self.device)
            if begun is None:
                return
            whole = pool.submit(_pinned, begun.whole) if self.device.type == "cuda" else begun.whole
            yield _Waiting((indices, views), whole, begun.mended)


@contextmanager
def _threads() -> Iterator[Executor]:
    """A pool whose jobs are dropped at the end, but for those that are running, a picture each: they are waited for."""
    most = min(max(LEAST_THREADS, THREADS_A_CORE * (os.cpu_count() or 1)), MOST_THREADS)
    pool = ThreadPoolExecutor(most, thread_name_prefix="nextscale-reading")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pinned(whole: Future[Batch | None]) -> Batch | None:
    """In memory that a GPU copies from by itself."""
    made = whole.result()
    return None if made is None else (made[0].pin_memory(), made[1])
