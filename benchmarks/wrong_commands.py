"""More than a thousand wrong command lines: each must end with status 2 and one line that says what was expected.

    python benchmarks/wrong_commands.py [--only TEXT] [--pairs 200] [--patience 30]

Every option of every command takes every wrong value of its type and name, alone and in random pairs, beside a command
that works on models of a few thousand weights. What turns out to be a sensible value may also do what was asked. Told
are the lines that end in another way: an exception, another status, no sentence, or more time than the patience; the
exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import types
import typing
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from nextscale.cli import COMMANDS, INTERRUPTED, main

LONG = "x" * 300
# A command that works, in a second or so; each option of a case comes behind it.
WORKING: dict[str, dict[str, tuple[str, ...]]] = {
    "demo": {"out": ("new/demo",), "minutes": ("0.001",)},
    "sample": {"model": ("model",), "label": ("0",), "out": ("new/samples",)},
    "edit": {"pictures": ("picture.png",), "model": ("model",), "box": ("0,0,4,4",), "out": ("new/edits",)},
    "reconstruct": {"pictures": ("picture.png",), "model": ("model",), "out": ("new/strips",)},
    "train tokenizer": {"data": ("pictures",), "steps": ("1",), "batch": ("2",), "out": ("new/tokenizer",)},
    "train transformer": {
        "data": ("pictures",),
        "tokenizer": ("tokenizer",),
        "steps": ("1",),
        "batch": ("2",),
        "out": ("new/transformer",),
    },
    "encode": {"data": ("pictures",), "tokenizer": ("tokenizer",), "out": ("new/tokens",)},
    "evaluate reconstruction": {"model": ("model",), "data": ("pictures",), "split": ("train",)},
    "inspect": {"pictures": ("picture.png",), "model": ("model",), "out": ("new/inspections",)},
    "evaluate likelihood": {"model": ("model",), "data": ("pictures",), "count": ("4",)},
    "evaluate generation": {"model": ("model",), "reference": ("pictures",), "count": ("8",), "keep": ("8",)},
    "study tokenizers": {
        "data": ("pictures",),
        "preset": ("emoji-32",),
        "steps": ("1", "1"),
        "only": ("fsq",),
        "dropout": ("0",),
        "count": ("8",),
        "views": ("1",),
        "depth": ("1",),
        "out": ("new/study",),
    },
    "study scaling": {"points": ("sizes.csv",), "out": ("new/scaling",)},
    "bench sample": {"preset": ("emoji-32",), "batch": ("1",), "repeats": ("1",)},
    "bench train": {"preset": ("emoji-32",), "batch": ("1",), "repeats": ("1",)},
    "bench tokenizer": {"preset": ("emoji-32",), "batch": ("1",), "repeats": ("1",)},
    "convert": {"model": ("model",), "out": ("new/converted",)},
    "push": {"name": ("owner/new",), "model": ("model",), "samples": ("1",), "out": ("new/page",)},
    "presets": {},
}
WALKED = tuple(command for command in COMMANDS if command != "web")  # where a value is right, that serves for ever
POSITIONAL = {"edit": "pictures", "inspect": "pictures", "encode": "data", "reconstruct": "pictures", "push": "name"}

WHOLE = ("-1", "0", "99999999999", "9" * 40, "1.5", "many", "1e3", "nan", "")
NUMBER = ("-1", "0", "nan", "inf", "-inf", "1e400", "much", "1,5", "")
WORD = ("", "Emoji", "-1", LONG, "../..", "%s", "a=b", "🦆", "none ")
PLACE = ("", "nowhere", "nowhere/at/all", "text.txt", "empty.png", "folder", LONG, "/proc/none/x", "text.txt/x", ".")
SOURCE = (
    *PLACE,
    "broken",
    "cut.tar",
    "classless.tar",
    "digits.tar",
    "many/*.tar",
    "x-{9..1}.tar",
    "cut.zip",
    "cut.parquet",
    "*.arrow",
    "twice.zip",
    "model",
    "tokens",
)
MODEL = (
    *(*PLACE, "model-cut", "model-empty", "model-list", "model-huge", "model-other", "tokenizer", "pictures", "tokens"),
    *("vae.pth", "text.pth", "owner/name", "release"),
)
NETWORK = (
    *PLACE,
    "owner/name",
    "vae.pth",
    "text.pth",
    "model/tokenizer.safetensors",
    "os:path",
    "nowhere:f",
    ":",
    "a:b:c",
)
BY_NAME: dict[str, tuple[str, ...]] = {
    "data": SOURCE,
    "reference": (*SOURCE, "text.npz", "pictures.npz"),
    "classifier_data": SOURCE,
    "model": MODEL,
    "tokenizer": MODEL,
    "init": MODEL,
    "plateau": (*MODEL, "new"),
    "features": NETWORK,
    "classifier": NETWORK,
    "perceptual": NETWORK,
    "backbone": NETWORK,
    "semantic": NETWORK,
    "pictures": (*PLACE, "cut.png", "pictures", "picture.png text.txt"),
    "labels": (*PLACE, "labels-long.csv", "labels-short.csv", "labels-bytes.csv", "None"),
    "text": (*PLACE, "owner/name", "model", "Embedded", "embedded none"),
    "text_encoder": (*PLACE, "owner/name", "model"),
    "clip": (*PLACE, "owner/name", "model"),
    "prompt": ("", "a red heart", "a" * 5000),
    "prompts_file": (*PLACE, "labels-bytes.csv"),
    **dict.fromkeys(("guidance", "top_p", "temperature", "step_guidance"), (*NUMBER, "1,2,3", "1,nan,1", ",", "1,,1")),
    "top_k": (*WHOLE, "1,2,3", "1,2.5,3", ",", "1,-1,1"),
    "guidance_until": (*WHOLE, "3", "4"),
    "rerank_by": ("", "math:pi", "math:sqrt", "nowhere:f", ":", "a:b:c", "text.txt", "os:path"),
    "rerank": (*WHOLE[:3], "2"),
    "reach": (*WHOLE, "1", "2,1"),
    "captions": (*PLACE, "labels-long.csv", "captions-short.csv", "labels-bytes.csv", "own", "None"),
    "classes": (*PLACE, "labels-bytes.csv", "classes.txt"),
    "name": ("", "new", "a/b/c", "owner/na me", "-1", f"owner/{LONG}", "../.."),
    "figures": (*PLACE, "labels-bytes.csv", "model/config.json", "tokens/tokens.json"),
    "about": (*PLACE, "labels-bytes.csv"),
    "license": ("", "My own", LONG.upper(), "mit apache-2.0"),
    "size": ("4x4", "0x0", "8", "8x8x8", "-8x8", "7x9", "99999999x99999999", "x", "8X8", ""),
    "scales": ("0", "4 2", "1 2 x", "1 2 4x", "99999", "1x1x1", "-1", ""),
    "label": (*WORD, "9", "99999999999999999999", "1.5", "a" * 5000),
    "device": ("abacus", "mps", "meta", "cuda:99", "cpu:9", "xpu", "privateuseone", "hip", "CPU", "cuda:-1", ""),
    "preset": (*WORD, "emoji", "var-d99", "emoji-32 emoji-64"),
    "set": (
        *(
            "",
            "=",
            "batch",
            "batch=",
            "x=1",
            "optimization.batch=0",
            "optimization.batch=99999999999",
            "objective.l2=nan",
        ),
        *("optimization.betas=1", "optimization.betas=0.9,x", "architecture.scales=2,1", "architecture.channels=33"),
        *("architecture.quantizer=vq", "architecture.quantizer=fsq", "architecture.bits=99", "architecture.groups=2,3"),
        *("architecture.activation=silu", "architecture.logit_cap=-1", "architecture.feed_forward=0"),
        *("architecture.quantizer=sphere architecture.code_channels=1", "architecture.quantizer=sphere"),
        *("architecture.quantizer=bsq architecture.bits=4 codebook.start=kmeans", "self_correction=2"),
        *("architecture.multipliers=", "architecture.codebook_size=99999999999", "optimization.learning_rate=inf"),
        *(
            "optimization.accumulate=3",
            "codebook.start=never",
            "optimization.batch=2 optimization.batch=4",
            "a.b.c.d=1",
        ),
        *("optimization.optimizer=sgd", "optimization.optimizer=muon", "optimization.muon_rate=1"),
        *("optimization.clip=nan", "optimization.learning_rate=1e30", "average=2", "progressive=nan", "seed=1"),
    ),
    "sampler": ("", "=", "steps", "steps=0", "steps=many", "steps=3", "annealing=-1", "solver=none", "a.b=1"),
    "mask": (*PLACE, "cut.png", "pictures"),
    "box": ("", "0", "0,0,0,0", "0,0,99999999999,4", "4,4,0,0", "a,b,c,d", "0,0,4,4,4", "-1,0,4,4"),
    "expand": ("", "0", "0,0,0,0", "99999999999,0,0,0", "-4,0,0,0", "a,b,c,d"),
    "like": (*PLACE, "cut.png", "picture.png"),
    "json": (*PLACE, "/dev/full", "folder/x.json/y"),
    "list_broken": (*PLACE, "/dev/full"),
    "out": (
        *PLACE,
        "/dev/full",
        "pictures",
        "pictures/inside",
        "model",
        "tokens",
        "samples",
        "x.jpg",
        "x.xyz",
        "x.pdf",
    ),
}
# More of these is more work, which nobody forbids; such a line is interrupted.
WORK = {"steps", "minutes", "count", "per_class_count", "repeats", "keep", "threads", "seeds", "views"}


@dataclass(frozen=True)
class Case:
    """A command, and the options that take wrong values."""

    command: str
    changes: tuple[tuple[str, str], ...]
    """Names of fields with what is typed for them, several values with blanks between."""

    @property
    def words(self) -> list[str]:
        """As the program gets them."""
        options = {**WORKING[self.command], **{name: _typed(value) for name, value in self.changes}}
        words = self.command.split()
        for name, values in options.items():
            words += values if POSITIONAL.get(self.command) == name else [f"--{name.replace('_', '-')}", *values]
        return words

    @property
    def may_go_on(self) -> bool:
        """Whether the values only ask for more work than anyone would wait for."""
        return any(name in WORK for name, _ in self.changes)


def _typed(value: str) -> tuple[str, ...]:
    return tuple(value.split(" ")) if value.strip() else (value,)


# ---- the grammar -----------------------------------------------------------------------------------------------------


def cases(*, pairs: int = 0, seed: int = 0) -> list[Case]:
    """Every wrong value of every option alone, then so many random pairs within a command."""
    single = [Case(command, ((name, value),)) for command in WALKED for name, value in _changes(command)]
    drawn = random.Random(seed)
    return single + [_pair(drawn.choice(single), drawn) for _ in range(pairs)]


def _pair(case: Case, drawn: random.Random) -> Case:
    others = [change for change in _changes(case.command) if change[0] != case.changes[0][0]]
    return dataclasses.replace(case, changes=(*case.changes, drawn.choice(others))) if others else case


def _changes(command: str) -> Iterator[tuple[str, str]]:
    """Options of a command with wrong values, by their names and types."""
    module, kind, _ = COMMANDS[command]
    hints = typing.get_type_hints(getattr(import_module(f"nextscale.cli.{module}"), kind))
    for name, hint in hints.items():
        for value in BY_NAME.get(name, _by_type(hint)):
            yield name, value


def _by_type(hint: Any) -> tuple[str, ...]:
    """What is wrong for an option of this type, or of one of these."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple):
        return _by_type(typing.get_args(hint)[0])
    if typing.get_origin(hint) is Literal:
        return WORD
    return {int: WHOLE, float: NUMBER, bool: ("yes", "")}.get(hint, PLACE if hint is Path else WORD)


# ---- the world that they run in --------------------------------------------------------------------------------------


@contextlib.contextmanager
def world(directory: Path) -> Iterator[None]:
    """Inside, there is a directory with small models, data, and what is broken in the usual ways; presets are small."""
    from miniature import pipeline

    from nextscale import features, presets

    get, pipe = presets.get, pipeline(["cat", "dog"])
    models = {"tokenizer": pipe.tokenizer.config, "transformer": pipe.transformer.config}
    with (
        mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}),  # a name is looked for in the cache alone
        mock.patch.object(presets, "get", lambda name: dataclasses.replace(get(name), **models)),
        mock.patch.object(features.FeatureNetwork, "side", 32),
        contextlib.chdir(directory),
    ):
        _models(pipe)
        _data()
        yield


@contextlib.contextmanager
def copied(directory: Path) -> Iterator[None]:
    """Inside, the process is in a copy, so that no line finds what another has left."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(directory, Path(folder) / "copy")
        with contextlib.chdir(copy):
            yield


def _models(pipe: Any) -> None:
    from nextscale.release import convert, files

    pipe.save("model")
    pipe.tokenizer.save("tokenizer")
    for name in ("cut", "empty", "list", "huge", "other"):
        pipe.save(f"model-{name}")
    weights = Path("model-cut/transformer.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    Path("model-empty/tokenizer.safetensors").write_bytes(b"")
    Path("model-list/config.json").write_text("[]")
    config = json.loads(Path("model/config.json").read_text())
    Path("model-huge/config.json").write_text(json.dumps(config | {"classes": ["cat"] * 10**5}))
    config["transformer"]["codebook_size"] = 99
    Path("model-other/config.json").write_text(json.dumps(config))
    Path("text.pth").write_text("no weights")
    Path("release").mkdir()
    files.write(Path("vae.pth"), convert.exported(pipe.tokenizer))
    for depth in (16, 20):
        files.write(Path(f"release/var_d{depth}.pth"), convert.exported(pipe.transformer))


def _data() -> None:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 12, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        folder = Path("pictures") / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    Path("picture.png").write_bytes(Path("pictures/cat/0.png").read_bytes())
    Path("cut.png").write_bytes(Path("picture.png").read_bytes()[:80])
    np.savez("pictures.npz", noise)
    for name in ("folder", "broken", "tokens", "samples", "many"):
        Path(name).mkdir()
    for number in range(4):
        Path(f"broken/{number}.png").write_bytes(b"no picture")
    for name in ("text.txt", "text.npz", "classes.txt"):
        Path(name).write_text("text")
    Path("empty.png").touch()
    Path("tokens/tokens.json").write_text('{"settings": {}, "finished": true}')
    Path("samples/0-ant-seed0.png").write_bytes(Path("picture.png").read_bytes())
    for name, told in (("long", f"{LONG}.png,1"), ("short", "0.png"), ("bytes", "\udcff.png,1")):
        Path(f"labels-{name}.csv").write_bytes(f"file,label\n{told}\n".encode("utf-8", "surrogateescape"))
    Path("captions-short.csv").write_text("file,caption\n0.png\n")
    Path("sizes.csv").write_text("parameters,loss\n" + "".join(f"{10**k},{3 + 9 / k}\n" for k in range(5, 10)))
    _tar("classless.tar", {"0.png": b"no picture", "0.cls": b""})
    _tar("digits.tar", {f"{n}.{kind}": b"1" * 5000 for n in range(4) for kind in ("png", "cls")})
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile("twice.zip", "w") as archive:
        for name in ("0.png", "1.png", "1.png"):
            archive.write("picture.png", name)
    Path("cut.npy").write_bytes(b"\x93NUMPY")
    Path("cut.parquet").write_bytes(b"PAR1 and nothing else")
    Path("cut.zip").write_bytes(Path("twice.zip").read_bytes()[:300])
    Path("cut.tar").write_bytes(Path("digits.tar").read_bytes()[:3000])


def _tar(name: str, files: dict[str, bytes]) -> None:
    with tarfile.open(name, "w") as tar:
        for inside, content in files.items():
            info = tarfile.TarInfo(inside)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


# ---- running ---------------------------------------------------------------------------------------------------------


def complaint(case: Case, *, patience: float) -> str | None:
    """What is wrong with how a line ends; None if it ends as it should."""
    output, errors = io.StringIO(), io.StringIO()
    try:
        with _interrupted(patience), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = main(case.words)
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        told = " ".join(str(error).split())[:160]
        return f"{type(error).__name__}: {told} ({Path(frame.filename).name}, line {frame.lineno})"
    if status == INTERRUPTED:
        return None if case.may_go_on else f"not through after {patience:g} s"
    lines = [line for line in errors.getvalue().splitlines() if not line.startswith("nextscale: note: ")]
    return None if status == 0 and not lines else _unlike_a_sentence(status, lines)


def _unlike_a_sentence(status: int, lines: Sequence[str]) -> str | None:
    if status != 2 or len(lines) != 1:
        return f"status {status} and {len(lines)} lines: {' / '.join(lines)[:160]}"
    told = lines[0].removeprefix("nextscale: error: ")
    if told == lines[0] or len(told.split()) < 4 or len(told) > 600:
        return f"no sentence: {lines[0][:700]}"
    wanted = re.search(r"expect|cannot|unknown|unexpected|holds|diverged|is in use|made by|no model|fit", told)
    return None if wanted else f"says not what was expected: {told[:300]}"


@contextlib.contextmanager
def _interrupted(seconds: float) -> Iterator[None]:
    """Ctrl-C after so many seconds, and every second from then on."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", help="lines that this stands in")
    options.add_argument("--pairs", type=int, default=200, help="random pairs of wrong values")
    options.add_argument("--patience", type=float, default=30, help="seconds a line may take")
    options.add_argument("--memory", type=float, default=8, help="GB that the program may take")
    options.add_argument("--slow", type=float, default=1e9, help="tell lines that took longer, in seconds")
    given = options.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (int(given.memory * 1e9),) * 2)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background without one
    chosen = [case for case in cases(pairs=given.pairs) if given.only in shlex.join(case.words)]
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, world(Path(folder)):
        for case in chosen:
            start = time.monotonic()
            with copied(Path(folder)):
                wrong = complaint(case, patience=2 if case.may_go_on else given.patience)
            counts[case.command] += 1
            if wrong is not None:
                counts["wrong"] += 1
                print(f"nextscale {shlex.join(case.words)[:300]}\n    {wrong}", flush=True)
            elif (took := time.monotonic() - start) > given.slow:
                print(f"{took:.1f} s: nextscale {shlex.join(case.words)[:200]}", flush=True)
    for command in WALKED:
        print(f"{command:<26}{counts[command]:>6}")
    print(f"{len(chosen)} command lines, {counts['wrong']} of them end in another way than a sentence")
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(run())
