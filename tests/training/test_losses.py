"""Laws of losses and figures of merit: known answers, and plain computations to agree with."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import digits as numbers
from nextscale.training.losses import (
    adaptive_weight,
    choice_entropy,
    chunked_cross_entropy,
    cross_entropy,
    hinge_discriminator,
    hinge_generator,
    l1,
    l2,
    lecam,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# ---- pixels ----------------------------------------------------------------------------------------------------------


def test_errors_of_pixels_are_means_over_all_of_them() -> None:
    """Against a loop over numbers."""
    painted, images = drawn(2, 2, 3, 4, 5)
    apart = [a - b for a, b in zip(painted.flatten().tolist(), images.flatten().tolist(), strict=True)]
    assert l2(painted, images).item() == pytest.approx(mean([x * x for x in apart]))
    assert l1(painted, images).item() == pytest.approx(mean([abs(x) for x in apart]))
    assert l2(images, images).item() == l1(images, images).item() == 0


# ---- the choice of codes ---------------------------------------------------------------------------------------------


def test_choice_entropy_is_what_it_says() -> None:
    """Against loops: softmax of -distance^2 / (temperature * mean distance^2), its entropies one by one."""
    z, e = drawn(5, 3), drawn(4, 3, seed=1)
    distances = [[float((vector - code).square().sum()) for code in e] for vector in z]
    scale = 0.3 * mean([d for row in distances for d in row])
    shares = []
    for row in distances:
        weights = [math.exp(-d / scale) for d in row]
        shares.append([weight / sum(weights) for weight in weights])
    unsure = mean([-sum(p * math.log(p) for p in row) for row in shares])
    even = [mean([row[v] for row in shares]) for v in range(4)]
    expected = unsure + sum(p * math.log(p) for p in even)
    assert choice_entropy(z, e, temperature=0.3).item() == pytest.approx(expected, rel=1e-4)


def test_choice_entropy_is_low_for_sure_and_even_choices() -> None:
    """-ln V where each code has its own residuals; more where one has them all, or where all lie between codes."""
    codes = torch.eye(8)
    sure_and_even = choice_entropy(codes.repeat(3, 1), codes).item()
    sure_and_uneven = choice_entropy(codes[:1].repeat(24, 1), codes).item()
    unsure = choice_entropy(torch.full((24, 8), 1 / 8), codes).item()
    assert sure_and_even == pytest.approx(-math.log(8), abs=1e-3)
    assert sure_and_uneven == pytest.approx(0, abs=1e-3)
    assert unsure == pytest.approx(0, abs=1e-3)


def test_choice_entropy_does_not_change_with_the_size_of_the_latent() -> None:
    """Residuals and codes ten times as long are as sure as before."""
    z, e = drawn(20, 3), drawn(6, 3, seed=1)
    assert choice_entropy(10 * z, 10 * e).item() == pytest.approx(choice_entropy(z, e).item(), rel=1e-3)


def test_choice_entropy_draws_residuals_to_codes_and_codes_to_residuals() -> None:
    """Going down its gradient, on either side, lowers it."""
    z, e = drawn(20, 3).requires_grad_(), drawn(6, 3, seed=1).requires_grad_()
    before = choice_entropy(z, e)
    to_z, to_e = torch.autograd.grad(before, [z, e])
    assert choice_entropy(z - 0.1 * to_z, e) < before
    assert choice_entropy(z, e - 0.1 * to_e) < before


def test_choice_entropy_takes_its_temperature_as_given() -> None:
    """The gradient holds temperature * s fixed: along (z, e) it is the slope of longer vectors at that temperature."""
    z, e = drawn(20, 3).requires_grad_(), drawn(6, 3, seed=1).requires_grad_()
    to_z, to_e = torch.autograd.grad(choice_entropy(z, e, temperature=0.5), [z, e])
    along = float((to_z * z).detach().sum() + (to_e * e).detach().sum())
    z, e, step = z.detach().double(), e.detach().double(), 1e-4
    longer, shorter = (choice_entropy(f * z, f * e, temperature=0.5 / f**2) for f in (1 + step, 1 - step))
    assert along == pytest.approx(float(longer - shorter) / (2 * step), rel=1e-3)
    assert abs(along) > 0.01


def test_choice_entropy_has_a_gradient_where_codes_are_out_of_reach() -> None:
    """Their share is 0 in float32, and the logarithm of it must not come into the gradient."""
    z, e = drawn(20, 3).requires_grad_(), torch.cat([drawn(5, 3, seed=1), torch.full((1, 3), 30.0)]).requires_grad_()
    value = choice_entropy(z, e, temperature=0.001)
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, [z, e]))


# ---- adversarial -----------------------------------------------------------------------------------------------------


def test_hinge_losses_are_means_of_what_lies_within_the_margin() -> None:
    """Against loops; the generator's has no margin."""
    real, fake = (2 * drawn(2, 50)).unbind()
    within = [max(0.0, 1 - x) for x in real.tolist()], [max(0.0, 1 + x) for x in fake.tolist()]
    assert hinge_discriminator(real, fake).item() == pytest.approx((mean(within[0]) + mean(within[1])) / 2)
    assert hinge_generator(fake).item() == pytest.approx(-mean(fake.tolist()), abs=1e-6)


def test_a_discriminator_beyond_the_margin_is_content() -> None:
    """Loss 0 and no gradient from there on; 1 where it knows nothing."""
    real, fake = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([-1.0, -7.0], requires_grad=True)
    loss = hinge_discriminator(real, fake)
    loss.backward()
    assert loss.item() == 0
    assert not real.grad.any()
    assert not fake.grad.any()
    assert hinge_discriminator(torch.zeros(3), torch.zeros(3)).item() == 1


def test_lecam_holds_each_side_to_the_running_mean_of_the_other() -> None:
    """Against loops; nothing is left of it where real ones are below the fakes' mean and fakes above the real ones'."""
    real, fake = (2 * drawn(2, 50)).unbind()
    means = {"real_mean": torch.tensor(0.7), "fake_mean": torch.tensor(-0.4)}
    expected = mean([max(0.0, x + 0.4) ** 2 for x in real.tolist()]) + mean(
        [max(0.0, 0.7 - x) ** 2 for x in fake.tolist()]
    )
    assert lecam(real, fake, **means).item() == pytest.approx(expected, rel=1e-5)
    assert lecam(torch.full((3,), -1.0), torch.full((3,), 2.0), **means).item() == 0


@pytest.mark.parametrize(
    ("of_adversary", "expected"),
    [
        ([3.0, 4.0], 2.0),  # lengths 10 and 5
        ([0.0, 0.5], 20.0),
        ([0.0, 0.0], 100.0),  # it has vanished: held at the upper bound
        ([0.0, 1e-9], 100.0),
        ([300.0, 400.0], 0.5),  # it outweighs: held at the lower bound
        ([0.0, 20.0], 0.5),
    ],
)
def test_adaptive_weight_is_the_ratio_of_lengths_within_its_bounds(of_adversary: list[float], expected: float) -> None:
    """So weighted, the adversary's gradient is as long as that of the reconstruction, (6, 8)."""
    weight = adaptive_weight(torch.tensor([6.0, 8.0]), torch.tensor(of_adversary), (0.5, 100.0))
    assert weight.item() == pytest.approx(expected, rel=1e-5)


def test_adaptive_weight_is_a_number_and_no_way_for_gradients() -> None:
    """However the lengths came about, and whatever the shape."""
    ours, theirs = drawn(2, 3, 4, 3, 3).requires_grad_().unbind()
    assert not adaptive_weight(ours, theirs, (0.0, 1e4)).requires_grad


# ---- tokens ----------------------------------------------------------------------------------------------------------


def test_cross_entropy_is_minus_the_logarithm_of_the_share() -> None:
    """Computed by hand from exp(logits), in any dtype of the logits."""
    generator = torch.Generator().manual_seed(0)
    logits, tokens = torch.randn(2, 5, 7, generator=generator), torch.randint(7, (2, 5), generator=generator)
    shares = logits.double().exp() / logits.double().exp().sum(dim=-1, keepdim=True)
    by_hand = torch.tensor([[-math.log(shares[b, i, tokens[b, i]]) for i in range(5)] for b in range(2)])
    torch.testing.assert_close(cross_entropy(logits, tokens), by_hand)
    assert cross_entropy(logits.bfloat16(), tokens).dtype == torch.float32


def test_equal_logits_cost_the_logarithm_of_the_codes() -> None:
    """ln V, whatever the token."""
    torch.testing.assert_close(
        cross_entropy(torch.ones(1, 3, 64), torch.tensor([[0, 5, 63]])), torch.full((1, 3), math.log(64))
    )


def head(batch: int = 3, positions: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h, weight, bias, tokens, weights of positions: logits of standard deviation 1 or so, 50 codes, width 16."""
    h, weight, bias = drawn(batch, positions, 16), drawn(50, 16, seed=1) / 4, drawn(50, seed=2) / 4
    tokens = torch.randint(50, (batch, positions), generator=torch.Generator().manual_seed(3))
    return h.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), tokens, torch.arange(positions) / 4.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("chunk", [1, 4, 21, 1000, None])
def test_chunked_cross_entropy_is_that_of_all_logits(chunk: int | None, smoothing: float) -> None:
    """Loss, gradients of h, weight and bias, -log p of each token, hits: against torch's own, however it is cut."""
    h, weight, bias, tokens, weights = head()
    logits = F.linear(h, weight, bias)
    of_each = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none", label_smoothing=smoothing)
    expected = ((of_each.view_as(tokens) * weights).sum(dim=1) / weights.sum()).mean()
    loss, loss_BL, hit_BL = chunked_cross_entropy(h, weight, bias, tokens, weights, smoothing=smoothing, chunk=chunk)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss_BL, cross_entropy(logits.detach(), tokens))
    assert torch.equal(hit_BL, logits.argmax(dim=-1) == tokens)
    assert not loss_BL.requires_grad
    ours, theirs = (torch.autograd.grad(3 * value, (h, weight, bias)) for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("groups", [(), (50,), (20, 30)], ids=str)
def test_capped_logits_have_their_own_gradient(groups: tuple[int, ...], smoothing: float) -> None:
    """Of c tanh(logits / c): against torch's own, at a cap that most logits feel; of digits too."""
    h, weight, bias, tokens, weights = head()
    codes = numbers.split(tokens, groups or (50,))
    logits = 1.5 * (F.linear(h, weight, bias) / 1.5).tanh()
    expected = torch.zeros(())
    for part, digit in zip(logits.split([*groups] or [50], dim=-1), codes.unbind(-1), strict=True):
        each = F.cross_entropy(part.flatten(0, 1), digit.flatten(), reduction="none", label_smoothing=smoothing)
        expected = expected + ((each.view_as(tokens) * weights).sum(dim=1) / weights.sum()).mean()
    options = {"smoothing": smoothing, "groups": groups, "chunk": 4}
    loss, loss_BL, _ = chunked_cross_entropy(h, weight, bias, tokens, weights, cap=1.5, **options)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss_BL, cross_entropy(logits.detach(), tokens, groups=groups))
    ours, theirs = (torch.autograd.grad(3 * value, (h, weight, bias)) for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    plain, _, _ = chunked_cross_entropy(h, weight, bias, tokens, weights, **options)
    assert abs(plain.item() - loss.item()) > 0.01


def test_chunked_cross_entropy_survives_logits_of_any_size() -> None:
    """A hundred times larger, where exp() alone would be infinite."""
    h, weight, bias, tokens, _ = head()
    logits = F.linear(100 * h, weight, bias)
    expected = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    loss, _, _ = chunked_cross_entropy(100 * h, weight, bias, tokens, torch.ones(7))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, h), torch.autograd.grad(expected, h), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_chunked_cross_entropy_may_be_in_half_precision(dtype: torch.dtype) -> None:
    """Loss to 1 in 2000, gradients to 1 in 100 of their length and in the masters' float32; autocast is not asked."""
    h, weight, bias, tokens, weights = head(batch=40)
    exact, _, _ = chunked_cross_entropy(h, weight, bias, tokens, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, _, _ = chunked_cross_entropy(h, weight, bias, tokens, weights)
    assert torch.equal(exact, again)
    low, loss_BL, _ = chunked_cross_entropy(h, weight, bias, tokens, weights, dtype=dtype)
    assert low.item() == pytest.approx(exact.item(), rel=5e-4)
    assert loss_BL.dtype == torch.float32
    for ours, theirs in zip(*(torch.autograd.grad(loss, (h, weight, bias)) for loss in (low, exact)), strict=True):
        assert ours.dtype == torch.float32
        assert 0 < (ours - theirs).norm() < 0.01 * theirs.norm()


@torch.no_grad()
def test_chunked_cross_entropy_of_nothing_that_learns_is_the_same() -> None:
    """For validation; a position of weight 0 is left out of the loss but not of the figures."""
    h, weight, bias, tokens, _ = head()
    weights = torch.tensor([1.0, 1, 1, 0, 0, 0, 0])
    loss, loss_BL, _ = chunked_cross_entropy(h, weight, bias, tokens, weights)
    torch.testing.assert_close(loss, loss_BL[:, :3].mean())
    torch.testing.assert_close(loss_BL, cross_entropy(F.linear(h, weight, bias), tokens))


def test_a_second_derivative_of_the_chunked_cross_entropy_is_refused() -> None:
    """Its gradients are made in the forward pass, and know nothing of their own."""
    h, weight, bias = torch.randn(1, 3, 4, requires_grad=True), torch.randn(5, 4), torch.zeros(5)
    loss, *_ = chunked_cross_entropy(h, weight, bias, torch.zeros(1, 3, dtype=torch.int64), torch.ones(3))
    with pytest.raises(RuntimeError, match="^chunked cross-entropy cannot be differentiated twice"):
        torch.autograd.grad(loss, h, create_graph=True)
