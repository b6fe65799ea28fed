"""What people upload: files judged by their content before they are decoded, with a word on what was done to them.

Knows nothing of the page. A picture comes out as upright RGB; what is refused raises `InputError` with the reason.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from nextscale import images
from nextscale.errors import InputError

MOST_BYTES = 16 * 2**20  # of a file
CONVERTED = ("CMYK", "LAB", "YCbCr", "HSV")  # colours that may look a little different
MOST_PIXELS = 40_000_000  # by its header: 120 MB once it is decoded


@dataclass(frozen=True)
class Upload:
    """A picture that was accepted."""

    picture: Image.Image
    """Upright 8-bit RGB."""
    remarks: tuple[str, ...] = ()
    """What a person should know was done to it."""


def read(file: str | Path | None) -> Upload:
    """The picture in an uploaded file.

    Raises `InputError` for none, for more than `MOST_BYTES` or `MOST_PIXELS`, and for what `images.open_rgb` refuses.
    """
    path = _checked(file)
    return _read(path, path.name)


def decoded(content: bytes, name: str) -> Upload:
    """The picture in bytes that were sent; see `read`."""
    if len(content) > MOST_BYTES:
        raise InputError(f"expected at most {MOST_BYTES // 2**20} MiB, got {len(content) / 2**20:.0f} MiB in {name}")
    return _read(io.BytesIO(content), name)


def _read(source: Path | io.BytesIO, name: str) -> Upload:
    try:
        height, width = images.stored_size(source)
        if height * width > MOST_PIXELS:
            raise InputError(f"expected at most {MOST_PIXELS:,} pixels, got {width:,} × {height:,} in {name}")
        return Upload(images.open_rgb(source), tuple(_remarks(images.stored_kind(source))))
    except images.PictureError as error:
        raise InputError(f"expected a picture, got {name}: {error.reason}".replace(str(source), name)) from None


def _checked(file: str | Path | None) -> Path:
    if file is None:
        raise InputError("expected a picture, got none: drop a file first")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"expected a picture, got {path.name}, which is no file")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(
            f"expected at most {MOST_BYTES // 2**20} MiB, got {path.stat().st_size / 2**20:.0f} MiB in {path.name}"
        )
    return path


def _remarks(kind: images.Kind) -> list[str]:
    return [
        *(["the first of its frames was taken"] if kind.animated else []),
        *([f"its colours were converted from {kind.mode} to RGB"] if kind.mode in CONVERTED else []),
        *(["transparency was laid on white"] if kind.transparent else []),
    ]
