"""Laws of products in int8: near the exact ones, each token by itself, refused where they are not fast."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nextscale import InputError
from nextscale.machine import int8
from nextscale.machine.precision import Arithmetic, find_arithmetic, find_dtype

CPU = torch.device("cpu")
needs_int8 = pytest.mark.skipif(
    not int8.multiplies_int8_fast(CPU), reason="this processor has neither AMX nor AVX512-VNNI"
)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float32)


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the error, as a share of the expected values' own."""
    return float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@needs_int8
@dtypes
def test_products_are_near_the_exact_ones(dtype: torch.dtype) -> None:
    """Within the rounding of 127 levels a token and a channel, whose magnitudes may be far apart."""
    x, bias = (drawn(3, 50, 256) * torch.logspace(-3, 3, 50)[:, None]).to(dtype), drawn(96).to(dtype)
    weight = drawn(96, 256) * torch.logspace(-2, 2, 96)[:, None]
    got = int8.int8_weight(weight, dtype).product(x, torch.zeros_like(bias))
    expected = F.linear(x.float(), weight)
    assert got.dtype == dtype
    errors = (got.float() - expected).square().mean(2).sqrt() / expected.square().mean(2).sqrt()
    assert errors.mean() < 0.015
    assert errors.max() < 0.05
    assert torch.equal(int8.int8_weight(weight * 0, dtype).product(x, bias), bias.expand(3, 50, 96))


@needs_int8
@dtypes
def test_gelu_is_fused_near_enough(dtype: torch.dtype) -> None:
    """The exact one for its approximation by tanh."""
    x, weight, bias = drawn(64, 128).to(dtype), drawn(32, 128) / 8, drawn(32).to(dtype)
    got = int8.int8_weight(weight, dtype).product(x, bias, gelu=True)
    expected = F.gelu(F.linear(x.float(), weight, bias.float()), approximate="tanh")
    assert relative(got.float(), expected) < 0.02


def test_the_exact_gelu_is_its_approximation_to_half_a_thousandth() -> None:
    """What `Int8Weight.product` says of it."""
    x = torch.linspace(-10, 10, 100_001, dtype=torch.float64)
    assert (F.gelu(x) - F.gelu(x, approximate="tanh")).abs().max() < 0.0005


@needs_int8
@dtypes
def test_a_token_does_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    """Bit for bit, however many and however large."""
    x, weight, bias = drawn(40, 128).to(dtype), int8.int8_weight(drawn(64, 128), dtype), drawn(64).to(dtype)
    alone = torch.cat([weight.product(row, bias) for row in x.split(1)])
    huge = torch.cat([x, 1000 * x, 0 * x])
    assert torch.equal(weight.product(huge, bias)[:40], alone)
    assert torch.equal(weight.product(huge, bias)[80:], bias.expand(40, 64))


@dtypes
def test_bytes_stay_within_their_range(dtype: torch.dtype) -> None:
    """128 is 0; the largest of a token is 126 levels from it, or 127 where the scale was rounded down."""
    x_MK = drawn(2000, 32).to(dtype)
    scales_M1 = int8.token_scales(x_MK)
    levels_MK = int8.quantized(x_MK, scales_M1).int() - 128
    assert set(levels_MK.abs().amax(1).tolist()) <= {126, 127}
    assert ((levels_MK * scales_M1.float() - x_MK.float()).abs() <= 0.76 * scales_M1.float()).all()


@needs_int8
def test_what_is_not_finite_is_not_hidden() -> None:
    """A token with an infinite or undefined value gives no number that looks like one."""
    weight, x = int8.int8_weight(drawn(16, 32), torch.float32), drawn(3, 32)
    x[0, 5], x[1, 6] = torch.inf, torch.nan
    got = weight.product(x, torch.zeros(16))
    assert not got[:2].isfinite().any()
    assert got[2].isfinite().all()


@needs_int8
@dtypes
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0], ids=["around 0", "above", "below"])
def test_convolutions_are_near_the_exact_ones(dtype: torch.dtype, shift: float) -> None:
    """At the border too, where what is not there is 0 whatever byte stands for that."""
    layer = torch.nn.Conv2d(32, 48, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(drawn(48, 32, 3, 3))
        x = (drawn(1, 32, 12, 9) + shift).to(dtype).to(memory_format=torch.channels_last)
        got, expected = int8.Int8Convolution(layer)(x), layer(x.float())
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert relative(got.float(), expected) < 0.02
    assert relative(got.float()[:, :, 0], expected[:, :, 0]) < 0.02


@dtypes
def test_bytes_of_a_picture_stay_within_their_range(dtype: torch.dtype) -> None:
    """0 is a byte of its own, so that what is 0 stays it."""
    for low, high in ((-0.28, 6.0), (0.0, 5.0), (2.0, 3.0), (-4.0, -1.0), (0.0, 0.0), (-1e4, 1e-3)):
        x = torch.linspace(low, high, 3 * 8 * 8).view(1, 3, 8, 8).to(dtype)
        x[0, 0, 0, 0] = 0
        scale, zero = int8.picture_scale(x)
        bytes_ = int8.picture_bytes(x, scale, zero).int()
        assert bytes_[0, 0, 0, 0] == zero
        assert ((bytes_ - zero) * scale - x.double()).abs().max() <= 1.01 * scale
        assert 0 <= bytes_.min() <= bytes_.max() <= 255


@needs_int8
def test_a_picture_that_is_not_finite_stays_so() -> None:
    """As in other precisions."""
    x = drawn(1, 8, 4, 4).to(memory_format=torch.channels_last)
    x[0, 0, 0, 0] = torch.inf
    with torch.no_grad():
        assert int8.Int8Convolution(torch.nn.Conv2d(8, 8, 3, padding=1))(x).isnan().all()


def test_int8_is_auto_beside_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not multiplied in int8 is computed as "auto" computes; the names are those of pictures and of options."""
    monkeypatch.setattr("nextscale.machine.precision.multiplies_int8_fast", lambda device: True)
    found = find_arithmetic("int8", CPU)
    assert found == Arithmetic(find_dtype("auto", CPU), int8=True)
    assert (found.name, found.word) == ("int8", "int8")
    low = find_arithmetic("bf16", CPU)
    assert (low.name, low.word, low.held, low.int8) == ("bfloat16", "bf16", "bf16", False)


@pytest.mark.parametrize("capabilities", [{}, {"avx2": True, "avx512_bf16": True}])
def test_int8_is_refused_where_it_is_slow(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool]) -> None:
    """In one line, with what is needed."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with pytest.raises(InputError, match=r"^precision: int8 expected a CPU with AMX or AVX512-VNNI, got .* without"):
        find_arithmetic("int8", CPU)


def test_int8_is_refused_on_other_devices() -> None:
    """Shapes alone have nothing to quantize."""
    with pytest.raises(InputError, match=r"^precision: int8 expected a CPU with .*, got device meta$"):
        find_arithmetic("int8", torch.device("meta"))


@pytest.mark.parametrize(
    ("capabilities", "allowed", "amx"),
    [
        ({"amx_int8": True}, None, True),
        ({"amx_int8": True}, "AVX512_CORE_AMX", True),
        ({"amx_int8": True}, "avx512_core_vnni", False),
        ({"avx512_vnni": True}, None, False),
    ],
)
def test_amx_is_used_unless_it_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], allowed: str | None, amx: bool
) -> None:
    """By oneDNN's own variable."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if allowed is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    assert int8.multiplies_with_amx() is amx
