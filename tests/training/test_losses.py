"""Laws of losses and figures of merit: known answers, and plain computations to agree with."""

from __future__ import annotations

import math

import pytest
import torch

from nextscale.training.losses import cross_entropy, psnr, reconstruction, unigram_entropy


def test_reconstruction_of_a_constant_error() -> None:
    """Off by 0.5 everywhere: 0.25 + 0.2 * 0.5."""
    images = torch.zeros(2, 3, 4, 4)
    assert reconstruction(images + 0.5, images).item() == pytest.approx(0.35)
    assert reconstruction(images, images).item() == 0


@pytest.mark.parametrize(("error", "decibels"), [(2.0, 0.0), (0.2, 20.0), (0.02, 40.0)])
def test_psnr_of_a_constant_error(error: float, decibels: float) -> None:
    """The peak is 2, because pictures lie in [-1, 1]."""
    images = torch.full((1, 3, 5, 7), -1.0)
    assert psnr(images + error, images).item() == pytest.approx(decibels, abs=1e-3)


def test_psnr_is_each_picture_s_own() -> None:
    """A picture's figure does not change with the others of its batch; an exact copy is finite."""
    generator = torch.Generator().manual_seed(0)
    images, painted = torch.rand(2, 4, 3, 6, 6, generator=generator)
    painted[0] = images[0]
    together = psnr(painted, images)
    assert together.shape == (4,)
    alone = torch.cat([psnr(painted[i : i + 1], images[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)
    assert math.isfinite(together[0])
    assert together[0] > 100 > together[1:].max()


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


def test_unigram_entropy_of_known_positions() -> None:
    """Always the same: 0. Two codes, half each: ln 2. Four codes: ln 4. Three to one: 0.5623."""
    tokens = torch.tensor([[7, 0, 0, 1], [7, 1, 1, 1], [7, 0, 2, 1], [7, 1, 3, 0]])
    three_to_one = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    torch.testing.assert_close(
        unigram_entropy(tokens, 8), torch.tensor([0, math.log(2), math.log(4), three_to_one], dtype=torch.float64)
    )
