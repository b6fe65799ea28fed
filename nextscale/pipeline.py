"""Pipeline: a tokenizer, the transformer that goes with it, the names of the classes, and what reads prompts.

The main entry point: generate, stream, edit, reconstruct, save, load, push. It takes and returns images in [0, 1]; the
models inside work in [-1, 1].
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import operator
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nextscale import hub, modelcard, presets
from nextscale.checks import checked
from nextscale.config import Order, TransformerConfig, check_classes, check_pair, from_json, to_json
from nextscale.errors import InputError, printable
from nextscale.files import checkpoint, durable
from nextscale.images import UNIT, Given, as_batch, as_unit, from_unit, grid, save, to_pil, to_unit
from nextscale.machine.precision import SamplingPrecision, exact, find_arithmetic, find_device, on_device
from nextscale.rivals.orders import Sampler, changed, kind_of, settings_of, teacher_inputs
from nextscale.sampling import editing, loop
from nextscale.sampling.engine import Engine, Engines
from nextscale.sampling.guidance import Guidance, listed_guidance, usual_guidance
from nextscale.sampling.loop import Process
from nextscale.sampling.masks import Mask, as_mask
from nextscale.sampling.memory import image_bytes
from nextscale.sampling.settings import Dealt, Settings
from nextscale.scales import Scales
from nextscale.text.frozen import FrozenEncoder
from nextscale.text.prompts import Prompts, Reader, check_reader
from nextscale.text.vocabulary import Vocabulary
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.tokenizer import model as tokenizer_files
from nextscale.tokenizer.quantizer import check_tokens
from nextscale.transformer import VAR, Condition
from nextscale.transformer import likelihood as likelihoods
from nextscale.transformer import model as transformer_files
from nextscale.transformer.likelihood import Classified, Likelihood, Reading

FEATHER = 1024  # pixels at most
MOST_SHOWN, AT_A_TIME, SHOWN_SIDE = (
    256,
    4,
    128,
)  # samples on a published model's page; together; pixels a side, at least
NO_CLASS = "no class"
MAKER = ("precision", "model", "edit")  # of a request, what a note of its own tells
Labels = int | str | Sequence[int | str]
Texts = str | Sequence[str]
Progress = Callable[[int, int], object]  # called with (done, total)


class Shown(NamedTuple):
    """What the pictures on the page of a published model are."""

    labels: list[int] | None
    prompts: list[str] | None
    seeds: range
    told: str
    """In one line."""


class Asked(NamedTuple):
    """What pictures are to show, as callers give it."""

    labels: Labels | None
    prompts: Texts | None
    negative: str | None


class Row(NamedTuple):
    """A picture whose likelihood is asked for, and under which condition."""

    image: int
    label: int
    prompt: str | None


@dataclass(frozen=True)
class Request:
    """The settings of one picture: with the same model they suffice to repeat it."""

    label: int
    """Number of the class; the number of classes itself is "no class"."""
    name: str
    """Of the class."""
    seed: int
    guidance: float | tuple[float, ...]
    """A number as `Pipeline.generate` takes it, or the weight at each scale."""
    top_k: int | tuple[int, ...]
    """Of all scales, or of each; likewise the next two."""
    top_p: float | tuple[float, ...]
    temperature: float | tuple[float, ...]
    smooth: bool
    precision: str
    """Of the computation: float32, bfloat16, float16 or int8."""
    model: str
    """`Pipeline.fingerprint`."""
    edit: Mapping[str, object] | None = None
    """How `Pipeline.edit` was called, if it was; what it was called with is another picture."""
    prompt: str | None = None
    """The prompt, if there was one."""
    negative_prompt: str | None = None
    """The prompt that guidance moved away from, instead of no text."""
    step_guidance: float | tuple[float, ...] | None = None
    """Of guidance by the scale before, if there was some: of all scales, or of each."""
    reach: int | None = None
    """Number of scales that tokens attended to, if not all."""
    rerank: Mapping[str, object] | None = None
    """How many maps were drawn at which scales, and by which function one was chosen, if one was."""
    sampler: Mapping[str, object] | None = None
    """Settings of `Pipeline.sampler`, where it has some."""

    @property
    def stem(self) -> str:
        """A file name that tells label, prompt and seed: `3-food-drink-seed7`, `a-red-heart-seed7`."""
        words = _as_file_name(self.name)
        named = [words] if words and words != str(self.label) else []
        prompt = "" if self.prompt is None else _as_file_name(self.prompt)
        label = [] if prompt and self.name == NO_CLASS else [str(self.label), *named]
        return "-".join([*label, *([prompt] if prompt else []), f"seed{self.seed}"])

    @property
    def title(self) -> str:
        """For people: class, prompt, or both."""
        return titled(self.name, self.prompt)

    @property
    def notes(self) -> dict[str, str]:
        """For a PNG to carry along; `from_notes` reads it."""
        told = {name: value for name, value in vars(self).items() if value is not None}
        maker = {name: told.pop(name) for name in MAKER if name in told}
        return {"nextscale": json.dumps(told, ensure_ascii=False), "nextscale-model": json.dumps(maker)}

    @classmethod
    def from_notes(cls, notes: Mapping[str, str]) -> Request:
        """The request in a PNG's notes (`images.notes`).

        Raises `InputError` where there is none, or one that nextscale does not write.
        """
        if not {"nextscale", "nextscale-model"} <= notes.keys():
            raise InputError("expected a picture that tells what it was painted from, got one without such a note")
        try:
            values: dict[str, Any] = {**json.loads(notes["nextscale"]), **json.loads(notes["nextscale-model"])}
            listed = {name: tuple(each) for name, each in values.items() if isinstance(each, list)}
            return cls(**{**values, **listed})
        except (ValueError, TypeError, KeyError):
            raise InputError("expected a picture's note as nextscale writes it, got another") from None


@dataclass(frozen=True)
class Generated:
    """The result of `Pipeline.generate`; its `len` is B."""

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

        `Request.from_notes(images.notes(path))` is the request again, for `repeat`; the settings alone, for `generate`,
        are `json.loads(PIL.Image.open(path).text["nextscale"])`. Files of the same names are replaced.
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


@dataclass(frozen=True)
class Rerank:
    """Draw several maps at coarse scales, which decide much at little cost, and keep the best."""

    score: Callable[[Step], Tensor]
    """Candidates, as `Step` tells them -> (N,) finite numbers, the larger the better. Those of a picture stand one
    after the other, each with its request; `preview` shows each as if it were painted. A score must not depend on its
    neighbours, or pictures depend on their batch."""
    count: int = 8
    """Maps drawn; the first is the one that would be drawn anyway."""
    scales: Sequence[int] | None = None
    """At which scales, 0-based; None: the coarser half."""

    def at(self, scales: int) -> list[int]:
        """The scales, in order, of a model of so many. Raises `InputError` for values out of range."""
        if not callable(self.score):
            raise InputError(f"rerank: expected a function of a Step as score, got {self.score!r}")
        wanted = [*range(max(1, scales // 2))]
        wanted = wanted if self.scales is None else _listed("rerank: expected a list of scales", self.scales)
        for name, values, least, most in (("count", [self.count], 1, None), ("scales", wanted, 0, scales - 1)):
            for value in values:
                number = _integer(value)
                if number is None or number < least or (most is not None and number > most):
                    told = f"{least} or more" if most is None else f"{least} .. {most}"
                    raise InputError(f"rerank: expected {name} of {told}, got {value!r}")
        return sorted({operator.index(value) for value in wanted})

    def told(self, scales: int) -> dict[str, object]:
        """For `Request.rerank`."""
        name = getattr(self.score, "__qualname__", type(self.score).__qualname__)
        by = f"{getattr(self.score, '__module__', None) or '?'}:{name}"
        return {"scales": self.at(scales), "count": operator.index(self.count), "by": by}

    def words(self, scales: int) -> str:
        """For people."""
        told = self.told(scales)
        return f"best of {told['count']} maps at scales {','.join(map(str, self.at(scales)))} by {told['by']}"


def titled(name: str, prompt: str | None) -> str:
    """A class, a prompt, or both."""
    if prompt is None:
        return name
    return prompt if name == NO_CLASS else f"{name}: {prompt}"


def _shown(engine: Engine, canvas_BCHW: Tensor) -> Tensor:
    """A canvas f_hat -> images (B, 3, H, W) float32 in [0, 1]."""
    with torch.inference_mode(), exact():
        images = to_unit(engine.paint(canvas_BCHW))
    return images.clone()


def _as_file_name(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:40].strip("-")


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
        classes: a name a class, no two the same, else `InputError`; their numbers when None.
        device: where both run; a model that is elsewhere is copied there.
        precision: what the blocks and the decoder compute in; "auto" takes bfloat16 where the hardware multiplies it
            fast; "int8" multiplies in int8 on CPUs, what is made of the weights with the first picture. Encoder and
            quantizer always compute in float32.
        reader: what reads prompts, such as `text.vocabulary.Vocabulary`; for a transformer that takes text, and for no
            other, else `InputError`.

    The pipeline never changes the two models. Weights that it computes in another format are copies of its own, made
    with the first picture; it shares a model that is on `device`, and so follows its training.
    """

    @checked
    def __init__(
        self,
        tokenizer: MultiScaleVQVAE,
        transformer: VAR,
        *,
        classes: Sequence[str] | None = None,
        device: str | torch.device = "cpu",
        precision: SamplingPrecision = "auto",
        reader: Reader | None = None,
    ) -> None:
        check_pair(tokenizer.config, transformer.config)
        check_reader(reader, transformer.config.text)
        self.device = find_device(device)
        self.arithmetic = find_arithmetic(precision, self.device)
        self.tokenizer = on_device(tokenizer, self.device)
        self.transformer = on_device(transformer, self.device)
        self.classes = _numbers(transformer.config.classes) if classes is None else tuple(classes)
        self.reader = reader
        self._sampler = kind_of(transformer.config).sampler
        self._engines = Engines()

    def __repr__(self) -> str:
        """One line: model, size, classes, device, precision."""
        model, size = self.transformer.config, self.tokenizer.config
        shown = "" if self.classes == _numbers(model.classes) else f": {', '.join(self.classes[:3])}"
        more = ", ..." if shown and len(self.classes) > 3 else ""
        text = f", prompts of {model.text.tokens} pieces" if model.text else ""
        kind = f"{type(self.transformer).__name__}-d{model.depth}"
        return (
            f"Pipeline({kind}, {model.parameters / 1e6:.1f} M parameters, {size.height}x{size.width} px, "
            f"{model.classes} classes{shown}{more}{text}, on {self.device} in {self.arithmetic.name})"
        )

    @property
    def dtype(self) -> torch.dtype:
        """What sampling computes in, but for the products that `arithmetic` has in int8."""
        return self.arithmetic.dtype

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers."""
        return self._classes

    @classes.setter
    def classes(self, names: tuple[str, ...]) -> None:
        check_classes(names, self.transformer.config.classes)
        self._classes = tuple(names)

    @property
    def sampler(self) -> Sampler:
        """How pictures are painted, and in how many steps: scale by scale, or as the rivals do it (`rivals`).

        Another one may be set, such as `MaskedSampler(steps=8)`; of another order it is an `InputError`.
        """
        return self._sampler

    @sampler.setter
    def sampler(self, sampler: Sampler) -> None:
        usual = kind_of(self.transformer.config).sampler
        if type(sampler) is not type(usual):
            told = f"{type(usual).__name__} for a model of order {self.transformer.order}"
            raise InputError(f"sampler: expected {told}, got {type(sampler).__name__}")
        self._sampler = sampler

    @property
    def steps(self) -> int:
        """How many steps a picture takes: one a scale, in raster order one a token, else as many as the sampler has."""
        return self.sampler.count(self.transformer.config)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the weights and the shape of the models, not with the device or precision.

        And with what prompts are read as, where there is a reader.
        """
        return self._painter()[1]

    def _painter(self) -> tuple[Engine, str]:
        """What sampling runs, and the fingerprint; one look at the weights serves both."""
        engine, models = self._engines.named(self.tokenizer, self.transformer, self.arithmetic)
        if self.reader is None or not models:
            return engine, models
        return engine, hashlib.sha256(f"{models} {self.reader.fingerprint}".encode()).hexdigest()[:16]

    @checked
    def to(self, device: str | torch.device) -> Pipeline:
        """Run on `device` from now on; returns this pipeline. A model that is elsewhere is replaced by a copy there.

        Raises `InputError` for a device that is not there, for one where int8 is not fast when that is the precision,
        and for leaving "meta", where there are shapes alone.
        """
        device = find_device(device)
        if self.device.type == "meta" != device.type:
            raise InputError(f"device: expected weights to move to {device}, got shapes alone, on meta")
        if self.arithmetic.int8:
            find_arithmetic("int8", device)  # raises where it is not fast
        self.refresh()  # before the models are copied: not two engines at a time
        self.tokenizer, self.transformer = on_device(self.tokenizer, device), on_device(self.transformer, device)
        self.device = device
        return self

    def refresh(self) -> None:
        """Make what sampling holds copies of anew before the next picture.

        Changed weights are noticed without it: whatever torch counts as a write; and of what it does not count (fused
        optimizers, `.data`, tensors made in inference mode) all that reaches a thirty-second of a weight. This is for a
        write through `.data` to fewer values.
        """
        self._engines.drop()

    # -- where pipelines come from and go ------------------------------------------------------------------------------

    @classmethod
    @checked
    def from_preset(
        cls, name: str, *, seed: int = 0, device: str | torch.device = "cpu", precision: SamplingPrecision = "auto"
    ) -> Pipeline:
        """Random weights in the shape of a preset (shapes alone on "meta"), blocks held in `precision`, int8 in "auto".

        One that takes text reads it byte by byte: a vocabulary is learned from captions.

        Raises `InputError` for an unknown name.
        """
        preset, place = presets.get(name), find_device(device)
        given = None if place.type == "meta" else seed
        transformer = VAR(preset.transformer, seed=given).lower_precision(find_arithmetic(precision, place).dtype)
        tokenizer = MultiScaleVQVAE(preset.tokenizer, seed=given)
        text = preset.transformer.text
        reader = None if text is None else Vocabulary((), text.tokens)
        return cls(tokenizer, transformer, device=place, precision=precision, reader=reader)

    @classmethod
    @checked
    def load(
        cls,
        model: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        precision: SamplingPrecision = "auto",
        text_encoder: str | Path | None = None,
    ) -> Pipeline:
        """The pipeline in a directory: a finished run of `train transformer`, or what `save` wrote.

        Without a directory it is the default model, which comes with the package: icons of 64 px, from prompts and
        drawing styles (docs/default-model.md). The directory may be on the hub, or at an address such as
        `s3://bucket/runs/mine`: it comes to a cache then.

        The blocks are held in `precision`: in half of the memory where that is bfloat16. "int8" holds them as "auto".

        Arguments:
            text_encoder: folder or hub name of the frozen text encoder that the model was trained with, where it is no
                longer where it was then. Without this nothing of it is downloaded.

        Raises `InputError` when files are missing, damaged, or do not fit each other.
        """
        model = hub.local(model)
        config = checkpoint.read_config(model, ("tokenizer", "transformer", "classes"))
        tokenizer = MultiScaleVQVAE.load(model, device=device)
        kind = kind_of(from_json(TransformerConfig, config["transformer"]))
        held = find_arithmetic(precision, find_device(device)).held
        transformer = kind.model.load(model, device=device, precision=held)
        names, reader = _names(model, config["classes"]), _reader(config, text_encoder)
        return cls(tokenizer, transformer, classes=names, device=device, precision=precision, reader=reader)

    @checked
    def save(self, directory: str | Path) -> None:
        """Write config.json, tokenizer.safetensors and transformer.safetensors, at the precision they are held in.

        If a save over another model is interrupted, `load` finds the old model or the new one, never parts of both.
        """
        self._write(directory, {} if self.reader is None else self.reader.to_json())

    def _write(self, directory: str | Path, reads: Mapping[str, Any]) -> None:
        """`save`, with this about the reader."""
        config = {
            "tokenizer": to_json(self.tokenizer.config),
            "transformer": to_json(self.transformer.config),
            "classes": list(self.classes),
            **reads,
        }
        files = {
            tokenizer_files.WEIGHTS: self.tokenizer.state_dict(),
            transformer_files.WEIGHTS: self.transformer.state_dict(),
        }
        checkpoint.save(directory, config, files)

    @checked
    def push_to_hub(
        self,
        name: str,
        *,
        private: bool = False,
        about: str = "",
        license: str | None = None,
        run: str | Path | None = None,
        figures: Sequence[str | Path] = (),
        samples: int = 16,
        prompts: Sequence[str] = (),
        out: str | Path | None = None,
    ) -> str:
        """Upload the model in one commit, with a page that describes it; returns its address. `load(name)` reads it.

        Weights are stored at the precision they are held in. The login is the hub client's: `hf auth login`, or a token
        in HF_TOKEN.

        Arguments:
            name: of the repository, `owner/name`; created if needed.
            private: whether a new repository is private.
            about: Markdown for the card: source of the pictures, acknowledgements, intended use.
            license: of the weights, as the hub spells it: "mit", "cc-by-4.0" ...
            run: directory of the training run, from which the page takes data and recipe.
            figures: files that `nextscale evaluate ... --json FILE` wrote.
            samples: so many pictures on the page: class after class, or of `prompts` in turn, seeds 0, 1, 2 ...
            out: a directory where everything is written instead of being uploaded; returned then.

        Raises `InputError` for a name that no repository may have, without a login, when the hub refuses the upload or
        does not answer, and for a run or figures that cannot be read.
        """
        place = None if run is None else Path(run)
        told = modelcard.Told(about=about, license=license, run=place, figures=tuple(map(Path, figures)))
        shown = self._samples(int(samples), prompts)
        page = modelcard.page(self._facts(name), told, shown.told if shown.seeds else None)
        if out is None:
            hub.check_upload(name)
        folder: AbstractContextManager[str] = tempfile.TemporaryDirectory() if out is None else nullcontext(str(out))
        with folder as written:
            self._write(written, {} if self.reader is None else modelcard.without_places(self.reader.to_json()))
            self._save_samples(Path(written) / "samples.png", shown)
            durable.write_beside(Path(written) / "README.md", lambda beside: beside.write_text(page, "utf-8"))
            return hub.upload(name, Path(written), private=private) if out is None else written

    def _facts(self, name: str) -> modelcard.Facts:
        """What the model tells of itself."""
        dtype = next(self.transformer.blocks.parameters()).dtype
        return modelcard.Facts(
            name=name,
            tokenizer=self.tokenizer.config,
            transformer=self.transformer.config,
            classes=self.classes,
            fingerprint=self.fingerprint,
            dtype=str(dtype).removeprefix("torch."),
            encoder=None if self.reader is None else modelcard.encoder_of(self.reader.to_json()),
        )

    def _samples(self, count: int, prompts: Sequence[str]) -> Shown:
        """What the page of a model is to show, and the line that says it."""
        if not 0 <= count <= MOST_SHOWN:
            raise InputError(f"samples: expected 0 .. {MOST_SHOWN}, got {count}")
        if prompts and self.transformer.config.text is None:
            raise InputError(f"prompts: expected none for a model that reads none, got {prompts[0][:60]!r}")
        each = [prompts[number % len(prompts)] for number in range(count)] if prompts else None
        labels = None if prompts else [number % len(self.classes) for number in range(count)]
        of = "class after class" if not prompts else "of " + "; ".join(prompts)
        usual = Settings()
        drawn = f"guidance {usual.guidance}, top-k {usual.top_k}, top-p {usual.top_p}"
        return Shown(labels, each, range(count), f"{count} samples, not picked, {of}: seeds from 0 on, {drawn}")

    def _save_samples(self, file: Path, shown: Shown) -> None:
        """Paint them, a few at a time, and write them in a square, enlarged where they are small."""
        if not shown.seeds:
            return
        painted = []
        for start in range(0, len(shown.seeds), AT_A_TIME):
            part = slice(start, start + AT_A_TIME)
            labels = None if shown.labels is None else shown.labels[part]
            prompts = None if shown.prompts is None else shown.prompts[part]
            painted.append(self.generate(labels, list(shown.seeds[part]), prompts=prompts).images)
        images_B3HW = torch.cat(painted)
        zoom = -(-SHOWN_SIDE // min(images_B3HW.shape[2:]))
        large = images_B3HW.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
        save(file, from_unit(grid(large, columns=math.ceil(math.sqrt(len(large))), gap=4)))

    # -- pictures ------------------------------------------------------------------------------------------------------

    @checked
    def generate(
        self,
        labels: Labels | None = None,
        seeds: int | Sequence[int] | None = None,
        *,
        prompts: Texts | None = None,
        negative_prompt: str | None = None,
        guidance: float | Sequence[float] | Guidance | None = None,
        top_k: int | Sequence[int] = 900,
        top_p: float | Sequence[float] = 0.96,
        temperature: float | Sequence[float] = 1.0,
        smooth: bool = False,
        step_guidance: float | Sequence[float] = 0.0,
        reach: int | None = None,
        rerank: Rerank | None = None,
        memory: float | None = None,
        logits_processor: Process | None = None,
        callback: Callable[[Step], object] | None = None,
    ) -> Generated:
        """Sample one image a label, a prompt, or a pair of them.

        Arguments:
            labels: of classes, a string by its name, an integer by its number; the number of classes itself means "no
                class", which is meant where there are prompts alone. One alone is for every prompt or seed.
            seeds: one integer an image; one alone counts up from there: s, s + 1 ...; 0, 1, 2 ... when None. Seed i,
                label i and prompt i alone decide image i.
            prompts: texts; one that is too long for the model is truncated, with a warning. A single one is for every
                label or seed.
            negative_prompt: text that guidance moves away from, instead of no text.
            guidance: a number grows linearly from 0 at the first scale to itself at the last; a sequence has the weight
                of each scale; or a schedule, see `nextscale.sampling.guidance`. None is 1.5, and with prompts 6 at
                every scale.
            top_k, top_p, temperature, smooth: see `sampling.loop.Choice`; a sequence has a value for each scale.
            step_guidance: strength of guidance away from the enlarged logits of the scale before (`step_guidance`).
            reach: number of scales a token attends to, its own included; all so far when None.
            rerank: draws several maps at some scales and keeps the best, by a function of yours (`Rerank`).
            memory: bytes that the images painted at the same time may take, as `sampling.memory.image_bytes` counts
                them; a larger request is painted in several batches. All at once when None.
            logits_processor: (scale, logits) -> the logits to draw from: (B, h_k * w_k, V) float32, after guidance and
                before temperature and truncation.
            callback: called with the `Step` of each scale (of each batch) before the next begins.

        Raises `InputError` for an unknown label, prompts for a model that reads none, a value out of range, another
        number of seeds than of labels or prompts, too little memory for a single image, or logits that nothing can be
        drawn from.
        """
        settings = Settings(_guided(guidance, prompts), top_k, top_p, temperature, smooth, step_guidance, reach)
        asked = Asked(labels, prompts, negative_prompt)
        requests, dealt, engine = self._requests(asked, seeds, settings, rerank)
        size = len(requests) if memory is None else self._images_within(memory, dealt, rerank)
        parts = [requests[start : start + size] for start in range(0, len(requests), size)]
        walks = (self._walk(engine, part, dealt, logits_processor, callback, rerank=rerank) for part in parts)
        done = [self._paint(engine, walk) for walk in walks]
        images, tokens = (torch.cat(column) for column in zip(*done, strict=True))
        return Generated(images, tokens, requests)

    @checked
    def stream(
        self,
        labels: Labels | None = None,
        seeds: int | Sequence[int] | None = None,
        *,
        prompts: Texts | None = None,
        negative_prompt: str | None = None,
        guidance: float | Sequence[float] | Guidance | None = None,
        top_k: int | Sequence[int] = 900,
        top_p: float | Sequence[float] = 0.96,
        temperature: float | Sequence[float] = 1.0,
        smooth: bool = False,
        step_guidance: float | Sequence[float] = 0.0,
        reach: int | None = None,
        rerank: Rerank | None = None,
        logits_processor: Process | None = None,
        callback: Callable[[Step], object] | None = None,
    ) -> Iterator[Step]:
        """`generate`, scale by scale: yields a `Step` after each."""
        settings = Settings(_guided(guidance, prompts), top_k, top_p, temperature, smooth, step_guidance, reach)
        asked = Asked(labels, prompts, negative_prompt)
        requests, dealt, engine = self._requests(asked, seeds, settings, rerank)  # mistakes raise at the call
        return self._walk(engine, requests, dealt, logits_processor, callback, rerank=rerank)

    @checked
    def repeat(self, request: Request, *, score: Callable[[Step], Tensor] | None = None) -> Generated:
        """Repeat the picture of a request: the same to the bit in the same precision on the same machine.

        `score` is the function by which maps were chosen, if some were (`Rerank`): no picture can carry it along.

        Raises `InputError` for what another model painted, for an edit, which takes its picture and mask, and for maps
        that were chosen where there is no `score`.
        """
        if request.model != self.fingerprint:
            raise InputError(f"expected the model that painted it, {request.model}, got another, {self.fingerprint}")
        if request.edit is not None:
            raise InputError("expected a picture painted from nothing, got an edit: its picture and mask are needed")
        if request.rerank is not None and score is None:
            raise InputError(f"expected a score, the function {request.rerank.get('by')} that chose its maps, got none")
        told = {name: getattr(request, name) for name in vars(Settings())}
        settings = {name: value for name, value in told.items() if value is not None}
        pipe = copy.copy(self)  # whose sampler is its own
        pipe.sampler = changed(self.sampler, request.sampler or {})
        return pipe.generate(
            request.label,
            [request.seed],
            prompts=request.prompt,
            negative_prompt=request.negative_prompt,
            rerank=None if request.rerank is None or score is None else _reranking(request.rerank, score),
            **settings,
        )

    @torch.no_grad()
    @checked
    def edit(
        self,
        images: Given,
        mask: Mask | None = None,
        labels: Labels | None = None,
        seeds: int | Sequence[int] | None = None,
        *,
        prompts: Texts | None = None,
        negative_prompt: str | None = None,
        count: int = 1,
        leak_free: bool = True,
        keep_scales: int = 0,
        feather: int = 0,
        composite: bool = True,
        copy: bool = False,
        guidance: float | Sequence[float] | Guidance | None = None,
        top_k: int | Sequence[int] = 900,
        top_p: float | Sequence[float] = 0.96,
        temperature: float | Sequence[float] = 1.0,
        smooth: bool = False,
        step_guidance: float | Sequence[float] = 0.0,
        reach: int | None = None,
        logits_processor: Process | None = None,
        callback: Callable[[Step], object] | None = None,
    ) -> Generated:
        """Repaint a part of each picture, or its fine scales: `count` results of the first, then of the next.

        Arguments:
            images: N pictures, as `reconstruct` takes them.
            mask: one for all or one a picture, 1 or True where it is repainted, in between a mixture (see
                `sampling.masks.as_mask`). None repaints everything, but for what `keep_scales` keeps.
            labels: of classes, one for all results or one a result, as `generate` takes them; None is no class.
            seeds: one a result; one alone counts up from there; 0, 1, 2 ... when None.
            prompts, negative_prompt: one prompt for all results or one a result, as `generate` takes them.
            leak_free: hidden content cannot influence the result: the encoder sees the region filled from around it.
                Otherwise the encoder sees it, and it may leak.
            keep_scales: number of coarse scales to keep, also inside the mask, whatever `leak_free` says: a variation.
            feather: width in pixels of the mask's soft edge, on the repainted side.
            composite: return kept pixels bit for bit; otherwise as the decoder paints them.
            copy: the release's way, for comparison: the picture's own tokens are copied, the coarsest one too, even
                where what was painted beside them has changed what they should be. It is not leak-free.
            guidance, top_k, top_p, temperature, smooth, step_guidance, reach, logits_processor, callback: see
                `generate`. Previews show what is painted, before kept pixels are put back.

        Raises `InputError` for pictures or masks of another shape or number, a value out of range, and whatever
        `generate` refuses.
        """
        size = self.tokenizer.config
        if self.transformer.order != "scale":
            raise InputError(f"edit: expected a model of order scale, got one of order {self.transformer.order}")
        _check_edit(count=count, feather=feather, keep_scales=keep_scales, scales=len(size.scales))
        if copy and (leak_free or keep_scales):
            raise InputError("copy: expected leak_free=False and no keep_scales, since the release's way leaks")
        given, signed = self._pictures(images, count)
        mask_B1HW = self._mask(mask, len(signed) // count).repeat_interleave(count, 0)
        settings = Settings(_guided(guidance, prompts), top_k, top_p, temperature, smooth, step_guidance, reach)
        names = _spread("labels", len(self.classes) if labels is None else labels, len(signed))
        words = None if prompts is None else _spread("prompts", prompts, len(signed))
        requests, dealt, engine = self._requests(Asked(names, words, negative_prompt), seeds, settings)
        seen = editing.filled(signed, mask_B1HW > 0) if leak_free and not keep_scales else signed
        change = self._change(seen, mask_B1HW, keep_scales=keep_scales, copy=copy)
        told = {"leak_free": leak_free, "keep_scales": keep_scales, "feather": feather, "copy": copy}
        requests = tuple(replace(request, edit=told) for request in requests)
        painted, drawn_BL = self._paint(engine, self._walk(engine, requests, dealt, logits_processor, callback, change))
        if composite:
            around = torch.where(mask_B1HW > 0, to_unit(seen), given)
            painted = editing.composed(painted, around, editing.feathered(mask_B1HW, feather))
        return Generated(painted, change.painted(drawn_BL), requests)

    def _change(self, seen_B3HW: Tensor, mask_B1HW: Tensor, *, keep_scales: int, copy: bool) -> editing.Keeping:
        """What keeps the tokens of pictures in [-1, 1] outside of the mask."""
        quantizer, f_BCHW = self.tokenizer.quantizer, self.tokenizer.features(seen_B3HW)
        if copy:
            keep_B1hw = 1 - F.interpolate(mask_B1HW, f_BCHW.shape[-2:], mode="area")
            return editing.release_edit(quantizer, quantizer.encode(f_BCHW), keep_B1hw[:, 0])
        known_B1hw = editing.known(quantizer.scales, mask_B1HW > 0)
        keep = editing.kept(quantizer.scales, known_B1hw, keep_scales=keep_scales)
        return editing.ResidualEdit(quantizer, f_BCHW, keep, known_B1hw.clamp(min=float(keep_scales > 0)))

    def _pictures(self, images: Given, count: int) -> tuple[Tensor, Tensor]:
        """Each `count` times, in [0, 1] as they were given and in [-1, 1]."""
        size = {"height": self.tokenizer.config.height, "width": self.tokenizer.config.width}
        pair = as_unit(images, **size), as_batch(images, **size, within=UNIT)
        unit, signed = (each.to(self.device).repeat_interleave(count, 0) for each in pair)
        return unit, signed

    def _mask(self, given: Mask | None, batch: int) -> Tensor:
        """(B, 1, H, W) float32 on the pipeline's device."""
        size = self.tokenizer.config
        if given is None:
            return torch.ones(batch, 1, size.height, size.width, device=self.device)
        mask_B1HW = as_mask(given, height=size.height, width=size.width).to(self.device)
        if len(mask_B1HW) not in (1, batch):
            raise InputError(f"mask: expected one, or one a picture, {batch}, got {len(mask_B1HW)}")
        return mask_B1HW.expand(batch, -1, -1, -1)

    def _requests(
        self,
        asked: Asked,
        seeds: int | Sequence[int] | None,
        settings: Settings,
        rerank: Rerank | None = None,
    ) -> tuple[tuple[Request, ...], Dealt, Engine]:
        """One an image, the settings of each step, and what paints them."""
        labels, prompts, numbers = _aligned(asked, seeds)
        self._check_words(
            [*(prompts if asked.prompts is not None else ()), *([asked.negative] if asked.negative else ())]
        )
        dealt = settings.dealt(self.steps)
        _refuse_scales(dealt, self.transformer.order, rerank)
        chosen = None if rerank is None else rerank.told(self.steps)
        known = (*self.classes, NO_CLASS)
        places = [len(self.classes)] * len(labels) if asked.labels is None else list(map(self.label, labels))
        engine, model = self._painter()
        how = {**dealt.told, "sampler": settings_of(self.sampler) or None}
        how |= {"precision": self.arithmetic.name, "model": model}
        rows = zip(places, numbers, prompts, strict=True)
        requests = (
            Request(place, known[place], seed, **how, prompt=prompt, negative_prompt=asked.negative, rerank=chosen)
            for place, seed, prompt in rows
        )
        return tuple(requests), dealt, engine

    def _check_words(self, prompts: Sequence[str]) -> None:
        """Raise `InputError` for prompts that cannot be read; warn of those whose end is cut off."""
        for prompt in prompts:
            if not isinstance(prompt, str) or not _is_unicode(prompt):
                raise InputError(f"prompts: expected text, got {prompt!r}")
        if prompts and self.reader is None:
            raise InputError(f"prompts: expected labels, since this model reads no text, got {prompts[0][:60]!r}")
        once = [*dict.fromkeys(prompts)]
        for prompt, length in zip(once, self.reader.lengths(once) if self.reader else (), strict=True):
            if self.reader is not None and length > self.reader.tokens:
                told = f"{length} pieces, of which the first {self.reader.tokens} are read: {prompt[:60]!r}"
                warnings.warn(f"prompt of {told}", stacklevel=2)

    def _read(self, requests: Sequence[Request]) -> tuple[Prompts | None, Prompts | None]:
        """Prompts and negative prompts of a batch; None where no text is read."""
        if self.reader is None:
            return None, None
        prompts = self.reader.read([request.prompt or "" for request in requests])
        return prompts, self.reader.read([request.negative_prompt or "" for request in requests])

    def _images_within(self, memory: float, dealt: Dealt, rerank: Rerank | None) -> int:
        candidates = {} if rerank is None else dict.fromkeys(rerank.at(self.steps), rerank.count)
        takes = dealt.takes | {"candidates": candidates}
        each = image_bytes(self.tokenizer.config, self.transformer.config, dtype=self.dtype, **takes)
        if not each <= memory < float("inf"):
            raise InputError(f"memory: expected at least {each} bytes, what one image takes, got {memory}")
        return int(memory // each)

    def _walk(
        self,
        engine: Engine,
        requests: tuple[Request, ...],
        dealt: Dealt,
        process: Process | None,
        callback: Callable[[Step], object] | None,
        edit: loop.Edit | None = None,
        rerank: Rerank | None = None,
    ) -> Iterator[Step]:
        prompts, negative = self._read(requests)
        walk = self.sampler.paint(
            engine.transformer,
            engine.tokenizer.quantizer,
            [request.label for request in requests],
            [request.seed for request in requests],
            guidance=listed_guidance(dealt.weights),
            choice=dealt.choices,
            step_guidance=dealt.step_weights,
            reach=dealt.reach,
            prompts=prompts,
            negative=negative,
            process=process,
            edit=edit,
            **({} if rerank is None else {"ranking": self._ranking(rerank, requests)}),
        )
        while True:
            with exact():  # not while the caller has the step
                painted = next(walk, None)
            if painted is None:
                return
            # copied outside of inference mode, so that callers get tensors they may do anything with
            step = Step(painted.scale, painted.tokens.clone(), requests, self, painted.canvas.clone())
            if callback is not None:
                callback(step)
            yield step

    def _ranking(self, rerank: Rerank, requests: tuple[Request, ...]) -> loop.Ranking:
        """Candidates in the form of steps: each with the request of its picture."""
        each = tuple(request for request in requests for _ in range(rerank.count))

        def score(painted: loop.Painted) -> Tensor:
            return rerank.score(Step(painted.scale, painted.tokens, each, self, painted.canvas))

        return loop.Ranking(score, rerank.count, rerank.at(self.steps))

    def _paint(self, engine: Engine, walk: Iterator[Step]) -> tuple[Tensor, Tensor]:
        """The last canvas decoded, once the walk has let its cache go, and the tokens of all scales.

        Where each step yields the whole map, the last one's count.
        """
        tokens = []
        for step in walk:
            tokens.append(step.tokens.flatten(1))
        return _shown(engine, step._canvas), torch.cat(tokens, dim=1)[:, -self.tokenizer.config.scales.total :]

    def engine(self) -> Engine:
        """What sampling runs, made on first use and anew whenever weights have changed (see `refresh`)."""
        return self._engines.of(self.tokenizer, self.transformer, self.arithmetic)

    def show(self, canvas_BCHW: Tensor) -> Tensor:
        """A canvas f_hat -> images (B, 3, H, W) float32 in [0, 1]."""
        return _shown(self.engine(), canvas_BCHW)

    @torch.no_grad()
    @checked
    def reconstruct(self, images: Given, through: int | None = None) -> Tensor:
        """Images through the tokens (of the first `through` scales) and back: (B, 3, H, W) float32 in [0, 1].

        Arguments:
            images: (B, 3, H, W), floats in [0, 1] or uint8, as tensor or array, or Pillow images: see
                `images.as_batch`.

        Raises `InputError` for another size, another dtype, and floats out of range.
        """
        size = self.tokenizer.config
        images_B3HW = as_batch(images, height=size.height, width=size.width, within=UNIT)
        return to_unit(self.tokenizer.decode(self.tokenizer.encode(images_B3HW.to(self.device)), through))

    # -- how likely pictures are ---------------------------------------------------------------------------------------

    @torch.no_grad()
    @checked
    def log_likelihood(
        self,
        images: Given | None = None,
        labels: Labels | None = None,
        prompts: Texts | None = None,
        *,
        tokens: Tensor | None = None,
        batch: int = 16,
        progress: Progress | None = None,
    ) -> Likelihood:
        """Log-likelihood of pictures under the model: nats of each image, scale and token, and their entropies.

        Exact, by one pass with teacher forcing, in the precision that the transformer is held in, without guidance,
        truncation and temperature. It covers a picture's tokens, not what the tokenizer loses.

        Arguments:
            images: B of them, as `reconstruct` takes them.
            labels: of classes, one for all or one an image; None is no class.
            prompts: what is to be seen in words, one for all or one an image; None is no text.
            tokens: (B, L) int64 instead of images, such as `Generated.tokens`.
            batch: images per batch; affects the time, not the result.
            progress: called with (done, total) images after each batch.

        Raises `InputError` for images or tokens of another shape, or none, an unknown label, prompts for a model that
        reads none, and a batch below 1.
        """
        tokens_BL = self._tokens(images, tokens, batch)
        count = len(tokens_BL)
        names = _spread("labels", len(self.classes) if labels is None else labels, count)
        words = _spread("prompts", prompts, count)
        self._check_words([word for word in words if word is not None])
        rows = [Row(*row) for row in zip(range(count), map(self.label, names), words, strict=True)]
        readings = (likelihoods.log_probability, likelihoods.entropy)
        log_p, entropy = self._readings(tokens_BL, rows, readings, batch=batch, progress=progress)
        size = self.tokenizer.config
        return Likelihood(log_p, entropy, size.scales, size.height * size.width)

    @torch.no_grad()
    @checked
    def classify(
        self,
        images: Given | None = None,
        labels: Labels | None = None,
        prompts: Texts | None = None,
        *,
        tokens: Tensor | None = None,
        through: int | None = None,
        batch: int = 64,
        progress: Progress | None = None,
    ) -> Classified:
        """Classify pictures by their likelihood under each candidate class or prompt.

        Arguments:
            images, tokens: B pictures, as `log_likelihood` takes them.
            labels: N candidates; all classes when None and there are no prompts.
            prompts: N candidates in words, for models that read; with labels, pairs of both. One alone is for every
                other.
            through: only by the first so many scales, which costs less.
            batch: pairs of a picture and a candidate per batch; affects the time, not the result.
            progress: called with (done, total) pairs after each batch.

        Raises `InputError` for what `log_likelihood` refuses, and for a number of scales that there is not.
        """
        scales = self.tokenizer.config.scales
        if through is not None and not 1 <= through <= len(scales):
            raise InputError(f"through: expected 1 .. {len(scales)} scales, got {through}")
        tokens_BL = self._tokens(images, tokens, batch)
        labels = range(len(self.classes)) if labels is None and prompts is None else labels
        names, words, _ = _aligned(Asked(labels, prompts, None), None)
        self._check_words([word for word in words if word is not None])
        places = [len(self.classes) if labels is None else self.label(name) for name in names]
        pairs = [*zip(places, words, strict=True)]
        rows = [Row(image, label, prompt) for image in range(len(tokens_BL)) for label, prompt in pairs]
        sizes = Scales(scales.sizes[:through])
        (found,) = self._readings(
            tokens_BL[:, : sizes.total], rows, (likelihoods.log_probability,), batch=batch, progress=progress
        )
        known = (*self.classes, NO_CLASS)
        titles = tuple(titled(known[label], prompt) for label, prompt in pairs)
        return Classified(likelihoods.by_scale(found, sizes).unflatten(0, (-1, len(pairs))), titles)

    def _tokens(self, images: Given | None, tokens: Tensor | None, batch: int) -> Tensor:
        """(B, L) int64 on the pipeline's device."""
        if batch < 1:
            raise InputError(f"batch: expected 1 or more, got {batch}")
        if (images is None) == (tokens is None):
            raise InputError(f"expected images or tokens, got {'neither' if images is None else 'both'}")
        if images is not None:
            size = self.tokenizer.config
            images_B3HW = as_batch(images, height=size.height, width=size.width, within=UNIT)
            tokens = torch.cat([self.tokenizer.encode(part.to(self.device)) for part in images_B3HW.split(batch)])
        assert tokens is not None
        check_tokens(tokens, self.tokenizer.config.scales.total, self.tokenizer.quantizer.codes)
        if not len(tokens):
            raise InputError("images: expected at least one, got none")
        return tokens.to(self.device)

    def _readings(
        self,
        tokens_BL: Tensor,
        rows: Sequence[Row],
        readings: Sequence[Reading],
        *,
        batch: int,
        progress: Progress | None,
    ) -> list[Tensor]:
        """What is read off the tokens of each row, (R, L) of each reading; of the first scales alone if they are."""
        found = []
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            first = part[0].image
            with exact():
                whole_BL = self._whole(tokens_BL[first : part[-1].image + 1])
                inputs = teacher_inputs(self.transformer.config, self.tokenizer.quantizer, whole_BL)
                which = torch.tensor([row.image - first for row in part], device=self.device)
                length = tokens_BL.shape[1] - self.transformer.walk.lengths[0]
                given = inputs[which, :length], tokens_BL[which + first]
                found.append(likelihoods.read(self.transformer, self._condition(part), *given, readings))
            if progress is not None:
                progress(start + len(part), len(rows))
        return [torch.cat(column) for column in zip(*found, strict=True)]

    def _whole(self, tokens_BL: Tensor) -> Tensor:
        """Tokens of all scales, of which those that are missing are never looked at."""
        return F.pad(tokens_BL, (0, self.transformer.config.scales.total - tokens_BL.shape[1]))

    def _condition(self, rows: Sequence[Row]) -> Condition:
        labels = torch.tensor([row.label for row in rows], device=self.device)
        if self.reader is None or not any(row.prompt for row in rows):
            return self.transformer.condition(labels)
        return self.transformer.condition(labels, self.reader.read([row.prompt or "" for row in rows]).to(self.device))

    def label(self, name: int | str) -> int:
        """The number of a class: a string is its name, an integer the number itself.

        The number of classes means "no class". Raises `InputError` for what is neither, with the nearest names.
        """
        if isinstance(name, str):
            return self._named(name)
        number = _integer(name)
        if number is None:
            raise InputError(f"label: expected the name of a class or its number, got {name!r}")
        if not 0 <= number <= len(self.classes):
            told = number if abs(number) < 10**18 else f"one of {number.bit_length()} bits"
            raise InputError(
                f"label: expected 0 .. {len(self.classes) - 1} (or {len(self.classes)}: no class), got {told}"
            )
        return number

    def _named(self, name: str) -> int:
        if name in self.classes:
            return self.classes.index(name)
        for number, known in enumerate(self.classes):
            if _same(known, name):
                return number
        some = ", ".join([*self.classes[:12], *(["..."] if len(self.classes) > 12 else [])])
        raise InputError(f"label: expected one of {some}, got {name[:60]!r}{_meant(name, self.classes)}")


def _meant(name: str, classes: Sequence[str]) -> str:
    """What is perhaps meant by a name that no class has."""
    if re.fullmatch("[0-9]{1,9}", name) and int(name) <= len(classes):
        return f"; the class of this number is the integer {int(name)}"
    lower = {known.casefold(): known for known in classes}
    close = [lower[found] for found in get_close_matches(name.casefold(), lower, n=3)]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _same(name: str, asked: str) -> bool:
    """Whether both are one name: macOS writes the é of a folder's name as two characters, keyboards as one."""
    return normalize("NFC", name) == normalize("NFC", printable(asked))


def _reranking(told: Mapping[str, Any], score: Callable[[Step], Tensor]) -> Rerank:
    """Of what a request tells. Raises `InputError` for what no picture of ours does."""
    try:
        return Rerank(score, told["count"], told["scales"])
    except (KeyError, TypeError):
        raise InputError(f"rerank: expected count and scales in the request, got {told!r}") from None


def _refuse_scales(dealt: Dealt, order: Order, rerank: Rerank | None) -> None:
    """Raise `InputError` for what only steps that are scales have."""
    told = {"step_guidance": any(dealt.step_weights), "reach": dealt.reach is not None, "rerank": rerank is not None}
    given = [name for name, is_given in told.items() if is_given and order != "scale"]
    if given:
        raise InputError(f"{given[0]}: expected with a model of order scale, got one of order {order}")


def _check_edit(*, count: int, feather: int, keep_scales: int, scales: int) -> None:
    for name, value, least, most in (
        ("count", count, 1, None),
        ("feather", feather, 0, FEATHER),
        ("keep_scales", keep_scales, 0, scales),
    ):
        number = _integer(value)
        if number is None or number < least or (most is not None and number > most):
            told = f"{least} or more" if most is None else f"{least} .. {most}"
            raise InputError(f"{name}: expected {told}, got {value!r}")


def _spread(what: str, given: Any, count: int) -> list[Any]:
    """One label or prompt for all of `count` results, or one each."""
    if _is_one(given):
        return [given] * count
    each = _listed(f"{what}: expected {WHAT[what]}", given)
    if len(each) != count:
        raise InputError(f"{what}: expected one for all results or one each, {count}, got {len(each)}")
    return each


def _aligned(asked: Asked, seeds: Any) -> tuple[list[Any], list[Any], list[int]]:
    """Label, prompt and seed of each image: one of a kind alone is for all, one seed alone counts up from there."""
    start = 0 if seeds is None else _integer(seeds)
    numbers = [] if start is not None else _listed("seeds: expected integers", seeds)
    for number in numbers:
        if _integer(number) is None:
            raise InputError(f"seeds: expected integers, got {number!r}")
    given = {"labels": asked.labels, "prompts": asked.prompts}
    lists = {what: _listed(f"{what}: expected {WHAT[what]}", v) for what, v in given.items() if not _is_one(v)}
    if len({len(each) for each in lists.values()}) > 1:
        raise InputError(f"prompts: expected one a label, {len(lists['labels'])}, got {len(lists['prompts'])}")
    if asked.labels is None and asked.prompts is None:
        raise InputError("labels: expected at least one, or a prompt, got none")
    what, count = next(((what, len(each)) for what, each in lists.items()), ("labels", len(numbers)))
    count = 1 if start is not None and not lists else count
    if start is None and len(numbers) != count:
        raise InputError(f"seeds: expected one a {what.removesuffix('s')}, {count}, got {len(numbers)}")
    if not count:
        raise InputError(f"{what}: expected at least one, got none")
    labels, prompts = (lists.get(name, [value] * count) for name, value in given.items())
    return labels, prompts, list(map(operator.index, numbers)) if start is None else list(range(start, start + count))


WHAT = {"labels": "names or numbers of classes", "prompts": "text or a list of texts"}


def _is_one(given: Any) -> bool:
    """Whether it is one thing for all, or nothing."""
    return given is None or isinstance(given, str) or _integer(given) is not None


def _is_unicode(text: str) -> bool:
    """Whether there are no halves of characters in it."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _reader(config: Mapping[str, Any], text_encoder: str | Path | None) -> Reader | None:
    """What a model's config.json says of it, or a caller of where the encoder is."""
    if "text_encoder" in config:
        if text_encoder is not None and hub.is_name(text_encoder):
            hub.encoder(str(text_encoder))
        return FrozenEncoder.from_json(config["text_encoder"], text_encoder)
    if text_encoder is not None:
        raise InputError(f"text_encoder: expected none, as the model was trained with none, got {text_encoder}")
    return Vocabulary.from_json(config["vocabulary"]) if "vocabulary" in config else None


def _guided(
    guidance: float | Sequence[float] | Guidance | None, prompts: Texts | None
) -> float | Sequence[float] | Guidance:
    """What is asked for, or what is usual."""
    return usual_guidance(prompted=prompts is not None) if guidance is None else guidance


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
