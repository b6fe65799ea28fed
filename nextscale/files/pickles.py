"""Pickles of tensors, read without running anything that is in them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch

from nextscale.errors import InputError


def read(path: Path, *, mmap: bool = False) -> Any:
    """What `torch.save` wrote, on the CPU, if it is made of tensors and plain values only.

    Raises `InputError` for a file that cannot be read, is damaged or of another kind, or asks for code to be run.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # torch remarks on foreign pickles before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        code = re.search(r"GLOBAL (\S+)", str(error))
        got = (
            f"a pickle that asks for {code[1]}, which was not run" if code else "a damaged file or one of another kind"
        )
        raise InputError(f"{path}: expected a checkpoint of tensors, got {got}") from None
