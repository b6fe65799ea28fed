"""Painting as an iterator of frames: what a page shows while a picture grows, and how it stops.

`Pipeline` calls back after each scale; here that becomes something to loop over, which ends the work when it is closed.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from torch import Tensor

from nextscale.pipeline import Generated, Request, Step

Call = Callable[[Callable[[Step], object]], Generated]
"""`Pipeline.generate` or `edit` with all arguments but `callback`."""


@dataclass(frozen=True)
class Frame:
    """The pictures after a scale."""

    scale: int
    """0-based."""
    size: tuple[int, int]
    """(height, width) of the scale, in tokens."""
    images: Tensor
    """(B, 3, H, W) float32 in [0, 1]."""
    requests: tuple[Request, ...]
    """B of them."""


class _StoppedError(Exception):
    """Raised in the callback, the only place where the work can end early."""


def frames(call: Call, stopped: threading.Event) -> Generator[Frame | Generated, None, None]:
    """A frame a scale, then what `call` returns; without that, where `stopped` is set before it is done.

    What `call` raises is raised here. Closing the iterator ends the work at its next scale and waits for that.
    """
    handed: queue.SimpleQueue[Frame | Generated | BaseException] = queue.SimpleQueue()
    ended = threading.Event()

    def show(step: Step) -> None:
        if stopped.is_set() or ended.is_set():
            raise _StoppedError
        height, width = step.tokens.shape[-2:]
        handed.put(Frame(step.scale, (height, width), step.preview(), step.requests))

    def work() -> None:
        try:
            handed.put(call(show))
        except BaseException as error:
            handed.put(error)

    worker = threading.Thread(target=work, name="painting", daemon=True)
    worker.start()
    try:
        yield from _handed(handed)
    finally:
        ended.set()
        worker.join()


def _handed(queued: queue.SimpleQueue[Frame | Generated | BaseException]) -> Iterator[Frame | Generated]:
    while True:
        one = queued.get()
        if isinstance(one, _StoppedError):
            return
        if isinstance(one, BaseException):
            raise one
        yield one
        if isinstance(one, Generated):
            return
