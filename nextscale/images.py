"""Pictures in and out: the only room that knows pixel ranges.

A picture is a Pillow image, a uint8 tensor in [0, 255] or a float32 tensor in [-1, 1], the range of the models; what
people give a `Pipeline` and get from it is in [0, 1] instead.
Whatever a file holds (16 bits, CMYK, transparency, a camera's rotation) is upright 8-bit RGB on white after `open_rgb`;
colour profiles are not applied. A file is judged by its content, by decoders that start no program and fetch nothing,
and takes at most 32 bytes a stored pixel beside its own; `MOST_BYTES` and Pillow's limit of 179 million pixels bound
both, and threads share the room (`_Room`).

Shapes: B pictures, H height, W width in pixels; channels come first and are red, green, blue.
"""

from __future__ import annotations

import base64
import io
import math
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from nextscale.errors import InputError
from nextscale.files import durable

Source = str | Path | BinaryIO
# Pillow's pure decoders, tried in this order, and the suffixes of their files. Left out: EPS (runs Ghostscript), WMF,
# FITS, BUFR, GRIB and HDF5 (call what others registered), IPTC (opens any format inside), MPEG (decodes nothing), and
# rare ones without a signature to tell them by; TGA, which has none either, comes last.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),  # not .pfm, which holds floats
    "MPO": (".mpo",),
    "ICO": (".ico",),
    "CUR": (".cur",),
    "ICNS": (".icns",),
    "PSD": (".psd",),
    "DDS": (".dds",),
    "QOI": (".qoi",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "PCX": (".pcx",),
    "DCX": (".dcx",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "MSP": (".msp",),
    "DIB": (".dib",),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}
_COMMON = (".jpg", ".jpeg", ".png", ".webp")  # named first in messages
SUFFIXES = tuple(dict.fromkeys(_COMMON + sum(FORMATS.values(), ())))  # of the files that are taken for pictures
KINDS = ".jpg, .jpeg, .png, .webp, .tif, .gif or another format that Pillow decodes"  # for messages
MOST_BYTES = 2**31  # of a file: some decoders read it whole
LONGEST = 16  # of pictures longer than 1:16 the ends are cut off before they are scaled
Given = Tensor | np.ndarray | Image.Image | Sequence["Given"]

# A broken file can raise any of these out of Pillow's decoders.
_DECODING_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    LookupError,
    ArithmeticError,
    BufferError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

LOSSY, QUALITY = ("JPEG", "MPO", "WEBP", "AVIF"), 95  # formats that are asked for a quality, of 100
ROUNDING = 1 / 255  # how far floats may leave their range, as a share of it: a level of 8 bits
_ORIENTATION = 0x0112  # the EXIF tag
_TILE = 322, 323  # the TIFF tags of a tile's width and height
_BITS = 258  # the TIFF tag of the bits a sample
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND = 2**20  # pixels that are converted at a time, so that conversions take hardly any memory of their own
_FOREIGN = {  # how other files begin that people find among their pictures
    b"version https://git-lfs": "a Git-LFS pointer, not the file (git lfs pull fetches it)",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML or SVG text",
    b"<svg": "an SVG drawing",
    b"%pdf": "a PDF document",
    b"%!ps": "a PostScript document",
    b"pk\3\4": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
}
_BOXED = {b"heic": "a HEIC picture", b"heix": "a HEIC picture", b"mif1": "a HEIF picture"}  # by the brand behind `ftyp`


class PictureError(InputError):
    """A file that is no picture, or none that can be read; `reason` says why without its name."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


# ---- reading ---------------------------------------------------------------------------------------------------------


def open_rgb(source: Source) -> Image.Image:
    """The picture of a file as upright 8-bit RGB; transparency shows white, of an animation the first frame is taken.

    Raises `PictureError`, an `InputError`, for a file that is missing, is no regular file or no picture in one of
    `FORMATS`, is cut short or damaged, holds floats, does not fit into memory, or is larger than 2 GiB or, by its
    header, than Pillow's limit (about 179 million pixels).
    """
    with _opened(source) as image, _room.taken(image.width * image.height):
        return upright_rgb(image)


def open_mask(source: Source) -> Image.Image:
    """The picture of a file as a mask, see `to_mask`. Raises like `open_rgb`."""
    with _opened(source) as image, _room.taken(image.width * image.height):
        return to_mask(image)


def open_covering(source: Source, *, height: int, width: int, margin: float = 1.0) -> Image.Image:
    """`resize_to_cover` of `open_rgb`, without two large pictures side by side. Raises like `open_rgb`."""
    with _opened(source) as image, _room.taken(image.width * image.height):
        return resize_to_cover(upright_rgb(image), height=height, width=width, margin=margin)


def stored_size(source: Source) -> tuple[int, int]:
    """(height, width) by the file's header, before any EXIF rotation. Raises like `open_rgb`."""
    with _opened(source) as image:
        return image.height, image.width


def upright_rgb(image: Image.Image) -> Image.Image:
    """`to_rgb`, turned as the camera's note says."""
    return _upright(to_rgb(image), image)


def _upright(converted: Image.Image, image: Image.Image) -> Image.Image:
    """What was made of `image`, turned as the note in that says."""
    turn = _UPRIGHT.get(_orientation(image))
    return converted.transpose(turn) if turn is not None else converted


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB: transparency on white, 16 bits scaled to 8. `ValueError` for float pixels."""
    if image.mode.startswith("I"):
        twelve = isinstance(image, TiffImageFile) and image.tag_v2.get(_BITS) == (12,)  # Pillow does not scale these
        return _in_bands(image, partial(_from_16_bits, white=4095 if twelve else 65535))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if not image.has_transparency_data:
        return image.convert("RGB")
    return _in_bands(image, _on_white)


def to_mask(image: Image.Image) -> Image.Image:
    """Upright 8-bit grey, white where it is drawn: its alpha where some of it is transparent, else how light it is."""
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    drawn = alpha if alpha and np.array(alpha).min() < 255 else to_rgb(image).convert("L")
    return _upright(drawn, image)


def read(source: Source, *, height: int, width: int) -> Tensor:
    """A file as one picture of a given size: covered, centre-cropped, (3, H, W) float32 in [-1, 1].

    Raises like `open_rgb`, and `InputError` for a size below one pixel.
    """
    if min(height, width) < 1:
        raise InputError(f"expected a size of at least 1 × 1 pixels, got {height} × {width}")
    covering = open_covering(source, height=height, width=width)
    return center_crop(from_pil(covering), height=height, width=width)


class Kind(NamedTuple):
    """What a file holds besides the pixels that `open_rgb` gives."""

    mode: str
    """Pillow's word for its colours: RGB, CMYK, P ..."""
    animated: bool
    """Or several pages."""
    transparent: bool


def stored_kind(source: Source) -> Kind:
    """What is lost when the file is read. Raises like `open_rgb`."""
    with _opened(source) as image:
        return Kind(image.mode, bool(getattr(image, "is_animated", False)), image.has_transparency_data)


@contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """The file opened by Pillow; whatever decoding raises inside the block becomes an `PictureError`."""
    name = source if isinstance(source, str | Path) else getattr(source, "name", "the given bytes")
    try:
        with _quiet, _stream(source) as stream, Image.open(stream, formats=_formats()) as image:
            _check_header(image)
            yield image
    except FileNotFoundError:
        raise PictureError(f"expected a picture, found no file at {name}", reason="no such file") from None
    except IsADirectoryError:
        raise PictureError(f"expected a picture, got the folder {name}", reason="a folder") from None
    except UnidentifiedImageError as error:
        raise PictureError(f"expected a picture, got {name}, which is {error}", reason=str(error)) from None
    except _DECODING_ERRORS as error:
        why = reason(error)
        raise PictureError(f"expected a readable picture, got {name}: {why}", reason=why) from error


def _check_header(image: Image.Image) -> None:
    """`ValueError` for what would be found out too late, or cost much more memory than the picture's size tells."""
    if 0 in image.size:
        raise ValueError("it has no pixels")
    if isinstance(image, TiffImageFile):
        tile = [int(image.tag_v2.get(tag, 0)) for tag in _TILE]
        if math.prod(tile) > max(image.width * image.height, _BAND):
            raise ValueError(f"its tiles of {tile[0]} × {tile[1]} pixels are larger than the picture")


@contextmanager
def _stream(source: Source) -> Iterator[BinaryIO]:
    """The bytes of a source. What Pillow does not know is looked at, and the error says what it is."""
    if isinstance(source, str | Path):
        kind = os.stat(source).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # a named pipe would wait for ever
            raise UnidentifiedImageError("no regular file")
        with open(source, "rb") as stream, _stream(stream) as same:
            yield same
        return
    if not hasattr(source, "seekable"):
        raise ValueError(f"it is {type(source).__name__}, neither a path nor a binary stream")
    if source.seekable() and (length := source.seek(0, io.SEEK_END)) > MOST_BYTES:
        raise ValueError(f"its {length:,} bytes are more than the {MOST_BYTES:,} that a picture may have")
    try:
        yield source
    except UnidentifiedImageError:
        source.seek(0)
        raise UnidentifiedImageError(_unopened(source.read(64))) from None


@cache
def _formats() -> tuple[str, ...]:
    """`FORMATS`, but for those that an older Pillow has never heard of."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def foreign(head: bytes) -> str | None:
    """What a file is that people take for another, by its first bytes; None if that is not known."""
    if not head:
        return "empty"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((what for magic, what in _FOREIGN.items() if start.startswith(magic)), None)


def _unopened(head: bytes) -> str:
    """What a file is that no decoder takes, by its first bytes."""
    if head[4:8] == b"ftyp" and head[8:12] not in (b"avif", b"avis"):
        return _BOXED.get(head[8:12], "a film or the like") + ", which is not read; convert it to PNG or JPEG"
    damaged = (what for name in _formats() if (what := _damaged(name, head)) is not None)
    return foreign(head) or next(damaged, "in no known format")


def _damaged(name: str, head: bytes) -> str | None:
    """What to say of a file that begins as this format does, and yet was not opened."""
    accepts = Image.OPEN[name][1]
    known = accepts(head[:16].ljust(16, b"\xff")) if accepts is not None else False
    if isinstance(known, str):  # Pillow was built without the format's library
        return f"an {name} picture, which this Pillow was built without"
    return f"a damaged or unusual {name} picture" if known else None


def reason(error: BaseException) -> str:
    """One line that says why a picture cannot be read, without its name."""
    if isinstance(error, PictureError):
        return error.reason
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DECODING_ERRORS:
        return 1  # a spoilt note of the camera does not spoil the pixels


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert` applied to some rows after the other; it must give RGB, and look at each pixel alone."""
    rgb, rows = Image.new("RGB", image.size), max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        rgb.paste(convert(image.crop((0, top, image.width, min(top + rows, image.height)))), (0, top))
    return rgb


def _on_white(image: Image.Image) -> Image.Image:
    straight = image.convert("LA") if image.mode == "La" else image  # Pillow does not convert the former to RGBA
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, straight.convert("RGBA")).convert("RGB")


def _from_16_bits(image: Image.Image, *, white: int) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > white:
        raise ValueError(f"expected grey values of 16 bits, got {values.min()} to {values.max()}")
    values[values == image.info.get("transparency")] = white  # the one clear level that a PNG may name
    return Image.fromarray((values * 255 / white).round().astype(np.uint8)).convert("RGB")


class _Room:
    """Threads decode side by side while their pictures have `pixels` at most together; a larger one comes alone."""

    def __init__(self, pixels: int) -> None:
        self._pixels, self._taken, self._changed = pixels, 0, threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= self._pixels)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


_room = _Room(2**26)  # 2 GiB at 32 bytes a pixel


class _Quiet:
    """Silences Pillow's remarks about odd files while at least one thread decodes.

    `warnings.catch_warnings` in each thread would not do: it swaps a global list, so that two overlapping threads can
    leave the filters changed for good.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._caught = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


_quiet = _Quiet()


# ---- ranges ----------------------------------------------------------------------------------------------------------


def from_uint8(images: Tensor) -> Tensor:
    """uint8 in [0, 255], any shape, to float32 in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1], any shape, to uint8: rounded to the nearest level, clamped outside."""
    return ((images.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_unit(images: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]."""
    return images * 2 - 1


def to_unit(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], clamped outside."""
    return ((images + 1) / 2).clamp(0, 1)


def uint8_from_pil(image: Image.Image) -> Tensor:
    """A Pillow image of any mode as (3, H, W) uint8."""
    return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1).contiguous()


def from_pil(image: Image.Image) -> Tensor:
    """A Pillow image of any mode as (3, H, W) float32 in [-1, 1]."""
    return from_uint8(uint8_from_pil(image))


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W), float in [-1, 1] or uint8, as a Pillow RGB image. Raises `InputError` for another shape."""
    if image.dim() != 3 or image.shape[0] != 3:
        raise InputError(f"expected one picture of shape (3, H, W), got {tuple(image.shape)}")
    if image.is_meta:
        raise InputError("expected pixels, got shapes alone, on the meta device")
    levels = image if image.dtype == torch.uint8 else to_uint8(image.detach())
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())


# ---- what callers have in their hands --------------------------------------------------------------------------------


class Range(NamedTuple):
    """What floats lie in, black to white."""

    low: float
    high: float
    levels: str
    """How to bring [0, 255] there."""
    other: str = ""
    """How to bring [-1, 1] there, if it is another."""


SIGNED = Range(-1, 1, "x / 127.5 - 1")  # of the models
UNIT = Range(0, 1, "x / 255", "(x + 1) / 2")  # of everything that a `Pipeline` takes and gives


def as_batch(given: Given, *, height: int, width: int, within: Range = SIGNED) -> Tensor:
    """Pictures in any of the usual forms -> (B, 3, H, W) float32 in [-1, 1], on the device they are on.

    Arguments:
        given: Pillow images of any size, covered and centre-cropped as training data are; tensors or arrays of this
            very size, (3, H, W) or (B, 3, H, W), arrays with their channels last too, uint8 or floats
            of any width; or a list of these.
        within: the range of floats; `UNIT` ones are brought to [-1, 1].

    Raises `InputError` for another shape or dtype, and for floats that leave their range by more than rounding.
    """
    if isinstance(given, Image.Image):
        return _from_image(given, height=height, width=width)
    if isinstance(given, list | tuple):
        return _from_list(given, height=height, width=width, within=within)
    tensor = _from_array(given) if isinstance(given, np.ndarray) else given
    if not isinstance(tensor, Tensor):
        raise InputError(f"images: expected tensors, arrays or Pillow images, got {type(given).__name__}")
    if tensor.is_nested or tensor.layout != torch.strided:
        raise InputError(f"images: expected a plain tensor, got {'nested' if tensor.is_nested else tensor.layout}")
    batch = tensor[None] if tensor.ndim == 3 else tensor
    floats = batch.is_floating_point()
    if batch.shape[1:] != (3, height, width) or not (floats or batch.dtype == torch.uint8):
        got = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        wanted = f"(batch, 3, {height}, {width}), float in [{within.low}, {within.high}] or uint8"
        raise InputError(f"images: expected shape {wanted}, got {got}")
    if not floats:
        return from_uint8(batch)
    batch = batch.to(torch.float32)
    check_range(batch, within)
    return batch if within == SIGNED else from_unit(batch)


def _from_image(image: Image.Image, *, height: int, width: int) -> Tensor:
    with _telling(image):
        covering = resize_to_cover(upright_rgb(image), height=height, width=width)
    return center_crop(from_pil(covering), height=height, width=width)[None]


@contextmanager
def _telling(image: Image.Image) -> Iterator[None]:
    """Whatever decoding a given image raises inside the block becomes an `InputError`."""
    try:
        _check_header(image)
        yield
    except _DECODING_ERRORS as error:
        raise InputError(
            f"images: expected a readable picture, got one of mode {image.mode}: {reason(error)}"
        ) from None


def as_uint8(given: Tensor | np.ndarray | Image.Image) -> Tensor:
    """One picture of any size -> (3, H, W) uint8.

    Arguments:
        given: a Pillow image; a tensor, (3, H, W) or grey, (1, H, W) or (H, W), uint8 or floats in [0, 1]; or an array
            likewise, its channels last or first.

    Raises `InputError` for another shape or dtype, and for floats that leave their range by more than rounding.
    """
    if isinstance(given, Image.Image):
        with _telling(given):
            return uint8_from_pil(upright_rgb(given))
    tensor = _from_array(_grey_first(given)) if isinstance(given, np.ndarray) else given
    if not isinstance(tensor, Tensor):
        raise InputError(f"images: expected a Pillow image, a tensor or an array, got {type(given).__name__}")
    picture = tensor[None] if tensor.ndim == 2 else tensor
    floats = picture.is_floating_point()
    if (
        not (floats or picture.dtype == torch.uint8)
        or picture.ndim != 3
        or len(picture) not in (1, 3)
        or 0 in picture.shape
    ):
        got = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        raise InputError(f"images: expected (3, H, W) or (1, H, W), uint8 or floats in [0, 1], got {got}")
    if floats:
        check_range(picture, UNIT)
        picture = (picture.detach().to(torch.float32) * 255).round().clamp(0, 255).to(torch.uint8)
    return picture.cpu().expand(3, -1, -1)


def _grey_first(array: np.ndarray) -> np.ndarray:
    """The only channel of a grey picture in front."""
    return np.moveaxis(array, -1, 0) if array.ndim == 3 and array.shape[-1] == 1 != array.shape[0] else array


def _from_list(given: Sequence[Given], *, height: int, width: int, within: Range) -> Tensor:
    if not given:
        raise InputError("images: expected at least one, got none")
    try:
        parts = [as_batch(one, height=height, width=width, within=within) for one in given]
    except RecursionError:
        raise InputError("images: expected a list of pictures, got lists within lists without end") from None
    devices = sorted({str(part.device) for part in parts})
    if len(devices) > 1:
        raise InputError(f"images: expected all on one device, got some on {' and '.join(devices)}")
    return torch.cat(parts)


def _from_array(array: np.ndarray) -> Tensor:
    """Channels first; copied, so that neither strides, the order of bytes nor write protection matter."""
    if (hidden := np.ma.count_masked(array) if isinstance(array, np.ma.MaskedArray) else 0) > 0:
        raise InputError(f"images: expected every pixel, got an array in which {hidden:,} values are masked")
    last = array.ndim in (3, 4) and array.shape[-1] == 3 and array.shape[-3] != 3
    native = np.array(np.moveaxis(array, -1, -3) if last else array, dtype=array.dtype.newbyteorder("="))
    try:
        return torch.from_numpy(native)
    except TypeError:
        raise InputError(f"images: expected uint8 or floats, got an array of {array.dtype}") from None


def as_unit(given: Given, *, height: int, width: int) -> Tensor:
    """As `as_batch` takes `UNIT` ones, but left in [0, 1]: floats come back as they were, to the bit."""
    if isinstance(given, list | tuple) and given:  # of none `as_batch` tells
        return torch.cat([as_unit(one, height=height, width=width) for one in given])
    signed = as_batch(given, height=height, width=width, within=UNIT)
    tensor = _from_array(given) if isinstance(given, np.ndarray) else given
    if isinstance(tensor, Tensor) and tensor.is_floating_point():
        return tensor.to(torch.float32).view(signed.shape)
    return to_unit(signed)


def check_range(floats: Tensor, within: Range = SIGNED) -> None:
    """Raise `InputError` where floats leave their range by more than rounding, or are no numbers.

    Waits for the device. Shapes alone, on the meta device, pass.
    """
    if floats.is_meta or not floats.numel():
        return
    low, high = (float(end) for end in floats.detach().aminmax())
    slack = ROUNDING * (within.high - within.low)
    if not (low >= within.low - slack and high <= within.high + slack):
        told = f"images: expected floats in [{within.low}, {within.high}], got {low:.4g} .. {high:.4g}"
        raise InputError(told + _way_there(low, high, within))


def _way_there(low: float, high: float, within: Range) -> str:
    """How to bring floats into range that seem to lie in one of the two others that are usual."""
    if low >= 0 and 2 < high <= 255:
        return f"; {within.levels} brings [0, 255] there"
    if within.other and -1 - 2 * ROUNDING <= low < -0.1 and high <= 1 + 2 * ROUNDING:
        return f"; {within.other} brings [-1, 1] there"
    return ""


# ---- geometry --------------------------------------------------------------------------------------------------------


def cover_size(image_size: tuple[int, int], *, height: int, width: int, margin: float = 1.0) -> tuple[int, int]:
    """(height, width) of the smallest scaling that covers `margin` times the target and keeps the aspect."""
    scale = max(margin * height / image_size[0], margin * width / image_size[1])
    return max(height, round(image_size[0] * scale)), max(width, round(image_size[1] * scale))


def kept_size(image_size: tuple[int, int], *, height: int, width: int, margin: float = 1.0) -> tuple[int, int]:
    """(height, width) of what `resize_to_cover` gives: `cover_size`, cut where that is longer than 1:16."""
    tall, wide = cover_size(image_size, height=height, width=width, margin=margin)
    most = LONGEST * math.ceil(margin * max(height, width)) ** 2
    if tall * wide <= most:
        return tall, wide
    # what is cut off is an even number, so that the middle of the rest is the middle of the whole
    if tall * width > wide * height:
        return most // wide - (tall - most // wide) % 2, wide
    return tall, most // tall - (wide - most // tall) % 2


def resize_to_cover(
    image: Image.Image,
    *,
    height: int,
    width: int,
    margin: float = 1.0,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """The picture scaled, with Lanczos unless told otherwise, so that it just covers `margin` times the target.

    Nothing is cut off, unless the result would have more pixels than 16 squares (`LONGEST`) of the target's longer
    side: of a picture so long only the middle is scaled, since 1 × 30,000 pixels would otherwise take gigabytes.
    """
    stored = image.height, image.width
    whole = cover_size(stored, height=height, width=width, margin=margin)
    kept = kept_size(stored, height=height, width=width, margin=margin)
    if kept == whole:
        return image.resize((whole[1], whole[0]), resample)
    (top, bottom, *down), (left, right, *across) = map(_seen, stored, whole, kept)
    part = image.crop((left, top, right, bottom))
    return part.resize((kept[1], kept[0]), resample, box=(across[0], down[0], across[1], down[1]))


def _seen(stored: int, whole: int, kept: int) -> tuple[int, int, float, float]:
    """Of one side: the stored pixels that make the middle `kept` of `whole` scaled ones, and where it lies in them.

    They reach as far beyond it as Lanczos looks, and are cut out first because Pillow rounds the place to float32.
    """
    begin, end = (whole - kept) // 2, (whole + kept) // 2
    start, stop = stored * begin / whole, stored * end / whole
    reach = 3 * max(1, stored / whole) + 1
    first, last = max(0, math.floor(start - reach)), min(stored, math.ceil(stop + reach))
    return first, last, start - first, stop - first


def crop(images: Tensor, *, height: int, width: int, position: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """A window of (..., H, W). `position` says how far down and right it sits: 0 first, towards 1 last, 0.5 centre.

    Raises `InputError` if the window is larger than the picture.
    """
    free_down, free_right = images.shape[-2] - height, images.shape[-1] - width
    if free_down < 0 or free_right < 0:
        raise InputError(f"expected at least {height}×{width} pixels, got {images.shape[-2]}×{images.shape[-1]}")
    top, left = int(position[0] * (free_down + 1)), int(position[1] * (free_right + 1))
    return images[..., top : top + height, left : left + width]


def center_crop(images: Tensor, *, height: int, width: int) -> Tensor:
    """The middle of (..., H, W)."""
    return crop(images, height=height, width=width)


def grid(images_B3HW: Tensor, *, columns: int, gap: int = 2) -> Tensor:
    """Pictures side by side, row after row, on white: (3, H', W') float in the range that came, [-1, 1] or [0, 1]."""
    count, channels, height, width = images_B3HW.shape
    if count < 1 or columns < 1:
        raise InputError(f"expected at least one picture and one column, got {count} and {columns}")
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = images_B3HW.new_ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for index, image in enumerate(images_B3HW):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


# ---- maps as colours -------------------------------------------------------------------------------------------------

RAMP = (  # from black over purple and orange to light yellow; after matplotlib's inferno (CC0)
    *((0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39)),
    (252, 255, 164),
)
TINT = 0.75  # of the colours, where a picture shines through


def heat(values_Bhw: Tensor, *, top: float, height: int, width: int) -> Tensor:
    """Maps (B, h, w) as colours, black at 0 and light yellow from `top` on: (B, 3, H, W) in [-1, 1].

    Each value is a rectangle of one colour.
    """
    ramp_R3 = torch.tensor(RAMP, dtype=torch.float32, device=values_Bhw.device) / 127.5 - 1
    places_Bhw = (values_Bhw.float() / max(top, 1e-12)).clamp(0, 1) * (len(RAMP) - 1)
    before_Bhw = places_Bhw.long().clamp(max=len(RAMP) - 2)
    share_Bhw1 = (places_Bhw - before_Bhw)[..., None]
    colours_Bhw3 = ramp_R3[before_Bhw] * (1 - share_Bhw1) + ramp_R3[before_Bhw + 1] * share_Bhw1
    return torch.nn.functional.interpolate(colours_Bhw3.permute(0, 3, 1, 2), (height, width), mode="nearest")


def tinted(colours_B3HW: Tensor, image_3HW: Tensor) -> Tensor:
    """Colours with a picture shining through in grey, so that places are recognised; all in [-1, 1]."""
    return TINT * colours_B3HW + (1 - TINT) * image_3HW.mean(dim=0, keepdim=True)


# ---- comparing -------------------------------------------------------------------------------------------------------


def psnr(painted_B3HW: Tensor, images_B3HW: Tensor) -> Tensor:
    """10 log10(peak^2 / MSE) of each picture, (B,) in dB; both in [-1, 1], so the peak is 2. A copy has 126 dB."""
    error_B = (painted_B3HW.float() - images_B3HW.float()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / error_B.clamp_min(1e-12))


# ---- writing ---------------------------------------------------------------------------------------------------------


def save(path: str | Path, image: Image.Image | Tensor, *, notes: Mapping[str, str] | None = None) -> None:
    """Write one picture, a Pillow image or (3, H, W) in [-1, 1]; the suffix decides the format, parents are made.

    `notes` are text that a PNG carries along (Pillow: `Image.open(path).text`); other formats have no room for them.

    The file appears whole or not at all. Raises `InputError` for a suffix that stands for no format, for a picture that
    the format cannot hold, and for a place that cannot be written.
    """
    path = Path(path)
    Image.preinit()  # knows the usual ones, and spares the import of forty others
    picture_format = Image.EXTENSION.get(suffix := path.suffix.lower()) or Image.registered_extensions().get(suffix)
    if picture_format not in Image.SAVE:
        raise InputError(f"expected a picture's suffix such as .png, .jpg or .webp, got {path.name!r}")
    picture = to_pil(image) if isinstance(image, Tensor) else image
    if picture_format == "JPEG":
        picture = to_rgb(picture)  # it knows neither transparency nor palettes
    try:
        with durable.whole(path) as file:
            picture.save(file, picture_format, **_options(picture_format, notes))
    except (ValueError, struct.error) as error:
        wanted = f"expected a picture that {picture_format} can hold"
        raise InputError(f"{wanted}, got mode {picture.mode}: {error}") from None


def _options(picture_format: str, notes: Mapping[str, str] | None) -> dict[str, Any]:
    """What is asked of Pillow beside its own defaults; a TIFF refuses a quality where it was read compressed."""
    if picture_format == "PNG":
        return _chunks(notes)
    return {"quality": QUALITY} if picture_format in LOSSY else {}


def notes(source: Source) -> dict[str, str]:
    """The text that a PNG carries along; none in other formats. Raises like `open_rgb`."""
    with _opened(source) as image:
        return {name: str(text) for name, text in getattr(image, "text", {}).items()}


def _chunks(notes: Mapping[str, str] | None) -> dict[str, Any]:
    chunks = PngInfo()
    for name, text in (notes or {}).items():
        chunks.add_itxt(name, text)
    return {"pnginfo": chunks}


def data_uri(image: Image.Image | Tensor, *, notes: Mapping[str, str] | None = None) -> str:
    """A picture as `data:image/png;base64,…`, to stand inside an HTML page, with `notes` as `save` takes them."""
    buffer = io.BytesIO()
    (to_pil(image) if isinstance(image, Tensor) else image).save(buffer, "PNG", **_chunks(notes))
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
