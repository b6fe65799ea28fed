"""The command line: a table of commands, each a frozen dataclass with a `run()` in a file of its own.

A command's module is imported when the command is called, and torch when it runs, so that every help text is instant.
Mistakes of the user end here as one line and exit status 2; anything else keeps its traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module
from itertools import dropwhile, takewhile
from typing import Any

from nextscale.cli.terminal import discard, tolerant
from nextscale.errors import InputError

#   name: (module under nextscale.cli, dataclass, help line)
COMMANDS = {
    "demo": ("demo", "Demo", "train both stages on embedded pictures, with a report"),
    "sample": ("sample", "Sample", "generate images with a model"),
    "edit": ("edit", "Edit", "repaint a part of a picture"),
    "reconstruct": ("reconstruct", "Reconstruct", "pass pictures through the tokenizer, scale by scale"),
    "inspect": ("inspect", "Inspect", "likelihood of a picture under a model, and why"),
    "train tokenizer": ("train_tokenizer", "TrainTokenizer", "train the first stage: images to tokens and back"),
    "train transformer": ("train_transformer", "TrainTransformer", "train the second stage: next-scale prediction"),
    "encode": ("encode", "Encode", "encode a data set into a token cache"),
    "evaluate reconstruction": (
        "evaluate_reconstruction",
        "EvaluateReconstruction",
        "metrics of a tokenizer's reconstructions",
    ),
    "evaluate generation": ("evaluate_generation", "EvaluateGeneration", "metrics of a model's samples"),
    "study tokenizers": ("study_tokenizers", "StudyTokenizers", "compare kinds of codes with the same transformer"),
    "study scaling": ("study_scaling", "StudyScaling", "power laws of the loss over size and compute"),
    "evaluate likelihood": (
        "evaluate_likelihood",
        "EvaluateLikelihood",
        "likelihood of training and held-out pictures",
    ),
    "bench sample": ("bench_sample", "BenchSample", "time sampling, beside what this machine allows"),
    "bench train": ("bench_train", "BenchTrain", "time a training step of the transformer"),
    "bench tokenizer": ("bench_tokenizer", "BenchTokenizer", "time encoding and decoding"),
    "convert": ("convert", "Convert", "the public release's files to ours, or back"),
    "push": ("push", "Push", "upload a model to the hub, with a model card"),
    "web": ("web", "Web", "the browser studio"),
    "presets": ("presets", "Presets", "list the named models"),
}

INTERRUPTED = 128 + 2  # as shells report SIGINT
READER_GONE = 128 + 13  # and SIGPIPE
OUT_OF_REACH = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
LONGEST_SHOWN = 200  # of a path that cannot be used

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
WORDING = (
    (r"^Error parsing ([^:]+): invalid literal for int\(\) with base 10: ", r"\1: expected an integer, got "),
    (r"^Error parsing ([^:]+): could not convert string to float: ", r"\1: expected a number, got "),
    (r"^Error parsing ([^:]+): Could not find valid parse for arguments: \[(.*)\]", r"\1: expected numbers, got \2"),
    (r"^Error parsing ", ""),
    (r"^Missing value for argument '([^']+)'\..*$", r"\1: expected a value, got none"),
    (
        r"^invalid choice ('.*') for argument '([^']+)'\. Expected one of \((.*?),?\) ?\.$",
        r"\2: expected one of \3, got \1",
    ),
    (r"\.$", ""),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `nextscale` with these arguments (default: the process's own).

    Returns the exit status: 0; 2 after a mistake of the user's, told in one line on stderr, and when the output could
    not be written; 130 when interrupted; 141 when whoever read the output went away.
    """
    with tolerant() as output:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        if output.failed is None or status:
            return status
        print(f"nextscale: error: cannot write to stdout: {output.failed.strerror}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    """The exit status."""
    try:
        _dispatch(arguments)
        sys.stdout.flush()
    except InputError as error:
        print("nextscale: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nextscale: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        discard(sys.stdout)
        return READER_GONE
    except OSError as error:  # even asking whether there is a file raises these
        if error.errno not in OUT_OF_REACH:
            raise
        place = "the disk" if error.filename is None else _short(str(error.filename))
        print(f"nextscale: error: cannot use {place}: {error.strerror}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        print(f"nextscale: error: {_lack_of_memory(error)}", file=sys.stderr)
        return 2
    return 0


def _is_lack_of_memory(error: Exception) -> bool:
    """Python, NumPy and accelerators have an exception of their own for it; torch has none on CPUs."""
    return isinstance(error, MemoryError) or re.search(r"can't allocate memory|out of memory", str(error)) is not None


def _lack_of_memory(error: Exception) -> str:
    asked = re.search(r"tried to allocate [\d.]+ \w+|allocate [\d.]+ \w+ for an array", str(error), re.IGNORECASE)
    told = f" ({asked[0]})" if asked else ""
    return f"expected enough memory, got too little{told}; fewer pictures at a time, as with --batch, take less"


def _short(path: str) -> str:
    return path if len(path) <= LONGEST_SHOWN else f"{path[:LONGEST_SHOWN]}..."


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(COMMANDS))
    elif arguments[0] == "--version":
        from nextscale import __version__

        print(f"nextscale {__version__}")
    elif _group(arguments[0]) and arguments[1:2] in (["-h"], ["--help"]):
        print(_help(_group(arguments[0])))
    else:
        command = parse(arguments)
        if command is not None:
            command.run()


def _help(names: Iterable[str]) -> str:
    """What `nextscale --help` prints, for these commands."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{COMMANDS[name][2]}" for name in names]
    return "\n".join(
        [
            "usage: nextscale COMMAND [OPTIONS]",
            "",
            "Visual autoregressive modelling: images generated coarse to fine.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            f"  {'-h, --help':<{width}}this text; after a command, its options",
            f"  {'--version':<{width}}the version",
        ]
    )


def _group(word: str) -> list[str]:
    """The commands of two words that begin with this one."""
    return [name for name in COMMANDS if name.startswith(f"{word} ")]


def _find(arguments: list[str]) -> tuple[str, list[str]]:
    """The command's name and what follows it. Raises `InputError`, with the nearest name, when there is none."""
    for words in (1, 2):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return name, arguments[words:]
    first, both = arguments[0], " ".join(arguments[:2])
    close = get_close_matches(both, COMMANDS, n=1) or get_close_matches(first, COMMANDS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    if group := _group(first):
        raise InputError(f"command: expected {' or '.join(group)}, got {both!r}{hint if both != first else ''}")
    raise InputError(f"command: expected one of {', '.join(COMMANDS)}, got {first!r}{hint}")


def parse(arguments: list[str]) -> Any:
    """The command that these arguments call, as its dataclass; None when its help was wanted and has been printed.

    Raises `InputError` for what does not parse.
    """
    import tyro

    from nextscale.cli.options import REGISTRY, expanded

    name, arguments = _find(arguments)
    module, kind, _ = COMMANDS[name]
    command = getattr(import_module(f"nextscale.cli.{module}"), kind)
    _refuse_empty(arguments)
    _refuse_repeats(arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed, unknown = tyro.cli(
                command,
                prog=f"nextscale {name}",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
                return_unknown_args=True,
                registry=REGISTRY,
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        raise InputError(f"{_one_line(complaint.getvalue())}; see nextscale {name} --help") from None
    if unknown:
        raise InputError(f"{_unknown(command, unknown)}; see nextscale {name} --help")
    _refuse_shapes(parsed)
    return expanded(parsed)


def _refuse_empty(arguments: list[str]) -> None:
    """What an unset variable of the shell leaves behind; as a path it would be the directory that one is in."""
    before = "argument"
    for word in arguments:
        before = word.partition("=")[0] if word.startswith("--") else before
        if not word or (word.startswith("--") and word.endswith("=")):
            raise InputError(f"{before}: expected a value, got an empty one")
        if "\0" in word:
            raise InputError(f"{before}: expected text, got a zero byte in it")


def _refuse_shapes(command: Any) -> None:
    """A device of torch's on which nothing is computed is of use in Python alone."""
    if getattr(command, "device", "").partition(":")[0] == "meta":
        raise InputError("--device: expected one that computes, such as cpu or cuda, got meta")


def _refuse_repeats(arguments: list[str]) -> None:
    """tyro lets the last of two win in silence."""
    given = Counter(word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--"))
    for option, times in given.items():
        if times > 1:
            raise InputError(f"{option}: expected once, with all its values after it, got it {times} times")


def _unknown(command: type, words: list[str]) -> str:
    """What to say about arguments that the command does not have."""
    word = next((word for word in words if word.startswith("-")), words[0]).partition("=")[0]
    if not word.startswith("-"):
        return f"unexpected argument {word!r}"
    names = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(command)]
    if word.replace("_", "-") in names:
        return f"unexpected {word}: {word.strip('-').upper()} is given without it"
    close = get_close_matches(word.replace("_", "-"), names, n=1)
    return f"unknown option {word}" + (f"; did you mean {close[0]}?" if close else "")


def _one_line(box: str) -> str:
    """The first paragraph of tyro's box of complaint, as a line that says what was expected and what was given."""
    rows = [row.strip("│ ") for row in ESCAPES.sub("", box).splitlines() if row.strip()][1:]  # without the title
    line = " ".join(takewhile(_is_text, dropwhile(lambda row: not _is_text(row), rows)))
    for pattern, replacement in WORDING:
        line = re.sub(pattern, replacement, line)
    return line


def _is_text(row: str) -> bool:
    """Whether a row is more than a rule or the box's floor, drawn in Unicode or in ASCII."""
    return bool(row.strip("─╰╯-"))
