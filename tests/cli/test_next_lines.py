"""The lines that commands print to be typed next can be pasted as they are."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nextscale import Scales, presets


def pasted(nextscale: Callable[..., Any], line: str, *more: str) -> list[str]:
    """The lines that a printed command prints itself, run as a shell would, with what makes it short behind it."""
    program, *words = shlex.split(line)
    assert program == "nextscale"
    done = nextscale(*words, *more)
    assert (done.status, done.errors) == (0, ""), done
    return done.output.splitlines()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("encoded", [False, True])
def test_from_pictures_to_samples_by_pasting(
    nextscale, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: bool
) -> None:
    """Of names with blanks, quotes and dollars; a share of broken pictures is borne with by the next command, too."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures, "cats & dogs")
    Path("cats & dogs/cat/broken.png").write_text("text")
    short = ("--steps", "2", "--batch", "2")
    first = "nextscale train tokenizer --data 'cats & dogs' --max-broken 0.5 --out \"it's 1 $HOMELESS\""
    *_, line = pasted(nextscale, first, *short)
    if encoded:
        encode = "nextscale encode 'cats & dogs' --max-broken 0.5 --tokenizer \"it's 1 $HOMELESS\" --out 'a cache'"
        *_, line = pasted(nextscale, encode)
    told = pasted(nextscale, line, *short, "--out", "the model")
    assert ("preset: emoji-32, that of the tokenizer in it's 1 $HOMELESS" in " ".join(told)) is encoded
    *_, again = pasted(nextscale, told[-1])
    assert len(list(Path("samples/the model").glob("*-seed*.png"))) == 2
    pasted(nextscale, again.removeprefix("again: "))


@pytest.mark.parametrize("name", presets.names())
def test_the_preset_of_a_tokenizer_is_the_one_it_was_trained_by(name: str) -> None:
    """Of several with one tokenizer the first; with other scales or codes, the one that has most in common."""
    preset = presets.get(name)
    assert presets.of_tokenizer(preset.tokenizer).tokenizer == preset.tokenizer
    for changes in ({"codebook_size": 77}, {"scales": Scales([1, 7])}):
        found = presets.of_tokenizer(dataclasses.replace(preset.tokenizer, **changes))
        assert (found.tokenizer.channels, found.tokenizer.multipliers) == (
            preset.tokenizer.channels,
            preset.tokenizer.multipliers,
        )
