"""Laws of tokens made as they are asked for: those of the pictures, as the views show them."""

from __future__ import annotations

import torch

from nextscale import MultiScaleVQVAE
from nextscale.data import DataSet
from nextscale.training.transformer import tokens


def test_tokens_are_of_the_views_that_are_asked_for(toy: DataSet, tokenizer: MultiScaleVQVAE) -> None:
    """Another crop and a mirrored picture have other tokens; the labels are the pictures' own."""
    chosen = [3, 0, 7]
    views = torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.0, 0.0], [0.0, 0.9, 0.5]])
    split = tokens.encoded(toy, tokenizer, torch.float32).train
    seen, labels = split.batch(chosen, views=views)
    pictures, _ = toy.train.batch(chosen, views=views)
    with torch.no_grad():
        assert torch.equal(seen, tokenizer.encode(pictures))
    assert torch.equal(labels, toy.train.labels[chosen])
    assert (seen != split.batch(chosen)[0]).any(dim=1).all()


def test_however_many_pictures_go_together_the_tokens_are_the_same(toy: DataSet, tokenizer, monkeypatch) -> None:
    """Parts of them keep their order."""
    split = tokens.encoded(toy, tokenizer, torch.float32).train
    together, _ = split.batch(range(7))
    monkeypatch.setattr(tokens, "TOGETHER", 3)
    assert torch.equal(split.batch(range(7))[0], together)
    assert len(split) == len(toy.train)
