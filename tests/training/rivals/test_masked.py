"""Laws of the training of masked prediction: what is hidden, and what the figures are of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from training import toy as toys

from nextscale.training.rivals.masked import MaskedStage


def record(stage: MaskedStage) -> list[Tensor]:
    """Fills with what is known in each call."""
    seen, hidden = list[Tensor](), stage.model.hidden

    def recorded(labels_B: Tensor, inputs: object, **options: object) -> Tensor:
        seen.append(inputs.known)  # type: ignore[attr-defined]
        return hidden(labels_B, inputs, **options)  # type: ignore[arg-type]

    stage.model.hidden = recorded  # type: ignore[method-assign]
    return seen


def make(**changes: int) -> MaskedStage:
    stage = toys.rival_stage("masked", **changes)
    assert isinstance(stage, MaskedStage)
    return stage


def test_two_thirds_of_the_tokens_are_hidden_on_average() -> None:
    """2 / pi of them, give or take 2 %, and half a token of rounding; a part of a step hides what the whole does."""
    stage = make(batch=100)
    seen = record(stage)
    with torch.no_grad():
        for step in range(10):
            stage.loss(step)
        stage.loss(3, slice(20, 40))
    hidden = 1 - torch.stack(seen[:10]).float().mean().item()
    assert hidden == pytest.approx(2 / torch.pi + 0.5 / 16, abs=0.02)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[10], seen[3][20:40])


@torch.no_grad()
def test_the_loss_is_that_of_the_hidden_tokens_alone() -> None:
    """By hand, in training and in validation; accuracy likewise."""
    stage = make()
    seen = record(stage)
    figures = stage.validate()
    pictures, labels = stage.data.validation.pictures.batch(range(6))  # type: ignore[attr-defined]
    tokens = stage.tokenizer.encode(pictures)
    (known,) = seen
    lesson = stage._hiding(~known, tokens, tokens)
    logits = stage.model(labels, lesson.inputs)
    costs = -logits.log_softmax(dim=-1).gather(2, tokens.unsqueeze(2)).squeeze(2)
    assert 0.2 < known.float().mean() < 0.6
    assert figures["cross_entropy"] == pytest.approx(costs[~known].mean().item(), abs=1e-4)
    assert figures["cross_entropy_scale_1"] == pytest.approx(figures["cross_entropy"], abs=1e-6)
    right = (logits.argmax(dim=2) == tokens)[~known].float().mean().item()
    assert figures["accuracy"] == pytest.approx(right, abs=1e-6)
