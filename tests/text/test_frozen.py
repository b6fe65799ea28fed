"""Laws of frozen encoders: prompts are their states, wherever they lie, whoever is beside them, made once or anew."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CAPTIONS, awaken
from training import toy as toys

from nextscale import VAR, MultiScaleVQVAE, Pipeline
from nextscale.config import TransformerConfig
from nextscale.errors import InputError
from nextscale.text.frozen import FrozenEncoder, KeptStates, kept
from nextscale.training.recipes import Reading, TransformerRecipe
from nextscale.training.transformer.stage import TransformerStage

transformers = pytest.importorskip("transformers")

PROMPTS = ["a red heart", "", "a cat face, noto " * 9]
SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 400}
KINDS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(hidden_size=12, **SMALL)),
    "clip": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(hidden_size=12, **SMALL)),
    "t5": lambda: transformers.T5EncoderModel(
        transformers.T5Config(d_model=12, d_kv=6, d_ff=16, num_layers=1, num_heads=2, vocab_size=400)
    ),
}


def make(directory: Path, kind: str = "bert") -> None:
    """An encoder of random weights, and a tokenizer of the captions' bytes."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers.models import BPE

    with torch.random.fork_rng():
        torch.manual_seed(3)
        KINDS[kind]().save_pretrained(directory)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    told = ["[PAD]", "[END]"]
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=told, show_progress=False)
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    saved = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[END]")
    saved.save_pretrained(directory)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("encoder")
    make(directory)
    return directory


@pytest.fixture(scope="module")
def encoder(source: Path) -> FrozenEncoder:
    return FrozenEncoder.open(source, tokens=8)


@pytest.fixture(scope="module")
def reads(tokenizer: MultiScaleVQVAE, transformer_config: TransformerConfig, encoder: FrozenEncoder) -> Pipeline:
    """A pipeline that does."""
    model = awaken(VAR(transformer_config.reading(frozen=encoder.channels, tokens=encoder.tokens)))
    return Pipeline(tokenizer, model, precision="fp32", reader=encoder)


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_of_many_kinds_are_read(kind: str, tmp_path: Path) -> None:
    """Their last states, normalised; nothing is read of padding, and no words are no text."""
    make(tmp_path, kind)
    encoder = FrozenEncoder.open(tmp_path, tokens=8)
    states, mask = encoder.read(PROMPTS)
    assert states.shape == (3, 8, 12)
    assert mask.sum(dim=1).tolist() == [min(length, 8) for length in encoder.lengths(PROMPTS)]
    assert encoder.lengths(PROMPTS)[1] == 0
    assert states[~mask].eq(0).all()
    torch.testing.assert_close(states[mask].std(dim=1, correction=0), torch.ones(int(mask.sum())), atol=1e-2, rtol=0)
    for row in (0, 2):
        alone, _ = encoder.read([PROMPTS[row]])
        torch.testing.assert_close(alone[0], states[row], atol=2e-3, rtol=0)


def test_prompts_paint_as_they_do_with_an_encoder_of_one_s_own(reads: Pipeline, untouched) -> None:
    """Neighbours and order do not matter, words do; nothing of torch's is changed."""
    prompts, seeds = ["a red heart", "", "a cat"], [4, 4, 4]
    with untouched():
        together = reads.generate(prompts=prompts, seeds=seeds)
    backwards = reads.generate(prompts=prompts[::-1], seeds=seeds)
    assert torch.equal(backwards.tokens.flip(0), together.tokens)
    assert len(together.tokens.unique(dim=0)) == 3
    assert torch.equal(reads.generate(5, [4]).tokens, together.tokens[1:2])


def test_a_saved_model_remembers_its_encoder(reads: Pipeline, source: Path, tmp_path: Path) -> None:
    """By place and weights; the weights stay where they are, and are loaded with the first prompt."""
    reads.save(tmp_path / "model")
    assert {file.name for file in (tmp_path / "model").iterdir()} == {
        "config.json",
        "tokenizer.safetensors",
        "transformer.safetensors",
    }
    loaded = Pipeline.load(tmp_path / "model", precision="fp32")
    assert loaded.reader == reads.reader
    assert "_parts" not in vars(loaded.reader)
    assert loaded.fingerprint == reads.fingerprint
    assert torch.equal(loaded.generate(prompts="a cat").tokens, reads.generate(prompts="a cat").tokens)


def test_an_encoder_that_has_gone_may_be_elsewhere(reads: Pipeline, source: Path, tmp_path: Path) -> None:
    """Told in one line; classes need none; another one is refused."""
    moved = shutil.copytree(source, tmp_path / "moved")
    gone = dataclasses.replace(reads.reader, source=str(tmp_path / "gone"))
    pipe = Pipeline(reads.tokenizer, reads.transformer, precision="fp32", reader=gone)
    pipe.save(tmp_path / "model")
    assert pipe.generate(2).images.isfinite().all()
    with pytest.raises(
        InputError, match=r"gone: expected one of the transformers library, got: no such folder \(--text-encoder"
    ):
        pipe.generate(prompts="a cat")
    found = Pipeline.load(tmp_path / "model", precision="fp32", text_encoder=moved)
    assert torch.equal(found.generate(prompts="a cat").tokens, reads.generate(prompts="a cat").tokens)
    make(moved, "t5")
    with pytest.raises(InputError, match="expected weights [0-9a-f]{16}, got others"):
        Pipeline.load(tmp_path / "model", text_encoder=moved)
    with pytest.raises(InputError, match="text encoder .*nowhere: expected one of the transformers library"):
        FrozenEncoder.open(tmp_path / "nowhere")


def test_what_is_no_encoder_in_a_config_is_told(reads: Pipeline, pipe: Pipeline, tmp_path: Path) -> None:
    """And one where there is none to be."""
    for wrong in (None, {"source": "x"}, {**reads.reader.to_json()["text_encoder"], "tokens": "8"}):
        with pytest.raises(InputError, match="text_encoder: expected source, tokens, channels, weights, got"):
            FrozenEncoder.from_json(wrong)
    pipe.save(tmp_path)
    with pytest.raises(InputError, match="text_encoder: expected none, as the model was trained with none"):
        Pipeline.load(tmp_path, text_encoder="x/y")
    with pytest.raises(InputError, match="expected 12 channels and 9 places, as the model has, got 12 and 8"):
        reads.reader.check(pipe.transformer.config.reading(frozen=12, tokens=9).text)


def test_kept_states_are_those_that_are_read(
    encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without running the encoder, from memory or from a file; other prompts run it."""
    first = kept(encoder, [*CAPTIONS, ""], file=tmp_path / "text" / "states.safetensors")
    expected = [first.read([caption]) for caption in CAPTIONS]
    for caption, (values, mask) in zip(CAPTIONS, expected, strict=True):
        states, places = encoder.read([caption])
        assert torch.equal(mask, places)
        torch.testing.assert_close(values, states, atol=2e-3, rtol=0)
    other = encoder.read(["another"])
    calls: list[list[str]] = []
    encoded = FrozenEncoder._encoded
    monkeypatch.setattr(
        FrozenEncoder, "_encoded", lambda self, words, *how: calls.append(words) or encoded(self, words, *how)
    )
    again = kept(encoder, CAPTIONS, file=tmp_path / "text" / "states.safetensors")
    values, mask = again.read([*CAPTIONS, ""])
    assert calls == []
    assert not mask[-1].any()
    assert torch.equal(values[:-1], torch.cat([states for states, _ in expected]))
    assert torch.equal(again.read(["another"]).values, other.values)
    assert calls == [["another"]]
    assert again.to_json() == encoder.to_json()


@pytest.mark.slow
def test_training_never_runs_the_encoder(
    encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of captions as they are; what it exports remembers the encoder."""
    data = toys.captioned()
    words = [word for split in (data.train, data.validation) for each in split.captions for word in each]
    reader: KeptStates = kept(encoder, words)
    calls: list[int] = []
    monkeypatch.setattr(FrozenEncoder, "_encoded", lambda self, *given: calls.append(1))
    stage = TransformerStage(
        toys.TRANSFORMER.reading(frozen=encoder.channels, tokens=encoder.tokens),
        MultiScaleVQVAE(toys.TOKENIZER, seed=3),
        data,
        recipe=TransformerRecipe(optimization=toys.RECIPE, text=Reading(word_dropout=0.0, shuffle=False)),
        precision="fp32",
        reader=reader,
    )
    for step in range(3):
        assert stage.update(step, 10).finite
    stage.validate()
    stage.export(tmp_path)
    assert calls == []
    assert json.loads((tmp_path / "config.json").read_text())["text_encoder"] == encoder.to_json()["text_encoder"]


def test_copies_of_an_encoder_are_equal(encoder: FrozenEncoder) -> None:
    """By what it is, not by what it has loaded."""
    assert copy.deepcopy(encoder) == encoder
    assert FrozenEncoder.from_json(encoder.to_json()["text_encoder"]) == encoder
