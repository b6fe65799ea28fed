"""Whose pictures a folder holds: each PNG that `sample` writes names its model; those of two are not mixed."""

from __future__ import annotations

from pathlib import Path

from nextscale.errors import InputError


def refuse_others(folder: Path, fingerprint: str) -> None:
    """Raise `InputError` where a folder holds a picture of another model; those that name none may stay."""
    from nextscale import images
    from nextscale.pipeline import Request

    for file in sorted(folder.glob("*-seed*.png")):
        try:
            model = Request.from_notes(images.notes(file)).model
        except InputError:
            continue  # not one of ours
        if model != fingerprint:
            raise InputError(
                f"--out: expected a folder for pictures of this model, got {folder}, which holds {file.name} of "
                "another: choose another --out"
            )
