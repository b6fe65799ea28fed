"""Laws of masked prediction: what is hidden does not leak, what is known stays, and the surest are kept."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nextscale import VAR, InputError, MultiScaleVQVAE, Pipeline
from nextscale.rivals import masked
from nextscale.rivals.masked import MaskedSampler, Seen, hidden_at, hide, log_probability, surest
from nextscale.rivals.raster import Raster
from nextscale.rivals.whole import codes_of
from nextscale.sampling.loop import Choice, choose, random_keys


def half_known(single: MultiScaleVQVAE, *, batch: int = 1) -> tuple[Tensor, Seen]:
    """Tokens, and every other of them told."""
    tokens_BL = torch.randint(64, (batch, 16), generator=torch.Generator().manual_seed(0))
    return tokens_BL, Seen(codes_of(single.quantizer, tokens_BL), (torch.arange(16) % 2 == 0).expand(batch, 16))


# ---- the model -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_known_token_moves_all_logits_and_a_hidden_one_none(
    single: MultiScaleVQVAE, make_rival: Callable[..., VAR]
) -> None:
    """Bit for bit, whatever stands in the hidden one's place, be it no number; attention goes both ways."""
    model, labels = make_rival("masked"), torch.tensor([2])
    _, seen = half_known(single)
    before = model(labels, seen)
    assert before.shape == (1, 16, 64)
    for place in range(16):
        codes = seen.codes.clone()
        codes[:, place] = codes[:, place] + 1 if seen.known[0, place] else math.nan
        moved = (model(labels, Seen(codes, seen.known)) - before).abs().amax(dim=-1)[0]
        assert (moved > 1e-4).all() if seen.known[0, place] else (moved == 0).all()


@torch.no_grad()
def test_with_all_hidden_it_is_var_on_one_scale(single: MultiScaleVQVAE, make_rival: Callable[..., VAR]) -> None:
    """The same weights, the same logits: class, start and place are all there is."""
    model, labels = make_rival("masked"), torch.tensor([0, 3])
    var = make_rival("scale")
    var.load_state_dict(model.state_dict())
    hidden = Seen(torch.zeros(2, 16, 8), torch.zeros(2, 16, dtype=torch.bool))
    assert torch.equal(model(labels, hidden), var(labels, torch.zeros(2, 0, 8)))


def test_other_inputs_are_refused(make_rival: Callable[..., VAR]) -> None:
    """In a line."""
    with pytest.raises(InputError, match=r"^inputs: expected masked.Seen, got Tensor$"):
        make_rival("masked")(torch.tensor([0]), torch.zeros(1, 16, 8))


# ---- what is hidden --------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.integers(1, 40))
def test_as_many_are_hidden_as_the_schedule_says(r: float, total: int) -> None:
    """ceil(cos(pi r / 2) L), at least one and at most all."""
    hidden_BL = hide(torch.tensor([r, 0.0, 1.0]), total, torch.Generator().manual_seed(1))
    expected = min(max(math.ceil(math.cos(math.pi * r / 2) * total), 1), total)
    assert abs(int(hidden_BL[0].sum()) - expected) <= 1  # of float32
    assert hidden_BL.sum(dim=1)[1:].tolist() == [total, 1]


def test_every_place_is_hidden_alike_often() -> None:
    """4,000 masks of half of the tokens: 50 % of each, give or take 3."""
    hidden_BL = hide(torch.full((4000,), 2 / 3), 16, torch.Generator().manual_seed(0))
    assert hidden_BL.sum(dim=1).unique().tolist() == [8]
    torch.testing.assert_close(hidden_BL.float().mean(dim=0), torch.full((16,), 0.5), atol=0.03, rtol=0)


# ---- sampling --------------------------------------------------------------------------------------------------------


def known_along(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, **given: object) -> list[Tensor]:
    """What is known after each step of a walk."""
    found, choose_surest = list[Tensor](), masked.surest

    def recorded(sure_BL: Tensor, known_BL: Tensor, hidden: int) -> Tensor:
        found.append(choose_surest(sure_BL, known_BL, hidden))
        return found[-1]

    monkeypatch.setattr(masked, "surest", recorded)
    pipe.generate(labels=[0, 3], seeds=[0, 1], **given)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("steps", [1, 5, 12, 16, 40])
def test_what_is_known_grows_by_the_cosine_and_stays(
    make_pipe: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """As many as the schedule says, at least one more a step, all at the end; a known token is never drawn again."""
    pipe = make_pipe("masked")
    pipe.sampler = MaskedSampler(steps=steps)
    walk = [step.tokens.flatten(1) for step in pipe.stream(labels=[0, 3], seeds=[0, 1])]
    known = known_along(pipe, monkeypatch)
    assert len(walk) == len(known) == pipe.steps == steps
    expected, left = [], 16
    for k in range(steps):
        left = max(min(left - 1, round(hidden_at((k + 1) / steps) * 16)), 0)
        expected.append(16 - left)
    assert [each.sum(dim=1).tolist() for each in known] == [[count, count] for count in expected]
    for before, now, tokens, then in zip(known, known[1:], walk, walk[1:], strict=False):
        assert (now | ~before).all()
        assert torch.equal(tokens[before], then[before])
    assert known[-1].all()


@torch.no_grad()
def test_one_step_draws_every_token_from_class_and_place(make_pipe: Callable[..., Pipeline]) -> None:
    """As `choose` does it with the same noise."""
    pipe = make_pipe("masked")
    pipe.sampler = MaskedSampler(steps=1)
    out = pipe.generate(labels=[1, 2], seeds=[3, 4], guidance=0.0, top_k=20)
    hidden = Seen(torch.zeros(2, 16, 8), torch.zeros(2, 16, dtype=torch.bool))
    logits = pipe.transformer(torch.tensor([1, 2]), hidden)
    tokens, _ = choose(logits, random_keys([3, 4], 16), Choice(top_k=20), progress=0.0)
    assert torch.equal(out.tokens, tokens)


def test_without_noise_the_likeliest_are_kept() -> None:
    """Of those that are hidden; what is known stays whatever is thought of it."""
    sure_BL = torch.tensor([[-1.0, -5.0, -2.0, -3.0, -9.0]])
    known_BL = torch.tensor([[False, False, False, False, True]])
    assert surest(sure_BL, known_BL, 2).tolist() == [[True, False, True, False, True]]
    assert surest(sure_BL, known_BL, 99).tolist() == [[True, False, False, False, True]]
    assert surest(sure_BL, known_BL, 0).all()
    assert surest(sure_BL, torch.ones_like(known_BL), 3).all()


def test_annealing_changes_which_tokens_are_kept(
    make_pipe: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not how they are drawn: the first step's are the same."""
    pipe, walks, known = make_pipe("masked"), [], []
    for annealing in (0.0, 4.5):
        pipe.sampler = MaskedSampler(steps=4, annealing=annealing)
        walks.append([step.tokens for step in pipe.stream(labels=[0, 3], seeds=[0, 1])])
        with monkeypatch.context() as patch:
            known.append(known_along(pipe, patch))
    assert torch.equal(walks[0][0], walks[1][0])
    assert not torch.equal(known[0][0], known[1][0])
    assert not torch.equal(walks[0][-1], walks[1][-1])


def test_log_probability_is_that_of_the_softmax() -> None:
    """Over all codes, or digit by digit: probabilities of all tokens add up to 1."""
    logits = torch.randn(1, 1, 12, generator=torch.Generator().manual_seed(0)).expand(1, 12, 12)
    every = torch.arange(12)[None]
    torch.testing.assert_close(log_probability(logits, every, ()), logits[:, 0].log_softmax(dim=-1))
    digits = torch.randn(1, 1, 7, generator=torch.Generator().manual_seed(0)).expand(1, 12, 7)
    assert log_probability(digits, every, (3, 4)).exp().sum().item() == pytest.approx(1)


@torch.no_grad()
def test_guidance_follows_its_schedule_along_the_steps(make_pipe: Callable[..., Pipeline]) -> None:
    """A weight a step; where it ends, the second rows are dropped and the pictures stay what they were."""
    pipe = make_pipe("masked")
    pipe.sampler = MaskedSampler(steps=4)
    late = pipe.generate(labels=[0, 1], guidance=[0.0, 1.0, 2.0, 0.0])
    assert torch.equal(late.tokens, pipe.generate(labels=[0, 1], guidance=[0.0, 1.0, 2.0, 1e-9]).tokens)
    assert not torch.equal(late.tokens, pipe.generate(labels=[0, 1], guidance=[0.0, 0.0, 2.0, 0.0]).tokens)
    with pytest.raises(InputError, match="expected one weight a .*, 4, got 3"):
        pipe.generate(labels=[0], guidance=[1.0, 1.0, 1.0])


def test_a_processor_sees_the_logits_of_every_step(make_pipe: Callable[..., Pipeline]) -> None:
    """Of the whole map; what it forbids is never drawn."""
    steps = list[int]()

    def without_code_7(step: int, logits: Tensor) -> Tensor:
        steps.append(step)
        logits[..., :32] = -torch.inf
        return logits

    out = make_pipe("masked").generate(labels=[0, 1], logits_processor=without_code_7)
    assert steps == list(range(12))
    assert out.tokens.min() >= 32


# ---- its settings ----------------------------------------------------------------------------------------------------


def test_a_picture_tells_its_sampler_and_is_repeated_with_it(make_pipe: Callable[..., Pipeline]) -> None:
    """Whatever the pipeline's own is by then."""
    pipe = make_pipe("masked")
    pipe.sampler = MaskedSampler(steps=5, annealing=1.0)
    out = pipe.generate(labels=[3], seeds=[5])
    assert out.requests[0].sampler == {"steps": 5, "annealing": 1.0}
    pipe.sampler = MaskedSampler()
    assert torch.equal(pipe.repeat(out.requests[0]).images, out.images)
    assert pipe.sampler == MaskedSampler()
    assert not torch.equal(pipe.generate(labels=[3], seeds=[5]).images, out.images)


def test_wrong_samplers_are_refused(make_pipe: Callable[..., Pipeline], pipe: Pipeline) -> None:
    """Of another order, of other values, and painting mixtures of codes."""
    told = r"^sampler: expected OneAfterTheOther for a model of order scale, got MaskedSampler$"
    with pytest.raises(InputError, match=told):
        pipe.sampler = MaskedSampler()
    rival = make_pipe("masked")
    with pytest.raises(InputError, match=r"^sampler: expected MaskedSampler for a model of order masked"):
        rival.sampler = pipe.sampler
    for wrong in (0, -1, 10**9, 2.5):
        with pytest.raises(InputError, match=r"^steps: expected 1 \.\. 10000, got "):
            MaskedSampler(steps=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^annealing: expected 0 or more, got -1"):
        MaskedSampler(annealing=-1)
    with pytest.raises(InputError, match="^smooth: expected with a model that paints a token once, got one of order m"):
        rival.generate(labels=0, smooth=True)
    other = rival.generate(labels=0).requests[0]
    with pytest.raises(InputError, match=r"^sampler: expected settings among none.*, got steps$"):
        pipe.repeat(type(other)(**vars(other) | {"model": pipe.fingerprint}))


def test_other_orders_do_not_take_its_weights(make_rival: Callable[..., VAR]) -> None:
    """A config of another order is refused by name."""
    with pytest.raises(InputError, match="^Raster: expected a transformer of order raster, got one of order masked$"):
        Raster(make_rival("masked").config)
