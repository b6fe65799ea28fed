"""Geometry of the token pyramid: how many tokens each scale has and where they lie in one flat sequence.

Everything else about the pyramid (offsets, levels, masks, lengths) is derived from the sizes and stored nowhere else.
Pixels, codes and weights are not known here; torch is imported only by what returns a tensor.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from nextscale.checks import checked
from nextscale.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]
# Far beyond any model, so that a mistaken file ends in a line and not in hours of work.
MOST_SCALES = 1 << 12  # of a model that predicts 64x64 tokens one by one
LONGEST_SIDE = 1 << 12  # tokens: pictures of 65,536 pixels at a stride of 16


class Scales:
    """The K token maps of an image, coarse to fine: `Scales([1, 2, 3, (4, 6)])`.

    Arguments:
        sizes: an int s for a square s x s map, a pair for (height, width). No side may shrink from scale to scale.

    Raises `InputError` for an empty list, sides that are not positive integers, scales that shrink, and for more scales
    or longer sides than any model has.

    Immutable and hashable. L = `total` tokens in all; the last size is the latent's own (h_K, w_K).
    """

    __slots__ = ("sizes",)
    sizes: tuple[Size, ...]

    def __init__(self, sizes: Iterable[int | Iterable[int]]) -> None:
        try:
            pairs = tuple((size, size) if isinstance(size, int) else tuple(size) for size in sizes)
        except TypeError:
            raise InputError(
                f"scales: expected a list of ints or (height, width) pairs, got {reprlib.repr(sizes)}"
            ) from None
        for pair in pairs:
            if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
                raise InputError(f"scales: expected positive ints or (height, width) pairs, got {reprlib.repr(pair)}")
            if max(pair) > LONGEST_SIDE:
                raise InputError(
                    f"scales: expected sides of at most {LONGEST_SIDE} tokens, got {reprlib.repr(max(pair))}"
                )
        if len(pairs) > MOST_SCALES:
            raise InputError(f"scales: expected at most {MOST_SCALES}, got {len(pairs)}")
        if not pairs:
            raise InputError("scales: expected at least one scale, got none")
        for (h, w), (next_h, next_w) in pairwise(pairs):
            if next_h < h or next_w < w:
                raise InputError(f"scales: expected coarse to fine, got {h}x{w} before {next_h}x{next_w}")
        object.__setattr__(self, "sizes", pairs)

    @classmethod
    def of(cls, sizes: Scales | Iterable[int | Iterable[int]]) -> Scales:
        """`sizes` as they are if they are `Scales`, else made of them."""
        return sizes if isinstance(sizes, Scales) else cls(sizes)

    @classmethod
    @checked
    def suggest(cls, height: int, width: int, stride: int) -> Scales:
        """Scales for pictures of `height` x `width` pixels and a tokenizer of `stride` pixels a token.

        From 1 up, each side 1.3 times the one before, and at least one token more; a last step of less than 15 % is
        joined to the one before. The longer side grows so, the shorter one follows in proportion. For 256 px and stride
        16 these are the public release's scales.

        Raises `InputError` unless `stride` divides both sides.
        """
        if stride < 1 or min(height, width) < stride or height % stride or width % stride:
            raise InputError(f"scales: expected sides that are multiples of {stride} pixels, got {height}x{width}")
        h, w = height // stride, width // stride
        sides, last = [1], max(h, w)
        while sides[-1] < last:
            sides.append(max(sides[-1] + 1, round(1.3 * sides[-1])))
        sides = [side for side in sides if 1.15 * side < last] + [last]
        return cls((max(1, round(side * h / last)), max(1, round(side * w / last))) for side in sides)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Scales is immutable")

    def __len__(self) -> int:
        """K, the number of scales."""
        return len(self.sizes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scales) and self.sizes == other.sizes

    def __hash__(self) -> int:
        return hash(self.sizes)

    def __repr__(self) -> str:
        return f"Scales({self.to_list()})"

    def __reduce__(self) -> tuple[type[Scales], tuple[list[int | list[int]]]]:
        return Scales, (self.to_list(),)

    def __str__(self) -> str:
        """`1 2 3 4x6`, as tables print it."""
        return " ".join(str(h) if h == w else f"{h}x{w}" for h, w in self.sizes)

    def to_list(self) -> list[int | list[int]]:
        """The sizes as JSON can hold them; `Scales(scales.to_list()) == scales`."""
        return [h if h == w else [h, w] for h, w in self.sizes]

    @property
    def height(self) -> int:
        """h_K, rows of the last map and of the latent."""
        return self.sizes[-1][0]

    @property
    def width(self) -> int:
        """w_K, columns of the last map and of the latent."""
        return self.sizes[-1][1]

    @property
    def lengths(self) -> tuple[int, ...]:
        """h_k * w_k, the number of tokens at each scale."""
        return tuple(h * w for h, w in self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Index of each scale's first token in the flat sequence."""
        return (0, *accumulate(self.lengths[:-1]))

    @property
    def total(self) -> int:
        """L, the number of tokens of one image."""
        return sum(self.lengths)

    def slices(self) -> tuple[slice, ...]:
        """Where each scale lies in the flat sequence."""
        return tuple(slice(start, start + length) for start, length in zip(self.offsets, self.lengths, strict=True))

    def firsts(self, reach: int | None = None) -> tuple[int, ...]:
        """For each scale, the first token that its own may attend to, of the last `reach` scales, its own counted.

        All are seen where that is None. Raises `InputError` for less than one scale.
        """
        if reach is not None and reach < 1:
            raise InputError(f"reach: expected 1 scale or more, got {reach}")
        return tuple(0 if reach is None else self.offsets[max(0, k + 1 - reach)] for k in range(len(self)))

    def split(self, tokens_BL: Tensor) -> list[Tensor]:
        """(B, L) tokens, of any dtype -> K views (B, h_k, w_k), coarse to fine.

        Raises `InputError` when the last dimension is not L.
        """
        shape = getattr(tokens_BL, "shape", None)
        if shape is None or len(shape) != 2 or shape[1] != self.total:
            got = reprlib.repr(tokens_BL) if shape is None else tuple(shape)
            raise InputError(f"tokens: expected shape (batch, {self.total}), got {got}")
        return [tokens_BL[:, part].unflatten(1, size) for part, size in zip(self.slices(), self.sizes, strict=True)]

    def level_ids(self) -> Tensor:
        """(L,) int64 on the CPU: the 0-based scale every token belongs to."""
        import torch

        return torch.repeat_interleave(torch.arange(len(self), device="cpu"), torch.tensor(self.lengths, device="cpu"))

    def block_causal_mask(self, reach: int | None = None) -> Tensor:
        """(L, L) bool on the CPU: True where the token of a row may attend to that of a column: scales <= its own.

        Of these only the last `reach`, its own counted, if that is given.
        """
        level_L = self.level_ids()
        ahead_LL = level_L[:, None] - level_L[None, :]
        return ahead_LL >= 0 if reach is None else (ahead_LL >= 0) & (ahead_LL < reach)

    def __iter__(self) -> Iterator[Size]:
        """The (h_k, w_k), coarse to fine."""
        return iter(self.sizes)
