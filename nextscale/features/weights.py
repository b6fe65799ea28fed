"""Files with the weights of a network: state dicts as .safetensors, or as pickles of which nothing is run.

Only takes off what training wrapped around the tensors; what they mean is known to the networks' rooms.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nextscale.errors import InputError
from nextscale.files import checkpoint, pickles

PREFIXES = ("module.", "backbone.", "vit.")


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the teacher in a checkpoint of DINO's training; names without `PREFIXES`.

    Raises `InputError` for a file that is missing, damaged, or no state dict.
    """
    values = checkpoint.read_tensors(path) if path.suffix == ".safetensors" else pickles.read(path)
    if isinstance(values, Mapping):
        values = values.get("teacher", values)
    if not isinstance(values, Mapping) or not all(isinstance(tensor, Tensor) for tensor in values.values()):
        raise InputError(f"{path}: expected a state dict, got something else")
    return {_bare(str(name)): tensor for name, tensor in values.items()}


def _bare(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name
