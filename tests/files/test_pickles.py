"""Laws of reading pickles: tensors come back, everything else is one line and never run."""

from __future__ import annotations

import pickle
from pathlib import Path

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


@pytest.mark.parametrize("kept", [0, 1, 40, 300])
def test_a_file_cut_short_is_one_line(tmp_path: Path, kept: int) -> None:
    """Empty, or cut anywhere."""
    torch.save({"a": torch.arange(100)}, tmp_path / "a.pth")
    cut = tmp_path / "cut.pth"
    cut.write_bytes((tmp_path / "a.pth").read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cut.pth: expected a checkpoint of tensors, got a damaged file") as caught:
        pickles.read(cut)
    assert "\n" not in str(caught.value)
