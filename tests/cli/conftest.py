"""A saved model small enough to sample from in a second, and the program run in this process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import Program

from nextscale.cli import main, memory
from nextscale.config import TokenizerConfig, TransformerConfig


@dataclass(frozen=True)
class Run:
    """What a run of the program left behind."""

    status: int
    output: str
    errors: str


@pytest.fixture
def nextscale(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """`nextscale("sample", "--count", 3)`, on a terminal of 80 columns whatever the tests run on."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object) -> Run:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Run(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session", autouse=True)
def memory_is_given_back() -> Iterator[None]:
    """By this process, whose peak other tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "keep_freed", lambda: None)
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: the shape of emoji-32, random weights, classes with names."""
    from nextscale import Pipeline

    directory = tmp_path_factory.mktemp("model")
    pipe = Pipeline.from_preset("emoji-32", precision="fp32")
    pipe.classes = ("Smileys & Emotion", *(f"class {number}" for number in range(1, 9)))
    pipe.save(directory)
    return directory


# ---- training: every preset means the same two small models ----------------------------------------------------------


@pytest.fixture(scope="module")
def small(tokenizer_config: TokenizerConfig, transformer_config: TransformerConfig) -> Iterator[None]:
    """In this process."""
    from nextscale import presets

    get = presets.get

    def shrunk(name: str) -> presets.Preset:
        return dataclasses.replace(get(name), tokenizer=tokenizer_config, transformer=transformer_config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "get", shrunk)
        yield


@pytest.fixture
def started(
    tokenizer_config: TokenizerConfig, transformer_config: TransformerConfig, tmp_path: Path
) -> Iterator[Callable[..., Program]]:
    """`started("train", "tokenizer")`: in a process of its own, which does not outlive the test."""
    from nextscale.config import to_json

    configs = tmp_path / "configs.json"
    configs.write_text(json.dumps({"tokenizer": to_json(tokenizer_config), "transformer": to_json(transformer_config)}))
    programs = []

    def start(*arguments: object) -> Program:
        programs.append(Program(Path(__file__).parent / "small.py", configs, *arguments))
        return programs[-1]

    yield start
    for program in programs:
        program.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes, 24 pictures of 12x12 pixels."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    for number in range(24):
        folder = root / ("cat", "dog")[number % 2]
        folder.mkdir(exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number:02}.png")
    return root
