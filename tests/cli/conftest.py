"""A saved model small enough to sample from in a second, and the program run in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nextscale.cli import main


@dataclass(frozen=True)
class Run:
    """What a run of the program left behind."""

    status: int
    output: str
    errors: str


@pytest.fixture
def nextscale(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """`nextscale("sample", "--count", 3)`."""

    def call(*arguments: object) -> Run:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Run(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: the shape of emoji-32, random weights, classes with names."""
    from nextscale import Pipeline

    directory = tmp_path_factory.mktemp("model")
    pipe = Pipeline.from_preset("emoji-32", precision="fp32")
    pipe.classes = ("Smileys & Emotion", *(f"class {number}" for number in range(1, 9)))
    pipe.save(directory)
    return directory
