"""Laws of reading pickles: tensors come back, everything else is one line and never run."""

from __future__ import annotations

import argparse
import pickle
import resource
import zipfile
from collections import defaultdict
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nextscale import InputError
from nextscale.files import pickles


class Evil:
    """Leaves a file behind when it is unpickled by the book."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


def test_what_torch_saved_comes_back(tmp_path: Path) -> None:
    """Mapped or not."""
    torch.save({"a": torch.arange(3)}, tmp_path / "a.pth")
    for mmap in (False, True):
        assert torch.equal(pickles.read(tmp_path / "a.pth", mmap=mmap)["a"], torch.arange(3))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_bare_pickle_is_not_run(tmp_path: Path, protocol: int) -> None:
    """Whatever its protocol, about which torch would warn; warnings are errors here."""
    file, trace = tmp_path / "evil.pth", tmp_path / "trace"
    file.write_bytes(pickle.dumps({"a": Evil(trace)}, protocol=protocol))
    with pytest.raises(InputError, match=r"evil.pth: expected a checkpoint of tensors, got a ") as caught:
        pickles.read(file)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


def test_a_pickle_inside_torchs_format_is_not_run(tmp_path: Path) -> None:
    """And what it asked for is named."""
    file, trace = tmp_path / "evil.pth", tmp_path / "trace"
    torch.save({"a": Evil(trace)}, file)
    with pytest.raises(InputError, match=r"got a pickle that asks for .+, which was not run$"):
        pickles.read(file)
    assert not trace.exists()


@pytest.mark.parametrize(("kept", "told"), [(1, " or one of another kind"), (40, ", cut short"), (300, ", cut short")])
def test_a_file_cut_short_is_one_line(tmp_path: Path, kept: int, told: str) -> None:
    """Wherever it is cut."""
    torch.save({"a": torch.arange(100)}, tmp_path / "a.pth")
    cut = tmp_path / "cut.pth"
    cut.write_bytes((tmp_path / "a.pth").read_bytes()[:kept])
    with pytest.raises(
        InputError, match=rf"cut.pth: expected a checkpoint of tensors, got a damaged file{told}$"
    ) as caught:
        pickles.read(cut)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS: git lfs pull"),
        (b"<html><body>404</body></html>", "a web page"),
        (b"", "an empty file"),
        (b"\x80", "a damaged file or one of another kind"),
    ],
)
def test_what_is_often_there_instead_of_a_checkpoint_is_named(tmp_path: Path, content: bytes, kind: str) -> None:
    """What a checkout without Git LFS leaves, what a failed download leaves, and nothing at all."""
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(InputError, match=f"a.pth: expected a checkpoint of tensors, got {kind}"):
        pickles.read(tmp_path / "a.pth")


def test_side_data_becomes_placeholders(tmp_path: Path) -> None:
    """NumPy's scalars and arrays, paths, an argparse.Namespace: nothing of them is made."""
    values = [np.float32(1.5), np.arange(3), Path("a"), argparse.Namespace(a=np.int64(3)), np.dtype("f8")]
    for zipped in (True, False):
        torch.save({"a": torch.arange(3), "b": values}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        read = pickles.read(tmp_path / "a.pth")
        assert torch.equal(read["a"], torch.arange(3))
        assert [type(value) for value in read["b"]] == [pickles.SideData] * 5


def test_values_of_the_standard_library_are_no_obstacle(tmp_path: Path) -> None:
    """Times, ranges and types become placeholders; of a defaultdict the entries stay, without what makes others."""
    values = [timedelta(1), range(3), frozenset([1]), int, Decimal("1.5")]
    torch.save({"a": defaultdict(int, x=torch.arange(3)), "b": values}, tmp_path / "a.pth")
    read = pickles.read(tmp_path / "a.pth")
    assert type(read["a"]) is dict
    assert torch.equal(read["a"]["x"], torch.arange(3))
    assert all(value is pickles.SideData or type(value) is pickles.SideData for value in read["b"])


def bombs() -> dict[str, bytes]:
    """Pickles of a few bytes that would take all memory or the whole stack."""
    number = b"\x8a\x06" + (1 << 40).to_bytes(6, "little")
    return {
        "bytearray": b"\x80\x02cbuiltins\nbytearray\n" + number + b"\x85R.",
        "bytearray of Python 2": b"\x80\x02c__builtin__\nbytearray\n" + number + b"\x85R.",
        "nested": b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.",
    }


@pytest.mark.parametrize("bomb", ["bytearray", "bytearray of Python 2", "nested"])
def test_a_small_pickle_stays_small(tmp_path: Path, bomb: str) -> None:
    """In torch's format and bare; what it asks for is not made."""
    file = tmp_path / "bomb.pth"
    torch.save({}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as whole, zipfile.ZipFile(file, "w") as made:
        for entry in whole.infolist():
            made.writestr(entry.filename, bombs()[bomb] if "data.pkl" in entry.filename else whole.read(entry))
    for content in (file.read_bytes(), bombs()[bomb]):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"bomb.pth: expected a checkpoint of tensors, got a pickle (that|of)"):
            pickles.read(file)


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    """A file of a few kilobytes may become one of gigabytes; torch.save compresses nothing."""
    torch.save({"a": torch.zeros(10_000)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as whole, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as packed:
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
    with pytest.raises(InputError, match=r"b.pth: expected a checkpoint as torch.save writes it, got a compressed"):
        pickles.read(tmp_path / "b.pth")


@pytest.mark.parametrize("content", [{"a": torch.zeros(100_000)}, {"a": torch.zeros(3)}])
def test_a_full_disk_is_told_in_the_system_s_words(tmp_path: Path, content: Any) -> None:
    """Torch tells of a place in its C++ code."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            pickles.write(content, tmp_path / "a.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_wrong_with_the_content_is_not_the_disk_s(tmp_path: Path) -> None:
    """It stays what torch says."""
    with pytest.raises(Exception, match="(?i)pickle"):
        pickles.write({"a": lambda: None}, tmp_path / "a.pt")
