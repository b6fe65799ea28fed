"""Laws of the configs: contradictions raise, JSON goes there and back, sizes are the published ones."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale import VAR, InputError, MultiScaleVQVAE, Scales, presets
from nextscale.config import (
    TextConfig,
    TokenizerConfig,
    TransformerConfig,
    check_classes,
    check_pair,
    from_json,
    to_json,
)

PUBLISHED = {
    "var-d16": 310_283_520,
    "var-d20": 600_917_136,
    "var-d24": 1_033_399_360,
    "var-d30": 2_010_020_356,
    "var-d36-512": 2_353_893_904,
}


def count(model: VAR | MultiScaleVQVAE) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformer_of_the_release_has_its_published_size(name: str) -> None:
    """Parameter by parameter, without memory for them; the formula of the config agrees."""
    config = presets.get(name).transformer
    model = VAR(config, seed=None)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert count(model) == config.parameters == PUBLISHED[name]


def test_tokenizer_of_the_release_has_its_published_size() -> None:
    """108,948,355 parameters, the same for 256 and 512 pixels."""
    for name in ("var-d16", "var-d36-512"):
        assert count(MultiScaleVQVAE(presets.get(name).tokenizer, seed=None)) == 108_948_355


@pytest.mark.parametrize(("depth", "millions"), [(6, 18.5), (8, 41.3), (10, 78.4), (12, 133.2), (14, 209.3)])
def test_small_end_of_the_scaling_study_has_its_published_sizes(depth: int, millions: float) -> None:
    """Width 64 a block, as the paper's rule says."""
    config = dataclasses.replace(
        presets.get("var-d16").transformer, depth=depth, width=64 * depth, heads=depth, feed_forward=256 * depth
    )
    assert round(config.parameters / 1e6, 1) == millions


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.sampled_from([[1, 2, 3], [(2, 1), (3, 4)], [2]]),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 8),
    depth=st.integers(1, 3),
    others=st.tuples(*[st.integers(1, 20)] * 4),
    switches=st.tuples(st.booleans(), st.booleans()),
)
def test_parameters_formula_counts_every_tensor(
    sizes: list[Any],
    heads: int,
    head_dim: int,
    depth: int,
    others: tuple[int, int, int, int],
    switches: tuple[bool, bool],
) -> None:
    """For any shape and both switches, against the model's own tensors."""
    codes, channels, classes, feed_forward = others
    config = TransformerConfig(
        scales=Scales(sizes),
        codebook_size=codes,
        code_channels=channels,
        classes=classes,
        depth=depth,
        width=heads * head_dim,
        heads=heads,
        feed_forward=feed_forward,
        normalized_attention=switches[0],
        shared_modulation=switches[1],
    )
    assert count(VAR(config, seed=None)) == config.parameters


@pytest.mark.parametrize("name", presets.names())
def test_presets_are_pairs_that_survive_json(name: str) -> None:
    """Tokenizer and transformer belong together; both come back equal from JSON text."""
    preset = presets.get(name)
    check_pair(preset.tokenizer, preset.transformer)
    for config in (preset.tokenizer, preset.transformer):
        assert from_json(type(config), json.loads(json.dumps(to_json(config)))) == config


def test_release_presets_cover_their_pixels() -> None:
    """A token of the last map is 16 pixels a side: 256 and 512 pixels."""
    assert [presets.get(name).tokenizer.height for name in ("var-d16", "var-d36-512")] == [256, 512]
    assert presets.get("var-d16").tokenizer.stride == 16
    assert [presets.get(name).tokenizer.width for name in ("emoji-32", "emoji-64")] == [32, 64]


def test_rectangles_have_rectangular_pixels(tokenizer_config: TokenizerConfig) -> None:
    """Height and width each follow their own side of the last map."""
    config = dataclasses.replace(tokenizer_config, scales=Scales([1, (3, 5), (4, 6), (6, 10)]), multipliers=(1, 1, 2))
    assert (config.height, config.width) == (24, 40)


def test_unknown_preset_is_answered_with_the_nearest_name() -> None:
    """And with all there are."""
    with pytest.raises(InputError, match=r"emoji-32.*got 'var-d61'; did you mean var-d16\?$"):
        presets.get("var-d61")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"codebook_size": 0}, "tokenizer codebook_size: expected at least 1, got 0"),
        ({"code_channels": -1}, "tokenizer code_channels: expected at least 1, got -1"),
        ({"residual_blocks": 0}, "tokenizer residual_blocks: expected at least 1, got 0"),
        ({"multipliers": ()}, "tokenizer multipliers: expected at least one level, got none"),
        ({"channels": 48, "multipliers": (2, 1)}, "every level a multiple of 32, got 48 x 1"),
        ({"multipliers": (1, -1)}, "every level a multiple of 32, got 32 x -1"),
        ({"phi_sharing": "all", "phi_count": 4}, "phi_count: 4 does not go with sharing 'all'"),
        ({"phi_sharing": "none", "phi_count": 3}, "phi_count: 3 does not go with sharing 'none' and 4 scales"),
        ({"phi_sharing": "some"}, "tokenizer phi_sharing: expected one of all, partial, none, got 'some'"),
        ({"distance": "manhattan"}, "tokenizer distance: expected one of euclidean, cosine, got 'manhattan'"),
        ({"phi_count": -1}, "phi_count: -1 does not go with sharing 'partial'"),
    ],
)
def test_tokenizer_config_that_contradicts_itself_raises(
    tokenizer_config: TokenizerConfig, changes: dict[str, Any], complaint: str
) -> None:
    """When it is made, with the field's name."""
    with pytest.raises(InputError) as caught:
        dataclasses.replace(tokenizer_config, **changes)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"heads": 5}, "transformer heads: expected a divisor of the width 64, got 5"),
        ({"depth": 0}, "transformer depth: expected at least 1, got 0"),
        ({"classes": 0}, "transformer classes: expected at least 1, got 0"),
        ({"feed_forward": -4}, "transformer feed_forward: expected at least 1, got -4"),
    ],
)
def test_transformer_config_that_contradicts_itself_raises(
    transformer_config: TransformerConfig, changes: dict[str, Any], complaint: str
) -> None:
    """When it is made, with the field's name."""
    with pytest.raises(InputError) as caught:
        dataclasses.replace(transformer_config, **changes)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("transformer", {"width": 10**12, "heads": 10**12}),
        ("transformer", {"depth": 10**9}),
        ("transformer", {"classes": 10**4000}),
        ("tokenizer", {"codebook_size": 10**10}),
        ("tokenizer", {"residual_blocks": 10**9}),
        ("tokenizer", {"multipliers": (10**12,)}),
        ("tokenizer", {"multipliers": (1,) * 10**6}),
        ("tokenizer", {"phi_count": 10**9}),
        ("tokenizer", {"phi_count": -(10**9)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_config_beyond_all_models_is_one_short_line(
    tokenizer_config: TokenizerConfig, transformer_config: TransformerConfig, kind: str, changes: dict[str, Any]
) -> None:
    """Before anything is made of it, which would take hours."""
    config = tokenizer_config if kind == "tokenizer" else transformer_config
    with pytest.raises(InputError, match=rf"^{kind} {next(iter(changes))}: ") as caught:
        from_json(type(config), to_json(config) | changes)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        ([10**9], "expected sides of at most 4096 tokens, got 1000000000"),
        ([1, [1, 10**4000]], "expected sides of at most 4096 tokens"),
        ([1] * 10**5, "expected at most 4096, got 100000"),
        ([[[[[[[[[[1]]]]]]]]]], "expected positive ints or"),
        ([1, "x" * 10**6], "expected positive ints or"),
        (["1"] * 10**5, "expected positive ints or"),
    ],
    ids=range(6),
)
def test_scales_beyond_all_models_are_one_short_line(scales: Any, said: str) -> None:
    """A side of a thousand million tokens, a hundred thousand scales, and what is no scale at all."""
    with pytest.raises(InputError, match=said) as caught:
        Scales(scales)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", presets.names())
def test_parameters_of_a_tokenizer_are_counted_by_its_config(name: str) -> None:
    """Tensor by tensor, for every preset."""
    config = presets.get(name).tokenizer
    assert config.parameters == count(MultiScaleVQVAE(config, seed=None))


@settings(max_examples=20, deadline=None)
@given(
    channels=st.sampled_from([32, 64]),
    multipliers=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    blocks=st.integers(1, 3),
    phis=st.integers(0, 5),
)
def test_parameters_of_any_tokenizer_are_counted(channels: int, multipliers: list[int], blocks: int, phis: int) -> None:
    """Also with one level, and with levels of equal width."""
    config = dataclasses.replace(
        presets.get("emoji-32").tokenizer,
        channels=channels,
        multipliers=tuple(multipliers),
        residual_blocks=blocks,
        phi_count=phis,
    )
    assert config.parameters == count(MultiScaleVQVAE(config, seed=None))


@pytest.mark.parametrize(
    "changes", [{"phi_sharing": "all", "phi_count": 1}, {"phi_sharing": "none", "phi_count": 4}, {"phi_count": 0}]
)
def test_every_kind_of_phi_sharing_is_a_config(tokenizer_config: TokenizerConfig, changes: dict[str, Any]) -> None:
    """And comes back from JSON as it was."""
    config = dataclasses.replace(tokenizer_config, **changes)
    assert from_json(TokenizerConfig, to_json(config)) == config


WRONG = {
    "scales": ["1 2 3", 4, [2, 1], [1, "2"], None],
    "codebook_size": [64.0, "64", True, None, [64]],
    "code_channels": [8.5, {}],
    "multipliers": [1, [1, 2.0], ["1"], [True], "11", None],
    "phi_sharing": ["some", 1, None, ["all"]],
    "distance": ["manhattan", {}],
    "width": ["64", 64.0, False],
    "normalized_attention": [1, "true", None],
    "shared_modulation": [0, "no"],
}
CASES = [(field, value) for field, values in WRONG.items() for value in values]


@pytest.mark.parametrize(("field", "value"), CASES, ids=lambda value: json.dumps(value))
def test_json_with_a_wrong_type_names_the_field_in_one_line(
    tokenizer_config: TokenizerConfig, transformer_config: TransformerConfig, field: str, value: Any
) -> None:
    """Never a guess, never a traceback from deeper down."""
    for config in (tokenizer_config, transformer_config):
        values = to_json(config)
        if field not in values:
            continue
        with pytest.raises(InputError) as caught:
            from_json(type(config), {**values, field: value})
        assert field in str(caught.value)
        assert "\n" not in str(caught.value)


def test_json_with_missing_or_unknown_fields_names_them(transformer_config: TransformerConfig) -> None:
    """All of them, and what is no object is refused as such."""
    values = to_json(transformer_config)
    fewer = {name: value for name, value in values.items() if name not in ("depth", "heads")}
    with pytest.raises(InputError, match="config of transformer: missing depth, heads$"):
        from_json(TransformerConfig, fewer)
    with pytest.raises(InputError, match="config of transformer: unknown dropout, rope$"):
        from_json(TransformerConfig, {**values, "rope": 1, "dropout": 0.1})
    for no_object in (None, [], "transformer", 3):
        with pytest.raises(InputError, match="expected an object, got"):
            from_json(TransformerConfig, no_object)


def test_models_that_do_not_belong_together_are_told_apart(
    tokenizer_config: TokenizerConfig, transformer_config: TransformerConfig
) -> None:
    """With every difference in one line."""
    other = dataclasses.replace(transformer_config, codebook_size=128, scales=Scales([1, 4]))
    with pytest.raises(InputError) as caught:
        check_pair(tokenizer_config, other)
    assert "scales 1 2 3 4 and 1 4, codebook_size 64 and 128" in str(caught.value)


def test_a_class_name_that_no_file_can_hold_is_refused() -> None:
    """Half of a surrogate pair, as JSON may have it."""
    check_classes(["caf\u00e9", "\U0001f986"], 2)
    with pytest.raises(InputError, match="expected names that can be written in UTF-8, got"):
        check_classes(["a", "\ud83e"], 2)


def test_configs_are_frozen_and_have_no_defaults(tokenizer_config: TokenizerConfig) -> None:
    """A model is what its config says; one that says nothing of text, other codes or groups has none."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokenizer_config.channels = 64  # type: ignore[misc]
    for kind in (TokenizerConfig, TransformerConfig, TextConfig):
        later = ("text", "quantizer", "levels", "bits", "reparametrised", "groups", "order")
        fields = [f for f in dataclasses.fields(kind) if f.name not in later and not f.metadata.get("option")]
        assert all(f.default is f.default_factory is dataclasses.MISSING for f in fields)


def test_tables_are_read_without_torch() -> None:
    """So that help and the list of presets are instant."""
    code = "import sys; from nextscale import presets; presets.get('var-d16'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
