"""Laws of editing: what is kept, what fills a hole, and codes that mend what was painted beside them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nextscale import MultiScaleVQVAE, Scales
from nextscale.sampling.editing import ResidualEdit, composed, feathered, filled, kept, known


def hole(height: int, width: int, *, top: int, left: int, bottom: int, right: int) -> Tensor:
    """(1, 1, height, width) bool, True inside the box."""
    inside = torch.zeros(1, 1, height, width, dtype=torch.bool)
    inside[..., top:bottom, left:right] = True
    return inside


def noise(*shape: int, seed: int = 0) -> Tensor:
    """In [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ---- filling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (1, 5)])
def test_what_fills_a_hole_does_not_depend_on_what_was_in_it(size: tuple[int, int]) -> None:
    """Not by a bit, be it NaN; outside nothing changes."""
    inside = hole(*size, top=0, left=1, bottom=3, right=4)
    pictures = noise(2, 3, *size)
    expected = filled(pictures, inside)
    assert torch.equal(expected.masked_select(~inside), pictures.masked_select(~inside))
    for other in (noise(2, 3, *size, seed=1), torch.full_like(pictures, math.nan)):
        assert torch.equal(filled(torch.where(inside, other, pictures), inside), expected)


def test_a_hole_is_filled_from_around_it() -> None:
    """A flat picture stays flat, between two colours lie those in between, and all hole is grey."""
    inside = hole(16, 16, top=4, left=4, bottom=12, right=12)
    flat = torch.tensor([0.5, -1.0, 0.25]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    torch.testing.assert_close(filled(flat, inside), flat)
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    columns = filled(ramp, inside)[0, 0, 8]
    assert (columns.diff() > -1e-6).all()
    assert columns[4:12].abs().max() < 0.8
    assert not filled(noise(1, 3, 8, 8), torch.ones(1, 1, 8, 8, dtype=torch.bool)).any()


# ---- which positions are kept ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1, 2, 3, 4], [1, (2, 3), (4, 6)], [(2, 1), (5, 3)]])
def test_a_position_is_kept_if_a_quarter_of_it_is(sizes: list) -> None:
    """Of the share of its pixels outside the hole, averaged as pooling averages."""
    scales = Scales(sizes)
    height, width = 2 * scales.height, 2 * scales.width
    inside = hole(height, width, top=1, left=0, bottom=height, right=width - 1)
    share = torch.stack([row.unfold(0, 2, 2).mean(-1) for row in (~inside[0, 0]).float().unfold(0, 2, 2).mean(-1)])
    assert torch.equal(known(scales, inside)[0, 0], share)
    for (h, w), keep in zip(scales, kept(scales, share[None, None]), strict=True):
        for y, x in torch.cartesian_prod(torch.arange(h), torch.arange(w)).tolist():
            rows = slice(y * scales.height // h, -(-(y + 1) * scales.height // h))
            columns = slice(x * scales.width // w, -(-(x + 1) * scales.width // w))
            assert bool(keep[0, 0, y, x]) == bool(share[rows, columns].mean() >= 0.25)


def test_kept_scales_are_kept_everywhere() -> None:
    """The first two of four; the others as without them."""
    scales, share = Scales([1, 2, 3, 4]), torch.zeros(1, 1, 4, 4)
    share[..., 0] = 0.5
    some, none = kept(scales, share, keep_scales=2), kept(scales, share)
    assert [bool(keep.all()) for keep in some] == [True, True, False, False]
    assert not none[0].any()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(some[2:], none[2:], strict=True))


# ---- codes that mend -------------------------------------------------------------------------------------------------


def drawn(tokenizer: MultiScaleVQVAE, batch: int) -> list[Tensor]:
    """Codes as a transformer might have drawn them, scale by scale."""
    quantizer, numbers = tokenizer.quantizer, torch.Generator().manual_seed(3)
    tokens = torch.randint(64, (batch, quantizer.scales.total), generator=numbers)
    return [quantizer.lookup(part) for part in quantizer.scales.split(tokens)]


@torch.no_grad()
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_kept_positions_take_the_code_nearest_to_what_the_canvas_lacks(
    make_tokenizer: Callable[..., MultiScaleVQVAE], images: Tensor, distance: str
) -> None:
    """Where it is kept, of the canvas as it was painted; found here one vector at a time."""
    tokenizer = make_tokenizer(distance=distance)
    quantizer, f = tokenizer.quantizer, tokenizer.features(images)
    scales = quantizer.scales
    share = known(scales, hole(8, 8, top=3, left=3, bottom=8, right=6)).expand(4, -1, -1, -1)
    keep = kept(scales, share)
    edit, canvas = ResidualEdit(quantizer, f, keep, share), quantizer.blank(4)
    for k, codes in enumerate(drawn(tokenizer, 4)):
        painted = edit(k, codes)
        h, w = scales.sizes[k]
        for b, y, x in torch.cartesian_prod(torch.arange(4), torch.arange(h), torch.arange(w)).tolist():
            rows, columns = slice(y * 4 // h, -(-(y + 1) * 4 // h)), slice(x * 4 // w, -(-(x + 1) * 4 // w))
            weight, lacking = share[b, :, rows, columns], (f - canvas)[b, :, rows, columns]
            if not keep[k][b, 0, y, x]:
                assert torch.equal(painted[b, :, y, x], codes[b, :, y, x])
                continue
            (token,) = quantizer.nearest(((weight * lacking).sum((1, 2)) / weight.sum())[None])
            assert torch.equal(painted[b, :, y, x], quantizer.codebook.weight[token])
        canvas = canvas + quantizer.contribution(painted, k)
    assert {bool(keep.all()) for keep in keep} == {True, False}


@torch.no_grad()
def test_everything_kept_is_the_encoding_and_nothing_kept_is_what_was_drawn(
    tokenizer: MultiScaleVQVAE, images: Tensor
) -> None:
    """Algorithm 1 to the token; and the tokens that were painted."""
    quantizer, f = tokenizer.quantizer, tokenizer.features(images)
    tokens = quantizer.encode(f)
    other = (tokens + 1) % 64
    for share, expected in ((torch.ones(4, 1, 4, 4), tokens), (torch.zeros(4, 1, 4, 4), other)):
        edit = ResidualEdit(quantizer, f, kept(quantizer.scales, share), share)
        for k, codes in enumerate(map(quantizer.lookup, quantizer.scales.split(other))):
            assert torch.equal(edit(k, codes), quantizer.lookup(quantizer.scales.split(expected)[k]))
        assert torch.equal(edit.painted(other), expected)


# ---- pixels ----------------------------------------------------------------------------------------------------------


def test_kept_pixels_come_back_bit_for_bit() -> None:
    """And painted ones, too; where the mask lies in between, so does the result."""
    painted, pictures = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
    mask = torch.tensor([0.0, 0.25, 0.5, 1.0]).expand(2, 1, 4, 4)
    result = composed(painted, pictures, mask)
    assert torch.equal(result[..., 0], pictures[..., 0])
    assert torch.equal(result[..., 3], painted[..., 3])
    torch.testing.assert_close(result[..., 1], 0.25 * painted[..., 1] + 0.75 * pictures[..., 1])


def test_a_feathered_edge_lies_inside_of_the_mask() -> None:
    """It rises from the edge inwards to 1; at the picture's own border, where nothing is kept, it stays 1."""
    mask = hole(16, 16, top=4, left=0, bottom=16, right=16).float()
    soft = feathered(mask, 2)
    assert torch.equal(feathered(mask, 0), mask)
    assert (soft <= mask).all()
    column = soft[0, 0, :, 0]
    assert (column.diff() >= 0).all()
    assert 0 < column[4] < column[5] < column[7] <= 1
    assert (soft[..., 9:, :] == 1).all()
    assert torch.equal(soft, soft[..., :1].expand_as(soft))
