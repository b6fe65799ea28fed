"""Laws of `Pipeline.edit`: nothing of what is repainted reaches the result, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nextscale import VAR, MultiScaleVQVAE, Pipeline
from nextscale.errors import InputError


@pytest.fixture
def pictures() -> Tensor:
    """Three of 8x8 pixels in [0, 1]."""
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def mask() -> Tensor:
    """A box at the right border."""
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 4:] = True
    return mask


def same(one: Any, other: Any) -> bool:
    """To the bit."""
    return torch.equal(one.images, other.images) and torch.equal(one.tokens, other.tokens)


@pytest.mark.parametrize("more", [{}, {"feather": 1}, {"composite": False}, {"smooth": True}, {"count": 2}])
def test_nothing_of_what_is_repainted_reaches_the_result(
    pipe: Pipeline, pictures: Tensor, mask: Tensor, more: dict[str, Any]
) -> None:
    """Pictures that differ only there have the same result, bit for bit; without `leak_free` they need not."""
    other = torch.where(mask, 1 - pictures, pictures)
    assert same(pipe.edit(pictures, mask, **more), pipe.edit(other, mask, **more))
    leaky = (
        [pipe.edit(each, mask, leak_free=False, composite=False, **more) for each in (pictures, other)]
        if not more
        else []
    )
    assert not leaky or not same(*leaky)


def test_soft_masks_hide_what_they_touch(pipe: Pipeline, pictures: Tensor, mask: Tensor) -> None:
    """Where it is between 0 and 1, the result lies between what is around it and what is painted."""
    soft = mask * torch.linspace(0.1, 1, 8)
    other = torch.where(mask, 1 - pictures, pictures)
    assert same(pipe.edit(pictures, soft), pipe.edit(other, soft))


def test_kept_pixels_come_back_exactly(pipe: Pipeline, pictures: Tensor, mask: Tensor) -> None:
    """And the others are what was painted."""
    pictures = pictures.mul(255).round() / 255 * 0.99  # no floats that survive a way to [-1, 1] and back
    done, raw = pipe.edit(pictures, mask), pipe.edit(pictures, mask, composite=False)
    assert torch.equal(done.images[..., ~mask], pictures[..., ~mask])
    assert torch.equal(done.images[..., mask], raw.images[..., mask])
    assert torch.equal(raw.images, (pipe.tokenizer.decode(raw.tokens) + 1) / 2)


def test_an_empty_mask_returns_the_picture(pipe: Pipeline, pictures: Tensor) -> None:
    """Its tokens are those of the tokenizer."""
    done = pipe.edit(pictures, torch.zeros(8, 8))
    assert torch.equal(done.images, pictures)
    assert torch.equal(done.tokens, pipe.tokenizer.encode(pictures * 2 - 1))


def test_a_full_mask_is_plain_generation(pipe: Pipeline, pictures: Tensor) -> None:
    """With the same classes and seeds; no class when none is given."""
    for mask in (None, torch.ones(8, 8)):
        assert same(pipe.edit(pictures, mask, ["cat", 0, 5], [4, 5, 6]), pipe.generate(["cat", 0, 5], [4, 5, 6]))
    assert same(pipe.edit(pictures), pipe.generate([5, 5, 5]))


def test_a_result_does_not_depend_on_its_batch(pipe: Pipeline, pictures: Tensor, mask: Tensor) -> None:
    """Masks and classes of its own; the same tokens, and the same picture to the rounding of a convolution."""
    masks = torch.stack([mask, mask.T, ~mask])
    together = pipe.edit(pictures, masks, [1, 2, 3], [7, 8, 9])
    for i in range(3):
        alone = pipe.edit(pictures[i], masks[i], [1, 2, 3][i], [[7, 8, 9][i]])
        assert torch.equal(alone.tokens[0], together.tokens[i])
        torch.testing.assert_close(alone.images[0], together.images[i], atol=1e-5, rtol=0)


def test_several_results_of_each_picture_have_seeds_that_count_up(
    pipe: Pipeline, pictures: Tensor, mask: Tensor
) -> None:
    """Those of the first picture come first."""
    several = pipe.edit(pictures[:2], mask, "bee", 3, count=3)
    assert [request.seed for request in several.requests] == [3, 4, 5, 6, 7, 8]
    assert {request.name for request in several.requests} == {"bee"}
    one = pipe.edit(pictures[1], mask, "bee", 7)
    assert torch.equal(several.tokens[4], one.tokens[0])


def test_the_release_s_way_copies_tokens(pipe: Pipeline, pictures: Tensor, mask: Tensor) -> None:
    """Where its mask keeps, and always the coarsest; what is hidden leaks."""
    done = pipe.edit(pictures, mask, leak_free=False, copy=True)
    own = pipe.tokenizer.encode(pictures * 2 - 1)
    kept = torch.nn.functional.max_pool2d(mask[None].float(), 2).flatten() == 0
    assert torch.equal(done.tokens[:, 0], own[:, 0])
    assert torch.equal(done.tokens[:, -16:][:, kept], own[:, -16:][:, kept])
    other = pipe.edit(torch.where(mask, 1 - pictures, pictures), mask, leak_free=False, copy=True)
    assert not torch.equal(done.tokens, other.tokens)


@pytest.mark.parametrize("scales", [1, 2, 4])
def test_kept_scales_make_variations(pipe: Pipeline, pictures: Tensor, scales: int) -> None:
    """The first tokens are the picture's, the others drawn; all of them kept is the reconstruction."""
    done, own = pipe.edit(pictures, keep_scales=scales, labels=1), pipe.tokenizer.encode(pictures * 2 - 1)
    kept = sum(pipe.tokenizer.config.scales.lengths[:scales])
    assert torch.equal(done.tokens[:, :kept], own[:, :kept])
    assert torch.equal(done.tokens, own) == (scales == 4)


def forms(mask: Tensor) -> dict[str, Any]:
    """The same mask as people have it."""
    levels = (mask.numpy() * 255).astype(np.uint8)
    drawn = np.zeros((8, 8, 4), np.uint8)
    drawn[..., 3] = levels
    return {
        "floats": mask.double(),
        "levels": levels,
        "ones": mask.to(torch.uint8),
        "booleans": mask.numpy(),
        "black and white": Image.fromarray(levels),
        "larger": Image.fromarray(levels).resize((16, 16), Image.Resampling.NEAREST),
        "alpha": Image.fromarray(drawn),
        "opaque": Image.fromarray(levels).convert("RGBA"),
        "one bit": Image.fromarray(levels).convert("1"),
        "one a picture": [mask] * 3,
        "channels": mask.expand(3, 1, 8, 8),
    }


@pytest.mark.parametrize("form", forms(torch.zeros(8, 8)).keys())
def test_masks_come_in_any_usual_form(pipe: Pipeline, pictures: Tensor, mask: Tensor, form: str) -> None:
    """With one result."""
    assert same(pipe.edit(pictures, forms(mask)[form]), pipe.edit(pictures, mask))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"mask": torch.zeros(4, 4)}, r"mask: expected shape \(8, 8\) or \(batch, 8, 8\)"),
        ({"mask": torch.zeros(2, 8, 8)}, "mask: expected one, or one a picture, 3, got 2"),
        ({"mask": torch.full((8, 8), 2.0)}, r"mask: expected floats in \[0, 1\], got 2 .. 2"),
        ({"mask": torch.full((8, 8), torch.nan)}, r"mask: expected floats in \[0, 1\]"),
        ({"mask": torch.zeros(8, 8, dtype=torch.int64)}, "bool, float in .* or uint8, got .* int64"),
        ({"mask": "mask.png"}, "mask: expected a tensor, an array or a Pillow image, got str"),
        ({"mask": []}, "mask: expected at least one, got none"),
        ({"labels": [1, 2]}, "one for all results or one each, 3, got 2"),
        ({"labels": "cow"}, "label: expected one of"),
        ({"seeds": [1]}, "seeds: expected one a label, 3, got 1"),
        ({"keep_scales": 5}, "keep_scales: expected 0 .. 4, got 5"),
        ({"count": 0}, "count: expected 1 or more, got 0"),
        ({"copy": True}, "copy: expected leak_free=False and no keep_scales"),
        ({"feather": -1}, "feather: expected 0 .. 1024, got -1"),
        ({"top_p": 2.0}, "top_p: expected"),
    ],
)
def test_a_mistake_is_told(pipe: Pipeline, pictures: Tensor, arguments: dict[str, Any], told: str) -> None:
    """Before anything is painted."""
    with pytest.raises(InputError, match=told):
        pipe.edit(pictures, **arguments)


def test_nothing_of_the_caller_s_changes(
    pipe: Pipeline, pictures: Tensor, mask: Tensor, untouched: Callable[[], Any]
) -> None:
    """Neither pictures, nor mask, nor torch's state; results may be written to."""
    before = pictures.clone(), mask.clone()
    with untouched():
        done = pipe.edit(pictures, mask)
    done.images.zero_()
    assert torch.equal(pictures, before[0])
    assert torch.equal(mask, before[1])


def test_bfloat16_edits_too(tokenizer: MultiScaleVQVAE, transformer: VAR, pictures: Tensor, mask: Tensor) -> None:
    """Nothing leaks, what is kept is exact."""
    pipe = Pipeline(tokenizer, transformer, precision="bf16")
    done, other = pipe.edit(pictures, mask), pipe.edit(torch.where(mask, 1 - pictures, pictures), mask)
    assert same(done, other)
    assert torch.equal(done.images[..., ~mask], pictures[..., ~mask])


def test_an_edit_tells_what_it_was_and_cannot_be_repeated_from_nothing(
    pipe: Pipeline, pictures: Tensor, mask: Tensor
) -> None:
    """Its picture and its mask are not in the request."""
    (request, *_) = pipe.edit(pictures, mask, "ant", feather=1).requests
    assert request.edit == {"leak_free": True, "keep_scales": 0, "feather": 1, "copy": False}
    with pytest.raises(InputError, match="got an edit: its picture and mask are needed"):
        pipe.repeat(request)
