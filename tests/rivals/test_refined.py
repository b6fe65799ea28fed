"""Laws of global refinement: what is told, rightly or not, moves all logits; what was drawn may be taken back."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nextscale import VAR, InputError, MultiScaleVQVAE, Pipeline
from nextscale.rivals import refined
from nextscale.rivals.refined import Mixed, RefinedSampler, mix, rights_of, waves
from nextscale.rivals.whole import codes_of


def mixed(single: MultiScaleVQVAE, rights: float = 0.5) -> Mixed:
    tokens_BL = torch.randint(64, (1, 16), generator=torch.Generator().manual_seed(0))
    return Mixed(codes_of(single.quantizer, tokens_BL), torch.tensor([rights]))


# ---- the model -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_every_token_and_the_share_of_right_ones_move_all_logits(
    single: MultiScaleVQVAE, make_rival: Callable[..., VAR]
) -> None:
    """Its own logits too: a wrong token is to be mended."""
    model, labels, seen = make_rival("refined"), torch.tensor([2]), mixed(single)
    before = model(labels, seen)
    assert before.shape == (1, 16, 64)
    for place in range(16):
        codes = seen.codes.clone()
        codes[:, place] += 1
        assert ((model(labels, seen._replace(codes=codes)) - before).abs().amax(dim=-1) > 1e-4).all()
    assert ((model(labels, mixed(single, rights=0.6)) - before).abs().amax(dim=-1) > 1e-4).all()


def test_other_inputs_are_refused(make_rival: Callable[..., VAR]) -> None:
    """In a line."""
    with pytest.raises(InputError, match=r"^inputs: expected refined.Mixed, got Tensor$"):
        make_rival("refined")(torch.tensor([0]), torch.zeros(1, 16, 8))


def test_waves_tell_shares_apart() -> None:
    """A hundred of them, each from its neighbours, and none is another."""
    told = waves(torch.linspace(0, 1, 100))
    apart = torch.cdist(told, told) + 100 * torch.eye(100)
    assert told.shape == (100, 128)
    assert apart.min() > 0.5


# ---- what is told ----------------------------------------------------------------------------------------------------


def test_as_many_are_right_as_is_told() -> None:
    """Give or take 1 %, of 40,000 tokens; the others are the random ones."""
    numbers = torch.Generator().manual_seed(0)
    right, random = torch.zeros(4, 10_000, dtype=torch.int64), torch.ones(4, 10_000, dtype=torch.int64)
    rights = torch.tensor([0.0, 0.2, 0.7, 1.0])
    told = mix(right, random, torch.rand(4, 10_000, generator=numbers), rights)
    torch.testing.assert_close(1 - told.float().mean(dim=1), rights, atol=0.01, rtol=0)
    assert told[0].all()
    assert not told[3].any()


def test_shares_in_training_are_logistic_normal() -> None:
    """Their median is sigmoid(-0.8), their logits deviate by 0.8."""
    logits = rights_of(torch.randn(100_000, generator=torch.Generator().manual_seed(0))).logit()
    assert logits.mean() == pytest.approx(-0.8, abs=0.01)
    assert logits.std() == pytest.approx(0.8, abs=0.01)


# ---- sampling --------------------------------------------------------------------------------------------------------


def looks(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The arguments of `mix` after each step of a walk."""
    found = list[tuple[Tensor, Tensor, Tensor]]()

    def recorded(tokens_BL: Tensor, random_BL: Tensor, keys_BL: Tensor, rights_B: Tensor) -> Tensor:
        found.append((tokens_BL, random_BL, rights_B))
        return mix(tokens_BL, random_BL, keys_BL, rights_B)

    monkeypatch.setattr(refined, "mix", recorded)
    pipe.generate(labels=[0, 3], seeds=[0, 1])
    return found


def test_what_is_seen_grows_evenly_from_one_random_map(
    make_pipe: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same random codes in every step, a share of t = k / steps of what was drawn; all at the end."""
    pipe = make_pipe("refined")
    pipe.sampler = RefinedSampler(steps=8)
    found = looks(pipe, monkeypatch)
    assert len(found) == pipe.steps == 8
    assert all(torch.equal(random, found[0][1]) for _, random, _ in found)
    assert not torch.equal(found[0][1][0], found[0][1][1])  # each picture has its own
    shares = torch.stack([rights for *_, rights in found])
    torch.testing.assert_close(shares, (torch.arange(1, 9) / 8).unsqueeze(1).expand(8, 2))


def test_tokens_are_drawn_anew_in_every_step(make_pipe: Callable[..., Pipeline]) -> None:
    """In the later half most pictures of a model that knows nothing still change; the last map is the picture."""
    pipe = make_pipe("refined")
    walk = [step.tokens for step in pipe.stream(labels=[0, 3], seeds=[0, 1])]
    assert len(walk) == 50
    changed = [not torch.equal(one, other) for one, other in itertools.pairwise(walk[25:])]
    assert sum(changed) > 12
    assert torch.equal(walk[-1].flatten(1), pipe.generate(labels=[0, 3], seeds=[0, 1]).tokens)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, 10_001])
def test_numbers_of_steps_out_of_range_are_refused(steps: object) -> None:
    """In a line."""
    with pytest.raises(InputError, match=r"^steps: expected 1 .. 10000, got "):
        RefinedSampler(steps=steps)  # type: ignore[arg-type]


def test_mixed_codes_are_refused(make_pipe: Callable[..., Pipeline]) -> None:
    """What is drawn is looked at, as a token."""
    with pytest.raises(InputError, match="^smooth: expected with a model that paints a token once"):
        make_pipe("refined").generate(labels=0, smooth=True)
