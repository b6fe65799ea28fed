"""Laws of discriminators and of DiffAug: what they see, whose weights they are, and that random numbers come in."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from training.toy import Tiny

from nextscale.training.tokenizer.discriminators import (
    DRAWS,
    PatchDiscriminator,
    diffaug,
    make,
    recoloured,
    shifted,
    spot,
)


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, side: int) -> Tensor:
    return torch.rand(count, 3, side, side, generator=numbers(side)) * 2 - 1


def made(kind: str, side: int = 32, *, seed: int = 0) -> nn.Module:
    return make(kind, side, Tiny(), numbers(seed))


BOTH = pytest.mark.parametrize("kind", ["patch", "features"])


# ---- both ------------------------------------------------------------------------------------------------------------


@BOTH
def test_a_picture_is_judged_by_itself(kind: str) -> None:
    """Its logits do not depend on its neighbours, nor on how a batch is cut."""
    discriminator, seen = made(kind), pictures(5, 32)
    for _ in range(10):
        discriminator(seen)  # until spectral norms are found
    together = discriminator.eval()(seen)
    alone = torch.cat([discriminator(picture[None]) for picture in seen])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.std(dim=0).max() > 1e-3


@BOTH
def test_a_discriminator_comes_from_its_generator_alone(kind: str, untouched) -> None:
    """Its whole state, spectral norms too; torch's own random numbers are neither asked nor changed."""
    with untouched():
        first, other = made(kind, seed=1).state_dict(), made(kind, seed=2).state_dict()
    torch.rand(10)
    again = made(kind, seed=1).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in first.items())


@BOTH
def test_weights_are_small_and_biases_zero(kind: str) -> None:
    """Normal with standard deviation 0.02; gains of norms are 1."""
    for name, parameter in made(kind).named_parameters():
        if parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.3)
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all()


@BOTH
def test_the_gradient_reaches_every_pixel_and_every_weight(kind: str) -> None:
    """Or the autoencoder would hear nothing of some, and some would be there for nothing."""
    discriminator, seen = made(kind), pictures(2, 32).requires_grad_()
    discriminator(seen).square().sum().backward()
    assert seen.grad.abs().sum(dim=1).all()
    assert all(parameter.grad.any() for parameter in discriminator.parameters())


# ---- patches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "cells"), [(8, 2), (32, 14), (64, 14), (128, 14), (256, 30), (96, 22)])
def test_patches_tile_the_picture(side: int, cells: int) -> None:
    """The strides are 2 up to 32 px, 4 for 64, 8 from 128 on; two unpadded cells are lost at the borders."""
    assert made("patch", side)(pictures(1, side)).shape == (1, 1, cells, cells)


@pytest.mark.parametrize(("side", "wide"), [(32, 16), (64, 34), (128, 70), (256, 70)])
def test_a_patch_is_as_wide_as_it_says(side: int, wide: int) -> None:
    """Seen by the gradient of a logit in the middle, of the convolutions alone: the norms look at the whole picture."""
    discriminator, seen = PatchDiscriminator(side), pictures(1, side).requires_grad_()
    convolutions = nn.Sequential(*(layer for layer in discriminator.layers if not isinstance(layer, nn.GroupNorm)))
    logits = convolutions(seen)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    rows = seen.grad[0].abs().sum(dim=(0, 2)).nonzero().flatten()
    assert int(rows.max() - rows.min()) + 1 == wide


def test_rectangles_are_judged_too() -> None:
    """Cells in both directions."""
    assert made("patch", 32)(torch.zeros(2, 3, 32, 48)).shape == (2, 1, 14, 22)


# ---- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [8, 32, 64, 128])
def test_every_cell_of_every_map_is_judged(side: int) -> None:
    """Smaller pictures are enlarged to 96 px before the network looks at them."""
    maps = Tiny().maps(pictures(1, side), 96)
    cells = sum(map_.shape[2] * map_.shape[3] for map_ in maps)
    assert made("features")(pictures(2, side)).shape == (2, cells)


def test_the_network_looked_through_is_not_the_discriminator_s() -> None:
    """Neither in its state nor among its parameters, and no step changes it."""
    network = Tiny()
    discriminator = make("features", 32, network, numbers())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    theirs = {id(tensor) for tensor in network.parameters()}
    assert not theirs & {id(parameter) for parameter in discriminator.parameters()}
    assert all(name.startswith("heads.") for name in discriminator.state_dict())
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=1.0)
    discriminator(pictures(2, 32)).sum().backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_heads_cannot_stretch_what_they_see() -> None:
    """Spectral norms: no convolution lengthens anything by more than its taps, however large its weights are."""
    discriminator = made("features")
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.mul_(100)
    for _ in range(20):
        discriminator(pictures(2, 32))
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d):
            assert torch.linalg.matrix_norm(module.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


# ---- DiffAug ---------------------------------------------------------------------------------------------------------


def test_diffaug_of_probability_0_changes_nothing() -> None:
    """Bit for bit."""
    seen = pictures(6, 32)
    assert torch.equal(diffaug(seen, torch.rand(6, DRAWS, generator=numbers()), 0.0), seen)


def test_draws_alone_decide_what_diffaug_does(untouched) -> None:
    """Each picture by its own row, whatever its neighbours; torch's random numbers are not asked."""
    seen, draws = pictures(6, 32), torch.rand(6, DRAWS, generator=numbers())
    with untouched():
        changed = diffaug(seen, draws, 1.0)
    alone = torch.cat([diffaug(seen[i : i + 1], draws[i : i + 1], 1.0) for i in range(6)])
    torch.testing.assert_close(changed, alone)
    same = diffaug(seen[:1].expand(6, -1, -1, -1), draws, 1.0)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(same, 2))


def test_each_change_comes_with_its_probability() -> None:
    """The first three numbers say which: all eight combinations, against the changes one by one."""
    seen = pictures(8, 32)
    draws = torch.rand(8, DRAWS, generator=numbers())
    draws[:, :3] = torch.tensor(list(itertools.product((0.29, 0.31), repeat=3)))
    changed = diffaug(seen, draws, 0.3)
    for i, (colours, shift, hole) in enumerate(itertools.product((True, False), repeat=3)):
        x, row = seen[i : i + 1], draws[i : i + 1].T
        x = recoloured(x, row[3], row[4], row[5]) if colours else x
        x = shifted(x, row[6], row[7]) if shift else x
        x = x * (1 - spot(x, row[8], row[9])) if hole else x
        torch.testing.assert_close(changed[i : i + 1], x)


def test_diffaug_is_differentiable_in_the_pictures() -> None:
    """To numerical differences."""
    seen = pictures(2, 8).double().requires_grad_()
    draws = torch.rand(2, DRAWS, generator=numbers(), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: diffaug(x, draws, 1.0), seen)


def test_colours_are_changed_by_known_amounts() -> None:
    """Brightness by the draw less a half, saturation about grey to twice the draw, contrast about the middle to it and
    a half; draws of 0.5 change nothing."""
    seen = pictures(1, 8)

    def by(brightness: float, saturation: float, contrast: float) -> Tensor:
        return recoloured(seen, *(torch.tensor([draw]) for draw in (brightness, saturation, contrast)))

    grey = seen.mean(dim=1, keepdim=True)
    torch.testing.assert_close(by(0.5, 0.5, 0.5), seen)
    torch.testing.assert_close(by(0.9, 0.5, 0.5), seen + 0.4)
    torch.testing.assert_close(by(0.5, 0.0, 0.5), grey.expand_as(seen))
    torch.testing.assert_close(by(0.5, 0.75, 0.5), grey + 1.5 * (seen - grey))
    torch.testing.assert_close(by(0.5, 0.5, 0.0), seen.mean() + 0.5 * (seen - seen.mean()))


@pytest.mark.parametrize(("draw", "by"), [(0.0, -4), (0.5, 0), (0.999, 4), (5.5 / 9, 1)])
def test_shifts_go_up_to_an_eighth_of_the_side(draw: float, by: int) -> None:
    """32 px: nine places from 4 up to 4 down, the same to the left and right; zeros move in."""
    seen, still = pictures(1, 32), torch.tensor([0.5])
    expected = torch.zeros(1, 3, 32, 32)
    source, target = slice(max(-by, 0), 32 - max(by, 0)), slice(max(by, 0), 32 - max(-by, 0))
    expected[:, :, target] = seen[:, :, source]
    assert torch.equal(shifted(seen, torch.tensor([draw]), still), expected)
    assert torch.equal(shifted(seen.mT, still, torch.tensor([draw])), expected.mT)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 32)])
def test_a_hole_is_half_as_high_and_as_wide_as_the_picture(height: int, width: int) -> None:
    """Around the middle that was drawn; less of it where that is near a border."""
    x = torch.zeros(3, 3, height, width)
    hole = spot(x, torch.tensor([0.5, 0.0, 0.5]), torch.tensor([0.5, 0.5, 0.999]))
    assert hole.shape == (3, 1, height, width)
    assert set(hole.unique().tolist()) == {0.0, 1.0}
    assert hole.sum(dim=(1, 2, 3)).tolist() == [
        height * width / 4,
        height * width / 8,
        pytest.approx(height * width / 8),
    ]
    top, left = height // 4, width // 4
    assert hole[0, 0, top : top + height // 2, left : left + width // 2].all()
