"""Laws of guidance by the scale before: what enlarges its logits, frequency by frequency."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import Scales
from nextscale.sampling.step_guidance import StepGuidance, cosines, enlarging, interpolation

PAIRS = [((1, 1), (2, 2)), ((2, 2), (3, 3)), ((3, 2), (4, 6)), ((4, 4), (4, 4)), ((5, 5), (5, 7))]


def spectrum(map_hw: Tensor) -> Tensor:
    """The cosine coefficients of a map, by the sums that define them."""
    h, w = map_hw.shape
    found = torch.zeros(h, w, dtype=torch.float64)
    for u in range(h):
        for v in range(w):
            rows = torch.tensor([math.cos(math.pi * u * (i + 0.5) / h) for i in range(h)], dtype=torch.float64)
            columns = torch.tensor([math.cos(math.pi * v * (j + 0.5) / w) for j in range(w)], dtype=torch.float64)
            scale = math.sqrt((1 if u == 0 else 2) / h) * math.sqrt((1 if v == 0 else 2) / w)
            found[u, v] = scale * (rows @ map_hw.double() @ columns)
    return found


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_cosines_are_orthonormal(n: int) -> None:
    """The transform's transpose takes it back."""
    torch.testing.assert_close(cosines(n) @ cosines(n).T, torch.eye(n, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("c", "n"), [(1, 3), (2, 3), (3, 3), (5, 13)])
def test_interpolation_is_torch_s(c: int, n: int) -> None:
    """Linear, of the middles of equal parts."""
    line = torch.randn(1, 1, c, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(line, n, mode="linear", align_corners=False)[0, 0]
    torch.testing.assert_close(interpolation(c, n) @ line[0, 0], expected)


@pytest.mark.parametrize(("coarse", "fine"), PAIRS, ids=str)
def test_low_frequencies_are_the_coarse_map_s_and_high_ones_interpolation_s(
    coarse: tuple[int, int], fine: tuple[int, int]
) -> None:
    """Coefficients of an orthonormal transform grow with the square root of the number of values."""
    map_hw = torch.randn(coarse, generator=torch.Generator().manual_seed(1))
    enlarged = spectrum((enlarging(coarse, fine) @ map_hw.flatten()).unflatten(0, fine))
    smooth = F.interpolate(map_hw[None, None], fine, mode="bilinear", align_corners=False)[0, 0]
    expected = spectrum(smooth)
    low = (slice(coarse[0]), slice(coarse[1]))
    expected[low] = math.sqrt(math.prod(fine) / math.prod(coarse)) * spectrum(map_hw)
    torch.testing.assert_close(enlarged, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("coarse", "fine"), PAIRS, ids=str)
def test_a_map_of_one_value_is_enlarged_to_itself(coarse: tuple[int, int], fine: tuple[int, int]) -> None:
    """As is what is added to all logits of a token, which changes no probability."""
    rows = enlarging(coarse, fine).sum(dim=1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


def test_equal_sizes_are_not_changed() -> None:
    """Nothing is to be enlarged."""
    torch.testing.assert_close(enlarging((3, 4), (3, 4)), torch.eye(12))


def test_a_scale_that_says_the_same_again_is_led_nowhere() -> None:
    """However strongly; and one that says more, further."""
    scales, coarse = Scales([2, 3]), torch.randn(1, 4, 5)
    led_away = StepGuidance(scales, [9.0, 9.0])
    assert led_away(0, coarse) is coarse
    expected = enlarging((2, 2), (3, 3)) @ coarse
    torch.testing.assert_close(led_away(1, expected), expected, atol=1e-4, rtol=0)
    led_away = StepGuidance(scales, [9.0, 0.5])
    led_away(0, coarse)
    torch.testing.assert_close(led_away(1, expected + 1), expected + 1.5, atol=1e-4, rtol=0)


def test_scales_without_it_are_left_alone() -> None:
    """The very tensor; what was before them is not kept either."""
    led_away = StepGuidance(Scales([1, 2, 3]), [0.0, 0.0, 1.0])
    given = [torch.randn(1, n, 5) for n in (1, 4, 9)]
    assert led_away(0, given[0]) is given[0]
    assert led_away._before is None
    assert led_away(1, given[1]) is given[1]
    assert led_away(2, given[2]) is not given[2]
    assert led_away._before is None
