"""One process at a time in a directory: the second is refused, and told who the first is.

Every holder adds a line to the file, which goes at a regular end; so the lines above the last are those of processes
that were killed, and what these were writing (`durable`) is removed by the next holder.

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
from typing import Any

import torch
from filelock import lock_descriptor

from nextscale.errors import InputError
from nextscale.files import durable
from nextscale.machine import distributed

NAME = ".lock"


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold `directory`, made if need be, while the block runs; of several processes the first one holds it for all.

    What earlier holders were writing when they were killed is gone when the block begins. All processes must call it.

    Raises `InputError`, naming process, host and since when, while another holds it, or when it cannot be written.
    """
    words = _words_of_all()
    if not distributed.is_first():
        yield
        return
    file = directory / NAME
    try:
        durable.make_directory(directory)
        descriptor = _locked(file, words)
    except OSError as error:
        raise InputError(f"cannot write {directory}: {error.strerror or error}") from None
    try:
        yield
    finally:
        durable.remove_unfinished(
            directory, [word for word in words if word != durable.WORD]
        )  # those of ranks that died
        with suppress(OSError):  # removed while it is held, or another's might be; Windows removes no open file
            file.unlink()
        os.close(descriptor)


def _words_of_all() -> list[str]:
    """`durable.WORD` of every process of the group."""
    words_W8 = distributed.gathered(torch.tensor([list(bytes.fromhex(durable.WORD))], dtype=torch.uint8))
    return [bytes(word).hex() for word in words_W8.tolist()]


def _locked(file: Path, words: list[str]) -> int:
    """The descriptor of a locked `file` with a line about these processes in it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            alone = _lock(file, descriptor)
            if alone is False:
                who = _name(_lines(descriptor)[-1:])
                raise InputError(f"{file.parent} is in use by {who}: wait until it ends, or choose another --out")
            if not _is_at(file, descriptor):  # its holder removed it between our two calls
                os.close(descriptor)
                continue
            killed = [word for line in _lines(descriptor) for word in line["words"]] if alone else []
            _enter(file, descriptor, words)
            durable.remove_unfinished(file.parent, killed)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _lock(file: Path, descriptor: int) -> bool | None:
    """Whether no other process has it; None where that cannot be known."""
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        warnings.warn(
            f"{file.parent}: this file system has no locks ({error.strerror}): nothing keeps a second process out",
            stacklevel=2,
        )
        return None


def _enter(file: Path, descriptor: int, words: list[str]) -> None:
    """Add a line about this process and its group, to stay: a power failure is the end of a process, too."""
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    who = {"process": os.getpid(), "host": socket.gethostname(), "since": since, "words": words}
    os.write(descriptor, f"\n{json.dumps(who)}\n".encode())  # a line that was cut short above it stays by itself
    os.fsync(descriptor)
    durable.flush_directory(file.parent)


def _lines(descriptor: int) -> list[dict[str, Any]]:
    """What holders wrote, the last one last; nothing for a line that is not whole or not ours."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, encoding="utf-8", errors="replace", closefd=False) as stream:
        lines = [_line(text) for text in stream]
    return [line for line in lines if line is not None]


def _line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("words"), list) else None


def _is_at(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _name(lines: list[dict[str, Any]]) -> str:
    """Process, host and since when, of the only line; the holder may not have come to writing it yet."""
    try:
        (who,) = lines
        return f"process {who['process']} on {who['host']} since {who['since']}"
    except (ValueError, LookupError):
        return "another process"
