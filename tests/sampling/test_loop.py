"""Laws of sampling: the noise, the draw, guidance, and the loop that joins both models without touching either."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nextscale import VAR, InputError, MultiScaleVQVAE, Scales
from nextscale.sampling import loop
from nextscale.sampling.guidance import guidance_until, linear_guidance, listed_guidance
from nextscale.sampling.loop import Choice, Painted, choose, generate, guided, gumbel, mixed, random_keys
from nextscale.sampling.step_guidance import enlarging

NO_LIMITS = Choice(top_k=0, top_p=0.0)
Pair = tuple[MultiScaleVQVAE, VAR]

GOLDEN_KEYS = [[-6411193824288604561, -5511663747979980962], [6755974106381971767, -4781302686461524836]]
GOLDEN_NOISE = [-0.6807578206062317, 3.529359817504883, 0.21268972754478455]


@pytest.fixture(
    scope="module",
    params=[
        {},
        {"scales": Scales([1, (2, 1), (3, 2), (4, 6)])},
        {"scales": Scales([(2, 2), 3, 4])},
        {"scales": Scales([(3, 4)])},
    ],
    ids=str,
)
def pair(
    request: pytest.FixtureRequest, make_tokenizer: Callable[..., MultiScaleVQVAE], make_transformer: Callable[..., VAR]
) -> Pair:
    return make_tokenizer(**request.param), make_transformer(**request.param)


def walk(pair: Pair, labels: list[int], seeds: list[int], **settings: Any) -> list[Painted]:
    tokenizer, transformer = pair
    given = {"guidance": linear_guidance(1.5), "choice": Choice(), **settings}
    return list(generate(transformer, tokenizer.quantizer, labels, seeds, **given))


def join(steps: list[Painted]) -> Tensor:
    return torch.cat([step.tokens.flatten(1) for step in steps], dim=1)


# -- the noise ---------------------------------------------------------------------------------------------------------


def uniforms(*, seeds: int = 1, positions: int = 1, codes: int = 1, first_seed: int = 0) -> Tensor:
    """The noise as numbers in 0 .. 1, (seeds, positions, codes)."""
    keys = random_keys(range(first_seed, first_seed + seeds), positions)
    return (-(-gumbel(keys[..., None], torch.arange(codes)).double()).exp()).exp()


@pytest.mark.parametrize(
    "numbers",
    [
        uniforms(codes=20_000).flatten(),
        uniforms(positions=20_000).flatten(),
        uniforms(seeds=20_000).flatten(),
        uniforms(seeds=20_000, first_seed=-10_000).flatten(),
    ],
    ids=["over codes", "over positions", "over seeds", "over negative seeds"],
)
def test_noise_is_gumbel_distributed(numbers: Tensor) -> None:
    """Kolmogorov-Smirnov: 20,000 draws are no further from exp(-exp(-g)) than the 0.1 % point, 1.95 / sqrt(n)."""
    n = len(numbers)
    ordered = numbers.sort().values
    ranks = torch.arange(n) / n
    distance = torch.maximum((ordered - ranks).abs(), (ordered - ranks - 1 / n).abs()).max()
    assert distance.item() < 1.95 / math.sqrt(n)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (uniforms(seeds=20_001)[1:, 0, 0], uniforms(seeds=20_001)[:-1, 0, 0]),
        (uniforms(positions=20_001)[0, 1:, 0], uniforms(positions=20_001)[0, :-1, 0]),
        (uniforms(codes=20_001)[0, 0, 1:], uniforms(codes=20_001)[0, 0, :-1]),
        (uniforms(seeds=1, positions=20_000).flatten(), uniforms(first_seed=1, positions=20_000).flatten()),
        (uniforms(positions=2, codes=20_001)[0, 0, 1:], uniforms(positions=2, codes=20_001)[0, 1, :-1]),
    ],
    ids=["seeds", "positions", "codes", "positions of two seeds", "position + 1 against code + 1"],
)
def test_noise_of_neighbours_is_independent(a: Tensor, b: Tensor) -> None:
    """Pairs fill an 8 x 8 grid evenly: chi-square with 63 degrees of freedom under its 0.1 % point, 104."""
    cells = (a * 8).long() * 8 + (b * 8).long()
    counts = torch.bincount(cells, minlength=64).double()
    expected = len(a) / 64
    assert ((counts - expected).square() / expected).sum().item() < 104


def test_streams_of_all_images_and_positions_differ() -> None:
    """No two of a thousand seeds' 680 positions share a key."""
    keys = random_keys(range(-500, 500), 680)
    assert len(keys.unique()) == keys.numel()


def test_no_seeds_have_no_streams() -> None:
    """Integers all the same."""
    keys = random_keys([], 4)
    assert (keys.shape, keys.dtype) == ((0, 4), torch.int64)


@given(st.integers(), st.integers(1, 20))
def test_any_integer_is_a_seed(seed: int, total: int) -> None:
    """Negative ones and huge ones too, modulo 2^64; the first positions do not depend on how many there are."""
    keys = random_keys([seed], total + 5)
    assert keys.dtype == torch.int64
    assert torch.equal(keys, random_keys([seed % 2**64], total + 5))
    assert torch.equal(keys[:, :total], random_keys([seed], total))
    assert not torch.equal(keys, random_keys([seed + 1], total + 5))


def test_seeds_may_come_from_numpy_and_torch() -> None:
    """They mean what the same Python integers mean."""
    expected = random_keys([3, -1], 4)
    assert torch.equal(random_keys(np.array([3, -1]), 4), expected)  # type: ignore[arg-type]
    assert torch.equal(random_keys(torch.tensor([3, -1]), 4), expected)  # type: ignore[arg-type]


def test_noise_is_the_same_everywhere() -> None:
    """Golden numbers: moving one changes every picture of every seed, also where torch makes tensors elsewhere."""
    with torch.device("meta"):
        keys = random_keys([0, -1], 2)
    assert keys.tolist() == GOLDEN_KEYS
    torch.testing.assert_close(gumbel(keys[0, 0], torch.tensor([0, 1, 4095])), torch.tensor(GOLDEN_NOISE))


def key_of(bits: int) -> int:
    """The key whose noise for code 0 is made of these 64 bits: the steps of SplitMix64, backwards."""

    def unshifted(y: int, by: int) -> int:
        x = y
        for _ in range(64 // by):
            x = y ^ (x >> by)
        return x

    x = unshifted(bits, 31)
    x = unshifted(x * pow(0x94D049BB133111EB, -1, 2**64) % 2**64, 27)
    x = unshifted(x * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64, 30)
    return (x - 0x9E3779B97F4A7C15 + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ((2**53 - 2**22) << 11, 31 * math.log(2)),
        (2**64 - 1, 53 * math.log(2)),
        ((2**53 - 2) << 11, 52 * math.log(2)),
        (0, -math.log(54 * math.log(2))),
        (1 << 63, -math.log(math.log(2))),
    ],
    ids=["1 - 2^-31", "largest", "largest but one", "smallest", "half"],
)
def test_noise_is_exact_to_float32_at_the_ends(bits: int, expected: float) -> None:
    """-log(-log u): at u = 1 - 2^-31 that is 31 ln 2, which float32 could not tell from 1; never infinite."""
    noise = gumbel(torch.tensor([key_of(bits)]), torch.tensor([0]))
    assert noise.item() == pytest.approx(expected, rel=1e-6)


def test_noise_is_finite_at_both_ends() -> None:
    """Two million draws: none infinite, the largest and smallest where two million Gumbel numbers have them."""
    noise = gumbel(random_keys([0], 500)[..., None], torch.arange(4096))
    assert noise.isfinite().all()
    assert 11 < noise.max().item() < 22
    assert -3.2 < noise.min().item() < -2.4


# -- the draw ----------------------------------------------------------------------------------------------------------


def truncated_softmax(logits: list[float], choice: Choice) -> list[float]:
    """What a draw should be distributed as, one code after another."""
    order = sorted(range(len(logits)), key=lambda v: -logits[v])[: choice.top_k or None]
    temperature = choice.temperature or 1.0
    order = order if choice.temperature else order[:1]
    powers = [math.exp((logits[v] - max(logits)) / temperature) for v in order]
    total, kept, so_far = sum(powers), {}, 0.0
    for v, power in zip(order, powers, strict=True):
        if so_far < (choice.top_p or 2.0) or not kept:
            kept[v] = power
        so_far += power / total
    return [kept.get(v, 0.0) / sum(kept.values()) for v in range(len(logits))]


DRAWS = 20_000
RANDOM = torch.randn(32, generator=torch.Generator().manual_seed(4)).mul(1.5).tolist()
EQUAL = [0.7] * 16
OVERWHELMING = [0.0, 200.0, 1.0, -300.0]
SETTINGS = [
    {"top_k": 0, "top_p": 0.0},
    {"top_k": 0, "top_p": 1.0},
    {"top_k": 900, "top_p": 0.0},
    {"top_k": 5, "top_p": 0.0},
    {"top_k": 1, "top_p": 0.0},
    {"top_k": 0, "top_p": 0.6},
    {"top_k": 6, "top_p": 0.6},
    {"top_k": 0, "top_p": 1e-6},
    {"top_k": 0, "top_p": 0.96, "temperature": 0.5},
    {"top_k": 7, "top_p": 0.0, "temperature": 3.0},
    {"top_k": 0, "top_p": 0.5, "temperature": 1e-4},
    {"temperature": 0.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("logits", [RANDOM, OVERWHELMING], ids=["random logits", "one overwhelming logit"])
def test_draws_are_distributed_as_the_truncated_softmax(logits: list[float], settings: dict[str, Any]) -> None:
    """Chi-square of 20,000 draws under its 0.1 % point (Wilson-Hilferty); a code that is cut off never comes."""
    choice = Choice(**settings)
    tokens, mixture = choose(torch.tensor(logits).expand(1, DRAWS, -1), random_keys([7], DRAWS), choice, progress=0.5)
    assert mixture is None
    counts = torch.bincount(tokens.flatten(), minlength=len(logits)).tolist()
    expected = [p * DRAWS for p in truncated_softmax(logits, choice)]
    assert all(count == 0 for count, e in zip(counts, expected, strict=True) if e == 0)
    common = [(count, e) for count, e in zip(counts, expected, strict=True) if e >= 5]
    freedom = len(common) - 1
    if freedom == 0:
        assert common[0][0] >= DRAWS - 1
    else:
        chi_square = sum((count - e) ** 2 / e for count, e in common)
        assert chi_square < freedom * (1 - 2 / 9 / freedom + 3.09 * math.sqrt(2 / 9 / freedom)) ** 3


@pytest.mark.parametrize(
    ("settings", "codes", "limit"), [({"top_k": 0, "top_p": 0.0}, 16, 37.7), ({"top_k": 0, "top_p": 0.4}, 7, 22.5)]
)
def test_equal_logits_are_drawn_equally_often(settings: dict[str, Any], codes: int, limit: float) -> None:
    """Which of 16 a truncation keeps is open, how many is not: 7/16 reach 0.4. `limit`: chi-square's 0.1 % point."""
    tokens, _ = choose(
        torch.tensor(EQUAL).expand(1, DRAWS, -1), random_keys([1], DRAWS), Choice(**settings), progress=0.0
    )
    counts = [count for count in torch.bincount(tokens.flatten()).tolist() if count]
    assert len(counts) == codes
    chi_square = sum((count - DRAWS / codes) ** 2 / (DRAWS / codes) for count in counts)
    assert chi_square < limit


@pytest.fixture
def drawable(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor, Choice], list[int]]:
    """`drawable(logits, choice)`: the codes that some noise could bring, found by noise that prefers each in turn."""

    def find(logits: Tensor, choice: Choice) -> list[int]:
        count = len(logits)
        monkeypatch.setattr(loop, "gumbel", lambda keys, codes: (codes == torch.arange(count)[:, None]) * 1e6)
        tokens, _ = choose(logits.expand(1, count, -1), random_keys([0], count), choice, progress=0.0)
        return [v for v, token in enumerate(tokens[0].tolist()) if token == v]

    return find


@pytest.mark.parametrize("top_p", [0.0, 1.0])
@pytest.mark.parametrize("spread", [0.0, 5.0, 10.0])
def test_top_p_at_either_end_keeps_every_code(
    drawable: Callable[[Tensor, Choice], list[int]], top_p: float, spread: float
) -> None:
    """However unlikely: the sum of the likelier ones is rounded to 1 long before the last of 1,000."""
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * spread
    assert drawable(logits, Choice(top_k=0, top_p=top_p)) == list(range(1000))
    assert len(drawable(logits, Choice(top_k=900, top_p=top_p))) == 900


@pytest.mark.parametrize(
    ("top_p", "codes"), [(0.5, 8), (0.501, 9), (1 / 16, 1), (0.03, 1), (1e-45, 1), (15 / 16, 15), (0.999, 16)]
)
def test_top_p_of_equal_logits_keeps_as_many_as_reach_it(
    drawable: Callable[[Tensor, Choice], list[int]], top_p: float, codes: int
) -> None:
    """Of 16, each 1/16: exactly 8 for a half, and at least one."""
    assert len(drawable(torch.tensor(EQUAL), Choice(top_k=0, top_p=top_p))) == codes


def test_tiny_temperature_takes_the_likeliest_code() -> None:
    """As temperature 0 does, instead of an overflow."""
    logits = torch.tensor(RANDOM).expand(1, 50, -1)
    for temperature in (1e-6, 1e-30, 1e-42):
        tokens, _ = choose(logits, random_keys([1], 50), Choice(temperature=temperature), progress=0.0)
        assert set(tokens.flatten().tolist()) == {RANDOM.index(max(RANDOM))}


@pytest.mark.parametrize("temperature", [0.0, 1e-40])
@pytest.mark.parametrize("top_k", [0, 900])
def test_the_likeliest_code_is_painted_pure(temperature: float, top_k: int) -> None:
    """Also where smooth sampling would mix: a weight of 1, and 0 for all others."""
    logits = torch.tensor(RANDOM).expand(1, 50, -1)
    choice = Choice(temperature=temperature, top_k=top_k, smooth=True)
    tokens, mixture = choose(logits, random_keys([1], 50), choice, progress=0.5)
    assert set(tokens.flatten().tolist()) == {RANDOM.index(max(RANDOM))}
    assert mixture is not None
    assert torch.equal(mixture, torch.nn.functional.one_hot(tokens, 32).float())


@pytest.mark.parametrize("choice", [Choice(top_k=5, top_p=0, smooth=True), Choice(top_k=0, top_p=0.7, smooth=True)])
def test_every_position_is_drawn_by_its_own_logits(choice: Choice) -> None:
    """Sharp ones and flat ones beside each other: candidates, token and mixture are what each has alone."""
    spread = torch.tensor([0.1, 1.0, 8.0]).view(1, 3, 1)
    logits, keys = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0)) * spread, random_keys([0, 1], 3)
    tokens, mixture = choose(logits, keys, choice, progress=0.5)
    for b, i in np.ndindex(2, 3):
        token, alone = choose(logits[b : b + 1, i : i + 1], keys[b : b + 1, i : i + 1], choice, progress=0.5)
        assert token.item() == tokens[b, i]
        assert mixture is not None
        torch.testing.assert_close(mixture[b, i], alone[0, 0])


def test_without_limits_every_code_is_a_candidate() -> None:
    """However few positions there are."""
    tokens, _ = choose(torch.zeros(500, 1, 16), random_keys(range(500), 1), NO_LIMITS, progress=0.0)
    assert len(tokens.unique()) == 16


def test_truncation_changes_a_draw_only_where_it_cuts_the_winner() -> None:
    """The noise of a code does not depend on the candidates: a winner among the likeliest 6 wins among all as well."""
    logits, keys = torch.tensor(RANDOM).expand(1, 2000, -1), random_keys([5], 2000)
    free, _ = choose(logits, keys, NO_LIMITS, progress=0.0)
    cut, _ = choose(logits, keys, Choice(top_k=6, top_p=0.0), progress=0.0)
    inside = torch.isin(free, torch.tensor(RANDOM).topk(6).indices)
    assert 0 < inside.sum() < 2000
    assert torch.equal(cut[inside], free[inside])


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_smooth_mixture_is_the_gumbel_softmax_of_the_candidates(progress: float) -> None:
    """tau = max(0.27 (1 - 0.95 progress), 0.005) over logits * (1 + progress) + noise; nothing for what is cut off."""
    logits, keys = torch.tensor(RANDOM).expand(1, 10, -1), random_keys([5], 10)
    tokens, mixture = choose(logits, keys, Choice(top_k=6, top_p=0.0, smooth=True), progress=progress)
    best = torch.tensor(RANDOM).topk(6).indices
    noise = gumbel(keys[0, :, None], best)
    tau = max(0.27 * (1 - 0.95 * progress), 0.005)
    expected = torch.zeros(10, 32)
    expected[:, best] = ((torch.tensor(RANDOM)[best] * (1 + progress) + noise) / tau).softmax(dim=-1)
    assert mixture is not None
    torch.testing.assert_close(mixture[0], expected, atol=1e-5, rtol=1e-4)
    plain, _ = choose(logits, keys, Choice(top_k=6, top_p=0.0), progress=progress)
    assert torch.equal(tokens, plain)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": -1},
        {"top_p": 1.01},
        {"top_p": -0.1},
        {"top_p": float("nan")},
        {"temperature": -1.0},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    """By name, with the range."""
    with pytest.raises(InputError, match=rf"^{next(iter(settings))}: expected 0"):
        Choice(**settings)


# -- guidance ----------------------------------------------------------------------------------------------------------


def test_guided_logits_are_extrapolated_from_the_unconditional_ones() -> None:
    """(1 + t) conditional - t unconditional, and the conditional ones as they are where there is no second row."""
    logits = torch.randn(6, 2, 5)
    torch.testing.assert_close(guided(logits, 3, 0.7), 1.7 * logits[:3] - 0.7 * logits[3:])
    assert guided(logits, 6, 0.0) is logits


@pytest.mark.parametrize("guidance", [0.0, 1.5, -0.5])
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 20, "top_p": 0.9, "temperature": 1.3}], ids=str)
@torch.no_grad()
def test_sampled_tokens_are_drawn_from_the_teacher_forced_logits(
    pair: Pair, guidance: float, settings: dict[str, Any]
) -> None:
    """The slow path: both forwards on the finished tokens, guided scale by scale, drawn with the same keys."""
    tokenizer, transformer = pair
    scales, labels, seeds, choice = transformer.config.scales, [0, 3, 5], [5, 6, 7], Choice(**settings)
    tokens = join(walk(pair, labels, seeds, guidance=linear_guidance(guidance), choice=choice))
    inputs = tokenizer.teacher_inputs(tokens)
    conditional = transformer(torch.tensor(labels), inputs)
    unconditional = transformer(torch.full((3,), 5), inputs)
    for k, part in enumerate(scales.slices()):
        t = guidance * k / max(len(scales) - 1, 1)
        logits = (1 + t) * conditional[:, part] - t * unconditional[:, part]
        expected, _ = choose(logits, random_keys(seeds, scales.total)[:, part], choice, progress=0.0)
        assert torch.equal(tokens[:, part], expected)


@pytest.mark.parametrize(("guidance", "rows"), [(0.0, 3), (1.5, 6)])
def test_no_guidance_costs_no_second_row(
    make_tokenizer: Callable[..., MultiScaleVQVAE], make_transformer: Callable[..., VAR], guidance: float, rows: int
) -> None:
    """Counted at the first block."""
    pair, seen = (make_tokenizer(), make_transformer()), []
    pair[1].blocks[0].register_forward_pre_hook(lambda block, x: seen.append(len(x[0])))
    walk(pair, [0, 1, 2], [0, 1, 2], guidance=linear_guidance(guidance))
    assert seen == [rows] * 4


@pytest.mark.parametrize(
    ("weights", "rows"), [([0, 2, 0, 0], [6, 6, 3, 3]), ([2, 0, 1, 0], [6, 6, 6, 3]), ([0, 0, 0, 1], [6] * 4)], ids=str
)
def test_guidance_that_is_over_costs_no_second_row(
    make_tokenizer: Callable[..., MultiScaleVQVAE],
    make_transformer: Callable[..., VAR],
    weights: list[float],
    rows: list[int],
) -> None:
    """Counted at the first block; before the last guided scale the second row is needed, for its keys and values."""
    pair, seen = (make_tokenizer(), make_transformer()), []
    pair[1].blocks[0].register_forward_pre_hook(lambda block, x: seen.append(len(x[0])))
    walk(pair, [0, 1, 2], [0, 1, 2], guidance=listed_guidance(weights))
    assert seen == rows


@torch.no_grad()
def test_scales_after_guidance_are_drawn_from_the_conditional_logits(pair: Pair) -> None:
    """Which saw all coarser scales, guided as those were."""
    tokenizer, transformer = pair
    scales, labels, seeds = transformer.config.scales, [0, 3, 5], [5, 6, 7]
    until = len(scales) - 1
    tokens = join(walk(pair, labels, seeds, guidance=guidance_until([2.0] * len(scales), until)))
    conditional = transformer(torch.tensor(labels), tokenizer.teacher_inputs(tokens))
    last = scales.slices()[-1]
    expected, _ = choose(conditional[:, last], random_keys(seeds, scales.total)[:, last], Choice(), progress=0.0)
    assert torch.equal(tokens[:, last], expected)


@pytest.mark.parametrize("betas", [(0.7,) * 5, (0.0, 0.0, -0.5, 0.9, 2.0)], ids=str)
@torch.no_grad()
def test_step_guidance_leads_away_from_the_logits_before(pair: Pair, betas: tuple[float, ...]) -> None:
    """The slow path: of the finished tokens' guided logits, scale by scale, each beside those of the scale before."""
    tokenizer, transformer = pair
    scales, labels, seeds = transformer.config.scales, [0, 3, 5], [5, 6, 7]
    tokens = join(walk(pair, labels, seeds, step_guidance=betas[: len(scales)]))
    inputs, keys, before = tokenizer.teacher_inputs(tokens), random_keys(seeds, scales.total), None
    conditional, without = transformer(torch.tensor(labels), inputs), transformer(torch.full((3,), 5), inputs)
    for k, part in enumerate(scales.slices()):
        t = 1.5 * k / max(len(scales) - 1, 1)
        plain = logits = (1 + t) * conditional[:, part] - t * without[:, part]
        if before is not None:
            prior = enlarging(scales.sizes[k - 1], scales.sizes[k]) @ before
            logits = (1 + betas[k]) * logits - betas[k] * prior
        expected, _ = choose(logits, keys[:, part], Choice(), progress=0.0)
        assert torch.equal(tokens[:, part], expected)
        before = plain


@pytest.mark.parametrize("reach", [1, 2, 3, 9])
@torch.no_grad()
def test_a_shorter_reach_is_another_mask(pair: Pair, reach: int) -> None:
    """The slow path: teacher forcing under the mask of the last scales alone; beyond all scales there is nothing."""
    tokenizer, transformer = pair
    scales, labels, seeds = transformer.config.scales, [0, 3, 5], [5, 6, 7]
    tokens = join(walk(pair, labels, seeds, reach=reach, guidance=linear_guidance(0.0)))
    logits = transformer(torch.tensor(labels), tokenizer.teacher_inputs(tokens), reach=reach)
    expected, _ = choose(logits, random_keys(seeds, scales.total), Choice(), progress=0.0)
    assert torch.equal(tokens, expected)
    whole = torch.equal(tokens, join(walk(pair, labels, seeds, guidance=linear_guidance(0.0))))
    assert whole if reach >= len(scales) else reach > 1 or not whole


@pytest.mark.parametrize("field", ["top_k", "top_p", "temperature"])
def test_each_scale_may_be_drawn_in_its_own_way(tokenizer: MultiScaleVQVAE, transformer: VAR, field: str) -> None:
    """As with a value for all up to where it changes: from there on, as nothing else is, are other pictures."""
    pair, labels, seeds = (tokenizer, transformer), [0, 1, 2, 3] * 4, list(range(16))
    one, other = {"top_k": (0, 2), "top_p": (0.0, 0.3), "temperature": (1.0, 0.2)}[field]
    choices = [Choice(**{"top_k": 0, "top_p": 0.0, field: value}) for value in (one, one, other, one)]
    listed, plain = walk(pair, labels, seeds, choice=choices), walk(pair, labels, seeds, choice=choices[0])
    assert [torch.equal(a.tokens, b.tokens) for a, b in zip(listed, plain, strict=True)] == [True, True, False, False]
    assert join(walk(pair, labels, seeds, choice=[choices[0]] * 4)).equal(join(plain))


def test_guidance_may_be_any_schedule(tokenizer: MultiScaleVQVAE, transformer: VAR) -> None:
    """It is asked for each scale; one that is on at the first scale only differs from none only through it."""
    asked = []

    def first_only(k: int, scales: int) -> float:
        asked.append((k, scales))
        return 3.0 if k == 0 else 0.0

    pair, greedy = (tokenizer, transformer), Choice(temperature=0.0)
    steps = walk(pair, [1], [0], guidance=first_only, choice=greedy)
    assert asked == [(k, 4) for k in range(4)]
    start = torch.zeros(1, 29, 8)
    with torch.no_grad():
        conditional, unconditional = (transformer(torch.tensor([label]), start)[0, 0] for label in (1, 5))
    assert steps[0].tokens.item() == (4 * conditional - 3 * unconditional).argmax().item()


@pytest.mark.parametrize(
    ("sizes", "expected"), [([1, 2, 3, 4], [0, 1 / 3, 2 / 3, 1]), ([3, 4], [0, 1]), ([4], [0])], ids=str
)
def test_progress_goes_from_0_at_the_first_scale_to_1_at_the_last(
    make_tokenizer: Callable[..., MultiScaleVQVAE],
    make_transformer: Callable[..., VAR],
    monkeypatch: pytest.MonkeyPatch,
    sizes: list[int],
    expected: list[float],
) -> None:
    """k / (K - 1), which is 0 where there is one scale."""
    pair, told = (make_tokenizer(scales=Scales(sizes)), make_transformer(scales=Scales(sizes))), []

    def listen(*given: Any, progress: float, **more: Any) -> tuple[Tensor, Tensor | None]:
        told.append(progress)
        return choose(*given, progress=progress, **more)

    monkeypatch.setattr(loop, "choose", listen)
    walk(pair, [0], [0])
    assert told == pytest.approx(expected, abs=1e-15)


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_loop_yields_each_scale_with_the_canvas_so_far(pair: Pair) -> None:
    """Maps of the right sizes and dtypes; the canvases are Algorithm 2 of the tokens."""
    tokenizer, transformer = pair
    steps = walk(pair, [0, 5], [1, 2])
    assert [step.scale for step in steps] == list(range(len(transformer.config.scales)))
    assert [tuple(step.tokens.shape[1:]) for step in steps] == list(transformer.config.scales)
    assert all(step.tokens.dtype == torch.int64 for step in steps)
    for step, canvas in zip(steps, tokenizer.quantizer.canvases(join(steps)), strict=True):
        torch.testing.assert_close(step.canvas, canvas, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_image_depends_on_its_seed_and_label_only(pair: Pair, guidance: float, smooth: bool) -> None:
    """Alone, in a batch of 8, in another order: the same tokens, and the same canvas up to rounding."""
    labels, seeds = [0, 1, 2, 3, 4, 5, 0, 0], [10, 11, 12, 10, 14, 15, 16, -17]
    settings = {"guidance": linear_guidance(guidance), "choice": Choice(smooth=smooth)}
    together = walk(pair, labels, seeds, **settings)
    order = [5, 0, 7, 2, 1, 6, 3, 4]
    shuffled = walk(pair, [labels[i] for i in order], [seeds[i] for i in order], **settings)
    assert torch.equal(join(shuffled), join(together)[order])
    torch.testing.assert_close(shuffled[-1].canvas, together[-1].canvas[order], atol=1e-3, rtol=0)
    for i in range(8):
        alone = walk(pair, [labels[i]], [seeds[i]], **settings)
        assert torch.equal(join(alone)[0], join(together)[i])
        torch.testing.assert_close(alone[-1].canvas[0], together[-1].canvas[i], atol=1e-3, rtol=0)


def test_other_seeds_and_other_labels_give_other_images(pair: Pair) -> None:
    """Eight seeds of one class, six labels of one seed: all different."""
    assert len(join(walk(pair, [1] * 8, list(range(8)))).unique(dim=0)) == 8
    assert len(join(walk(pair, [0, 1, 2, 3, 4, 5], [3] * 6)).unique(dim=0)) == 6


def test_smooth_paints_a_mixture_and_says_which_tokens_won(tokenizer: MultiScaleVQVAE, transformer: VAR) -> None:
    """The first scale draws the same tokens as without; its canvas is near that of the tokens, not on it."""
    pair = (tokenizer, transformer)
    plain = walk(pair, [0, 1, 2], [0, 1, 2])
    smooth = walk(pair, [0, 1, 2], [0, 1, 2], choice=Choice(smooth=True))
    assert torch.equal(smooth[0].tokens, plain[0].tokens)
    assert not torch.equal(smooth[0].canvas, plain[0].canvas)


class Waits(TorchDispatchMode):
    """Notes operations of which the host must know the result or its shape: an accelerator's queue would run empty."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*operation.tags}:
            self.names.append(operation.name())
        with self:  # operations made of others come whole in inference mode
            result = operation.decompose(*args, **(kwargs or {}))
        return operation(*args, **(kwargs or {})) if result is NotImplemented else result


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("guidance", [0.0, 1.5])
@torch.inference_mode()
def test_nothing_waits_for_a_value(pair: Pair, guidance: float, smooth: bool) -> None:
    """From the first scale to the picture the host only queues work."""
    with Waits() as waits:
        torch.ones(2).nonzero(), bool(torch.ones(()) > 0)
    assert {"aten::nonzero", "aten::_local_scalar_dense"} <= {*waits.names}, "this is what is looked for"
    with Waits() as waits:
        steps = walk(pair, [0, 3], [5, 6], guidance=linear_guidance(guidance), choice=Choice(smooth=smooth))
        pair[0].paint(steps[-1].canvas)
    assert waits.names == []


@torch.no_grad()
def test_edit_receives_the_codes_of_each_scale(pair: Pair) -> None:
    """The codebook vectors of the tokens that were drawn; giving them back changes nothing."""
    tokenizer, transformer = pair
    received = []

    def look(k: int, codes: Tensor) -> Tensor:
        received.append((k, codes))
        return codes

    steps, plain = walk(pair, [0, 1], [3, 4], edit=look), walk(pair, [0, 1], [3, 4])
    assert [k for k, _ in received] == list(range(len(transformer.config.scales)))
    for step, (_, codes) in zip(steps, received, strict=True):
        assert torch.equal(codes, tokenizer.quantizer.lookup(step.tokens))
    assert torch.equal(join(steps), join(plain))
    assert torch.equal(steps[-1].canvas, plain[-1].canvas)


@torch.no_grad()
def test_what_an_edit_returns_is_painted_and_predicted_from(tokenizer: MultiScaleVQVAE, transformer: VAR) -> None:
    """Codes of other tokens painted at scales 1 .. K-1: every scale is predicted as after those."""
    quantizer, scales = tokenizer.quantizer, transformer.config.scales
    other = torch.randint(64, (1, scales.total), generator=torch.Generator().manual_seed(9))

    def replace(k: int, codes: Tensor) -> Tensor:
        return codes if k == 3 else quantizer.lookup(scales.split(other)[k])

    steps = walk(
        (tokenizer, transformer),
        [2],
        [0],
        edit=replace,
        guidance=linear_guidance(0.0),
        choice=Choice(temperature=0.0),
    )
    for step, canvas in zip(steps[:3], quantizer.canvases(other), strict=False):
        assert torch.equal(step.canvas, canvas)
    expected = transformer(torch.tensor([2]), tokenizer.teacher_inputs(other)).argmax(dim=-1)
    assert torch.equal(join(steps), expected)
    assert not torch.equal(join(steps), other)


def attributes(pair: Pair) -> list[tuple[str, list[str]]]:
    """The names of all that hangs on the modules: parameters, buffers, hooks, and whatever else was put there."""
    found = []
    for model in pair:
        for name, module in model.named_modules():
            values = {key: value for key, value in vars(module).items() if not isinstance(value, torch.nn.Module)}
            sizes = [f"{key} {len(value) if hasattr(value, '__len__') else value}" for key, value in values.items()]
            found.append((name, sorted(sizes)))
    return found


@pytest.mark.parametrize("scale", [0, 2, 3])
def test_failure_in_the_middle_leaves_the_models_as_they_were(
    tokenizer: MultiScaleVQVAE, transformer: VAR, untouched: Callable[[], Any], scale: int
) -> None:
    """Nothing hangs on the modules, torch's state is the caller's, the next picture is what it would have been."""
    pair = (tokenizer, transformer)
    before, hanging = walk(pair, [1, 2], [0, 1]), attributes(pair)

    def fail(k: int, codes: Tensor) -> Tensor:
        if k == scale:
            raise KeyboardInterrupt
        return codes

    with untouched():
        with pytest.raises(KeyboardInterrupt):
            walk(pair, [1, 2], [0, 1], edit=fail)
        assert attributes(pair) == hanging
        assert torch.equal(join(walk(pair, [1, 2], [0, 1])), join(before))


def test_failure_inside_a_block_leaves_the_transformer_as_it_was(
    make_tokenizer: Callable[..., MultiScaleVQVAE], make_transformer: Callable[..., VAR]
) -> None:
    """Some layers had stored the scale in the cache, some had not."""
    pair = (make_tokenizer(), make_transformer())
    before = walk(pair, [1], [0])
    calls = []

    def fail(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError

    hook = pair[1].blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        walk(pair, [1], [0])
    hook.remove()
    assert torch.equal(join(walk(pair, [1], [0])), join(before))


def test_walk_that_is_given_up_leaves_torch_as_it_was(
    tokenizer: MultiScaleVQVAE, transformer: VAR, untouched: Callable[[], Any]
) -> None:
    """Between two scales the caller's own gradients and random numbers are on; two walks at once do not meet."""
    tokens = join(walk((tokenizer, transformer), [1], [0]))
    settings: dict[str, Any] = {"guidance": linear_guidance(1.5), "choice": Choice()}
    with untouched():
        steps = generate(transformer, tokenizer.quantizer, [1], [0], **settings)
        next(steps)
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        steps.close()
    one, two = (generate(transformer, tokenizer.quantizer, [1], [seed], **settings) for seed in (0, 1))
    interleaved = [step for step, _ in zip(one, two, strict=True)]
    assert torch.equal(join(interleaved), tokens)


def test_sampling_leaves_the_mode_and_the_gradients_of_the_models(
    tokenizer: MultiScaleVQVAE, make_transformer: Callable[..., VAR], untouched: Callable[[], Any]
) -> None:
    """A model in training is in training afterwards, one in evaluation in evaluation; both give the same tokens."""
    model, tokens = make_transformer(), []
    model.start.grad = torch.ones_like(model.start)
    for training in (True, False):
        model.train(training)
        with untouched():
            tokens.append(join(walk((tokenizer, model), [0, 1], [0, 1])))
        assert all(module.training == training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert torch.equal(model.start.grad, torch.ones_like(model.start))
    assert torch.equal(*tokens)


@pytest.mark.slow
def test_the_loop_runs_where_the_weights_are(tokenizer: MultiScaleVQVAE, transformer: VAR) -> None:
    """Everything it makes lies on their device: with weights on the meta device there are shapes and nothing else."""
    pair, labels = (MultiScaleVQVAE(tokenizer.config, seed=None), VAR(transformer.config, seed=None)), []
    pair[1].class_embedding.register_forward_pre_hook(lambda _, given: labels.append(given[0]))
    for smooth in (False, True):
        steps = walk(pair, [1, 2], [0, 1], choice=Choice(smooth=smooth))
        assert [step.tokens.shape for step in steps] == [(2, 1, 1), (2, 2, 2), (2, 3, 3), (2, 4, 4)]
        assert all(step.tokens.is_meta and step.canvas.is_meta for step in steps)
    assert [(each.shape, each.is_meta) for each in labels] == [((4,), True)] * 2


def test_the_loop_remembers_in_the_format_of_the_blocks(
    tokenizer: MultiScaleVQVAE, make_transformer: Callable[..., VAR], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of bfloat16 blocks take half of the room."""
    made: list[torch.dtype] = []

    class Noted(loop.KeyValueCache):
        def __init__(self, *arguments: Any, **formats: Any) -> None:
            super().__init__(*arguments, **formats)
            made.append(self.memory.dtype)

    monkeypatch.setattr(loop, "KeyValueCache", Noted)
    for model in (make_transformer(), make_transformer().lower_precision(torch.bfloat16)):
        walk((tokenizer, model), [1], [0])
    assert made == [torch.float32, torch.bfloat16]


def test_a_mixture_of_one_code_is_that_code(tokenizer: MultiScaleVQVAE) -> None:
    """And of two codes their mean: (B, C, h, w), row after row."""
    quantizer = tokenizer.quantizer
    first, second = torch.arange(12).view(2, 2, 3), torch.arange(12, 24).view(2, 2, 3)
    one, other = (torch.nn.functional.one_hot(tokens.flatten(1), 64).float() for tokens in (first, second))
    torch.testing.assert_close(mixed(quantizer, one, (2, 3)), quantizer.lookup(first))
    mean = (quantizer.lookup(first) + quantizer.lookup(second)) / 2
    torch.testing.assert_close(mixed(quantizer, (one + other) / 2, (2, 3)), mean)


def test_choice_is_frozen() -> None:
    """Settings of a walk cannot change under it."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Choice().top_k = 3  # type: ignore[misc]
