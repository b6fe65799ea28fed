"""Laws of the token pyramid's geometry: where each scale lies, what may attend to what, which sizes are refused."""

import itertools
import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextscale import InputError, Scales

growth = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6)
first = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def pyramids(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Sizes that grow, or stay, on either side."""
    sizes = [draw(first)]
    for dh, dw in draw(growth):
        sizes.append((sizes[-1][0] + dh, sizes[-1][1] + dw))
    return sizes


def test_numbers_of_a_pyramid_with_a_rectangle() -> None:
    """Written out by hand for 1, 2, 3 and 4x6."""
    scales = Scales([1, 2, 3, (4, 6)])
    assert scales.sizes == ((1, 1), (2, 2), (3, 3), (4, 6)) == tuple(scales)
    assert scales.lengths == (1, 4, 9, 24)
    assert scales.offsets == (0, 1, 5, 14)
    assert scales.total == 38
    assert len(scales) == 4
    assert (scales.height, scales.width) == (4, 6)
    assert str(scales) == "1 2 3 4x6"


def test_published_schedules_have_their_published_lengths() -> None:
    """256 px: 680 tokens in 10 scales; 512 px: 2240 in 10."""
    assert Scales([1, 2, 3, 4, 5, 6, 8, 10, 13, 16]).total == 680
    assert Scales([1, 2, 3, 4, 6, 9, 13, 18, 24, 32]).total == 2240


# ---- suggested -------------------------------------------------------------------------------------------------------


def test_suggested_scales_for_the_release_s_pictures_are_the_release_s() -> None:
    """256 px at 16 pixels a token; and what that gives for others, written out."""
    assert Scales.suggest(256, 256, 16) == Scales([1, 2, 3, 4, 5, 6, 8, 10, 13, 16])
    assert Scales.suggest(64, 64, 8) == Scales([1, 2, 3, 4, 5, 6, 8])
    assert Scales.suggest(96, 128, 16) == Scales([1, 2, (2, 3), (3, 4), (4, 5), (4, 6), (6, 8)])
    assert Scales.suggest(16, 16, 16) == Scales([1])
    assert Scales.suggest(16, 32, 16) == Scales([1, (1, 2)])


@given(height=st.integers(1, 80), width=st.integers(1, 80), stride=st.sampled_from([1, 2, 8, 16]))
def test_suggested_scales_grow_from_one_token_to_the_latent(height: int, width: int, stride: int) -> None:
    """For any size; the longer side by half and a token at most, the shorter one in proportion, to half a token."""
    scales = Scales.suggest(stride * height, stride * width, stride)
    assert scales.sizes[-1] == (height, width)
    assert scales.sizes[0] == (1, 1) or max(height, width) == 1
    short, long = zip(*(size if height <= width else size[::-1] for size in scales), strict=True)
    assert all(a < b <= max(a + 1, 1.3 * 1.15 * a + 1) for a, b in itertools.pairwise(long))
    for a, b in zip(short, long, strict=True):
        assert a == 1 or abs(a * long[-1] - b * short[-1]) <= long[-1] / 2


@given(height=st.integers(1, 80), width=st.integers(1, 80))
def test_suggested_scales_turn_with_the_picture(height: int, width: int) -> None:
    """A picture on its side has the scales on their side."""
    upright, lying = Scales.suggest(8 * height, 8 * width, 8), Scales.suggest(8 * width, 8 * height, 8)
    assert [(w, h) for h, w in upright] == list(lying)


@pytest.mark.parametrize(
    ("height", "width", "stride"),
    [(250, 256, 16), (256, 250, 16), (0, 16, 16), (-16, 16, 16), (8, 16, 16), (16, 16, 0)],
)
def test_sizes_that_no_tokens_tile_have_no_scales(height: int, width: int, stride: int) -> None:
    """The message names the stride and the size."""
    with pytest.raises(InputError, match=f"multiples of {stride} pixels, got {height}x{width}"):
        Scales.suggest(height, width, stride)


# ---- what follows from the sizes -------------------------------------------------------------------------------------


def test_one_scale_is_a_pyramid() -> None:
    """Its offsets, levels and mask are those of one block that sees itself."""
    scales = Scales([(3, 2)])
    assert (scales.lengths, scales.offsets, scales.total, len(scales)) == ((6,), (0,), 6, 1)
    assert scales.level_ids().tolist() == [0] * 6
    assert scales.block_causal_mask().all()


@given(pyramids())
def test_slices_tile_the_sequence(sizes: list[tuple[int, int]]) -> None:
    """Every position belongs to exactly one scale, in order."""
    scales = Scales(sizes)
    positions = [i for part in scales.slices() for i in range(part.start, part.stop)]
    assert positions == list(range(scales.total))
    assert [part.start for part in scales.slices()] == list(scales.offsets)
    assert [part.stop - part.start for part in scales.slices()] == [h * w for h, w in sizes]


@given(pyramids())
def test_split_gives_maps_that_join_to_the_same_tokens(sizes: list[tuple[int, int]]) -> None:
    """Row-major maps of the right sizes, as views of what was given."""
    scales = Scales(sizes)
    tokens = torch.arange(2 * scales.total).view(2, -1)
    maps = scales.split(tokens)
    assert [tuple(part.shape) for part in maps] == [(2, h, w) for h, w in sizes]
    assert torch.equal(torch.cat([part.flatten(1) for part in maps], dim=1), tokens)
    assert all(part.untyped_storage().data_ptr() == tokens.untyped_storage().data_ptr() for part in maps)


@pytest.mark.slow
@given(pyramids())
def test_mask_lets_a_token_see_its_own_scale_and_all_coarser(sizes: list[tuple[int, int]]) -> None:
    """Against two plain loops over tokens."""
    scales = Scales(sizes)
    level = [k for k, (h, w) in enumerate(sizes) for _ in range(h * w)]
    assert scales.level_ids().tolist() == level
    mask = scales.block_causal_mask()
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[theirs <= mine for theirs in level] for mine in level]


@given(pyramids(), st.integers(1, 9))
def test_a_reach_lets_a_token_see_the_last_scales_alone(sizes: list[tuple[int, int]], reach: int) -> None:
    """Against the same loops; `firsts` is where each row of the mask begins."""
    scales = Scales(sizes)
    level = [k for k, (h, w) in enumerate(sizes) for _ in range(h * w)]
    mask = scales.block_causal_mask(reach)
    assert mask.tolist() == [[mine - reach < theirs <= mine for theirs in level] for mine in level]
    begins = mask.int().argmax(dim=1)
    assert [scales.firsts(reach)[k] for k in level] == begins.tolist()
    assert scales.firsts() == (0,) * len(scales)
    with pytest.raises(InputError, match="^reach: expected 1 scale or more, got 0$"):
        scales.firsts(0)


@given(pyramids())
def test_scales_survive_json_pickle_and_repr(sizes: list[tuple[int, int]]) -> None:
    """All three give an equal pyramid with an equal hash."""
    scales = Scales(sizes)
    for copy in (
        Scales(json.loads(json.dumps(scales.to_list()))),
        pickle.loads(pickle.dumps(scales)),
        eval(repr(scales), {"Scales": Scales}),
    ):
        assert copy == scales
        assert hash(copy) == hash(scales)


def test_pyramids_with_other_sizes_differ() -> None:
    """A rectangle is not its transpose, and a list of the same sizes is no Scales."""
    assert Scales([1, (2, 3)]) != Scales([1, (3, 2)])
    assert Scales([1, 2]) != [(1, 1), (2, 2)]
    assert len({Scales([1, 2]), Scales([(1, 1), (2, 2)]), Scales([1, 3])}) == 2


def test_scales_cannot_be_changed() -> None:
    """Neither the sizes nor anything new can be set on them."""
    scales = Scales([1, 2])
    for name in ("sizes", "total", "anything"):
        with pytest.raises(AttributeError):
            setattr(scales, name, ())
    assert scales.sizes == ((1, 1), (2, 2))


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [-1, 2],
        [1.5],
        [True],
        ["2"],
        [None],
        [(1, 2, 3)],
        [(2,)],
        [(1, 0)],
        [(1, 2.0)],
        5,
        [3, 2],
        [(2, 3), (3, 2)],
        [1, (2, 4), (4, 3)],
    ],
    ids=str,
)
def test_sizes_that_are_no_pyramid_are_refused(sizes: object) -> None:
    """In one line that says what was expected and what came."""
    with pytest.raises(InputError, match=r"^scales: expected .*got .*$") as caught:
        Scales(sizes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 13), (2, 15), (14,), (1, 2, 14)])
def test_split_refuses_another_length(shape: tuple[int, ...]) -> None:
    """The message names the length that fits."""
    with pytest.raises(InputError, match=r"expected shape \(batch, 14\)"):
        Scales([1, 2, 3]).split(torch.zeros(shape))
