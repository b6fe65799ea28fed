"""Pickles of tensors, read without running anything that is in them, and without more memory than they have bytes.

Values of NumPy and the standard library that trainers put beside the tensors become placeholders, which hold nothing.
"""

from __future__ import annotations

import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from nextscale.errors import InputError
from nextscale.files.checkpoint import kind

TUPLES = 100_000  # of which hashes are taken by recursion, on a stack that ends
LEGACY = 4  # pickles in a file of torch's format before 1.6 that come before the names of the storages
ARCHIVE = b"PK\x03\x04"  # how a file of torch's format begins


class SideData:
    """Stands for what is no tensor: made of anything, it keeps nothing."""

    def __new__(cls, *given: object) -> SideData:
        return super().__new__(cls)

    def __init__(self, *given: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _entries(*given: object) -> dict[Any, Any]:
    """Stands for `defaultdict`: its entries follow, and what would make others is left out."""
    return {}


NUMPY = [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
PATHS = [
    f"pathlib{room}.{name}Path" for room in ("", "._local") for name in ("Posix", "PurePosix", "Windows", "PureWindows")
]
TIMES = [f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")]
BUILTINS = [f"builtins.{name}" for name in ("frozenset", "slice", "range", "int", "float", "str", "list", "dict")]
OTHERS = ["numpy.dtype", "numpy.ndarray", "argparse.Namespace", "types.SimpleNamespace", "decimal.Decimal", "uuid.UUID"]
PLACEHOLDERS: list[tuple[Callable[..., Any], str]] = [
    (_entries, "collections.defaultdict"),
    *((SideData, name) for name in (*NUMPY, *PATHS, *TIMES, *BUILTINS, *OTHERS)),
]


def write(content: Any, path: Path) -> None:
    """`torch.save`. Raises `OSError` with the system's reason where the disk does not take it.

    Torch tells of that by a place in its C++ code. More bytes are written behind the file to learn what is wrong.
    """
    try:
        torch.save(content, path)
    except RuntimeError as error:
        if not re.search(r"inline_container|PytorchStreamWriter|iostream error", str(error)):
            raise
        with path.open("ab", buffering=0) as file:
            file.write(bytes(1 << 20))
            os.fsync(file.fileno())
        raise OSError("the disk took only a part of it") from error


def read(path: Path, *, mmap: bool = False) -> Any:
    """What `torch.save` wrote, on the CPU, if it is made of tensors and plain values only.

    Raises `InputError` for a file that cannot be read, is damaged or of another kind, or asks for code to be run.
    """
    return reader(path, mmap=mmap)()


def reader(path: Path, *, mmap: bool = False) -> Callable[[], Any]:
    """How to `read` a file anew at each call; what can be known of it beforehand is looked at once, now."""
    _told_of(path, lambda: _check_size(path))
    return lambda: _told_of(path, lambda: _load(path, mmap))


def _load(path: Path, mmap: bool) -> Any:
    # torch remarks on foreign pickles before it refuses them
    with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(list(PLACEHOLDERS)):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _told_of(path: Path, look: Callable[[], Any]) -> Any:
    """What `look` gives; whatever it raises as an `InputError` that says what the file is."""
    try:
        return look()
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path}: expected a checkpoint of tensors, got {_told(path, error)}") from None


def _told(path: Path, error: Exception) -> str:
    """What a file is that could not be read."""
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return f"a pickle that asks for {code[1]}, which was not run"
    if "torch.distributed.tensor" in str(error):
        return "a DTensor, a share of a tensor: save whole tensors (full_tensor, or a full state dict)"
    with path.open("rb") as file:
        cut = file.read(len(ARCHIVE)) == ARCHIVE and not zipfile.is_zipfile(path)
    return kind(path) or ("a damaged file, cut short" if cut else "a damaged file or one of another kind")


def _check_size(path: Path) -> None:
    """Raise `InputError` for a file that would become larger in memory, or exhaust the stack, and for damaged ones."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(LEGACY):
                _check_pickle(path, file)
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise InputError(f"{path}: expected a checkpoint as torch.save writes it, got a compressed archive")
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                with archive.open(entry) as file:
                    _check_pickle(path, file)


def _check_pickle(path: Path, file: IO[bytes]) -> None:
    """Look through the instructions of the next pickle in a file without following them."""
    tuples = 0
    for operation, argument, _ in pickletools.genops(file):
        tuples += operation.name.startswith("TUPLE")
        if operation.name == "GLOBAL" and str(argument).endswith(" bytearray"):  # of any length, out of a number
            raise InputError(f"{path}: expected a checkpoint of tensors, got a pickle that asks for a bytearray")
    if tuples > TUPLES:
        raise InputError(f"{path}: expected a checkpoint of tensors, got a pickle of {tuples:,} nested values")
