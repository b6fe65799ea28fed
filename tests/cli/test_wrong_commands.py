"""A small part of benchmarks/wrong_commands.py: command lines with wrong values end in a sentence."""

from __future__ import annotations

import random
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nextscale.cli import parse

PROGRAM = runpy.run_path(str(Path(__file__).parent.parent.parent / "benchmarks" / "wrong_commands.py"))
SLOW = ("demo", "evaluate", "bench")  # what may turn out to be right takes seconds there
CASES = [
    case
    for case in PROGRAM["cases"](pairs=200)
    if not case.command.startswith(SLOW) and not case.may_go_on and "99999999999" not in " ".join(case.words)
]
LINES = [
    ("presets --json", "--json: expected a value, got none"),
    ("presets --json ''", "--json: expected a value, got an empty one"),
    ("presets --json=", "--json: expected a value, got an empty one"),
    ("presets --json .", "--json: expected a file, got the directory ."),
    ("sample --model ''", "--model: expected a value, got an empty one"),
    ("sample --device meta", "--device: expected one that computes, such as cpu or cuda, got meta"),
    ("sample --count 99999999999", "--count: expected at most 100,000, got 99,999,999,999"),
    (
        "encode pictures --tokenizer tokenizer --views 99999999999",
        "--views: expected at most 1,024, got 99,999,999,999",
    ),
    ("encode pictures --tokenizer text.pth --device mps", "got mps (this build of torch is without it)"),
    ("train tokenizer --data pictures --batch 100000000000", "batch: expected at most 1048576, got 100000000000"),
    (
        "train tokenizer --data pictures --size 4x4 --discriminator patch --steps 1 --batch 2",
        "discriminator: expected pictures of at least 6 px for patches, got 4 px",
    ),
    ("bench sample --batch 99999999999", "--batch: expected at most 65,536, got 99,999,999,999"),
    ("bench sample --threads 99999999999", "--threads: expected at most 4,096, got 99,999,999,999"),
    ("encode digits.tar --tokenizer tokenizer", "expected a class of at most 255 characters in 0.cls of digits.tar"),
    ("encode pictures --tokenizer tokenizer --labels labels-long.csv", "line 2: expected a picture below pictures"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of models and data, whole and broken."""
    directory = tmp_path_factory.mktemp("world")
    with PROGRAM["world"](directory):
        yield directory


@pytest.mark.parametrize("case", random.Random(0).sample(CASES, 60), ids=lambda case: shlex.join(case.words)[:100])
def test_a_wrong_value_ends_in_a_sentence(world: Path, case: Any) -> None:
    """Status 2 and one line that says what was expected; or what was asked is done."""
    with PROGRAM["copied"](world):
        assert PROGRAM["complaint"](case, patience=60) is None


@pytest.mark.parametrize(("line", "told"), LINES)
def test_what_was_a_traceback_says_what_was_expected(nextscale, world: Path, line: str, told: str) -> None:
    """One line, status 2."""
    with PROGRAM["copied"](world):
        done = nextscale(*shlex.split(line))
    assert (done.status, done.errors.count("\n")) == (2, 1)
    assert told in done.errors


def test_every_option_of_every_command_is_tried() -> None:
    """With at least two wrong values, but for those that are given or not."""
    tried = [(case.command, case.changes[0][0]) for case in PROGRAM["cases"]()]
    assert len(tried) > 500
    for name in PROGRAM["WALKED"]:
        needed = PROGRAM["WORKING"][name].get(PROGRAM["POSITIONAL"].get(name), ())
        command = parse([*name.split(), *needed])
        assert all(tried.count((name, field)) >= 2 for field in vars(command))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError("Unable to allocate 5.46 TiB for an array"), "got too little (allocate 5.46 TiB for an array)"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 184 bytes."),
            "",
        ),
        (OSError(28, "No space left on device"), "cannot use the disk: No space left on device"),
    ],
)
def test_what_the_machine_lacks_is_a_line(nextscale, monkeypatch, error: Exception, told: str) -> None:
    """Memory by any name, and room on the disk where no file is named."""
    from nextscale.cli.presets import Presets

    def fail(self: Presets) -> None:
        raise error

    monkeypatch.setattr(Presets, "run", fail)
    done = nextscale("presets")
    assert (done.status, done.errors.count("\n")) == (2, 1)
    assert told in done.errors
