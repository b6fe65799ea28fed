"""Laws of the care of the codebook: where codes begin, how they follow, which are restarted, and fewer scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nextscale import MultiScaleVQVAE, Scales
from nextscale.tokenizer.quantizer import MultiScaleQuantizer
from nextscale.training.recipes import Codebook
from nextscale.training.tokenizer import codebook
from nextscale.training.tokenizer.codebook import (
    RunningMeans,
    chosen_scales,
    drawn,
    dropped,
    is_restart,
    kmeans,
    restart_dead,
    shortfall,
    start_from_residuals,
    tallied,
)

SCALES = Scales([1, 2, 3, 4])
SIZES = (200, 100, 50, 20, 10, 5)  # of blobs


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def quantizer(make_tokenizer: Callable[..., MultiScaleVQVAE]) -> MultiScaleQuantizer:
    """Without phis, so that codes are all there is to learn."""
    return make_tokenizer(phi_count=0).quantizer.requires_grad_(False)


@pytest.fixture
def f(quantizer: MultiScaleQuantizer) -> Tensor:
    """Features of 12 pictures, far from the codes."""
    return 3 * torch.randn(12, 8, 4, 4, generator=numbers(11)) + 2


def apart(vectors: Tensor, codes: Tensor) -> Tensor:
    """Squared distance of each vector to its nearest code."""
    return torch.cdist(vectors.double(), codes.double()).square().min(dim=1).values


# ---- where codes begin -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_finds_separated_blobs(seed: int) -> None:
    """Six blobs of very different sizes, and some centres to spare: each blob gets its own, whatever it began with."""
    blobs = [20 * torch.eye(6)[i] + torch.randn(n, 6, generator=numbers(i)) / 10 for i, n in enumerate(SIZES)]
    centres = kmeans(torch.cat(blobs), 24, numbers(seed))
    for blob in blobs:
        assert apart(blob, centres).max() < 1
        assert apart(blob.mean(dim=0)[None], centres).sqrt() < 0.5


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_finds_vectors_that_come_again_and_again(seed: int) -> None:
    """No centre is left over while a vector is without one, however rare: as many centres as vectors is enough."""
    different = torch.randn(6, 4, generator=numbers())
    vectors = torch.cat([vector.expand(n, 4) for vector, n in zip(different, SIZES, strict=True)])
    assert apart(different, kmeans(vectors, 6, numbers(seed))).max() < 1e-9


def test_kmeans_is_lloyd_s_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round, against loops, where no centre is left without vectors."""
    monkeypatch.setattr(codebook, "KMEANS_ROUNDS", 1)
    vectors = torch.randn(200, 4, generator=numbers())
    first = vectors[drawn(200, 5, numbers(3))]
    members: list[list[Tensor]] = [[] for _ in range(5)]
    for vector in vectors:
        members[min(range(5), key=lambda v: float((vector - first[v]).square().sum()))].append(vector)
    expected = torch.stack([torch.stack(own).mean(dim=0) for own in members])
    torch.testing.assert_close(kmeans(vectors, 5, numbers(3)), expected)


@pytest.mark.parametrize("rows", [1, 7, 39])
def test_kmeans_of_many_vectors_compares_them_in_parts(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same result."""
    vectors = torch.randn(40, 4, generator=numbers())
    whole = kmeans(vectors, 6, numbers(1))
    monkeypatch.setattr("nextscale.training.tokenizer.codebook.ROWS", rows)
    torch.testing.assert_close(kmeans(vectors, 6, numbers(1)), whole)


@pytest.mark.parametrize("count", [3, 10, 40])
def test_kmeans_gives_as_many_centres_as_asked_for(count: int) -> None:
    """Also where there are fewer vectors, or fewer different ones; its random numbers alone decide."""
    vectors = torch.randn(10, 4, generator=numbers()).repeat(2, 1)
    centres = kmeans(vectors, count, numbers(1))
    assert centres.shape == (count, 4)
    assert centres.isfinite().all()
    assert torch.equal(centres, kmeans(vectors, count, numbers(1)))
    if count >= 10:
        torch.testing.assert_close(apart(vectors, centres), torch.zeros(20, dtype=torch.float64), atol=1e-6, rtol=0)


def test_starting_from_residuals_brings_codes_to_them(quantizer: MultiScaleQuantizer, f: Tensor) -> None:
    """The canvas is much nearer to the features at every scale, and residuals to their codes; random numbers decide."""
    before = quantizer(f)
    start_from_residuals(quantizer, f, numbers())
    after = quantizer(f)
    for k in range(4):
        assert (after.canvases[k] - f).square().mean() < (before.canvases[k] - f).square().mean()
        assert (
            apart(after.residuals[k], quantizer.codebook.weight).mean()
            < 0.5 * before.residuals[k].square().sum(dim=1).mean()
        )
    assert (after.canvases[-1] - f).square().mean() < 0.5 * (before.canvases[-1] - f).square().mean()
    codes = quantizer.codebook.weight.clone()
    start_from_residuals(quantizer, f, numbers())
    assert not torch.equal(quantizer.codebook.weight, codes)  # it begins with the residuals that these codes leave


# ---- how they follow -------------------------------------------------------------------------------------------------


def test_running_means_follow_their_formulas(quantizer: MultiScaleQuantizer, f: Tensor) -> None:
    """n <- d n + (1 - d) hits, m <- d m + (1 - d) sum, e = m / n: vector by vector, over several steps."""
    means, decay = RunningMeans(quantizer, 0.8), 0.8
    n, m = torch.ones(64), quantizer.codebook.weight.clone()
    for step in range(5):
        walk = quantizer(f + step)
        hits, sums = torch.zeros(64), torch.zeros(64, 8)
        for part, residuals in zip(SCALES.split(walk.tokens), walk.residuals, strict=True):
            for code, vector in zip(part.flatten().tolist(), residuals, strict=True):
                hits[code] += 1
                sums[code] += vector
        n, m = decay * n + (1 - decay) * hits, decay * m + (1 - decay) * sums
        means.update(walk.residuals, walk.tokens, SCALES)
        torch.testing.assert_close(quantizer.codebook.weight, m / n[:, None], rtol=1e-4, atol=1e-5)


def test_a_code_that_nobody_chooses_stays_where_it_is(quantizer: MultiScaleQuantizer, f: Tensor) -> None:
    """However long: its sum fades with its count, until the count is too small to divide by."""
    means, far = RunningMeans(quantizer, 0.5), 7
    quantizer.codebook.weight[far] = 1e4
    means.begin()
    walk = quantizer(f)
    for _ in range(200):
        means.update(walk.residuals, walk.tokens, SCALES)
    torch.testing.assert_close(quantizer.codebook.weight[far], torch.full((8,), 1e4))
    assert quantizer.codebook.weight.isfinite().all()


def test_codes_under_running_means_come_to_rest_on_what_chooses_them(quantizer: MultiScaleQuantizer) -> None:
    """Of one scale, whose residuals do not depend on the codes: Lloyd's algorithm in small steps."""
    vectors = torch.randn(300, 8, generator=numbers())
    means = RunningMeans(quantizer, 0.7)
    before = apart(vectors, quantizer.codebook.weight).mean()
    for _ in range(60):
        tokens = quantizer.nearest(vectors)
        means.update([vectors], tokens[None], Scales([(1, 300)]))
    hits, sums = tallied(vectors, quantizer.nearest(vectors), 64)
    used = hits > 0
    torch.testing.assert_close(quantizer.codebook.weight[used], sums[used] / hits[used, None], atol=1e-3, rtol=0)
    assert apart(vectors, quantizer.codebook.weight).mean() < 0.7 * before


def test_running_means_forget_what_a_moved_code_was(quantizer: MultiScaleQuantizer, f: Tensor) -> None:
    """The others keep their averages; a saved and loaded state goes on bit for bit."""
    means = RunningMeans(quantizer, 0.8)
    walk = quantizer(f)
    means.update(walk.residuals, walk.tokens, SCALES)
    hits, sums = means.hits_V.clone(), means.sums_VC.clone()
    quantizer.codebook.weight[3] = 5.0
    means.moved(torch.tensor([3]))
    assert means.hits_V[3] == 1
    assert torch.equal(means.sums_VC[3], torch.full((8,), 5.0))
    others = torch.arange(64) != 3
    assert torch.equal(means.hits_V[others], hits[others])
    assert torch.equal(means.sums_VC[others], sums[others])
    again = RunningMeans(quantizer, 0.8)
    again.load_state_dict(means.state_dict())
    assert torch.equal(again.hits_V, means.hits_V)
    assert torch.equal(again.sums_VC, means.sums_VC)


# ---- what becomes of dead ones ---------------------------------------------------------------------------------------


def residuals_of(quantizer: MultiScaleQuantizer, f: Tensor) -> tuple[Tensor, ...]:
    walk = quantizer(f)
    quantizer.count_hits(walk.tokens, 0)
    return walk.residuals


def members(codes: Tensor, vectors: Tensor) -> list[bool]:
    """Which codes are one of the vectors, bit for bit."""
    return [bool((vectors == code).all(dim=1).any()) for code in codes]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_exactly_the_dead_codes_are_restarted_from_residuals(
    quantizer: MultiScaleQuantizer, f: Tensor, share: float
) -> None:
    """Those hit less often than that share of an even use become residuals, bit for bit; no other moves."""
    residuals, before = residuals_of(quantizer, f), quantizer.codebook.weight.clone()
    hits = quantizer.hits_KV.sum(dim=0)
    expected = [v for v in range(64) if hits[v] < share * 12 * 30 / 64]
    moved = restart_dead(quantizer, residuals, dead_below=share, generator=numbers())
    assert moved.tolist() == expected
    assert len(expected) > 10 or share == 0
    alive = [v for v in range(64) if v not in expected]
    assert torch.equal(quantizer.codebook.weight[alive], before[alive])
    assert all(members(quantizer.codebook.weight[moved], torch.cat(residuals)))


def test_restarts_prefer_scales_that_use_few_of_the_codes(quantizer: MultiScaleQuantizer) -> None:
    """Two scales that say as much as they could, and two that always say the same: residuals come from those."""
    quantizer.hits_KV.zero_()
    quantizer.hits_KV[:2, :40] = 1
    quantizer.hits_KV[2:, 0] = 80
    residuals = [torch.full((50, 8), float(k)) for k in range(4)]
    moved = restart_dead(quantizer, residuals, dead_below=0.1, generator=numbers())
    assert moved.tolist() == list(range(40, 64))
    assert set(quantizer.codebook.weight[moved].unique().tolist()) == {2.0, 3.0}


def test_a_restarted_code_has_time_to_find_its_use(quantizer: MultiScaleQuantizer, f: Tensor) -> None:
    """It counts as evenly used, so that it is not dead again at once."""
    residuals = residuals_of(quantizer, f)
    moved, again = (restart_dead(quantizer, residuals, dead_below=0.5, generator=numbers(i)) for i in range(2))
    assert len(moved) > 10
    assert not set(moved.tolist()) & set(again.tolist())


def test_its_random_numbers_alone_decide_on_a_restart(make_tokenizer, f: Tensor, untouched) -> None:
    """Not torch's; other numbers, other residuals."""

    def restarted(seed: int) -> Tensor:
        quantizer = make_tokenizer(phi_count=0).quantizer.requires_grad_(False)
        residuals = residuals_of(quantizer, f)
        restart_dead(quantizer, residuals, dead_below=0.5, generator=numbers(seed))
        return quantizer.codebook.weight

    with untouched():
        assert torch.equal(restarted(1), restarted(1))
        assert not torch.equal(restarted(1), restarted(2))


def test_codes_nobody_has_counted_yet_are_not_dead(quantizer: MultiScaleQuantizer, f: Tensor) -> None:
    """As before the first step of all scales."""
    assert len(restart_dead(quantizer, quantizer(f).residuals, dead_below=1.0, generator=numbers())) == 0


@pytest.mark.parametrize(
    ("every", "expected"), [(0, []), (30, [29, 59, 89]), (7, [6, 13, 20, 27, 34, 41, 48, 55, 62, 69, 76, 83])]
)
def test_restarts_come_regularly_until_the_codes_have_to_settle(every: int, expected: list[int]) -> None:
    """In a run of 100 steps none after the ninetieth; none while the length of the run is unknown."""
    recipe = Codebook(restart_every=every)
    assert [step for step in range(100) if is_restart(recipe, step, 100)] == expected
    assert not any(is_restart(recipe, step, None) for step in range(100))


@pytest.mark.parametrize(
    ("hits", "expected"),
    [
        ([16.0] * 4, 1e-3),  # evenly: hardly ever chosen
        ([64.0, 0.0, 0.0, 0.0], 0.75),  # one of four
        ([32.0, 32.0, 0.0, 0.0], 0.5),
        ([1.0, 1.0, 0.0, 0.0], 1e-3),  # two tokens can use two codes
        ([0.0] * 4, 1e-3),
    ],
)
def test_shortfall_is_what_is_missing_to_an_even_use(hits: list[float], expected: float) -> None:
    """Of the codes that so many tokens could use."""
    assert shortfall(torch.tensor([hits])).item() == pytest.approx(expected, abs=1e-5)


# ---- fewer scales ----------------------------------------------------------------------------------------------------


def test_quantizer_dropout_paints_a_share_of_the_pictures_with_fewer_scales() -> None:
    """3,000 pictures: 40 % of them keep 2, 3 or 4 scales, each as often; the others all."""
    recipe = Codebook(dropout=0.4, dropout_from=2)
    through = dropped(recipe, SCALES, 3000, numbers())
    counts = torch.bincount(through, minlength=5).tolist()
    assert counts[:2] == [0, 0]
    assert counts[2:4] == pytest.approx([400, 400], abs=60)
    assert counts[4] == pytest.approx(1800 + 400, abs=80)
    assert torch.equal(through, dropped(recipe, SCALES, 3000, numbers()))
    assert not torch.equal(through, dropped(recipe, SCALES, 3000, numbers(1)))


def test_without_dropout_nothing_is_drawn() -> None:
    """And with more scales to keep than there are, all are kept."""
    assert dropped(Codebook(), SCALES, 9, numbers()) is None
    assert dropped(Codebook(dropout=1.0, dropout_from=9), SCALES, 9, numbers()).tolist() == [4] * 9


def test_a_share_of_the_steps_walks_some_of_the_scales() -> None:
    """2,000 steps: 60 % choose, first and last always, each of the others half of the time."""
    recipe = Codebook(random_scales=0.6)
    walked = [chosen_scales(recipe, SCALES, numbers(seed)) for seed in range(2000)]
    sizes = [scales.sizes for scales in walked]
    assert {tuple(h for h, _ in chosen) for chosen in sizes} == {(1, 4), (1, 2, 4), (1, 3, 4), (1, 2, 3, 4)}
    for some in ((1, 4), (1, 2, 4), (1, 3, 4)):
        assert sum(tuple(h for h, _ in chosen) == some for chosen in sizes) == pytest.approx(300, abs=70)
    assert [chosen_scales(recipe, SCALES, numbers(seed)) for seed in range(20)] == walked[:20]


def test_all_scales_are_walked_unless_asked_otherwise() -> None:
    """By the plain recipe; and a pyramid of one or two scales has nothing to choose."""
    assert all(chosen_scales(Codebook(), SCALES, numbers(seed)) == SCALES for seed in range(50))
    always = dataclasses.replace(Codebook(), random_scales=1.0)
    for scales in (Scales([4]), Scales([1, 4])):
        assert all(chosen_scales(always, scales, numbers(seed)) == scales for seed in range(20))


# ---- small things ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "wanted"), [(10, 4), (10, 10), (3, 10), (5, 0)])
def test_what_is_drawn_repeats_only_where_it_must(count: int, wanted: int) -> None:
    """In range, as many as wanted."""
    indices = drawn(count, wanted, numbers()).tolist()
    assert len(indices) == wanted
    assert set(indices) <= set(range(count))
    if wanted <= count:
        assert len(set(indices)) == wanted
