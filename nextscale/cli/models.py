"""What `--model` may be: a directory of ours, files of the public release, or a hub name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nextscale.cli.options import Precision
from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.pipeline import Pipeline
    from nextscale.tokenizer import MultiScaleVQVAE


def load(model: Sequence[str], depth: int | None, *, device: str, precision: Precision) -> Pipeline:
    """The pipeline that `--model` and `--depth` name; the embedded one when there is neither."""
    from nextscale import official
    from nextscale.pipeline import Pipeline

    if files := release_files(model, depth):
        return official.load(*files, device=device, precision=precision)
    return Pipeline.load(model[0] if model else None, device=device, precision=precision)


def load_tokenizer(model: Sequence[str], run: Path | None, depth: int | None) -> MultiScaleVQVAE:
    """The tokenizer of a run, or of the model that `--model` and `--depth` name."""
    if run is not None:
        from nextscale.tokenizer import MultiScaleVQVAE

        return MultiScaleVQVAE.load(run)
    return load(model, depth, device="cpu", precision="fp32").tokenizer


def check_tokenizer(model: Sequence[str], run: Path | None, depth: int | None) -> None:
    """Raise `InputError` when `--tokenizer` contradicts the options that name a model."""
    if model and run is not None:
        raise InputError(f"expected --model or --tokenizer, got both {' '.join(model)} and {run}")
    if depth is not None and run is not None:
        raise InputError("--depth: expected with --model, got it with --tokenizer")


def release_files(model: Sequence[str], depth: int | None) -> tuple[Path, Path] | None:
    """Tokenizer and transformer of the public release, if that is what is named; a trainer's checkpoint is both.

    Raises `InputError` for too many values, or a depth where there is nothing to choose.
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
    if depth is None:
        return (path, path) if path.is_file() else None
    from nextscale import hub

    if hub.is_name(path):
        return hub.release(model[0], depth)
    return path / hub.RELEASE_TOKENIZER, path / hub.RELEASE_TRANSFORMER.format(depth=depth)
