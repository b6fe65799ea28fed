"""Two stages that take milliseconds a step, on pictures of 8x8 pixels, and the ways a run may be cut short."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale import MultiScaleVQVAE, data
from nextscale.config import TokenizerConfig, TransformerConfig
from nextscale.data import DataSet
from nextscale.data.pictures import Split, from_memory
from nextscale.training.optimization import Recipe
from nextscale.training.tokenizer import TokenizerStage
from nextscale.training.transformer import TransformerStage, fitted

RECIPE = Recipe(
    batch=4,
    learning_rate=2e-3,
    betas=(0.9, 0.95),
    weight_decay=0.05,
    warmup_steps=3,
    final_rate=0.1,
    clip=1.0,
)


def split(name: str, count: int, seed: int) -> Split:
    """Pictures of 9x9 pixels, so that crops differ: class 0 dark, class 1 light."""
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 128, (count, 3, 9, 9), generator=torch.Generator().manual_seed(seed))
    return Split(
        classes=("dark", "light"),
        labels=labels,
        names=tuple(f"{name} {index}" for index in range(count)),
        fingerprint=f"{name} {count} {seed}",
        fetch=from_memory((noise + 127 * labels.view(-1, 1, 1, 1)).to(torch.uint8)),
        height=8,
        width=8,
    )


@pytest.fixture(scope="session")
def toy() -> DataSet:
    """18 pictures to train on, 6 held out, 2 classes."""
    return DataSet(
        train=split("train", 18, 1), validation=split("held out", 6, 2), classes=("dark", "light"), unreadable=[]
    )


@pytest.fixture(scope="session")
def emoji(tokenizer_config: TokenizerConfig) -> DataSet:
    """The embedded pictures at 8x8 pixels."""
    return data.load("emoji", height=tokenizer_config.height, width=tokenizer_config.width)


@pytest.fixture
def first_stage(toy: DataSet, tokenizer_config: TokenizerConfig) -> Callable[..., TokenizerStage]:
    """`first_stage(seed=1, batch=2)`: a tokenizer about to be trained."""

    def make(data: DataSet = toy, *, seed: int = 0, **changes: Any) -> TokenizerStage:
        return TokenizerStage(
            tokenizer_config, data, recipe=dataclasses.replace(RECIPE, **changes), seed=seed, precision="fp32"
        )

    return make


@pytest.fixture
def second_stage(
    toy: DataSet, tokenizer_config: TokenizerConfig, transformer_config: TransformerConfig
) -> Callable[..., TransformerStage]:
    """`second_stage(seed=1, batch=2)`: a transformer about to be trained, on a tokenizer of its own."""

    def make(data: DataSet = toy, *, seed: int = 0, **changes: Any) -> TransformerStage:
        tokenizer = MultiScaleVQVAE(tokenizer_config, seed=3)
        config = fitted(transformer_config, tokenizer, classes=len(data.classes))
        recipe = dataclasses.replace(RECIPE, **changes)
        return TransformerStage(config, tokenizer, data, recipe=recipe, seed=seed, precision="fp32")

    return make


@pytest.fixture(params=["tokenizer", "transformer"])
def make_stage(request: pytest.FixtureRequest) -> Callable[..., TokenizerStage | TransformerStage]:
    """Each stage in turn."""
    return request.getfixturevalue({"tokenizer": "first_stage", "transformer": "second_stage"}[request.param])


@pytest.fixture(scope="session")
def left_behind() -> Callable[[Path], dict[str, Any]]:
    """What a run leaves that must not depend on how often it was cut short: weights, optimiser, history, files."""

    def read(run: Path) -> dict[str, Any]:
        state = torch.load(run / "state.pt", weights_only=True)
        files = sorted([*run.glob("*.safetensors"), *run.glob("*.json"), *run.glob("samples/*")])
        return {"state": flat(state), "files": {str(file.relative_to(run)): file.read_bytes() for file in files}}

    return read


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A nested state as names and plain values, tensors as their dtype, shape and bytes."""
    if isinstance(value, torch.Tensor):
        return {name: (value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes())}
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for part, inner in items for key, leaf in flat(inner, f"{name}/{part}").items()}
    return {name: value}
