"""Local copies of remote objects, in a directory of bounded size that the processes of a node share.

An object is fetched once, whichever process wants it first, and stands under its name only when it is whole. Before
the first byte comes, the room for all of them is made and taken: copies that nobody uses go, those first that were
used longest ago. So the directory never holds more than its bound, also while several processes fetch.

The locks are the operating system's, on the files themselves, and go with the process: a copy is in use while someone
holds it open here, and what a killed process was fetching is found without its lock and removed.

SIGN-NAME       a whole copy; SIGN are 24 hex digits of its address, length and tag; its date is that of its last use
SIGN-NAME.part  one that is being fetched, as long as it will be
.lock           held while room is made
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import lock_descriptor

from nextscale.checks import check_fields
from nextscale.errors import InputError
from nextscale.files import durable, remote
from nextscale.files.remote import Object, UnreachableError

SIZE = 64 * 10**9  # bytes
PART, LOCK = ".part", ".lock"
PATIENCE = 600.0  # seconds to wait until copies are no longer in use
LONGEST = 80  # characters of an object's name that are kept
POLL = 0.05  # seconds

_kept = ExitStack()  # what is in use until the process ends: what is mapped into memory has no other end
atexit.register(_kept.close)


def default_directory() -> Path:
    """`remote` in the user's cache."""
    return durable.user_cache("remote")


@dataclass(frozen=True)
class Cache:
    """A directory of copies, and how many bytes it may hold. Can be pickled; keeps no state but on disk."""

    directory: Path = field(default_factory=default_directory)
    size: int = SIZE

    def __post_init__(self) -> None:
        check_fields(self)
        if self.size < 1:
            raise InputError(f"expected a cache of at least 1 byte, got {self.size}")

    @contextmanager
    def held(self, wanted: Object) -> Iterator[Path]:
        """The whole copy of an object, fetched if need be, which stays as long as the block runs.

        Raises `InputError` when the object cannot be fetched or is another one by now, when the directory cannot be
        written or has no room for it.
        """
        path = self.path(wanted)
        descriptor = self._opened(path, wanted)
        try:
            yield path
        finally:
            os.close(descriptor)

    def fetch(self, wanted: Object) -> bool:
        """Have the copy of an object before it is needed; False where another process is at it. Raises like `held`."""
        path = self.path(wanted)
        with suppress(FileNotFoundError):
            os.utime(path)  # as good as used
            return True
        return self._fetch(path, wanted, wait=False)

    def folder(self, name: str, files: Mapping[str, Object]) -> Path:
        """A folder of this name with links to the copies of objects, by their names in it, in use from now on.

        For what is mapped into memory and read at random: it stays until the process ends. Raises like `held`, and when
        not all of it fits into the cache.
        """
        total = sum(wanted.size for wanted in files.values())
        if total > self.size:
            raise InputError(
                f"expected a cache that holds all of {name}, {total:,} bytes, got one of {self.size:,}: --cache-size"
            )
        place = Path(_kept.enter_context(tempfile.TemporaryDirectory(prefix="nextscale-"))) / name
        for below, wanted in files.items():
            copy = _kept.enter_context(self.held(wanted))
            (place / below).parent.mkdir(parents=True, exist_ok=True)
            (place / below).symlink_to(copy.absolute())
        return place

    def path(self, wanted: Object) -> Path:
        """Where the copy of an object is, or would be."""
        sign = hashlib.sha256(repr((wanted.address, wanted.size, wanted.tag)).encode()).hexdigest()[:24]
        return self.directory / f"{sign}-{wanted.name[-LONGEST:]}"

    def _opened(self, path: Path, wanted: Object) -> int:
        """A descriptor that keeps the whole copy from being removed."""
        while True:
            try:
                descriptor = _shared(path)
                if descriptor is None:
                    self._fetch(path, wanted, wait=True)
                elif os.fstat(descriptor).st_size == wanted.size:
                    os.utime(path)
                    return descriptor
                else:  # cut by someone else
                    os.close(descriptor)
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise _cannot_use(self.directory, error) from None

    # -- fetching ------------------------------------------------------------------------------------------------------

    def _fetch(self, path: Path, wanted: Object, *, wait: bool) -> bool:
        """Fetch an object, or wait for the process that does; whether it was one of them."""
        part = path.with_name(path.name + PART)
        try:
            durable.make_directory(self.directory)
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if not lock_descriptor(descriptor, blocking=wait):
                    return False
                if _is_at(part, descriptor):  # otherwise another process has just made it whole, or failed
                    self._fill(descriptor, part, path, wanted)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _cannot_use(self.directory, error) from None
        return True

    def _fill(self, descriptor: int, part: Path, path: Path, wanted: Object) -> None:
        """Make room, fetch, and give the copy its name."""
        try:
            if path.exists():
                part.unlink()
                return
            self._reserve(descriptor, part, wanted)
            with open(descriptor, "rb+", closefd=False) as file:
                remote.fetch(wanted, file)
                file.flush()
            os.fsync(descriptor)  # a copy is known to be whole by its length alone
            with self._alone():  # whoever adds up the files meanwhile would miss one that changes its name
                os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _reserve(self, descriptor: int, part: Path, wanted: Object) -> None:
        """Give a file that will be filled its length, as soon as there is room for it."""
        if wanted.size > self.size:
            raise UnreachableError(
                f"expected a cache that holds {wanted.address}, {wanted.size:,} bytes, got one of {self.size:,}: "
                "--cache-size"
            )
        end = time.monotonic() + PATIENCE
        while True:
            with self._alone():
                os.ftruncate(descriptor, 0)
                if self._made_room(wanted.size, part):
                    os.ftruncate(descriptor, wanted.size)
                    return
            if time.monotonic() > end:
                raise UnreachableError(
                    f"expected room for {wanted.address} in {self.directory}, all {self.size:,} bytes are in use: "
                    "--cache-size"
                )
            time.sleep(POLL)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time makes room."""
        descriptor = os.open(self.directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock_descriptor(descriptor, poll_interval=POLL)
            yield
        finally:
            os.close(descriptor)

    def _made_room(self, needed: int, mine: Path) -> bool:
        """Whether so many bytes fit by now; removes what is left of killed processes, then what was used long ago."""
        found = [entry for entry in _entries(self.directory) if entry.path != mine]
        found = [entry for entry in found if entry.path.suffix != PART or not _removed(entry.path)]
        taken = sum(entry.size for entry in found)
        for entry in sorted(found, key=lambda entry: entry.used):
            if taken + needed <= self.size:
                break
            if entry.path.suffix != PART and _removed(entry.path):
                taken -= entry.size
        return taken + needed <= self.size


class Ahead:
    """Fetches objects into a cache before they are needed, in a thread; pickled it has nothing to do.

    What goes wrong is left to those who need the object.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache, self._lock = cache, threading.Lock()
        self._asked: tuple[Object, ...] = ()
        self._left: deque[Object] = deque()
        self._thread: threading.Thread | None = None

    def __reduce__(self) -> tuple[type[Ahead], tuple[Cache]]:
        return Ahead, (self._cache,)

    def __call__(self, wanted: Sequence[Object]) -> None:
        """Fetch these in their order, instead of what else was asked for before."""
        with self._lock:
            if self._asked == (asked := tuple(wanted)):
                return
            self._asked, self._left = asked, deque(asked)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while (wanted := self._next()) is not None:
            with suppress(InputError):
                if not self._cache.fetch(wanted):  # another process is at it
                    time.sleep(POLL)

    def _next(self) -> Object | None:
        """What to fetch now; without any the thread ends."""
        with self._lock:
            if self._left:
                return self._left.popleft()
            self._thread = None
            return None


@dataclass(frozen=True)
class _Entry:
    """A file of a cache, its bytes, and when it was used last."""

    path: Path
    size: int
    used: float


def _entries(directory: Path) -> Iterator[_Entry]:
    with os.scandir(directory) as found:
        for entry in found:
            with suppress(FileNotFoundError):
                status = entry.stat()
                if entry.name != LOCK:
                    yield _Entry(Path(entry.path), status.st_size, status.st_mtime)


def _removed(path: Path) -> bool:
    """Whether a file is gone now; not while another process, or another thread, has it locked."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        if not lock_descriptor(descriptor, blocking=False):
            return False
        if _is_at(path, descriptor):
            path.unlink()
        return True
    except OSError:  # Windows removes no open file
        return False
    finally:
        os.close(descriptor)


def _shared(path: Path) -> int | None:
    """A descriptor of a file that others may read, too, but not remove; None where there is none. Raises `OSError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        if os.name != "nt":  # where an open file stays
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _is_at(path, descriptor):
            return descriptor
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _cannot_use(directory: Path, error: OSError) -> UnreachableError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    told = ": a smaller --cache-size, or a --cache-dir elsewhere" if full else ""
    return UnreachableError(f"cannot use the cache {directory}: {error.strerror or error}{told}")
