"""Laws of the residual quantizer: both Algorithms against slow plain versions, sharing of phi, gradients, usage."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import InputError, MultiScaleVQVAE, Scales
from nextscale.tokenizer.quantizer import (
    MultiScaleQuantizer,
    check_tokens,
    codebook_loss,
    commitment_loss,
    nearest_phi,
    usage,
)

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
        codes = [slow_nearest(row, quantizer.codebook.weight, quantizer.learned.distance) for row in rows]
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


def test_both_losses_are_means_over_scales_on_the_cumulative_canvas(quantizer: MultiScaleQuantizer) -> None:
    """Against the plain loop; they have the same value, and differ in whom they move."""
    f = features_for(quantizer)
    _, _, canvases = algorithm_1(quantizer, f)
    plain = sum(float((canvas - f).square().mean()) for canvas in canvases) / len(canvases)
    walk = quantizer(f)
    assert codebook_loss(walk.canvases, f).item() == pytest.approx(plain, rel=1e-5)
    assert commitment_loss(walk.canvases, f).item() == pytest.approx(plain, rel=1e-5)


@torch.no_grad()
def test_the_walk_keeps_what_algorithm_1_passes_by(quantizer: MultiScaleQuantizer) -> None:
    """Canvas after each scale and residual before it, by the plain loop: picture after picture, row after row."""
    f = features_for(quantizer)
    walk = quantizer(f)
    maps, _, canvases = algorithm_1(quantizer, f)
    assert torch.equal(walk.tokens, torch.cat([part.flatten(1) for part in maps], dim=1))
    left = f
    for k, (h, w) in enumerate(quantizer.scales):
        torch.testing.assert_close(walk.canvases[k], canvases[k], atol=1e-5, rtol=1e-5)
        pooled = F.adaptive_avg_pool2d(left, (h, w))
        vectors = [pooled[b, :, i, j] for b in range(3) for i in range(h) for j in range(w)]
        torch.testing.assert_close(walk.residuals[k], torch.stack(vectors), atol=1e-5, rtol=1e-5)
        left = f - canvases[k]
    assert len(walk.canvases) == len(walk.residuals) == len(quantizer.scales)


@torch.no_grad()
def test_a_picture_painted_with_fewer_scales_has_their_canvas(quantizer: MultiScaleQuantizer) -> None:
    """Exactly, each picture with its own number; its tokens and residuals are those of all scales."""
    f, count = features_for(quantizer), len(quantizer.scales)
    whole = quantizer(f)
    for through in itertools.product(range(1, count + 1), repeat=3):
        walk = quantizer(f, torch.tensor(through))
        for k in range(count):
            expected = torch.stack([whole.canvases[min(k, n - 1)][b] for b, n in enumerate(through)])
            assert torch.equal(walk.canvases[k], expected)
        assert torch.equal(walk.tokens, whole.tokens)
        assert all(torch.equal(a, b) for a, b in zip(walk.residuals, whole.residuals, strict=True))


@torch.no_grad()
def test_it_is_what_decode_shows_through_as_many(tokenizer: MultiScaleVQVAE, images: Tensor) -> None:
    """Four pictures painted with 1, 2, 3 and 4 scales, and `decode(through=n)` of their tokens."""
    walk = tokenizer.quantizer(tokenizer.features(images), torch.tensor([1, 2, 3, 4]))
    painted = tokenizer.paint(walk.canvases[-1])
    for b, n in enumerate((1, 2, 3, 4)):
        shown = tokenizer.decode(walk.tokens[b : b + 1], through=n)[0]
        torch.testing.assert_close(painted[b], shown, atol=1e-5, rtol=0)


def test_what_is_not_painted_moves_no_code(make_tokenizer: Make) -> None:
    """Painted with the first scale only, all canvases are the first, and the gradient of the codes is its own."""
    quantizer = make_tokenizer().quantizer
    f, codes = features_for(quantizer), quantizer.codebook.weight
    (moved,) = torch.autograd.grad(codebook_loss(quantizer(f, torch.ones(3, dtype=torch.int64)).canvases, f), codes)
    (alone,) = torch.autograd.grad(codebook_loss(quantizer(f).canvases[:1], f), codes)
    torch.testing.assert_close(moved, alone)
    assert moved.any(dim=1).sum() <= 3


OTHERS = [Scales([1, 4]), Scales([2, 3, 4]), Scales([4]), Scales([1, 2, 3, 4]), Scales([1, (1, 2), 2, 3, (3, 4), 4])]


@pytest.mark.parametrize("scales", OTHERS, ids=str)
@torch.no_grad()
def test_other_scales_are_walked_as_by_a_model_of_them(make_tokenizer: Make, scales: Scales) -> None:
    """With the same weights, bit for bit; the weights are shared, and the one that was asked stays as it is."""
    quantizer, theirs = make_tokenizer().quantizer, make_tokenizer(scales=scales).quantizer
    own = (quantizer.scales, list(quantizer.phi_of))
    state = quantizer.state_dict()
    theirs.load_state_dict({name: tensor for name, tensor in state.items() if name != "hits_KV"}, strict=False)
    rescaled, f = quantizer.rescaled(scales), features_for(quantizer)
    for ours, other in zip(rescaled(f)[:3], theirs(f)[:3], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, other, strict=True))
    shared = zip(rescaled.parameters(), quantizer.parameters(), strict=True)
    assert all(mine is yours for mine, yours in shared)
    assert (quantizer.scales, quantizer.phi_of) == own
    assert len(rescaled(f).canvases) == len(scales)


def test_other_scales_without_phis_have_none(make_tokenizer: Make) -> None:
    """What is painted is the codes, brought to size."""
    quantizer = make_tokenizer(phi_count=0).quantizer.rescaled(Scales([2, 4]))
    assert quantizer.phi_of == []
    codes = torch.randn(2, 8, 2, 2)
    assert torch.equal(quantizer.contribution(codes, 0), F.interpolate(codes, (4, 4), mode="bicubic"))


def test_a_blank_canvas_is_like_the_codebook(make_tokenizer: Make) -> None:
    """In dtype and device, (B, C, H, W) zeros."""
    tokenizer = make_tokenizer(scales=Scales([1, (2, 4)]))
    blank = tokenizer.quantizer.double().blank(3)
    assert (blank.shape, blank.dtype) == ((3, 8, 2, 4), torch.float64)
    assert not blank.any()
    assert MultiScaleVQVAE(tokenizer.config, seed=None).quantizer.blank(3).is_meta


def test_scales_that_end_elsewhere_are_refused(tokenizer: MultiScaleVQVAE) -> None:
    """The canvas has one size."""
    with pytest.raises(InputError, match=r"^scales: expected the last to be \(4, 4\), got \(3, 3\)$"):
        tokenizer.quantizer.rescaled(Scales([1, 2, 3]))


def test_residuals_are_differentiable_in_the_features_alone(quantizer: MultiScaleQuantizer) -> None:
    """The gradient is that of pooling, as what earlier scales took away counts as given; none reaches the codes."""
    f = features_for(quantizer).requires_grad_()
    generator = torch.Generator().manual_seed(1)
    residuals = quantizer(f).residuals
    weights = [torch.randn(z.shape, generator=generator) for z in residuals]
    total = sum((z * w).sum() for z, w in zip(residuals, weights, strict=True))
    to_f, to_codes = torch.autograd.grad(total, [f, quantizer.codebook.weight], allow_unused=True)
    pooled = sum(
        (F.adaptive_avg_pool2d(f, size) * w.view(3, *size, 8).movedim(-1, 1)).sum()
        for size, w in zip(quantizer.scales, weights, strict=True)
    )
    torch.testing.assert_close(to_f, torch.autograd.grad(pooled, f)[0], atol=1e-6, rtol=1e-5)
    assert to_codes is None


def test_training_forward_agrees_with_encoding(quantizer: MultiScaleQuantizer) -> None:
    """Same tokens; the value of the straight-through f_hat is the last canvas."""
    f = features_for(quantizer)
    walk = quantizer(f)
    *_, last = quantizer.canvases(walk.tokens)
    assert torch.equal(walk.tokens, quantizer.encode(f))
    torch.testing.assert_close(walk.f_hat(f), last, atol=1e-5, rtol=1e-5)


def test_gradient_goes_straight_through_to_the_features(quantizer: MultiScaleQuantizer) -> None:
    """The gradient of f_hat is the gradient of f, exactly, and none reaches the codebook that way."""
    f = features_for(quantizer).requires_grad_()
    weights = torch.randn(f.shape, generator=torch.Generator().manual_seed(1))
    (quantizer(f).f_hat(f) * weights).sum().backward()
    assert torch.equal(f.grad, weights)
    assert quantizer.codebook.weight.grad is None


def test_commitment_pulls_the_features_and_the_other_term_pulls_the_codes(quantizer: MultiScaleQuantizer) -> None:
    """Gradient of commitment to f is the mean of 2 (f - f_hat_k) / n, none to the codes; the other's is the reverse."""
    f = features_for(quantizer).requires_grad_()
    codebook = quantizer.codebook.weight
    _, _, canvases = algorithm_1(quantizer, f.detach())
    expected = sum(2 * (f.detach() - canvas) / f.numel() for canvas in canvases) / len(canvases)
    to_f, to_codes = torch.autograd.grad(commitment_loss(quantizer(f).canvases, f), [f, codebook], allow_unused=True)
    torch.testing.assert_close(to_f, expected, atol=1e-7, rtol=1e-5)
    assert to_codes is None
    to_f, to_codes = torch.autograd.grad(codebook_loss(quantizer(f).canvases, f), [f, codebook], allow_unused=True)
    assert to_f is None
    assert to_codes.abs().max() > 1e-5


def test_codes_learn_from_what_they_paint(make_tokenizer: Make) -> None:
    """Without phi and with one scale: 2 (e_v - z) / n, summed over the cells that chose code v."""
    quantizer = make_tokenizer(phi_count=0, scales=Scales([4])).quantizer
    f = features_for(quantizer)
    walk = quantizer(f)
    (moved,) = torch.autograd.grad(codebook_loss(walk.canvases, f), quantizer.codebook.weight)
    expected = torch.zeros(64, 8)
    for z, v in zip(walk.residuals[0], walk.tokens.flatten().tolist(), strict=True):
        expected[v] += 2 * (quantizer.codebook.weight[v].detach() - z) / f.numel()
    torch.testing.assert_close(moved, expected, atol=1e-7, rtol=1e-5)


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


@pytest.mark.parametrize("rows", [1, 64, 199, 200])
def test_many_vectors_are_compared_in_parts(make_tokenizer: Make, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each still finds its code."""
    quantizer = make_tokenizer().quantizer
    vectors = torch.randn(200, 8, generator=torch.Generator().manual_seed(2))
    whole = quantizer.nearest(vectors)
    monkeypatch.setattr("nextscale.tokenizer.codes.ROWS", rows)
    assert torch.equal(quantizer.nearest(vectors), whole)


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
        assert all(canvas.dtype == torch.float32 for canvas in again.canvases)
    for ours, theirs in zip(again[:3], trained[:3], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("phis", "expected"),
    [
        (1, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (2, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]),
        # ticks 3/36, 13/36, 23/36, 33/36: scales 2 and 7 of 0 .. 9 lie halfway, and rounding decides as in the release
        (4, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
        (5, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
        # ticks 1/16, 3/16, ..: 1/9 is nearer to the first, 8/9 to the last
        (8, [0, 0, 1, 2, 3, 4, 5, 6, 7, 7]),
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


@pytest.mark.parametrize(
    "tokens",
    [
        torch.tensor([[0, 63, 5]]),
        torch.full((2, 3), 63),
        torch.zeros(4, 3, dtype=torch.int64),
        torch.zeros(0, 3).long(),
    ],
    ids=["both ends", "the last code", "the first code", "none"],
)
def test_tokens_of_the_codebook_are_taken(tokens: Tensor) -> None:
    """Also where nothing is known but the shape."""
    check_tokens(tokens, 3, 64)
    check_tokens(tokens.to("meta"), 3, 64)


@pytest.mark.parametrize(
    ("tokens", "got"),
    [
        (torch.zeros(2, 4).long(), r"shape \(batch, 3\) int64, got \(2, 4\) torch.int64"),
        (torch.zeros(3).long(), r"shape \(batch, 3\) int64, got \(3,\) torch.int64"),
        (torch.zeros(2, 3, 1).long(), r"shape \(batch, 3\) int64, got \(2, 3, 1\) torch.int64"),
        (torch.zeros(2, 3).int(), r"shape \(batch, 3\) int64, got \(2, 3\) torch.int32"),
        (torch.tensor([[0, 64, 5]]), r"values in 0 .. 63, got 0 .. 64"),
        (torch.tensor([[-1, 63, 5]]), r"values in 0 .. 63, got -1 .. 63"),
    ],
)
def test_tokens_of_another_shape_kind_or_codebook_are_refused(tokens: Tensor, got: str) -> None:
    """Any one of them is enough."""
    with pytest.raises(InputError, match=rf"^tokens: expected {got}$"):
        check_tokens(tokens, 3, 64)
