"""Laws of training with other codes than a plain codebook: gains, terms, refusals, figures, and going on."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training import toy as toys
from training.toy import CORNERS, LEVELS, PAIRS, TOKENIZER
from training.two_processes import run

from nextscale import InputError, MultiScaleVQVAE
from nextscale.config import TokenizerConfig
from nextscale.training.loop import recorded
from nextscale.training.losses import bit_entropy
from nextscale.training.tokenizer import gains, health

TOGETHER = dataclasses.replace(TOKENIZER, reparametrised=True)
MANY = dataclasses.replace(TOKENIZER, quantizer="fsq", levels=(16,) * 5)  # more than are counted
KINDS = {
    "corners": (CORNERS, toys.OF_FIXED_CODES),
    "pairs": (PAIRS, ("codebook.dropout=0.5", "adversarial.discriminator=patch", "adversarial.start=0.1")),
    "reparametrised, turned": (TOGETHER, (*toys.OF_FIXED_CODES, "codebook.gradient=rotation")),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_any_kind_continues_bit_for_bit(kind: str, tmp_path: Path) -> None:
    """With every option on: another stage goes on after two of four steps; the model is read back whole."""
    config, settings = KINDS[kind]
    whole = run(lambda: toys.stage(settings, config=config), tmp_path / "whole", steps=4)
    cut = run(lambda: toys.stage(settings, config=config), tmp_path / "cut", cut=2, steps=4)
    assert toys.state_of(cut) == toys.state_of(whole)
    loaded = MultiScaleVQVAE.load(tmp_path / "cut").state_dict()
    assert all(torch.equal(tensor, whole.best_model.state_dict()[name]) for name, tensor in loaded.items())


@pytest.mark.slow
@pytest.mark.parametrize("config", [CORNERS, LEVELS, PAIRS], ids=["corners", "levels", "pairs"])
def test_pictures_become_more_like_the_originals(config: TokenizerConfig) -> None:
    """Every phi, and the encoder, learn by the pixels alone where codes are fixed."""
    stage = toys.stage(config=config, batch=8)
    stage.prepare()
    before, phis = stage.validate()["l2"], copy.deepcopy(stage.model.quantizer.phis)
    for step in range(15):
        assert stage.update(step, 15).finite
    assert stage.validate()["l2"] < 0.9 * before
    for phi, old in zip(stage.model.quantizer.phis, phis, strict=True):
        assert not torch.equal(phi.weight, old.weight)


# ---- gains -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CORNERS, LEVELS, PAIRS], ids=["corners", "levels", "pairs"])
def test_gains_leave_least_of_the_residuals(config: TokenizerConfig) -> None:
    """Of a few multiples of their size; each scale's by what the measured ones before have left."""
    quantizer = MultiScaleVQVAE(config, seed=3).quantizer
    numbers = torch.Generator().manual_seed(0)
    f = 7 * torch.randn(16, config.code_channels, 4, 4, generator=numbers)
    gains.measure(quantizer, f)
    residuals = [z.detach() for z in quantizer(f).residuals]
    for k, z in enumerate(residuals):
        gain = quantizer.gain_K[k]
        assert gain > 0

        def left(gain: Tensor, z: Tensor = z) -> float:
            return float((z - gain * quantizer.codebook(quantizer.nearest(z / gain))).square().sum())

        assert left(gain) <= min(left(gain * 2**0.25), left(gain / 2**0.25))
        assert left(gain) < 0.9 * float(z.square().sum())
        torch.testing.assert_close(gains.best(quantizer, z / 10), gain / 10)


def test_gains_follow_until_late_in_the_run() -> None:
    """A hundredth of the way a step; of a blank picture they stay above 0."""
    quantizer = MultiScaleVQVAE(CORNERS, seed=3).quantizer
    before = quantizer.gain_K.clone()
    residuals = [z.detach() for z in quantizer(torch.ones(2, 20, 4, 4)).residuals]
    gains.follow(quantizer, residuals)
    wanted = torch.stack([gains.best(quantizer, z) for z in residuals])
    torch.testing.assert_close(quantizer.gain_K, 0.99 * before + 0.01 * wanted)
    assert gains.best(quantizer, torch.zeros(5, 20)) > 0
    assert [gains.follows(step, 10) for step in (0, 8, 9)] == [True, True, False]
    assert gains.follows(5, None)


# ---- terms -----------------------------------------------------------------------------------------------------------


def test_the_entropy_of_bits_is_that_of_all_corners() -> None:
    """Brute force over 2^d: softmax of -tau |u - c|^2. Of the mean it is an upper bound, exact for one vector."""
    d, tau = 5, 3.0
    u = torch.nn.functional.normalize(torch.randn(9, d, generator=torch.Generator().manual_seed(0)), dim=1).double()
    bits = torch.arange(2**d)[:, None] >> torch.arange(d) & 1
    corners = (2 * bits - 1).double() / d**0.5
    p = (-tau * torch.cdist(u, corners).square()).softmax(dim=1)
    of_each = torch.special.entr(p).sum(dim=1).mean()
    marginal = p.mean(dim=0) @ bits.double()
    bound = (torch.special.entr(marginal) + torch.special.entr(1 - marginal)).sum()
    torch.testing.assert_close(bit_entropy(u, tau=tau), of_each - bound)
    assert bound >= torch.special.entr(p.mean(dim=0)).sum()
    torch.testing.assert_close(bit_entropy(u[:1], tau=tau), torch.zeros(()).double(), atol=1e-9, rtol=0)


def test_the_entropy_of_bits_is_finite_where_they_are_sure() -> None:
    """At corners, at the published tau, its gradient too."""
    u = (torch.ones(4, 3) * 3**-0.5).requires_grad_()
    bit_entropy(u).backward()
    assert u.grad.isfinite().all()


@pytest.mark.parametrize(
    ("config", "setting", "words"),
    [
        (LEVELS, "objective.commitment=0.25", "objective.commitment: expected 0.0 for quantizer fsq, got 0.25"),
        (LEVELS, "objective.entropy=0.1", "objective.entropy: expected 0.0 for quantizer fsq, got 0.1"),
        (CORNERS, "objective.codebook=1", "objective.codebook: expected 0.0 for quantizer bsq, got 1.0"),
        (CORNERS, "codebook.start=kmeans", "codebook.start: expected random for quantizer bsq, got kmeans"),
        (CORNERS, "codebook.restart_every=5", "codebook.restart_every: expected 0 for quantizer bsq, got 5"),
        (CORNERS, "codebook.gradient=rotation", "codebook.gradient: expected straight for quantizer bsq"),
        (PAIRS, "objective.commitment=0.25", "objective.commitment: expected 0.0 for quantizer sphere, got 0.25"),
        (TOGETHER, "codebook.learning=average", "codebook.learning: expected gradient for reparametrised codes"),
    ],
)
def test_settings_that_make_no_sense_are_told(config: TokenizerConfig, setting: str, words: str) -> None:
    """In one line."""
    with pytest.raises(InputError, match=words):
        toys.stage([setting], config=config)


def test_a_recipe_suited_to_a_plain_codebook_is_the_same() -> None:
    """And its record has nothing of what came later, so that older runs go on."""
    recipe = toys.recipe(toys.EVERYTHING)
    assert recipe.suited(TOKENIZER) == recipe
    later = {"codebook": {"gradient"}, "objective": {"semantic"}, "optimization": {"optimizer", "muon_rate"}}
    whole = {name: value for name, value in dataclasses.asdict(recipe).items() if name in later}
    for part, names in later.items():
        assert recorded(recipe)[part] == {name: value for name, value in whole[part].items() if name not in names}
    turned = recorded(toys.recipe(["codebook.gradient=rotation"]))
    assert turned["codebook"]["gradient"] == "rotation"
    assert recorded(recipe) | later == dataclasses.asdict(recipe) | later


# ---- figures ---------------------------------------------------------------------------------------------------------


def figures_of(config: TokenizerConfig) -> tuple[dict[str, float], Any]:
    stage = toys.stage(config=config)
    stage.prepare()
    validation = stage.validate()
    return validation, stage.health(validation, [], [])


def test_countable_codes_are_counted_and_others_are_by_their_digits() -> None:
    """A column a scale, and what a picture's tokens can tell."""
    validation, told = figures_of(LEVELS)
    assert validation["codes_used_scale_4"] > 1
    assert told.table[-1] == f"a picture is 30 tokens of {math.log2(60):.3g} bits: 177 bits, 2.77 a pixel"
    validation, told = figures_of(MANY)
    assert "codes_used_scale_1" not in validation
    assert 0 < validation["evenness_scale_4"] <= 1
    assert [row.split()[0] for row in told.table[:5]] == ["scale", "evenness", "still", "residual", "PSNR"]


def test_a_scale_whose_bits_stand_still_is_told() -> None:
    """With something to try for its kind of codes."""
    figures = {f"evenness_scale_{k}": 0.9 for k in range(1, 5)} | {f"still_scale_{k}": 0.0 for k in range(1, 5)}
    assert health.warnings(CORNERS, figures, [], 9) == []
    (warning,) = health.warnings(CORNERS, figures | {"still_scale_2": 11.0}, [], 9)
    assert "scale 2x2 has collapsed: 11 of 20 channels" in warning
    assert "try a larger objective.entropy" in warning
