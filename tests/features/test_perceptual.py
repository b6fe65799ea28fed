"""Laws of the perceptual distance: what it must order, and where its gradient goes."""

import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nextscale import data, features, images
from nextscale.features import PerceptualDistance


@pytest.fixture(scope="module")
def distance() -> PerceptualDistance:
    return PerceptualDistance(features.load())


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """24 emoji of 64x64 pixels."""
    return data.load("emoji", height=64, width=64).train.batch(list(range(0, 3000, 125)))[0]


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    reach = int(4 * sigma + 1)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).repeat(3, 1, 1, 1)
    padded = F.pad(pictures, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights, groups=3), weights.transpose(2, 3), groups=3)


def noisy(pictures: Tensor, deviation: float) -> Tensor:
    return pictures + deviation * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))


def compressed(pictures: Tensor, quality: float) -> Tensor:
    files = [io.BytesIO() for _ in pictures]
    for file, picture in zip(files, pictures, strict=True):
        images.to_pil(picture).save(file, "JPEG", quality=int(quality))
    return torch.stack([images.from_pil(Image.open(file)) for file in files])


def error(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).mean(dim=1)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("spoil", "strengths"),
    [(blurred, (0.4, 0.8, 1.6)), (noisy, (0.05, 0.15, 0.45)), (compressed, (80, 30, 10))],
    ids=["blur", "noise", "JPEG"],
)
def test_distance_grows_with_the_damage(
    distance: PerceptualDistance,
    pictures: Tensor,
    spoil: Callable[[Tensor, float], Tensor],
    strengths: tuple[float, ...],
) -> None:
    """More blur, more noise and coarser blocks each cost more, in every picture."""
    costs = torch.stack([distance(spoil(pictures, strength), pictures) for strength in strengths])
    assert (costs[0] > 0).all()
    assert (costs.diff(dim=0) > 0).all()


@pytest.mark.slow
@torch.no_grad()
def test_shift_costs_less_than_blur_or_noise_that_is_no_further_in_pixels(
    distance: PerceptualDistance, pictures: Tensor
) -> None:
    """What the eye hardly sees is cheap: a pixel to the side, against damage of at most the same squared error."""
    shifted = F.pad(pictures, (1, 0, 0, 0), mode="replicate")[..., :-1]
    budget = error(shifted, pictures)
    blurs = torch.stack([blurred(pictures, sigma / 4) for sigma in range(1, 16)])
    fitting = torch.stack([error(blur, pictures) <= budget for blur in blurs]).sum(dim=0) - 1
    blur = blurs[fitting, torch.arange(len(pictures))]
    noise = pictures + (noisy(torch.zeros_like(pictures), 1.0) * budget.sqrt().view(-1, 1, 1, 1))
    cost = distance(shifted, pictures)
    assert (cost < distance(blur, pictures)).all()
    assert (cost < distance(noise, pictures)).all()


@torch.no_grad()
def test_picture_is_at_no_distance_from_itself(distance: PerceptualDistance, pictures: Tensor) -> None:
    """And the distance of two is the same both ways, float32, one number a picture."""
    assert torch.equal(distance(pictures, pictures), torch.zeros(len(pictures)))
    there, back = distance(pictures[:3], pictures[3:6]), distance(pictures[3:6], pictures[:3])
    assert there.dtype == torch.float32
    torch.testing.assert_close(there, back)


def test_gradient_goes_to_the_painted_pictures_only(distance: PerceptualDistance, pictures: Tensor) -> None:
    """A step against it lowers the distance; neither originals nor network get one."""
    originals = pictures[:4].clone().requires_grad_()
    painted = blurred(pictures[:4], 1.0).requires_grad_()
    before = distance(painted, originals)
    before.sum().backward()
    assert painted.grad is not None
    assert originals.grad is None
    assert all(parameter.grad is None for parameter in distance.parameters())
    step = 0.1 * painted.grad / painted.grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert (distance(painted - step, originals) < before).all()


def test_gradient_is_finite_where_nothing_is_seen(distance: PerceptualDistance) -> None:
    """A flat picture, and one that equals its original."""
    painted = torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64)]).requires_grad_()
    distance(painted, torch.stack([torch.ones(3, 64, 64)] * 2)).sum().backward()
    assert painted.grad is not None
    assert painted.grad.isfinite().all()
