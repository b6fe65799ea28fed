"""Pipeline: a tokenizer, the transformer that goes with it, and the names of the classes.

What people hold in their hands: generate, stream, reconstruct, save, load. Images leave it in [0, 1].
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale import hub, presets
from nextscale.config import TransformerConfig, check_pair, from_json, to_json
from nextscale.errors import InputError
from nextscale.files import checkpoint
from nextscale.images import to_unit
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
class Generated:
    """What `Pipeline.generate` gives."""

    images: Tensor
    """(B, 3, H, W) float32 in [0, 1]."""
    tokens: Tensor
    """(B, L) int64."""


@dataclass(frozen=True)
class Step:
    """What `Pipeline.stream` yields after each scale."""

    scale: int
    """0-based."""
    tokens: Tensor
    """(B, h_k, w_k) int64, the tokens of this scale."""
    _pipeline: Pipeline
    _canvas: Tensor

    def preview(self) -> Tensor:
        """The images so far, (B, 3, H, W) float32 in [0, 1]."""
        return self._pipeline.show(self._canvas)


class Pipeline:
    """A tokenizer and a transformer on one device.

    Arguments:
        tokenizer, transformer: models that belong together (same scales and codebook), else `InputError`.
        classes: a name a class; their numbers when None.
        device: where both go.
        precision: "auto" takes bfloat16 where the hardware multiplies it fast. The blocks of `transformer` are then
            converted, in place, and held in bfloat16; the tokenizer stays float32, its decoder runs in bfloat16.
    """

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
        names = tuple(map(str, range(transformer.config.classes))) if classes is None else tuple(classes)
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

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the engine, which is made again where it is needed."""
        return {**vars(self), "_engine": None}

    # -- where pipelines come from and go ------------------------------------------------------------------------------

    @classmethod
    def from_preset(
        cls, name: str, *, seed: int = 0, device: str | torch.device = "cpu", precision: Precision = "auto"
    ) -> Pipeline:
        """Random weights in the shape of a preset (shapes alone on "meta"). Raises `InputError` for an unknown name."""
        preset = presets.get(name)
        given = None if find_device(device).type == "meta" else seed
        models = MultiScaleVQVAE(preset.tokenizer, seed=given), VAR(preset.transformer, seed=given)
        return cls(*models, device=device, precision=precision)

    @classmethod
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
        transformer = VAR(from_json(TransformerConfig, sections["transformer"]), seed=None)
        transformer.lower_precision(find_dtype(precision, device))
        weights = Path(model) / transformer_files.WEIGHTS
        checkpoint.assign(transformer, lambda: checkpoint.read_tensors(weights), device=device)
        return cls(
            tokenizer, transformer, classes=_names(model, sections["classes"]), device=device, precision=precision
        )

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

    def generate(
        self,
        labels: Sequence[int | str],
        seeds: Sequence[int] | None = None,
        *,
        guidance: float | Guidance = 1.5,
        top_k: int = 900,
        top_p: float = 0.96,
        temperature: float = 1.0,
        smooth: bool = False,
        memory: int | None = None,
    ) -> Generated:
        """Sample one image a label.

        Arguments:
            labels: class names or numbers; the number of classes itself means "no class".
            seeds: one integer an image, 0, 1, 2 ... when None. Seed i and label i alone decide image i.
            guidance: a number grows linearly from 0 at the first scale to itself at the last; or a schedule, see
                `nextscale.sampling.guidance`.
            top_k, top_p, temperature, smooth: see `sampling.loop.Choice`.
            memory: bytes that the images painted at the same time may take, as `sampling.memory.image_bytes` counts
                them; a larger request is painted in several batches. All at once when None.

        Raises `InputError` for an unknown label, a value out of range, another number of seeds than of labels, or too
        little memory for a single image.
        """
        choice = Choice(top_k, top_p, temperature, smooth)
        numbers, seeds, weights = self._request(labels, seeds, guidance)
        size = len(numbers) if memory is None else self._images_within(memory, guided=any(weights))
        parts = [slice(start, start + size) for start in range(0, len(numbers), size)]
        done = [self._paint(self._walk(numbers[part], seeds[part], weights, choice)) for part in parts]
        return Generated(torch.cat([part.images for part in done]), torch.cat([part.tokens for part in done]))

    def stream(
        self,
        labels: Sequence[int | str],
        seeds: Sequence[int] | None = None,
        *,
        guidance: float | Guidance = 1.5,
        top_k: int = 900,
        top_p: float = 0.96,
        temperature: float = 1.0,
        smooth: bool = False,
    ) -> Iterator[Step]:
        """`generate`, scale by scale: yields a `Step` after each."""
        choice = Choice(top_k, top_p, temperature, smooth)
        steps = self._walk(*self._request(labels, seeds, guidance), choice)  # mistakes raise at the call
        return (Step(step.scale, step.tokens, self, step.canvas) for step in steps)

    def _request(
        self, labels: Sequence[int | str], seeds: Sequence[int] | None, guidance: float | Guidance
    ) -> tuple[list[int], Sequence[int], list[float]]:
        """Numbers of the classes, one seed each, and the weight of guidance at each scale, all checked."""
        if isinstance(labels, int | str) or isinstance(seeds, int):
            raise InputError(f"labels and seeds: expected lists, one entry an image, got {labels!r} and {seeds!r}")
        numbers = [self.label(label) for label in labels]
        seeds = range(len(numbers)) if seeds is None else seeds
        if len(seeds) != len(numbers):
            raise InputError(f"seeds: expected one a label, {len(numbers)}, got {len(seeds)}")
        if not numbers:
            raise InputError("labels: expected at least one, got none")
        return numbers, seeds, weights_of(guidance, len(self.transformer.config.scales))

    def _images_within(self, memory: int, *, guided: bool) -> int:
        each = image_bytes(self.tokenizer.config, self.transformer.config, guided=guided, dtype=self.dtype)
        if memory < each:
            raise InputError(f"memory: expected at least {each} bytes, what one image takes, got {memory}")
        return int(memory // each)

    def _walk(
        self, numbers: Sequence[int], seeds: Sequence[int], weights: Sequence[float], choice: Choice
    ) -> Iterator[Painted]:
        walk = loop.generate(
            self.engine().transformer,
            self.tokenizer.quantizer,
            numbers,
            seeds,
            guidance=listed_guidance(weights),
            choice=choice,
        )
        # copied outside of inference mode, so that callers get tensors they may do anything with
        return (Painted(step.scale, step.tokens.clone(), step.canvas.clone()) for step in walk)

    def _paint(self, walk: Iterator[Painted]) -> Generated:
        """The tokens of all scales, and the last canvas decoded once the walk has let its cache go."""
        steps = list(walk)
        tokens_BL = torch.cat([step.tokens.flatten(1) for step in steps], dim=1)
        return Generated(self.show(steps[-1].canvas), tokens_BL)

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
    def reconstruct(self, images_B3HW: Tensor, through: int | None = None) -> Tensor:
        """Images in [-1, 1] through the tokens (of the first `through` scales) and back, in [-1, 1] and float32."""
        tokens_BL = self.tokenizer.encode(images_B3HW.to(self.device))
        return self.tokenizer.decode(tokens_BL, through)

    def label(self, name: int | str) -> int:
        """The number of a class, from its name or number; the number of classes itself means "no class"."""
        if isinstance(name, str) and name in self.classes:
            return self.classes.index(name)
        try:
            number = int(name) if isinstance(name, str) else operator.index(name)
        except (ValueError, TypeError):
            raise InputError(f"label: expected one of {', '.join(self.classes[:12])}, got {name!r}") from None
        if not 0 <= number <= len(self.classes):
            raise InputError(
                f"label: expected 0 .. {len(self.classes) - 1} (or {len(self.classes)}: no class), got {number}"
            )
        return number


def _names(model: str | Path, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{model}: expected classes to be a list of names, got {value!r}")
    return value
