"""Laws of remote objects: all bytes of one version or one line, whatever the network does, and no secrets in it."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import suppress

import fsspec
import pytest
from objects import Objects, served

from nextscale.errors import InputError
from nextscale.files import remote

CONTENT = random.Random(0).randbytes(50_000)


@pytest.fixture
def objects() -> Iterator[Objects]:
    with served({"a.tar": CONTENT}) as found:
        yield found


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a few milliseconds."""
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(remote, "TIMEOUT", 2.0)


@pytest.fixture
def memory() -> Iterator[str]:
    """The address of an object in fsspec's memory."""
    system = fsspec.filesystem("memory")
    system.pipe_file("/bucket/a.tar", CONTENT)
    yield "memory://bucket/a.tar"
    system.rm("/bucket", recursive=True)


def read(address: str) -> bytes:
    file = io.BytesIO()
    remote.fetch(remote.find(address), file)
    return file.getvalue()


def test_every_way_gives_the_same_bytes(objects: Objects, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the web and through fsspec, in one piece and in many."""
    for piece in (remote.PIECE, 999):
        monkeypatch.setattr(remote, "PIECE", piece)
        assert read(objects.url("a.tar")) == read(memory) == CONTENT
    assert remote.find(memory).size == remote.find(objects.url("a.tar")).size == len(CONTENT)
    assert remote.find(memory).name == "a.tar"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_hundred_faults_change_nothing(objects: Objects, ranges: bool) -> None:
    """Errors of the server, throttling and cuts at random bytes; also where the server knows no ranges."""
    dice, left = random.Random(1), [100]
    objects.ranges = ranges

    def fault(method: str, name: str) -> object:
        if not left[0] or dice.random() < 0.4:
            return None
        left[0] -= 1
        return dice.choice([500, 503, 429, ("cut", dice.randrange(len(CONTENT)))])

    objects.fault = fault
    results = []
    while left[0]:
        with suppress(InputError):  # six times in a row
            results.append(read(objects.url("a.tar")) == CONTENT)
    assert all(results)
    assert len(results) > 10


def test_a_cut_connection_goes_on_where_it_was(objects: Objects) -> None:
    """Not from the beginning."""
    cuts = [("cut", 30_000)]
    objects.fault = lambda method, name: cuts.pop() if method == "GET" and cuts else None
    assert read(objects.url("a.tar")) == CONTENT
    assert [sent for method, _, sent in objects.requests if method == "GET"] == [30_000, 20_000]


def test_a_server_that_hangs_is_asked_again(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once is forgiven, always is told."""
    monkeypatch.setattr(remote, "TIMEOUT", 0.1)
    waits = [("wait", 0.3)]
    objects.fault = lambda method, name: waits.pop() if waits else None
    assert read(objects.url("a.tar")) == CONTENT
    monkeypatch.setattr(remote, "TRIES", 2)
    objects.fault = lambda method, name: ("wait", 0.3)
    with pytest.raises(InputError, match="cannot read .*a.tar: .*timed out.*, 2 times"):
        read(objects.url("a.tar"))


def test_an_endless_fault_ends_in_one_line(objects: Objects) -> None:
    """After a bounded number of tries, with the number and the reason."""
    objects.fault = lambda method, name: 500
    with pytest.raises(InputError, match=r"cannot read .*a\.tar: HTTP Error 500.*, 6 times"):
        read(objects.url("a.tar"))


@pytest.mark.parametrize(("status", "told"), [(404, "found nothing at"), (403, "not allowed to read"), (400, "400")])
def test_what_stays_wrong_is_told_at_once(objects: Objects, status: int, told: str) -> None:
    """Without a second try."""
    asked: list[str] = []
    found = remote.find(objects.url("a.tar"))
    objects.fault = lambda method, name: asked.append(name) or status
    with pytest.raises(InputError, match=told):
        remote.fetch(found, io.BytesIO())
    assert len(asked) == 1


def test_another_version_is_refused(objects: Objects, memory: str) -> None:
    """Of the same length, and also when it comes between two tries; never a mixture of both."""
    other = bytes(len(CONTENT))
    found = remote.find(objects.url("a.tar"))
    steps = [("replace", other), ("cut", 30_000)]
    objects.fault = lambda method, name: steps.pop() if steps else None
    with pytest.raises(InputError, match="as it was indexed, got another one: it has changed"):
        remote.fetch(found, io.BytesIO())
    indexed = remote.find(memory)
    fsspec.filesystem("memory").pipe_file("/bucket/a.tar", other)
    with pytest.raises(InputError, match="as it was indexed, got another one: it has changed"):
        remote.fetch(indexed, io.BytesIO())


def test_an_object_that_comes_back_is_read(objects: Objects) -> None:
    """Replaced and put back while it is fetched."""
    steps = [("replace", CONTENT), ("replace", b"other")]
    objects.fault = lambda method, name: steps.pop() if steps and method == "GET" else None
    assert read(objects.url("a.tar")) == CONTENT


def test_errors_of_drivers_are_tried_again(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever class they have; pieces that come short are no end."""
    system = fsspec.filesystem("memory")
    read_file, faults = system.cat_file, [RuntimeError("SlowDown"), ConnectionResetError(), "short"]

    def cat_file(path: str, start: int, end: int) -> bytes:
        fault = faults.pop() if faults else None
        if isinstance(fault, Exception):
            raise fault
        return read_file(path, start=start, end=start + 7 if fault else end)

    monkeypatch.setattr(system, "cat_file", cat_file)
    assert read(memory) == CONTENT
    assert not faults


def test_what_is_wrong_here_is_not_tried_again(objects: Objects) -> None:
    """A full disk is told by its own error."""

    class Full(io.BytesIO):
        def write(self, content: object) -> int:
            raise OSError(28, "No space left on device")

    found = remote.find(objects.url("a.tar"))
    with pytest.raises(OSError, match="No space left"):
        remote.fetch(found, Full())
    assert len([entry for entry in objects.requests if entry[0] == "GET"]) == 1


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("pipe:aws s3 cp s3://b/a.tar -", "runs a program"),
        ("simplecache::s3://bucket/a.tar", "runs a program or names two drivers"),
        ("ftp://host/a.tar", "begins with s3://.*, got ftp://"),
        ("file:///etc/passwd", "got file://"),
        ("https://user:hunter22@host/a.tar", "without a password"),
        ("https://host/a.tar?X-Amz-Signature=hunter22", "with a query"),
        ("s3://", "address of a file"),
    ],
)
def test_addresses_that_run_programs_or_hold_secrets_are_refused(address: str, told: str) -> None:
    """And what they hold is not repeated."""
    assert remote.is_address(address)
    with pytest.raises(InputError, match=told) as error:
        remote.find(address)
    assert "hunter22" not in str(error.value)
    assert "cp s3" not in str(error.value)


@pytest.mark.parametrize("path", ["pictures", "./a.tar", "C:/pictures", "train-{00..99}.tar", "a:b"])
def test_paths_are_no_addresses(path: str) -> None:
    assert not remote.is_address(path)


def test_secrets_of_the_environment_are_in_no_message(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a driver says."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22hunter22")
    system = fsspec.filesystem("memory")

    def cat_file(path: str, start: int, end: int) -> bytes:
        raise ValueError("signature of hunter22hunter22 at https://host/a?sig=hunter23 is wrong")

    monkeypatch.setattr(system, "cat_file", cat_file)
    with pytest.raises(InputError) as error:
        read(memory)
    assert "signature of (AWS_SECRET_ACCESS_KEY) at https://host/a is wrong" in str(error.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""

    def missing(address: str) -> object:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(InputError, match=r"s3:// needs a driver: pip install 'nextscale\[s3\]'"):
        remote.find("s3://bucket/a.tar")
