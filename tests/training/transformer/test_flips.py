"""Laws of self-correction, and of stage 2 with codes of digits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training import toy as toys
from training.toy import CORNERS, LEVELS, PAIRS, TOKENIZER
from training.two_processes import run

from nextscale import InputError, MultiScaleVQVAE, Pipeline
from nextscale.config import TokenizerConfig
from nextscale.data.tokens import TokenSet
from nextscale.training import recipes
from nextscale.training.loop import recorded
from nextscale.training.recipes import TransformerRecipe
from nextscale.training.transformer import flips
from nextscale.training.transformer.stage import TransformerStage, fitted
from nextscale.training.transformer.tokens import Encoded

KINDS = {"codebook": TOKENIZER, "levels": LEVELS, "corners": CORNERS, "pairs": PAIRS}


def stage(config: TokenizerConfig, settings: list[str], data: TokenSet | None = None) -> TransformerStage:
    tokenizer = MultiScaleVQVAE(config, seed=3)
    return TransformerStage(
        fitted(toys.TRANSFORMER, tokenizer, classes=2),
        tokenizer,
        data or toys.data_set(),
        recipe=recipes.changed(TransformerRecipe(optimization=toys.RECIPE), settings),
        precision="fp32",
    )


def turns(config: TokenizerConfig, most: float, *, batch: int, seed: int = 0) -> Tensor:
    return flips.turns(config, most, batch=batch, numbers=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_targets_are_what_the_flipped_canvas_lacks(kind: str) -> None:
    """Scale by scale, against the canvas that was painted; without flips both are the picture's own tokens."""
    config = KINDS[kind]
    quantizer = MultiScaleVQVAE(config, seed=3).quantizer
    f = torch.randn(3, config.code_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    found, seen = quantizer.corrected(f, flips.flipping(turns(config, 0.9, batch=3), config))
    assert (found != seen).float().mean() > 0.2
    lacking = f
    for k, (tokens, painted) in enumerate(zip(config.scales.split(found), config.scales.split(seen), strict=True)):
        assert torch.equal(tokens, quantizer.quantized(quantizer.pool(lacking, k), k))
        lacking = lacking - quantizer.contribution(quantizer.lookup(painted), k)
    plain = quantizer.encode(f)
    for same in quantizer.corrected(f, flips.flipping(turns(config, 0.0, batch=3), config)):
        assert torch.equal(same, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_flips_are_drawn_from_0_to_the_largest(kind: str) -> None:
    """For each picture and scale; every turned digit becomes another value, any of them."""
    config = KINDS[kind]
    by = turns(config, 0.4, batch=400)
    assert by.shape == (400, config.scales.total, len(flips.sizes_of(config)))
    assert float((by > 0).float().mean()) == pytest.approx(0.2, abs=0.02)
    last = (by[:, config.scales.slices()[-1]] > 0).float().flatten(1).mean(dim=1)
    assert last.max() < 0.75
    assert last.std() > 0.08
    sizes = torch.tensor(flips.sizes_of(config))
    assert (by < sizes).all()
    assert torch.equal(by.amax(dim=(0, 1)), sizes - 1)
    tokens = torch.zeros(400, 1, 1, dtype=torch.int64)
    flipped = flips.flipping(by, config)(0, tokens)
    assert torch.equal(flipped.flatten() != 0, (by[:, 0] > 0).any(dim=-1))


@pytest.mark.parametrize("kind", [pytest.param("codebook", marks=pytest.mark.slow), "corners"])
def test_a_stage_that_corrects_itself_continues_bit_for_bit(kind: str, tmp_path: Path) -> None:
    """With every other option on; the pipeline is read back, and its transformer predicts digit by digit."""
    settings = [*toys.ALL_OF_STAGE_2, "self_correction=0.5"]
    whole = run(lambda: stage(KINDS[kind], settings), tmp_path / "whole", steps=4)
    cut = run(lambda: stage(KINDS[kind], settings), tmp_path / "cut", cut=2, steps=4)
    assert toys.flat({name: part.state_dict() for name, part in cut.state.items()}) == toys.flat(
        {name: part.state_dict() for name, part in whole.state.items()}
    )
    pipe = Pipeline.load(tmp_path / "cut", precision="fp32")
    assert pipe.transformer.config.groups == KINDS[kind].digits
    assert pipe.generate("dark", seeds=[0]).images.shape == (1, 3, 8, 8)


def test_parts_of_a_batch_see_the_flips_of_the_whole() -> None:
    """So that a step cut in parts, or over processes, is the same step."""
    one = stage(CORNERS, ["self_correction=0.5"])
    targets, seen, labels = one._told(3, slice(None))
    for part in (slice(0, 1), slice(1, 4)):
        for whole, own in zip((targets, seen, labels), one._told(3, part), strict=True):
            assert torch.equal(whole[part], own)
    assert not torch.equal(one._told(4, slice(None))[1], seen)


def test_without_self_correction_nothing_is_flipped_or_recorded() -> None:
    """What is looked at is the targets; older runs go on."""
    plain = stage(TOKENIZER, [])
    targets, seen, _ = plain._told(0, slice(None))
    assert targets is seen
    assert "self_correction" not in recorded(plain.recipe)


def test_a_token_cache_is_refused() -> None:
    """It holds no features that could be quantized anew."""
    encoded = stage(TOKENIZER, []).data
    train = encoded.train
    assert isinstance(train, Encoded)

    class Cached:
        """Tokens, and nothing of pictures."""

        classes, labels, fingerprint, captions = train.classes, train.labels, train.fingerprint, None

    with pytest.raises(InputError, match="self_correction: expected pictures, whose features are quantized anew"):
        stage(TOKENIZER, ["self_correction=0.1"], dataclasses.replace(encoded, train=Cached()))


def test_fixed_codes_train_a_head_in_groups() -> None:
    """Losses fall below guesses by frequency alone would be at first; figures are of whole tokens."""
    one = stage(CORNERS, ["token_noise=0.1"])
    first = one.validate()
    assert first["cross_entropy"] == pytest.approx(20 * 0.693, rel=0.05)
    for step in range(10):
        assert one.update(step, 10).finite
    last = one.validate()
    assert last["cross_entropy"] < first["cross_entropy"] - 0.5
    assert last["unigram"] < first["unigram"]
    assert 0 <= last["accuracy"] <= 1
