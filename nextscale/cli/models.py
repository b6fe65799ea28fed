"""What `--model` may be: a directory of ours, files of the public release, or a hub name."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from nextscale.cli import memory
from nextscale.cli.options import SamplingPrecision
from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.pipeline import Pipeline
    from nextscale.tokenizer import MultiScaleVQVAE


def load(
    model: Sequence[str],
    depth: int | None,
    *,
    device: str,
    precision: SamplingPrecision,
    text_encoder: str | None = None,
) -> Pipeline:
    """The pipeline that `--model` and `--depth` name; the default model when there is neither.

    Where its frozen text encoder has moved, `text_encoder` says whither.
    """
    with memory.imports():
        from nextscale import official
        from nextscale.pipeline import Pipeline

    with notes():
        if files := release_files(model, depth):
            if text_encoder is not None:
                raise InputError("--text-encoder: expected with a model that reads text, got the release's files")
            return official.load(*files, device=device, precision=precision)
        place = model[0] if model else None
        return Pipeline.load(place, device=device, precision=precision, text_encoder=text_encoder)


def called(model: Sequence[str]) -> str:
    """What `--model` names, in one word or two."""
    return " ".join(model) or "default"


def load_tokenizer(
    model: Sequence[str], run: Path | None, depth: int | None, scales: Sequence[str] = ()
) -> MultiScaleVQVAE:
    """The tokenizer of a run or of a file of the release, or of the model that `--model` and `--depth` name."""
    if run is None and not (len(model) == 1 and Path(model[0]).is_file()):
        if scales:
            raise InputError(f"--scales: expected with a file of a tokenizer alone, got {' '.join(model) or 'no file'}")
        return load(model, depth, device="cpu", precision="fp32").tokenizer
    return tokenizer_alone(Path(model[0]) if run is None else run, scales)


def tokenizer_alone(path: Path, scales: Sequence[str] = ()) -> MultiScaleVQVAE:
    """The tokenizer of a directory of ours, or in the release's format (file or folder), whose maps may be told.

    `default` is the one of the package, unless there is a folder of that name.
    """
    from nextscale import hub, official
    from nextscale.files.checkpoint import CONFIG
    from nextscale.tokenizer import MultiScaleVQVAE

    path = hub.DEFAULT_MODEL if path == Path("default") and not path.exists() else path
    if path.is_file():
        with notes():
            return official.load_tokenizer(path, scales=sides(scales))
    if (path / hub.RELEASE_TOKENIZER).is_file() and not (path / CONFIG).exists():
        return tokenizer_alone(path / hub.RELEASE_TOKENIZER, scales)
    if scales:
        raise InputError(f"--scales: expected with a file in the release's format, got {path}, which stores them")
    return MultiScaleVQVAE.load(path)


def sides(words: Sequence[str]) -> list[int | tuple[int, int]] | None:
    """What `--scales 1 2 3 4x6` tells; None when it was not given."""
    return [_sides(word) for word in words] or None


def _sides(word: str) -> int | tuple[int, int]:
    """`3` or `4x6`."""
    try:
        height, times, width = word.partition("x")
        return (int(height), int(width)) if times else int(height)
    except ValueError:
        raise InputError(f"--scales: expected sides such as 3 or 4x6, got {word!r}") from None


@contextmanager
def notes() -> Iterator[None]:
    """What is warned of inside, as lines on stderr, each once."""
    with warnings.catch_warnings(record=True, action="always") as told:
        yield
    for text in dict.fromkeys(str(warning.message) for warning in told):
        print("nextscale: note:", text, file=sys.stderr)


def with_sampler(pipe: Pipeline, settings: Sequence[str]) -> Pipeline:
    """The same, painting in the way that `--sampler` asks for."""
    from nextscale.rivals.orders import settings_of
    from nextscale.training import recipes

    if settings and not settings_of(pipe.sampler):
        order = pipe.transformer.order
        raise InputError(f"--sampler: expected with a model whose sampler has settings, got one of order {order}")
    try:
        pipe.sampler = recipes.changed(pipe.sampler, settings) if settings else pipe.sampler
    except InputError as error:
        raise InputError(f"--sampler: {str(error).removeprefix('--set: ')}") from None
    return pipe


def class_called(pipe: Pipeline, word: str) -> int:
    """The number of the class that `--label` names; a number where no class is called so.

    Where a class is called like the number of another, that it was taken is noted on stderr. Raises `InputError` where
    it is neither.
    """
    number = int(word) if re.fullmatch("-?[0-9]{1,9}", word) else None
    if number is not None and word not in pipe.classes:
        return pipe.label(number)
    label = pipe.label(word)
    if number not in (None, label) and number in range(len(pipe.classes)):
        other = f"--label-index {number} is the one called {pipe.classes[number]}"
        print(
            f"nextscale: note: --label {word} is the class called {word}, of number {label}; {other}", file=sys.stderr
        )
    return label


def note_top_k(pipe: Pipeline, asked: Sequence[int | tuple[int, ...]], usual: int) -> None:
    """Say where `--top-k` is beyond the codebook, unless it is the usual value: all codes are taken then."""
    codes = pipe.tokenizer.config.codebook_size
    values = (value if isinstance(value, tuple) else (value,) for value in asked)
    for top_k in dict.fromkeys(chain.from_iterable(values)):
        if top_k > codes and top_k != usual:
            print(f"nextscale: note: --top-k {top_k}: the codebook has {codes} codes, all are taken", file=sys.stderr)


def check_tokenizer(model: Sequence[str], run: Path | None, depth: int | None) -> None:
    """Raise `InputError` when `--tokenizer` contradicts the options that name a model."""
    if model and run is not None:
        raise InputError(f"expected --model or --tokenizer, got both {' '.join(model)} and {run}")
    if depth is not None and run is not None:
        raise InputError("--depth: expected with --model, got it with --tokenizer")


def is_tokenizer(model: str) -> bool:
    """Whether this is a directory of ours that holds a tokenizer and no transformer."""
    from nextscale.files import checkpoint

    if not (Path(model) / checkpoint.CONFIG).is_file():
        return False
    values = checkpoint.read_json(Path(model) / checkpoint.CONFIG)
    return isinstance(values, dict) and "tokenizer" in values and "transformer" not in values


def release_files(model: Sequence[str], depth: int | None) -> tuple[Path, Path] | None:
    """Tokenizer and transformer of the public release, if that is what is named; one file may hold both.

    Raises `InputError` for too many values, a depth where there is nothing to choose, or none where there is.
    """
    if len(model) > 2:
        raise InputError(f"--model: expected a directory, a hub name, or two files, got {len(model)} values")
    if depth is not None and len(model) != 1:
        raise InputError(f"--depth: expected with one folder or hub name of the release's files, got {len(model)}")
    if len(model) == 2:
        return Path(model[0]), Path(model[1])
    if not model:
        return None
    path = Path(model[0])
    if depth is None and path.is_file():
        return path, path
    from nextscale import hub

    depth = _only_depth(model[0]) if depth is None else depth
    if depth is None:
        return None
    if hub.is_name(path):
        return hub.release(model[0], depth)
    return path / hub.RELEASE_TOKENIZER, path / hub.RELEASE_TRANSFORMER.format(depth=depth)


def _only_depth(model: str) -> int | None:
    """That of the release's transformer in a place with no model of ours; None where there is none.

    Raises `InputError`, naming them, where there are several.
    """
    from nextscale import hub
    from nextscale.files.checkpoint import CONFIG

    folder = _cached(model) if hub.is_name(model) else Path(model)
    if folder is None or not folder.is_dir() or (folder / CONFIG).exists():
        return None
    pattern = re.escape(hub.RELEASE_TRANSFORMER).replace(re.escape("{depth}"), r"(\d+)")
    found = (re.fullmatch(pattern, file.name) for file in folder.iterdir())
    depths = sorted(int(match[1]) for match in found if match)
    if len(depths) > 1:
        told = ", ".join(map(str, depths))
        raise InputError(f"--depth: expected one of {told}, the release's transformers in {model}, got none")
    return depths[0] if depths else None


def _cached(name: str) -> Path | None:
    """The folder of a hub repository that has the release's tokenizer, if that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    from nextscale import hub

    file = try_to_load_from_cache(name, hub.RELEASE_TOKENIZER)
    return Path(file).parent if isinstance(file, str) else None
