"""Pipeline: a tokenizer, the transformer that goes with it, and the names of the classes.

What people hold in their hands: generate, stream, reconstruct, save, load. Images leave it in [0, 1].
"""

from __future__ import annotations

import json
import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import torch
from PIL import Image
from torch import Tensor

from nextscale import hub, presets
from nextscale.checks import checked
from nextscale.config import TransformerConfig, check_pair, from_json, to_json
from nextscale.errors import InputError, printable
from nextscale.files import checkpoint
from nextscale.images import Given, as_batch, from_unit, save, to_pil, to_unit
from nextscale.machine.precision import Precision, find_device, find_dtype
from nextscale.sampling import loop
from nextscale.sampling.engine import Engine, make_engine, signature
from nextscale.sampling.guidance import Guidance, listed_guidance, weights_of
from nextscale.sampling.loop import Choice, Painted
from nextscale.sampling.memory import image_bytes
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.tokenizer import model as tokenizer_files
from nextscale.transformer import VAR
from nextscale.transformer import model as transformer_files


@dataclass(frozen=True)
class Request:
    """What one picture was painted from: with the same model it is enough to paint it again."""

    label: int
    """Number of the class; the number of classes itself is "no class"."""
    name: str
    """Of the class."""
    seed: int
    guidance: float | tuple[float, ...]
    """A number as `Pipeline.generate` takes it, or the weight at each scale that a schedule gave."""
    top_k: int
    top_p: float
    temperature: float
    smooth: bool

    @property
    def stem(self) -> str:
        """A file name that tells the label and the seed: `3-food-drink-seed7`."""
        words = re.sub(r"\W+", "-", self.name.lower()).strip("-")[:40]
        named = [words] if words and words != str(self.label) else []
        return "-".join([str(self.label), *named, f"seed{self.seed}"])

    @property
    def notes(self) -> dict[str, str]:
        """For a PNG to carry along."""
        return {"nextscale": json.dumps(vars(self), ensure_ascii=False)}


@dataclass(frozen=True)
class Generated:
    """What `Pipeline.generate` gives; `len` of it is B."""

    images: Tensor
    """(B, 3, H, W) float32 in [0, 1]."""
    tokens: Tensor
    """(B, L) int64."""
    requests: tuple[Request, ...]
    """B of them."""

    def __len__(self) -> int:
        return len(self.requests)

    def pil(self) -> list[Image.Image]:
        """The images as B Pillow images, 8-bit RGB."""
        return [to_pil(from_unit(image)) for image in self.images]

    @checked
    def save(self, directory: str | Path) -> list[Path]:
        """Write a PNG an image, named after class and seed, with its request inside; returns their paths.

        A PNG's request is `json.loads(PIL.Image.open(path).text["nextscale"])`. Files of the same names are replaced.
        Raises `InputError` when the directory cannot be written.
        """
        stems = _numbered(request.stem for request in self.requests)
        paths = [Path(directory) / f"{stem}.png" for stem in stems]
        for path, image, request in zip(paths, self.pil(), self.requests, strict=True):
            save(path, image, notes=request.notes)
        return paths


@dataclass(frozen=True)
class Step:
    """What `Pipeline.stream` yields after each scale."""

    scale: int
    """0-based."""
    tokens: Tensor
    """(B, h_k, w_k) int64, the tokens of this scale."""
    requests: tuple[Request, ...]
    """B of them."""
    _pipeline: Pipeline
    _canvas: Tensor

    def preview(self) -> Tensor:
        """The images so far, (B, 3, H, W) float32 in [0, 1]."""
        return self._pipeline.show(self._canvas)


def _numbered(stems: Iterable[str]) -> list[str]:
    """Equal ones are numbered: the same picture asked for twice, or with other settings in between."""
    seen: Counter[str] = Counter()
    told = []
    for stem in stems:
        seen[stem] += 1
        told.append(stem if seen[stem] == 1 else f"{stem}-{seen[stem]}")
    return told


class Pipeline:
    """A tokenizer and a transformer on one device.

    Arguments:
        tokenizer, transformer: models that belong together (same scales and codebook), else `InputError`.
        classes: a name a class; their numbers when None.
        device: where both go.
        precision: "auto" takes bfloat16 where the hardware multiplies it fast. The blocks of `transformer` are then
            converted, in place, and held in bfloat16; the tokenizer stays float32, its decoder runs in bfloat16.
    """

    @checked
    def __init__(
        self,
        tokenizer: MultiScaleVQVAE,
        transformer: VAR,
        *,
        classes: Sequence[str] | None = None,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
    ) -> None:
        check_pair(tokenizer.config, transformer.config)
        names = _numbers(transformer.config.classes) if classes is None else tuple(classes)
        if len(names) != transformer.config.classes:
            raise InputError(f"classes: expected {transformer.config.classes} names, got {len(names)}")
        self.device = find_device(device)
        self.dtype = find_dtype(precision, self.device)
        self.tokenizer = tokenizer.to(self.device)
        self.transformer = transformer.to(self.device)
        if self.dtype != torch.float32:
            self.transformer.lower_precision(self.dtype)
        self.classes = names
        self._engine: Engine | None = None

    def __repr__(self) -> str:
        """One line: model, size, classes, device, precision."""
        model, size = self.transformer.config, self.tokenizer.config
        shown = "" if self.classes == _numbers(model.classes) else f": {', '.join(self.classes[:3])}"
        more = ", ..." if shown and len(self.classes) > 3 else ""
        return (
            f"Pipeline(VAR-d{model.depth}, {model.parameters / 1e6:.1f} M parameters, {size.height}x{size.width} px, "
            f"{model.classes} classes{shown}{more}, on {self.device} in {str(self.dtype).removeprefix('torch.')})"
        )

    @checked
    def to(self, device: str | torch.device) -> Pipeline:
        """Move both models to `device`, in the precision they have; returns this pipeline.

        Raises `InputError` for a device that is not there, and for leaving "meta", where there are shapes alone.
        """
        device = find_device(device)
        if self.device.type == "meta" != device.type:
            raise InputError(f"device: expected weights to move to {device}, got shapes alone, on meta")
        self._engine = None  # before the models move: not two copies at a time
        self.tokenizer.to(device)
        self.transformer.to(device)
        self.device = device
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the engine, which is made again where it is needed."""
        return {**vars(self), "_engine": None}

    # -- where pipelines come from and go ------------------------------------------------------------------------------

    @classmethod
    @checked
    def from_preset(
        cls, name: str, *, seed: int = 0, device: str | torch.device = "cpu", precision: Precision = "auto"
    ) -> Pipeline:
        """Random weights in the shape of a preset (shapes alone on "meta"). Raises `InputError` for an unknown name."""
        preset = presets.get(name)
        given = None if find_device(device).type == "meta" else seed
        models = MultiScaleVQVAE(preset.tokenizer, seed=given), VAR(preset.transformer, seed=given)
        return cls(*models, device=device, precision=precision)

    @classmethod
    @checked
    def load(
        cls, model: str | Path | None = None, *, device: str | torch.device = "cpu", precision: Precision = "auto"
    ) -> Pipeline:
        """The pipeline in a directory: a finished run of `train transformer`, or what `save` wrote; or on the hub.

        Raises `InputError` when files are missing, damaged, or do not fit each other.
        """
        if model is None:
            raise InputError(
                "no model given and none is embedded yet: make one with `nextscale demo`, then --model runs/demo"
            )
        model = hub.directory(str(model)) if hub.is_name(model) else model
        sections = checkpoint.read_config(model, ("tokenizer", "transformer", "classes"))
        device = find_device(device)
        tokenizer = MultiScaleVQVAE.load(model)
        weights, config = Path(model) / transformer_files.WEIGHTS, from_json(TransformerConfig, sections["transformer"])
        checkpoint.check_room(weights, parameters=config.parameters, blocks=config.depth)
        transformer = VAR(config, seed=None).lower_precision(find_dtype(precision, device))
        checkpoint.assign(transformer, lambda: checkpoint.read_tensors(weights), device=device)
        return cls(
            tokenizer, transformer, classes=_names(model, sections["classes"]), device=device, precision=precision
        )

    @checked
    def save(self, directory: str | Path) -> None:
        """Write config.json, tokenizer.safetensors and transformer.safetensors, at the precision they are held in."""
        config = {
            "tokenizer": to_json(self.tokenizer.config),
            "transformer": to_json(self.transformer.config),
            "classes": list(self.classes),
        }
        files = {
            tokenizer_files.WEIGHTS: self.tokenizer.state_dict(),
            transformer_files.WEIGHTS: self.transformer.state_dict(),
        }
        checkpoint.save(directory, config, files)

    # -- pictures ------------------------------------------------------------------------------------------------------

    @checked
    def generate(
        self,
        labels: int | str | Sequence[int | str],
        seeds: int | Sequence[int] | None = None,
        *,
        guidance: float | Guidance = 1.5,
        top_k: int = 900,
        top_p: float = 0.96,
        temperature: float = 1.0,
        smooth: bool = False,
        memory: float | None = None,
    ) -> Generated:
        """Sample one image a label.

        Arguments:
            labels: class names or numbers; the number of classes itself means "no class". One alone is for every seed.
            seeds: one integer an image; one alone counts up from there: s, s + 1 ...; 0, 1, 2 ... when None. Seed i and
                label i alone decide image i.
            guidance: a number grows linearly from 0 at the first scale to itself at the last; or a schedule, see
                `nextscale.sampling.guidance`.
            top_k, top_p, temperature, smooth: see `sampling.loop.Choice`.
            memory: bytes that the images painted at the same time may take, as `sampling.memory.image_bytes` counts
                them; a larger request is painted in several batches. All at once when None.

        Raises `InputError` for an unknown label, a value out of range, another number of seeds than of labels, or too
        little memory for a single image.
        """
        choice = Choice(top_k, top_p, temperature, smooth)
        requests, weights = self._requests(labels, seeds, guidance, choice)
        size = len(requests) if memory is None else self._images_within(memory, guided=any(weights))
        parts = [requests[start : start + size] for start in range(0, len(requests), size)]
        done = [self._paint(self._walk(part, weights, choice)) for part in parts]
        images, tokens = (torch.cat(column) for column in zip(*done, strict=True))
        return Generated(images, tokens, requests)

    @checked
    def stream(
        self,
        labels: int | str | Sequence[int | str],
        seeds: int | Sequence[int] | None = None,
        *,
        guidance: float | Guidance = 1.5,
        top_k: int = 900,
        top_p: float = 0.96,
        temperature: float = 1.0,
        smooth: bool = False,
    ) -> Iterator[Step]:
        """`generate`, scale by scale: yields a `Step` after each."""
        choice = Choice(top_k, top_p, temperature, smooth)
        requests, weights = self._requests(labels, seeds, guidance, choice)  # mistakes raise at the call
        steps = self._walk(requests, weights, choice)
        return (Step(step.scale, step.tokens, requests, self, step.canvas) for step in steps)

    def _requests(
        self,
        labels: int | str | Sequence[int | str],
        seeds: int | Sequence[int] | None,
        guidance: float | Guidance,
        choice: Choice,
    ) -> tuple[tuple[Request, ...], list[float]]:
        """One an image, and the weight of guidance at each scale."""
        names, numbers = _aligned(labels, seeds)
        if len(numbers) != len(names):
            raise InputError(f"seeds: expected one a label, {len(names)}, got {len(numbers)}")
        if not names:
            raise InputError("labels: expected at least one, got none")
        weights = weights_of(guidance, len(self.transformer.config.scales))
        told = tuple(weights) if callable(guidance) else float(guidance)
        known = (*self.classes, "no class")
        places = [self.label(name) for name in names]
        asked = zip(places, numbers, strict=True)
        return tuple(Request(label, known[label], seed, told, **vars(choice)) for label, seed in asked), weights

    def _images_within(self, memory: float, *, guided: bool) -> int:
        each = image_bytes(self.tokenizer.config, self.transformer.config, guided=guided, dtype=self.dtype)
        if not each <= memory < float("inf"):
            raise InputError(f"memory: expected at least {each} bytes, what one image takes, got {memory}")
        return int(memory // each)

    def _walk(self, requests: Sequence[Request], weights: Sequence[float], choice: Choice) -> Iterator[Painted]:
        walk = loop.generate(
            self.engine().transformer,
            self.tokenizer.quantizer,
            [request.label for request in requests],
            [request.seed for request in requests],
            guidance=listed_guidance(weights),
            choice=choice,
        )
        # copied outside of inference mode, so that callers get tensors they may do anything with
        return (Painted(step.scale, step.tokens.clone(), step.canvas.clone()) for step in walk)

    def _paint(self, walk: Iterator[Painted]) -> tuple[Tensor, Tensor]:
        """The last canvas decoded, once the walk has let its cache go, and the tokens of all scales."""
        steps = list(walk)
        tokens_BL = torch.cat([step.tokens.flatten(1) for step in steps], dim=1)
        return self.show(steps[-1].canvas), tokens_BL

    def engine(self) -> Engine:
        """What sampling runs, made on first use and anew whenever weights have changed."""
        if self._engine is None or self._engine.signature != signature(self.tokenizer, self.transformer):
            self._engine = None  # not two at a time
            self._engine = make_engine(self.tokenizer, self.transformer, self.dtype)
        return self._engine

    def show(self, canvas_BCHW: Tensor) -> Tensor:
        """A canvas f_hat -> images (B, 3, H, W) float32 in [0, 1]."""
        with torch.inference_mode():
            images = to_unit(self.engine().paint(canvas_BCHW))
        return images.clone()

    @torch.no_grad()
    @checked
    def reconstruct(self, images: Given, through: int | None = None) -> Tensor:
        """Images through the tokens (of the first `through` scales) and back: (B, 3, H, W) float32 in [-1, 1].

        Arguments:
            images: (B, 3, H, W), floats in [-1, 1] or uint8, as tensor or array, or Pillow images: see
                `images.as_batch`.

        Raises `InputError` for another size, another dtype, and floats out of range.
        """
        size = self.tokenizer.config
        images_B3HW = as_batch(images, height=size.height, width=size.width)
        return self.tokenizer.decode(self.tokenizer.encode(images_B3HW.to(self.device)), through)

    def label(self, name: int | str) -> int:
        """The number of a class, from its name or number; the number of classes itself means "no class"."""
        if isinstance(name, str) and name in self.classes:
            return self.classes.index(name)
        if isinstance(name, str) and (alike := [n for n in self.classes if _same(n, name)]):
            return self.classes.index(alike[0])
        try:
            number = int(name) if isinstance(name, str) else operator.index(name)
        except (ValueError, TypeError):
            raise InputError(f"label: expected one of {', '.join(self.classes[:12])}, got {name!r}") from None
        if not 0 <= number <= len(self.classes):
            raise InputError(
                f"label: expected 0 .. {len(self.classes) - 1} (or {len(self.classes)}: no class), got {number}"
            )
        return number


def _same(name: str, asked: str) -> bool:
    """Whether both are one name: macOS writes the é of a folder's name as two characters, keyboards as one."""
    return normalize("NFC", name) == normalize("NFC", printable(asked))


def _aligned(labels: Any, seeds: Any) -> tuple[list[int | str], list[int]]:
    """A label and a seed an image: one label alone is for every seed, one seed alone counts up from there."""
    start = 0 if seeds is None else _integer(seeds)
    numbers = [] if start is not None else _listed("seeds: expected integers", seeds)
    for number in numbers:
        if _integer(number) is None:
            raise InputError(f"seeds: expected integers, got {number!r}")
    if isinstance(labels, str) or _integer(labels) is not None:
        labels = [labels] * (1 if start is not None else len(numbers))
    names = _listed("labels: expected names or numbers of classes", labels)
    return names, list(map(operator.index, numbers)) if start is None else list(range(start, start + len(names)))


def _listed(expected: str, values: Any) -> list[Any]:
    try:
        if isinstance(values, str):
            raise TypeError
        return list(values)
    except TypeError:
        raise InputError(f"{expected}, got {values!r}") from None


def _integer(value: Any) -> int | None:
    """`value` as an integer, of NumPy's or torch's kind too; None for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        return None


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _names(model: str | Path, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{model}: expected classes to be a list of names, got {value!r}")
    return value
