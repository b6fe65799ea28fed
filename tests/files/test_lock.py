"""Laws of the lock: one process at a time in a directory, whoever dies, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nextscale.errors import InputError
from nextscale.files import lock

HOLDER = """
import sys, time
from pathlib import Path
from nextscale.files import durable, lock
run = Path(sys.argv[1])
with lock.held(run), durable.beside(run / "best" / "model") as file:
    file.write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path):
    """Another process, which holds `tmp_path / "run"`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_a_second_process_is_told_who_the_first_is(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    """Process, host and since when, in the time zone of the holder; what it wrote stays."""
    told = rf"run is in use by process {other.pid} on {socket.gethostname()} since (\S+ \S+): wait until it ends"
    for _ in range(2):
        with pytest.raises(InputError, match=told) as refused, lock.held(tmp_path / "run"):
            pass
        since = datetime.fromisoformat(str(refused.value).partition("since ")[2].partition(": wait")[0])
        assert abs(datetime.now(UTC) - since) < timedelta(minutes=2)


@pytest.mark.slow
def test_a_lock_of_a_dead_process_is_taken_over(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    """Killed, it removed nothing."""
    other.kill()
    other.wait()
    assert (tmp_path / "run" / lock.NAME).exists()
    with lock.held(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / lock.NAME).read_text()


@pytest.mark.slow
def test_what_a_killed_holder_was_writing_is_removed(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    """By the next one; also where a power failure, or a crash while it took the lock, cut a line short."""
    run = tmp_path / "run"
    (half,) = run.glob("best/.nextscale-*/model")
    users = [run / ".env.2024", run / "best" / ".nextscale-1" / "model"]
    for file in users:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    with pytest.raises(InputError, match="is in use"), lock.held(run):
        pass
    assert half.exists()
    other.kill()
    other.wait()
    with (run / lock.NAME).open("a") as line:
        line.write('{"process": 7, "wor')
    with lock.held(run):
        assert not half.exists()
        assert not half.parent.exists()
        with pytest.raises(InputError, match=f"in use by process {os.getpid()} on "), lock.held(run):
            pass
    assert sorted(file for file in run.rglob("*") if file.is_file()) == sorted(users)


@pytest.mark.slow
def test_where_nobody_can_know_whether_the_holder_lives_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: subprocess.Popen[str]
) -> None:
    """On a file system without locks."""

    def missing(descriptor: int, *, blocking: bool) -> bool:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(lock, "lock_descriptor", missing)
    with pytest.warns(UserWarning, match="has no locks"), lock.held(tmp_path / "run"):
        pass
    assert [*(tmp_path / "run").glob("best/.nextscale-*/model")]


def test_nothing_is_left_whatever_happens_inside(tmp_path: Path) -> None:
    """The directory is made, and the lock is given back."""
    with pytest.raises(KeyboardInterrupt), lock.held(tmp_path / "a" / "run"):
        raise KeyboardInterrupt
    assert list((tmp_path / "a" / "run").iterdir()) == []
    with lock.held(tmp_path / "a" / "run"):
        pass


def test_one_process_does_not_hold_a_directory_twice(tmp_path: Path) -> None:
    """Two runs in one notebook would write over each other, too."""
    with lock.held(tmp_path):
        with pytest.raises(InputError, match=f"process {os.getpid()} "), lock.held(tmp_path):
            pass
        with pytest.raises(InputError, match=f"process {os.getpid()} "), lock.held(tmp_path):
            pass


def test_only_one_of_many_is_inside(tmp_path: Path) -> None:
    """Each adds 1 to a file by reading and writing it, 100 times in all; no addition is lost."""
    counter = tmp_path / "counter"
    counter.write_text("0")

    def add(_: int) -> None:
        while True:
            try:
                with lock.held(tmp_path):
                    number = int(counter.read_text())
                    time.sleep(0.0002)
                    counter.write_text(str(number + 1))
                    return
            except InputError:
                time.sleep(0.0001)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(100)))
    assert counter.read_text() == "100"


def test_a_lock_removed_between_opening_and_locking_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder may end just then: a lock on a file that no name leads to keeps nobody out."""
    real, calls = lock.lock_descriptor, []

    def late(descriptor: int, *, blocking: bool) -> bool:
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / lock.NAME).unlink()
        return real(descriptor, blocking=blocking)

    monkeypatch.setattr(lock, "lock_descriptor", late)
    with lock.held(tmp_path):
        assert len(calls) == 2
        assert (tmp_path / lock.NAME).read_text()


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the work goes on."""

    def missing(descriptor: int, *, blocking: bool) -> bool:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(lock, "lock_descriptor", missing)
    with pytest.warns(UserWarning, match="has no locks .Operation not supported.: nothing keeps a second"):  # noqa: SIM117
        with lock.held(tmp_path):
            pass


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """A file is in its place."""
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="cannot write .*run: File exists"), lock.held(tmp_path / "run"):
        pass
