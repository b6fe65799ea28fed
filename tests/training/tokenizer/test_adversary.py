"""Laws of the adversary: it learns to tell, it tells without learning, and it is all in its state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from training import toy as toys

from nextscale.training import losses
from nextscale.training.recipes import Adversarial, Recipe, changed
from nextscale.training.tokenizer.adversary import MEMORY, Adversary, Pair, draws
from nextscale.training.tokenizer.discriminators import diffaug, make

KINDS = ["patch", "features"]
RECIPE = Recipe(
    batch=8, learning_rate=1.0, betas=(0.0, 0.0), weight_decay=0.0, warmup_steps=50, final_rate=0.0, clip=9.0
)


def made(kind: str, *settings: str, parts: int = 1) -> Adversary:
    discriminator = make(kind, 8, toys.Tiny(), torch.Generator().manual_seed(0))
    recipe = changed(Adversarial(discriminator="patch", learning_rate=2e-3), settings)
    return Adversary(discriminator, recipe, changed(RECIPE, [f"accumulate={parts}"]), torch.float32)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pair(count: int = 8, seed: int = 0) -> Pair:
    """Real pictures are lighter on the left, painted ones on the right."""
    ramp = torch.linspace(1, -1, 8).expand(count, 3, 8, 8)
    images, painted = noise(2, count, 3, 8, 8, seed=seed).mul(0.3).unbind()
    return Pair(images + ramp, painted - ramp, draws(count, torch.Generator().manual_seed(seed)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_to_tell_pictures_that_can_be_told_apart(kind: str) -> None:
    """Through DiffAug: forty steps take a third of its loss, and it is right of three patches in four."""
    adversary = made(kind)
    figures = [adversary.update([pair(seed=step)], step, None).figures for step in range(40)]
    assert figures[-1]["discriminator_loss"] < 0.67 * figures[0]["discriminator_loss"]
    assert figures[-1]["discriminator_accuracy"] > 0.75
    assert figures[-1]["discriminator_real"] > 0 > figures[-1]["discriminator_painted"]


@pytest.mark.parametrize("kind", KINDS)
def test_its_loss_is_hinge_plus_lecam_of_what_diffaug_shows(kind: str) -> None:
    """Computed here, with the same changes to a picture and to what was painted of it."""
    adversary, seen = made(kind, "lecam=0.5", "augment=0.7"), pair()
    adversary.means.copy_(torch.tensor([0.3, -0.2]))
    twin = copy.deepcopy(adversary.discriminator)
    both = torch.cat([diffaug(images, seen.draws, 0.7) for images in (seen.images, seen.painted)])
    real, fake = twin(both).detach().chunk(2)
    figures = adversary.update([seen], 0, None).figures
    held = losses.lecam(real, fake, real_mean=torch.tensor(0.3), fake_mean=torch.tensor(-0.2))
    expected = losses.hinge_discriminator(real, fake) + 0.5 * held
    assert figures["discriminator_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert figures["discriminator_real"] == pytest.approx(real.mean().item(), abs=1e-6)
    means = torch.lerp(torch.tensor([0.3, -0.2]), torch.stack([real.mean(), fake.mean()]), 1 - MEMORY)
    torch.testing.assert_close(adversary.means, means)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_its_term_is_minus_the_mean_logit_and_teaches_it_nothing(kind: str) -> None:
    """The gradient goes to the painted pictures; the discriminator has none and learns on afterwards."""
    adversary, seen = made(kind), pair()
    twin = copy.deepcopy(adversary.discriminator)
    painted, plain = (seen.painted.clone().requires_grad_() for _ in range(2))
    term = adversary.term(seen._replace(painted=painted))
    expected = -twin(diffaug(plain, seen.draws, 1.0)).mean()
    torch.testing.assert_close(term, expected)
    term.backward()
    expected.backward()
    torch.testing.assert_close(painted.grad, plain.grad)
    assert all(p.grad is None and p.requires_grad for p in adversary.discriminator.parameters())


def test_its_step_teaches_the_painter_nothing() -> None:
    """What was painted is taken as it is."""
    seen = pair()
    painted = seen.painted.clone().requires_grad_()
    made("patch").update([seen._replace(painted=painted)], 0, None)
    assert painted.grad is None


def test_parts_of_its_step_are_one_step() -> None:
    """Loss and weights to rounding; the rate is its own and stays, whatever the autoencoder's does."""
    whole, cut, seen = made("patch"), made("patch", parts=4), pair()
    pieces = [Pair(*(tensor[i : i + 2] for tensor in seen)) for i in range(0, 8, 2)]
    ours, theirs = cut.update(pieces, 7, 100).figures, whole.update([seen], 7, 100).figures
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert ours["discriminator_learning_rate"] == 2e-3
    for mine, yours in zip(cut.discriminator.parameters(), whole.discriminator.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-3, atol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    """Neither weights nor the running means."""
    adversary, seen = made("patch"), pair()
    adversary.update([seen], 0, None)
    before = toys.flat(copy.deepcopy(adversary.state_dict()))
    outcome = adversary.update([seen._replace(painted=seen.painted * float("nan"))], 1, None)
    assert not outcome.finite
    assert toys.flat(adversary.state_dict()) == before


@pytest.mark.parametrize("kind", KINDS)
def test_its_state_is_all_there_is_to_it(kind: str) -> None:
    """One made anew from it goes on bit for bit: weights, spectral norms, moments, running means."""
    adversary, again = made(kind), made(kind)
    for step in range(3):
        adversary.update([pair(seed=step)], step, None)
    again.load_state_dict(copy.deepcopy(adversary.state_dict()))
    for one in (adversary, again):
        one.update([pair(seed=9)], 3, None)
    assert toys.flat(again.state_dict()) == toys.flat(adversary.state_dict())
    assert torch.equal(again.term(pair()), adversary.term(pair()))


def test_the_network_looked_through_is_not_in_its_state() -> None:
    """A checkpoint holds what changes."""
    names = toys.flat(made("features").state_dict())
    assert not any("network" in name or "fine" in name for name in names)
