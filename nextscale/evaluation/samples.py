"""The `.npz` files of ADM's evaluator: samples, written and read a few pictures at a time, and stored statistics.

Samples are `arr_0`, (N, H, W, 3) uint8, and perhaps labels `arr_1`; statistics are `mu` and `sigma`, and of spatial
features `mu_s` and `sigma_s`; `network` is ours. A file may hold both, and other arrays, which are not looked at.
Nothing pickled is read, no array above 2 GiB is read whole, and no picture above 4096² pixels at all.
Shapes: N samples, B of a batch, H W pixels, D features.
"""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nextscale import images
from nextscale.data.pictures import fingerprint
from nextscale.errors import InputError
from nextscale.evaluation.statistics import Gaussian
from nextscale.files.durable import beside

PICTURES, LABELS = "arr_0", "arr_1"
Add = Callable[[Tensor], None]
MOST_BYTES = 2**31  # of an array that is read whole, by its header: a few kilobytes can unpack to as much as they like
MOST_PIXELS = 4096**2  # of a picture
MOST_CLASSES = 10**6  # labels are counted one class after the other
_DAMAGED = (
    OSError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


class Statistics(NamedTuple):
    """What a file of statistics holds; of how many pictures it does not say."""

    gaussian: Gaussian
    spatial: Gaussian | None = None
    network: str | None = None
    """Whose features; None in files that other programs wrote."""

    @property
    def look_like_inceptions(self) -> bool:
        """Whether nobody says whose they are, and they are as many as those that published files hold."""
        return self.network is None and len(self.gaussian.mean) == 2048


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """The pictures of a file, which stay there until they are asked for."""

    path: Path
    count: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    labels: Tensor | None
    """(N,) int64; None without `arr_1`, or where it holds something else."""
    note: str | None = None
    """What `arr_1` is if it holds something else, in one line."""

    def batches(self, wanted: Iterable[range]) -> Iterator[Tensor]:
        """The pictures of some stretches, which must not go back: (B, 3, H, W) float32 in [-1, 1] of each.

        Raises `InputError` for a file that is damaged or cut short.
        """
        bytes_each, position = self.height * self.width * 3, 0
        with _reading(self.path), zipfile.ZipFile(self.path) as archive, archive.open(f"{PICTURES}.npy") as stream:
            _header(stream)
            for indices in wanted:
                stream.seek((indices.start - position) * bytes_each, 1)
                levels = torch.frombuffer(bytearray(stream.read(len(indices) * bytes_each)), dtype=torch.uint8)
                levels_BHW3 = levels.view(len(indices), self.height, self.width, 3)
                yield images.from_uint8(levels_BHW3.permute(0, 3, 1, 2).contiguous())
                position = indices.stop


def holds(path: str | Path) -> set[str]:
    """Names of the arrays in a file. Raises `InputError` when it is missing or no `.npz`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"expected a file {path}, found none")
    with _reading(path), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def content(path: str | Path) -> str:
    """A fingerprint of a file's arrays, by the checksums that it carries: 16 hex digits, without reading it all."""
    with _reading(Path(path)), zipfile.ZipFile(path) as archive:
        return fingerprint([f"{entry.filename} {entry.file_size} {entry.CRC:08x}" for entry in archive.infolist()])


# ---- samples ---------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> Samples:
    """The samples of a file. Raises `InputError` unless it holds `arr_0` as it should be."""
    path, names = Path(path), holds(path)
    if PICTURES not in names:
        raise InputError(f"{path}: expected samples {PICTURES}, found {listed(names)}")
    with _reading(path), zipfile.ZipFile(path) as archive, archive.open(f"{PICTURES}.npy") as stream:
        shape, fortran, dtype = _header(stream)
        stored = archive.getinfo(f"{PICTURES}.npy").file_size - stream.tell()
    if len(shape) != 4 or shape[3] != 3 or min(shape) < 1 or dtype != np.uint8 or fortran:
        order = " in Fortran's order" if fortran else ""
        raise InputError(f"{path}: expected {PICTURES} of shape (N, H, W, 3) uint8, got {shape} {dtype}{order}")
    if stored != math.prod(shape):
        raise InputError(f"{path}: expected {math.prod(shape):,} bytes of {PICTURES} {shape}, got {stored:,}")
    if shape[1] * shape[2] > MOST_PIXELS:
        raise InputError(
            f"{path}: expected pictures of at most {MOST_PIXELS:,} pixels, got {shape[1]:,} × {shape[2]:,}"
        )
    labels, note = _labels(path, shape[0]) if LABELS in names else (None, None)
    return Samples(path=path, count=shape[0], height=shape[1], width=shape[2], labels=labels, note=note)


def write(path: str | Path, batches: Iterable[Tensor], *, count: int, labels: Sequence[int] | None = None) -> None:
    """Write samples, (B, 3, H, W) float in [-1, 1] or uint8; see `writing`."""
    with writing(path, count=count, labels=labels) as add:
        for images_B3HW in batches:
            add(images_B3HW)


@contextmanager
def writing(path: str | Path, *, count: int, labels: Sequence[int] | None = None) -> Iterator[Add]:
    """Inside, what is given to the function that comes is written to a file; it appears whole at the end, or not.

    Arguments:
        path: of the file; its folder is made if need be.
        count: samples that will come, all of one size; batches are (B, 3, H, W) float in [-1, 1] or uint8.
        labels: one a sample, stored as `arr_1`.

    Raises `InputError` for another number of samples or labels, for samples of several sizes, and for a place that
    cannot be written.
    """
    path = Path(path)
    if labels is not None and len(labels) != count:
        raise InputError(f"expected a label for each of {count} samples, got {len(labels)}")
    with beside(path) as sibling, zipfile.ZipFile(sibling, "w") as archive:
        with archive.open(zipfile.ZipInfo(f"{PICTURES}.npy"), "w", force_zip64=True) as stream:
            member = _Member(stream, count)
            yield member.add
            member.finish()
        if labels is not None:
            _write_array(archive, LABELS, np.asarray(labels, dtype=np.int64))


class _Member:
    """`arr_0` while it is written: the header with the first batch, which tells the size, then the pixels."""

    def __init__(self, stream: IO[bytes], count: int) -> None:
        self.stream, self.count, self.done = stream, count, 0
        self.size: tuple[int, int] | None = None

    def add(self, images_B3HW: Tensor) -> None:
        levels_B3HW = images_B3HW if images_B3HW.dtype == torch.uint8 else images.to_uint8(images_B3HW.detach())
        if levels_B3HW.ndim != 4 or levels_B3HW.shape[1] != 3:
            raise InputError(f"expected samples of shape (B, 3, H, W), got {tuple(levels_B3HW.shape)}")
        height, width = levels_B3HW.shape[2:]
        if self.size is None:
            self.size = height, width
            _write_header(self.stream, (self.count, height, width, 3), np.dtype(np.uint8))
        if self.size != (height, width):
            raise InputError(f"expected samples of {self.size[0]}x{self.size[1]} pixels, got {height}x{width}")
        self.stream.write(levels_B3HW.permute(0, 2, 3, 1).contiguous().cpu().numpy().data)
        self.done += len(levels_B3HW)

    def finish(self) -> None:
        if self.done != self.count or not self.count:
            raise InputError(f"expected {max(self.count, 1)} samples to write, got {self.done}")


def _labels(path: Path, count: int) -> tuple[Tensor | None, str | None]:
    """Labels, or else what stands in their place: other programs keep what they like there, and pictures do without."""
    with _reading(path), _member(path, LABELS) as (stream, shape, _, dtype):
        got = f"{shape} {dtype}"
        if shape == (count,) and dtype.kind in "iu":
            labels = np.frombuffer(_whole(stream, count * dtype.itemsize, LABELS), dtype)
            if labels.min() >= 0 and labels.max() < MOST_CLASSES:
                return torch.from_numpy(labels.astype(np.int64)), None
            got += f" of {labels.min()} to {labels.max()}"
    wanted = f"({count},) of integers from 0 to {MOST_CLASSES - 1:,}"
    return None, f"{path}: without labels, since {LABELS} is not {wanted} but {got}"


# ---- statistics ------------------------------------------------------------------------------------------------------


def read_statistics(path: str | Path) -> Statistics:
    """The Gaussians of a file. Raises `InputError` unless it holds `mu` and `sigma` that fit each other."""
    path, names = Path(path), holds(path)
    if not {"mu", "sigma"} <= names:
        raise InputError(f"{path}: expected statistics mu and sigma, found {listed(names)}")
    spatial = _gaussian(path, "mu_s", "sigma_s") if {"mu_s", "sigma_s"} <= names else None
    network = _text(path, "network") if "network" in names else None
    return Statistics(_gaussian(path, "mu", "sigma"), spatial, network)


def write_statistics(path: str | Path, statistics: Statistics) -> None:
    """Write Gaussians, and whose features they are of. Raises `InputError` for a place that cannot be written."""
    gaussian, spatial, network = statistics
    arrays = {"mu": gaussian.mean.numpy(), "sigma": gaussian.covariance.numpy()}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean.numpy(), "sigma_s": spatial.covariance.numpy()}
    if network is not None:
        arrays |= {"network": np.array(network)}
    with beside(Path(path)) as sibling, zipfile.ZipFile(sibling, "w") as archive:
        for name, array in arrays.items():
            _write_array(archive, name, array)


def _gaussian(path: Path, mean: str, covariance: str) -> Gaussian:
    m, s = _array(path, mean), _array(path, covariance)
    if m.ndim != 1 or not len(m) or s.shape != (len(m), len(m)) or m.dtype.kind != "f" or s.dtype.kind != "f":
        got = f"{m.shape} {m.dtype} and {s.shape} {s.dtype}"
        raise InputError(f"{path}: expected {mean} (D,) and {covariance} (D, D), floating point, got {got}")
    m, s = m.astype(np.float64), s.astype(np.float64)
    with np.errstate(over="ignore"):  # of finite numbers too large to subtract, which are not close
        close = np.isfinite(m).all() and np.isfinite(s).all() and np.allclose(s, s.T, atol=1e-6 * abs(s).max())
    if not close:
        raise InputError(f"{path}: expected finite {mean} and {covariance}, the latter symmetric, got others")
    return Gaussian(torch.from_numpy(m), torch.from_numpy(s / 2 + s.T / 2))


# ---- arrays in a zip -------------------------------------------------------------------------------------------------


def listed(names: set[str]) -> str:
    """Names of arrays for a message: a few of them, in one line."""
    some = [" ".join(name.split())[:40] for name in sorted(names)[:6]]
    return ", ".join(some + (["…"] if len(names) > 6 else [])) or "nothing"


def _text(path: Path, name: str) -> str:
    array = _array(path, name)
    if array.ndim or array.dtype.kind != "U" or not array.item().isprintable():
        raise InputError(f"{path}: expected {name} to be one line of text, got {array.shape} {array.dtype}")
    return str(array)


def _array(path: Path, name: str) -> np.ndarray:
    """One array, whole; checked by its header before anything is read."""
    with _reading(path), _member(path, name) as (stream, shape, fortran, dtype):
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or min(shape, default=0) < 0 or size > MOST_BYTES:
            wanted = f"numbers or text of at most {MOST_BYTES:,} bytes"
            raise InputError(f"{path}: expected {name} to be {wanted}, got {shape} {dtype}")
        return np.ndarray(shape, dtype, _whole(stream, size, name), order="F" if fortran else "C")


def _whole(stream: IO[bytes], size: int, name: str) -> bytearray:
    """The bytes of an array, which must be as many as its header says; `ValueError` otherwise."""
    content = bytearray(stream.read(size + 1))
    if len(content) != size:
        raise ValueError(
            f"{'more' if len(content) > size else 'fewer'} than the {size:,} bytes that {name} should have"
        )
    return content


@contextmanager
def _member(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype]]:
    """An array's bytes as a stream behind its header, and what that says: shape, whether in Fortran's order, dtype."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
        yield stream, *_header(stream)


def _write_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
        _write_header(stream, array.shape, array.dtype)
        stream.write(array.tobytes())


def _write_header(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    described = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(stream, {"descr": described, "fortran_order": False, "shape": shape})


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version not in ((2, 0), (3, 0)):
        raise ValueError(f"an array in version {version[0]}.{version[1]} of the format")
    return np.lib.format.read_array_header_2_0(stream)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What reading a broken file raises inside becomes an `InputError` that names it."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGED as error:
        raise InputError(f"{path}: expected a readable .npz, got: {images.reason(error)}{_instead(path)}") from None


def _instead(path: Path) -> str:
    """What a file is that is no zip at all, where that is known."""
    try:
        with path.open("rb") as stream:
            what = images.foreign(stream.read(64))
    except OSError:
        return ""
    return f"; it is {what}" if what not in (None, "a zip archive") else ""
