"""Files of the public release: state dicts as .pth or .safetensors, and the checkpoints of its trainer.

A .pth file is a pickle; only tensors and plain values are taken from it, and nothing in it is ever run.
What the tensors mean is known to `release.convert` alone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale.errors import InputError
from nextscale.files import checkpoint, pickles

State = Mapping[str, Any]
PARTS = {"vae_local", "var_wo_ddp"}  # the two models in a trainer's checkpoint, both under "trainer"
WRAPPERS = {"module", "_orig_mod"}  # what DistributedDataParallel and torch.compile put into names


def reader(source: str | Path | State, part: str) -> checkpoint.Read:
    """How to map one model's tensors, anew at each call where that is possible.

    Arguments:
        source: a file or a state dict.
        part: which of `PARTS` is wanted, if it is a trainer's.

    What is returned raises `InputError` for a file that is missing, damaged, or no state dict.
    """
    if isinstance(source, Mapping):
        tensors = _unwrap("state dict", source, part)
        return lambda: tensors
    path = Path(source)
    if path.suffix == ".safetensors":
        return lambda: _unwrap(str(path), checkpoint.read_tensors(path), part)
    if not path.is_file():
        raise InputError(f"expected a file {path}, found none")
    if zipfile.is_zipfile(path):
        return lambda: _unwrap(str(path), pickles.read(path, mmap=True), part)
    whole = _unwrap(str(path), pickles.read(path), part)  # torch's format before 1.6 cannot be mapped
    return lambda: whole


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write one state dict of `release.convert.export`: safetensors by that suffix, else as `torch.load` reads it."""
    tensors = {name: tensor.detach().cpu() for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        checkpoint.write_tensors(path, tensors)
        return
    # torch.save writes whole storages, and that of a mapped weight is all of its file; an array's ends where it ends
    alone = {name: torch.from_numpy(tensor.numpy()) for name, tensor in tensors.items()}
    checkpoint.write_beside(path, lambda beside: torch.save(alone, beside))


def _unwrap(what: str, values: Any, part: str) -> dict[str, Tensor]:
    """The model `part` of a trainer's checkpoint, or the state dict itself; names without wrappers."""
    if isinstance(values, Mapping) and isinstance(values.get("trainer"), Mapping):
        values = values["trainer"]
    if isinstance(values, Mapping) and values.keys() & PARTS:
        values = values.get(part)
    if not isinstance(values, Mapping) or not values:
        raise InputError(f"{what}: expected a state dict or a trainer's checkpoint with {part}, got neither")
    tensors = {".".join(word for word in str(name).split(".") if word not in WRAPPERS): t for name, t in values.items()}
    strange = [name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]
    if strange:
        raise InputError(f"{what}: expected tensors only, got {type(tensors[strange[0]]).__name__} {strange[0]}")
    if len(tensors) < len(values):
        raise InputError(f"{what}: expected every tensor once, got names that differ only in their wrappers")
    return tensors
