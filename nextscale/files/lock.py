"""One process at a time in a directory: the second is refused, and told who the first is.

The lock is the operating system's (flock; LockFileEx on Windows) and goes with the process that holds it, so that what
a killed one left behind keeps nobody out. On NFS the server keeps it, for all hosts, and gives it back when a host is
gone for as long as a lease lasts, about 90 s. Mounts that keep locks to themselves (`nolock`, `local_lock=flock`) keep
apart the processes of one host only; a file system without locks keeps apart none, which is said.
"""

from __future__ import annotations

import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import lock_descriptor

from nextscale.errors import InputError
from nextscale.machine import distributed

NAME = ".lock"


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold `directory`, made if need be, while the block runs; of several processes the first one holds it for all.

    Raises `InputError`, naming process, host and since when, while another holds it, or when it cannot be written.
    """
    if not distributed.is_first():
        yield
        return
    file = directory / NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(file)
    except OSError as error:
        raise InputError(f"cannot write {directory}: {error.strerror or error}") from None
    try:
        yield
    finally:
        with suppress(OSError):  # removed while it is held, or another's might be; Windows removes no open file
            file.unlink()
        os.close(descriptor)


def _locked(file: Path) -> int:
    """The descriptor of a locked `file` with this process's name in it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(file, descriptor):
                who = _holder(descriptor)
                raise InputError(f"{file.parent} is in use by {who}: wait until it ends, or choose another --out")
            if not _is_at(file, descriptor):  # its holder removed it between our two calls
                os.close(descriptor)
                continue
            os.truncate(descriptor, 0)
            os.write(descriptor, _who())
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _lock(file: Path, descriptor: int) -> bool:
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        warnings.warn(
            f"{file.parent}: this file system has no locks ({error.strerror}): nothing keeps a second process out",
            stacklevel=2,
        )
        return True


def _is_at(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _who() -> bytes:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}).encode()


def _holder(descriptor: int) -> str:
    """Process, host and since when, as the holder wrote them; it may not have come to it yet."""
    try:
        who = json.loads(os.read(descriptor, 1000))
        return f"process {who['process']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
