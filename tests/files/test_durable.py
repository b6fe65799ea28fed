"""Laws of written files: the old one or the new one, whatever fails, and nothing left behind that is not the user's."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nextscale import InputError
from nextscale.files import durable

WORD = "0123456789abcdef"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """What reaches the disk, in order: flushes, with the content that a file has by then, and renames."""
    told: list[tuple[str, object]] = []
    rename = os.replace

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        told.append(("names", path) if path.is_dir() else ("content", path.read_bytes()))

    def replace(source: Path, target: Path) -> None:
        told.append(("rename", Path(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return told


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors have no names here")
def test_a_file_is_on_the_disk_before_its_name_and_its_name_before_the_call_returns(
    tmp_path: Path, calls: list[tuple[str, object]]
) -> None:
    """The same for the names of directories that had to be made."""
    path = tmp_path / "a" / "b" / "file"
    durable.write_beside(path, lambda file: file.write_bytes(b"whole"))
    assert calls == [
        ("names", tmp_path),
        ("names", tmp_path / "a"),
        ("content", b"whole"),
        ("rename", path),
        ("names", path.parent),
    ]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors have no names here")
def test_pictures_by_the_thousand_are_flushed_where_it_is_asked_for(
    tmp_path: Path, calls: list[tuple[str, object]]
) -> None:
    """Content first, then the name."""
    with durable.whole(tmp_path / "file") as file:
        file.write_bytes(b"whole")
    assert calls == [("rename", tmp_path / "file")]
    durable.settle(tmp_path / "file")
    assert calls[1:] == [("content", b"whole"), ("names", tmp_path)]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("write", [durable.whole, durable.beside])
def test_a_write_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, failure: BaseException, write: Callable[[Path], object]
) -> None:
    """Half of the new one had been written; nothing of it stays."""
    path = tmp_path / "file"
    path.write_text("old")

    def half(file: Path) -> None:
        file.write_text("ne")
        raise failure

    expected = InputError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught, write(path) as file:  # type: ignore[attr-defined]
        half(file)
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]
    if isinstance(failure, OSError):
        assert str(caught.value) == f"cannot write {path}: No space left on device"


@pytest.mark.parametrize("stage", ["flush", "flush_directory"])
def test_a_flush_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """A disk that loses what it was given says so then, and not before."""

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(durable, stage, fail)
    with pytest.raises(InputError, match=f"^cannot write {tmp_path}/file: Input/output error$"):
        durable.write_beside(tmp_path / "file", lambda file: file.write_text("new"))
    with pytest.raises(InputError, match=f"^cannot write {tmp_path}/file: Input/output error$"):
        durable.settle(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("number", "told"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_file_system_that_flushes_no_directories_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: bool
) -> None:
    """It says so by an error of its own; any other is one."""

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    if told:
        with pytest.raises(OSError, match=os.strerror(number)):
            durable.flush_directory(tmp_path)
    else:
        durable.flush_directory(tmp_path)


def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    """Whatever the writer made of its mode."""
    before = os.umask(0o027)
    try:
        durable.write_beside(tmp_path / "file", lambda file: (file.write_text("x"), file.chmod(0o600)))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_names_of_two_processes_differ() -> None:
    """Also where both have the number 1, as in two containers; and those of one, from call to call."""
    code = "import os; os.getpid = lambda: 1; from nextscale.files import durable; print(durable.own_name('.x-'))"
    run = [sys.executable, "-c", code]
    names = {subprocess.run(run, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(names) == 2
    assert durable.own_name(".x-") != durable.own_name(".x-")
    assert durable.is_of(durable.own_name(".x-"), ".x-", [durable.WORD])
    assert not durable.is_of(durable.own_name(".x-"), ".y-", [durable.WORD])
    assert not durable.is_of(durable.own_name(".x-"), ".x-", [WORD, ""])


def test_only_what_a_known_process_left_is_removed(tmp_path: Path) -> None:
    """At any depth; never what another writes at the same time, nor what looks nearly so."""
    ours = {f".nextscale-{WORD}-1-1", f"deep/er/.nextscale-{WORD}-77-3"}
    theirs = {".nextscale-fedcba9876543210-1-1", f".nextscale-{WORD}", f"nextscale-{WORD}-1-1", ".env.2024"}
    for name in ours | theirs:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model").write_text("half")
    durable.remove_unfinished(tmp_path, [WORD])
    left = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("model")}
    assert left == theirs


def test_what_a_killed_process_was_writing_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    """By its lock, which goes with a process; what only looks like it stays, and what is there under another name."""
    others = [tmp_path / name for name in (".nextscale-mine", ".nextscale-0123456789abcdef-1-1.txt", "model")]
    for other in others:
        other.mkdir()
    killed = tmp_path / durable.own_name(durable.PREFIX)  # whose lock went with the process
    killed.mkdir()
    (killed / "a").write_text("half")
    with durable.whole(tmp_path / "b") as written:
        durable.remove_abandoned(tmp_path)
        assert {path for path in tmp_path.iterdir() if path not in others} == {written.parent}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["b", *(other.name for other in others)])


def test_where_there_are_no_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made it may be alive; writing goes on as before."""
    abandoned = tmp_path / durable.own_name(durable.PREFIX)
    abandoned.mkdir()

    def none(descriptor: int, *, blocking: bool) -> bool:
        raise OSError(errno.ENOTSUP, "no locks")

    with monkeypatch.context() as patched:
        patched.setattr(durable, "lock_descriptor", none)
        durable.write_beside(tmp_path / "a", lambda path: path.write_text("new"))
        durable.remove_abandoned(tmp_path)
    assert abandoned.is_dir()
    durable.remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_directory_taken_for_abandoned_before_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our two calls another process may hold it, or have removed it."""
    lock, outcomes = durable._lock, iter([BlockingIOError, FileNotFoundError, None])

    def raced(directory: Path) -> int | None:
        if (outcome := next(outcomes)) is not None:
            directory.rmdir()
            raise outcome
        return lock(directory)

    monkeypatch.setattr(durable, "_lock", raced)
    durable.write_beside(tmp_path / "a", lambda path: path.write_text("new"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_to_another_place_is_not_followed(tmp_path: Path) -> None:
    """What it leads to is the user's."""
    (tmp_path / "run").mkdir()
    elsewhere = tmp_path / "elsewhere" / f".nextscale-{WORD}-1-1"
    elsewhere.mkdir(parents=True)
    (elsewhere / "notes").write_text("mine")
    (tmp_path / "run" / "link").symlink_to(elsewhere.parent)
    (tmp_path / "run" / f".nextscale-{WORD}-2-2").symlink_to(elsewhere)
    durable.remove_unfinished(tmp_path / "run", [WORD])
    assert (elsewhere / "notes").read_text() == "mine"
    shutil.rmtree(tmp_path / "run")


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """As /dev/stdout or /dev/null given as a file; nothing is left beside it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        durable.write_beside(pipe, lambda file: file.write_bytes(b"told"))
        assert os.read(reader, 10) == b"told"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


def test_an_error_of_something_else_stays_what_it_is(tmp_path: Path) -> None:
    """A file that the caller reads while it writes; nothing is written."""
    with pytest.raises(FileNotFoundError), durable.beside(tmp_path / "a" / "new"):
        (tmp_path / "nowhere").read_text()
    assert not list((tmp_path / "a").iterdir())
