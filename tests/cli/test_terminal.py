"""Laws of what is printed on: no console, no full disk and no closed stream loses a figure or ends in a traceback."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nextscale.cli import main
from nextscale.cli.terminal import Tolerant

PROGRAM = [sys.executable, "-m", "nextscale"]


class Full(io.StringIO):
    """What stands before a disk without room."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The real program, through a shell."""
    words = f"{sys.executable} -m nextscale {command}"
    return subprocess.run(words, shell=True, capture_output=True, timeout=60, check=False, env=os.environ | environment)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_stdout_is_one_line() -> None:
    """On stderr, with status 2."""
    done = shell("presets > /dev/full")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"nextscale: error: cannot write to stdout: No space left on device\n"


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_error(closed: str, tmp_path: Path) -> None:
    """Files are written all the same, and nothing that is printed gets into them."""
    file = tmp_path / "presets.json"
    done = shell(f"presets --json '{file}' {closed}")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert file.read_text().startswith("[\n")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp932", "latin-1"])
def test_a_console_shows_what_it_can(encoding: str, tmp_path: Path) -> None:
    """Characters that it does not know are escaped, in what is printed and in what is complained of."""
    done = shell("presets", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "emoji-32" in done.stdout.decode(encoding)
    refused = shell("'ö\N{PILE OF POO}'", PYTHONIOENCODING=encoding)
    assert (refused.returncode, refused.stderr.count(b"\n")) == (2, 1)
    assert "\\U0001f4a9" in refused.stderr.decode(encoding)


@pytest.mark.slow
def test_figures_are_written_before_they_are_printed(
    nextscale: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a command that measures for as long as it takes; what comes is what a healthy console would have got."""
    command = ["bench", "sample", "--preset", "emoji-32", "--batch", "1", "--repeats", "1", "--json"]
    monkeypatch.setattr(sys, "stdout", Full())
    assert main([*command, str(tmp_path / "figures.json")]) == 2
    assert capsys.readouterr().err == "nextscale: error: cannot write to stdout: No space left on device\n"
    assert '"batches": [' in (tmp_path / "figures.json").read_text()


def test_a_reader_that_goes_away_still_ends_the_program() -> None:
    """Unlike a full disk, it has seen what it wanted."""

    class Gone(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        Tolerant(Gone()).flush()


def test_a_stream_is_otherwise_what_it_was() -> None:
    """What asks whether it is a terminal, or where it leads, is answered by the stream itself."""
    stream = io.StringIO()
    tolerant = Tolerant(stream)
    print("told", file=tolerant)
    assert stream.getvalue() == "told\n"
    assert tolerant.isatty() is False
    assert tolerant.failed is None
