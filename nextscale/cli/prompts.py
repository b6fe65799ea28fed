"""Prompts in a file, one a line."""

from __future__ import annotations

from pathlib import Path

from nextscale.cli.output import say
from nextscale.errors import InputError

COMMENT = "#"


def read(file: Path) -> list[str]:
    """The prompts in a UTF-8 file, in order; blank lines and comments, from # on the line's first place, are left out.

    Says how many of these there were. Raises `InputError` for a file that is missing, no UTF-8, or without a prompt.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"--prompts-file: cannot read {file}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--prompts-file {file}: expected UTF-8, got other bytes at {error.start}") from None
    comments = [line for line in lines if line.startswith(COMMENT)]
    prompts = [line.strip() for line in lines if line.strip() and not line.startswith(COMMENT)]
    if not prompts:
        raise InputError(f"--prompts-file {file}: expected at least one prompt, got none")
    blank = len(lines) - len(comments) - len(prompts)
    if blank or comments:
        say(f"{file}: {len(prompts)} prompts; left out: {blank} blank lines, {len(comments)} comments")
    return prompts
