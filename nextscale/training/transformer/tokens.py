"""Where the tokens of stage 2 come from: a cache (`data.tokens`), or pictures that are encoded as they come.

Both are `TokenSet`s, so that the stage does not know which. Also what the writer of a cache is told of the tokenizer.
Shapes: N pictures of a split, n of a batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nextscale.data import DataSet, Pictures
from nextscale.data.ahead import Ahead
from nextscale.data.captions import Captions
from nextscale.data.encoding import SHARD, Encode
from nextscale.data.pictures import Split, fingerprint
from nextscale.data.tokens import Meta, TokenSet
from nextscale.data.windows import Windows
from nextscale.files import checkpoint
from nextscale.machine.precision import lowered
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.training.transformer import flips

TOGETHER = 64  # pictures encoded at a time


@dataclass(frozen=True, eq=False)
class Encoded:
    """A split of pictures, as `data.tokens.Tokens`: each batch goes through the tokenizer."""

    pictures: Pictures
    tokenizer: MultiScaleVQVAE
    dtype: torch.dtype
    """Of the encoder's matrix products; the search for codes stays float32."""

    @cached_property
    def ahead(self) -> Ahead:
        """Where the pictures of batches come from."""
        return Ahead(self.pictures, self.tokenizer.quantizer.device)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.pictures.classes

    @property
    def labels(self) -> Tensor:
        return self.pictures.labels

    @property
    def fingerprint(self) -> str:
        return self.pictures.fingerprint

    @property
    def captions(self) -> Captions | None:
        return self.pictures.captions

    @property
    def windows(self) -> Windows | None:
        """How a training should go through the pictures."""
        return self.pictures.windows if isinstance(self.pictures, Split) else None

    def __len__(self) -> int:
        return len(self.pictures)

    @torch.no_grad()
    def batch(self, indices: Sequence[int] | Tensor, *, views: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(n, L) int64 on the tokenizer's device, (n,) int64; see `data.tokens.Tokens.batch`."""
        originals, labels = self.ahead.batch(indices, views=views)
        quantizer = self.tokenizer.quantizer
        with lowered(quantizer.device, self.dtype):
            return torch.cat([quantizer.encode(f_BCHW) for f_BCHW in self._features(originals)]), labels

    @torch.no_grad()
    def corrected(self, indices: Tensor, by_nLG: Tensor, *, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Targets and input tokens, (n, L) int64 each, and labels, with the turns `by_nLG` of `flips`."""
        originals, labels = self.ahead.batch(indices, views=views)
        quantizer, pairs = self.tokenizer.quantizer, []
        with lowered(quantizer.device, self.dtype):
            for f_BCHW, by_BLG in zip(self._features(originals), by_nLG.split(TOGETHER), strict=True):
                flip = flips.flipping(by_BLG.to(quantizer.device), self.tokenizer.config)
                pairs.append(quantizer.corrected(f_BCHW, flip))
        found, seen = zip(*pairs, strict=True)
        return torch.cat(found), torch.cat(seen), labels

    def _features(self, originals: Tensor) -> Iterator[Tensor]:
        """Of some pictures at a time, without the range check of `encode`, which would wait for the device."""
        return (
            self.tokenizer.features(part.to(self.ahead.device, non_blocking=True)) for part in originals.split(TOGETHER)
        )


def encoded(data: DataSet, tokenizer: MultiScaleVQVAE, dtype: torch.dtype) -> TokenSet:
    """Both splits of `data`, encoded as they come."""
    return TokenSet(
        train=Encoded(data.train, tokenizer, dtype),
        validation=Encoded(data.validation, tokenizer, dtype),
        classes=data.classes,
        unreadable=data.unreadable,
    )


# -- for the makers of caches ------------------------------------------------------------------------------------------


def encoding_of(tokenizer: MultiScaleVQVAE, dtype: torch.dtype) -> Encode:
    """What turns images into tokens, wherever the tokenizer is, in the precision given."""
    device = tokenizer.quantizer.device

    def encode(images: Tensor) -> Tensor:
        with torch.inference_mode(), lowered(device, dtype):
            return tokenizer.encode(images.to(device))

    return encode


def meta_of(
    tokenizer: MultiScaleVQVAE,
    data: DataSet,
    dtype: torch.dtype,
    *,
    views: int,
    flip: bool = False,
    seed: int = 0,
    shard: int = SHARD,
) -> Meta:
    """What a cache of `data` by `encoding_of(tokenizer, dtype)` is made of; the others are values of `Meta`."""
    config = tokenizer.config
    both = (data.train.captions, data.validation.captions)
    captions = [captions.fingerprint for captions in both if captions is not None]
    return Meta(
        tokenizer=checkpoint.fingerprint(tokenizer.state_dict()),
        scales=config.scales,
        codebook_size=config.codebook_size,
        height=config.height,
        width=config.width,
        data=data.train.fingerprint,
        held_out=data.validation.fingerprint,
        precision=str(dtype).removeprefix("torch."),
        views=views,
        flip=flip,
        seed=seed,
        shard=shard,
        captions=fingerprint(captions) if captions else None,
    )
