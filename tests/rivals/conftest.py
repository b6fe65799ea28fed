"""Rivals with healthy weights on a tokenizer of one scale of 4 x 4 tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from conftest import TRANSFORMER, awaken
from training.toy import SINGLE

from nextscale import VAR, MultiScaleVQVAE, Pipeline
from nextscale.config import Order
from nextscale.rivals.orders import kind_of

NAMES = ["ant", "bee", "cat", "dog", "eel"]
RIVALS: list[Order] = ["raster", "masked", "refined"]


@pytest.fixture(scope="session")
def single() -> MultiScaleVQVAE:
    """Shared by all tests: look, do not touch."""
    return MultiScaleVQVAE(SINGLE, seed=3)


@pytest.fixture(scope="session")
def make_rival() -> Callable[..., VAR]:
    """`make_rival("raster", depth=2)`: a new model for the tokens of `single`."""

    def make(order: Order, **changes: Any) -> VAR:
        config = dataclasses.replace(TRANSFORMER, scales=SINGLE.scales, order=order, **changes)
        return awaken(kind_of(config).model(config))

    return make


@pytest.fixture(scope="session")
def make_pipe(single: MultiScaleVQVAE, make_rival: Callable[..., VAR]) -> Callable[..., Pipeline]:
    """`make_pipe("raster")`: in float32."""

    def make(order: Order, **changes: Any) -> Pipeline:
        return Pipeline(single, make_rival(order, **changes), classes=NAMES, precision="fp32")

    return make


@pytest.fixture(params=RIVALS)
def rival(request: pytest.FixtureRequest, make_pipe: Callable[..., Pipeline]) -> Pipeline:
    """Each in turn."""
    return make_pipe(request.param)
