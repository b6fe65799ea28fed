"""CIFAR's python batches: pickles of dicts, lists, texts, numbers and arrays, by an unpickler that makes nothing else.

What a pickle asks for by name is never looked up: arrays become their bytes and shapes, and any other name ends it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nextscale.errors import InputError

TRAIN, TEST, META = ("data_batch_1", "train"), ("test_batch", "test"), ("batches.meta", "meta")
NAMES = frozenset((*(f"data_batch_{number}" for number in range(1, 6)), *TRAIN, *TEST, *META))
SIDE = 32
MOST_BYTES = 2**31  # of a file
NESTED = 1000  # tuples: their hashes are taken by recursion, on a stack that ends


class Batch(NamedTuple):
    """A file: its pictures (N, 3, 32, 32) uint8, and by name what it tells of the class of each."""

    name: str
    pictures: np.ndarray
    labels: dict[str, np.ndarray]


def batches(folder: Path, names: list[str]) -> tuple[list[Batch], list[Batch], dict[str, tuple[str, ...]]]:
    """Batches to train on and to test, and the names of the classes by what tells them.

    Raises `InputError` for damaged files, and for pickles that hold anything else.
    """
    train = sorted(name for name in names if name not in (*TEST, *META))
    tests, metas = ([name for name in names if name in some] for some in (TEST, META))
    told = {}
    for name in metas:
        for key, value in _dict(folder / name).items():
            if key.endswith("label_names"):
                told[f"{key.removesuffix('_names')}s"] = tuple(_text(each, folder / name) for each in value)
    return [_batch(folder / name) for name in train], [_batch(folder / name) for name in tests], told


def _batch(path: Path) -> Batch:
    content = _dict(path)
    rows = content.get("data")
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 3 * SIDE**2 or rows.dtype != np.uint8:
        raise InputError(f"expected rows of {3 * SIDE**2} bytes under data in {path}, got something else")
    labels = {key: value for key, value in content.items() if key.endswith("labels")}
    for key, value in labels.items():
        if not isinstance(value, list) or len(value) != len(rows) or not all(type(label) is int for label in value):
            raise InputError(f"expected a whole number under {key} for each of {len(rows)} pictures in {path}")
    return Batch(path.name, rows.reshape(-1, 3, SIDE, SIDE), {key: np.array(labels[key]) for key in labels})


def _text(value: object, path: Path) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not text:
        raise InputError(f"expected names of classes in {path}, got {str(value)[:60]!r}")
    return text


# ---- unpickling ------------------------------------------------------------------------------------------------------


def _dict(path: Path) -> dict[str, Any]:
    """What a pickle holds, with keys in text."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES:,} bytes")
        if sum(operation.name.startswith("TUPLE") for operation, _, _ in pickletools.genops(content)) > NESTED:
            raise ValueError("tuples in tuples")
        found = _made(_Unpickler(io.BytesIO(content), encoding="bytes").load())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        why = " ".join(str(error).split())[:100] or type(error).__name__
        raise InputError(f"expected a batch of CIFAR, a pickle of plain values and arrays, got {path}: {why}") from None
    if not isinstance(found, dict):
        raise InputError(f"expected a batch of CIFAR, a dict, got {path}: a {type(found).__name__}")
    return {
        key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key): value for key, value in found.items()
    }


class _Unpickler(pickle.Unpickler):
    """One that makes plain values, and stand-ins for arrays and their types."""

    def find_class(self, module: str, name: str) -> Any:
        """By no import: the names that an array's pickle holds."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _Array
        if module == "numpy" and name in ("ndarray", "dtype"):
            return {"ndarray": _Array, "dtype": _Type}[name]
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return _from_buffer
        if (module, name) == ("_codecs", "encode"):  # how bytes are written for Python 2
            return _encoded
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which was not run")


def _encoded(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("bytes in an unknown spelling")
    return text.encode("latin1")


class _Type:
    """Stands for the type of an array's elements; only bytes are made."""

    def __init__(self, name: object, *_: object) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands for an array: keeps what it is made of, which is checked before one is made."""

    def __init__(self, *_: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def made(self) -> np.ndarray:
        """The array. Raises `ValueError` for other than bytes in C order."""
        _, shape, kind, by_columns, content = self.state
        if not isinstance(kind, _Type) or kind.name not in ("u1", "|u1", "uint8") or by_columns:
            raise ValueError("an array of other than bytes, or by columns")
        if not isinstance(content, bytes | bytearray):
            raise ValueError("an array of other than bytes, or by columns")
        return np.frombuffer(bytes(content), dtype=np.uint8).reshape(shape)


def _from_buffer(content: object, kind: object, shape: object, order: object) -> _Array:
    """How arrays are written from protocol 5 on."""
    array = _Array()
    array.state = (1, shape, kind, order != "C", content)
    return array


def _made(value: Any) -> Any:
    """Arrays in place of what stands for them, one level down."""
    if not isinstance(value, dict):
        return value
    return {key: each.made() if isinstance(each, _Array) else each for key, each in value.items()}
