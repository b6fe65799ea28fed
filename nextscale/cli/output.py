"""What the commands share: JSON, directories, checks of numbers, tables, progress on terminals only."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextscale.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from nextscale.data import Progress as Told

COLUMNS = 80


def write_json(file: Path, values: Any) -> None:
    """Write `values` as indented JSON; `-` is stdout. Raises `InputError` when the file cannot be written."""
    check_json(file)
    if str(file) == "-":
        print(json.dumps(values, indent=2, ensure_ascii=False))
        return
    from nextscale.files import checkpoint

    checkpoint.write_json(file, values)


def check_json(file: Path | None) -> None:
    """Raise `InputError` now rather than after the work whose figures `--json` is to hold."""
    if file is None or str(file) == "-":
        return
    if file.is_dir():
        raise InputError(f"--json: expected a file, got the directory {file}")
    directory("--json", file.parent)


def say(line: str) -> None:
    """Print a line for people."""
    print(wrapped(line), flush=True)


def wrapped(line: str) -> str:
    """A line broken between words where a terminal of 80 columns ends; what continues it is set in."""
    return textwrap.fill(line, COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def directory(option: str, path: Path) -> Path:
    """`path`, made if need be. Raises `InputError` when it cannot be a directory."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option}: expected a directory, got {path} ({error.strerror})") from error
    return path


def at_least(option: str, least: int, value: int) -> None:
    """Raise `InputError` unless `value` >= `least`."""
    if value < least:
        raise InputError(f"{option}: expected at least {least}, got {value}")


def at_most(option: str, most: int, value: int) -> None:
    """Raise `InputError` unless `value` <= `most`: more would fill the memory long before anything is done."""
    if value > most:
        raise InputError(f"{option}: expected at most {most:,}, got {value:,}")


def console(*, stderr: bool = False) -> Console:
    """Where tables and bars go. A reader that stops early is reported like that of a plain `print`."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Output(stderr=stderr, highlight=False)


def table(title: str, left: tuple[str, ...], right: tuple[str, ...], rows: list[tuple[object, ...]]) -> Table:
    """Columns `left` aligned left, then `right` aligned right; narrow enough for 80 characters."""
    from rich import box
    from rich.table import Table

    drawn = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in left:
        drawn.add_column(name, no_wrap=True)
    for name in right:
        drawn.add_column(name, no_wrap=True, justify="right")
    for row in rows:
        drawn.add_row(*map(str, row))
    return drawn


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar on stderr that vanishes when done; nothing at all where stderr is not a terminal."""
    from rich.progress import Progress

    terminal = console(stderr=True)
    with Progress(console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        yield bar


@contextmanager
def bar(name: str) -> Iterator[Told]:
    """Such a bar with the time that is left, to be told (done, total)."""
    with progress() as drawn:
        task = drawn.add_task(name, total=None)
        yield lambda done, total: drawn.update(task, completed=done, total=total)
