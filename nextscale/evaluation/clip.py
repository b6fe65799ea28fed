"""CLIP score: how near pictures and prompts lie in a network that was trained to match photographs with their captions.

Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", EMNLP 2021 (arXiv:2104.08718), with
two differences: the cosine is multiplied by w = 100, as most tools do, not by the paper's 2.5, and a prompt is read as
it is, where the paper has "A photo depicts" before it. Any CLIP of the `transformers` library, by folder or hub name.

Shapes: B pictures or prompts, Q questions, E dimensions that both are embedded in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import hub, images
from nextscale.evaluation.alignment import KINDS, WHOSE, Question, Real, Row
from nextscale.evaluation.card import ClipUsed
from nextscale.evaluation.intervals import interval
from nextscale.evaluation.judging import Figure
from nextscale.evaluation.retrieval import Looks, mistaken, numbered
from nextscale.machine.precision import exact
from nextscale.text import frozen

WEIGHT = 100.0  # w
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of its pictures in [0, 1]


class Clip:
    """Both halves of a CLIP, in float32.

    Arguments:
        source: a folder, or a hub name whose files are fetched if need be.

    Raises `InputError` when there is none, or the library for it is missing.
    """

    def __init__(self, source: str, *, device: str | torch.device = "cpu") -> None:
        if hub.is_name(source):
            hub.encoder(source)
        self.device = torch.device(device)
        self._tokenizer, model = frozen.opened(source, _kind, what="CLIP")
        with torch.no_grad():
            fingerprint = frozen.fingerprint(model)
        self._model = model.to(self.device)
        self.used = ClipUsed(name=source, fingerprint=fingerprint, side=int(model.config.vision_config.image_size))

    @torch.no_grad()
    def pictures(self, images_B3HW: Tensor) -> Tensor:
        """(B, E) of length 1, on the CPU, of pictures in [-1, 1], resized to cover CLIP's square and centre-cropped."""
        height, width = images_B3HW.shape[-2:]
        scale = self.used.side / min(height, width)
        size = round(height * scale), round(width * scale)
        unit_B3HW = images.to_unit(images_B3HW.to(self.device).float())
        resized = F.interpolate(unit_B3HW, size, mode="bicubic", antialias=True).clamp(0, 1)
        square = images.center_crop(resized, height=self.used.side, width=self.used.side)
        mean, deviation = (square.new_tensor(each).view(3, 1, 1) for each in (MEAN, DEVIATION))
        with exact():
            seen = self._model.vision_model(pixel_values=(square - mean) / deviation).pooler_output
            return F.normalize(self._model.visual_projection(seen), dim=-1).cpu()

    @torch.no_grad()
    def prompts(self, words: Sequence[str]) -> Tensor:
        """(B, E) of length 1, on the CPU; of a prompt that is too long the end is cut off."""
        most = int(self._model.config.text_config.max_position_embeddings)
        given = self._tokenizer(list(words), padding=True, truncation=True, max_length=most, return_tensors="pt")
        ids, mask = (given[name].to(self.device) for name in ("input_ids", "attention_mask"))
        with exact():
            read = self._model.text_model(input_ids=ids, attention_mask=mask).pooler_output
            return F.normalize(self._model.text_projection(read), dim=-1).cpu()


def _kind(transformers: Any, config: Any) -> Any:
    if config.model_type != "clip":
        raise ValueError(f"a model of type {config.model_type} instead of clip")
    return transformers.CLIPModel


# score(c, v) = w * max(cos(c, v), 0)
def scores(pictures_BE: Tensor, prompts_BE: Tensor) -> Tensor:
    """(B,) float64, 0 .. 100, of embeddings of any length."""
    return WEIGHT * F.cosine_similarity(pictures_BE.double(), prompts_BE.double(), dim=1).clamp_min(0)


def real(clip: Clip, asked: Sequence[Question], data: Real) -> Tensor:
    """(Q, E) of the real pictures that the prompts are captions of."""
    return torch.cat([clip.pictures(data.splits[not one.train].batch([one.index])[0]) for one in asked])


def judge(asked: Sequence[Question], painted_QE: Tensor, real_QE: Tensor, prompts_QE: Tensor) -> tuple[Row, ...]:
    """Mean scores of each kind's prompts: with the model's pictures, with real ones, with those of other prompts."""
    (subjects,) = numbered([one.subject for one in asked])
    rows: list[Row] = []
    for kind in KINDS:
        some = torch.tensor([place for place, one in enumerate(asked) if one.kind == kind], dtype=torch.int64)
        if len(some):
            painted = Looks(features=painted_QE, subjects=subjects, classes=subjects)
            others_QE = mistaken(painted, generator=_generator()).features
            sets = zip(WHOSE, (painted_QE, real_QE, others_QE), strict=True)
            rows += [_row(kind, whose, scores(each[some], prompts_QE[some])) for whose, each in sets]
    return tuple(rows)


def _row(kind: str, whose: str, scores_B: Tensor) -> Row:
    low, high = interval(scores_B, generator=_generator())
    figure = Figure(name="CLIP-score", value=float(scores_B.mean()), low=low, high=high)
    return Row(kind=kind, whose=whose, prompts=len(scores_B), figures={"clip_score": figure})


def _generator() -> torch.Generator:
    """Of draws and resamples: always the same, so that a figure is too."""
    return torch.Generator().manual_seed(0)
