"""Laws of `--set` about codes: what the two trainers make of it, without training."""

from __future__ import annotations

import pytest

from nextscale import InputError, presets
from nextscale.cli.train_tokenizer import TrainTokenizer
from nextscale.cli.train_transformer import TrainTransformer
from nextscale.training import recipes

BITS = ("architecture.quantizer=bsq", "architecture.bits=12")


def test_a_tokenizer_of_fixed_codes_has_a_recipe_that_suits_them() -> None:
    """Codes and channels follow from the bits; what only a codebook has is left out; the rest is the preset's."""
    command = TrainTokenizer(preset="emoji-32", set=(*BITS, "objective.entropy=0.2"))
    config = command._config()
    assert (config.codebook_size, config.code_channels, config.channels) == (4096, 12, 32)
    recipe, steps = command._recipe(config)
    preset, usual = recipes.for_preset("emoji-32")
    assert (recipe.objective.codebook, recipe.objective.commitment, recipe.objective.entropy) == (0, 0, 0.2)
    assert (recipe.codebook.start, recipe.codebook.restart_every) == ("random", 0)
    assert (recipe.optimization, steps) == (preset.optimization, usual)
    plain = TrainTokenizer(preset="emoji-32")
    assert plain._recipe(plain._config()) == (preset, usual)


def test_what_makes_no_sense_for_fixed_codes_is_told_before_data_is_read() -> None:
    """In one line."""
    command = TrainTokenizer(preset="emoji-32", set=(*BITS, "codebook.start=kmeans"))
    with pytest.raises(InputError, match="codebook.start: expected random for quantizer bsq, got kmeans"):
        command._recipe(command._config())


def test_a_transformer_predicts_in_the_groups_asked_for() -> None:
    """Of the architecture nothing else can be set; the recipe has the other settings."""
    preset = presets.get("emoji-32")
    command = TrainTransformer(set=("architecture.groups=8,8,8", "token_noise=0.1"))
    assert command._chosen(preset.transformer).groups == (8, 8, 8)
    recipe, _ = command._recipe(preset, None, reads=False)
    assert recipe.token_noise == 0.1
    with pytest.raises(InputError, match="transformer groups: expected a product of 512"):
        TrainTransformer(set=("architecture.groups=2,2",))._chosen(preset.transformer)
    with pytest.raises(InputError, match="unknown setting 'architecture.depth'"):
        TrainTransformer(set=("architecture.depth=2",))._recipe(preset, None, reads=False)
