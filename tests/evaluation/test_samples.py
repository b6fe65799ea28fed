"""Laws of `.npz` files: numpy reads what is written and writes what is read, a few pictures at a time."""

from __future__ import annotations

import math
import re
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nextscale import images
from nextscale.errors import InputError
from nextscale.evaluation import samples
from nextscale.evaluation.samples import Statistics
from nextscale.evaluation.statistics import Gaussian


@pytest.fixture
def levels() -> Tensor:
    """11 pictures of 6x4 pixels, uint8."""
    return torch.randint(256, (11, 3, 6, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def steps(count: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def together(path: Path, size: int) -> Tensor:
    """All pictures of a file, uint8."""
    stored = samples.read(path)
    return images.to_uint8(torch.cat(list(stored.batches(steps(stored.count, size)))))


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_numpy_reads_what_is_written(tmp_path: Path, levels: Tensor) -> None:
    """Channels last, uint8, labels beside them; in a folder that is made."""
    path = tmp_path / "new" / "samples.npz"
    samples.write(path, levels.split(4), count=11, labels=list(range(11)))
    with np.load(path) as stored:
        assert sorted(stored) == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(stored["arr_0"], levels.permute(0, 2, 3, 1).numpy())
        assert stored["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(stored["arr_1"], np.arange(11))
    assert [file.name for file in path.parent.iterdir()] == ["samples.npz"]


def test_floats_are_rounded_to_8_bits(tmp_path: Path, levels: Tensor) -> None:
    """In [-1, 1], and clamped outside, as pictures are saved."""
    samples.write(tmp_path / "s.npz", [images.from_uint8(levels) + 0.003], count=11)
    assert torch.equal(together(tmp_path / "s.npz", 11), levels)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("size", [1, 4, 11, 50])
def test_what_numpy_writes_is_read(tmp_path: Path, levels: Tensor, save: Any, size: int) -> None:
    """Whatever the batches, compressed or not."""
    save(tmp_path / "s.npz", levels.permute(0, 2, 3, 1).numpy(), np.arange(11, dtype=np.int32))
    stored = samples.read(tmp_path / "s.npz")
    assert (stored.count, stored.height, stored.width) == (11, 6, 4)
    assert stored.labels is not None
    assert stored.labels.tolist() == list(range(11))
    assert torch.equal(together(tmp_path / "s.npz", size), levels)


def test_labels_may_be_missing(tmp_path: Path, levels: Tensor) -> None:
    """As in many files."""
    samples.write(tmp_path / "s.npz", [levels], count=11)
    assert samples.read(tmp_path / "s.npz").labels is None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_stretches_may_leave_pictures_out(tmp_path: Path, levels: Tensor, save: Any) -> None:
    """As one of several processes does."""
    save(tmp_path / "s.npz", levels.permute(0, 2, 3, 1).numpy())
    wanted = [range(1, 3), range(5, 6), range(9, 11)]
    for indices, batch in zip(wanted, samples.read(tmp_path / "s.npz").batches(wanted), strict=True):
        assert torch.equal(images.to_uint8(batch), levels[list(indices)])


def test_pictures_do_not_sit_in_memory_together(tmp_path: Path) -> None:
    """800 of 64x64 take 10 MB: less than a quarter of it is ever there, in writing and in reading."""
    blank = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
    tracemalloc.start()
    samples.write(tmp_path / "s.npz", (blank for _ in range(100)), count=800)
    for _ in samples.read(tmp_path / "s.npz").batches(steps(800, 8)):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 800 * 64 * 64 * 3 / 4


def test_the_same_samples_are_the_same_file(tmp_path: Path, levels: Tensor) -> None:
    """No time of day in it; its fingerprint is by content, not by name, and tells other content."""
    for name, size in (("a", 4), ("b", 11)):
        samples.write(tmp_path / f"{name}.npz", levels.split(size), count=11)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert samples.content(tmp_path / "a.npz") == samples.content(tmp_path / "b.npz")
    levels[5, 0, 0, 0] ^= 1
    samples.write(tmp_path / "b.npz", [levels], count=11)
    assert samples.content(tmp_path / "a.npz") != samples.content(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("batches", "count", "labels", "told"),
    [
        ([2, 3], 6, None, "expected 6 samples to write, got 5"),
        ([2, 3], 4, None, "expected 4 samples to write, got 5"),
        ([], 0, None, "expected 1 samples to write, got 0"),
        ([2], 2, [1], "a label for each of 2 samples, got 1"),
    ],
)
def test_another_number_of_samples_leaves_no_file(
    tmp_path: Path, batches: list[int], count: int, labels: list[int] | None, told: str
) -> None:
    """Nor a half one; a file that was there stays."""
    path = tmp_path / "s.npz"
    path.write_text("as before")
    parts = [torch.zeros(n, 3, 2, 2) for n in batches]
    with pytest.raises(InputError, match=told):
        samples.write(path, parts, count=count, labels=labels)
    assert [file.name for file in tmp_path.iterdir()] == ["s.npz"]
    assert path.read_text() == "as before"


def test_samples_of_two_sizes_are_refused(tmp_path: Path) -> None:
    """And what are no pictures."""
    for odd, told in (
        (torch.zeros(1, 3, 2, 4), "of 2x2 pixels, got 2x4"),
        (torch.zeros(1, 1, 2, 2), r"\(B, 3, H, W\)"),
    ):
        with pytest.raises(InputError, match=told):
            samples.write(tmp_path / "s.npz", [torch.zeros(1, 3, 2, 2), odd], count=2)
    assert not list(tmp_path.iterdir())


def test_samples_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """They would be stored as black pictures."""
    with (
        pytest.raises(InputError, match="expected finite samples, got NaN"),
        samples.writing(tmp_path / "s.npz", count=1) as add,
    ):
        add(torch.full((1, 3, 4, 4), math.nan))
    assert not list(tmp_path.iterdir())


def test_an_exception_while_samples_are_made_leaves_no_file(tmp_path: Path) -> None:
    """It passes unchanged."""

    def failing() -> Iterator[Tensor]:
        yield torch.zeros(1, 3, 2, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        samples.write(tmp_path / "s.npz", failing(), count=2)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write .*s.npz"):
        samples.write(tmp_path / "file" / "s.npz", [torch.zeros(1, 3, 2, 2)], count=1)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3))}, r"shape \(N, H, W, 3\) uint8, got \(2, 4, 4, 3\) float64"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"got \(2, 3, 4, 4\) uint8"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, r"got \(0, 4, 4, 3\) uint8"),
        ({"arr_0": np.zeros((4, 3), np.uint8)}, r"got \(4, 3\) uint8"),
        ({"arr_0": np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8))}, "in Fortran's order"),
        ({"arr_0": np.array([{}, {}])}, r"got \(2,\) object"),
        (
            {"arr_0": np.broadcast_to(np.uint8(0), (1, 4097, 4096, 3))},
            r"of at most 16,777,216 pixels, got 4,097 × 4,096",
        ),
        ({"mu": np.zeros(3)}, "expected samples arr_0, found mu"),
        ({}, "expected samples arr_0, found nothing"),
    ],
)
def test_arrays_that_are_no_samples_are_refused(tmp_path: Path, arrays: dict[str, Any], told: str) -> None:
    """Whatever is pickled, too."""
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(InputError, match=told):
        samples.read(tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (np.zeros(3, int), r"\(3,\) int64"),
        (np.zeros(2), r"\(2,\) float64"),
        (np.zeros((2, 10), int), r"\(2, 10\) int64"),
        (np.array([{}, 1]), r"\(2,\) object"),
        (np.array(["cat", "dog"]), r"\(2,\) <U3"),
        (np.array([0, -1]), "of -1 to 0"),
        (np.array([2**63, 0], np.uint64), "of 0 to 9223372036854775808"),
    ],
)
def test_what_is_no_label_is_said_and_not_used(tmp_path: Path, labels: np.ndarray, told: str) -> None:
    """Other programs keep other things beside their pictures, which are read all the same; nothing pickled is."""
    np.savez(tmp_path / "s.npz", arr_0=np.full((2, 4, 4, 3), 7, np.uint8), arr_1=labels, arr_2=np.array([{}]))
    stored = samples.read(tmp_path / "s.npz")
    assert stored.labels is None
    assert stored.note is not None
    assert re.search(rf"s\.npz: without labels, since arr_1 is not \(2,\) of integers .* but .*{told}", stored.note)
    assert (together(tmp_path / "s.npz", 2) == 7).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, ">i8", np.uint64])
def test_labels_of_any_integers_are_read(tmp_path: Path, dtype: Any) -> None:
    """In either order of bytes."""
    np.savez(tmp_path / "s.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8), arr_1=np.array([5, 200]).astype(dtype))
    stored = samples.read(tmp_path / "s.npz")
    assert (stored.labels.tolist() if stored.labels is not None else None, stored.note) == ([5, 200], None)


def with_header(path: Path, name: str, shape: tuple[int, ...], content: bytes) -> None:
    """An archive whose one array says of itself what it likes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(f"{name}.npy", "w") as stream:
        header = {"descr": "<f8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(content)


@pytest.mark.parametrize(
    ("shape", "content", "told"),
    [
        ((10**9, 10**9), b"", "of at most 2,147,483,648 bytes"),
        ((2**28 + 1,), b"", "of at most 2,147,483,648 bytes"),
        ((-2, -2), bytes(32), "numbers or text"),
        ((4,), bytes(24), "fewer than the 32 bytes that mu should have"),
        ((4,), bytes(10**7), "more than the 32 bytes that mu should have"),
    ],
)
def test_a_bomb_is_not_unpacked(tmp_path: Path, shape: tuple[int, ...], content: bytes, told: str) -> None:
    """Headers decide, before memory is taken."""
    with_header(tmp_path / "s.npz", "mu", shape, content)
    with zipfile.ZipFile(tmp_path / "s.npz", "a") as archive:
        archive.writestr("sigma.npy", b"")
    tracemalloc.start()
    with pytest.raises(InputError, match=told):
        samples.read_statistics(tmp_path / "s.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("cut", [8, -8])
def test_labels_are_as_many_as_they_say(tmp_path: Path, cut: int) -> None:
    """A header may promise more labels, or fewer, than there are."""
    np.savez(tmp_path / "whole.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8), arr_1=np.array([1, 2]))
    with zipfile.ZipFile(tmp_path / "whole.npz") as whole, zipfile.ZipFile(tmp_path / "s.npz", "w") as archive:
        archive.writestr("arr_0.npy", whole.read("arr_0.npy"))
        archive.writestr("arr_1.npy", whole.read("arr_1.npy")[:-8] + bytes(max(0, 8 + cut)))
    with pytest.raises(InputError, match=f"{'more' if cut > 0 else 'fewer'} than the 16 bytes that arr_1 should have"):
        samples.read(tmp_path / "s.npz")


@pytest.mark.parametrize(
    "array",
    [b"", b"junk", b"\x93NUMPY\x09\0", b"\x93NUMPY\2\0\x28\x23\0\0" + b"(" * 9000, b"\x93NUMPY\2\0\xff\xff\xff\x7f"],
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, array: bytes) -> None:
    """Whatever numpy's parser makes of it."""
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as archive:
        archive.writestr("arr_0.npy", array)
    with pytest.raises(InputError, match="s.npz: expected a readable .npz, got: ."):
        samples.read(tmp_path / "s.npz")


def test_names_of_arrays_stay_one_short_line(tmp_path: Path) -> None:
    """A file may hold thousands, and call them as it likes."""
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as archive:
        for index in range(1000):
            archive.writestr(f"layer\n{index:04}" + "x" * 100, b"")
    with pytest.raises(InputError, match="found layer 0000x+, .*, …$") as caught:
        samples.read(tmp_path / "s.npz")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_what_stands_in_place_of_an_npz_is_named(tmp_path: Path) -> None:
    """A file that was not fetched, most of all."""
    (tmp_path / "s.npz").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="File is not a zip file; it is a Git-LFS pointer, not the file"):
        samples.read(tmp_path / "s.npz")


def test_files_that_are_no_npz_are_refused(tmp_path: Path, levels: Tensor) -> None:
    """None at all, text, a single array, and one that is cut short."""
    with pytest.raises(InputError, match="expected a file .*none.npz, found none"):
        samples.read(tmp_path / "none.npz")
    samples.write(tmp_path / "whole.npz", [levels], count=11)
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-30])
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("text.npz", "cut.npz", "array.npy"):
        with pytest.raises(InputError, match=f"{name}: expected a readable .npz, got: File is not a zip file"):
            samples.read(tmp_path / name)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_pixels_are_found(tmp_path: Path, save: Any) -> None:
    """By the file's own checksum, when they are read."""
    noise = torch.randint(256, (500, 8, 8, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    save(tmp_path / "s.npz", noise.numpy())
    spoilt = bytearray((tmp_path / "s.npz").read_bytes())
    spoilt[5000:5010] = bytes(10)
    (tmp_path / "s.npz").write_bytes(spoilt)
    with pytest.raises(InputError, match="s.npz: expected a readable .npz, got: "):
        together(tmp_path / "s.npz", 50)


def test_a_header_that_promises_too_much_is_found(tmp_path: Path) -> None:
    """Before anything is read."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (9, 2, 2, 3)}
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as archive, archive.open("arr_0.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(bytes(36))
    with pytest.raises(InputError, match=r"expected 108 bytes of arr_0 \(9, 2, 2, 3\), got 36"):
        samples.read(tmp_path / "s.npz")


# ---- statistics ------------------------------------------------------------------------------------------------------


def a_gaussian(dimensions: int, seed: int = 0) -> Gaussian:
    root = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Gaussian(root[0].clone(), root @ root.T)


@pytest.mark.parametrize("spatial", [None, a_gaussian(3)])
@pytest.mark.parametrize("network", [None, "Glance 0123456789abcdef 8"])
def test_statistics_come_back_as_they_were(tmp_path: Path, spatial: Gaussian | None, network: str | None) -> None:
    """To the last bit."""
    samples.write_statistics(tmp_path / "s.npz", Statistics(a_gaussian(5), spatial, network))
    gaussian, other, whose = samples.read_statistics(tmp_path / "s.npz")
    assert whose == network
    for one, back in ((a_gaussian(5), gaussian), (spatial, other)):
        assert (one is None) == (back is None)
        if one is not None and back is not None:
            assert torch.equal(one.mean, back.mean)
            torch.testing.assert_close(one.covariance, back.covariance, rtol=1e-15, atol=0)


def test_statistics_are_what_numpy_expects(tmp_path: Path) -> None:
    """By their usual names, in float64."""
    samples.write_statistics(tmp_path / "s.npz", Statistics(a_gaussian(5), a_gaussian(3)))
    with np.load(tmp_path / "s.npz") as stored:
        assert {name: stored[name].shape for name in stored} == {
            "mu": (5,),
            "sigma": (5, 5),
            "mu_s": (3,),
            "sigma_s": (3, 3),
        }
        assert all(stored[name].dtype == np.float64 for name in stored)
        np.testing.assert_array_equal(stored["sigma"], a_gaussian(5).covariance.numpy())


def test_statistics_in_float32_are_read(tmp_path: Path) -> None:
    """And made symmetric where rounding has left them not quite so."""
    sigma = a_gaussian(5).covariance.numpy().astype(np.float32)
    sigma[0, 1] *= 1 + 1e-6
    np.savez(tmp_path / "s.npz", mu=np.zeros(5, np.float32), sigma=sigma)
    covariance = samples.read_statistics(tmp_path / "s.npz").gaussian.covariance
    assert covariance.dtype == torch.float64
    assert torch.equal(covariance, covariance.T)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"mu": np.zeros(3)}, "expected statistics mu and sigma, found mu"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"got \(3,\) float64 and \(4, 4\) float64"),
        ({"mu": np.zeros(0), "sigma": np.eye(0)}, r"got \(0,\)"),
        ({"mu": np.zeros(3, int), "sigma": np.eye(3)}, "floating point, got .* int64"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "expected finite mu"),
        ({"mu": np.zeros(2), "sigma": np.array([[0, 1e308], [-1e308, 0]])}, "the latter symmetric"),
        ({"mu": np.zeros(3), "sigma": np.triu(np.ones((3, 3)))}, "the latter symmetric"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2.0], [2.0, 1.0]])}, "expected sigma to be .* semidefinite"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "expected sigma to be .* semidefinite"),
        ({"mu": np.array([{}]), "sigma": np.eye(1)}, r"expected mu to be numbers or text .* got \(1,\) object"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "network": np.arange(3)}, "network to be one line of text"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "network": np.array("a\nb")}, "network to be one line of text"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.zeros(2), "sigma_s": np.eye(3)}, r"expected mu_s \(D,\)"),
    ],
)
def test_arrays_that_are_no_statistics_are_refused(tmp_path: Path, arrays: dict[str, Any], told: str) -> None:
    """With what was expected."""
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(InputError, match=told):
        samples.read_statistics(tmp_path / "s.npz")
