"""Laws of the training of global refinement: what is told, and that every token counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from training import toy as toys

from nextscale.rivals.refined import Mixed
from nextscale.training.rivals.refined import RefinedStage


def make(**changes: int) -> RefinedStage:
    stage = toys.rival_stage("refined", **changes)
    assert isinstance(stage, RefinedStage)
    return stage


def record(stage: RefinedStage) -> list[Mixed]:
    """Fills with what is seen in each call."""
    seen, hidden = list[Mixed](), stage.model.hidden

    def recorded(labels_B: Tensor, inputs: Mixed, **options: object) -> Tensor:
        seen.append(inputs)
        return hidden(labels_B, inputs, **options)  # type: ignore[arg-type]

    stage.model.hidden = recorded  # type: ignore[method-assign, assignment]
    return seen


@pytest.mark.slow
@torch.no_grad()
def test_as_many_tokens_are_right_as_the_model_is_told() -> None:
    """Give or take 3 %, of 16,000 tokens; a part of a step sees what the whole does."""
    stage = make(batch=100)
    seen = record(stage)
    for step in range(10):
        stage.loss(step)
    stage.loss(3, slice(20, 40))
    rights = torch.stack([each.rights for each in seen[:10]])
    assert rights.logit().mean() == pytest.approx(-0.8, abs=0.08)
    assert torch.equal(seen[10].codes, seen[3].codes[20:40])
    assert torch.equal(seen[10].rights, seen[3].rights[20:40])
    right = []
    for step, each in enumerate(seen[:10]):
        tokens, _ = stage._batch(step, slice(None))
        codes = stage.tokenizer.quantizer.lookup(tokens.unflatten(1, (4, 4))).flatten(2).transpose(1, 2)
        right.append((each.codes == codes).all(dim=2).float().mean())
    share = rights.mean().item()
    assert torch.stack(right).mean().item() == pytest.approx(share + (1 - share) / 64, abs=0.03)


@torch.no_grad()
def test_the_loss_is_that_of_all_tokens() -> None:
    """By hand, in validation; accuracy likewise."""
    stage = make()
    seen = record(stage)
    figures = stage.validate()
    pictures, labels = stage.data.validation.pictures.batch(range(6))  # type: ignore[attr-defined]
    tokens = stage.tokenizer.encode(pictures)
    logits = stage.model(labels, seen[0])
    costs = -logits.log_softmax(dim=-1).gather(2, tokens.unsqueeze(2)).squeeze(2)
    assert figures["cross_entropy"] == pytest.approx(costs.mean().item(), abs=1e-4)
    right = (logits.argmax(dim=2) == tokens).float().mean().item()
    assert figures["accuracy"] == pytest.approx(right, abs=1e-6)
