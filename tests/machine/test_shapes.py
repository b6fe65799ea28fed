"""Laws of modules made of shapes alone."""

from __future__ import annotations

import torch
from torch import nn

from nextscale.machine.shapes import shapes_alone


def test_shapes_are_those_of_modules_that_are_there() -> None:
    """Names, shapes and dtypes; the dtype is torch's default."""
    with shapes_alone():
        shapes = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2), nn.Embedding(5, 3, padding_idx=1))
    real = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2), nn.Embedding(5, 3, padding_idx=1))
    assert all(tensor.is_meta for tensor in shapes.state_dict().values())
    for name, tensor in real.state_dict().items():
        there = shapes.state_dict()[name]
        assert (there.shape, there.dtype) == (tensor.shape, tensor.dtype)


def test_nothing_is_drawn() -> None:
    """The caller's stream of random numbers is where it was."""
    before = torch.get_rng_state()
    with shapes_alone():
        nn.Embedding(5, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_modules_made_afterwards_are_initialised() -> None:
    """The context ends where it ends."""
    with shapes_alone():
        pass
    made = nn.Embedding(500, 3).weight
    assert not made.is_meta
    assert 0.5 < float(made.detach().std()) < 1.5
