"""Which number format the matrix products run in: bfloat16 where the hardware multiplies it fast, float32 elsewhere.

Only asked, never set: no global of torch is changed here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from nextscale.errors import InputError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(name: str | torch.device) -> torch.device:
    """`name` as a device; "auto" takes CUDA where there is some. Raises `InputError` when it is not there."""
    if isinstance(name, str) and name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise _no_device(name, "torch knows no such device") from None
    try:
        torch.empty(0, device=device)
    except (NotImplementedError, ImportError):  # the former's text is the list of everything that torch has
        raise _no_device(name, "this build of torch is without it") from None
    except (RuntimeError, AssertionError) as error:
        raise _no_device(name, str(error).splitlines()[0].partition(". ")[0]) from None
    return device


def _no_device(name: object, reason: str) -> InputError:
    got = repr(name)[:80]
    return InputError(f"device: expected auto, cpu, or an accelerator that is there, got {got} ({reason})")


def multiplies_bf16_fast(device: torch.device) -> bool:
    """CPUs with AMX or AVX512-BF16, CUDA from compute capability 8.0."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def find_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The format `precision` means on `device`. Raises `InputError` for a word that is none of `Precision`."""
    if precision == "auto":
        return torch.bfloat16 if multiplies_bf16_fast(device) else torch.float32
    if not isinstance(precision, str) or precision not in DTYPES:
        raise InputError(f"precision: expected auto, fp32, bf16 or fp16, got {precision!r}")
    return DTYPES[precision]


def lowered(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """A context in which convolutions and matrix products of float32 weights run in `dtype`; nothing for float32."""
    if device.type == "meta":  # shapes alone: torch knows no autocast for it
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def as_held(device: torch.device) -> AbstractContextManager[object]:
    """A context in which everything runs in the dtype it is held in, whatever autocast the caller is in."""
    return lowered(device, torch.float32)
