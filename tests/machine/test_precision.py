"""Laws of number formats and devices: asked for by name, found or refused, and torch's globals are as they were."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import torch

from nextscale import InputError
from nextscale.machine.precision import (
    DTYPES,
    exact,
    find_device,
    find_dtype,
    lowered,
    multiplies_bf16_fast,
    on_device,
)

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


# -- float32 means float32 ---------------------------------------------------------------------------------------------

BACKENDS: Any = torch.backends
PARTS: dict[str, Any] = {
    "all": BACKENDS,
    "CUDA products": BACKENDS.cuda.matmul,
    "CUDA convolutions": BACKENDS.cudnn.conv,
    "CPU products": BACKENDS.mkldnn.matmul,
    "CPU convolutions": BACKENDS.mkldnn.conv,
}


def settings() -> dict[str, str]:
    """What torch lets float32 be computed in."""
    return {name: part.fp32_precision for name, part in PARTS.items()}


@pytest.fixture
def free() -> Iterator[None]:
    """A test may set what it likes."""
    products, convolutions = torch.get_float32_matmul_precision(), BACKENDS.cudnn.allow_tf32
    yield
    for part in PARTS.values():
        part.fp32_precision = "none"
    torch.set_float32_matmul_precision(products)
    BACKENDS.cudnn.allow_tf32 = convolutions


def choose(name: str, value: str) -> Callable[[], None]:
    return lambda: setattr(PARTS[name], "fp32_precision", value)


CHOICES: dict[str, Callable[[], None]] = {
    "torch's own": lambda: None,
    "products high": lambda: torch.set_float32_matmul_precision("high"),
    "products medium": lambda: torch.set_float32_matmul_precision("medium"),
    "convolutions plain": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "all in TF32": choose("all", "tf32"),
    "CUDA products in TF32": choose("CUDA products", "tf32"),
    "CUDA convolutions plain": choose("CUDA convolutions", "ieee"),
    "CPU products in bfloat16": choose("CPU products", "bf16"),
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.usefixtures("free")
def test_exact_leaves_no_part_in_less_and_restores_what_was_chosen(choice: str) -> None:
    """In both of torch's ways of choosing, inside each other, and when what is inside fails."""
    CHOICES[choice]()
    before = settings()
    with suppress(ZeroDivisionError), exact():
        assert {settings()[name] for name in PARTS if name != "all"} == {"ieee"}
        with exact():
            pass
        assert {settings()[name] for name in PARTS if name != "all"} == {"ieee"}
        raise ZeroDivisionError
    assert settings() == before
    if choice in ("products high", "products medium"):
        assert torch.get_float32_matmul_precision() == choice.split()[1]


@pytest.mark.usefixtures("free")
def test_what_followed_a_general_setting_still_does() -> None:
    """One that was never chosen by itself is not pinned to what it was."""
    BACKENDS.fp32_precision = "tf32"
    with exact():
        pass
    BACKENDS.fp32_precision = "ieee"
    assert BACKENDS.cuda.matmul.fp32_precision == BACKENDS.mkldnn.matmul.fp32_precision == "ieee"


@pytest.mark.usefixtures("free")
def test_threads_leave_the_settings_as_they_were() -> None:
    """Whoever is in first and out last."""
    torch.set_float32_matmul_precision("medium")
    before, together = settings(), threading.Barrier(2)

    def inside(wait: float) -> None:
        together.wait()
        for _ in range(50):
            with exact():
                time.sleep(wait)
                assert settings()["CPU products"] == "ieee"

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(inside, (0.0001, 0.0002)))
    assert settings() == before


# -- models on devices -------------------------------------------------------------------------------------------------


def test_a_model_on_its_device_is_itself_and_elsewhere_a_copy() -> None:
    """Parameters, buffers and what else it holds; the one that is given stays as it was."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).eval()
    model[0].weight.requires_grad_(False)
    model[1].weight = model[0].bias  # two names of one tensor
    assert on_device(model, CPU) is model
    there = on_device(model, torch.device("meta"))
    assert all(tensor.is_meta for tensor in there.state_dict().values())
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert not there[0].weight.requires_grad
    assert there[0].bias.requires_grad
    assert there[1].weight is there[0].bias
    assert not there.training
    assert [name for name, _ in there.named_buffers()] == [name for name, _ in model.named_buffers()]
