"""The `.npz` files of ADM's evaluator: samples, written and read a few pictures at a time, and stored statistics.

Samples are `arr_0`, (N, H, W, 3) uint8, and perhaps labels `arr_1`; statistics are `mu` and `sigma`, and of spatial
features `mu_s` and `sigma_s`; `network` is ours. A file may hold both. Nothing pickled is read.
Shapes: N samples, B of a batch, H W pixels, D features.
"""

from __future__ import annotations

import math
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
from nextscale.files.checkpoint import beside

PICTURES, LABELS = "arr_0", "arr_1"
Add = Callable[[Tensor], None]
_DAMAGED = (OSError, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


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
    """(N,) int64."""

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
    """The samples of a file. Raises `InputError` unless it holds `arr_0` as it should be, and labels that fit it."""
    path = Path(path)
    if PICTURES not in holds(path):
        raise InputError(f"{path}: expected samples {PICTURES}, found {', '.join(sorted(holds(path))) or 'nothing'}")
    with _reading(path), zipfile.ZipFile(path) as archive, archive.open(f"{PICTURES}.npy") as stream:
        shape, fortran, dtype = _header(stream)
        stored = archive.getinfo(f"{PICTURES}.npy").file_size - stream.tell()
    if len(shape) != 4 or shape[3] != 3 or 0 in shape or dtype != np.uint8 or fortran:
        order = " in Fortran's order" if fortran else ""
        raise InputError(f"{path}: expected {PICTURES} of shape (N, H, W, 3) uint8, got {shape} {dtype}{order}")
    if stored != math.prod(shape):
        raise InputError(f"{path}: expected {math.prod(shape):,} bytes of {PICTURES} {shape}, got {stored:,}")
    labels = _labels(path, shape[0]) if LABELS in holds(path) else None
    return Samples(path=path, count=shape[0], height=shape[1], width=shape[2], labels=labels)


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


def _labels(path: Path, count: int) -> Tensor:
    labels = _array(path, LABELS)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(f"{path}: expected labels {LABELS} ({count},) of integers, got {labels.shape} {labels.dtype}")
    return torch.from_numpy(labels.astype(np.int64))


# ---- statistics ------------------------------------------------------------------------------------------------------


def read_statistics(path: str | Path) -> Statistics:
    """The Gaussians of a file. Raises `InputError` unless it holds `mu` and `sigma` that fit each other."""
    path, names = Path(path), holds(path)
    if not {"mu", "sigma"} <= names:
        raise InputError(f"{path}: expected statistics mu and sigma, found {', '.join(sorted(names)) or 'nothing'}")
    spatial = _gaussian(path, "mu_s", "sigma_s") if {"mu_s", "sigma_s"} <= names else None
    network = str(_array(path, "network")) if "network" in names else None
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
    if not (np.isfinite(m).all() and np.isfinite(s).all() and np.allclose(s, s.T, atol=1e-6 * abs(s).max())):
        raise InputError(f"{path}: expected finite {mean} and {covariance}, the latter symmetric, got others")
    return Gaussian(torch.from_numpy(m), torch.from_numpy((s + s.T) / 2))


# ---- arrays in a zip -------------------------------------------------------------------------------------------------


def _array(path: Path, name: str) -> np.ndarray:
    with _reading(path), np.load(path, allow_pickle=False) as arrays:
        return arrays[name]


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
    return np.lib.format.read_array_header_2_0(stream)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What reading a broken file raises inside becomes an `InputError` that names it."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: expected a readable .npz, got: {reason}") from None
