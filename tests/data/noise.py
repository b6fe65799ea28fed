"""A data set of noise, and what a cache of its tokens is made of; for the tests and for the processes they start."""

from __future__ import annotations

import torch

from nextscale import MultiScaleVQVAE
from nextscale.data import DataSet
from nextscale.data.pictures import Split, from_memory
from nextscale.data.tokens import Meta
from nextscale.files.checkpoint import fingerprint

TRAIN, HELD_OUT = 11, 3
CLASSES = ("ant", "bee", "cat")


def data_set() -> DataSet:
    """Of two splits."""
    train, validation = split("train", TRAIN), split("validation", HELD_OUT)
    return DataSet(train=train, validation=validation, classes=CLASSES, unreadable=[])


def split(name: str, count: int) -> Split:
    """Pictures of 10x11 pixels, seen through 8x8 ones."""
    generator = torch.Generator().manual_seed(count)
    stored = [torch.randint(0, 256, (3, 10, 11), generator=generator).byte() for _ in range(count)]
    return Split(
        classes=CLASSES,
        labels=torch.arange(count) % len(CLASSES),
        names=tuple(f"{name}-{index}" for index in range(count)),
        fingerprint=f"{name} of {count}",
        fetch=from_memory(stored),
        height=8,
        width=8,
    )


def made_of(tokenizer: MultiScaleVQVAE, data: DataSet) -> Meta:
    """Three views of each picture to train on, mirrored too; two such pictures a file."""
    return Meta(
        tokenizer=fingerprint(tokenizer.state_dict()),
        scales=tokenizer.config.scales,
        codebook_size=tokenizer.config.codebook_size,
        height=8,
        width=8,
        data=data.train.fingerprint,
        held_out=data.validation.fingerprint,
        precision="float32",
        views=3,
        flip=True,
        seed=4,
        shard=7,
    )
