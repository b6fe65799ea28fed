"""Laws of the program as a whole: help is instant, mistakes are one line, pipes are respected."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nextscale.cli import COMMANDS, parse

PROGRAM = [sys.executable, "-m", "nextscale"]
HELPS = [["--help"], ["train", "--help"], *([*name.split(), "--help"] for name in COMMANDS)]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real program."""
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, timeout=120, env=os.environ | environment, check=False
    )


def seconds(program: list[str]) -> float:
    """Of processor time: a machine that is busy otherwise does not lengthen it much."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(program, capture_output=True, timeout=120, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("arguments", HELPS, ids=" ".join)
def test_help_takes_less_than_half_a_second(arguments: list[str]) -> None:
    """Or, on a slow machine, than importing its parser four times; the best of several runs counts."""
    parser = [sys.executable, "-c", "import tyro"]
    assert any(seconds([*PROGRAM, *arguments]) < max(0.5, 4 * seconds(parser)) for _ in range(8))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", HELPS, ids=" ".join)
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    """`python -X importtime` names every module that is imported."""
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "nextscale", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stderr
    assert "nextscale.cli" in imported
    assert not [line for line in imported.splitlines() if line.split("|")[-1].strip().partition(".")[0] == "torch"]


def test_help_lists_every_command(nextscale) -> None:
    """And asking for nothing is asking for help."""
    shown = nextscale("--help")
    assert shown.status == 0
    assert all(f"  {name} " in shown.output for name in COMMANDS)
    assert nextscale() == shown


def test_help_of_a_group_lists_its_commands(nextscale) -> None:
    """`nextscale train --help` names both stages and nothing else."""
    shown = nextscale("train", "--help")
    assert shown.status == 0
    assert [name for name in COMMANDS if f"  {name} " in shown.output] == ["train tokenizer", "train transformer"]


def test_version_is_the_package_s(nextscale) -> None:
    """`nextscale --version` prints `nextscale.__version__`."""
    import nextscale as package

    assert nextscale("--version").output == f"nextscale {package.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["smaple"], "did you mean sample?"),
        (["train"], "expected train tokenizer or train transformer, got 'train'"),
        (["train", "tokeniser"], "did you mean train tokenizer?"),
        (["trian", "tokenizer"], "did you mean train tokenizer?"),
        (["sample", "--cuont", "3"], "unknown option --cuont; did you mean --count?"),
        (["sample", "--count", "many"], "--count: expected an integer, got 'many'"),
        (["train", "transformer", "--steps", "1.5"], "--steps: expected an integer, got '1.5'"),
        (["train", "transformer", "--minutes", "x"], "--minutes: expected a number, got 'x'"),
        (["evaluate", "generation", "--split", "validaton"], "expected one of 'train', 'validation', got 'validaton'"),
        (["bench", "train", "--compare", "naiv"], "--compare: expected one of 'naive', got 'naiv'"),
        (["encode", "--data", "emoji"], "unexpected --data: DATA is given without it"),
        (["sample", "--model", "m" * 300], f"cannot use {'m' * 200}...: File name too long"),
        (["sample", "--top-p", "most"], "--top-p: expected a number, got 'most'"),
        (
            ["sample", "--precision", "fp8"],
            "--precision: expected one of 'auto', 'fp32', 'bf16', 'fp16', 'int8', got 'fp8'",
        ),
        (
            ["train", "transformer", "--data", "emoji", "--precision", "int8"],
            "--precision: expected one of 'auto', 'fp32'",
        ),
        (["inspect", "a.png", "--model", "m", "--precision", "int8"], "--precision: expected one of 'auto', 'fp32'"),
        (["sample", "--count"], "--count: expected a value, got none"),
        (["sample", "--label", "1", "--label", "2"], "--label: expected once"),
        (["presets", "extra"], "unexpected argument 'extra'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(nextscale, arguments: list[str], told: str) -> None:
    """The line says what was expected and what was given, and suggests the nearest name."""
    done = nextscale(*arguments)
    assert done.status == 2
    assert done.output == ""
    assert done.errors.count("\n") == 1
    assert done.errors.startswith("nextscale: error: ")
    assert told in done.errors


def test_the_process_itself_exits_with_2() -> None:
    """The status of `main` is that of the program."""
    done = run("smaple")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_mistake_reads_the_same_on_every_terminal(encoding: str) -> None:
    """tyro draws its boxes otherwise where there is no Unicode, and breaks lines where the terminal is narrow."""
    done = run("sample", "--top-k", "all", PYTHONIOENCODING=encoding, COLUMNS="40")
    told = "nextscale: error: --top-k: expected an integer, got 'all'; see nextscale sample --help\n"
    assert (done.returncode, done.stderr) == (2, told)


@pytest.mark.parametrize("arguments", [["--help"], ["presets"], ["sample", "--help"]], ids=" ".join)
def test_piped_output_is_plain_and_80_columns_wide(arguments: list[str]) -> None:
    """No escape codes, no control characters but line ends."""
    text = run(*arguments, COLUMNS="80").stdout
    assert text
    assert all(character.isprintable() or character == "\n" for character in text)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.slow
def test_a_reader_that_stops_early_is_no_error() -> None:
    """`nextscale presets | head -1` leaves nothing on stderr."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*PROGRAM, "presets"], stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_an_interrupt_is_one_line_and_status_130(nextscale, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C shows no traceback."""
    from nextscale.cli.presets import Presets

    def interrupted(self: Presets) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Presets, "run", interrupted)
    done = nextscale("presets")
    assert (done.status, done.errors) == (130, "nextscale: interrupted\n")


def test_a_bug_keeps_its_traceback(nextscale, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `InputError` is a user's mistake; its parent `ValueError` is not."""
    from nextscale.cli.presets import Presets

    def broken(self: Presets) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(Presets, "run", broken)
    with pytest.raises(ValueError, match="ours"):
        nextscale("presets")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("~/pictures", "HOME/pictures"),
        ("$PLACE/pictures", "PLACE/pictures"),
        ("${PLACE}/pictures", "PLACE/pictures"),
        ("a/$PLACE", "a/PLACE"),
        ("$NOWHERE/pictures", "$NOWHERE/pictures"),
        ("$EMPTY", "$EMPTY"),
        ("pictures~", "pictures~"),
        ("cost 5$", "cost 5$"),
    ],
)
def test_homes_and_variables_in_paths_are_expanded(
    typed: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell leaves them behind `=` and in quotes; what is there under the name as typed stays."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "PLACE"):
        monkeypatch.setenv(name, name)
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.setenv("EMPTY", "")
    sample = parse(["sample", f"--out={typed}", "--model", typed, "--label", "3"])
    assert (str(sample.out), sample.model, sample.label) == (meant, (meant,), ("3",))
    assert str(parse(["encode", typed, "--tokenizer", typed]).tokenizer) == meant
    (tmp_path / "$PLACE").mkdir()
    assert str(parse(["sample", "--out", "$PLACE"]).out) == "$PLACE"
