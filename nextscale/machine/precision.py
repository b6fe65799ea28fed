"""Which number format the matrix products run in: bfloat16 where the hardware multiplies it fast, float32 elsewhere.

Of torch's globals only those that let float32 products run in less are set, by `exact`, and restored.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import nn

from nextscale.errors import InputError
from nextscale.machine.int8 import multiplies_int8_fast

Precision = Literal["auto", "fp32", "bf16", "fp16"]
SamplingPrecision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Model = TypeVar("Model", bound=nn.Module)
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    got = name[:80] if isinstance(name, str) and name.strip() else repr(name)[:80]
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
        only = " (int8 is for sampling)" if precision == "int8" else ""
        raise InputError(f"precision: expected auto, fp32, bf16 or fp16, got {precision!r}{only}")
    return DTYPES[precision]


class Arithmetic(NamedTuple):
    """What sampling computes in."""

    dtype: torch.dtype
    """Of everything but the products in int8."""
    int8: bool = False
    """Whether products run in int8 where that pays."""

    @property
    def name(self) -> str:
        """float32, bfloat16, float16 or int8."""
        return "int8" if self.int8 else str(self.dtype).removeprefix("torch.")

    @property
    def word(self) -> SamplingPrecision:
        """The same as `SamplingPrecision` says it."""
        return "int8" if self.int8 else self.held

    @property
    def held(self) -> Precision:
        """What models are held in."""
        return next(word for word, dtype in DTYPES.items() if dtype == self.dtype)


def find_arithmetic(precision: str, device: torch.device) -> Arithmetic:
    """What `precision` means on `device` for sampling: as `find_dtype`, and "int8", beside which "auto" holds.

    Raises `InputError` for a word that is none of `SamplingPrecision`, and for int8 where it is not fast.
    """
    if precision != "int8":
        return Arithmetic(find_dtype(precision, device))
    if not multiplies_int8_fast(device):
        got = "a processor without either" if device.type == "cpu" else f"device {device}"
        raise InputError(f"precision: int8 expected a CPU with AMX or AVX512-VNNI, got {got}")
    return Arithmetic(find_dtype("auto", device), int8=True)


def lowered(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """A context in which convolutions and matrix products of float32 weights run in `dtype`; nothing for float32."""
    if device.type == "meta":  # shapes alone: torch knows no autocast for it
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def as_held(device: torch.device) -> AbstractContextManager[object]:
    """A context in which everything runs in the dtype it is held in, whatever autocast the caller is in."""
    return lowered(device, torch.float32)


def on_device(model: Model, device: torch.device) -> Model:
    """The model itself where it is on `device`, else a copy there; the one that is given stays where it is."""
    place = torch.empty(0, device=device).device  # which has an index where `device` has none
    tensors = [*model.parameters(), *model.buffers()]
    if all(tensor.device == place for tensor in tensors):
        return model
    return copy.deepcopy(model, {id(tensor): _moved(tensor, place) for tensor in tensors})


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    moved = tensor.detach().to(device)
    return nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved


class _Exact:
    """What `exact` gives. Threads share torch's settings: the first one in sets them, the last one out restores."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._restore: Callable[[], None] = lambda: None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._restore = _set_exact()

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._restore()


def _set_exact() -> Callable[[], None]:
    """Let float32 products be exact; returns what restores the settings."""
    backends: Any = torch.backends
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    older, newer = _older(), [part.fp32_precision for part in parts]

    def restore() -> None:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for part, before in zip(parts, newer, strict=True):
            part.fp32_precision = "none"
            if part.fp32_precision != before:  # it was not the setting of all parts that it followed
                part.fp32_precision = before

    if older is not None:
        torch.set_float32_matmul_precision("highest")
    for part in parts:
        part.fp32_precision = "ieee"
    return restore


def _older() -> str | None:
    """The setting that came before those of the parts; None where these say otherwise, as torch then refuses to."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


_exact = _Exact()


def exact() -> AbstractContextManager[None]:
    """A context in which float32 products are float32's.

    Otherwise convolutions on CUDA run in TF32, torch's default there, and after `set_float32_matmul_precision` matrix
    products in TF32 or bfloat16, on some CPUs too: enough to choose other codes.
    """
    return _exact
