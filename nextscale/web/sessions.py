"""What one open page holds: the pictures painted in it, and whether its work is to stop.

In memory and in one folder, both bounded; gone with the page.
"""

from __future__ import annotations

import shutil
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from nextscale import images
from nextscale.pipeline import Request

MOST_PICTURES = 24  # of a page; the oldest go first
MOST_SESSIONS = 64  # the one that was idle for longest goes first


@dataclass(frozen=True)
class Work:
    """What an edit began with."""

    picture: Image.Image
    mask: Image.Image | None


@dataclass(frozen=True)
class Kept:
    """A picture of the history."""

    file: Path
    """A PNG."""
    request: Request | None
    """What paints it again; None for one that was stopped before its last scale."""
    work: Work | None = None
    """For an edit."""


class Session:
    """One open page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stopped = threading.Event()
        self._pictures: deque[Kept] = deque()
        self._count = 0

    @property
    def pictures(self) -> tuple[Kept, ...]:
        """The newest first."""
        return tuple(self._pictures)

    def keep(
        self, pictures: Sequence[Image.Image], requests: Sequence[Request], work: Work | None = None
    ) -> list[Kept]:
        """Write finished pictures with their settings inside, at the head of the history."""
        return [
            self._keep(request.stem, picture, request, work)
            for picture, request in zip(pictures, requests, strict=True)
        ]

    def keep_unfinished(self, pictures: Sequence[Image.Image], requests: Sequence[Request], scale: int) -> list[Kept]:
        """Likewise of work that was stopped after `scale` (0-based), without settings, which would paint another."""
        return [
            self._keep(f"{request.stem}-stopped-at-scale-{scale + 1}", picture, None, None)
            for picture, request in zip(pictures, requests, strict=True)
        ]

    def _keep(self, stem: str, picture: Image.Image, request: Request | None, work: Work | None) -> Kept:
        self._count += 1
        file = self.folder / f"{self._count:04d}" / f"{stem}.png"  # a folder each: equal names stay what they are
        images.save(file, picture, notes=request.notes if request else None)
        kept = Kept(file, request, work)
        self._pictures.appendleft(kept)
        while len(self._pictures) > MOST_PICTURES:
            shutil.rmtree(self._pictures.pop().file.parent, ignore_errors=True)
        return kept

    def close(self) -> None:
        """Stop what runs and remove the pictures."""
        self.stopped.set()
        self._pictures.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


class Sessions:
    """All open pages by the names that the server gives them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._number = 0

    def __len__(self) -> int:
        return len(self._open)

    def of(self, name: str | None) -> Session:
        """The page's session, made on first use; more than `MOST_SESSIONS` close the one idle for longest."""
        known = name or ""
        with self._lock:
            if known not in self._open:
                self._number += 1
                self._open[known] = Session(self._folder / f"page-{self._number}")
            self._open.move_to_end(known)
            over = [self._open.popitem(last=False)[1] for _ in range(len(self._open) - MOST_SESSIONS)]
            session = self._open[known]
        for old in over:
            old.close()
        return session

    def close(self, name: str | None) -> None:
        """The page was closed."""
        with self._lock:
            session = self._open.pop(name or "", None)
        if session is not None:
            session.close()
