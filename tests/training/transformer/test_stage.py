"""Laws of stage 2: what it minimises, what it leaves alone, and that it learns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training import toy as toys

from nextscale import VAR, MultiScaleVQVAE, Pipeline
from nextscale.config import TransformerConfig
from nextscale.data import DataSet
from nextscale.data.tokens import Meta, TokenCache, TokenSet
from nextscale.errors import InputError
from nextscale.files.checkpoint import fingerprint
from nextscale.training.loop import Length, Rhythm, train
from nextscale.training.order import batch_indices
from nextscale.training.recipes import TransformerRecipe
from nextscale.training.tokenizer.stage import TokenizerStage
from nextscale.training.transformer.stage import TransformerStage, fitted


@pytest.fixture
def calls() -> Callable[[TransformerStage], list[tuple[Tensor, dict[str, Any]]]]:
    """`calls(stage)`: a list that fills with the labels and options the model is called with."""

    def record(stage: TransformerStage) -> list[tuple[Tensor, dict[str, Any]]]:
        seen: list[tuple[Tensor, dict[str, Any]]] = []
        hidden = stage.model.hidden

        def recorded(labels_B: Tensor, inputs_BLC: Tensor, **options: Any) -> Tensor:
            seen.append((labels_B.clone(), options))
            return hidden(labels_B, inputs_BLC, **options)

        stage.model.hidden = recorded  # type: ignore[method-assign]
        return seen

    return record


@pytest.mark.slow
def test_an_untrained_model_knows_nothing(second_stage, emoji: DataSet) -> None:
    """The head begins near zero: ln V at every scale, and the first loss of training is the same."""
    stage = second_stage(emoji)
    figures = stage.validate()
    expected = math.log(stage.model.config.codebook_size)
    assert [figures[f"cross_entropy_scale_{k}"] for k in (1, 2, 3, 4)] == pytest.approx([expected] * 4, abs=0.1)
    assert figures["cross_entropy"] == pytest.approx(expected, abs=0.05)
    assert float(stage.loss(0)[0].detach()) == pytest.approx(expected, abs=0.05)


def entropy_of_positions(stage: TransformerStage) -> float:
    """Of the training tokens, in nats, where only their position is known; too low for few pictures."""
    tokens_NL, _ = stage.data.train.batch(range(len(stage.data.train)))
    shares = [column.unique(return_counts=True)[1] / len(column) for column in tokens_NL.T]
    return sum(float(torch.special.entr(share).sum()) for share in shares) / len(shares)


@pytest.mark.slow
def test_training_beats_the_unigram_entropy_on_held_out_emoji(
    first_stage, emoji: DataSet, transformer_config: TransformerConfig, tmp_path: Path
) -> None:
    """Sixty steps of the first stage, a hundred of the second: more is learned than what is frequent where."""
    first: TokenizerStage = first_stage(emoji, batch=16)
    list(train(first, tmp_path / "tokenizer", Length(steps=60), seed=0, rhythm=Rhythm(checks=1)))
    second = TransformerStage(
        fitted(transformer_config, first.best_model, classes=len(emoji.classes)),
        first.best_model,
        emoji,
        recipe=TransformerRecipe(
            optimization=dataclasses.replace(first.recipe.optimization, batch=32, learning_rate=5e-3)
        ),
        precision="fp32",
    )
    untrained = second.validate()["cross_entropy"]
    events = list(train(second, tmp_path / "transformer", Length(steps=100), seed=0, rhythm=Rhythm(checks=1)))
    assert events[-1].figures["loss"] < events[0].figures["loss"] - 0.5
    assert events[-1].validation["cross_entropy"] < min(untrained - 0.5, entropy_of_positions(second))


def test_the_tokenizer_does_not_change(second_stage, tmp_path: Path) -> None:
    """Not a bit of it, its counters included, while the transformer does."""
    stage = second_stage()
    before = {name: tensor.clone() for name, tensor in stage.tokenizer.state_dict().items()}
    weights = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    list(train(stage, tmp_path, Length(steps=3), seed=0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.tokenizer.state_dict().items())
    assert not any(parameter.requires_grad for parameter in stage.tokenizer.parameters())
    assert not all(torch.equal(tensor, weights[name]) for name, tensor in stage.model.state_dict().items())


@pytest.mark.slow
def test_a_tenth_of_the_labels_is_dropped(second_stage, toy: DataSet, calls) -> None:
    """4,000 draws: 10 % give or take 2; the others are the pictures' own, and a step always drops the same."""
    stage = second_stage(batch=100)
    seen = calls(stage)
    with torch.no_grad():
        for step in (*range(40), 0):
            stage.loss(step)
    given = torch.stack([labels for labels, _ in seen[:40]])
    true = torch.stack([toy.train.labels[batch_indices(18, 100, step, 0)] for step in range(40)])
    dropped = given == len(toy.classes)
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(given[~dropped], true[~dropped])
    assert torch.equal(seen[40][0], given[0])
    assert not torch.equal(dropped[0], dropped[1])


def test_drop_path_is_for_training_alone(second_stage, toy: DataSet, calls) -> None:
    """At the paper's rate, 0.1 x depth / 24, from a stream of the step; validation drops neither paths nor labels."""
    stage = second_stage()
    seen = calls(stage)
    stage.loss(0)
    stage.loss(1)
    rates = [options["drop_path"].rate for _, options in seen]
    assert rates == [0.1 * stage.model.config.depth / 24] * 2
    seeds = [options["drop_path"].generator.initial_seed() for _, options in seen]
    assert seeds[0] != seeds[1]
    seen.clear()
    stage.validate()
    assert torch.equal(torch.cat([labels for labels, _ in seen]), toy.validation.labels)
    assert all(options.get("drop_path") is None for _, options in seen)


def test_a_block_that_is_always_left_out_is_refused(second_stage) -> None:
    """The rate grows with the depth."""
    stage = second_stage(settings=["drop_path=1"])
    deep = dataclasses.replace(stage.model.config, depth=48)
    with pytest.raises(InputError, match=r"drop_path: expected less than 0.5 at depth 48, got 1.0"):
        TransformerStage(deep, stage.tokenizer, toys.data_set(), recipe=stage.recipe)


def test_the_loss_of_a_step_is_a_function_of_the_step(second_stage) -> None:
    """Pictures, crops, dropped labels and dropped paths, asked for in any order."""
    stage, again = second_stage(), second_stage()
    losses = [float(stage.loss(step)[0].detach()) for step in range(4)]
    assert [float(again.loss(step)[0].detach()) for step in (3, 1, 0, 2)] == [losses[step] for step in (3, 1, 0, 2)]
    assert len(set(losses)) == 4


def test_validation_averages_over_all_held_out_tokens(second_stage, toy: DataSet) -> None:
    """-log p of the right token with teacher forcing, and the share that is guessed right; by hand."""
    stage = second_stage()
    pictures, labels = toy.validation.batch(range(6))
    with torch.no_grad():
        tokens = stage.tokenizer.encode(pictures)
        logits = stage.model(labels, stage.tokenizer.teacher_inputs(tokens))
    costs = -logits.log_softmax(dim=-1).gather(2, tokens.unsqueeze(2)).squeeze(2)
    figures = stage.validate()
    assert figures["cross_entropy"] == pytest.approx(costs.mean().item(), abs=1e-4)
    assert figures["accuracy"] == pytest.approx((logits.argmax(dim=2) == tokens).float().mean().item(), abs=1e-6)
    parts = costs.split([1, 4, 9, 16], dim=1)
    assert [figures[f"cross_entropy_scale_{k}"] for k in (1, 2, 3, 4)] == pytest.approx(
        [part.mean().item() for part in parts], abs=1e-4
    )


def test_every_parameter_learns(second_stage) -> None:
    """A gradient reaches each but the rows of classes that a batch does not hold."""
    stage = second_stage()
    stage.loss(0)[0].backward()
    silent = [name for name, parameter in stage.model.named_parameters() if not parameter.grad.any()]
    assert not silent


def test_pictures_leave_the_model_as_it_was(second_stage, untouched) -> None:
    """Weights, their format, and what is trained; six samples in [-1, 1], the same each time."""
    stage = second_stage()
    before = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    with untouched():
        sheet = stage.pictures()
    assert torch.equal(stage.pictures(), sheet)
    assert sheet.abs().max() <= 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in stage.model.parameters())


def test_export_is_a_pipeline(second_stage, tmp_path: Path) -> None:
    """With the class names of the data; both models bit for bit."""
    stage = second_stage()
    stage.export(tmp_path)
    pipe = Pipeline.load(tmp_path, precision="fp32")
    assert pipe.classes == ("dark", "light")
    for ours, loaded in ((stage.tokenizer, pipe.tokenizer), (stage.model, pipe.transformer)):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_config_is_fitted_to_tokenizer_and_data(make_tokenizer, transformer_config: TransformerConfig) -> None:
    """Scales and codes are the tokenizer's, classes the data's, the rest its own; unfitted ones are refused."""
    tokenizer = make_tokenizer(codebook_size=32, code_channels=4)
    config = fitted(transformer_config, tokenizer, classes=7)
    assert (config.codebook_size, config.code_channels, config.classes) == (32, 4, 7)
    assert (config.depth, config.width) == (transformer_config.depth, transformer_config.width)


def test_a_transformer_of_another_tokenizer_is_refused(
    make_tokenizer, transformer_config: TransformerConfig, toy: DataSet
) -> None:
    """The differences are named."""
    with pytest.raises(InputError, match="do not belong together: codebook_size 32 and 64"):
        TransformerStage(
            transformer_config,
            make_tokenizer(codebook_size=32),
            toy,
            recipe=TransformerRecipe(optimization=toys.RECIPE),
        )


def test_any_weight_of_the_tokenizer_changes_its_fingerprint(make_tokenizer, tmp_path: Path) -> None:
    """A run is not continued on a tokenizer that was trained further; a saved and loaded one is the same."""
    tokenizer: MultiScaleVQVAE = make_tokenizer()
    before = fingerprint(tokenizer.state_dict())
    tokenizer.save(tmp_path)
    assert fingerprint(MultiScaleVQVAE.load(tmp_path).state_dict()) == before
    with torch.no_grad():
        tokenizer.quantizer.codebook.weight[5, 3] += 1e-6
    assert fingerprint(tokenizer.state_dict()) != before


# ---- what the recipe may ask for -------------------------------------------------------------------------------------


def test_scales_count_by_their_weights(second_stage) -> None:
    """The loss is the weighted mean over tokens; a scale of weight 0 is not learned."""
    plain, weighted = second_stage(), second_stage(settings=["scale_weights=4,0,1,0.5", "label_dropout=0"])
    weights_L = torch.tensor([4.0] + [0.0] * 4 + [1.0] * 9 + [0.5] * 16)
    tokens, labels = weighted._batch(0, slice(None))
    with torch.no_grad():
        logits = plain.model(
            labels, plain.tokenizer.teacher_inputs(tokens), drop_path=weighted._drop_path(0, slice(None))
        )
    costs_L = -logits.log_softmax(dim=-1).gather(2, tokens.unsqueeze(2)).squeeze(2).mean(dim=0)
    expected = (costs_L * weights_L).sum() / weights_L.sum()
    assert float(weighted.loss(0)[0].detach()) == pytest.approx(float(expected), abs=1e-5)


def test_scales_count_by_their_area(second_stage) -> None:
    """At exponent 1 each as much as any other; the loss stays a mean."""
    stage = second_stage(settings=["scale_exponent=1"])
    weights_L = stage._weights(0, None)
    sums = [float(part.sum()) for part in weights_L.split(stage.model.config.scales.lengths)]
    assert sums == pytest.approx([1.0] * 4)
    half = second_stage(settings=["scale_exponent=0.5"])._weights(0, None)
    torch.testing.assert_close(half, weights_L.sqrt())
    begun = math.log(stage.model.config.codebook_size)
    assert float(stage.loss(0)[0].detach()) == pytest.approx(begun, abs=0.2)


@pytest.mark.parametrize("shared", [False, True])
def test_blocks_may_begin_by_giving_back_what_goes_in(
    make_tokenizer, transformer_config: TransformerConfig, shared: bool
) -> None:
    """The stream passes unchanged, the gates are open, and the first step moves what a block writes."""
    tokenizer = make_tokenizer()
    config = dataclasses.replace(transformer_config, shared_modulation=shared, classes=2)
    config = fitted(config, tokenizer, classes=2)
    recipe = TransformerRecipe(optimization=toys.RECIPE, start="identity")
    stage = TransformerStage(config, tokenizer, toys.data_set(), recipe=recipe, precision="fp32")
    x_BLD = torch.randn(1, 5, config.width, generator=torch.Generator().manual_seed(0))
    condition = stage.model.condition(torch.tensor([1]))
    for block, modulations in zip(stage.model.blocks, condition.blocks, strict=True):
        assert torch.equal(block(x_BLD, modulations, lambda k, v: (k, v)), x_BLD)
        assert all(modulation.gate.mean().item() == pytest.approx(1.0, abs=0.3) for modulation in modulations)
    before = stage.model.blocks[0].attention.out.weight.detach().clone()
    assert not before.any()
    stage.update(0, 10)
    assert not torch.equal(stage.model.blocks[0].attention.out.weight, before)


def test_a_trained_model_keeps_its_start(second_stage, toy: DataSet) -> None:
    """What it has learned is not thrown away."""
    stage = second_stage()
    recipe = dataclasses.replace(stage.recipe, start="identity")
    with pytest.raises(InputError, match="start: expected release for a model that has learned already, got identity"):
        TransformerStage(stage.model.config, stage.tokenizer, toy, recipe=recipe, begin=stage.model)


def test_stochastic_depth_may_rise(second_stage) -> None:
    """From nothing to its rate over the first half of the run."""
    stage = second_stage(settings=["drop_path_rise=0.5"])
    rates = [stage._drop_path(step, slice(None), 8).rate for step in range(8)]
    assert rates == pytest.approx([0.1 * 3 / 24 * share for share in (0, 0.25, 0.5, 0.75, 1, 1, 1, 1)])
    assert stage._drop_path(5, slice(None), None).rate == 0


def test_weights_of_other_scales_are_refused(second_stage) -> None:
    """One a scale, or none."""
    with pytest.raises(InputError, match="scale_weights: expected a number for each of 4 scales, got 2"):
        second_stage(settings=["scale_weights=1,2"])


def test_scales_are_added_along_the_run(second_stage) -> None:
    """Two at first, all from half of the run on; those that are not learned yet get no gradient."""
    stage = second_stage(settings=["progressive=0.5", "progressive_from=2"])
    assert [len(stage._weights(step, 100)) for step in (0, 1, 25, 26, 49, 50, 99)] == [5, 14, 14, 30, 30, 30, 30]
    assert stage._weights(13, 100)[-9:].tolist() == pytest.approx([0.52] * 9)
    stage.loss(0, total=100)[0].backward()
    grad_L = stage.model.positions.grad.abs().sum(dim=(0, 2))
    assert bool((grad_L[:5] > 0).all())
    assert not grad_L[5:].any()


def test_noise_is_in_what_is_looked_at_and_never_in_the_targets(second_stage) -> None:
    """A share of tokens is flipped, always the same in a step; the first scale's inputs do not exist."""
    stage = second_stage(settings=["token_noise=0.3"], batch=100)
    tokens, _ = stage._batch(0, slice(None))
    noisy = stage._looked_at(tokens, 0, slice(None))
    assert (noisy != tokens).float().mean().item() == pytest.approx(0.3 * 63 / 64, abs=0.03)
    assert torch.equal(stage._looked_at(tokens, 0, slice(None)), noisy)
    assert torch.equal(stage._looked_at(tokens[20:60], 0, slice(20, 60)), noisy[20:60])
    seen: list[tuple[Tensor, ...]] = []
    stage.learner.register_forward_pre_hook(lambda module, given: seen.append(given))
    stage.loss(0)
    ((_, inputs, targets),) = seen
    assert torch.equal(targets, tokens)
    assert torch.equal(inputs, stage.tokenizer.teacher_inputs(noisy))


def test_the_running_average_is_what_is_saved(second_stage, tmp_path: Path) -> None:
    """Where the recipe has one; without, the weights as they are."""
    stage = second_stage(settings=["average=0.9"])
    list(train(stage, tmp_path, Length(steps=4), seed=0, rhythm=Rhythm(checks=1)))
    saved = Pipeline.load(tmp_path, precision="fp32").transformer
    assert torch.equal(saved.head.weight, stage.average.averages["head.weight"])
    assert not torch.equal(saved.head.weight, stage.model.head.weight)


def test_held_out_figures_are_of_the_running_average(second_stage, toy: DataSet) -> None:
    """Of what is saved, that is, and not of the weights that go on learning."""
    stage = second_stage(settings=["average=0.9"], learning_rate=0.1)
    for step in range(4):
        stage.update(step, 100)
    stage.gather()
    averaged = VAR(stage.model.config, seed=None)
    averaged.load_state_dict(stage.average.averages, assign=True)
    pictures, labels = toy.validation.batch(range(6))
    tokens = stage.tokenizer.encode(pictures)
    with torch.no_grad():
        of_average, of_model = (
            -model(labels, stage.tokenizer.teacher_inputs(tokens)).log_softmax(dim=-1).gather(2, tokens[..., None])
            for model in (averaged, stage.model)
        )
    assert stage.validate()["cross_entropy"] == pytest.approx(of_average.mean().item(), abs=1e-4)
    assert abs(of_average.mean() - of_model.mean()) > 0.01


def test_a_skipped_step_does_not_feed_the_running_average(second_stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are as they were, and the average would only come closer to them."""
    stage = second_stage(settings=["average=0.9"])
    for step in range(3):
        stage.update(step, 100)
    before = {name: average.clone() for name, average in stage.average.averages.items()}
    loss = stage.loss

    def broken(*place: Any) -> tuple[Tensor, Any]:
        value, figures = loss(*place)
        return value * math.nan, figures

    monkeypatch.setattr(stage, "loss", broken)
    assert not stage.update(3, 100).finite
    assert stage.average.steps == 3
    assert all(torch.equal(average, before[name]) for name, average in stage.average.averages.items())
    assert not torch.equal(before["head.weight"], stage.model.head.weight)


def test_a_run_begins_with_the_weights_given(second_stage, toy: DataSet) -> None:
    """And is another run than one from random weights."""
    first = second_stage(seed=5)
    again = TransformerStage(
        first.model.config, first.tokenizer, toy, recipe=first.recipe, seed=1, precision="fp32", begin=first.model
    )
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(again.model.parameters(), first.model.parameters(), strict=True)
    )
    assert first.settings["begin"] is None
    assert again.settings["begin"] == fingerprint(VAR(first.model.config, seed=5).state_dict())


def test_tokens_of_another_tokenizer_are_refused(second_stage, toy: DataSet, tmp_path: Path) -> None:
    """They would mean other codes."""
    stage = second_stage()
    meta = Meta(
        tokenizer="0123456789abcdef",
        scales=stage.model.config.scales,
        codebook_size=stage.model.config.codebook_size,
        height=8,
        width=8,
        data="",
        held_out="",
        precision="float32",
        views=1,
        flip=False,
        seed=0,
        shard=100,
    )
    cache = TokenCache(
        train=stage.data.train, validation=stage.data.validation, classes=toy.classes, unreadable=[], meta=meta
    )
    with pytest.raises(InputError, match=f"tokenizer {stage.settings['tokenizer']}, got those of 0123456789abcdef"):
        second_stage(cache)


def test_tokens_give_the_same_steps_as_their_pictures(second_stage, toy: DataSet) -> None:
    """Whatever holds them."""
    stage = second_stage()
    held = TokenSet(train=stage.data.train, validation=stage.data.validation, classes=toy.classes, unreadable=[])
    again = second_stage(held)
    for step in range(3):
        assert float(again.loss(step)[0].detach()) == float(stage.loss(step)[0].detach())


def test_a_guess_by_frequency_is_learned_from_what_was_trained_on(second_stage) -> None:
    """Its loss on held-out tokens is that of counts with one more of each code, scale by scale."""
    stage = second_stage()
    assert stage.validate()["unigram"] == pytest.approx(math.log(64), abs=1e-5)
    seen = [stage._batch(step, slice(None))[0] for step in range(5)]
    for step in range(5):
        stage.loss(step)
    trained = torch.cat(seen)
    held_out, _ = stage.data.validation.batch(range(6))
    figures = stage.validate()
    for k, part in enumerate(stage.model.config.scales.slices(), start=1):
        counts = torch.bincount(trained[:, part].flatten(), minlength=64) + 1.0
        expected = -(counts / counts.sum()).log()[held_out[:, part]].mean()
        assert figures[f"unigram_scale_{k}"] == pytest.approx(float(expected), abs=1e-5)
    assert stage.frequencies.images == 5 * stage.batch


def test_classes_of_data_and_model_are_the_same(toy: DataSet) -> None:
    """One class more than the model has would be its "no class", and be learned as that in silence."""
    more = dataclasses.replace(toy, classes=("dark", "light", "red"))
    with pytest.raises(InputError, match="^classes: expected 2, as the model has, got 3 of the data$"):
        of_classes(2, more)
    for part in ("train", "validation"):
        split = getattr(toy, part)
        spoilt = dataclasses.replace(split, labels=torch.where(torch.arange(len(split)) == 4, 2, split.labels))
        with pytest.raises(InputError, match="^labels: expected 0 .. 1, got 2$"):
            of_classes(2, dataclasses.replace(toy, **{part: spoilt}))


def of_classes(count: int, data: DataSet) -> TransformerStage:
    tokenizer = MultiScaleVQVAE(toys.TOKENIZER, seed=3)
    config = dataclasses.replace(toys.TRANSFORMER, classes=count)
    return TransformerStage(config, tokenizer, data, recipe=TransformerRecipe(optimization=toys.RECIPE))


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [0.0, 3e38, math.nan], ids=str)
def test_a_model_whose_loss_is_not_finite_is_not_sound(second_stage, spoil: float) -> None:
    """As soon as the weights that learn are so, whatever their average still gives."""
    stage = second_stage(settings=["average=0.99"])
    stage.gather()
    assert stage.sound()
    with torch.no_grad():
        stage.model.head.weight.fill_(spoil)
    assert stage.sound() is (spoil == 0)
