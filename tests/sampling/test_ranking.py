"""Laws of re-ranking: of several maps the best is painted, each drawn as if alone, whatever the batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale import VAR, InputError, MultiScaleVQVAE, Pipeline, images
from nextscale.pipeline import Request, Rerank, Step
from nextscale.sampling.guidance import linear_guidance
from nextscale.sampling.loop import Choice, Painted, Ranking, candidate_keys, digit_keys, generate, gumbel, random_keys
from nextscale.sampling.memory import sampling_bytes


def brightness(step: Step) -> Tensor:
    """Of what is painted so far."""
    return step.preview().mean(dim=(1, 2, 3))


def tokens_of(step: Step) -> Tensor:
    """A score that tells every two maps apart: their tokens as one number, small enough for float32 to hold."""
    places = 17 ** torch.arange(min(step.tokens[0].numel(), 4))
    return (step.tokens.flatten(1)[:, : len(places)] % 16 * places).sum(dim=1).float()


LABELS, SEEDS = [0, 1, 2, 3, 4, 5], [10, 11, 12, 13, 14, -15]


# ---- candidates ------------------------------------------------------------------------------------------------------


def test_the_first_candidate_is_what_would_be_drawn_anyway() -> None:
    """The others have streams of their own, which no position, digit or code has."""
    keys = random_keys([3, 4], 50)
    streams = candidate_keys(keys, 9)
    assert torch.equal(streams[:, 0], keys)
    of_digits = digit_keys(keys, slice(0, 64))
    everything = torch.cat([streams.flatten(), of_digits.flatten(), random_keys(range(99), 50)[5:].flatten()])
    assert everything.unique().numel() == everything.numel()


def test_candidates_are_drawn_independently() -> None:
    """Noise of neighbours fills an 8 x 8 grid evenly: chi-square with 63 degrees of freedom under its 0.1 % point."""
    streams = candidate_keys(random_keys(range(200), 20), 5)  # 4,000 positions of 5 maps
    u = (-(-gumbel(streams, torch.tensor(7)).double()).exp()).exp().movedim(1, 0).flatten(1)
    for first, second in ((0, 1), (1, 2), (3, 4)):
        counts = torch.bincount((u[first] * 8).long() * 8 + (u[second] * 8).long(), minlength=64).double()
        assert ((counts - 4000 / 64).square() / (4000 / 64)).sum().item() < 104


def walk(pair: tuple[MultiScaleVQVAE, VAR], seeds: list[int], ranking: Ranking | None, **more: Any) -> list[Painted]:
    given = {"guidance": linear_guidance(1.5), "choice": Choice(), "ranking": ranking, **more}
    return list(generate(pair[1], pair[0].quantizer, [1] * len(seeds), seeds, **given))


@pytest.mark.parametrize("smooth", [False, True])
def test_the_best_candidate_is_painted_and_predicted_from(
    tokenizer: MultiScaleVQVAE, transformer: VAR, smooth: bool
) -> None:
    """The slow path: every candidate alone, its canvas as the walk shows it; the chosen one is what the walk yields."""
    pair, seen = (tokenizer, transformer), list[Painted]()

    def score(painted: Painted) -> Tensor:
        seen.append(painted)
        return painted.canvas.mean(dim=(1, 2, 3))

    steps = walk(pair, [5, 6, 7], Ranking(score, 4, (1, 2)), choice=Choice(smooth=smooth))
    plain = walk(pair, [5, 6, 7], None, choice=Choice(smooth=smooth))
    assert [painted.scale for painted in seen] == [1, 2]
    assert torch.equal(steps[0].tokens, plain[0].tokens)
    assert torch.equal(seen[0].tokens[::4], plain[1].tokens)
    torch.testing.assert_close(seen[0].canvas[::4], plain[1].canvas)
    for painted in seen:
        assert len(painted.tokens) == 12
        best = painted.canvas.mean(dim=(1, 2, 3)).view(3, 4).argmax(dim=1) + torch.arange(3) * 4
        assert torch.equal(steps[painted.scale].tokens, painted.tokens[best])
        torch.testing.assert_close(steps[painted.scale].canvas, painted.canvas[best])
    if not smooth:
        canvases = tokenizer.quantizer.canvases(torch.cat([step.tokens.flatten(1) for step in steps], dim=1))
        for step, canvas in zip(steps, canvases, strict=True):
            torch.testing.assert_close(step.canvas, canvas, atol=1e-5, rtol=1e-5)


def test_equal_scores_change_nothing(pipe: Pipeline) -> None:
    """The first of equals is the plain draw; so is a single candidate, whatever its score."""
    plain = pipe.generate(LABELS, SEEDS)
    for rerank in (Rerank(lambda step: torch.zeros(len(step.tokens)), 5), Rerank(tokens_of, 1)):
        done = pipe.generate(LABELS, SEEDS, rerank=rerank)
        assert torch.equal(done.tokens, plain.tokens)
        assert torch.equal(done.images, plain.images)


# ---- at the pipeline's door ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_brighter_maps_make_brighter_pictures(pipe: Pipeline) -> None:
    """On average of 60, at all scales; darker ones darker."""
    labels = list(range(6)) * 10
    plain, bright, dark = (
        pipe.generate(labels, rerank=rerank).images.mean().item()
        for rerank in (None, Rerank(brightness, 6, range(4)), Rerank(lambda step: -brightness(step), 6, range(4)))
    )
    assert dark + 0.002 < plain < bright - 0.002


@pytest.mark.parametrize("smooth", [False, True])
def test_a_reranked_picture_depends_on_its_seed_and_label_only(pipe: Pipeline, smooth: bool) -> None:
    """Alone, in a batch, a few at a time; with guidance, temperature and step guidance beside it."""
    settings: dict[str, Any] = {"guidance": 2.0, "temperature": 1.2, "step_guidance": 0.2, "smooth": smooth}
    settings["rerank"] = Rerank(tokens_of, 5, (0, 1, 2))
    together = pipe.generate(LABELS, SEEDS, **settings).tokens
    assert not torch.equal(together, pipe.generate(LABELS, SEEDS, **settings | {"rerank": None}).tokens)
    assert torch.equal(pipe.generate(LABELS, SEEDS, memory=3e6, **settings).tokens, together)
    for label, seed, tokens in zip(LABELS, SEEDS, together, strict=True):
        assert torch.equal(pipe.generate([label], [seed], **settings).tokens[0], tokens)
    steps = list(pipe.stream(LABELS, SEEDS, **settings))
    assert torch.equal(torch.cat([step.tokens.flatten(1) for step in steps], dim=1), together)


def test_a_score_is_given_candidates_with_the_request_of_each(pipe: Pipeline) -> None:
    """Those of a picture one after the other, at the scales asked for, by default the coarser half."""
    seen: list[Step] = []

    def look(step: Step) -> Tensor:
        seen.append(step)
        assert step.preview().requires_grad is False
        return torch.zeros(len(step.requests), dtype=torch.float64)

    pipe.generate(["ant", "cat"], [7, 8], rerank=Rerank(look, 3))
    assert [step.scale for step in seen] == [0, 1]
    assert [(request.name, request.seed) for request in seen[0].requests] == [("ant", 7)] * 3 + [("cat", 8)] * 3
    assert [tuple(step.tokens.shape) for step in seen] == [(6, 1, 1), (6, 2, 2)]
    assert seen[1].preview().shape == (6, 3, 8, 8)


def test_a_reranked_picture_tells_how_and_is_repeated_with_the_function(pipe: Pipeline, tmp_path: Path) -> None:
    """Which no file can hold; without it, it says which one is wanted."""
    done = pipe.generate("cat", [7, 11], rerank=Rerank(brightness, 4, (2, 0)))
    request = Request.from_notes(images.notes(done.save(tmp_path)[1]))
    assert request == done.requests[1]
    assert request.rerank == {"count": 4, "scales": [0, 2], "by": f"{__name__}:brightness"}
    assert torch.equal(pipe.repeat(request, score=brightness).tokens, done.tokens[1:])
    with pytest.raises(InputError, match=f"^expected a score, the function {__name__}:brightness that chose its maps"):
        pipe.repeat(request)
    plain = pipe.generate("cat", [7])
    assert "rerank" not in json.loads(plain.requests[0].notes["nextscale"])
    assert torch.equal(pipe.repeat(plain.requests[0], score=brightness).tokens, plain.tokens)


@pytest.mark.parametrize(
    ("rerank", "told"),
    [
        (Rerank(brightness, 0), "rerank: expected count of 1 or more, got 0"),
        (Rerank(brightness, 1.5), "rerank: expected count of 1 or more, got 1.5"),  # type: ignore[arg-type]
        (Rerank(brightness, 4, (4,)), r"rerank: expected scales of 0 \.\. 3, got 4"),
        (Rerank(brightness, 4, (-1,)), r"rerank: expected scales of 0 \.\. 3, got -1"),
        (
            Rerank(lambda step: step.tokens, 4),
            r"rerank: expected a score for each of 4 candidates of scale 0, got \(4,",
        ),
        (Rerank(lambda step: 3.0, 4), "rerank: expected a score for each of 4 candidates of scale 0, got float"),  # type: ignore[arg-type,return-value]
        (Rerank(lambda step: torch.full((4,), torch.nan), 4), "rerank: expected finite scores at scale 0, got others"),
        (Rerank(brightness, 4, 3), "rerank: expected a list of scales, got 3"),  # type: ignore[arg-type]
        (Rerank("bright", 4), "rerank: expected a function of a Step as score, got 'bright'"),  # type: ignore[arg-type]
        (brightness, "rerank: expected Rerank or None, got <function bri"),
    ],
)
def test_what_does_not_fit_is_refused(pipe: Pipeline, rerank: Any, told: str) -> None:
    """In one line, counts and scales at the call."""
    with pytest.raises(InputError, match=f"^{told}"):
        pipe.generate([1], rerank=rerank)


def test_other_orders_draw_one_map(make_rival_pipe: Callable[[], Pipeline]) -> None:
    """Their steps are no scales."""
    with pytest.raises(InputError, match="^rerank: expected with a model of order scale, got one of order raster$"):
        make_rival_pipe().generate([1], rerank=Rerank(brightness))


@pytest.fixture
def make_rival_pipe(tokenizer: MultiScaleVQVAE) -> Callable[[], Pipeline]:
    import dataclasses

    from conftest import TRANSFORMER

    from nextscale import Scales
    from nextscale.rivals.raster import Raster

    def make() -> Pipeline:
        scales = Scales([4])
        single = MultiScaleVQVAE(dataclasses.replace(tokenizer.config, scales=scales))
        return Pipeline(single, Raster(dataclasses.replace(TRANSFORMER, scales=scales, order="raster")))

    return make


def test_more_candidates_take_more_memory_where_they_outnumber_the_last_scale(pipe: Pipeline) -> None:
    """Sixteen tokens at the last of four scales: 16 maps of one token are as many."""
    config, how = pipe.transformer.config, {"guided": True, "dtype": torch.float32}
    plain = sampling_bytes(config, **how)  # type: ignore[arg-type]
    assert sampling_bytes(config, **how, candidates={0: 16, 1: 4}) == plain  # type: ignore[arg-type]
    assert sampling_bytes(config, **how, candidates={0: 17}) == plain + 64 * 64  # type: ignore[arg-type]
