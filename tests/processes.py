"""Programs in processes of their own, one or several, as torchrun starts them, without its seconds of importing torch.

They are forked from a server that has imported everything and done nothing. What depends on how an interpreter starts
or ends, or on torchrun itself, is tried with real ones, in tests/machine.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from typing import TextIO

import torch

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "pytest",
        "torch._dynamo",
        "torch.distributed.fsdp",
        "nextscale.cli",
        "nextscale.evaluation.generation",
        "nextscale.evaluation.reconstruction",
        "nextscale.training.tokenizer.stage",
        "nextscale.training.transformer.stage",
    ]
)


def _become(
    words: list[str], strict: bool, environment: Mapping[str, str], directory: str, streams: list[Connection]
) -> None:
    """What a new process does: the script `words[0]`."""
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.fileno(), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.argv, sys.path[:0] = words, [os.path.dirname(words[0])]
    if strict:
        warnings.simplefilter("error")
    runpy.run_path(words[0], run_name="__main__")


def begin(
    words: list[str], output: int, errors: int, *, strict: bool = False, environment: Mapping[str, str] | None = None
) -> multiprocessing.process.BaseProcess:
    """A Python script with arguments, its output to two file descriptors; with `strict` warnings are errors there."""
    streams = [Connection(os.dup(number), readable=False) for number in (output, errors)]
    given = (words, strict, {**os.environ, **(environment or {})}, os.getcwd(), streams)
    process = FORKS.Process(target=_become, args=given)
    process.start()
    for stream in streams:
        stream.close()
    return process


class Program:
    """One that runs beside the test; of `subprocess.Popen` what tests need."""

    stdout: TextIO
    stderr: TextIO

    def __init__(self, *words: object) -> None:
        (output, writes_output), (errors, writes_errors) = os.pipe(), os.pipe()
        self._process = begin([str(word) for word in words], writes_output, writes_errors)
        os.close(writes_output)
        os.close(writes_errors)
        self.stdout, self.stderr = os.fdopen(output), os.fdopen(errors)

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """The rest of its output once it has ended."""
        self.wait(timeout)
        assert self.returncode is not None, f"expected an end within {timeout} seconds"
        return self.stdout.read(), self.stderr.read()

    def close(self) -> None:
        """It does not outlive the test."""
        self.kill()
        self.wait()
        self.stdout.close()
        self.stderr.close()


def together(
    *words: object, processes: int = 2, strict: bool = True, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A script in so many processes that find each other as torchrun's do; where one fails, the others are ended."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = []
        for rank in range(processes):
            own = {**(environment or {}), **_placed(rank, processes, store.port)}
            command = [str(word) for word in words]
            started.append(begin(command, output.fileno(), errors.fileno(), strict=strict, environment=own))
        while alive := [process for process in started if process.is_alive()]:
            wait([process.sentinel for process in alive])  # of one look: of no process it would wait for ever
            if any(process.exitcode for process in started):
                for process in started:
                    process.kill()
        status = max((process.exitcode or 0 for process in started), key=abs)
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess([*map(str, words)], status, output.read(), errors.read())


def _placed(rank: int, world: int, port: int) -> dict[str, str]:
    """The variables by which torchrun says who is who; the store is the launcher's."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    other = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    return {name: str(number) for name, number in numbers.items()} | other
