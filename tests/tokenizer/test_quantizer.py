"""Laws of the residual quantizer: both Algorithms against slow plain versions, sharing of phi, gradients, usage."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import MultiScaleVQVAE, Scales
from nextscale.tokenizer.quantizer import MultiScaleQuantizer, nearest_phi, usage

Make = Callable[..., MultiScaleVQVAE]

KINDS: list[dict[str, Any]] = [
    {},
    {"phi_sharing": "all", "phi_count": 1},
    {"phi_sharing": "none", "phi_count": 4},
    {"phi_count": 0},
    {"distance": "cosine"},
    {"scales": Scales([1, (2, 1), (3, 2), (4, 6)])},
    {"scales": Scales([(2, 2), 3, 4])},
    {"scales": Scales([(3, 4)])},
]


@pytest.fixture(params=KINDS, ids=str)
def quantizer(request: pytest.FixtureRequest, make_tokenizer: Make) -> MultiScaleQuantizer:
    return make_tokenizer(**request.param).quantizer


def features_for(quantizer: MultiScaleQuantizer, *, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(batch, 8, quantizer.scales.height, quantizer.scales.width, generator=generator)


def slow_nearest(vector: Tensor, codebook: Tensor, distance: str) -> int:
    """One vector against one code after another."""
    if distance == "cosine":
        scores = [-float(vector @ code / (vector.norm() * code.norm())) for code in codebook]
    else:
        scores = [float((vector - code).square().sum()) for code in codebook]
    return min(range(len(scores)), key=scores.__getitem__)


def slow_contribution(quantizer: MultiScaleQuantizer, tokens: Tensor, k: int) -> Tensor:
    """phi_k(interpolate(lookup(Z, r_k))), from the weights alone."""
    last = len(quantizer.scales) - 1
    z = quantizer.codebook.weight[tokens].movedim(-1, 1)
    if k < last:
        z = F.interpolate(z, quantizer.scales.sizes[-1], mode="bicubic")
    if not len(quantizer.phis):
        return z
    phi = quantizer.phis[nearest_phi(last + 1, len(quantizer.phis))[k]]
    assert isinstance(phi, torch.nn.Conv2d)
    return 0.5 * z + 0.5 * F.conv2d(z, phi.weight, phi.bias, padding=1)


@torch.no_grad()
def algorithm_1(quantizer: MultiScaleQuantizer, f: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """The paper's encoding: maps of tokens, what is left of f, and f_hat after each scale."""
    maps, canvas, canvases = [], torch.zeros_like(f), []
    for k, (h, w) in enumerate(quantizer.scales):
        pooled = F.adaptive_avg_pool2d(f, (h, w))
        rows = pooled.movedim(1, -1).reshape(-1, f.shape[1])
        codes = [slow_nearest(row, quantizer.codebook.weight, quantizer.distance) for row in rows]
        maps.append(torch.tensor(codes).view(-1, h, w))
        painted = slow_contribution(quantizer, maps[-1], k)
        f, canvas = f - painted, canvas + painted
        canvases.append(canvas)
    return maps, f, canvases


def test_encoding_is_algorithm_1(quantizer: MultiScaleQuantizer) -> None:
    """Token by token, for every kind of quantizer; the maps are not all one code."""
    f = features_for(quantizer)
    tokens = quantizer.encode(f)
    maps, _, _ = algorithm_1(quantizer, f)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, torch.cat([part.flatten(1) for part in maps], dim=1))
    assert len(tokens.unique()) > 5


@torch.no_grad()
def test_canvases_are_algorithm_2_and_leave_the_residual_of_algorithm_1(quantizer: MultiScaleQuantizer) -> None:
    """f_hat after each scale is the running sum; f minus the last is what encoding could not explain."""
    f = features_for(quantizer)
    _, residual, expected = algorithm_1(quantizer, f)
    canvases = list(quantizer.canvases(quantizer.encode(f)))
    assert len(canvases) == len(quantizer.scales)
    for ours, theirs in zip(canvases, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(f - canvases[-1], residual, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_contributions_of_all_scales_add_up_to_the_last_canvas(quantizer: MultiScaleQuantizer) -> None:
    """Painting has no order and no memory."""
    tokens = quantizer.encode(features_for(quantizer))
    maps = quantizer.scales.split(tokens)
    total = sum(quantizer.contribution(quantizer.lookup(part), k) for k, part in reversed(list(enumerate(maps))))
    *_, last = quantizer.canvases(tokens)
    torch.testing.assert_close(total, last, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_teacher_inputs_are_the_canvases_pooled_to_the_next_scale(quantizer: MultiScaleQuantizer) -> None:
    """Row-major cells, one block a scale after the first; none at all for a single scale."""
    tokens = quantizer.encode(features_for(quantizer))
    inputs = quantizer.teacher_inputs(tokens)
    scales = quantizer.scales
    assert inputs.shape == (3, scales.total - scales.lengths[0], 8)
    assert inputs.dtype == torch.float32
    start = 0
    for k, canvas in enumerate(quantizer.canvases(tokens)):
        if k + 1 == len(scales):
            break
        h, w = scales.sizes[k + 1]
        pooled = F.adaptive_avg_pool2d(canvas, (h, w))
        for i in range(h):
            for j in range(w):
                torch.testing.assert_close(inputs[:, start + i * w + j], pooled[:, :, i, j])
        start += h * w
    assert start == inputs.shape[1]


def test_loss_is_the_mean_over_scales_on_the_cumulative_canvas(quantizer: MultiScaleQuantizer) -> None:
    """Against the plain loop; both terms have the same value, so the loss is (1 + beta) times their mean."""
    f = features_for(quantizer)
    _, _, canvases = algorithm_1(quantizer, f)
    plain = sum(float((canvas - f).square().mean()) for canvas in canvases) / len(canvases)
    for beta in (0.25, 2.0):
        assert quantizer(f, beta=beta).loss.item() == pytest.approx((1 + beta) * plain, rel=1e-5)
    assert quantizer(f).loss.item() == pytest.approx(1.25 * plain, rel=1e-5)


def test_training_forward_agrees_with_encoding(quantizer: MultiScaleQuantizer) -> None:
    """Same tokens; the value of the straight-through f_hat is the last canvas."""
    f = features_for(quantizer)
    got = quantizer(f)
    *_, last = quantizer.canvases(got.tokens)
    assert torch.equal(got.tokens, quantizer.encode(f))
    torch.testing.assert_close(got.f_hat, last, atol=1e-5, rtol=1e-5)


def test_gradient_goes_straight_through_to_the_features(quantizer: MultiScaleQuantizer) -> None:
    """The gradient of f_hat is the gradient of f, exactly, and none reaches the codebook that way."""
    f = features_for(quantizer).requires_grad_()
    weights = torch.randn(f.shape, generator=torch.Generator().manual_seed(1))
    (quantizer(f).f_hat * weights).sum().backward()
    assert torch.equal(f.grad, weights)
    assert quantizer.codebook.weight.grad is None


def test_commitment_pulls_the_features_and_the_other_term_pulls_the_codes(quantizer: MultiScaleQuantizer) -> None:
    """Gradient to f is beta times the mean of 2 (f - f_hat_k) / n; to the codebook it does not depend on beta."""
    f = features_for(quantizer).requires_grad_()
    codebook = quantizer.codebook.weight
    _, _, canvases = algorithm_1(quantizer, f.detach())
    expected = sum(2 * (f.detach() - canvas) / f.numel() for canvas in canvases) / len(canvases)
    by_beta = {}
    for beta in (0.0, 0.25):
        to_f, to_codes = torch.autograd.grad(quantizer(f, beta=beta).loss, [f, codebook])
        torch.testing.assert_close(to_f, beta * expected, atol=1e-7, rtol=1e-5)
        by_beta[beta] = to_codes
    assert by_beta[0.0].abs().max() > 1e-5
    torch.testing.assert_close(by_beta[0.0], by_beta[0.25])


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_nearest_code_is_the_nearest(make_tokenizer: Make, distance: str) -> None:
    """Against one comparison after another; codes of very different lengths tell the two distances apart."""
    quantizer = make_tokenizer(distance=distance).quantizer
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        quantizer.codebook.weight.mul_(torch.rand(64, 1, generator=generator) * 5 + 0.2)
    vectors = torch.randn(200, 8, generator=generator)
    codebook = quantizer.codebook.weight.detach()
    expected = {d: [slow_nearest(v, codebook, d) for v in vectors] for d in ("euclidean", "cosine")}
    assert quantizer.nearest(vectors).tolist() == expected[distance]
    assert expected["euclidean"] != expected["cosine"]


def test_codes_are_their_own_nearest(tokenizer: MultiScaleVQVAE) -> None:
    """Looking up and searching undo each other."""
    codebook = tokenizer.quantizer.codebook.weight.detach()
    assert tokenizer.quantizer.nearest(codebook).tolist() == list(range(64))


@torch.no_grad()
def test_quantizer_computes_in_float32_under_autocast(tokenizer: MultiScaleVQVAE) -> None:
    """Which code is nearest, and what it paints, do not depend on the precision of the convnet around it."""
    quantizer = tokenizer.quantizer
    f = features_for(quantizer, batch=64)
    tokens = quantizer.encode(f)
    inputs, trained = quantizer.teacher_inputs(tokens), quantizer(f)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(f), tokens)
        assert torch.equal(quantizer.teacher_inputs(tokens), inputs)
        again = quantizer(f)
    assert torch.equal(again.tokens, trained.tokens)
    assert torch.equal(again.f_hat, trained.f_hat)
    assert torch.equal(again.loss, trained.loss)


@pytest.mark.parametrize(
    ("phis", "expected"),
    [
        (1, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (2, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]),
        # ticks 3/36, 13/36, 23/36, 33/36: scales 2 and 7 of 0 .. 9 lie halfway, and rounding decides as in the release
        (4, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
        (5, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
        (10, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_ten_scales_share_phis_as_in_the_release(phis: int, expected: list[int]) -> None:
    """The nearest tick, written out by hand."""
    assert nearest_phi(10, phis) == expected


def test_one_phi_a_scale_is_one_phi_a_scale() -> None:
    """However many scales there are."""
    for scales in range(1, 40):
        assert nearest_phi(scales, scales) == list(range(scales))


def test_two_scales_and_one_scale_have_a_phi() -> None:
    """The ends of the range: first scale, first tick; last scale, last tick."""
    assert nearest_phi(1, 4) == [0]
    assert nearest_phi(2, 4) == [0, 3]


def test_hits_are_an_exponential_average_of_counts(make_tokenizer: Make, random_tokens: Callable[..., Tensor]) -> None:
    """The first batch as it is, then 0.9 for a hundred steps, then 0.99; each scale on its own."""
    quantizer = make_tokenizer().quantizer
    before = quantizer.scales

    def counts(tokens: Tensor) -> Tensor:
        rows = [[int((part == code).sum()) for code in range(64)] for part in before.split(tokens)]
        return torch.tensor(rows, dtype=torch.float32)

    batches = [random_tokens(seed=seed, batch=5) for seed in range(3)]
    first, second, third = map(counts, batches)
    quantizer.count_hits(batches[0], 0)
    assert torch.equal(quantizer.hits_KV, first)
    quantizer.count_hits(batches[1], 99)
    torch.testing.assert_close(quantizer.hits_KV, 0.9 * first + 0.1 * second)
    expected = 0.99 * quantizer.hits_KV + 0.01 * third
    quantizer.count_hits(batches[2], 100)
    torch.testing.assert_close(quantizer.hits_KV, expected)


def test_usage_counts_codes_and_their_perplexity() -> None:
    """One code only is 1; four equally frequent codes are 4; unequal ones fewer than they are."""
    same = torch.full((3, 4), 7)
    four = torch.tensor([[0, 1], [2, 3]]).repeat(5, 1)
    uneven = torch.tensor([[0, 0, 0, 1]])
    figures = usage([same, four, uneven], codes=64)
    assert figures[0] == (1, 1.0)
    assert figures[1] == (4, pytest.approx(4.0))
    assert figures[2] == (2, pytest.approx((4 / 3) ** 0.75 * 4**0.25))
