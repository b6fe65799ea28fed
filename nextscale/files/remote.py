"""Objects at addresses: `s3://`, `gs://`, `az://`, `hf://`, `https://` and `sftp://`, read whole and in one version.

`https://` is read with the standard library, everything else with fsspec, whose drivers are extras. Whatever a network
does for a while (time-outs, errors of the server, throttling, cut connections, an object that is being replaced) is
tried again with growing waits, up to a bound; then one line says what happened. Credentials are what the drivers find
in the environment: addresses that hold some are refused, and no message repeats one.

Nothing is kept here; `nextscale.files.cache` keeps files.
"""

from __future__ import annotations

import io
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from nextscale.errors import InputError

TRIES = 6  # in a row that gain nothing
MOST_TRIES = 60  # of one object
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0  # seconds; every wait is twice the last
TIMEOUT = 60.0  # seconds without an answer
PIECE = 4 << 20  # bytes asked for at a time, or written


class Protocol(NamedTuple):
    """What an address begins with: the extra that brings its driver, if it needs one, and where credentials are."""

    extra: str | None
    credentials: str


PROTOCOLS = {
    "s3": Protocol("s3", "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "gs": Protocol("gs", "GOOGLE_APPLICATION_CREDENTIALS"),
    "az": Protocol("az", "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN"),
    "hf": Protocol(None, "HF_TOKEN, or `hf auth login`"),
    "https": Protocol(None, "none: only what is public is read"),
    "http": Protocol(None, "none: only what is public is read"),
    "sftp": Protocol("sftp", "the keys of ssh"),
    "memory": Protocol(None, "none"),  # of this process, for tests
}
KNOWN = ", ".join(f"{name}://" for name in PROTOCOLS if name != "memory")
WEB = ("http", "https")
WRITABLE = ("s3", "gs", "az", "memory")  # where an object is replaced at once
TAGS = ("ETag", "etag", "blob_id", "md5Hash", "content_md5", "generation", "LastModified", "last_modified", "updated")
TIMES = ("mtime", "created")  # what is left to tell versions apart
SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL|SAS|CONNECTION_STRING")  # in names of the environment
SHORTEST = 8  # characters of a secret: shorter values are words such as "none"
BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
MISSING = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Object:
    """What is at an address: its length in bytes, and a tag that no other version has ("" if there is none)."""

    address: str
    size: int
    tag: str

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.address.rstrip("/").rpartition("/")[2]


class ChangedError(OSError):
    """Another version than was asked for."""


class UnreachableError(InputError):
    """An object cannot be had, whatever is in it: nothing to go on without."""


class AbsentError(UnreachableError):
    """There is nothing at an address, or nothing that one may read: stores do not always tell which."""


# ---- addresses -------------------------------------------------------------------------------------------------------


def is_address(source: object) -> bool:
    """Whether this is meant as an address rather than a path; `check` says whether it is a good one."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.:-]*://|pipe:", str(source)) is not None


def check(address: str) -> None:
    """Raise `InputError` for an address of an unknown kind, one that runs a program, and one that holds a password."""
    protocol, mark, rest = address.partition("://")
    if address.startswith("pipe:") or "::" in protocol:
        raise InputError(f"expected an address of data ({KNOWN}), got one that runs a program or names two drivers")
    if protocol not in PROTOCOLS or not mark:
        raise InputError(f"expected an address that begins with {KNOWN}, got {f'{protocol}://' if mark else protocol}")
    host = rest.partition("/")[0]
    if "@" in host and ":" in host.rpartition("@")[0]:
        raise InputError(f"expected {protocol}:// without a password, which comes from the environment, got one with")
    if "?" in rest or (protocol in WEB and "#" in rest):
        raise InputError(
            f"expected a plain {protocol}:// address, got one with a query: credentials come from the environment"
        )
    if not host or not rest.strip("/"):
        raise InputError(f"expected an address of a file, got {address}")


def joined(address: str, name: str) -> str:
    """The address of what lies below another."""
    return f"{address.rstrip('/')}/{name}"


# ---- reading ---------------------------------------------------------------------------------------------------------


def find(address: str) -> Object:
    """What is at an address now. Raises `InputError` for none, and when it is out of reach."""
    check(address)
    return _again(address, lambda: _store(address).find(address))


def fetch(wanted: Object, file: BinaryIO) -> None:
    """Write all bytes of an object to the beginning of `file`.

    A connection that was cut goes on where it was. Raises `InputError` when the object is gone, is another one by now,
    or stays out of reach, `OSError` for what is wrong with `file`.
    """
    done, tries = 0, _Tries(wanted.address)
    while True:
        try:
            before = done
            for piece in _store(wanted.address).pieces(wanted, done):
                _write(file, done, piece)
                done += len(piece)
            if done != wanted.size:
                raise ConnectionError(f"{done:,} of {wanted.size:,} bytes came")
            return
        except _Local as error:
            raise error.cause from None
        except Exception as error:  # drivers raise what they like
            done = 0 if isinstance(error, ChangedError) else done
            tries.failed(error, gained=done > before)


def read(address: str) -> bytes:
    """All of a small object. Raises like `find` and `fetch`."""
    found, file = find(address), io.BytesIO()
    fetch(found, file)
    return file.getvalue()


class _Local(Exception):  # noqa: N818  # it carries an error and is none
    """Holds what went wrong on this machine, which no second try mends."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _write(file: BinaryIO, place: int, piece: bytes) -> None:
    try:
        file.seek(place)
        file.write(piece)
    except OSError as error:
        raise _Local(error) from None


def _again(address: str, ask: Callable[[], _Result], what: str = "read") -> _Result:
    """What `ask` gives, which is asked again while that may help."""
    tries = _Tries(address, what)
    while True:
        try:
            return ask()
        except Exception as error:  # drivers raise what they like
            tries.failed(error)


@dataclass
class _Tries:
    """How often something went wrong, in a row without any gain and in all."""

    address: str
    what: str = "read"
    in_a_row: int = 0
    in_all: int = 0

    def failed(self, error: Exception, *, gained: bool = False) -> None:
        """Wait until the next try. Raises `InputError` when there is none."""
        self.in_a_row = 1 if gained else self.in_a_row + 1
        self.in_all += 1
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        if _is_final(error) or self.in_a_row >= TRIES or self.in_all >= MOST_TRIES:
            raise _told(self.address, error, self.in_all, self.what) from None
        time.sleep(_wait(self.in_a_row, error))


def _wait(tried: int, error: Exception) -> float:
    """Seconds until the next try, as many as a server asks for, up to a bound."""
    headers: Any = error.headers if isinstance(error, urllib.error.HTTPError) else {}
    asked = str((headers or {}).get("Retry-After", ""))
    return min(LONGEST_WAIT, max(FIRST_WAIT * 2 ** (tried - 1), float(asked) if asked.isdecimal() else 0.0))


def _is_final(error: Exception) -> bool:
    """Whether the same would come again."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in BUSY
    if isinstance(error, ChangedError | TimeoutError):
        return False
    final = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError)
    return isinstance(error, (*final, TypeError, ValueError)) or "Credential" in type(error).__name__


def _told(address: str, error: Exception, tried: int, what: str) -> InputError:
    """What went wrong in one line, without secrets."""
    protocol = address.partition("://")[0]
    if isinstance(error, InputError):
        return error
    if isinstance(error, ChangedError):
        return UnreachableError(
            f"{address}: expected the object as it was indexed, got another one: it has changed since"
        )
    if isinstance(error, FileNotFoundError) or getattr(error, "code", None) in MISSING:
        return AbsentError(f"found nothing at {address}")
    if (
        isinstance(error, PermissionError)
        or getattr(error, "code", None) in REFUSED
        or "Credential" in str(type(error))
    ):
        return AbsentError(f"not allowed to {what} {address}; credentials: {PROTOCOLS[protocol].credentials}")
    if isinstance(error, ImportError) and (extra := PROTOCOLS[protocol].extra):
        return UnreachableError(f"{protocol}:// needs a driver: pip install 'nextscale[{extra}]' ({why(error)})")
    times = f", {tried} times" if tried > 1 else ""
    return UnreachableError(f"cannot {what} {address}: {why(error)}{times}")


def why(error: BaseException) -> str:
    """The first line of an error without what the environment holds in secret, and without queries of addresses."""
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    for name, value in os.environ.items():
        if SECRET.search(name.upper()) and len(value) >= SHORTEST:
            said = said.replace(value, f"({name})")
    return re.sub(r"(://[^\s?]+)\?\S+", r"\1", said)


# ---- writing ---------------------------------------------------------------------------------------------------------


def check_writable(address: str) -> None:
    """Raise `InputError` unless objects are written whole or not at all under an address of this kind."""
    check(address)
    if (protocol := address.partition("://")[0]) not in WRITABLE:
        known = ", ".join(f"{name}://" for name in WRITABLE if name != "memory")
        raise InputError(f"expected an address in a bucket, {known}, got {protocol}://")


def put(path: Path, address: str) -> None:
    """Copy a file to an address. Raises `InputError` when that cannot be written."""
    _again(address, lambda: _Fsspec().put(path, address), "write")


def write(content: bytes, address: str) -> None:
    """Put some bytes at an address, in place of what is there. Raises likewise."""
    _again(address, lambda: _Fsspec().write(content, address), "write")


def remove(address: str) -> None:
    """Remove an object, if it is there. Raises likewise."""
    with suppress(AbsentError):
        _again(address, lambda: _Fsspec().remove(address), "remove")


# ---- the two ways ----------------------------------------------------------------------------------------------------


class _Web:
    """`http://` and `https://`, with the standard library."""

    def find(self, address: str) -> Object:
        try:
            with self._open(address, method="HEAD") as answer:
                return self._object(address, answer.headers, answer.headers.get("Content-Length"))
        except urllib.error.HTTPError as error:
            if error.code not in (HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.FORBIDDEN):
                raise
        with self._open(address, Range="bytes=0-0") as answer:
            return self._object(address, answer.headers, _total(answer))

    def pieces(self, wanted: Object, start: int) -> Iterator[bytes]:
        """The bytes from `start` on, of this version alone."""
        asked = {"Range": f"bytes={start}-"} if start else {}
        with self._open(wanted.address, **asked) as answer:
            found = self._object(wanted.address, answer.headers, _total(answer))
            if found != wanted:
                raise ChangedError(f"{found.size:,} bytes")
            skip = 0 if answer.status == HTTPStatus.PARTIAL_CONTENT else start
            while piece := answer.read(PIECE):
                skip, piece = max(0, skip - len(piece)), piece[skip:]
                if piece:
                    yield piece

    def _open(self, address: str, method: str = "GET", **headers: str) -> Any:
        quoted = urllib.parse.quote(address, safe="/:%@!$&'()*+,;=~")
        request = urllib.request.Request(quoted, method=method, headers={"Accept-Encoding": "identity", **headers})
        return urllib.request.urlopen(request, timeout=TIMEOUT)

    def _object(self, address: str, headers: Any, size: str | None) -> Object:
        if size is None or not size.isdecimal():
            raise InputError(f"{address}: expected a server that sends the length of a file, got none")
        return Object(address, int(size), str(headers.get("ETag") or headers.get("Last-Modified") or ""))


def _total(answer: Any) -> str | None:
    """The length of a whole file, of which an answer may hold a part."""
    if answer.status == HTTPStatus.PARTIAL_CONTENT:
        return str(answer.headers.get("Content-Range", "")).rpartition("/")[2]
    return answer.headers.get("Content-Length")


class _Fsspec:
    """All other kinds of addresses."""

    def find(self, address: str) -> Object:
        system, path = self._system(address)
        found: Mapping[str, Any] = _in_time(lambda: _fresh(system).info(path))
        if found.get("type") == "directory":
            raise InputError(f"expected an address of a file, got that of a folder, {address}")
        tag = next((found[name] for name in (*TAGS, *TIMES) if found.get(name)), "")
        return Object(address, int(found["size"]), str(tag))

    def pieces(self, wanted: Object, start: int) -> Iterator[bytes]:
        """The bytes from `start` on; it is known at the end that all of them are of this version."""
        system, path = self._system(wanted.address)
        self._check(wanted)
        while start < wanted.size:
            end = min(start + PIECE, wanted.size)
            piece: bytes = _in_time(lambda: system.cat_file(path, start=start, end=end))  # noqa: B023  # called at once
            if not piece:
                raise ConnectionError(f"no byte at {start:,} of {wanted.size:,}")
            yield piece[: end - start]
            start += len(piece)
        self._check(wanted)

    def put(self, path: Path, address: str) -> None:
        system, place = self._system(address)
        system.makedirs(place.rpartition("/")[0], exist_ok=True)
        system.put_file(str(path), place)
        if (size := self.find(address).size) != path.stat().st_size:
            raise ConnectionError(f"{size:,} of {path.stat().st_size:,} bytes came")

    def write(self, content: bytes, address: str) -> None:
        system, place = self._system(address)
        _in_time(lambda: system.pipe_file(place, content))

    def remove(self, address: str) -> None:
        system, place = self._system(address)
        _in_time(lambda: _fresh(system).rm_file(place))

    def _check(self, wanted: Object) -> None:
        if self.find(wanted.address) != wanted:
            raise ChangedError

    def _system(self, address: str) -> tuple[Any, str]:
        import fsspec

        return fsspec.core.url_to_fs(address)


def _fresh(system: Any) -> Any:
    """A file system that asks, and does not tell what it remembers."""
    system.invalidate_cache()
    return system


def _store(address: str) -> _Web | _Fsspec:
    return _Web() if address.partition("://")[0] in WEB else _Fsspec()


def _in_time(ask: Callable[[], _Result]) -> _Result:
    """What `ask` gives within `TIMEOUT`, in a thread that is left behind otherwise: not every driver has time-outs."""
    answers: list[_Result] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # passed on
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer in {TIMEOUT:g} s")
    return answers[0]
