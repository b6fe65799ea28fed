"""Two stages that take milliseconds a step, on pictures of 8x8 pixels, and the ways a run may be cut short."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training import toy as toys
from training.slope import Clock, Slope

from nextscale import MultiScaleVQVAE, data
from nextscale.config import TokenizerConfig, TransformerConfig
from nextscale.data import DataSet
from nextscale.data.tokens import TokenSet
from nextscale.training import loop, pace, recipes
from nextscale.training.recipes import TransformerRecipe
from nextscale.training.tokenizer.stage import TokenizerStage
from nextscale.training.transformer.stage import TransformerStage, fitted


@pytest.fixture(scope="session")
def toy() -> DataSet:
    """18 pictures to train on, 6 held out, 2 classes."""
    return toys.data_set()


@pytest.fixture(scope="session")
def emoji(tokenizer_config: TokenizerConfig) -> DataSet:
    """The embedded pictures at 8x8 pixels."""
    return data.load("emoji", height=tokenizer_config.height, width=tokenizer_config.width)


@pytest.fixture
def first_stage(toy: DataSet, tokenizer_config: TokenizerConfig) -> Callable[..., TokenizerStage]:
    """`first_stage(seed=1, batch=2, settings=["flip=true"])`: a tokenizer about to be trained."""

    def make(data: DataSet = toy, settings: Sequence[str] = (), *, seed: int = 0, **changes: Any) -> TokenizerStage:
        return toys.stage(settings, data=data, config=tokenizer_config, seed=seed, **changes)

    return make


@pytest.fixture
def second_stage(
    toy: DataSet, tokenizer_config: TokenizerConfig, transformer_config: TransformerConfig
) -> Callable[..., TransformerStage]:
    """`second_stage(seed=1, batch=2, settings=["flip=true"])`: a transformer about to be trained, on a tokenizer of its
    own."""

    def make(
        data: DataSet | TokenSet = toy, settings: Sequence[str] = (), *, seed: int = 0, **changes: Any
    ) -> TransformerStage:
        tokenizer = MultiScaleVQVAE(tokenizer_config, seed=3)
        config = fitted(transformer_config, tokenizer, classes=len(data.classes))
        recipe = TransformerRecipe(optimization=dataclasses.replace(toys.RECIPE, **changes))
        recipe = recipes.changed(recipe, settings)
        return TransformerStage(config, tokenizer, data, recipe=recipe, seed=seed, precision="fp32")

    return make


@pytest.fixture(params=["tokenizer", "transformer"])
def make_stage(request: pytest.FixtureRequest) -> Callable[..., TokenizerStage | TransformerStage]:
    """Each stage in turn."""
    return request.getfixturevalue({"tokenizer": "first_stage", "transformer": "second_stage"}[request.param])


@pytest.fixture
def clocked(toy: DataSet, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Slope]:
    """`clocked(0.5, check=3)`: a stage whose steps take half a second each and checks 3, by the clock of training."""

    def make(seconds_a_step: float | Callable[[float], float], *, check: float = 0.0, **changes: Any) -> Slope:
        clock, stage = Clock(seconds_a_step), Slope(toy, **changes)
        validate = stage.validate
        stage.before_step = clock.tick
        stage.validate = lambda: (clock.pass_by(check), validate())[1]  # type: ignore[method-assign]
        for module in (loop, pace):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
        return stage

    return make


@pytest.fixture(scope="session")
def left_behind() -> Callable[[Path], dict[str, Any]]:
    """What a run leaves that must not depend on how often it was cut short: checkpoint, models, history, pictures."""

    def read(run: Path) -> dict[str, Any]:
        state = torch.load(run / "state.pt", weights_only=True)
        files = [*run.glob("**/*.safetensors"), *run.glob("**/*.json"), *run.glob("samples/*")]
        return {"state": toys.flat(state), "files": {str(file.relative_to(run)): file.read_bytes() for file in files}}

    return read
