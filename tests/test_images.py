"""Laws of pictures in and out: what each kind of file becomes, ranges that invert each other, writing that is whole."""

import base64
import contextlib
import io
import math
import os
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from nextscale import images
from nextscale.errors import InputError
from nextscale.images import PictureError


def gradient(*, height: int = 24, width: int = 16) -> Image.Image:
    """A picture whose every corner differs, so that any turn or mirroring shows."""
    down, right = np.mgrid[0:height, 0:width]
    levels = np.stack([down * 255 // (height - 1), right * 255 // (width - 1), np.full_like(down, 60)], axis=-1)
    return Image.fromarray(levels.astype(np.uint8))


def png_bytes(*, width: int, height: int, depth: int, colour: int, rows: bytes, clear: bytes = b"") -> bytes:
    """A PNG written by hand: Pillow itself cannot write 16-bit colour. `clear` is the colour that is transparent."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    transparency = chunk(b"tRNS", clear) if clear else b""
    data = chunk(b"IHDR", header) + transparency + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


# ---- what files become -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_every_common_format_opens_as_rgb(tmp_path: Path, suffix: str) -> None:
    """The mode and the size do not depend on the format of the file."""
    gradient().save(tmp_path / f"picture.{suffix}")
    opened = images.open_rgb(tmp_path / f"picture.{suffix}")
    assert (opened.mode, opened.size) == ("RGB", (16, 24))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_rotation_is_undone(tmp_path: Path, orientation: int) -> None:
    """A picture stored turned or mirrored, with the EXIF tag that says so, opens upright."""
    turn_back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = gradient()
    stored = upright.transpose(turn_back[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("png", "jpg", "webp", "tiff"):
        stored.save(tmp_path / f"turned.{suffix}", exif=exif, quality=100, subsampling=0, lossless=True)
        opened = images.open_rgb(tmp_path / f"turned.{suffix}")
        assert opened.size == upright.size
        difference = np.asarray(opened).astype(int) - np.asarray(upright).astype(int)
        assert abs(difference).max() <= 6


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"])
def test_a_spoilt_camera_note_does_not_spoil_the_picture(tmp_path: Path, exif: bytes) -> None:
    """EXIF data that cannot be parsed is no reason to refuse good pixels, nor to warn."""
    gradient().save(tmp_path / "noted.jpg", exif=exif)
    assert images.open_rgb(tmp_path / "noted.jpg").size == (16, 24)


def test_transparency_shows_white(tmp_path: Path) -> None:
    """Clear pixels are white whatever colour hides in them; half-clear ones are half white."""
    picture = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (200, 0, 0, 255))
    picture.putpixel((2, 0), (0, 0, 0, 128))
    picture.save(tmp_path / "clear.png")
    opened = images.open_rgb(tmp_path / "clear.png")
    assert [opened.getpixel((x, 0)) for x in range(3)] == [(255, 255, 255), (200, 0, 0), (127, 127, 127)]


def test_grey_with_transparency_shows_white(tmp_path: Path) -> None:
    """LA files are flattened like RGBA files."""
    picture = Image.new("LA", (2, 1), (0, 0))
    picture.putpixel((1, 0), (90, 255))
    picture.save(tmp_path / "grey.png")
    opened = images.open_rgb(tmp_path / "grey.png")
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (90, 90, 90)]


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_palette_with_transparency_shows_white(tmp_path: Path, transparency: int | bytes) -> None:
    """A clear palette entry is white, whether one index or a table of alphas names it, in PNG and in GIF."""
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    for suffix in ("png", "gif") if transparency == 0 else ("png",):
        picture.save(tmp_path / f"palette.{suffix}", transparency=transparency)
        opened = images.open_rgb(tmp_path / f"palette.{suffix}")
        assert [opened.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (200, 100, 50)]


def test_one_bit_and_grey_files_open(tmp_path: Path) -> None:
    """Black and white stay 0 and 255; grey is the same in all channels."""
    Image.new("1", (4, 4), 1).save(tmp_path / "bits.png")
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.jpg")
    assert images.open_rgb(tmp_path / "bits.png").getpixel((0, 0)) == (255, 255, 255)
    assert images.open_rgb(tmp_path / "grey.jpg").getpixel((0, 0)) == (77, 77, 77)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    """0, half and full of 16 bits are 0, half and full of 8 bits, in PNG and in both byte orders of TIFF."""
    values = np.array([[0, 257 * 128, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    Image.fromarray(values).save(tmp_path / "little.tiff")
    big = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    big.save(tmp_path / "big.tiff")
    for name in ("deep.png", "little.tiff", "big.tiff"):
        opened = images.open_rgb(tmp_path / name)
        assert [opened.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3], name


def test_sixteen_bit_colour_is_scaled_not_clipped(tmp_path: Path) -> None:
    """Each 16-bit channel keeps its share of the full range."""
    rows = b"\0" + struct.pack(">6H", 0, 257 * 128, 65535, 257 * 10, 257 * 20, 257 * 30)
    (tmp_path / "deep.png").write_bytes(png_bytes(width=2, height=1, depth=16, colour=2, rows=rows))
    opened = images.open_rgb(tmp_path / "deep.png")
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(0, 128, 255), (10, 20, 30)]


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3)])
def test_a_clear_level_of_sixteen_bits_shows_white(colour: int, channels: int) -> None:
    """One grey level or one colour of a PNG may be transparent."""
    rows = b"\0" + struct.pack(f">{2 * channels}H", *[257 * 9] * channels, *[257 * 77] * channels)
    clear = struct.pack(f">{channels}H", *[257 * 9] * channels)
    opened = images.open_rgb(io.BytesIO(png_bytes(width=2, height=1, depth=16, colour=colour, rows=rows, clear=clear)))
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(255,) * 3, (77,) * 3]


def test_print_colours_become_screen_colours(tmp_path: Path) -> None:
    """In a CMYK JPEG no ink is white, full black ink is black and cyan has no red."""
    for name, ink, expected in (
        ("white", (0, 0, 0, 0), (255, 255, 255)),
        ("black", (0, 0, 0, 255), (0, 0, 0)),
        ("cyan", (255, 0, 0, 0), (0, 255, 255)),
    ):
        Image.new("CMYK", (16, 16), ink).save(tmp_path / f"{name}.jpg", quality=100)
        opened = images.open_rgb(tmp_path / f"{name}.jpg").getpixel((8, 8))
        assert isinstance(opened, tuple)
        assert max(abs(got - want) for got, want in zip(opened, expected, strict=True)) <= 2


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_first_frame_stands_for_an_animation(tmp_path: Path, suffix: str) -> None:
    """An animation is the picture it begins with, and several pages are the first one."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"film.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    assert images.open_rgb(tmp_path / f"film.{suffix}").getpixel((4, 4)) == (255, 0, 0)


def test_suffixes_are_those_of_the_formats_that_are_read() -> None:
    """All that Pillow knows of them and no others, but for .pfm; the common ones come first."""
    Image.init()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in images.FORMATS}
    assert set(images.SUFFIXES) == known - {".pfm"}
    assert images.SUFFIXES[:4] == (".jpg", ".jpeg", ".png", ".webp")
    assert len(set(images.SUFFIXES)) == len(images.SUFFIXES)


@pytest.mark.parametrize(
    "name", sorted(set(images.FORMATS) - {"CUR", "DCX", "ICNS", "PSD", "SUN", "XPM", "XBM", "MSP"})
)
def test_every_format_is_read_by_its_content(name: str) -> None:
    """Whatever the file is called: all formats that Pillow can write come back, nearly the same in those that lose."""
    buffer = io.BytesIO()
    gradient(height=32, width=32).save(buffer, name)
    opened = images.open_rgb(buffer)
    difference = np.asarray(opened).astype(int) - np.asarray(gradient(height=32, width=32)).astype(int)
    assert abs(difference).mean() < 6


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_every_mode_becomes_rgb(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """White is white and black is black in all of them, and rows converted in bands are the rows of the whole."""
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (6, 4)))
    through = {"La": "LA", "PA": "P"}.get(mode, "RGB")
    given = _to_lab(stripes) if mode == "LAB" else stripes.convert(through).convert(mode)
    whole = np.asarray(images.to_rgb(given)).astype(int)
    assert abs(whole - np.asarray(stripes.convert("RGB")).astype(int)).max() <= 1
    monkeypatch.setattr(images, "_BAND", 17)
    np.testing.assert_array_equal(np.asarray(images.to_rgb(given)), whole)


def _to_lab(picture: Image.Image) -> Image.Image:
    lab = ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(picture.convert("RGB"), ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    assert converted is not None
    return converted


def test_twelve_bits_are_scaled_too(tmp_path: Path) -> None:
    """A TIFF of medical or astronomical pictures: 4095 is white."""
    entries = [
        (256, 4, 2),
        (257, 4, 1),
        (258, 3, 12),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 200),
        (277, 3, 1),
        (279, 4, 3),
    ]
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    header = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4)
    (tmp_path / "deep.tiff").write_bytes(header.ljust(200, b"\0") + b"\xff\xf8\x00")
    opened = images.open_rgb(tmp_path / "deep.tiff")
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(255,) * 3, (128,) * 3]


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    """The message says what was expected and which path came."""
    with pytest.raises(InputError, match=r"found no file at .*nowhere\.png"):
        images.open_rgb(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="got the folder"):
        images.open_rgb(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5])
def test_truncated_file_is_refused_in_one_line(tmp_path: Path, suffix: str, kept: float) -> None:
    """A file cut short raises InputError, never a half picture and never another exception."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
    whole = buffer.getvalue()
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(InputError) as caught:
        images.open_rgb(tmp_path / f"cut.{suffix}")
    assert "\n" not in str(caught.value)
    assert f"cut.{suffix}" in str(caught.value)


def test_text_called_jpg_is_refused(tmp_path: Path) -> None:
    """The content decides, not the suffix."""
    (tmp_path / "notes.jpg").write_text("not a picture")
    with pytest.raises(InputError, match="no known format"):
        images.open_rgb(tmp_path / "notes.jpg")


def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    """A small file that would unpack to gigapixels is refused by its header."""
    bomb = png_bytes(width=50_000, height=50_000, depth=8, colour=2, rows=b"")
    with pytest.raises(InputError, match="exceeds limit"):
        images.open_rgb(io.BytesIO(bomb))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git-LFS pointer, not the file"),
        (b"\n<!DOCTYPE HTML><html>404</html>", "a web page"),
        (b"\xef\xbb\xbf<html lang=en>", "a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"%PDF-1.7", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "a PostScript document"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC picture, which is not read"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "a film or the like"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "a damaged or unusual AVIF"),
        (b"GIF89a\1\0\1\0\0\0\0;", "a damaged or unusual GIF"),
        (b"II*\0\x08\0\0\0\0\0\0\0\0\0", "a damaged or unusual TIFF"),
    ],
)
def test_other_files_called_jpg_are_told_for_what_they_are(tmp_path: Path, content: bytes, told: str) -> None:
    """Nothing is handed to a program that could open it."""
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(PictureError, match=rf"got .*a\.jpg, which is {told}") as caught:
        images.open_rgb(tmp_path / "a.jpg")
    assert f"which is {caught.value.reason}" in str(caught.value)


def test_a_format_that_pillow_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its decoders are a matter of how it was built."""
    monkeypatch.setattr("PIL.AvifImagePlugin.SUPPORTED", False)
    with pytest.raises(PictureError, match="an AVIF picture, which this Pillow was built without"):
        images.open_rgb(io.BytesIO(b"\0\0\0\x18ftypavif\0\0\0\0"))


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A named pipe would wait for a writer for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(PictureError, match="no regular file"):
            images.open_rgb(path)


@pytest.mark.parametrize("name", ["two\nlines.png", "nul\0.png", "\udcff.png", "x" * 5000 + ".png"])
def test_names_that_cannot_be_printed_stay_one_line(tmp_path: Path, name: str) -> None:
    """Linux allows nearly any bytes in a name."""
    with pytest.raises(PictureError) as caught:
        images.open_rgb(tmp_path / name)
    assert str(caught.value).isprintable()


def test_what_is_neither_path_nor_stream_is_told() -> None:
    """The bytes of a file most of all; a size below one pixel is no picture's fault."""
    with pytest.raises(PictureError, match="it is bytes, neither a path nor a binary stream"):
        images.open_rgb(b"\x89PNG")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a size of at least 1 × 1 pixels, got 0 × 5"):
        images.read(io.BytesIO(), height=0, width=5)


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    """Some decoders would read it whole; this one takes no room on the disk."""
    with (tmp_path / "a.webp").open("wb") as stream:
        stream.write(b"RIFF\xff\xff\xff\x7fWEBPVP8 ")
        stream.truncate(2**31 + 1)
    with pytest.raises(PictureError, match="its 2,147,483,649 bytes are more than"):
        images.open_rgb(tmp_path / "a.webp")


@pytest.mark.parametrize(
    "error", [MemoryError(), RecursionError("too deep"), struct.error("odd"), OverflowError(), AssertionError()]
)
def test_whatever_a_decoder_raises_is_an_unreadable_picture(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line that says something, whether the exception does or not."""
    gradient().save(tmp_path / "a.png")

    def failing(self: Image.Image) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", failing)
    with pytest.raises(PictureError, match=r"expected a readable picture, got .*a\.png: .+"):
        images.read(tmp_path / "a.png", height=8, width=8)


def test_tiles_larger_than_the_picture_are_refused() -> None:
    """A TIFF of 16 × 16 pixels may claim a tile of gigabytes."""
    entries = [
        (256, 16),
        (257, 16),
        (258, 8),
        (259, 5),
        (262, 1),
        (277, 1),
        (322, 40000),
        (323, 40000),
        (324, 8),
        (325, 9),
    ]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    with pytest.raises(PictureError, match="its tiles of 40000 × 40000 pixels"):
        images.open_rgb(io.BytesIO(b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(400)))


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    """They have no agreed range, so no guess is made."""
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(InputError, match="no agreed range"):
        images.open_rgb(tmp_path / "float.tiff")


@given(
    junk=st.binary(max_size=200),
    start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0"]),
)
def test_no_bytes_raise_anything_but_input_error(junk: bytes, start: bytes) -> None:
    """Whatever a file holds, reading it succeeds or raises InputError."""
    with contextlib.suppress(InputError):
        assert images.open_rgb(io.BytesIO(start + junk)).mode == "RGB"


def test_reading_leaves_the_warning_filters_alone(tmp_path: Path) -> None:
    """Threads that read at the same time do not change what the rest of the program is warned of."""
    gradient().save(tmp_path / "picture.png")
    with warnings.catch_warnings():
        before = list(warnings.filters)
        threads = [
            threading.Thread(target=lambda: [images.open_rgb(tmp_path / "picture.png") for _ in range(20)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == before


# ---- ranges ----------------------------------------------------------------------------------------------------------


def test_all_levels_survive_the_way_there_and_back() -> None:
    """to_uint8 inverts from_uint8 exactly, also through [0, 1]; the ends are exactly -1 and 1."""
    levels = torch.arange(256, dtype=torch.uint8)
    floats = images.from_uint8(levels)
    assert floats.dtype == torch.float32
    assert (floats[0].item(), floats[-1].item()) == (-1, 1)
    assert torch.equal(images.to_uint8(floats), levels)
    assert torch.equal(images.to_uint8(images.from_unit(images.to_unit(floats))), levels)


def test_values_outside_the_range_are_clamped() -> None:
    """An overshooting model gives black and white, never a wrapped-round level."""
    assert images.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    assert images.to_unit(torch.tensor([-3.0, 3.0])).tolist() == [0, 1]


def test_pillow_images_survive_the_way_there_and_back() -> None:
    """to_pil inverts from_pil; height comes before width in the tensor."""
    picture = gradient(height=24, width=16)
    tensor = images.from_pil(picture)
    assert tensor.shape == (3, 24, 16)
    assert images.to_pil(tensor).tobytes() == picture.tobytes()


def test_to_pil_names_a_wrong_shape() -> None:
    """A batch is not a picture."""
    with pytest.raises(InputError, match=r"\(3, H, W\), got \(2, 3, 4, 4\)"):
        images.to_pil(torch.zeros(2, 3, 4, 4))


# ---- what callers have in their hands --------------------------------------------------------------------------------

LEVELS = np.random.default_rng(0).integers(0, 256, (3, 6, 8), dtype=np.uint8)
FLOATS = LEVELS / 127.5 - 1
ITSELF: list[object] = []
ITSELF.append(ITSELF)


def as_batch(given: object) -> torch.Tensor:
    """At 6 x 8 pixels."""
    return images.as_batch(given, height=6, width=8)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        LEVELS,
        LEVELS.transpose(1, 2, 0),
        LEVELS[None],
        np.asfortranarray(LEVELS),
        LEVELS[:, ::-1][:, ::-1],
        np.broadcast_to(LEVELS, (1, *LEVELS.shape)),
        np.ma.masked_array(LEVELS),
        np.rec.array(LEVELS),
        LEVELS.astype(">u1"),
        FLOATS,
        FLOATS.astype(">f8"),
        FLOATS.astype("<f4"),
        torch.from_numpy(FLOATS).requires_grad_(),
        torch.from_numpy(LEVELS)[None].to(memory_format=torch.channels_last),
        [[LEVELS]],
        (Image.fromarray(LEVELS.transpose(1, 2, 0)),),
    ],
    ids=lambda given: type(given).__name__,
)
def test_the_same_picture_in_any_form_is_the_same_batch(given: object) -> None:
    """Whatever the strides, the order of bytes and the nesting; a picture that may not be written stays as it is."""
    expected = images.from_uint8(torch.from_numpy(LEVELS))[None]
    torch.testing.assert_close(as_batch(given).detach(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_narrow_floats_are_taken(dtype: torch.dtype) -> None:
    """Their range is looked at in float32."""
    assert torch.equal(as_batch(torch.full((3, 6, 8), 0.5).to(dtype)), torch.full((1, 3, 6, 8), 0.5))
    with pytest.raises(InputError, match=r"floats in \[-1, 1\], got 2 \.\. 2"):
        as_batch(torch.full((3, 6, 8), 2.0).to(dtype))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.array(0.0), r"got \(\) float64"),
        (iter([LEVELS]), "got list_iterator"),
        ([[]], "expected at least one"),
        (ITSELF, "lists within lists without end"),
        ([LEVELS, torch.zeros(3, 6, 8, device="meta")], "all on one device, got some on cpu and meta"),
        ([LEVELS, LEVELS[:, :5]], r"got \(3, 5, 8\) uint8"),
        (np.ma.masked_array(LEVELS, LEVELS > 200), "values are masked"),
        (torch.zeros(3, 6, 8).to_sparse(), "a plain tensor, got torch.sparse_coo"),
        (LEVELS > 100, "bool"),
        (LEVELS.astype(np.uint16), "uint16"),
        (FLOATS.astype(complex), "complex128"),
        (np.where(LEVELS > 200, np.nan, FLOATS), "got nan"),
        (np.zeros((3, 6, 8), [("red", "u1")]), "array of .*red"),
        (Image.new("F", (8, 6)), "of mode F: floating-point pixels"),
        (Image.new("RGB", (0, 6)), "it has no pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_batch_of_pictures_is_told_in_one_line(given: object, told: str) -> None:
    """Nothing is guessed: neither masked pixels, nor the range of other integers."""
    with pytest.raises(InputError, match=told) as caught:
        as_batch(given)
    assert str(caught.value).startswith("images: expected")
    assert "\n" not in str(caught.value)


# ---- geometry --------------------------------------------------------------------------------------------------------


@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    margin=st.sampled_from([1.0, 1.125]),
)
def test_covering_covers_and_touches(size: tuple[int, int], target: tuple[int, int], margin: float) -> None:
    """The scaled picture is nowhere smaller than the target, and one side is no longer than it must be."""
    tall, wide = images.cover_size(size, height=target[0], width=target[1], margin=margin)
    assert tall >= target[0]
    assert wide >= target[1]
    assert tall <= margin * target[0] + 1 or wide <= margin * target[1] + 1


def test_resizing_keeps_the_aspect() -> None:
    """A picture twice as wide as high stays so, whatever rectangle it covers."""
    scaled = images.resize_to_cover(Image.new("RGB", (200, 100)), height=32, width=32, margin=1.125)
    assert scaled.size == (72, 36)


@pytest.mark.parametrize("margin", [1.0, 1.125])
@pytest.mark.parametrize("stored", [(1, 300), (300, 1), (5, 700), (1001, 12), (3, 2000)])
@pytest.mark.parametrize("target", [(1, 1), (8, 8), (3, 11), (9, 2)])
def test_of_a_very_long_picture_the_middle_is_kept(
    stored: tuple[int, int], target: tuple[int, int], margin: float
) -> None:
    """The same, but for rounding, as the middle of the whole picture scaled; and the middle of both is the same."""
    noise = np.random.default_rng(0).integers(90, 166, (*stored, 3), dtype=np.uint8)  # Lanczos does not leave 0 .. 255
    height, width = target
    picture = Image.fromarray(noise)
    kept = images.uint8_from_pil(images.resize_to_cover(picture, height=height, width=width, margin=margin))
    assert kept.shape[1:] == images.kept_size(stored, height=height, width=width, margin=margin)
    assert kept.shape[1] * kept.shape[2] <= 16 * (margin * max(target) + 1) ** 2
    tall, wide = images.cover_size(stored, height=height, width=width, margin=margin)
    whole = images.uint8_from_pil(picture.resize((wide, tall), Image.Resampling.LANCZOS))
    for size in (kept.shape[1:], target):
        cut = [images.center_crop(one, height=size[0], width=size[1]).int() for one in (kept, whole)]
        assert (cut[0] - cut[1]).abs().max() <= 2


@pytest.mark.parametrize("shape", [(64, 64), (50, 800), (800, 50), (50, 37)])
@pytest.mark.parametrize("target", [(16, 16), (7, 90), (20, 10)])
def test_ordinary_shapes_are_scaled_whole(shape: tuple[int, int], target: tuple[int, int]) -> None:
    """Up to 1:16, whatever shape is asked for, to the last bit what Pillow makes of them."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    height, width = target
    tall, wide = images.cover_size(shape, height=height, width=width, margin=1.125)
    scaled = picture.resize((wide, tall), Image.Resampling.LANCZOS)
    assert images.resize_to_cover(picture, height=height, width=width, margin=1.125).tobytes() == scaled.tobytes()


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1)])
def test_a_line_of_pixels_becomes_a_picture(tmp_path: Path, size: tuple[int, int]) -> None:
    """It was 11 GB when it was scaled whole; even at 256 pixels it is read at once."""
    Image.new("1", size, 1).save(tmp_path / "line.png")
    assert images.read(tmp_path / "line.png", height=256, width=256).min() == 1


def test_large_pictures_are_decoded_one_after_the_other() -> None:
    """Threads share the room: what does not fit beside the others waits, and what is larger than it comes alone."""
    room, together, most, lock = images._Room(100), [0], [0], threading.Lock()

    def decode(pixels: int) -> None:
        with room.taken(pixels):
            with lock:
                together[0] += pixels
                most[0] = max(most[0], together[0])
            time.sleep(0.001)
            with lock:
                together[0] -= pixels

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [40, 70, 30, 250, 60] * 6))
    assert most[0] == 250


def test_crops_reach_both_ends_and_the_middle() -> None:
    """Position 0 is the first window, just below 1 the last, the default the middle."""
    row = torch.arange(10.0).expand(3, 1, 10)
    cut = [images.crop(row, height=1, width=4, position=(0.5, right))[0, 0, 0].item() for right in (0, 0.5, 0.9999)]
    assert cut == [0, 3, 6]
    assert images.center_crop(row, height=1, width=4)[0, 0].tolist() == [3, 4, 5, 6]
    with pytest.raises(InputError, match="at least 2×4 pixels, got 1×10"):
        images.crop(row, height=2, width=4)


def test_reading_at_a_size_gives_that_size(tmp_path: Path) -> None:
    """A file of any aspect becomes one tensor of the wanted shape in [-1, 1]."""
    gradient(height=24, width=61).save(tmp_path / "wide.png")
    picture = images.read(tmp_path / "wide.png", height=12, width=20)
    assert picture.shape == (3, 12, 20)
    assert picture.min() >= -1
    assert picture.max() <= 1


def test_maps_become_rectangles_of_colour() -> None:
    """Black at 0, light yellow at the top and beyond, lighter and lighter in between; each value where it stands."""
    values = torch.tensor([[[0.0, 1.0], [2.0, 99.0]]])
    shown = images.heat(values, top=2.0, height=4, width=6)
    assert shown.shape == (1, 3, 4, 6)
    assert shown.abs().max() <= 1
    corners = shown[0, :, [0, 0, 3, 3], [0, 5, 0, 5]]
    assert torch.equal(shown[0, :, :2, :3], corners[:, :1, None].expand(3, 2, 3))
    assert torch.equal(images.to_uint8(corners[:, 0]), torch.tensor(images.RAMP[0], dtype=torch.uint8))
    assert torch.equal(corners[:, 2], corners[:, 3])
    assert torch.equal(images.to_uint8(corners[:, 3]), torch.tensor(images.RAMP[-1], dtype=torch.uint8))
    light = images.heat(torch.linspace(0, 1, 64)[None, None], top=1.0, height=1, width=64)[0].mean(dim=0).flatten()
    assert (light.diff() > 0).all()


def test_a_picture_shines_through_its_map() -> None:
    """A quarter of it, in grey."""
    picture = torch.tensor([1.0, -1.0, 0.6]).view(3, 1, 1).expand(3, 2, 2)
    shown = images.tinted(torch.zeros(1, 3, 2, 2), picture)
    torch.testing.assert_close(shown, torch.full((1, 3, 2, 2), 0.05))


def test_grid_places_every_picture() -> None:
    """Row after row, with white between and in the places that stay empty."""
    pictures = torch.stack([torch.full((3, 2, 3), value) for value in (-1.0, -0.5, 0.0)])
    sheet = images.grid(pictures, columns=2, gap=1)
    assert sheet.shape == (3, 5, 7)
    assert sheet[0, 0].tolist() == [-1, -1, -1, 1, -0.5, -0.5, -0.5]
    assert sheet[0, 3].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert (sheet[0, 2] == 1).all()


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_saved_png_reads_back_exactly(tmp_path: Path) -> None:
    """Folders on the way are made, the bits are kept, and nothing else is left beside the file."""
    picture = images.from_pil(gradient())
    images.save(tmp_path / "new" / "folder" / "picture.png", picture)
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["picture.png"]
    assert torch.equal(images.from_pil(images.open_rgb(tmp_path / "new" / "folder" / "picture.png")), picture)


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "webp", "tiff", "bmp", "gif"])
def test_the_suffix_decides_the_format(tmp_path: Path, suffix: str) -> None:
    """Also in capitals, and JPEG also from a picture with transparency."""
    images.save(tmp_path / f"picture.{suffix}", gradient().convert("RGBA"))
    with Image.open(tmp_path / f"picture.{suffix}") as opened:
        assert opened.format == {"jpg": "JPEG"}.get(suffix, suffix.upper())


def test_unknown_suffix_and_unwritable_place_are_named(tmp_path: Path) -> None:
    """Both are the user's mistakes."""
    with pytest.raises(InputError, match=r"got 'picture\.txt'"):
        images.save(tmp_path / "picture.txt", gradient())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write .*file.picture.png: "):
        images.save(tmp_path / "file" / "picture.png", gradient())


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that breaks off half way does not touch what was there."""
    images.save(tmp_path / "picture.png", gradient())
    before = (tmp_path / "picture.png").read_bytes()

    def broken_disk(self: Image.Image, path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken_disk)
    with pytest.raises(InputError, match="disk full"):
        images.save(tmp_path / "picture.png", gradient())
    assert (tmp_path / "picture.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_data_uri_is_a_png() -> None:
    """What stands behind the comma is the picture itself."""
    kind, content = images.data_uri(images.from_pil(gradient())).split(",")
    assert kind == "data:image/png;base64"
    assert images.open_rgb(io.BytesIO(base64.b64decode(content))).tobytes() == gradient().tobytes()


# ---- comparing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "decibels"), [(2.0, 0.0), (0.2, 20.0), (0.02, 40.0)])
def test_psnr_of_a_constant_error(error: float, decibels: float) -> None:
    """The peak is 2, because pictures lie in [-1, 1]."""
    pictures = torch.full((1, 3, 5, 7), -1.0)
    assert images.psnr(pictures + error, pictures).item() == pytest.approx(decibels, abs=1e-3)


def test_psnr_is_each_picture_s_own() -> None:
    """A picture's figure does not change with the others of its batch; an exact copy is finite."""
    generator = torch.Generator().manual_seed(0)
    pictures, painted = torch.rand(2, 4, 3, 6, 6, generator=generator)
    painted[0] = pictures[0]
    together = images.psnr(painted, pictures)
    assert together.shape == (4,)
    alone = torch.cat([images.psnr(painted[i : i + 1], pictures[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)
    assert math.isfinite(together[0])
    assert together[0] > 100 > together[1:].max()


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg", ".webp"])
def test_a_picture_of_a_compressed_tiff_is_saved_as_any_other(tmp_path: Path, compression: str, suffix: str) -> None:
    """Pillow remembers how it was stored, and would refuse a quality for that."""
    Image.new("RGB", (20, 20), (255, 0, 0)).save(tmp_path / "given.tif", compression=compression)
    with Image.open(tmp_path / "given.tif") as given:
        images.save(tmp_path / f"saved{suffix}", given)
    with Image.open(tmp_path / f"saved{suffix}") as saved:
        assert min(saved.convert("RGB").getpixel((10, 10))[0], 250) == 250


def test_a_mode_that_a_format_cannot_hold_is_told(tmp_path: Path) -> None:
    """Where Pillow raises no `OSError` either."""
    with pytest.raises(
        InputError, match="expected a picture that SGI can hold, got mode 1: Unsupported SGI image mode"
    ):
        images.save(tmp_path / "x.sgi", Image.new("1", (20, 20)))
