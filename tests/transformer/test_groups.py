"""Laws of a head in groups: its size, its loss, its draws, and the same transformer around it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import VAR, InputError, MultiScaleVQVAE, Pipeline
from nextscale import digits as numbers
from nextscale.config import TransformerConfig, check_pair, from_json, to_json
from nextscale.release import convert
from nextscale.sampling.engine import fingerprint
from nextscale.sampling.guidance import linear_guidance
from nextscale.sampling.loop import Choice, Painted, choose, digit_keys, generate, random_keys
from nextscale.training.losses import chunked_cross_entropy, cross_entropy
from nextscale.training.transformer.health import Frequencies
from nextscale.training.transformer.learner import Learner

GROUPS = [(64,), (2,) * 6, (8, 4, 2), (4, 4, 4), (2, 32)]
NO_LIMITS = Choice(top_k=0, top_p=0.0)


def grouped(config: TransformerConfig, groups: tuple[int, ...]) -> TransformerConfig:
    return dataclasses.replace(config, codebook_size=math.prod(groups), groups=groups)


def logits_of(groups: tuple[int, ...], *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, sum(groups), generator=torch.Generator().manual_seed(4))


def probabilities(logits_S: Tensor, groups: tuple[int, ...]) -> Tensor:
    """(V,) of all codes, one after the other: products of the softmaxes of their digits."""
    parts = [part.softmax(dim=-1) for part in logits_S.split([*groups])]
    codes = numbers.split(torch.arange(math.prod(groups)), groups)
    return torch.stack([part[digit] for part, digit in zip(parts, codes.unbind(-1), strict=True)]).prod(dim=0)


# ---- the head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_a_head_has_the_sum_of_its_groups(make_transformer: Callable[..., VAR], groups: tuple[int, ...]) -> None:
    """Not their product; all else is the same, and parameters are counted right."""
    model, plain = make_transformer(groups=groups), make_transformer()
    assert model.head.weight.shape == (sum(groups), 64)
    assert model.config.parameters == sum(weight.numel() for weight in model.parameters())
    assert plain.config.parameters - model.config.parameters == 65 * (64 - sum(groups))


def test_bits_that_no_plain_head_could_hold(make_transformer: Callable[..., VAR]) -> None:
    """2^40 codes, 80 logits."""
    model = make_transformer(codebook_size=2**40, groups=(2,) * 40)
    assert model(torch.tensor([0, 1]), torch.zeros(2, 29, 8)).shape == (2, 30, 80)


def test_a_config_without_groups_is_what_it_was(transformer_config: TransformerConfig) -> None:
    """In files and in words; one with them comes back whole."""
    assert "groups" not in to_json(transformer_config)
    assert "groups" not in repr(transformer_config)
    config = grouped(transformer_config, (8, 8))
    assert from_json(TransformerConfig, to_json(config)) == config


@pytest.mark.parametrize(
    ("groups", "words"),
    [((8, 9), "expected a product of 64"), ((64, 1), r"expected 2 .. \d+ each"), ((2,) * 63, r"at most 2\^62")],
)
def test_groups_that_cannot_be_are_told(
    transformer_config: TransformerConfig, groups: tuple[int, ...], words: str
) -> None:
    """In one line."""
    with pytest.raises(InputError, match=words):
        dataclasses.replace(transformer_config, groups=groups)


def test_any_cut_of_the_same_codes_goes_with_a_tokenizer(
    make_tokenizer: Callable[..., MultiScaleVQVAE], transformer_config: TransformerConfig
) -> None:
    """Levels read bit by bit, or all codes at once; the release holds none in groups."""
    tokenizer = make_tokenizer(quantizer="fsq", levels=(8, 8))
    for groups in ((8, 8), (2,) * 6, (64,), ()):
        config = dataclasses.replace(transformer_config, code_channels=2, groups=groups)
        check_pair(tokenizer.config, config)
    with pytest.raises(InputError, match="expected a head over all codes, as the release's format holds, got groups 8"):
        convert.names(VAR(grouped(transformer_config, (8, 8))))


# ---- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_probabilities_of_all_codes_sum_to_1_and_are_what_the_loss_is_of(groups: tuple[int, ...]) -> None:
    """By enumeration."""
    logits_S = logits_of(groups)
    p_V = probabilities(logits_S, groups)
    assert float(p_V.sum()) == pytest.approx(1)
    codes = torch.arange(len(p_V))[None]
    loss = cross_entropy(logits_S.expand(1, len(p_V), -1), codes, groups=groups)
    torch.testing.assert_close(loss[0], -p_V.log())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_the_chunked_loss_is_the_dense_one(groups: tuple[int, ...], smoothing: float) -> None:
    """Loss, gradients and hits; smoothing spreads over the values of each digit."""
    generator = torch.Generator().manual_seed(0)
    h, weights = torch.randn(3, 5, 7, generator=generator).requires_grad_(), torch.linspace(0.5, 1.5, 5)
    weight = torch.randn(sum(groups), 7, generator=generator).requires_grad_()
    bias = torch.randn(sum(groups), generator=generator).requires_grad_()
    tokens = torch.randint(math.prod(groups), (3, 5), generator=generator)
    logits = h @ weight.T + bias
    pairs = zip(logits.split([*groups], dim=-1), numbers.split(tokens, groups).unbind(-1), strict=True)
    costs = [F.cross_entropy(part.mT, digit, reduction="none", label_smoothing=smoothing) for part, digit in pairs]
    of_each = torch.stack(costs).sum(dim=0)
    expected = (of_each * weights).mean() / weights.mean()
    loss, loss_BL, hit_BL = chunked_cross_entropy(
        h, weight, bias, tokens, weights, smoothing=smoothing, groups=groups, chunk=4
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss_BL, cross_entropy(logits.detach(), tokens, groups=groups))
    likeliest = torch.stack([part.argmax(dim=-1) for part in logits.split([*groups], dim=-1)], dim=-1)
    assert torch.equal(hit_BL, numbers.joined(likeliest, groups) == tokens)
    for ours, theirs in zip(*(torch.autograd.grad(of, (h, weight, bias)) for of in (loss, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_learner_learns_in_groups(
    make_transformer: Callable[..., VAR], random_inputs: Callable[..., Tensor]
) -> None:
    """Its loss is that of the model's logits."""
    model = make_transformer(groups=(8, 4, 2))
    labels, inputs = torch.tensor([0, 5]), random_inputs()
    tokens = torch.randint(64, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = cross_entropy(model(labels, inputs), tokens, groups=(8, 4, 2))
        _, loss_BL, _ = Learner(model)(labels, inputs, tokens)
    torch.testing.assert_close(loss_BL, expected, atol=1e-4, rtol=1e-4)


def test_guesses_by_frequency_add_up_over_digits(transformer_config: TransformerConfig) -> None:
    """-ln of the share of each value among the digit's, with one more of each."""
    scales, device = transformer_config.scales, torch.device("cpu")
    frequencies = Frequencies(scales, 6, device, groups=(2, 3))
    frequencies.add(torch.full((4, scales.total), 5))  # digits 1 and 2
    assert frequencies.images == 4
    surprise = frequencies.surprise()
    assert surprise.shape == (4, 5)
    tokens = torch.tensor([[5, *[0] * 29]])
    guesses = frequencies.guesses(surprise, tokens)
    assert guesses[0, :2].tolist() == pytest.approx([-math.log(5 / 6 * 5 / 7), -math.log(1 / 18 * 1 / 19)])


# ---- the draw --------------------------------------------------------------------------------------------------------

DRAWS = 20_000


@pytest.mark.parametrize("groups", [(2,) * 4, (8, 2), (3, 2, 3)], ids=str)
@pytest.mark.parametrize("choice", [NO_LIMITS, Choice(top_k=0, top_p=0.0, temperature=0.5)], ids=str)
def test_codes_are_drawn_as_their_digits_softmaxes_say(groups: tuple[int, ...], choice: Choice) -> None:
    """Chi-square over all codes at its 0.1 % point: exact, and digits independent of one another."""
    logits = logits_of(groups) / 2
    tokens, mixture = choose(logits.expand(1, DRAWS, -1), random_keys([3], DRAWS), choice, progress=0.0, groups=groups)
    assert mixture is None
    expected = DRAWS * probabilities(logits / choice.temperature, groups)
    counts = torch.bincount(tokens.flatten(), minlength=len(expected))
    common = expected >= 5
    chi_square = float(((counts - expected).square() / expected)[common].sum())
    part = 2 / 9 / (int(common.sum()) - 1)
    assert chi_square < 2 / 9 / part * (1 - part + 3.09 * part**0.5) ** 3


def test_truncation_is_of_each_group() -> None:
    """The two likeliest values of each digit; of a digit that is sure enough, one; at temperature 0 the likeliest."""
    groups = (4, 4)
    logits = torch.tensor([3.0, 2.9, 0, 0, 0, 0, 9, 0.5]).expand(1, 500, -1)
    keys = random_keys([0], 500)
    cut, _ = choose(logits, keys, Choice(top_k=2, top_p=0.0), progress=0.0, groups=groups)
    assert set(cut.flatten().tolist()) <= {0 + 8, 1 + 8, 0 + 12, 1 + 12}
    sure, _ = choose(logits, keys, Choice(top_k=0, top_p=0.9), progress=0.0, groups=groups)
    assert set(sure.flatten().tolist()) == {8, 9}
    greedy, _ = choose(logits, keys, Choice(temperature=0), progress=0.0, groups=groups)
    assert greedy.unique().tolist() == [8]


def test_digits_have_streams_of_their_own() -> None:
    """Functions of seed, position and digit, whichever are asked for."""
    keys = random_keys(range(20), 20)
    streams = digit_keys(keys, slice(0, 30))
    assert len(streams.unique()) == streams.numel()
    assert torch.equal(digit_keys(keys, slice(7, 9)), streams[..., 7:9])


# ---- sampling --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(
    make_tokenizer: Callable[..., MultiScaleVQVAE], make_transformer: Callable[..., VAR]
) -> tuple[MultiScaleVQVAE, VAR]:
    tokenizer = make_tokenizer(quantizer="bsq", bits=8)
    return tokenizer, make_transformer(codebook_size=256, groups=(2,) * 8)


def walk(pair: tuple[MultiScaleVQVAE, VAR], labels: list[int], seeds: list[int], **settings: Any) -> list[Painted]:
    given = {"guidance": linear_guidance(1.5), "choice": Choice(), **settings}
    return list(generate(pair[1], pair[0].quantizer, labels, seeds, **given))


def test_sampling_with_the_cache_is_sampling_from_the_whole_forward(pair: tuple[MultiScaleVQVAE, VAR]) -> None:
    """Scale by scale, with guidance: the tokens that the logits of teacher forcing give with the same keys."""
    tokenizer, transformer = pair
    labels, seeds = [0, 3], [5, 6]
    steps = walk(pair, labels, seeds)
    tokens = torch.cat([step.tokens.flatten(1) for step in steps], dim=1)
    inputs, keys = tokenizer.teacher_inputs(tokens), random_keys(seeds, 30)
    with torch.no_grad():
        conditional = transformer(torch.tensor(labels), inputs)
        without = transformer(torch.tensor([5, 5]), inputs)
    for k, part in enumerate(transformer.config.scales.slices()):
        t = 1.5 * k / 3
        logits = (1 + t) * conditional[:, part] - t * without[:, part]
        expected, _ = choose(logits, keys[:, part], Choice(), progress=0.0, groups=(2,) * 8)
        assert torch.equal(tokens[:, part], expected)


def test_a_picture_depends_on_its_seed_alone(pair: tuple[MultiScaleVQVAE, VAR]) -> None:
    """Whatever the batch."""
    both, alone = walk(pair, [0, 3], [5, 6]), walk(pair, [3], [6])
    assert torch.equal(both[-1].tokens[1:], alone[-1].tokens)
    torch.testing.assert_close(both[-1].canvas[1:], alone[-1].canvas, atol=1e-4, rtol=1e-4)


def test_a_pipeline_in_groups_samples_edits_and_is_saved(pair: tuple[MultiScaleVQVAE, VAR], tmp_path: Any) -> None:
    """Both models come back, and paint the same; smooth sampling is refused in a line."""
    pipe = Pipeline(*pair, classes=[*"abcde"], precision="fp32")
    pictures = pipe.generate(["a", "b"], seeds=[1, 2]).images
    pipe.save(tmp_path)
    again = Pipeline.load(tmp_path, precision="fp32")
    assert torch.equal(again.generate(["a", "b"], seeds=[1, 2]).images, pictures)
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    edited = pipe.edit(pictures, mask, "c", seeds=[1, 2]).images
    assert edited.shape == pictures.shape
    with pytest.raises(InputError, match="smooth: expected a head over all codes, which it mixes, got one in 8 groups"):
        pipe.generate("a", smooth=True)


def test_a_logits_processor_that_rules_out_a_whole_digit_is_told(pair: tuple[MultiScaleVQVAE, VAR]) -> None:
    """A finite largest logit is needed in each group."""

    def process(k: int, logits: Tensor) -> Tensor:
        logits[..., 2:4] = -torch.inf
        return logits

    with pytest.raises(InputError, match="expected a finite largest logit of every token, got others at scale 0"):
        walk(pair, [0], [0], process=process)


def test_a_fingerprint_changes_with_gains_levels_and_groups(
    make_tokenizer: Callable[..., MultiScaleVQVAE], make_transformer: Callable[..., VAR]
) -> None:
    """As with every weight: pictures carry it, to be painted again."""
    transformer, cut = (make_transformer(code_channels=2, groups=groups) for groups in ((8, 8), (8, 2, 4)))
    tokenizer, other = (make_tokenizer(quantizer="fsq", levels=levels) for levels in ((8, 8), (4, 16)))
    told = {fingerprint(tokenizer, transformer), fingerprint(other, transformer), fingerprint(tokenizer, cut)}
    tokenizer.quantizer.gain_K[1] = 0.5
    assert len(told | {fingerprint(tokenizer, transformer)}) == 4
