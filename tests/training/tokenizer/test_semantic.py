"""Laws of the semantic term: what it compares, whom it moves, and that a run without it is what it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import toy as toys
from training.toy import CORNERS, TOKENIZER, Tiny
from training.two_processes import run

from nextscale import InputError, MultiScaleVQVAE, Scales, features
from nextscale.config import TokenizerConfig
from nextscale.features.dino import DINO
from nextscale.training.losses import misaligned
from nextscale.training.recipes import Objective, recorded
from nextscale.training.tokenizer import health
from nextscale.training.tokenizer.semantic import Semantic

ON = ("objective.semantic=0.5",)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def semantic(config: TokenizerConfig = TOKENIZER, network: features.FeatureNetwork | None = None) -> Semantic:
    return Semantic(network or Tiny(), config, torch.Generator().manual_seed(0))


# ---- what is compared ------------------------------------------------------------------------------------------------


def test_the_term_is_one_less_the_cosine_at_each_place() -> None:
    """Lengths do not matter; opposite directions cost 2."""
    ours, theirs = drawn(2, 5, 3, 4), drawn(2, 5, 3, 4, seed=1)
    cosines = [
        F.cosine_similarity(ours[b, :, y, x], theirs[b, :, y, x], dim=0)
        for b in range(2)
        for y in range(3)
        for x in range(4)
    ]
    torch.testing.assert_close(misaligned(ours, 7 * theirs), 1 - torch.stack(cosines).mean())
    torch.testing.assert_close(misaligned(ours, -3 * ours), torch.tensor(2.0))


def test_targets_are_the_last_map_in_the_grid_of_the_features() -> None:
    """Of pictures enlarged until the network's cells are the tokenizer's: here a network of stride 16, 4x4 cells."""
    found, pictures = semantic(), drawn(3, 3, 8, 8).clamp(-1, 1)
    assert found.side == 64
    targets = found.targets(pictures)
    assert targets.shape == (3, 6, 4, 4)
    assert torch.equal(targets, Tiny().maps(pictures, 64)[-1])
    assert not targets.requires_grad
    wide = semantic(dataclasses.replace(TOKENIZER, scales=Scales([1, (2, 3), (4, 7)])))
    assert wide.targets(drawn(2, 3, 8, 14).clamp(-1, 1)).shape == (2, 6, 4, 7)
    fine = semantic(dataclasses.replace(TOKENIZER, scales=Scales([1, 4, 16])))
    assert fine.side == Tiny.side  # 16 cells would take 256 pixels
    assert fine.targets(drawn(2, 3, 32, 32).clamp(-1, 1)).shape == (2, 6, 16, 16)


def test_patches_of_a_vision_transformer_are_compared_too() -> None:
    """DINO's maps have a cell a patch; the projection is as wide as they are."""
    network = DINO(patch=16, grid=14)
    network.assign({name: torch.zeros(w.shape) for name, w in network.state_dict().items()})
    found = semantic(TOKENIZER, network)
    assert (found.side, found.projection.out_channels) == (64, 384)
    assert found.targets(drawn(1, 3, 8, 8).clamp(-1, 1)).shape == (1, 384, 4, 4)


def test_a_network_without_maps_is_refused() -> None:
    """In one line."""
    flat = features.of_module(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), name="flat", side=8)
    with pytest.raises(InputError, match="flat: expected a network with inner maps"):
        semantic(TOKENIZER, flat)


# ---- whom it moves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TOKENIZER, CORNERS], ids=["codebook", "corners"])
def test_it_moves_the_encoder_and_the_projection_alone(config: TokenizerConfig) -> None:
    """With no other term: neither decoder nor codes nor phis get a gradient of it."""
    stage = toys.stage([*ON, "objective.l2=0", "objective.l1=0"], config=config)
    weights = dataclasses.replace(stage.recipe.objective, codebook=0.0, commitment=0.0, entropy=0.0)
    stage.recipe = dataclasses.replace(stage.recipe, objective=weights)
    stage.prepare()
    stage.update(0, 10)
    assert stage.semantic is not None
    moved = {name.split(".")[0] for name, w in stage.model.named_parameters() if w.grad is not None and w.grad.any()}
    assert moved == {"encoder", "pre_quantizer"}
    assert stage.semantic.projection.weight.grad.any()
    assert all(weight.grad is None for weight in stage.semantic.network.parameters())


def test_the_loss_is_larger_by_the_weighted_term() -> None:
    """Of the step's own pictures; what is reported is the term unweighted."""
    plain, more = toys.stage(), toys.stage(ON)
    before, after = (stage.update(3, 10).figures for stage in (plain, more))
    pictures = plain.inputs(3)
    model = MultiScaleVQVAE(TOKENIZER, seed=0)
    projected = toys.stage(ON).semantic.projection(model.features(pictures))
    term = misaligned(projected, more.semantic.targets(pictures)).item()
    assert after["semantic"] == pytest.approx(term, rel=1e-4)
    assert after["loss"] == pytest.approx(before["loss"] + 0.5 * term, rel=1e-4)
    assert "semantic" not in before


@pytest.mark.slow
def test_features_come_nearer_to_the_network_s() -> None:
    """On held-out pictures, which the table says in its last line."""
    stage = toys.stage(["objective.semantic=5"], batch=8)
    stage.prepare()
    before = stage.validate()["semantic"]
    for step in range(15):
        assert stage.update(step, 15).finite
    validation = stage.validate()
    assert validation["semantic"] < 0.8 * before
    cosine = f"{1 - validation['semantic']:.3f}"
    assert stage.health(validation, [], []).table[-1] == (
        f"projected features have a cosine of {cosine} with those of Tiny"
    )
    assert len(health.alignment("EffNetLite0", {"semantic": 2.0})) <= 80


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_without_weight_nothing_of_it_is_there() -> None:
    """Neither in the state, nor in what a run is recognised by, nor in the figures."""
    stage = toys.stage()
    assert stage.semantic is None
    assert "semantic" not in {*stage.state, *stage.settings, *stage.validate(), *recorded(Objective())}
    assert len(stage.optimization.optimizer.param_groups[0]["params"]) + 1 == len(
        toys.stage(ON).optimization.optimizer.param_groups[0]["params"]
    )


@pytest.mark.slow
def test_a_run_continues_bit_for_bit(tmp_path: Path) -> None:
    """The projection and its moments are kept, and are no part of the tokenizer; another network is another run."""
    whole = run(lambda: toys.stage(ON), tmp_path / "whole", steps=4)
    cut = run(lambda: toys.stage(ON), tmp_path / "cut", cut=2, steps=4)
    assert toys.state_of(cut) == toys.state_of(whole)
    assert MultiScaleVQVAE.load(tmp_path / "cut").state_dict().keys() == MultiScaleVQVAE(TOKENIZER).state_dict().keys()
    other = toys.stage(ON)
    other.settings = {**other.settings, "semantic": "another"}
    with pytest.raises(InputError, match="holds another run"):
        run(lambda: other, tmp_path / "cut", steps=4)
