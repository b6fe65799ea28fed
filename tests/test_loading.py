"""Laws of lean loading: what is converted passes through short-lived mappings, what is not stays mapped."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from parity import golden
from torch import Tensor, nn

from nextscale import Pipeline, official
from nextscale.files import checkpoint
from nextscale.release import files as release_files

FREE = """
import sys
from pathlib import Path
import safetensors.torch, torch
from torch import nn
from nextscale.files import checkpoint

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

with torch.device("meta"):
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(50))).to(torch.bfloat16)
checkpoint.CHUNK = 1 << 23
before = peak()
checkpoint.assign(model, lambda: checkpoint.read_tensors(Path(sys.argv[1])))
print((peak() - before) / sum(2 * p.numel() for p in model.parameters()))
"""


def layers(count: int, dtype: torch.dtype) -> nn.Sequential:
    with torch.device("meta"):
        return nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(count))).to(dtype)


class Mapped(dict[str, Tensor]):
    """Stands for a mapping of a file; unlike a plain dict it can be watched."""


def test_a_mapping_is_given_up_after_a_chunk(monkeypatch):
    """Forty tensors of 256 bytes, converted four at a time, through ten mappings of which none stays."""
    monkeypatch.setattr(checkpoint, "CHUNK", 1000)
    mappings: list[weakref.ref[Mapped]] = []
    alive: list[int] = []

    def read() -> Mapping[str, Tensor]:
        alive.append(sum(mapping() is not None for mapping in mappings))
        mapped = Mapped({f"{i}.weight": torch.ones(8, 8) for i in range(40)})
        mappings.append(weakref.ref(mapped))
        return mapped

    checkpoint.assign(layers(40, torch.bfloat16), read)
    check, kept, chunks = 1, 1, 10
    assert len(mappings) == check + kept + chunks
    assert max(alive) <= 2  # the one that is kept, and the one that is about to be given up
    assert all(mapping() is None for mapping in mappings)


def test_what_stays_mapped_is_looked_at_through_mappings_that_do_not(monkeypatch):
    """The one that stays is not touched; the others are given up, after more than where weights are converted."""
    monkeypatch.setattr(checkpoint, "LOOKED", 1000)
    mappings: list[weakref.ref[Mapped]] = []

    def read() -> Mapping[str, Tensor]:
        mapped = Mapped({f"{i}.weight": torch.ones(8, 8) for i in range(40)})
        mappings.append(weakref.ref(mapped))
        return mapped

    checkpoint.assign(layers(40, torch.float32), read)
    check, kept, chunks = 1, 1, 10
    assert len(mappings) == check + kept + chunks
    assert all(mapping() is None for mapping in mappings)


def test_what_fits_stays_mapped_and_what_does_not_is_converted():
    """A weight of the right format is the very memory that was read."""
    tensors = {"0.weight": torch.ones(8, 8), "1.weight": torch.ones(8, 8)}
    model = layers(2, torch.float32)
    model[1].to(torch.bfloat16)
    checkpoint.assign(model, lambda: tensors)
    assert model[0].weight.data_ptr() == tensors["0.weight"].data_ptr()
    assert model[1].weight.dtype == torch.bfloat16
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel tells the peak there")
def test_the_peak_of_a_conversion_is_the_converted_weights(tmp_path):
    """200 MB of float32 become 100 MB of bfloat16 with at most 125 MB resident on top of the process."""
    file = tmp_path / "weights.safetensors"
    checkpoint.write_tensors(file, {f"{i}.weight": torch.zeros(1024, 1024) for i in range(50)})
    done = subprocess.run([sys.executable, "-c", FREE, str(file)], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 1.25


def test_a_directory_is_held_in_the_precision_that_is_asked_for(tmp_path):
    """Saved in bfloat16 and asked for in float32 it is widened, without loss."""
    pipe = official.load(*golden.states(), precision="bf16")
    pipe.save(tmp_path)
    again = Pipeline.load(tmp_path, precision="fp32")
    assert again.transformer.compute_dtype == torch.float32
    for name, tensor in pipe.transformer.state_dict().items():
        assert torch.equal(tensor.float(), again.transformer.state_dict()[name])


@pytest.mark.slow
def test_loading_initialises_nothing(tmp_path, monkeypatch):
    """No weight is made that a file is about to replace."""

    def forbidden(tensor: Tensor, *arguments: object, **options: object) -> Tensor:
        assert tensor.is_meta, "a weight was initialised"
        return tensor

    golden.pipeline().save(tmp_path)
    files = tmp_path / "vae.pth", tmp_path / "var.pth"
    for file, state in zip(files, golden.states(), strict=True):
        release_files.write(file, state)
    for method in ("normal_", "uniform_", "zero_", "fill_"):
        monkeypatch.setattr(torch.Tensor, method, forbidden)
    official.load(*files, precision="fp32")
    Pipeline.load(tmp_path, precision="fp32")
