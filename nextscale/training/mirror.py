"""A copy of a run in a bucket, from which a machine that has nothing else continues.

mirror.json              the pointer: step, settings, and for each file of the run directory its object and checksum
step-STEP-WORD/...       objects, named once and never written again

Files are copied in the background, whenever a checkpoint is written; the pointer is replaced when all that it names is
there, and only then is removed what no pointer needs. So whenever a run is killed, the mirror is a whole checkpoint,
the last one or one before. A checkpoint that is written while another one is copied waits; of several the last does.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextscale.errors import InputError
from nextscale.files import durable, remote
from nextscale.files.stamps import Stamp
from nextscale.training.rundir import steps_done

POINTER = "mirror.json"
FIRST, LAST = "run.json", "state.pt"  # of a directory that is made again: without the last, it is done anew
GROWING = "tensorboard"  # whose files are written to in place


@dataclass(frozen=True)
class Pointer:
    """What a mirror holds: the step and the settings of its run, and an object and a stamp for each file."""

    step: int
    settings: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, address: str) -> Pointer | None:
        """That of a mirror; None where there is none. Raises `InputError` for something else, and out of reach."""
        try:
            content = remote.read(remote.joined(address, POINTER))
        except remote.AbsentError:
            return None
        try:
            pointer = cls(**json.loads(content))
            for file in pointer.files.values():
                file["object"], Stamp(**file["stamp"])
        except (ValueError, TypeError, LookupError, AttributeError):
            where = remote.joined(address, POINTER)
            raise InputError(f"{where}: expected that of a mirror, got something else") from None
        return pointer


# ---- back ------------------------------------------------------------------------------------------------------------


def restore(address: str, directory: Path) -> int | None:
    """Make a run directory again from its mirror, if it is new; the step, None where there was nothing to do.

    Raises `InputError` when the mirror is further than the run that is there, damaged, or out of reach.
    """
    pointer = Pointer.read(address)
    if pointer is None or _is_taken(directory):
        return None
    if (directory / LAST).exists():
        _refuse_older(address, directory, pointer)
        return None
    private = directory / durable.own_name(durable.PREFIX)
    try:
        for name in pointer.files:
            _fetch(address, pointer, name, private)
        for name in sorted(pointer.files, key=lambda name: (name != FIRST, name == LAST)):
            durable.make_directory((directory / name).parent)
            os.replace(private / name, directory / name)
            durable.flush_directory((directory / name).parent)
    except OSError as error:
        raise InputError(f"cannot write {directory}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return pointer.step


def _is_taken(directory: Path) -> bool:
    """Whether there is something that is no run: whoever opens it says so."""
    found = [path for path in directory.glob("*") if not path.name.startswith(".")] if directory.is_dir() else []
    return bool(found) and not (directory / FIRST).exists()


def _refuse_older(address: str, directory: Path, pointer: Pointer) -> None:
    if (step := steps_done(directory)) < pointer.step:
        raise InputError(
            f"{directory} is at step {step}, its mirror {address} at step {pointer.step}: "
            "an empty --out goes on from the mirror"
        )


def _fetch(address: str, pointer: Pointer, name: str, private: Path) -> None:
    """One file, to a place where it does not count yet."""
    stamp, path = Stamp(**pointer.files[name]["stamp"]), private / name
    path.parent.mkdir(parents=True, exist_ok=True)
    found = remote.find(remote.joined(address, pointer.files[name]["object"]))
    with path.open("wb") as file:
        remote.fetch(found, file)
    durable.flush(path)
    if fault := stamp.fault_inside(path.parent):
        raise InputError(f"{found.address}: expected a file of a run as it was copied, {fault}")


# ---- there -----------------------------------------------------------------------------------------------------------


class Mirror:
    """Copies a run directory to an address in the background. Made by `open`."""

    def __init__(self, address: str, directory: Path, settings: Mapping[str, Any], pointer: Pointer | None) -> None:
        self._address, self._directory, self._settings = address, directory, settings
        self._pointer = pointer or Pointer(0, settings, {})
        self._turn = threading.Condition()
        self._next: tuple[int, Path] | None = None  # a checkpoint that waits
        self._closed, self._failure = False, ""

    @classmethod
    @contextmanager
    def open(cls, address: str, directory: Path, settings: Mapping[str, Any]) -> Iterator[Mirror]:
        """For the run in a directory; what is left to copy at the end is waited for.

        Raises `InputError` for an address that cannot be written to, or that holds another run.
        """
        pointer = Pointer.read(address)
        if pointer is not None and _without_length(pointer.settings) != _without_length(settings):
            raise InputError(f"{address} is the mirror of another run: choose another --mirror")
        mirror = cls(address, directory, settings, pointer)
        thread = threading.Thread(target=mirror._work, daemon=True)
        thread.start()
        try:
            yield mirror
        finally:
            mirror._close()
            thread.join()
            mirror._tell()

    def keep(self, step: int) -> None:
        """Copy what is in the directory now, as soon as what came before is copied; takes links, no time."""
        self._tell()
        taken = _snapshot(self._directory)
        with self._turn:
            self._drop()
            self._next = (step, taken)
            self._turn.notify()

    def _drop(self) -> None:
        if self._next is not None:
            shutil.rmtree(self._next[1], ignore_errors=True)
            self._next = None

    def _close(self) -> None:
        with self._turn:
            self._closed = True
            self._turn.notify()

    def _tell(self) -> None:
        """That a copy failed; the run goes on, and its next checkpoint is tried again."""
        with self._turn:
            failure, self._failure = self._failure, ""
        if failure:
            warnings.warn(f"mirror: {failure}; the last checkpoint is not there", stacklevel=2)

    def _work(self) -> None:
        while (job := self._job()) is not None:
            step, taken = job
            try:
                self._copy(step, taken)
            except (InputError, OSError) as error:
                with self._turn:
                    self._failure = str(error)
            finally:
                shutil.rmtree(taken, ignore_errors=True)

    def _job(self) -> tuple[int, Path] | None:
        """The next checkpoint; None at the end."""
        with self._turn:
            self._turn.wait_for(lambda: self._closed or self._next is not None)
            job, self._next = self._next, None
            return job

    def _copy(self, step: int, taken: Path) -> None:
        """All files that are not there yet, the pointer, and away with what it does not name."""
        before, folder = self._pointer, f"step-{step:07d}-{secrets.token_hex(4)}"
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(path for path in taken.rglob("*") if path.is_file()):
            name, stamp = path.relative_to(taken).as_posix(), vars(Stamp.of(path))
            known = before.files.get(name)
            if known is not None and known["stamp"] == stamp:
                files[name] = dict(known)
                continue
            files[name] = {"object": f"{folder}/{name}", "stamp": stamp}
            remote.put(path, remote.joined(self._address, files[name]["object"]))
        pointer = Pointer(step, self._settings, files)
        remote.write(json.dumps(vars(pointer)).encode(), remote.joined(self._address, POINTER))
        self._pointer = pointer
        kept = {file["object"] for file in files.values()}
        for gone in {file["object"] for file in before.files.values()} - kept:
            remote.remove(remote.joined(self._address, gone))


def _without_length(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same but for the length, which may grow."""
    return {name: value for name, value in settings.items() if name != "length"}


def _snapshot(directory: Path) -> Path:
    """A folder of links to what is in a run directory; its files are replaced, never written to, but for logs."""
    private = directory / durable.own_name(durable.PREFIX)
    private.mkdir()
    for path in directory.rglob("*"):
        below = path.relative_to(directory)
        if path.is_dir() or any(part.startswith(".") for part in below.parts):
            continue
        (private / below).parent.mkdir(parents=True, exist_ok=True)
        if below.parts[0] == GROWING:
            shutil.copyfile(path, private / below)
        else:
            _link(path, private / below)
    return private


def _link(path: Path, place: Path) -> None:
    try:
        os.link(path, place)
    except OSError:  # some file systems have none
        shutil.copyfile(path, place)
