"""Laws of what the study of tokenizers compares: as many tokens, as many bits, one thing different at a time."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from studies.toy import asked
from training import toy as toys

from nextscale import MultiScaleVQVAE, Scales, presets
from nextscale.errors import InputError
from nextscale.studies.variants import KINDS, SIZES, thinned, told, transformer_of, variants, warmed
from nextscale.training import recipes
from nextscale.training.transformer.stage import fitted


def named(**changes: Any) -> dict[str, Any]:
    return {variant.name: variant for variant in variants(asked(**changes))}


@pytest.mark.parametrize("size", SIZES)
def test_all_kinds_have_as_many_tokens_and_nearly_as_many_bits(size: int) -> None:
    """Within 3 %: FSQ's levels and the sphere make no power of two."""
    found = named(bits=(size,), dropout=(0.0,))
    assert [*found] == [*KINDS]
    for variant in found.values():
        assert variant.config.scales == toys.TOKENIZER.scales
        assert math.log2(variant.config.codebook_size) == pytest.approx(size, rel=0.03)


def test_every_kind_comes_with_and_without_scale_dropout() -> None:
    """Which is all that tells the two apart; pictures keep three scales at least."""
    found = named()
    assert [*found] == [name for kind in KINDS for name in (kind, f"{kind}-dropout")]
    for kind in KINDS:
        plain, dropped = found[kind], found[f"{kind}-dropout"]
        assert (plain.config, plain.groups) == (dropped.config, dropped.groups)
        codebook = dataclasses.replace(dropped.recipe.codebook, dropout=0.0)
        assert dataclasses.replace(dropped.recipe, codebook=codebook) == plain.recipe
        assert (dropped.recipe.codebook.dropout, dropped.recipe.codebook.dropout_from) == (0.1, 3)
    assert [*named(dropout=(0.1, 0.5), only=("vq",))] == ["vq-dropout0.1", "vq-dropout0.5"]


def test_kinds_are_what_they_are_called() -> None:
    """SimVQ with the rotation trick; HBQ is FSQ with four levels, its head in bits."""
    found = named(bits=(10,), dropout=(0.0,))
    assert found["simvq"].config.reparametrised
    assert found["simvq"].recipe.codebook.gradient == "rotation"
    assert found["vq"].config.codebook_size == 1024
    assert found["fsq"].config.levels == (8, 5, 5, 5)
    assert (found["hbq"].config.levels, found["hbq"].groups) == ((4,) * 5, (2,) * 10)
    assert found["bsq"].config.bits == 10
    assert (found["sphere"].config.codebook_size, found["sphere"].config.code_channels) == (1104, 24)
    assert {variant.name: told(variant) for variant in found.values()} == {
        "vq": "1,024 learned",
        "simvq": "1,024 moved together",
        "fsq": "levels 8,5,5,5",
        "hbq": "10 bits of levels",
        "bsq": "10 bits",
        "sphere": "1,104 fixed",
    }


def test_more_bits_a_code_come_with_as_many_tokens_and_with_as_many_bits() -> None:
    """Twice the bits: 30 tokens, and some 15 tokens of fewer maps; fewer bits cannot be made up for."""
    found = named(bits=(8, 16), dropout=(0.0, 0.1), only=("bsq",))
    assert [*found] == ["bsq", "bsq-dropout", *(f"bsq-16{end}" for end in ("", "-dropout", "-thin", "-thin-dropout"))]
    assert found["bsq-16"].config.picture_bits == 2 * found["bsq"].config.picture_bits
    thin = found["bsq-16-thin"].config
    assert thin.scales == Scales([1, 4])
    assert thin.picture_bits == pytest.approx(found["bsq"].config.picture_bits, rel=0.2)
    assert found["bsq-16-thin-dropout"].recipe.codebook.dropout_from == 1
    assert [*named(bits=(16, 8), dropout=(0.0,), only=("bsq",))] == ["bsq", "bsq-8"]


@pytest.mark.parametrize(
    ("scales", "tokens", "kept"),
    [
        ([1, 2, 3, 4, 6, 8], 81.25, [1, 4, 8]),
        ([1, 2, 3, 4, 6, 8], 999, [1, 2, 3, 4, 6, 8]),
        ([1, 2, 3, 4, 6, 8], 1, [1, 8]),
        ([1, (2, 3), (4, 6)], 31, [1, (2, 3), (4, 6)]),
        ([4], 9, [4]),
    ],
)
def test_fewer_maps_come_as_near_as_they_can(scales: list[Any], tokens: float, kept: list[Any]) -> None:
    """The first and the last stay."""
    assert thinned(Scales(scales), tokens) == Scales(kept)


def test_a_phi_for_each_scale_stays_one_for_each() -> None:
    """Where there are fewer scales."""
    each = ("architecture.phi_sharing=none", "architecture.phi_count=4")
    found = named(bits=(8, 16), dropout=(0.0,), only=("bsq",), changes=each)
    assert [variant.config.phi_count for variant in found.values()] == [4, 4, 2]


def test_the_transformer_is_the_same_but_for_its_head() -> None:
    """Of the depth asked for, fitted to each tokenizer; its recipe takes changes of its own."""
    wanted = asked(bits=(8,), depth=2, changes=("transformer.label_dropout=0.3", "optimization.batch=2"))
    sizes = set()
    for variant in variants(wanted):
        config, recipe = transformer_of(wanted, variant)
        assert (config.depth, config.width, recipe.label_dropout) == (2, 128, 0.3)
        assert variant.recipe.optimization.batch == 2
        head = fitted(config, MultiScaleVQVAE(variant.config, seed=None), classes=2)
        assert head.groups == (variant.groups or variant.config.digits)
        sizes.add(dataclasses.replace(head, groups=(), codebook_size=9, code_channels=9))
    assert len(sizes) == 1


def test_a_model_that_reads_is_studied_without_its_text() -> None:
    """Classes alone are the same for all data."""
    reads = dataclasses.replace(toys.TRANSFORMER.reading(vocabulary=300), classes=1)
    with pytest.MonkeyPatch.context() as patch:
        small = dataclasses.replace(presets.get("emoji-32"), transformer=reads)
        patch.setattr(presets, "get", lambda name: small)
        wanted = asked()
        assert transformer_of(wanted, variants(wanted)[0])[0].text is None


def test_the_warm_up_is_a_tenth_of_a_short_run() -> None:
    """Of a long one what the recipe says."""
    recipe, _ = recipes.for_preset("emoji-32")
    assert warmed(recipe, 50).optimization.warmup_steps == 5
    assert warmed(recipe, 10**6) == recipe


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": (9,)}, "bits: expected some of 8, 10, 12, 14, 16, got 9"),
        ({"bits": ()}, "bits: expected at least one value, and each once"),
        ({"dropout": (0.1, 0.1)}, "dropout: expected at least one value, and each once"),
        ({"dropout": (float("nan"),)}, "dropout: expected shares from 0 to 1, got nan"),
        (
            {"changes": ("architecture.levels=4,4",)},
            "set: expected architecture.levels of the study, got it as a setting",
        ),
        ({"depth": 0}, "depth: expected at least 1, got 0"),
        (
            {"only": ("vq", "lfq")},
            "only: expected some of vq, simvq, fsq, hbq, bsq, sphere, or names of cells, got 'lfq'",
        ),
        ({"changes": ("objective.entropy=0.1",)}, "fsq: objective.entropy: expected 0.0 for quantizer fsq, got 0.1"),
        ({"changes": ("transformer.x=1",)}, "unknown setting 'transformer.x'"),
    ],
)
def test_what_cannot_be_compared_is_told(changes: dict[str, Any], words: str) -> None:
    """Before anything is read."""
    with pytest.raises(InputError, match=words):
        variants(asked(**changes))
