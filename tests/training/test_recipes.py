"""Laws of recipes: the course of the learning rate, when a discriminator is heard, and settings given as text."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
from operator import attrgetter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale import Scales, presets
from nextscale.errors import InputError
from nextscale.training import recipes
from nextscale.training.recipes import Adversarial, Codebook, Objective, Recipe, TokenizerRecipe, TransformerRecipe

RECIPE = Recipe(
    batch=4, learning_rate=0.5, betas=(0.9, 0.95), weight_decay=0.1, warmup_steps=10, final_rate=0.2, clip=1.0
)
TOKENIZER = TokenizerRecipe(optimization=RECIPE)


def test_recipes_are_read_without_torch() -> None:
    """Help texts and tables show them at once."""
    program = "import sys; from nextscale.training import recipes; recipes.for_preset('var-d16')"
    asked = f"{program}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0


# ---- the learning rate -----------------------------------------------------------------------------------------------


def test_the_rate_rises_to_the_peak_and_falls_in_a_line() -> None:
    """Ten steps up from a tenth; then down to the final share, which the step after the last would have."""
    rates = [RECIPE.rate(step, 110) for step in range(111)]
    assert rates[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert max(rates) == rates[10] == 0.5
    assert rates[110] == pytest.approx(0.1)
    falls = [before - after for before, after in itertools.pairwise(rates[10:])]
    assert falls == pytest.approx([0.4 / 100] * 100)


def test_the_rate_is_at_its_peak_while_the_end_is_unknown() -> None:
    """A budget in minutes begins so; the warm-up is the same."""
    assert [RECIPE.rate(step, None) for step in (0, 9, 10, 500)] == pytest.approx([0.05, 0.5, 0.5, 0.5])


RELEASE = dataclasses.replace(
    RECIPE, warmup_steps=0, warmup=0.02, first_rate=0.005, flat=0.05, final_rate=0.1, final_weight_decay=1.6
)


def test_the_release_warms_up_stays_and_falls() -> None:
    """2 % of the run up from 0.005 of the peak, flat to 5 %, a line to a tenth."""
    rates = [RELEASE.rate(step, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.5 * (0.005 + 0.995 / 20))
    assert rates[19:51] == pytest.approx([0.5] * 32)
    assert rates[525] == pytest.approx(0.5 * 0.55)
    assert rates[1000] == pytest.approx(0.05)


def test_the_longer_warm_up_counts() -> None:
    """A share of a short run is a few steps, too few for AdamW's averages."""
    both = dataclasses.replace(RELEASE, warmup_steps=40)
    for total, rising in ((1000, 40), (10_000, 200)):
        assert both.rate(rising - 2, total) < 0.499
        assert both.rate(rising - 1, total) == pytest.approx(0.5)


def test_a_cosine_falls_slowly_at_both_ends() -> None:
    """Half of the way it is in the middle between peak and final rate."""
    recipe = dataclasses.replace(RELEASE, fall="cosine")
    line = [RELEASE.rate(step, 1000) for step in range(1001)]
    curve = [recipe.rate(step, 1000) for step in range(1001)]
    assert curve[525] == pytest.approx(line[525])
    assert curve[1000] == pytest.approx(line[1000])
    assert curve[200] > line[200] + 0.02
    assert curve[850] < line[850] - 0.02


def test_a_root_falls_fast_at_first() -> None:
    """By 1 - sqrt: half of the way down after a quarter of the fall."""
    recipe = dataclasses.replace(RELEASE, fall="sqrt", flat=0.2, final_rate=0.0)
    assert [recipe.rate(step, 1000) for step in (200, 400, 1000)] == pytest.approx([0.5, 0.25, 0.0])


def test_a_plateau_lasts_until_the_fall() -> None:
    """Of a run of 1000 steps 800, after a warm-up in steps; as many as the share of the length that is told."""
    held = RELEASE.until_the_fall(0.2, 1500)
    assert (held.warmup, held.warmup_steps, held.plateau(1000)) == (0.0, 30, 800)
    assert [held.rate(step, 1000) for step in (29, 500, 800)] == pytest.approx([0.5] * 3)
    assert held.rate(900, 1000) == pytest.approx(0.5 * 0.55)
    assert held.open_ended is False  # its weight decay grows
    steady = dataclasses.replace(held, final_weight_decay=1.0)
    assert (steady.open_ended, steady.endless) == (True, False)


def test_steps_of_a_plateau_do_not_know_its_length() -> None:
    """Rates and decays before the fall are the same for every length."""
    recipe = dataclasses.replace(RECIPE.until_the_fall(0.25, 100), warmup_steps=10)
    for total in (80, 100, 333):
        for step in range(recipe.plateau(total)):
            assert recipe.rate(step, total) == recipe.rate(step, 1000)
            assert recipe.decay(step, total) == recipe.decay(step, 1000)
        assert recipe.rate(recipe.plateau(total) + 1, total) < 0.5


@pytest.mark.parametrize(("share", "endless"), [(0.0, True), (0.1, False)])
def test_a_run_without_a_fall_has_no_end(share: float, endless: bool) -> None:
    """At its peak all along, whatever the final rate would be."""
    recipe = RECIPE.until_the_fall(share, 100)
    assert recipe.endless is endless
    assert (recipe.rate(99, 100) == 0.5) is endless
    assert recipe.plateau(100) == (100 if endless else 90)


@given(share=st.floats(0, 0.99), done=st.integers(20, 100_000))
@settings(max_examples=100, deadline=None)
def test_a_length_by_share_begins_to_fall_where_the_plateau_is(share: float, done: int) -> None:
    """As the command line reckons it."""
    total = round(done / (1 - share))
    assert RECIPE.until_the_fall(share, 100).plateau(total) == done


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_no_run_is_all_fall(share: float) -> None:
    """The warm-up has to be followed by something."""
    with pytest.raises(InputError, match="cooldown: expected a share from 0 to below 1, got"):
        RECIPE.until_the_fall(share, 100)


def test_weight_decay_grows_by_a_cosine() -> None:
    """As d30's does, from 0.05 to 0.08."""
    recipe = dataclasses.replace(RELEASE, weight_decay=0.05)
    assert [recipe.decay(step, 100) for step in (0, 50, 100)] == pytest.approx([0.05, 0.065, 0.08])
    assert recipe.decay(7, None) == 0.05
    assert {RECIPE.decay(step, 100) for step in range(100)} == {0.1}


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 5), (10, 4), (10, 10), (1, 2)])
def test_the_rate_is_positive_and_never_above_the_peak(warmup: int, total: int) -> None:
    """Also in runs shorter than their warm-up, or without one."""
    recipe = dataclasses.replace(RECIPE, warmup_steps=warmup)
    assert all(0 < recipe.rate(step, total) <= 0.5 for step in range(total))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning rate: expected more than 0, got 0.0"),
        ({"learning_rate": math.nan}, "learning rate: expected more than 0, got nan"),
        ({"clip": 0.0}, "clip: expected more than 0, got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay: expected at least 0, got -0.1"),
        ({"warmup_steps": -1}, "warmup_steps: expected at least 0, got -1"),
        ({"final_rate": 1.5}, "final_rate: expected a share from 0 to 1, got 1.5"),
        ({"betas": (0.9, 1.0)}, r"betas: expected two numbers from 0 to below 1, got \(0.9, 1.0\)"),
        ({"muon_rate": 0.1}, "muon_rate: expected 0 without optimizer=muon, got 0.1"),
        ({"optimizer": "muon", "muon_rate": -0.1}, "muon_rate: expected at least 0, got -0.1"),
        ({"accumulate": 0}, "accumulate: expected at least 1, got 0"),
        ({"accumulate": 3}, "accumulate: expected a divisor of the batch of 4, got 3"),
    ],
)
def test_nonsense_is_refused(change: dict[str, float], told: str) -> None:
    """In words that say what was expected."""
    with pytest.raises(InputError, match=told):
        dataclasses.replace(RECIPE, **change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weight": -1.0}, "adversarial.weight: expected at least 0, got -1.0"),
        ({"lecam": math.nan}, "adversarial.lecam: expected at least 0, got nan"),
        ({"learning_rate": 0.0}, "adversarial.learning_rate: expected more than 0, got 0.0"),
        ({"betas": (-0.1, 0.9)}, r"adversarial.betas: expected two numbers from 0 to below 1, got \(-0.1, 0.9\)"),
    ],
)
def test_nonsense_about_a_discriminator_is_refused(change: dict[str, Any], told: str) -> None:
    """Likewise."""
    with pytest.raises(InputError, match=told):
        Adversarial(**change)


# ---- the transformer's recipe ----------------------------------------------------------------------------------------

TRANSFORMER = TransformerRecipe(optimization=RECIPE)


def test_scales_are_added_at_even_distances() -> None:
    """From the fourth on, over half of the run; the new one's weight grows meanwhile."""
    recipe = dataclasses.replace(TRANSFORMER, progressive=0.5, progressive_from=4)
    assert [recipe.scales_learned(step, 120, 10) for step in (0, 5, 10, 60, 119)] == pytest.approx([4, 4.5, 5, 10, 10])
    assert recipe.scales_learned(100, None, 10) == 4
    assert recipe.scales_learned(0, 120, 3) == 3
    assert TRANSFORMER.scales_learned(0, 120, 10) == 10


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"label_dropout": 1.5}, "label_dropout: expected a share from 0 to 1, got 1.5"),
        ({"token_noise": -0.1}, "token_noise: expected a share from 0 to 1, got -0.1"),
        ({"average": 1.0}, "average: expected 0 <= average < 1, got 1.0"),
        ({"progressive_from": 0}, "progressive_from: expected at least 1, got 0"),
        ({"drop_path_rise": 2.0}, "drop_path_rise: expected a share from 0 to 1, got 2.0"),
        ({"scale_exponent": 5.0}, "scale_exponent: expected -4 .. 4, got 5.0"),
        (
            {"scale_exponent": 1.0, "scale_weights": (1.0, 2.0)},
            "scale_exponent: expected 0 beside scale_weights, got 1",
        ),
        ({"scale_weights": (0.0, 0.0)}, r"scale_weights: expected numbers from 0 on, not all 0, got \(0.0, 0.0\)"),
    ],
)
def test_nonsense_about_a_transformer_is_refused(change: dict[str, Any], told: str) -> None:
    """Likewise."""
    with pytest.raises(InputError, match=told):
        dataclasses.replace(TRANSFORMER, **change)


@pytest.mark.parametrize("name", ["progressive", "drop_path_rise"])
def test_what_rises_over_a_share_of_a_run_has_an_end(name: str) -> None:
    """Such a run cannot be made longer, nor its plateau be that of another length."""
    steady = dataclasses.replace(TRANSFORMER, optimization=RECIPE.until_the_fall(0, 100))
    assert (steady.endless, steady.open_ended) == (True, True)
    rising = dataclasses.replace(steady, **{name: 0.5})
    assert (rising.endless, rising.open_ended) == (False, False)


def test_progressive_training_begins_with_something() -> None:
    """The scales that are learned alone at first must count."""
    recipe = dataclasses.replace(TRANSFORMER, progressive=0.5, progressive_from=2, scale_weights=(0.0, 0.0, 1.0))
    with pytest.raises(InputError, match="scale_weights: expected one above 0 among the first 2 scales"):
        recipe.check(Scales([1, 2, 3]))
    dataclasses.replace(recipe, progressive=0.0).check(Scales([1, 2, 3]))


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_has_a_transformer_recipe(name: str) -> None:
    """Whose values can all be set to what they are."""
    recipe, steps = recipes.for_transformer(name)
    assert steps > 0
    recipe.check(presets.get(name).transformer.scales)


def test_the_release_s_recipes_are_those_of_the_paper() -> None:
    """Steps, batch and rates of d16 and d30 on ImageNet."""
    (d16, steps16), (d30, steps30) = recipes.for_transformer("var-d16"), recipes.for_transformer("var-d30")
    assert (steps16, steps30) == (333_637, 437_898)
    assert (d16.optimization.batch, d30.optimization.batch) == (768, 1024)
    assert (d16.optimization.learning_rate, d30.optimization.learning_rate) == pytest.approx((3e-4, 3.2e-4))
    assert (d16.optimization.final_rate, d30.optimization.final_rate) == (0.1, 0.01)
    assert d30.optimization.decay(steps30, steps30) == pytest.approx(0.08)


# ---- the discriminator's moments -------------------------------------------------------------------------------------

PATCH = Adversarial(discriminator="patch", start=0.4, warmup=0.1, ramp=0.2)


def test_a_discriminator_learns_from_its_start_and_is_heard_after_its_warm_up() -> None:
    """Of 100 steps: silence until 40, learning alone until 50, then in a line up to all of it at 70."""
    assert [step for step in range(100) if PATCH.learns(step, 100)] == list(range(40, 100))
    heard = [PATCH.heard(step, 100) for step in range(100)]
    assert heard[:51] == [0.0] * 51
    assert heard[50:71] == pytest.approx([step / 20 for step in range(21)])
    assert heard[70:] == [1.0] * 30


def test_nobody_is_heard_while_the_end_is_unknown_or_there_is_nobody() -> None:
    """Shares of a run mean nothing before its length is known."""
    for recipe, total in ((PATCH, None), (dataclasses.replace(PATCH, discriminator="none"), 100)):
        assert not any(recipe.learns(step, total) for step in range(100))
        assert not any(recipe.heard(step, total) for step in range(100))


@given(start=st.floats(0, 1), warmup=st.floats(0, 1), ramp=st.floats(0, 1), total=st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_what_is_heard_has_learned_and_grows(start: float, warmup: float, ramp: float, total: int) -> None:
    """Whatever the shares, also where they are more than the run, or 0."""
    recipe = dataclasses.replace(PATCH, start=start, warmup=warmup, ramp=ramp)
    heard = [recipe.heard(step, total) for step in range(total)]
    assert all(0 <= value <= 1 for value in heard)
    assert heard == sorted(heard)
    assert all(recipe.learns(step, total) for step, value in enumerate(heard) if value)
    assert sum(value > 0 for value in heard) <= (1 - min(start + warmup, 1)) * total + 1


def test_without_a_ramp_the_whole_is_heard_at_once() -> None:
    """One step after the warm-up."""
    recipe = dataclasses.replace(PATCH, ramp=0.0)
    assert [recipe.heard(step, 100) for step in (49, 50, 51, 99)] == [0, 0, 1, 1]


# ---- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_has_a_recipe(name: str) -> None:
    """Whose values are all there; the release's presets share one tokenizer, and so one recipe."""
    recipe, steps = recipes.for_preset(name)
    assert steps > recipe.optimization.warmup_steps > 0
    assert recipe.objective.l2 > 0
    assert recipe.adversarial.heard(steps - 1, steps) == (0 if recipe.adversarial.discriminator == "none" else 1)
    if name.startswith("var-"):
        assert (recipe, steps) == recipes.for_preset("var-d16")


# ---- as records ------------------------------------------------------------------------------------------------------


def test_runs_with_adamw_are_recognised_by_what_they_were_before_there_was_muon() -> None:
    """Values added later are recorded only where they say something."""
    plain = recipes.recorded(recipes.for_transformer("emoji-32")[0])["optimization"]
    assert not {"optimizer", "muon_rate"} & plain.keys()
    later = {"start", "scale_exponent", "drop_path_rise", "self_correction"}
    assert not later & recipes.recorded(recipes.for_transformer("emoji-32")[0]).keys()
    muon = recipes.changed(TRANSFORMER, ["optimization.optimizer=muon", "optimization.muon_rate=0.02"])
    assert recipes.recorded(muon)["optimization"] == recipes.recorded(RECIPE) | {"optimizer": "muon", "muon_rate": 0.02}


# ---- settings as text ------------------------------------------------------------------------------------------------


def test_settings_change_what_they_name_and_nothing_else() -> None:
    """Every type that a recipe holds, at every depth; later ones win."""
    changed = recipes.changed(
        TOKENIZER,
        [
            "flip=true",
            "average=0",
            "optimization.batch=8",
            "optimization.betas=0.5,0.9",
            "objective.perceptual = 1e-1",
            "codebook.learning=average",
            "codebook.restart_every=7",
            "codebook.restart_every=8",
            "adversarial.adaptive_range=0, 3",
        ],
    )
    assert changed == TokenizerRecipe(
        optimization=dataclasses.replace(RECIPE, batch=8, betas=(0.5, 0.9)),
        objective=Objective(perceptual=0.1),
        codebook=Codebook(learning="average", restart_every=8),
        adversarial=Adversarial(adaptive_range=(0.0, 3.0)),
        average=0.0,
        flip=True,
    )
    assert type(changed.optimization.batch) is int
    assert type(changed.average) is float
    assert recipes.changed(TOKENIZER, []) == TOKENIZER


def test_settings_are_taken_all_at_once() -> None:
    """Values that only go together may come in any order."""
    for order in itertools.permutations(["optimization.batch=6", "optimization.accumulate=3"]):
        changed = recipes.changed(TOKENIZER, order).optimization
        assert (changed.batch, changed.accumulate) == (6, 3)


def test_settings_change_architectures_too() -> None:
    """Scales, tuples of integers, names; contradictions raise as they do when a config is made."""
    config = presets.get("emoji-32").tokenizer
    wanted = ["scales=1,2,3x4,8", "multipliers=1,2", "distance=cosine", "code_channels=8"]
    assert recipes.changed(config, wanted) == dataclasses.replace(
        config, scales=Scales([1, 2, (3, 4), 8]), multipliers=(1, 2), distance="cosine", code_channels=8
    )
    for setting, told in (
        ("scales=1,two", "scales: expected sizes such as 1,2,3,4x6, got '1,two'"),
        ("scales=2,1", "scales: expected coarse to fine, got 2x2 before 1x1"),
        ("multipliers=1,2.5", "multipliers: expected numbers such as"),
        ("phi_sharing=all", "phi_count: 4 does not go with sharing 'all'"),
        ("code_chanels=8", "did you mean code_channels?"),
    ):
        with pytest.raises(InputError) as caught:
            recipes.changed(config, [setting])
        assert told in str(caught.value)


def as_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).replace("False", "false")


@pytest.mark.parametrize("name", [*recipes.names(TOKENIZER)])
def test_every_value_can_be_set_to_what_it_is(name: str) -> None:
    """The names are all there are, and text says each of them."""
    text = as_text(attrgetter(name)(TOKENIZER))
    assert recipes.changed(TOKENIZER, [f"{name}={text}"]) == TOKENIZER


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("flip", "--set: expected NAME=VALUE, got 'flip'"),
        ("objective.perceptul=1", "unknown setting 'objective.perceptul'; did you mean objective.perceptual?"),
        ("codebook.lerning=average", "unknown setting 'codebook.lerning'; did you mean codebook.learning?"),
        ("perceptual=1", "unknown setting 'perceptual'; did you mean objective.perceptual?"),
        ("dropout=1", "did you mean codebook.dropout"),
        ("zzz=1", "unknown setting 'zzz'; expected one of optimization.*, objective.*, codebook.*, adversarial.*"),
        ("objective=3", "unknown setting 'objective'"),
        ("objective.l2.x=3", "unknown setting 'objective.l2.x'; did you mean objective.l2?"),
        ("=3", "unknown setting ''"),
        ("__class__=3", "unknown setting '__class__'"),
        ("optimization.batch=4.0", "optimization.batch: expected an integer, got '4.0'"),
        ("objective.l2=much", "objective.l2: expected a number, got 'much'"),
        ("objective.l2=inf", "objective.l2: expected a finite number, got 'inf'"),
        ("optimization.betas=0.9,nan", "optimization.betas: expected finite numbers, got '0.9,nan'"),
        ("optimization.betas=0.5", "optimization.betas: expected 2 numbers, got '0.5'"),
        ("optimization.betas=a,b", "optimization.betas: expected numbers such as 0.5,0.9, got 'a,b'"),
        ("flip=yes", "flip: expected true or false, got 'yes'"),
        ("codebook.start=zero", "codebook.start: expected one of random, kmeans, got 'zero'"),
        ("objective.l2=-1", "objective.l2: expected at least 0, got -1.0"),
        ("objective.l1=nan", "objective.l1: expected a finite number, got 'nan'"),
        ("codebook.decay=1", "codebook.decay: expected 0 <= decay < 1, got 1.0"),
        ("codebook.restart_every=-1", "codebook.restart_every: expected at least 0, got -1"),
        ("codebook.dropout_from=0", "codebook.dropout_from: expected at least 1, got 0"),
        ("codebook.dropout=1.5", "codebook.dropout: expected a share from 0 to 1, got 1.5"),
        ("adversarial.start=2", "adversarial.start: expected a share from 0 to 1, got 2.0"),
        ("adversarial.adaptive_range=3,2", "adversarial.adaptive_range: expected 0 <= low <= high, got 3.0 and 2.0"),
        ("average=1", "average: expected 0 <= average < 1, got 1.0"),
        ("optimization.optimizer=lion", "optimization.optimizer: expected one of adamw, muon, got 'lion'"),
        ("optimization.optimizer=muon", "optimization.optimizer: expected adamw for a tokenizer, got muon"),
        ("optimization.accumulate=3", "accumulate: expected a divisor of the batch of 4, got 3"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(setting: str, told: str) -> None:
    """In one line, with the nearest name or with what was expected."""
    with pytest.raises(InputError) as caught:
        recipes.changed(TOKENIZER, [setting])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
