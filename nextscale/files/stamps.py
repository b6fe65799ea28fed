"""Files as they were written: their size and checksum, kept elsewhere, tell which of them was cut, changed or lost."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """A file as it was written."""

    file: str
    bytes: int
    crc32: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """That of a file as it is; reads all of it. Raises `OSError`."""
        return cls(file=path.name, bytes=path.stat().st_size, crc32=checksum(path))

    def fault(self, directory: Path) -> str | None:
        """What was found instead of the file, by its size; None if it is there with as many bytes."""
        path = directory / self.file
        if not path.is_file():
            return "found none"
        size = path.stat().st_size
        return None if size == self.bytes else f"got {size} bytes where {self.bytes} were written"

    def fault_inside(self, directory: Path) -> str | None:
        """The same, by every byte: it reads all of the file."""
        if fault := self.fault(directory):
            return fault
        try:
            found = checksum(directory / self.file)
        except OSError as error:
            return f"which cannot be read ({error.strerror or error})"
        return None if found == self.crc32 else f"got checksum {found:08x} where {self.crc32:08x} was written"


def checksum(path: Path) -> int:
    """CRC-32 of a file: it finds accidents, which is all it is for, at several GB/s. Raises `OSError`."""
    value = 0
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value
