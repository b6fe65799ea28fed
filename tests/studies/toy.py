"""A study of the toys that training is tried on: pictures of 8x8 pixels, an eye of a few hundred weights."""

from __future__ import annotations

import dataclasses
from typing import Any

from training import toy as toys

from nextscale import MultiScaleVQVAE, presets
from nextscale.data.tokens import CachedTokens, TokenSet
from nextscale.studies.pace import Pace, Steps
from nextscale.studies.tokenizers import Tokenizers
from nextscale.studies.training import Shared, Watching, judges_of
from nextscale.studies.variants import Asked

STEPS = Steps(3, 3)
PACE = Pace(
    start=10.0,
    tokenizer_step=2.0,
    transformer_step=1.0,
    encoded=0.01,
    decoded=0.05,
    seen=0.1,
    painted=0.2,
    checked=0.02,
)


def asked(**changes: Any) -> Asked:
    """Codes of 8 bits on small models."""
    values: dict[str, Any] = {"preset": "emoji-32", "bits": (8,), "depth": 1, "views": 1, "count": 6}
    small = ("optimization.batch=4", "transformer.optimization.batch=4")
    return Asked(**values | {"changes": small, **changes})


def shared(watching: Watching | None = None, **changes: Any) -> Shared:
    data = toys.data_set()
    values: dict[str, Any] = {"data": data, "name": "toys", "judges": judges_of(data, "toys", toys.Tiny())}
    return Shared(**values | {"precision": "fp32", "watching": watching or Watching(), **changes})


def study(watching: Watching | None = None, *, steps: Steps = STEPS, **changes: Any) -> Tokenizers:
    return Tokenizers(asked(**changes), shared(watching), steps, PACE)


def small(name: str) -> presets.Preset:
    """What every preset is for these tests."""
    return dataclasses.replace(KNOWN(name), tokenizer=toys.TOKENIZER, transformer=toys.TRANSFORMER)


KNOWN = presets.get


def token_set(tokenizer: MultiScaleVQVAE) -> TokenSet:
    """The toys as tokens, kept in memory."""
    data = toys.data_set()
    splits = [
        CachedTokens(
            classes=data.classes,
            labels=split.labels,
            fingerprint=split.fingerprint,
            shards=[tokenizer.encode(split.batch(range(len(split)))[0])[:, None].numpy().astype("uint16")],
        )
        for split in (data.train, data.validation)
    ]
    return TokenSet(train=splits[0], validation=splits[1], classes=data.classes, unreadable=[])
