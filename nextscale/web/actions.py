"""What the page's buttons do: from settings to HTML, scale by scale. One model, and no word of gradio.

Mistakes raise `InputError`; the page shows its line.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from nextscale import images
from nextscale.errors import InputError
from nextscale.pipeline import Generated, Pipeline, Request, Step
from nextscale.sampling import masks
from nextscale.web import show, uploads
from nextscale.web.painting import Call, Frame, frames
from nextscale.web.sessions import Kept, Session, Work

T = TypeVar("T")
Finish = Callable[[Sequence[Kept]], str]
MOST_COUNT = 8  # pictures of one request
MOST_SEED = 2**53 - 1  # what a browser counts exactly
MOST_PROMPT = 2000  # characters, of which a model reads far fewer


@dataclass(frozen=True)
class Choosing:
    """How tokens are chosen, as `Pipeline.generate` takes it."""

    guidance: float = 1.5
    top_k: int = 900
    top_p: float = 0.96
    temperature: float = 1.0
    smooth: bool = False

    @classmethod
    def of(cls, guidance: Any, top_k: Any, top_p: Any, temperature: Any, smooth: Any) -> Choosing:
        """From what a page or a program sends. Raises `InputError` for what is no number."""
        return cls(
            _number("guidance", guidance),
            _whole("top_k", top_k, 0, 2**31),
            _number("top_p", top_p),
            _number("temperature", temperature),
            bool(smooth),
        )


@dataclass(frozen=True)
class Asked:
    """Which pictures, and how they are painted."""

    label: int | str
    prompt: str | None
    """None where nothing is said in words."""
    negative_prompt: str | None
    seed: int
    count: int
    choosing: Choosing

    @classmethod
    def of(cls, label: Any, prompt: Any, negative_prompt: Any, seed: Any, count: Any, *choosing: Any) -> Asked:
        """From what a page or a program sends, in this order. Raises `InputError` for what is out of range."""
        if not isinstance(label, int | str) or isinstance(label, bool):
            raise InputError(f"label: expected the name of a class or its number, got {label!r}")
        return cls(
            label,
            _words("prompt", prompt),
            _words("negative_prompt", negative_prompt),
            _whole("seed", seed, 0, MOST_SEED),
            _whole("count", count, 1, MOST_COUNT),
            Choosing.of(*choosing),
        )

    @property
    def condition(self) -> dict[str, Any]:
        """What is to be seen, as `Pipeline.generate` and `edit` take it."""
        return {"labels": self.label, "prompts": self.prompt, "negative_prompt": self.negative_prompt}

    @property
    def seeds(self) -> list[int]:
        """One a picture."""
        return list(range(self.seed, self.seed + self.count))


def _words(name: str, value: Any) -> str | None:
    """None for no words."""
    if not isinstance(value, str | None):
        raise InputError(f"{name}: expected text, got {value!r}")
    if value is not None and len(value) > MOST_PROMPT:
        raise InputError(f"{name}: expected at most {MOST_PROMPT} characters, got {len(value)}")
    return value if value and value.strip() else None


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name}: expected a number, got {value!r}")
    return float(value)


def _whole(name: str, value: Any, least: int, most: int) -> int:
    number = _number(name, value)
    if number != int(number) or not least <= number <= most:
        raise InputError(f"{name}: expected a whole number, {least} .. {most}, got {value!r}")
    return int(number)


# ---- painting --------------------------------------------------------------------------------------------------------


def generate(pipe: Pipeline, session: Session, asked: Asked) -> Iterator[str]:
    """Pictures of a class, of a prompt, or of both, one a seed, as they grow."""
    return _ending(session, _grown(pipe, session, partial(generated, pipe, asked)))


def generated(pipe: Pipeline, asked: Asked, callback: Callable[[Step], object] | None = None) -> Generated:
    """All at once."""
    return pipe.generate(seeds=asked.seeds, **asked.condition, **asdict(asked.choosing), callback=callback)


def remarks(pipe: Pipeline, asked: Asked) -> list[str]:
    """What a person should know before the pictures come: whose end is not read."""
    if pipe.reader is None:
        return []
    given = [words for words in (asked.prompt, asked.negative_prompt) if words is not None]
    most = pipe.reader.tokens
    lengths = zip(given, pipe.reader.lengths(given), strict=True)
    return [
        f"“{words[:40]}…” has {length} pieces, of which the first {most} are read"
        for words, length in lengths
        if length > most
    ]


@dataclass(frozen=True)
class Edited:
    """What is to be painted anew, beside how."""

    work: Work
    keep_scales: int = 0
    feather: int = 0

    @classmethod
    def of(cls, work: Work, keep_scales: Any, feather: Any) -> Edited:
        """From what a page or a program sends. Raises `InputError` for nothing to paint and what is out of range."""
        kept = _whole("keep_scales", keep_scales, 0, 1000)
        if work.mask is None and not kept:
            raise InputError("expected something to repaint: brush over it, add room around it, or keep some scales")
        return cls(work, kept, _whole("feather", feather, 0, 1000))


def edit(pipe: Pipeline, session: Session, asked: Asked, edited: Edited) -> Iterator[str]:
    """A part of a picture painted anew, as it grows."""
    return _ending(session, _grown(pipe, session, partial(repainted, pipe, asked, edited), edited.work))


def repainted(
    pipe: Pipeline, asked: Asked, edited: Edited, callback: Callable[[Step], object] | None = None
) -> Generated:
    """All at once."""
    return pipe.edit(
        edited.work.picture,
        edited.work.mask,
        seeds=asked.seed,
        **asked.condition,
        count=asked.count,
        keep_scales=edited.keep_scales,
        feather=edited.feather,
        **asdict(asked.choosing),
        callback=callback,
    )


def _grown(
    pipe: Pipeline, session: Session, call: Call, work: Work | None = None, *, finish: Finish | None = None
) -> Iterator[str]:
    """A page a scale, then the finished pictures; where it is stopped, what is there."""
    scales, last = len(pipe.transformer.config.scales), None
    with closing(frames(call, session.stopped)) as painted:
        for one in painted:
            if isinstance(one, Generated):
                yield (finish or _done)(session.keep(one.pil(), one.requests, work))
                return
            last = one
            yield show.growing(one.images, scale=one.scale, scales=scales, size=one.size, names=_names(one.requests))
    yield _halted(session, last)


def _ending(session: Session, pages: Iterator[T]) -> Iterator[T]:
    """The work of one press of a button: a stop counts until its end."""
    try:
        yield from pages
    finally:
        session.stopped.clear()


def _done(kept: Sequence[Kept]) -> str:
    """Finished pictures with links to download them."""
    names = _names([one.request for one in kept if one.request])
    return show.done([one.file for one in kept], names, told=_count(len(kept)))


def _halted(session: Session, last: Frame | None) -> str:
    """What was there when the work was stopped."""
    if last is None:
        return show.message("Stopped before the first scale.")
    kept = session.keep_unfinished(show.pictures(last.images), last.requests, last.scale)
    told = f"Stopped after scale {last.scale + 1}. {_count(len(kept))} as far as they came."
    return show.done([one.file for one in kept], _names(last.requests), told=told)


def _count(number: int) -> str:
    return f"{number} picture{'s' if number > 1 else ''}"


def _names(requests: Sequence[Request]) -> list[str]:
    return [f"{request.title}, seed {request.seed}" for request in requests]


# ---- pictures to edit ------------------------------------------------------------------------------------------------


def fitted(pipe: Pipeline, picture: Image.Image) -> Image.Image:
    """A picture as the model sees it: scaled to cover its size, and centre-cropped."""
    size = pipe.tokenizer.config
    return images.to_pil(images.from_unit(images.as_unit(picture, height=size.height, width=size.width)[0]))


def work_of(pipe: Pipeline, picture: Image.Image | None, mask: str, margins: Sequence[Any]) -> Work:
    """What an edit begins with, from a picture of the model's size.

    Arguments:
        mask: a PNG as a data URI whose alpha, or lightness, is what to repaint; or "".
        margins: room to paint on the left, at the top, on the right and at the bottom, in percent of the side.

    Raises `InputError` for no picture, and for both room and brush, which would not lie on each other.
    """
    if picture is None:
        raise InputError("expected a picture to edit, got none: drop one, or take one from the history")
    brushed = mask_of(mask)
    left, top, right, bottom = (_whole("room", margin, 0, 400) for margin in margins)
    if not any((left, top, right, bottom)):
        return Work(picture, brushed)
    if brushed is not None:
        raise InputError("expected a brushed part or room around the picture, got both: clear one of them")
    size = pipe.tokenizer.config
    wide, tall = picture.size
    pixels = (left * wide // 100, top * tall // 100, right * wide // 100, bottom * tall // 100)
    return Work(*masks.extended(picture, pixels, height=size.height, width=size.width))


def mask_of(uri: str) -> Image.Image | None:
    """The mask in a data URI; None where nothing of it is painted."""
    if not uri:
        return None
    mask = images.open_mask(io.BytesIO(_bytes_of(uri)))
    return mask if mask.getextrema() != (0, 0) else None


def picture_of(text: str, name: str) -> uploads.Upload:
    """A picture sent as base64, with or without `data:image/...;base64,` before it. Raises `InputError`."""
    return uploads.decoded(_bytes_of(text), name)


def _bytes_of(text: str) -> bytes:
    try:
        return base64.b64decode(text.rpartition(",")[2], validate=True)
    except ValueError:
        raise InputError("expected a picture in base64, got other text") from None


# ---- reconstruction and comparison -----------------------------------------------------------------------------------


def reconstruction(pipe: Pipeline, upload: uploads.Upload) -> str:
    """A picture through the tokens: its strip, coarse to fine, and the maps."""
    size, scales = pipe.tokenizer.config, pipe.tokenizer.config.scales
    original = images.as_batch(upload.picture, height=size.height, width=size.width)
    tokens_1L = pipe.tokenizer.encode(original.to(pipe.device))
    stages = [(fitted(pipe, upload.picture), "the picture")]
    for k in range(len(scales)):
        painted = pipe.tokenizer.decode(tokens_1L, through=k + 1).detach().cpu()
        told = f"through scale {k + 1}: {images.psnr(painted, original).item():.1f} dB"
        stages.append((images.to_pil(painted[0]), told))
    maps = [
        (show.token_map(tokens[0].cpu()), f"scale {k + 1}: {tokens.shape[1]} × {tokens.shape[2]}")
        for k, tokens in enumerate(scales.split(tokens_1L))
    ]
    told = "; ".join([f"{scales.total} tokens in {len(scales)} maps", *upload.remarks])
    return show.reconstruction(told, stages, maps)


def compare(pipe: Pipeline, session: Session, asked: tuple[Asked, Asked]) -> Iterator[tuple[str, str, str]]:
    """The same pictures painted in two ways, one after the other; at the end, each pair under one slider."""
    return _ending(session, _beside(pipe, session, asked))


def _beside(pipe: Pipeline, session: Session, asked: tuple[Asked, Asked]) -> Iterator[tuple[str, str, str]]:
    first, second = (show.message("Waiting for the one beside it.") for _ in asked)
    both: list[Sequence[Kept]] = []

    def finish(kept: Sequence[Kept]) -> str:
        both.append(kept)
        return _done(kept)

    for first in _grown(pipe, session, partial(generated, pipe, asked[0]), finish=finish):
        yield first, second, ""
    for second in _grown(pipe, session, partial(generated, pipe, asked[1]), finish=finish):
        yield first, second, ""
    if len(both) == 2:
        names = _names([one.request for one in both[0] if one.request])
        yield first, second, show.sliders([[one.file for one in kept] for kept in both], names)


# ---- settings of a picture -------------------------------------------------------------------------------------------


def request_in(file: str | Path) -> Request:
    """What a PNG tells of itself. Raises `InputError` where that is nothing."""
    path = Path(file)
    uploads.read(path)
    try:
        return Request.from_notes(images.notes(path))
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None


def described(pipe: Pipeline, request: Request) -> str:
    """A picture's settings in a line, and whether this model painted it."""
    if not 0 <= request.label <= len(pipe.classes):
        raise InputError(f"expected a class of this model, 0 .. {len(pipe.classes)}, got {request.label}")
    away = f", not {request.negative_prompt}" if request.negative_prompt else ""
    told = (
        f"{request.title}{away}, seed {request.seed}, guidance {_shown(request.guidance)}, "
        f"top-k {_shown(request.top_k)}, top-p {_shown(request.top_p)}, "
        f"temperature {_shown(request.temperature)}"
    )
    if request.model != pipe.fingerprint:
        return f"{told}. Another model made it ({request.model}): this one gives a different picture."
    return f"{told}."


def _shown(value: float | tuple[float, ...]) -> str:
    """One number, or one a scale: `0/1/1.5`."""
    return "/".join(map(_shown, value)) if isinstance(value, tuple) else f"{value:.6g}"
