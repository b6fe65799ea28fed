"""Files that are written whole or not at all, also when the power fails.

A file is written in a directory of its own beside its place, flushed to the disk and renamed, and the directory that
now names it is flushed, too, before the call returns: only then may what it replaces be removed. The directory is
called `.nextscale-WORD-…`, where WORD is 64 random bits of this process. Two hosts or containers never share one, and
whoever knows the word of a process that was killed (see `lock`) can remove what that left, and nothing else. It is
locked as long as it is written to: whoever finds one without its lock (`remove_abandoned`) knows as much.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

from nextscale.errors import InputError

WORD = secrets.token_hex(8)
PREFIX = ".nextscale-"
OWN = re.compile(re.escape(PREFIX) + r"[0-9a-f]{16}-[0-9]+-[0-9]+")  # as `own_name` makes them
NO_FLUSH = (errno.EINVAL, errno.ENOTSUP)  # file systems that flush files but not directories

_numbers = itertools.count(1)


def own_name(prefix: str) -> str:
    """A name that no other process, here or on another host, and no earlier call has taken; `is_of` recognises it."""
    return f"{prefix}{WORD}-{os.getpid()}-{next(_numbers)}"  # a fork has the word of its parent


def is_of(name: str, prefix: str, words: Collection[str]) -> bool:
    """Whether `own_name` made `name` from `prefix` in a process with one of these words."""
    return any(name.startswith(f"{prefix}{word}-") for word in words)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new empty file to write to, which takes the place of `path` when the block ends well.

    It has the name of `path`, in a directory that goes again whatever happens. The parent of `path` is made if need be.
    A device or a pipe is never replaced: it is itself written to.

    Nothing is flushed: this is for pictures by the thousand, which can be made again. After a power failure such a file
    may be empty, unless `settle` was called.

    Raises `InputError` when something cannot be written; `path` is then as it was. Other errors of the block stay.
    """
    if _is_special(path):
        yield path
        return
    try:
        make_directory(path.parent)
        with _private_directory(path) as private:
            written = private / path.name
            written.touch()
            mode = written.stat().st_mode  # the umask's; safetensors makes files that their owner alone can read
            yield written
            written.chmod(mode)
            os.replace(written, path)
    except OSError as error:
        if not _is_about(error.filename, path):
            raise  # of something else that the caller does on the way
        raise _cannot_write(path, error) from None


@contextmanager
def _private_directory(path: Path) -> Iterator[Path]:
    """A new directory beside `path`, locked, which goes again. Raises `OSError`."""
    while True:
        private = path.with_name(own_name(PREFIX))
        private.mkdir()
        with suppress(BlockingIOError, FileNotFoundError):  # taken for abandoned before it was locked
            lock = _lock(private)
            break
    try:
        yield private
    finally:
        shutil.rmtree(private, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """As `whole`, and when the block has ended well the disk has the file, whatever happens next."""
    with whole(path) as written:
        yield written
        if written != path:
            flush(written)
    if written == path:
        return
    try:
        flush_directory(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a new file, which then takes the place of `path`; see `beside`."""
    with beside(path) as written:
        write(written)


def settle(path: Path) -> None:
    """Wait until the disk has a file that is in its place already. Raises `InputError`."""
    try:
        flush(path)
        flush_directory(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None


def _is_special(path: Path) -> bool:
    """Whether there is a device or a pipe, as /dev/stdout, which is written to and never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _is_about(name: object, path: Path) -> bool:
    """Whether an error names a file beside `path`, a directory above it, or none."""
    if not isinstance(name, str | bytes):
        return True
    named, place = (Path(os.path.abspath(each)) for each in (os.fsdecode(name), path))
    return named.is_relative_to(place.parent) or place.is_relative_to(named)


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {path}: {error.strerror or error}")


def user_cache(room: str) -> Path:
    """`nextscale/<room>` in `XDG_CACHE_HOME`, else in `~/.cache`; of a user without a home, among temporaries."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a container's user may stand in no list of users
        folder = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return folder / "nextscale" / room


def make_directory(path: Path) -> None:
    """Make `path` and its parents, as far as they are missing, to stay. Raises `OSError`."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    flush_directory(path.parent)


def flush(path: Path) -> None:
    """Wait until the disk has the content of a file, whoever wrote it. Raises `OSError`."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_directory(path: Path) -> None:
    """Wait until the disk has the names in a directory. Raises `OSError`; Windows has no such call, nor the need."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise
    finally:
        os.close(descriptor)


def _lock(directory: Path) -> int | None:
    """The descriptor of a locked directory; None where there are no such locks, as on Windows and some network disks.

    Raises `BlockingIOError` while another process holds it, `FileNotFoundError` when one has removed it.
    """
    if os.name == "nt":
        return None
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        if not lock_descriptor(descriptor, blocking=False):
            raise BlockingIOError
        directory.stat()
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def remove_abandoned(directory: Path) -> None:
    """Remove what processes were writing directly in `directory` when they were killed; nothing without locks."""
    for private in directory.glob(f"{PREFIX}*"):
        if not OWN.fullmatch(private.name) or private.is_symlink() or not private.is_dir():
            continue
        with suppress(OSError):
            lock = _lock(private)
            if lock is not None:
                shutil.rmtree(private, ignore_errors=True)
                os.close(lock)


def remove_unfinished(directory: Path, words: Collection[str]) -> None:
    """Remove what processes with these words were writing, anywhere below `directory`, when they were killed."""
    for private in directory.rglob(f"{PREFIX}*"):
        if is_of(private.name, PREFIX, words):
            shutil.rmtree(private, ignore_errors=True)
