"""Laws of uploads: twenty bad ones of different kinds are refused in a line each, and odd ones are told about."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextscale.errors import InputError
from nextscale.web import uploads


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
PNG, JPEG = encoded(NOISE, "PNG"), encoded(NOISE, "JPEG")


def png_of(width: int, height: int) -> bytes:
    """A small file that says it is so large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = (struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


BAD = {
    "empty.png": (b"", "empty"),
    "text.png": (b"hello, world\n" * 9, ""),
    "page.jpg": (b"<!doctype html><html></html>", "a web page"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
    "paper.pdf": (b"%PDF-1.7\n", "a PDF document"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\n", "a Git-LFS pointer"),
    "archive.zip": (b"PK\3\4" + bytes(90), "a zip archive"),
    "archive.gz": (b"\x1f\x8b" + bytes(90), "a gzip archive"),
    "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(90), "a HEIC picture"),
    "vector.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript document"),
    "zeros.png": (bytes(5000), ""),
    "cut.png": (PNG[: len(PNG) // 2], ""),
    "cut.jpg": (JPEG[: len(JPEG) // 2], ""),
    "header.png": (PNG[:20], ""),
    "damaged.png": (PNG[:60] + bytes(40) + PNG[100:], ""),
    "large.png": (png_of(20_000, 3_000), "expected at most 40,000,000 pixels, got 20,000 × 3,000"),
    "bomb.png": (png_of(60_000, 60_000), "pixels"),
    "nothing.png": (png_of(0, 9), ""),
    "floats.tif": (encoded(Image.new("F", (9, 9), 0.5), "TIFF"), "floating-point pixels"),
    "program.exe": (b"MZ" + bytes(200), ""),
    "sound.wav": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(60), ""),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_uploads_are_refused_in_a_line(tmp_path: Path, name: str) -> None:
    """With the name that the person knows, and why; never where the file was put."""
    content, why = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"(?s){re.escape(why)}") as refused:
        uploads.read(tmp_path / name)
    assert name in str(refused.value)
    assert str(tmp_path) not in str(refused.value)
    with pytest.raises(InputError, match="picture"):
        uploads.decoded(content, "picture")


def test_too_large_a_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """However many pixels it has."""
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(uploads.MOST_BYTES + 1)
    with pytest.raises(InputError, match="expected at most 16 MiB"):
        uploads.read(tmp_path / "a.png")
    with pytest.raises(InputError, match="expected a picture, got none"):
        uploads.read(None)


@pytest.mark.parametrize(
    ("make", "remark"),
    [
        (lambda: encoded(NOISE.convert("CMYK"), "JPEG"), "its colours were converted from CMYK to RGB"),
        (
            lambda: encoded(NOISE, "GIF", save_all=True, append_images=[NOISE.rotate(90)]),
            "the first of its frames was taken",
        ),
        (lambda: encoded(Image.new("RGBA", (9, 9), (9, 9, 9, 90)), "PNG"), "transparency was laid on white"),
        (lambda: PNG, None),
    ],
)
def test_what_was_done_to_a_picture_is_told(make: Callable[[], bytes], remark: str | None) -> None:
    """CMYK, animations and transparency; nothing about a plain one."""
    upload = uploads.decoded(make(), "picture")
    assert upload.picture.mode == "RGB"
    assert upload.remarks == ((remark,) if remark else ())
