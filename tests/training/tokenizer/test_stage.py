"""Laws of stage 1: what it minimises and when, what it measures, and that it learns."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from training import toy as toys

from nextscale import MultiScaleVQVAE
from nextscale.data import DataSet
from nextscale.data.pictures import Split
from nextscale.training import losses
from nextscale.training.loop import SKIPS, Length, Rhythm, train
from nextscale.training.order import batch_indices, generator, spread, views
from nextscale.training.recipes import names
from nextscale.training.tokenizer import stage as tokenizer_stage
from nextscale.training.tokenizer.adversary import Pair
from nextscale.training.tokenizer.codebook import chosen_scales
from nextscale.training.tokenizer.discriminators import diffaug
from nextscale.training.tokenizer.stage import SHOWN, TokenizerStage, encoded

# ---- what it minimises -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_reduces_the_loss_and_improves_held_out_emoji(first_stage, emoji: DataSet, tmp_path: Path) -> None:
    """Sixty steps on the embedded pictures: the error is halved, nearly, and held-out PSNR rises by 5 dB."""
    stage = first_stage(emoji, batch=16)
    before = stage.validate()["psnr"]
    events = list(train(stage, tmp_path, Length(steps=60), seed=0, rhythm=Rhythm(checks=1)))
    errors = [event.figures["l2"] + 0.2 * event.figures["l1"] for event in events]
    assert sum(errors[-10:]) < 0.6 * sum(errors[:10])
    assert events[-1].validation["psnr"] > before + 5


def test_the_objective_is_the_weighted_sum_of_its_terms(first_stage, toy: DataSet) -> None:
    """Of the step's own pictures and views, each term computed here; what is reported is the terms unweighted."""
    weights = {"l2": 1.5, "l1": 0.3, "perceptual": 0.7, "codebook": 0.9, "commitment": 0.25, "entropy": 0.1}
    stage = first_stage(settings=["flip=true", *(f"objective.{name}={value}" for name, value in weights.items())])
    model, recorder = copy.deepcopy(stage.model), stage.perceptual
    pictures, _ = toy.train.batch(batch_indices(18, 4, 5, 0), views=views(4, 5, 0, flip=True))
    f = model.features(pictures)
    canvases = list(model.quantizer.canvases(model.encode(pictures)))
    painted = model.decoder(model.post_quantizer(canvases[-1]))
    cumulative = sum((canvas - f).square().mean() for canvas in canvases) / 4
    terms = {
        "l2": (painted - pictures).square().mean(),
        "l1": (painted - pictures).abs().mean(),
        "perceptual": recorder(painted, pictures).mean(),
        "codebook": cumulative,
        "commitment": cumulative,
        "entropy": losses.choice_entropy(torch.cat(model.quantizer(f).residuals), model.quantizer.codebook.weight),
    }
    figures = stage.update(5, 10).figures
    for name, term in terms.items():
        assert figures[name] == pytest.approx(term.item(), rel=1e-4), name
    assert figures["loss"] == pytest.approx(sum(weights[name] * term.item() for name, term in terms.items()), rel=1e-4)


def test_a_term_without_weight_is_not_computed(first_stage) -> None:
    """No perceptual network is kept, and nothing is reported of it."""
    stage = first_stage()
    assert stage.perceptual is None
    assert not {"perceptual", "entropy", "adversarial"} & stage.update(0, 10).figures.keys()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), toys.EVERYTHING], ids=["plain", "everything"])
def test_a_step_is_a_function_of_its_number(first_stage, settings: tuple[str, ...]) -> None:
    """On the same weights, asked for in any order: pictures, views, scales, dropout and changes to what is judged."""

    def figures(step: int) -> dict[str, float]:
        return first_stage(settings=settings).update(step, 40).figures

    forwards = [figures(step) for step in (10, 11, 12, 13)]
    assert [figures(step) for step in (13, 11, 12, 10)] == [forwards[i] for i in (3, 1, 2, 0)]
    assert len({figure["loss"] for figure in forwards}) == 4


def test_every_parameter_learns(first_stage) -> None:
    """Encoder, quantizer and decoder: a gradient reaches each."""
    stage = first_stage()
    stage.update(0, 10)
    silent = [name for name, parameter in stage.model.named_parameters() if not parameter.grad.any()]
    assert not silent


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_step_are_one_step(first_stage, parts: int) -> None:
    """Gradients are those of an uncut step, to rounding, in each of three steps from the same state.

    From the same: where a gradient is nothing but rounding, as that of a bias before a normalisation, AdamW makes full
    steps of it, and a weight that differs can send a vector to another code.
    """
    settings = ["objective.perceptual=0.5", "codebook.learning=average", "codebook.dropout=0.5"]
    whole, cut = first_stage(settings=settings), first_stage(settings=settings, accumulate=parts)
    for step in range(3):
        for name, part in cut.state.items():
            part.load_state_dict(copy.deepcopy(whole.state[name].state_dict()))
        ours, theirs = cut.update(step, 10).figures, whole.update(step, 10).figures
        assert ours == pytest.approx(theirs, rel=1e-3)
        for mine, yours in zip(learning(cut), learning(whole), strict=True):
            torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-4, atol=1e-6)


def learning(stage: TokenizerStage) -> list[Tensor]:
    return [parameter for parameter in stage.model.parameters() if parameter.requires_grad]


# ---- the discriminator's part ----------------------------------------------------------------------------------------

KINDS = ["patch", "features"]


def judged(kind: str, *more: str) -> list[str]:
    """Settings of a run of ten steps: the discriminator learns from the fourth on, and is heard after the sixth."""
    moments = ["adversarial.start=0.3", "adversarial.warmup=0.2", "adversarial.ramp=0.4"]
    return [f"adversarial.discriminator={kind}", *moments, *more]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bounds", ["0,1e4", "3,3"])
def test_gradients_with_an_adversary_are_those_of_the_plain_sum(
    first_stage, toy: DataSet, kind: str, bounds: str
) -> None:
    """pixels + weight * heard * adaptive * term + codes, with the adaptive weight from two passes; its value, too."""
    stage = first_stage(settings=judged(kind, "objective.perceptual=0.5", f"adversarial.adaptive_range={bounds}"))
    pictures = toy.train.batch(range(4))[0]
    draws = torch.rand(4, 10, generator=torch.Generator().manual_seed(3))
    made = stage.passed(pictures, None, stage.model.config.scales)
    discriminator = copy.deepcopy(stage.adversary.discriminator)  # spectral norms go on with every pass
    parameters = [p for p in stage.model.parameters() if p.requires_grad]

    painted, f, walk, _ = made
    error = painted - pictures
    on_pixels = error.square().mean() + 0.2 * error.abs().mean() + 0.5 * stage.perceptual(painted, pictures).mean()
    term = -discriminator(diffaug(painted, draws, 1.0)).mean()
    last = stage.model.decoder.head.weight
    ours, theirs = (torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (on_pixels, term))
    low, high = map(float, bounds.split(","))
    adaptive = min(max(float(ours.norm() / (theirs.norm() + 1e-6)), low), high)
    on_codes = (
        sum((c - f.detach()).square().mean() + 0.25 * (c.detach() - f).square().mean() for c in walk.canvases) / 4
    )
    plain = on_pixels + 0.4 * 0.75 * adaptive * term + on_codes
    expected = torch.autograd.grad(plain, parameters, retain_graph=True)

    total, figures = stage.objective(made, Pair(pictures, pictures, draws), 0.75)
    got = torch.autograd.grad(total, parameters)
    assert total.item() == pytest.approx(plain.item(), rel=1e-5)
    for mine, yours in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-3, atol=1e-6)
    assert figures["adaptive_weight"].item() == pytest.approx(adaptive, rel=1e-4)
    assert figures["adversarial_weight"].item() == pytest.approx(0.4 * 0.75 * adaptive, rel=1e-4)
    assert figures["adversarial"].item() == pytest.approx(term.item(), rel=1e-4)
    assert all(p.grad is None for p in stage.adversary.discriminator.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_discriminator_waits_then_learns_then_is_heard(first_stage, kind: str) -> None:
    """First it is as it was made; while it learns alone, the autoencoder is the one without it, bit for bit."""
    alone, stage = first_stage(), first_stage(settings=judged(kind))

    def discriminator() -> dict[str, Any]:
        return {name: leaf for name, leaf in toys.state_of(stage).items() if name.startswith("/adversary")}

    before = discriminator()
    seen = []
    for step in range(8):
        alone.update(step, 10)
        figures = stage.update(step, 10).figures
        same = toys.state_of(stage, without="/adversary") == toys.state_of(alone)
        heard = figures.get("adversarial_weight", 0) > 0
        seen.append((discriminator() != before, not same, "discriminator_loss" in figures, heard))
    assert (
        seen == [(False, False, False, False)] * 3 + [(True, False, True, False)] * 3 + [(True, True, True, True)] * 2
    )


def test_a_discriminator_sees_what_was_painted_in_its_step(first_stage, toy: DataSet) -> None:
    """Before the autoencoder's update: real and painted logits, computed here with the weights before the step."""
    stage = first_stage(settings=judged("patch"))
    model, discriminator = copy.deepcopy(stage.model), copy.deepcopy(stage.adversary.discriminator)
    pictures, _ = toy.train.batch(batch_indices(18, 4, 4, 0), views=views(4, 4, 0))
    draws = torch.rand(4, 10, generator=generator(0, "augment", 4))
    figures = stage.update(4, 10).figures
    with torch.no_grad():
        painted = model.decoder(model.post_quantizer(list(model.quantizer.canvases(model.encode(pictures)))[-1]))
        real, fake = (discriminator(diffaug(seen, draws, 1.0)) for seen in (pictures, painted))
    assert figures["discriminator_real"] == pytest.approx(real.mean().item(), abs=1e-5)
    assert figures["discriminator_painted"] == pytest.approx(fake.mean().item(), abs=1e-5)
    right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
    assert figures["discriminator_accuracy"] == pytest.approx(right.item())


def test_a_stage_without_features_to_look_at_keeps_no_network(first_stage) -> None:
    """A run is continued whatever networks are given where none is used."""
    assert first_stage().settings["backbone"] is None
    assert first_stage(settings=judged("patch")).settings["backbone"] is None
    assert first_stage(settings=judged("features")).settings["backbone"] == toys.Tiny(seed=1).fingerprint


# ---- codes -----------------------------------------------------------------------------------------------------------


def test_codes_start_where_residuals_are(first_stage) -> None:
    """The codebook loss of the first step is lower than that of random codes, which stay where they were."""
    started, random = first_stage(), first_stage(settings=["codebook.start=random"])
    codes = random.model.quantizer.codebook.weight.detach().clone()
    for stage in (started, random):
        stage.prepare()
    assert torch.equal(random.model.quantizer.codebook.weight, codes)
    assert started.update(0, 10).figures["codebook"] < random.update(0, 10).figures["codebook"]


def test_averaged_codes_learn_by_averages_alone(first_stage) -> None:
    """No gradient and no optimiser moves them; they are the averages of the residuals that chose them."""
    stage = first_stage(settings=["codebook.learning=average"])
    stage.prepare()
    before = stage.model.quantizer.codebook.weight.detach().clone()
    stage.update(0, 10)
    after = stage.model.quantizer.codebook.weight
    assert after.grad is None
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, stage.means.sums_VC / stage.means.hits_V[:, None])


def test_dead_codes_are_restarted_where_the_recipe_says_so(first_stage) -> None:
    """After the steps that are due; the average of the weights has them at once, and is not long on its way."""
    stage = first_stage(settings=["codebook.restart_every=3", "codebook.dead_below=0.5", "codebook.start=random"])
    codes = [stage.model.quantizer.codebook.weight, stage.best_model.quantizer.codebook.weight]
    for step in range(6):
        before = [part.detach().clone() for part in codes]
        stage.update(step, 20)
        jumped = [((a - b).norm(dim=1) > 0.05) for a, b in zip(codes, before, strict=True)]
        assert jumped[0].any() == (step in (2, 5))
        if step in (2, 5):
            assert torch.equal(codes[0][jumped[0]], codes[1][jumped[0]])


def test_hits_are_counted_once_a_step(first_stage) -> None:
    """Four pictures of 1, 4, 9 and 16 tokens; validation counts none, nor does a step of other scales."""
    stage = first_stage()
    stage.update(0, 10)
    hits = stage.model.quantizer.hits_KV.clone()
    assert hits.sum(dim=1).tolist() == [4, 16, 36, 64]
    stage.validate()
    stage.pictures()
    assert torch.equal(stage.model.quantizer.hits_KV, hits)
    other, scales = first_stage(settings=["codebook.random_scales=1"]), stage.model.config.scales
    chosen = [chosen_scales(other.recipe.codebook, scales, generator(0, "scales", step)) for step in range(8)]
    fewer = [step for step in range(8) if chosen[step] != scales]
    for step in fewer:
        other.update(step, 10)
    assert fewer
    assert not other.model.quantizer.hits_KV.any()


# ---- every value of the recipe ---------------------------------------------------------------------------------------

OTHERS = {
    "optimization.batch": "6",
    "optimization.betas": "0.8,0.95",
    "optimization.warmup_steps": "4",
    "optimization.flat": "0.8",
    "optimization.fall": "cosine",
    "optimization.accumulate": "1",
    "objective.semantic": "0.5",
    "codebook.learning": "gradient",
    "codebook.start": "random",
    "codebook.restart_every": "3",
    "codebook.dead_below": "0",
    "codebook.dropout_from": "3",
    "codebook.gradient": "rotation",
    "adversarial.discriminator": "features",
    "adversarial.adaptive_range": "0,0.01",
    "adversarial.betas": "0.4,0.9",
    "average": "0.1",
    "flip": "false",
}
"""Values unlike those of `toys.EVERYTHING`, for those that half of it would not do for."""


def left_by(settings: list[str]) -> Iterator[dict[str, Any]]:
    """The state after each of five steps, with nothing in it that only tells of the recipe."""
    stage = toys.stage(settings)
    stage.prepare()
    for step in range(5):
        stage.update(step, 5)
        yield toys.state_of(stage, without="/param_groups")


@pytest.fixture(scope="module")
def usual() -> list[dict[str, Any]]:
    return list(left_by([*toys.EVERYTHING]))


OF_TRANSFORMERS = {"optimization.optimizer", "optimization.muon_rate"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names(toys.recipe(toys.EVERYTHING)) if name not in OF_TRANSFORMERS])
def test_every_value_of_the_recipe_tells(usual: list[dict[str, Any]], name: str) -> None:
    """Within five steps, another value leads elsewhere."""
    value = attrgetter(name)(toys.recipe(toys.EVERYTHING))
    other = OTHERS.get(name) or str(value / 2)
    states = left_by([*toys.EVERYTHING, f"{name}={other}"])
    assert any(ours != theirs for ours, theirs in zip(states, usual, strict=True))


# ---- what is not finite ----------------------------------------------------------------------------------------------


def poisoned(toy: DataSet, *steps: int) -> DataSet:
    """The toy pictures, but with a pixel that is no number in what these steps see."""
    seen = [views(4, step, 0) for step in steps]

    class Poisoned(Split):
        def batch(self, indices: Any, *, views: Tensor | None = None) -> tuple[Tensor, Tensor]:
            images, labels = super().batch(indices, views=views)
            if views is not None and any(torch.equal(views, other) for other in seen):
                images[0, 0, 0, 0] = math.nan
            return images, labels

    return dataclasses.replace(toy, train=Poisoned(**vars(toy.train)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [(), ("adversarial.discriminator=patch", "adversarial.start=0")], ids=["alone", "judged"]
)
def test_a_poisoned_picture_skips_its_step(
    first_stage, toy: DataSet, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """It changes nothing, not even the averages, the hits and the discriminator, and is counted."""
    stage = first_stage(poisoned(toy, 2), [*settings, "codebook.learning=average"])
    states = []
    for event in train(stage, tmp_path, Length(steps=5), seed=0, rhythm=Rhythm(checks=1)):
        states.append(toys.state_of(stage, without="/lr"))
        assert event.figures["skipped"] == (event.step > 2)
    assert states[2] == states[1]
    assert states[3] != states[2]


@pytest.mark.slow
def test_poisoned_pictures_stop_the_run_and_are_kept(first_stage, toy: DataSet, tmp_path: Path) -> None:
    """As tensors, not a number included, and to look at."""
    stage = first_stage(poisoned(toy, *range(SKIPS)))
    with pytest.raises(FloatingPointError, match=f"tokenizer: no finite gradient in {SKIPS} steps in a row"):
        list(train(stage, tmp_path, Length(steps=30), seed=0, rhythm=Rhythm(checks=1)))
    (file,) = tmp_path.glob("not-finite-*.safetensors")
    kept = safetensors.torch.load_file(file)["images"]
    expected, _ = toy.train.batch(batch_indices(18, 4, SKIPS - 1, 0), views=views(4, SKIPS - 1, 0))
    assert kept.shape == (4, 3, 8, 8)
    assert kept.isnan().sum() == 1
    assert torch.equal(kept[~kept.isnan()], expected[~kept.isnan()])
    assert file.with_suffix(".png").exists()
    assert not (tmp_path / "state.pt").exists()


# ---- continuing ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_with_everything_on_a_run_cut_short_continues_bit_for_bit(
    first_stage, tmp_path: Path, left_behind, kind: str
) -> None:
    """After any step: averages, restarts, dropout, random scales, parts, mirrors, both networks."""
    settings = [*toys.EVERYTHING, f"adversarial.discriminator={kind}"]

    def begin(run: Path) -> Any:
        return train(first_stage(settings=settings), run, Length(steps=6), seed=0, rhythm=Rhythm(checks=3))

    events = list(begin(tmp_path / "whole"))
    assert events[-1].figures.keys() >= {"adversarial", "discriminator_loss", "perceptual", "entropy"}
    expected = left_behind(tmp_path / "whole")
    for done in range(1, 6) if kind == "patch" else [3]:
        run = tmp_path / f"cut after {done}"
        list(itertools.islice(begin(run), done))
        list(begin(run))
        assert left_behind(run) == expected


# ---- what it measures ------------------------------------------------------------------------------------------------


def test_validation_measures_what_decode_gives_back(first_stage, toy: DataSet) -> None:
    """PSNR, codes used and perplexity of all held-out pictures, computed here without our helpers."""
    stage = first_stage()
    stage.update(0, 10)
    model = stage.best_model
    pictures, _ = toy.validation.batch(range(6))
    with torch.no_grad():
        tokens = model.encode(pictures)
        errors = ((model.decode(tokens) - pictures) ** 2).mean(dim=(1, 2, 3))
    figures = stage.validate()
    assert abs(figures["psnr"] - float((10 * torch.log10(4 / errors)).mean())) < 1e-3
    for k, part in enumerate(tokens.split([1, 4, 9, 16], dim=1), start=1):
        counts = part.flatten().bincount()
        shares = counts[counts > 0] / part.numel()
        assert figures[f"codes_used_scale_{k}"] == len(shares)
        assert abs(figures[f"perplexity_scale_{k}"] - float(torch.exp(-(shares * shares.log()).sum()))) < 1e-3


@torch.no_grad()
def test_validation_measures_every_scale(first_stage, toy: DataSet) -> None:
    """PSNR of what `decode(through=k)` shows, and the energy of what the features still lack, of all of it at first."""
    stage = first_stage()
    model, figures = stage.best_model, stage.validate()
    pictures, _ = toy.validation.batch(range(6))
    f, tokens = model.features(pictures), model.encode(pictures)
    for k, canvas in enumerate(model.quantizer.canvases(tokens), start=1):
        errors = (model.decode(tokens, through=k) - pictures).square().mean(dim=(1, 2, 3))
        assert figures[f"psnr_scale_{k}"] == pytest.approx(float((10 * torch.log10(4 / errors)).mean()), abs=1e-3)
        lacking = float((f - canvas).square().sum() / f.square().sum())
        assert figures[f"residual_scale_{k}"] == pytest.approx(lacking, rel=1e-4)
    assert figures["psnr_scale_4"] == pytest.approx(figures["psnr"], abs=1e-3)


def test_a_large_split_is_looked_at_here_and_there(first_stage, monkeypatch: pytest.MonkeyPatch, toy: DataSet) -> None:
    """At most so many pictures, evenly spread: of six, three are the first, the third and the fifth."""
    assert [list(spread(toy.validation, count)) for count in (1, 2, 3, 4, 6, 9)] == [
        [0],
        [0, 3],
        [0, 2, 4],
        [0, 2, 4],
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4, 5],
    ]
    monkeypatch.setattr(tokenizer_stage, "VALIDATED", 3)
    stage = first_stage()
    pictures, _ = toy.validation.batch([0, 2, 4])
    with torch.no_grad():
        errors = (stage.best_model.decode(stage.best_model.encode(pictures)) - pictures).square().mean(dim=(1, 2, 3))
    assert stage.validate()["psnr"] == pytest.approx(float((10 * torch.log10(4 / errors)).mean()), abs=1e-3)


@torch.no_grad()
def test_the_score_is_the_weighted_distance_of_held_out_pictures(first_stage, toy: DataSet) -> None:
    """What the objective weighs of what is seen, without codes and discriminator; lower is better."""
    stage = first_stage(settings=["objective.l2=2", "objective.l1=0.5", "objective.perceptual=0.3"])
    figures, pictures = stage.validate(), toy.validation.batch(range(6))[0]
    painted = stage.best_model.decode(stage.best_model.encode(pictures))
    distance = stage.perceptual(painted, pictures).mean()
    expected = 2 * (painted - pictures).square().mean() + 0.5 * (painted - pictures).abs().mean() + 0.3 * distance
    assert stage.score(figures) == figures["distance"] == pytest.approx(expected.item(), rel=1e-4)
    assert figures["perceptual"] == pytest.approx(distance.item(), rel=1e-4)


@pytest.mark.slow
def test_what_is_validated_shown_and_saved_is_the_running_average(first_stage, tmp_path: Path) -> None:
    """Another model than the one that learns; without an average they are the same, bit for bit."""
    for decay, same in (("0", True), ("0.9", False)):
        stage = first_stage(settings=[f"average={decay}"])
        for step in range(3):
            stage.update(step, 3)
        ours, theirs = stage.best_model.state_dict(), stage.model.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours) is same
        stage.export(tmp_path)
        loaded = MultiScaleVQVAE.load(tmp_path).state_dict()
        assert all(torch.equal(ours[name], loaded[name]) for name in ours)


def test_validation_and_pictures_change_nothing(first_stage, untouched) -> None:
    """Neither weights nor gradients nor torch's random numbers."""
    stage = first_stage(settings=["objective.perceptual=1", "adversarial.discriminator=features"])
    before = toys.state_of(stage)
    with untouched():
        assert stage.validate() == stage.validate()
        stage.pictures()
    assert toys.state_of(stage) == before
    assert all(parameter.requires_grad and parameter.grad is None for parameter in stage.model.parameters())


def test_encoded_walks_the_split_in_order(first_stage, toy: DataSet) -> None:
    """Whatever the batch, each picture once, centre-cropped."""
    tokenizer = first_stage().model
    pictures, _ = toy.train.batch(range(18))
    for batch in (5, 18, 100):
        parts = list(encoded(tokenizer, toy.train, batch=batch))
        assert torch.equal(torch.cat([part for part, _ in parts]), pictures)
        assert torch.equal(torch.cat([tokens for _, tokens in parts]), tokenizer.encode(pictures))


@torch.no_grad()
def test_pictures_are_held_out_ones_and_what_each_scale_makes_of_them(first_stage, emoji: DataSet) -> None:
    """A row each: the original, then `decode(through=k)`; white, 2 pixels wide, in between."""
    stage = first_stage(emoji)
    sheet, originals = stage.pictures(), emoji.validation.batch(spread(emoji.validation, SHOWN))[0]
    tokens = stage.best_model.encode(originals)
    columns = [originals, *(stage.best_model.decode(tokens, through=k) for k in (1, 2, 3, 4))]
    assert sheet.shape == (3, SHOWN * 10 - 2, 5 * 10 - 2)
    for row in range(SHOWN):
        for column, pictures in enumerate(columns):
            cell = sheet[:, 10 * row : 10 * row + 8, 10 * column : 10 * column + 8]
            torch.testing.assert_close(cell, pictures[row], atol=1e-5, rtol=0)


def test_export_is_what_load_reads(first_stage, tmp_path: Path) -> None:
    """Bit for bit, with the counters."""
    stage = first_stage()
    stage.update(0, 10)
    stage.export(tmp_path)
    loaded = MultiScaleVQVAE.load(tmp_path)
    assert loaded.config == stage.best_model.config
    for name, tensor in stage.best_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


# ---- going on from a trained one -------------------------------------------------------------------------------------


def test_training_goes_on_from_a_trained_tokenizer(first_stage) -> None:
    """Its weights are those at the start, its codes stay where they are, and the run is told from one from scratch."""
    trained = MultiScaleVQVAE(toys.TOKENIZER, seed=7)
    weights = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    stage = first_stage(begin=trained)
    stage.prepare()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in stage.model.state_dict().items())
    assert stage.settings["begin"] != first_stage(begin=MultiScaleVQVAE(toys.TOKENIZER, seed=8)).settings["begin"]
    assert "begin" not in first_stage().settings
    assert stage.update(0, 10).finite


@pytest.mark.parametrize("part", ["encoder.stem.weight", "decoder.head.weight"])
@pytest.mark.parametrize("spoil", [0.0, 3e38, math.nan], ids=str)
def test_a_tokenizer_whose_numbers_are_not_finite_is_not_sound(first_stage, part: str, spoil: float) -> None:
    """As soon as the weights that learn are so: the average may still give good figures, and NaN has a nearest code."""
    stage = first_stage()
    assert stage.sound()
    with torch.no_grad():
        stage.model.get_parameter(part).fill_(spoil)
    assert stage.sound() is (spoil == 0)
