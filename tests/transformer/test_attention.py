"""Laws of block-causal attention: split into parts it is what the mask of all positions says, gradients too."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import Scales
from nextscale.transformer import attention
from nextscale.transformer.attention import block_causal

CPU = torch.device("cpu")
SCALES = [
    Scales([1, 2, 3, 4]),  # all small: one mask
    Scales([1, 2, 3, 4, 6, 8]),  # one large one
    Scales([1, 3, 9, 10]),  # two
    Scales([1, 9]),  # nothing to mask
    Scales([(8, 8), (8, 9), (9, 10)]),  # each alone, the first too
    Scales([(3, 4)]),
    Scales([9]),
]


def drawn(scales: Scales, *, seed: int = 0) -> list[Tensor]:
    """q, k, v as a layer brings them, not contiguous, and a gradient for what comes out."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, out = torch.randn(4, 2, scales.total, 3, 8, generator=generator).transpose(2, 3).unbind()
    return [q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), out]


def dense(q: Tensor, k: Tensor, v: Tensor, scales: Scales, scale: float, reach: int | None = None) -> Tensor:
    """The formula, with the mask of all positions by all positions."""
    scores = scale * q @ k.transpose(-1, -2)
    return scores.masked_fill(~scales.block_causal_mask(reach), -torch.inf).softmax(dim=-1) @ v


@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.3, 2.0])
def test_split_attention_is_masked_attention(scales: Scales, scale: float) -> None:
    """The same to 1e-5 in float32, and so are the gradients of queries, keys and values."""
    q, k, v, gradient = drawn(scales)
    expected = dense(q, k, v, scales, scale)
    of_dense = torch.autograd.grad(expected, (q, k, v), gradient)
    got = block_causal(scales, CPU)(q, k, v, scale)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    of_split = torch.autograd.grad(got, (q, k, v), gradient)
    torch.testing.assert_close(of_split, of_dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_what_other_devices_run_is_the_same(scales: Scales) -> None:
    """Torch's fused kernel on the same parts."""
    q, k, v, gradient = drawn(scales)
    expected = dense(q, k, v, scales, 0.3)
    got = attention.fused(q, k, v, attention.parts(scales, CPU), 0.3)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    of_dense, of_fused = (torch.autograd.grad(out, (q, k, v), gradient) for out in (expected, got))
    torch.testing.assert_close(of_fused, of_dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("reach", [1, 2, 3])
def test_a_shorter_reach_leaves_out_the_coarsest_scales(scales: Scales, reach: int) -> None:
    """On either kernel, with the gradients."""
    q, k, v, gradient = drawn(scales)
    expected = dense(q, k, v, scales, 0.3, reach)
    of_dense = torch.autograd.grad(expected, (q, k, v), gradient)
    for kernel in (attention.split, attention.fused):
        got = kernel(q, k, v, attention.parts(scales, CPU, reach), 0.3)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(got, (q, k, v), gradient), of_dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 1 << 14, 1 << 30])
def test_it_does_not_matter_how_many_heads_go_together(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """One by one, some, all."""
    q, k, v, gradient = drawn(SCALES[1])
    expected = torch.autograd.grad(dense(q, k, v, SCALES[1], 1.0), (q, k, v), gradient)
    monkeypatch.setattr(attention, "SCORES", size)
    out = block_causal(SCALES[1], CPU)(q, k, v, 1.0)
    torch.testing.assert_close(torch.autograd.grad(out, (q, k, v), gradient), expected, atol=1e-5, rtol=1e-5)


def test_parts_cover_the_sequence_in_order() -> None:
    """The 256 px schedule: scales of fewer than 64 tokens together, the four large ones alone; 65 % of the square."""
    scales = Scales([1, 2, 3, 4, 5, 6, 8, 10, 13, 16])
    parts = attention.parts(scales, CPU)
    assert [(part.start, part.stop) for part in parts] == [(0, 91), (91, 155), (155, 255), (255, 424), (424, 680)]
    assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
    assert [part.hidden is None for part in parts] == [False, True, True, True, True]
    products = sum((part.stop - part.start) * part.stop for part in parts)
    assert products / scales.total**2 == pytest.approx(0.63, abs=0.01)


def test_a_mask_is_made_where_something_is_hidden_and_where_it_is_used() -> None:
    """One small scale alone hides nothing; the mask of several lies on the device of the queries."""
    (first, _), (masked, *_) = attention.parts(Scales([1, 9]), CPU), attention.parts(SCALES[1], torch.device("meta"))
    assert first == (0, 1, None, 0)
    assert masked.hidden.device.type == "meta"


def test_processors_run_the_split_kernel_and_other_devices_the_fused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same parts go to either, on the device of the queries."""
    seen: list[tuple[str, str]] = []

    def noting(name: str) -> Callable[..., Tensor]:
        return lambda q, k, v, parts, scale: seen.append((name, parts[0].hidden.device.type)) or q

    for name in ("split", "fused"):
        monkeypatch.setattr(attention, name, noting(name))
    for device in ("cpu", "meta"):
        q = torch.empty(1, 1, 30, 4, device=device)
        block_causal(SCALES[0], q.device)(q, q, q, 1.0)
    assert seen == [("split", "cpu"), ("fused", "meta")]


@pytest.mark.parametrize("size", [1, 1 << 15, 1 << 17])
def test_as_many_heads_go_together_as_fit(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The largest part has 64 x 130 scores of 4 bytes; one head at a time where not even one fits."""
    monkeypatch.setattr(attention, "SCORES", size)
    parts = attention.parts(SCALES[1], CPU)
    heads = attention._heads(torch.zeros(7, 130, 8), parts)
    together = max(1, size // (64 * 130 * 4))
    assert heads == [slice(first, first + together) for first in range(0, 7, together)]


def test_half_precision_keeps_its_format() -> None:
    """bfloat16 in, bfloat16 out, under autocast too, and near the exact result."""
    scales = SCALES[1]
    q, k, v, _ = drawn(scales)
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=scales.block_causal_mask(), scale=1.0)
    low = [x.detach().bfloat16() for x in (q, k, v)]
    plain = block_causal(scales, CPU)(*low, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = block_causal(scales, CPU)(*low, 1.0)
    assert plain.dtype == inside.dtype == torch.bfloat16
    assert torch.equal(plain, inside)
    assert (plain - exact).std() / exact.std() < 0.01


def test_a_second_derivative_is_refused() -> None:
    """Also of a sum, whose own gradient needs none; once, and once more along a kept graph, is allowed."""
    q, k, v, _ = drawn(SCALES[1])
    total = block_causal(SCALES[1], CPU)(q, k, v, 1.0).sum()
    once, again = (torch.autograd.grad(total, (q, k, v), retain_graph=True) for _ in range(2))
    torch.testing.assert_close(once, again)
    with pytest.raises(RuntimeError, match="^block-causal attention cannot be differentiated twice"):
        torch.autograd.grad(total, (q, k, v), create_graph=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_code_calls_the_products_as_they_are() -> None:
    """Traced through, they would be compiled for every part; and whoever does not compile imports no compiler."""
    q, k, v = torch.randn(3, 2, 3, 14, 8).unbind()
    look, traced = attention.block_causal(Scales([1, 2, 3]), CPU), list[str]()

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        traced.extend(str(node.target) for node in graph.graph.nodes if node.op != "placeholder")
        return graph.forward

    compiled = torch.compile(lambda *given: look(*(x + 1 for x in given), 1.0) * 2, backend=backend)
    torch.testing.assert_close(compiled(q, k, v), look(q + 1, k + 1, v + 1, 1.0) * 2)
    assert any("mul" in name for name in traced)
    assert not any("bmm" in name or "softmax" in name for name in traced)
