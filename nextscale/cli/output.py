"""What the commands share: JSON, directories, checks of numbers, progress on terminals only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextscale.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress


def write_json(file: Path, values: Any) -> None:
    """Write `values` as indented JSON; `-` is stdout. Raises `InputError` when the file cannot be written."""
    if str(file) == "-":
        print(json.dumps(values, indent=2, ensure_ascii=False))
        return
    from nextscale import checkpoint

    checkpoint.write_json(file, values)


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


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar on stderr that vanishes when done; nothing at all where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar
