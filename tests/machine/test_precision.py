"""Laws of number formats and devices: asked for by name, found or refused, and no global of torch's is set."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nextscale import InputError
from nextscale.machine.precision import DTYPES, find_device, find_dtype, lowered, multiplies_bf16_fast

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "dtype"), DTYPES.items())
def test_forced_precision_is_taken_whatever_the_hardware(name: str, dtype: torch.dtype) -> None:
    """fp32, bf16 and fp16 each mean themselves."""
    assert find_dtype(name, CPU) == dtype


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx2": True, "amx_int8": True}, False), ({}, False)],
)
def test_auto_takes_bfloat16_where_the_processor_multiplies_it_fast(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], fast: bool
) -> None:
    """AMX or AVX512-BF16, else float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert multiplies_bf16_fast(CPU) is fast
    assert find_dtype("auto", CPU) == (torch.bfloat16 if fast else torch.float32)


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_auto_takes_bfloat16_on_cuda_from_8_0(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fast: bool
) -> None:
    """Turing has no bfloat16 units, Ampere has."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert multiplies_bf16_fast(torch.device("cuda", 0)) is fast


def test_auto_stays_in_float32_on_devices_it_does_not_know() -> None:
    """Better slow than wrong."""
    assert find_dtype("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize("word", ["fp8", "float32", "", "AUTO"])
def test_unknown_precision_is_refused(word: str) -> None:
    """In one line with the four words there are."""
    with pytest.raises(InputError, match=r"^precision: expected auto, fp32, bf16 or fp16, got "):
        find_dtype(word, CPU)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:x", "meta:meta"])
def test_device_that_is_not_there_is_refused(name: str) -> None:
    """In one line, whatever torch had to say."""
    with pytest.raises(InputError, match=r"^device: expected auto, cpu, or .* got .*") as caught:
        find_device(name)
    assert "\n" not in str(caught.value)


def test_devices_that_are_there_are_found() -> None:
    """By name, as a device, and by "auto"."""
    assert find_device("cpu") == find_device(CPU) == CPU
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_lowered_runs_float32_weights_in_the_lower_format(untouched: Callable[[], Any]) -> None:
    """Inside the context only; for float32 it changes nothing."""
    a = torch.rand(4, 4)
    with untouched():
        with lowered(CPU, torch.bfloat16):
            assert (a @ a).dtype == torch.bfloat16
        with lowered(CPU, torch.float32):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.float32
