"""Which words a step is told about its pictures: pure functions of the seed, the step and the place in the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.data.captions import Captions
from nextscale.training.order import generator
from nextscale.training.recipes import Reading


def told(
    captions: Captions, indices: Tensor, reading: Reading, *, seed: int, step: int, part: slice, batch: int
) -> list[str]:
    """One caption of each picture, as a step is told it; "" for pictures without.

    Arguments:
        indices: (n,) int64, the pictures of a part of the batch.
        part: where that part lies among the `batch` places.
    """
    places = range(batch)[part]
    pairs = zip(places, indices.tolist(), strict=True)
    return [_drawn(captions[index], reading, generator(seed, "captions", step, place)) for place, index in pairs]


def first(captions: Captions | None, indices: range | Tensor) -> list[str]:
    """The first caption of each picture, as it is; "" for pictures without."""
    return [next(iter(captions[int(index)] if captions is not None else ()), "") for index in indices]


def _drawn(captions: tuple[str, ...], reading: Reading, numbers: torch.Generator) -> str:
    if not captions:
        return ""
    caption = captions[int(torch.randint(len(captions), (), generator=numbers))]
    return _thinned(_shuffled(caption, numbers) if reading.shuffle else caption, reading.word_dropout, numbers)


def _shuffled(caption: str, numbers: torch.Generator) -> str:
    """The tags, what stands between commas, in another order."""
    tags = [tag.strip() for tag in caption.split(",")]
    return ", ".join(tags[place] for place in torch.randperm(len(tags), generator=numbers))


def _thinned(caption: str, share: float, numbers: torch.Generator) -> str:
    """Without a share of its words, but with at least one."""
    words = caption.split()
    kept = torch.rand(len(words), generator=numbers) >= share
    return " ".join(word for word, keep in zip(words, kept.tolist(), strict=True) if keep or not kept.any())
