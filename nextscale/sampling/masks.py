"""Masks: what an edit repaints, in the forms that people have it in, and pictures with room around them.

A mask is (B, 1, H, W) float32 at the size of the model's pictures: 1 is repainted, 0 is kept, and between them the
result is a mixture. A Pillow mask is scaled and cropped as pictures of its size are, so that the two lie on each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from nextscale.errors import InputError
from nextscale.images import center_crop, resize_to_cover, to_mask, upright_rgb

Mask = Tensor | np.ndarray | Image.Image | Sequence["Mask"]
Sides = tuple[int, int, int, int]


def as_mask(given: Mask, *, height: int, width: int) -> Tensor:
    """What to repaint -> (B, 1, H, W) float32.

    Arguments:
        given: Pillow images of any size, white on black, or drawn with transparency around what is to be repainted;
            tensors or arrays (H, W), (B, H, W) or (B, 1, H, W) of this size, bool, floats in [0, 1] or uint8, of which
            255 is 1 unless there is nothing above 1; or a list of these.

    Raises `InputError` for another shape or dtype, and for floats out of range.
    """
    if isinstance(given, Image.Image):
        return _of_image(given, height=height, width=width)
    if isinstance(given, list | tuple):
        if not given:
            raise InputError("mask: expected at least one, got none")
        return torch.cat([as_mask(one, height=height, width=width) for one in given])
    tensor = torch.from_numpy(given.copy()) if isinstance(given, np.ndarray) else given
    if not isinstance(tensor, Tensor):
        raise InputError(f"mask: expected a tensor, an array or a Pillow image, got {type(given).__name__}")
    batch = tensor[None] if tensor.ndim == 2 else tensor
    batch = batch.unsqueeze(1) if batch.ndim == 3 else batch
    known = batch.dtype in (torch.bool, torch.uint8) or batch.is_floating_point()
    if batch.shape[1:] != (1, height, width) or not known:
        wanted = f"({height}, {width}) or (batch, {height}, {width}), bool, float in [0, 1] or uint8"
        got = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        raise InputError(f"mask: expected shape {wanted}, got {got}")
    return _in_unit(batch.float(), levels=batch.dtype == torch.uint8)


def _in_unit(floats: Tensor, *, levels: bool) -> Tensor:
    """Raises `InputError` for floats out of [0, 1]."""
    low, high = (float(end) for end in floats.aminmax()) if floats.numel() else (0.0, 0.0)
    if levels and high > 1:
        return floats / 255
    if not 0 <= low <= high <= 1:
        raise InputError(f"mask: expected floats in [0, 1], got {low:.4g} .. {high:.4g}")
    return floats


def _of_image(image: Image.Image, *, height: int, width: int) -> Tensor:
    """Averaged over areas, which never overshoots."""
    covering = resize_to_cover(to_mask(image), height=height, width=width, resample=Image.Resampling.BOX)
    levels = torch.from_numpy(np.array(covering))[None, None]
    return center_crop(levels, height=height, width=width).float() / 255


# ---- made of numbers -------------------------------------------------------------------------------------------------


def box(size: tuple[int, int], edges: Sides) -> Image.Image:
    """A mask for a picture of `size` (width, height) in pixels, white in the box (left, top, right, bottom).

    Raises `InputError` for a box that is empty, upside down, or leaves the picture.
    """
    left, top, right, bottom = edges
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        told = f"left < right within 0 .. {size[0]} and top < bottom within 0 .. {size[1]}"
        raise InputError(f"box: expected {told}, got {left},{top},{right},{bottom}")
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return mask


def extended(picture: Image.Image, margins: Sides, *, height: int, width: int) -> tuple[Image.Image, Image.Image]:
    """A picture with (left, top, right, bottom) pixels of room around it, scaled to `height` x `width`, and its mask.

    The room grows, by the same on both sides, where picture and room have not that shape. Nothing of it runs into the
    picture, which lies on whole pixels.

    Raises `InputError` for margins below 0, for no room at all, and for so much that nothing of the picture is left.
    """
    left, top, right, bottom = margins
    if min(margins) < 0:
        raise InputError(f"expand: expected pixels, 0 or more, got {left},{top},{right},{bottom}")
    picture = upright_rgb(picture)
    wide, tall = picture.width + left + right, picture.height + top + bottom
    scale = min(width / wide, height / tall)
    begin = ((width - wide * scale) / 2 + left * scale, (height - tall * scale) / 2 + top * scale)
    x, y = map(round, begin)
    x_end, y_end = round(begin[0] + picture.width * scale), round(begin[1] + picture.height * scale)
    if (x, y, x_end, y_end) == (0, 0, width, height):
        raise InputError(f"expand: expected room on at least one side, got {left},{top},{right},{bottom}")
    if x == x_end or y == y_end:
        raise InputError(
            f"expand: expected room that leaves something of the picture, got {left},{top},{right},{bottom}"
        )
    canvas, mask = Image.new("RGB", (width, height)), Image.new("L", (width, height), 255)
    canvas.paste(picture.resize((x_end - x, y_end - y), Image.Resampling.LANCZOS), (x, y))
    mask.paste(0, (x, y, x_end, y_end))
    return canvas, mask
