"""Whose pictures a folder holds: each PNG that `sample` writes names its model; those of two are not mixed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.pipeline import Pipeline

MODEL = "nextscale-model"  # the text of a PNG that names it


def mark(pipe: Pipeline) -> Mapping[str, str]:
    """A text for PNGs that is a model's own, in every precision: of weights that are always float32."""
    from nextscale.files.checkpoint import fingerprint

    transformer = pipe.transformer
    weights = {
        "codes": pipe.tokenizer.quantizer.codebook.weight,
        "start": transformer.start,
        "classes": transformer.class_embedding.weight,
    }
    return {MODEL: fingerprint(weights)}


def refuse_others(folder: Path, marked: Mapping[str, str]) -> None:
    """Raise `InputError` where a folder holds a picture of another model; those that name none may stay."""
    from PIL import Image

    for file in sorted(folder.glob("*-seed*.png")):
        try:
            with Image.open(file) as picture:  # the texts stand before the pixels, which are not decoded
                model = picture.info.get(MODEL)
        except (OSError, SyntaxError, ValueError):
            continue  # not one of ours
        if model not in (None, marked[MODEL]):
            raise InputError(
                f"--out: expected a folder for pictures of this model, got {folder}, which holds {file.name} of "
                "another: choose another --out"
            )
