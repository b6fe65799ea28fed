"""Laws of likelihood: exact, a distribution, the same whatever the batch, and read off as it says."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale import VAR, InputError, MultiScaleVQVAE, Pipeline, Scales
from nextscale import digits as numbers
from nextscale.transformer import KeyValueCache, likelihood

TINY = {"scales": Scales([1, (1, 2)]), "codebook_size": 4}


@pytest.fixture(scope="module")
def tiny(make_tokenizer: Callable[..., MultiScaleVQVAE], make_transformer: Callable[..., VAR]) -> Pipeline:
    """Four codes, three tokens: 64 pictures are all there are."""
    return Pipeline(make_tokenizer(**TINY), make_transformer(**TINY), precision="fp32")


@pytest.fixture(scope="module", params=[(4,), (2, 2)], ids=["one softmax", "two bits"])
def digital(
    request: pytest.FixtureRequest, make_tokenizer: Callable[..., MultiScaleVQVAE], make_transformer: Callable[..., VAR]
) -> Pipeline:
    """The same with a head in groups."""
    groups = request.param
    return Pipeline(make_tokenizer(**TINY), make_transformer(**TINY, groups=groups), precision="fp32")


def all_pictures() -> Tensor:
    return torch.tensor([*itertools.product(range(4), repeat=3)])


def one_after_the_other(pipe: Pipeline, tokens_L: Tensor, label: int, prompt: str | None = None) -> Tensor:
    """log p of each token, (L,), by steps with a cache on the canvas as sampling walks it."""
    model, quantizer, scales = pipe.transformer, pipe.tokenizer.quantizer, pipe.transformer.config.scales
    words = None if prompt is None or pipe.reader is None else pipe.reader.read([prompt])
    condition = model.condition(torch.tensor([label]), words)
    cache = KeyValueCache(model.config, 1, dtype=torch.float32, device=torch.device("cpu"))
    codes, found, canvas = None, [], quantizer.blank(1)
    for k, part in enumerate(scales.split(tokens_L[None])):
        logits_lV = model.step(k, codes, condition, cache)[0]
        found += [probability(logits, token, model) for logits, token in zip(logits_lV, part.flatten(), strict=True)]
        canvas = canvas + quantizer.contribution(quantizer.lookup(part), k)
        if k + 1 < len(scales):
            codes = quantizer.pool(canvas, k + 1).flatten(2).transpose(1, 2)
    return torch.stack(found).log()


def probability(logits_V: Tensor, token: Tensor, model: VAR) -> Tensor:
    """Of one token: the product over its digits, of one softmax each."""
    groups = model.config.groups or (model.config.logits,)
    parts = zip(logits_V.split([*groups]), numbers.split(token, groups), strict=True)
    return torch.stack([part.softmax(dim=0)[digit] for part, digit in parts]).prod()


# ---- exactness -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_log_likelihood_is_what_one_step_after_the_other_gives(pipe: Pipeline, images: Tensor) -> None:
    """Token by token, and so scale by scale and picture by picture."""
    found = pipe.log_likelihood(images / 2 + 0.5, ["cat", 0, 5, 3])
    tokens = pipe.tokenizer.encode(images)
    expected = torch.stack([one_after_the_other(pipe, *row) for row in zip(tokens, (2, 0, 5, 3), strict=True)])
    torch.testing.assert_close(found.tokens, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.images, expected.double().sum(dim=1), atol=1e-3, rtol=0)
    by_scale = [part.sum(dim=(1, 2)) for part in pipe.tokenizer.config.scales.split(expected.double())]
    torch.testing.assert_close(found.scales, torch.stack(by_scale, dim=1), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.bits_per_pixel, -expected.double().sum(dim=1) / math.log(2) / 64)
    assert len(found) == 4
    assert [tuple(part.shape) for part in found.maps(found.entropy)] == [(4, 1, 1), (4, 2, 2), (4, 3, 3), (4, 4, 4)]


@torch.no_grad()
def test_words_are_part_of_the_condition(text_pipe: Pipeline, random_tokens: Callable[..., Tensor]) -> None:
    """One prompt each, or for all; no words are no text."""
    tokens = random_tokens(batch=2)
    found = text_pipe.log_likelihood(labels="cat", prompts=["a red heart", "a blue heart"], tokens=tokens)
    for row, prompt, got in zip(tokens, ("a red heart", "a blue heart"), found.tokens, strict=True):
        torch.testing.assert_close(got, one_after_the_other(text_pipe, row, 2, prompt), atol=1e-4, rtol=0)
    alone = text_pipe.log_likelihood(prompts="a red heart", tokens=tokens).tokens
    torch.testing.assert_close(alone[0], one_after_the_other(text_pipe, tokens[0], 5, "a red heart"), atol=1e-4, rtol=0)
    without = text_pipe.log_likelihood(labels="cat", tokens=tokens).tokens
    torch.testing.assert_close(without[0], one_after_the_other(text_pipe, tokens[0], 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("label", [0, 3, 5])
@torch.no_grad()
def test_probabilities_of_all_pictures_sum_to_1(digital: Pipeline, label: int) -> None:
    """Over every sequence of tokens that there is; and each is the product of its steps."""
    found = digital.log_likelihood(labels=label, tokens=all_pictures(), batch=64)
    assert float(found.images.exp().sum()) == pytest.approx(1, abs=1e-5)
    for row in (0, 27, 63):
        expected = one_after_the_other(digital, all_pictures()[row], label)
        torch.testing.assert_close(found.tokens[row], expected, atol=1e-5, rtol=0)


def test_sampling_comes_from_this_distribution(tiny: Pipeline) -> None:
    """Chi-square of 4,000 pictures without guidance or truncation under its 0.1 % point of 63 degrees of freedom."""
    drawn = tiny.generate(1, range(4000), guidance=0.0, top_k=0, top_p=0.0).tokens
    expected = 4000 * tiny.log_likelihood(labels=1, tokens=all_pictures()).images.exp()
    counts = torch.bincount((drawn * torch.tensor([16, 4, 1])).sum(dim=1), minlength=64).double()
    common = expected >= 5
    rest = torch.stack([counts[~common].sum(), expected[~common].sum()])
    square = ((counts - expected).square() / expected)[common].sum() + (rest[0] - rest[1]).square() / rest[1].clamp(1)
    assert square.item() < 103.4


@torch.no_grad()
def test_entropy_is_that_of_each_token_s_distribution(digital: Pipeline) -> None:
    """-sum p log p over all four codes, at the first token from the likelihoods of all pictures themselves."""
    found = digital.log_likelihood(labels=2, tokens=all_pictures(), batch=64)
    p = found.images.exp().view(4, 16).sum(dim=1)
    expected = -(p * p.log()).sum()
    assert found.entropy[0, 0].item() == pytest.approx(expected.item(), abs=1e-5)
    assert found.entropy[:, 0].unique().numel() == 1
    joint = found.images.exp().view(4, 4, 4)  # p(first, second, third)
    second = joint[1].sum(dim=1) / joint[1].sum()
    assert found.entropy[16, 1].item() == pytest.approx(-(second * second.log()).sum().item(), abs=1e-5)
    assert (found.entropy > 0).all()
    assert (found.entropy <= math.log(4) + 1e-6).all()


@pytest.mark.parametrize("groups", [(64,), (2,) * 6, (8, 4, 2), (4, 4, 4)], ids=str)
def test_readings_are_those_of_all_codes(groups: tuple[int, ...]) -> None:
    """Of a head in groups: products of the softmaxes of digits, one code after the other."""
    logits = 2 * torch.randn(5, sum(groups), generator=torch.Generator().manual_seed(4))
    tokens, codes = torch.tensor([0, 63, 17, 40, 5]), numbers.split(torch.arange(64), groups)
    parts = [part.softmax(dim=-1) for part in logits.split([*groups], dim=-1)]
    p_nV = torch.stack([part[:, digit] for part, digit in zip(parts, codes.unbind(-1), strict=True)]).prod(dim=0)
    expected = p_nV.gather(-1, tokens[:, None]).squeeze(-1).log()
    torch.testing.assert_close(likelihood.log_probability(logits, tokens, groups), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(likelihood.entropy(logits, tokens, groups), -(p_nV * p_nV.log()).sum(dim=-1))


def test_certainty_has_no_entropy() -> None:
    """However large the logits: 0, and no NaN."""
    logits = torch.tensor([[0.0, 1e4, -1e4], [3e38, 0.0, 0.0]])
    assert likelihood.entropy(logits, torch.tensor([1, 0]), (3,)).tolist() == [0, 0]
    assert likelihood.log_probability(logits, torch.tensor([1, 0]), (3,)).tolist() == [0, 0]


# ---- independence ----------------------------------------------------------------------------------------------------


def test_a_picture_s_likelihood_is_its_own(pipe: Pipeline, random_tokens: Callable[..., Tensor]) -> None:
    """Alone, among others, in any batches and chunks."""
    tokens, labels = random_tokens(batch=7), [0, 1, 2, 3, 4, 5, 0]
    together = pipe.log_likelihood(labels=labels, tokens=tokens)
    for batch in (1, 3):
        parts = pipe.log_likelihood(labels=labels, tokens=tokens, batch=batch)
        torch.testing.assert_close(parts.tokens, together.tokens, atol=1e-4, rtol=0)
        torch.testing.assert_close(parts.entropy, together.entropy, atol=1e-4, rtol=0)
    alone = pipe.log_likelihood(labels=4, tokens=tokens[4:5])
    torch.testing.assert_close(alone.tokens[0], together.tokens[4], atol=1e-4, rtol=0)


def test_chunks_of_logits_do_not_matter(
    pipe: Pipeline, random_tokens: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row at a time, or all."""
    whole = pipe.log_likelihood(tokens=random_tokens())
    monkeypatch.setitem(likelihood.LOGITS, "cpu", 1)
    rows = pipe.log_likelihood(tokens=random_tokens())
    torch.testing.assert_close(rows.tokens, whole.tokens, atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.entropy, whole.entropy, atol=1e-4, rtol=0)


def test_neither_pipeline_nor_torch_is_changed(
    pipe: Pipeline, random_tokens: Callable[..., Tensor], untouched: Callable[[], Any]
) -> None:
    """And what comes out asks for no gradients."""
    with untouched():
        found = pipe.log_likelihood(tokens=random_tokens())
        pipe.classify(tokens=random_tokens())
    assert not found.tokens.requires_grad


# ---- classes ---------------------------------------------------------------------------------------------------------


def test_classes_are_told_by_likelihood(pipe: Pipeline, random_tokens: Callable[..., Tensor]) -> None:
    """Each candidate's is the likelihood under it; the probabilities are Bayes's with equal priors."""
    tokens = random_tokens(batch=3)
    found = pipe.classify(tokens=tokens, batch=4)
    assert found.names == ("ant", "bee", "cat", "dog", "eel")
    expected = torch.stack([pipe.log_likelihood(labels=label, tokens=tokens).scales for label in range(5)], dim=1)
    torch.testing.assert_close(found.scales, expected, atol=1e-3, rtol=0)
    odds = expected.sum(dim=2).exp() / expected.sum(dim=2).exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(found.probabilities, odds, atol=1e-3, rtol=0)
    assert torch.equal(found.best, expected.sum(dim=2).argmax(dim=1))
    assert len(found) == 3


def test_coarse_scales_alone_may_tell_classes(pipe: Pipeline, random_tokens: Callable[..., Tensor]) -> None:
    """What finer ones would add is not computed, and is not needed."""
    tokens = random_tokens(batch=2)
    whole = pipe.classify(tokens=tokens)
    for through in (1, 2, 4):
        part = pipe.classify(tokens=tokens, through=through)
        assert part.scales.shape == (2, 5, through)
        torch.testing.assert_close(part.log_likelihoods, whole.through(through).log_likelihoods, atol=1e-3, rtol=0)


def test_a_picture_is_taken_for_what_it_was_painted_as(tiny: Pipeline) -> None:
    """More often than a guess: of 500 pictures, by the distribution they were drawn from."""
    labels = [0, 1, 2, 3, 4] * 100
    drawn = tiny.generate(labels, guidance=0.0, top_k=0, top_p=0.0).tokens
    right = (tiny.classify(tokens=drawn).best == torch.tensor(labels)).double().mean().item()
    p = torch.stack([tiny.log_likelihood(labels=label, tokens=all_pictures()).images.exp() for label in range(5)])
    best_possible = p.amax(dim=0).sum().item() / 5
    assert right == pytest.approx(best_possible, abs=4 * math.sqrt(0.25 / 500))
    assert best_possible > 0.3


def test_candidates_may_be_words(text_pipe: Pipeline, random_tokens: Callable[..., Tensor]) -> None:
    """Alone, or of one class each."""
    words, tokens = ["a red heart", "a cat face"], random_tokens(batch=2)
    found = text_pipe.classify(prompts=words, tokens=tokens)
    assert found.names == ("a red heart", "a cat face")
    expected = [text_pipe.log_likelihood(prompts=word, tokens=tokens).images for word in words]
    torch.testing.assert_close(found.log_likelihoods, torch.stack(expected, dim=1), atol=1e-3, rtol=0)
    both = text_pipe.classify(labels=["ant", "bee"], prompts=words, tokens=tokens)
    assert both.names == ("ant: a red heart", "bee: a cat face")
    shared = text_pipe.classify(labels=["ant", "bee"], prompts="a red heart", tokens=tokens)
    assert shared.names == ("ant: a red heart", "bee: a red heart")
    torch.testing.assert_close(shared.scales[:, 0], both.scales[:, 0], atol=1e-3, rtol=0)


def test_progress_is_told_pair_by_pair(pipe: Pipeline, random_tokens: Callable[..., Tensor]) -> None:
    """Of pictures and candidates; of log-likelihood, of pictures."""
    told: list[tuple[int, int]] = []
    pipe.classify(tokens=random_tokens(batch=3), batch=7, progress=lambda done, total: told.append((done, total)))
    assert told == [(7, 15), (14, 15), (15, 15)]
    told.clear()
    pipe.log_likelihood(tokens=random_tokens(batch=3), batch=2, progress=lambda *done: told.append(done))
    assert told == [(2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "expected images or tokens, got neither"),
        ({"images": "ONE", "tokens": "TOKENS"}, "expected images or tokens, got both"),
        ({"images": torch.zeros(0, 3, 8, 8)}, "images: expected at least one, got none"),
        ({"images": torch.zeros(1, 3, 9, 8)}, "images: expected shape"),
        ({"tokens": torch.zeros(2, 29, dtype=torch.int64)}, r"tokens: expected shape \(batch, 30\) int64"),
        ({"tokens": torch.full((2, 30), 64)}, r"tokens: expected values in 0 \.\. 63"),
        ({"tokens": "TOKENS", "labels": "fish"}, "label: expected one of ant"),
        ({"tokens": "TOKENS", "prompts": "a heart"}, "prompts: expected labels, since this model reads no text"),
        ({"tokens": "TOKENS", "batch": 0}, "batch: expected 1 or more, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(
    pipe: Pipeline, random_tokens: Callable[..., Tensor], given: dict[str, Any], told: str
) -> None:
    """By either door, in one line."""
    there = {"ONE": torch.zeros(1, 3, 8, 8), "TOKENS": random_tokens()}
    arguments = {name: there.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
    for door in (pipe.log_likelihood, pipe.classify):
        with pytest.raises(InputError, match=f"^{told}"):
            door(**arguments)


def test_other_mistakes_are_refused(pipe: Pipeline, random_tokens: Callable[..., Tensor]) -> None:
    """One label for all or one each; as many scales as there are."""
    with pytest.raises(InputError, match="^labels: expected one for all results or one each, 2, got 3$"):
        pipe.log_likelihood(labels=[0, 1, 2], tokens=random_tokens())
    for through in (0, 5):
        with pytest.raises(InputError, match=rf"^through: expected 1 \.\. 4 scales, got {through}$"):
            pipe.classify(tokens=random_tokens(), through=through)


def test_what_was_found_cannot_be_changed(pipe: Pipeline, random_tokens: Callable[..., Tensor]) -> None:
    """Neither of them."""
    for found in (pipe.log_likelihood(tokens=random_tokens()), pipe.classify(tokens=random_tokens())):
        with pytest.raises(dataclasses.FrozenInstanceError):
            found.sizes = None  # type: ignore[misc]
