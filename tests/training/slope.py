"""A stage whose every gradient is known, and a clock that stands still but for what it is told of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextscale.data import DataSet
from nextscale.files import checkpoint
from nextscale.training.loop import Health
from nextscale.training.optimization import Optimization, Outcome
from nextscale.training.recipes import Recipe

STEADY = Recipe(
    batch=1, learning_rate=0.01, betas=(0.9, 0.95), weight_decay=0.0, warmup_steps=0, final_rate=1.0, clip=100.0
)


class Slope:
    """A stage with a known answer: the gradient of its loss is (3, 4) at every step, of norm 5."""

    name = "slope"
    batch = 1
    settings: dict[str, object] = {}  # noqa: RUF012 - as the protocol has it

    def __init__(self, data: DataSet, **changes: Any) -> None:
        self.data = data
        self.model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.recipe = dataclasses.replace(STEADY, **changes)
        self.optimization = Optimization(self.model, self.recipe)
        self.factor = 1.0
        self.before_step: Callable[[int], None] = lambda step: None
        self.prepared = 0

    @property
    def state(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimization}

    def prepare(self) -> None:
        self.prepared += 1

    def update(self, step: int, total: float | None) -> Outcome:
        self.before_step(step)
        loss = self.model(torch.tensor([3.0, 4.0])).sum() * self.factor
        return self.optimization.update([(loss, {})], step, total)

    def inputs(self, step: int) -> Tensor:
        return torch.full((2, 3, 4, 4), step / 100)

    def validate(self) -> dict[str, float]:
        return {"height": self.model.weight.sum().item()}

    def score(self, validation: Mapping[str, float]) -> float:
        return validation["height"]

    def sound(self) -> bool:
        return bool(self.model.weight.isfinite().all())

    def health(self, validation: Any, figures: Any, history: Any) -> Health:
        return Health((f"{len(figures)} steps",), (f"after {len(history)} checks",))

    def pictures(self) -> Tensor:
        return torch.zeros(3, 2, 2)

    def export(self, directory: Path) -> None:
        checkpoint.write_tensors(directory / "slope.safetensors", self.model.state_dict())


class Clock:
    """Time that passes in steps, and where asked for in checks; how much a step takes may depend on the time."""

    def __init__(self, seconds_a_step: float | Callable[[float], float]) -> None:
        self.now, self.seconds_a_step = 100.0, seconds_a_step

    def tick(self, step: int) -> None:
        self.now += self.seconds_a_step(self.now - 100) if callable(self.seconds_a_step) else self.seconds_a_step

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
