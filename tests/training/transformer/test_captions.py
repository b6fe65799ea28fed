"""Laws of captions in training: which words a step is told, what decides them, and that they are learned."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from training import toy as toys

from nextscale import MultiScaleVQVAE, Pipeline
from nextscale.data.captions import Captions
from nextscale.data.tokens import CachedTokens, TokenSet
from nextscale.errors import InputError
from nextscale.text.vocabulary import Vocabulary
from nextscale.training.loop import Length, Rhythm, train
from nextscale.training.recipes import Reading, TransformerRecipe
from nextscale.training.transformer import captions
from nextscale.training.transformer.stage import TransformerStage

AS_IT_IS = Reading(word_dropout=0.0, shuffle=False)
FEW = Captions([("a red heart", "love, heart, red"), (), ("a cat",)])


def told(step: int, reading: Reading = AS_IT_IS, *, seed: int = 0, part: slice = slice(None), of: int = 0) -> list[str]:
    """The captions of a step whose batch is 60 times picture `of`."""
    indices = torch.full((60,), of)[part]
    return captions.told(FEW, indices, reading, seed=seed, step=step, part=part, batch=60)


def test_each_caption_has_its_turn() -> None:
    """About as often as the others; a picture without has none."""
    counts = Counter(word for step in range(5) for word in told(step))
    assert set(counts) == set(FEW[0])
    assert min(counts.values()) > 100
    assert set(told(0, of=1)) == {""}
    assert set(told(0, of=2)) == {"a cat"}


def test_words_are_a_function_of_seed_step_and_place() -> None:
    """Not of how the batch is cut."""
    reading = Reading(word_dropout=0.5)
    whole = told(3, reading)
    assert told(3, reading) == whole
    assert [*told(3, reading, part=slice(0, 20)), *told(3, reading, part=slice(20, 60))] == whole
    assert whole not in (told(4, reading), told(3, reading, seed=1))


def test_words_are_dropped_and_tags_come_in_any_order() -> None:
    """Never all words; the rest stand as they stood."""
    thinned = [word for step in range(20) for word in told(step, Reading(word_dropout=0.4, shuffle=False))]
    kept = sum(len(word.split()) for word in thinned) / len(thinned) / 3
    assert kept == pytest.approx(0.6 + 0.4**3 / 3, abs=0.03)
    assert all(word for word in thinned)
    orders = {word for step in range(5) for word in told(step, Reading(word_dropout=0.0)) if "," in word}
    assert orders == {", ".join(tags) for tags in itertools.permutations(["love", "heart", "red"])}


def test_prompts_and_labels_are_dropped_each_for_itself() -> None:
    """A tenth of the prompts; of labels a tenth, and half of the rest where there is a caption."""
    stage, everything = toys.text_stage(batch=100), slice(None)
    own = torch.cat([stage._indices(step) for step in range(40)])
    labels = torch.cat([stage._labels(torch.zeros(100, dtype=torch.int64), step, everything) for step in range(40)])
    silent = torch.cat([~stage._prompts(step, everything).mask.any(dim=1) for step in range(40)])
    captioned = torch.tensor([word != "" for word in captions.first(stage.data.train.captions, own)])
    unlabelled = labels == 2
    assert silent[captioned].float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert silent[~captioned].all()
    assert unlabelled[captioned].float().mean().item() == pytest.approx(0.55, abs=0.03)
    assert unlabelled[~captioned].float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert (unlabelled & silent)[captioned].float().mean().item() == pytest.approx(0.055, abs=0.02)


def test_validation_tells_the_first_caption_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """No word is dropped, and figures are the same each time."""
    stage = toys.text_stage()
    read: list[str] = []
    reads = type(stage.reader).read
    monkeypatch.setattr(type(stage.reader), "read", lambda self, words: read.extend(words) or reads(self, words))
    assert stage.validate() == stage.validate()
    assert stage.sound()
    assert read[:6] == ["a dark picture", "a light picture", "", "a light picture", "a dark picture", ""]


@pytest.mark.slow
def test_a_run_that_reads_continues_bit_for_bit(tmp_path: Path, left_behind) -> None:
    """Cut short after any step; the vocabulary travels with the model."""
    length, rhythm = Length(steps=4), Rhythm(checks=2)
    list(train(toys.text_stage(), tmp_path / "whole", length, seed=0, rhythm=rhythm))
    for done in (1, 2, 3):
        run = tmp_path / f"cut after {done}"
        list(itertools.islice(train(toys.text_stage(), run, length, seed=0, rhythm=rhythm), done))
        list(train(toys.text_stage(), run, length, seed=0, rhythm=rhythm))
        assert left_behind(run) == left_behind(tmp_path / "whole")
    pipe = Pipeline.load(tmp_path / "whole", precision="fp32")
    assert pipe.reader == toys.text_stage().reader
    assert pipe.generate(prompts="a dark picture").images.isfinite().all()


def test_every_parameter_learns() -> None:
    """The projections that carry text at once, what they hide a step later."""
    stage = toys.text_stage(batch=16)
    for step in range(3):
        stage.update(step, 100)
    stage.loss(3)[0].backward()
    idle = [name for name, parameter in stage.model.named_parameters() if not parameter.grad.any()]
    assert idle == []


def written(count: int) -> CachedTokens:
    """Pictures of a single class, whose tokens their captions alone tell: 10 or 11."""
    dark = torch.arange(count) % 2 == 0
    tokens = torch.full((count, 1, 30), 10)
    return CachedTokens(
        classes=("picture",),
        labels=torch.zeros(count, dtype=torch.int64),
        fingerprint=f"written {count}",
        shards=[(tokens + (~dark).view(-1, 1, 1)).numpy().astype(np.uint16)],
        captions=Captions([(f"a {word}",) for word in np.where(dark, "dark one", "light one")]),
    )


@pytest.mark.slow
def test_words_are_learned() -> None:
    """The right ones tell all, none leave two to choose from; the class, which says nothing, is never told."""
    dark, light = "a dark one", "a light one"
    reader = Vocabulary.learned([dark, light], size=270, tokens=4)
    config = toys.TRANSFORMER.reading(vocabulary=reader.size, tokens=4)
    data = TokenSet(train=written(40), validation=written(20), classes=("picture",), unreadable=[])
    stage = TransformerStage(
        dataclasses.replace(config, classes=1),
        MultiScaleVQVAE(toys.TOKENIZER, seed=3),
        data,
        recipe=TransformerRecipe(optimization=dataclasses.replace(toys.RECIPE, batch=16, learning_rate=3e-3)),
        precision="fp32",
        reader=reader,
    )
    for step in range(70):
        stage.update(step, 70)
    tokens, _ = data.validation.batch(range(20))
    inputs, costs = stage.tokenizer.teacher_inputs(tokens), {}
    for name, words in (("right", (dark, light)), ("wrong", (light, dark)), ("none", ("", ""))):
        prompts = stage.reader.read([words[place % 2] for place in range(20)])
        with torch.no_grad():
            logits = stage.model(torch.ones(20, dtype=torch.int64), inputs, prompts=prompts)
        costs[name] = torch.nn.functional.cross_entropy(logits[:, 0], tokens[:, 0]).item()
    assert costs["right"] < 0.1
    assert costs["none"] == pytest.approx(math.log(2), abs=0.2)
    assert costs["wrong"] > 2


def test_data_without_captions_is_refused() -> None:
    """As is a reader that the model has no use for, and none where it has."""
    stage = toys.text_stage()
    config, recipe = stage.model.config, TransformerRecipe(optimization=toys.RECIPE)
    for settings, data, reader, told in (
        (config, toys.data_set(), stage.reader, "captions: expected some with the pictures"),
        (config, toys.captioned(), None, "reader: expected one, as the transformer takes text"),
        (toys.TRANSFORMER, toys.captioned(), stage.reader, "reader: expected none, as the transformer takes no text"),
    ):
        with pytest.raises(InputError, match=told):
            TransformerStage(settings, stage.tokenizer, data, recipe=recipe, reader=reader)
