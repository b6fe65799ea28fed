"""Laws of adapting a trained transformer: what can stay stays bit for bit, classes go by name and places by size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextscale import VAR, InputError, Scales, presets
from nextscale.transformer.adapted import adapted, source_scales

NAMES = ("ant", "bee", "cat", "dog", "eel")


def change(model: VAR, classes: tuple[str, ...] = NAMES, **fields: Any) -> VAR:
    """`model`, whose classes are NAMES, for other classes and other fields of its config."""
    config = dataclasses.replace(model.config, classes=len(classes), **fields)
    return adapted(model, config, known=NAMES, classes=classes)


def places(model: VAR, k: int) -> Tensor:
    """What a position of scale k adds, as a map (h, w, D)."""
    part = model.config.scales.slices()[k]
    return (model.positions[0, part] + model.levels.weight[k]).unflatten(0, model.config.scales.sizes[k]).detach()


# ---- what stays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"normalized_attention": False, "shared_modulation": True},
        {"scales": Scales([1, (2, 1), (3, 2), (4, 6)])},
        {"scales": Scales([(2, 2), 2, 2, 4])},
        {"scales": Scales([(3, 4)])},
    ],
    ids=str,
)
def test_an_equal_config_gives_a_copy_bit_for_bit(
    make_transformer: Callable[..., VAR], fields: dict[str, Any], untouched: Callable[[], Any]
) -> None:
    """Of every kind of model, also with scales of one size; nothing is drawn, nothing shared with the old one."""
    model = make_transformer(**fields)
    with untouched():
        copy = change(model)
    assert copy.config == model.config
    for (name, old), new in zip(model.named_parameters(), copy.parameters(), strict=True):
        assert torch.equal(old, new), name
        assert old.data_ptr() != new.data_ptr(), name
        assert new.requires_grad, name


def test_the_old_model_is_left_as_it_is(make_transformer: Callable[..., VAR]) -> None:
    """Even where the new one is trained on."""
    model = make_transformer()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new = change(model, ("dog", "fox"), scales=Scales([1, 3, 6]))
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_in_low_precision_gives_one_to_train(make_transformer: Callable[..., VAR]) -> None:
    """Float32 throughout, with the values that were held."""
    model = make_transformer().lower_precision(torch.bfloat16)
    copy = change(model)
    assert {parameter.dtype for parameter in copy.parameters()} == {torch.float32}
    for old, new in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(old.float(), new)


# ---- classes ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_classes_in_another_order_give_the_same_logits(transformer: VAR, random_inputs: Callable[..., Tensor]) -> None:
    """Exactly, "no class" included: a label is its name."""
    classes, inputs = ("dog", "ant", "eel", "cat", "bee"), random_inputs(batch=6)
    new = change(transformer, classes)
    old_labels = torch.tensor([NAMES.index(name) for name in classes] + [5])
    assert torch.equal(new(torch.arange(6), inputs), transformer(old_labels, inputs))


@torch.no_grad()
@pytest.mark.parametrize("classes", [("cat",), ("eel", "fox"), ("gnu", *NAMES, "fox")])
def test_known_classes_stay_themselves_and_new_ones_begin_as_no_class(
    transformer: VAR, random_inputs: Callable[..., Tensor], classes: tuple[str, ...]
) -> None:
    """With fewer, other and more classes than before."""
    new, inputs = change(transformer, classes), random_inputs(batch=len(classes) + 1)
    old_labels = torch.tensor([NAMES.index(name) if name in NAMES else 5 for name in (*classes, "no class")])
    assert torch.equal(new(torch.arange(len(classes) + 1), inputs), transformer(old_labels, inputs))


def test_classes_of_one_name_are_told_apart_by_their_order(make_transformer: Callable[..., VAR]) -> None:
    """ImageNet has two cranes; a third begins as no class."""
    model = make_transformer()
    new = adapted(
        model,
        dataclasses.replace(model.config, classes=4),
        known=("crane", "bee", "crane", "dog", "eel"),
        classes=("dog", "crane", "crane", "crane"),
    )
    assert torch.equal(new.class_embedding.weight, model.class_embedding.weight[[3, 0, 2, 5, 5]])


# ---- scales ----------------------------------------------------------------------------------------------------------


@given(
    one=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8),
    other=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8),
)
@settings(max_examples=200, deadline=None)
def test_scales_take_from_scales_of_their_kind(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    """First from first, last from last, those between from those between; of one size where there is one."""
    old, new = _growing(one), _growing(other)
    source = source_scales(old, new)
    assert len(source) == len(new)
    assert source[0] == 0
    assert len(new) == 1 or source[-1] == len(old) - 1
    between = old.sizes[1:-1]
    for size, j in zip(new.sizes[1:-1], source[1:-1], strict=True):
        assert j in range(1, len(old) - 1) or not between
        assert old.sizes[j] == size or size not in between
    assert source_scales(old, old) == list(range(len(old)))


@pytest.mark.parametrize(
    ("old", "new", "taken"),
    [
        ([1, 2, 3, 4, 6, 8], [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 6, 6, 6, 8]),
        ([1, 2, 3, 4, 6, 8], [1, 2, 3, 5, 8], [1, 2, 3, 4, 8]),
        ([1, 2, 3, 4, 6, 8], [1, 2, 4, 8], [1, 2, 4, 8]),
        ([1, 2, 3, 4, 6, 8], [1, 2, 3, 4, 6, 9, 12, 16], [1, 2, 3, 4, 6, 6, 6, 8]),
        ([1, 2, 3, 4, 6, 8], [1, (2, 3), (4, 6), (6, 9), (8, 12)], [1, 2, 4, 6, 8]),
        ([1, 2, 3, 4, 5, 6, 8, 10, 13, 16], [1, 2, 3, 4, 6, 9, 13, 18, 24, 32], [1, 2, 3, 4, 6, 8, 13, 13, 13, 16]),
    ],
)
def test_scales_take_from_the_like(old: list[Any], new: list[Any], taken: list[int]) -> None:
    """By size and by what was painted before: 5 after 3 is like 4 after 3, and 5 after 4 like 6 after 4."""
    assert [Scales(old).sizes[j][0] for j in source_scales(Scales(old), Scales(new))] == taken


def _growing(steps: list[tuple[int, int]]) -> Scales:
    """Scales whose sides grow by these steps from 1."""
    sizes, h, w = [], 1, 1
    for rows, columns in steps:
        h, w = h + rows, w + columns
        sizes.append((h, w))
    return Scales(sizes)


def test_maps_of_a_size_that_both_have_are_kept_exactly(make_transformer: Callable[..., VAR]) -> None:
    """From the published schedule for 256 px to that for 512 px: 1, 2, 3, 4, 6 and 13, with their levels."""
    old_scales, new_scales = presets.SCALES["256"], presets.SCALES["512"]
    model = make_transformer(scales=old_scales, depth=1)
    new = change(model, scales=new_scales)
    both = set(old_scales.sizes) & set(new_scales.sizes)
    assert {h for h, _ in both} == {1, 2, 3, 4, 6, 13}
    for size in both:
        assert torch.equal(places(new, new_scales.sizes.index(size)), places(model, old_scales.sizes.index(size)))
    assert torch.equal(new.start, model.start)


@pytest.mark.parametrize("size", [(7, 9), (3, 4), (2, 11)])
def test_a_map_is_resized_and_not_torn(make_transformer: Callable[..., VAR], size: tuple[int, int]) -> None:
    """A slope stays a slope down and to the right, rows stay rows; for larger and smaller maps, and rectangles."""
    model = make_transformer(scales=Scales([1, (4, 6)]), width=8, heads=2)
    down, right = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    with torch.no_grad():
        model.levels.weight.zero_()
        model.positions[0, 1:, 0], model.positions[0, 1:, 1] = down.flatten(), right.flatten()
    slope = places(change(model, scales=Scales([1, size])), 1)
    assert slope.shape == (*size, 8)
    assert (slope[1:, :, 0] > slope[:-1, :, 0]).all()
    assert (slope[:, 1:, 1] > slope[:, :-1, 1]).all()
    torch.testing.assert_close(slope[:, :, 0], slope[:, :1, 0].expand(size))
    torch.testing.assert_close(slope[:, :, 1], slope[:1, :, 1].expand(size))


@torch.no_grad()
@pytest.mark.parametrize(
    "sizes", [[1, 2, 3, 4, 6, 8], [1, (2, 3), (4, 6)], [(2, 2), 4], [3], [1, 2], [1, 2, 2, 4]], ids=str
)
def test_any_schedule_gives_a_model_that_runs(
    transformer: VAR, random_inputs: Callable[..., Tensor], sizes: list[Any]
) -> None:
    """Longer, shorter, rectangular; beginning with other than one token, too."""
    new = change(transformer, ("dog", "fox"), scales=Scales(sizes))
    logits = new(torch.tensor([0, 1, 2]), random_inputs(new.config.scales, batch=3))
    assert logits.shape == (3, new.config.scales.total, 64)
    assert logits.isfinite().all()
    assert logits.std() > 0.5


# ---- what cannot be adapted ------------------------------------------------------------------------------------------


def test_differences_that_no_weights_fit_are_all_named(transformer: VAR) -> None:
    """In one line, with both values."""
    changes = {"depth": 2, "width": 32, "heads": 2, "codebook_size": 65, "code_channels": 9, "shared_modulation": True}
    with pytest.raises(InputError) as caught:
        change(transformer, **changes)
    for name, value in changes.items():
        assert f"{name} {getattr(transformer.config, name)} there and {value} here" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "feed_forward" not in str(caught.value)


def test_each_class_has_a_name(transformer: VAR) -> None:
    """As many as the configs say."""
    with pytest.raises(InputError, match="the model's classes: expected 5 names, got 4"):
        adapted(transformer, transformer.config, known=NAMES[1:], classes=NAMES)
    with pytest.raises(InputError, match="^classes: expected 5 names, got 4"):
        adapted(transformer, transformer.config, known=NAMES, classes=NAMES[1:])
