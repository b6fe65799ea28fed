"""Laws of a tokenizer at other scales: the same weights, other sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nextscale import InputError, MultiScaleVQVAE, Scales
from nextscale.tokenizer.rescaled import rescaled


@torch.no_grad()
@pytest.mark.parametrize("scales", [Scales([1, 2, 3, 4, 6, 8]), Scales([1, (2, 3), (4, 6)]), Scales([(3, 5)])], ids=str)
def test_pictures_of_another_size_go_through(tokenizer: MultiScaleVQVAE, tmp_path: Path, scales: Scales) -> None:
    """To tokens and back, also from a file; convnet and codebook are the ones there were."""
    new = rescaled(tokenizer, scales)
    height, width = new.config.height, new.config.width
    assert (height, width) == (scales.height * 2, scales.width * 2)
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(5)) * 2 - 1
    tokens = new.encode(images)
    assert tokens.shape == (2, scales.total)
    assert new.decode(tokens).shape == images.shape
    new.save(tmp_path)
    assert torch.equal(MultiScaleVQVAE.load(tmp_path).encode(images), tokens)
    old = tokenizer.state_dict()
    for name, tensor in new.state_dict().items():
        assert "hits" in name or torch.equal(tensor, old[name])


@torch.no_grad()
def test_the_last_scale_alone_is_what_it_was(make_tokenizer: Callable[..., MultiScaleVQVAE], images: Tensor) -> None:
    """With one phi for all, a walk of one scale quantizes the features as every walk that ends there begins to."""
    tokenizer = make_tokenizer(phi_sharing="all", phi_count=1)
    single, twice = rescaled(tokenizer, Scales([4])), rescaled(tokenizer, Scales([4, 4]))
    assert torch.equal(single.encode(images), twice.encode(images)[:, :16])


def test_the_same_scales_give_a_copy_bit_for_bit(tokenizer: MultiScaleVQVAE) -> None:
    """Counts included; nothing is shared."""
    copy = rescaled(tokenizer, tokenizer.config.scales)
    assert copy.config == tokenizer.config
    for (name, old), new in zip(tokenizer.state_dict().items(), copy.state_dict().values(), strict=True):
        assert torch.equal(old, new), name
        assert old.data_ptr() != new.data_ptr(), name


def test_a_phi_a_scale_fits_no_other_number_of_scales(make_tokenizer: Callable[..., MultiScaleVQVAE]) -> None:
    """Which of them a new scale should use nobody has trained."""
    tokenizer = make_tokenizer(phi_sharing="none")
    assert rescaled(tokenizer, Scales([1, 2, 4, 8])).config.height == 16
    with pytest.raises(InputError, match="phi_count: 4 does not go with sharing 'none' and 3 scales"):
        rescaled(tokenizer, Scales([1, 2, 4]))
