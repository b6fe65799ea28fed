"""`nextscale evaluate likelihood`: how likely held-out pictures are, beside those trained on, and which class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nextscale.cli import memory, models
from nextscale.cli.data import (
    BROKEN,
    Captioned,
    Column,
    Labelling,
    ListBroken,
    MaxBroken,
    columns_of,
    read_data,
)
from nextscale.cli.data import tell as tell_data
from nextscale.cli.figures import tell
from nextscale.cli.options import Depth, Encoder, Json, Model, Precision
from nextscale.cli.output import at_least, bar, check_json, console, say, table, write_json
from nextscale.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

    from nextscale.data import DataSet
    from nextscale.evaluation.likelihood import Asked, ClassFigures, Looked, SplitFigures
    from nextscale.pipeline import Pipeline

COUNT = 500  # pictures of each split: a few minutes for a small model on a CPU


@dataclass(frozen=True, kw_only=True)
class EvaluateLikelihood:
    """Compare the likelihoods of held-out and training pictures.

    in nats, exact under teacher forcing; without guidance, truncation and temperature
    """

    model: Model = ()
    """Directory such as `nextscale demo` leaves, hub name, or the public release's tokenizer and transformer files
    (default: the model that comes with nextscale)."""
    depth: Depth = None
    """Depth of the release's transformer, if --model is a folder or hub name with several: 16, 20, 24 ..."""
    text_encoder: Encoder = None
    """Path of the frozen text encoder that the model was trained with, if it has moved."""
    data: str = "emoji"
    """The model's training data: emoji (embedded), figures, a folder of pictures or of WebDataset shards."""
    labels: Labelling = None
    """Classes of a folder's pictures, as it was trained on: a table, folders, or none (default: what is there)."""
    captions: Captioned = None
    """Captions, for models that read: own, names, or a table; the first of each picture is taken (default: none)."""
    image_column: Column = None
    """Column of metadata or parquet files with the pictures or their names (default: found by name and type)."""
    label_column: Column = None
    """Column of the classes (default: found by name and type)."""
    caption_column: Column = None
    """Column of the captions; implies --captions own (default: found by name and type)."""
    outside_files: bool = False
    """Allow tables to name pictures outside the folder, by absolute paths or through parent folders (..)."""
    max_broken: MaxBroken = BROKEN
    """Largest share of unreadable pictures to leave out; with more, the data are refused."""
    list_broken: ListBroken = None
    """File for the list of unreadable pictures, name and reason, one per line."""
    count: int = COUNT
    """Pictures of each split at most, evenly spread over it."""
    classify: bool = False
    """Also how often a held-out picture's class is the likeliest of all: a forward pass for each class."""
    features: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")] = "efficientnet-lite0"
    """Network of the nearest neighbour that --classify stands beside."""
    batch: int = 32
    """Pictures, or pairs of a picture and a class, per batch; does not change the numbers."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available."""
    precision: Precision = "auto"
    """auto is bf16 where the hardware supports it natively, else fp32."""
    json: Json = None
    """Also write all metrics as JSON; - is stdout, without the tables."""

    def run(self) -> None:
        at_least("--count", 1, self.count)
        at_least("--batch", 1, self.batch)
        check_json(self.json)
        memory.keep_freed()
        pipe = models.load(
            self.model, self.depth, device=self.device, precision=self.precision, text_encoder=self.text_encoder
        )
        found = self._data(pipe)
        looked, counted = self._looked(pipe, found), None
        if self.classify:
            counted = self._classified(pipe, found)
        setting = self._setting(pipe, found)
        if self.json is not None:
            shown = {name: dataclasses.asdict(each) for name, each in looked.items()}
            more = {} if counted is None else {"classification": dataclasses.asdict(counted)}
            write_json(self.json, {**shown, **more, "setting": setting})
        if str(self.json) != "-":
            _give(looked, counted)
            for line in _lines(setting):
                say(line)
            tell_data(found)

    def _data(self, pipe: Pipeline) -> DataSet:
        size = pipe.tokenizer.config
        return read_data(
            self.data,
            height=size.height,
            width=size.width,
            labels=self.labels,
            captions=self.captions,
            columns=columns_of(self),
            max_broken=self.max_broken,
            list_broken=self.list_broken,
        )

    def _looked(self, pipe: Pipeline, found: DataSet) -> dict[str, Any]:
        """Figures of both splits, of the gap between them, and of what held-out captions tell."""
        from nextscale.evaluation import likelihood

        held_out, trained_on = (
            likelihood.asked(pipe, split, most=self.count) for split in (found.validation, found.train)
        )
        seen = {
            "held_out": self._look(pipe, held_out, "held out"),
            "trained_on": self._look(pipe, trained_on, "trained on"),
        }
        size = pipe.tokenizer.config
        pixels = size.height * size.width
        figures: dict[str, Any] = {
            name: likelihood.split_figures(each, size.scales, pixels) for name, each in seen.items()
        }
        figures["gap"] = likelihood.gap(seen["trained_on"], seen["held_out"], size.scales)
        if (mistaken := likelihood.under_other_captions(held_out)) is not None:
            others = self._look(pipe, mistaken, "held out, other captions")
            figures["captions"] = likelihood.caption_gain(seen["held_out"], others, size.scales)
        return figures

    def _look(self, pipe: Pipeline, wanted: Asked, name: str) -> Looked:
        from nextscale.evaluation import likelihood

        with bar(f"likelihoods, {name}") as told:
            return likelihood.look(pipe, wanted, batch=self.batch, progress=told)

    def _classified(self, pipe: Pipeline, found: DataSet) -> ClassFigures:
        """Of the held-out pictures, with the nearest training pictures as the measure."""
        from nextscale.errors import InputError
        from nextscale.evaluation import likelihood

        if likelihood.class_numbers(pipe, found.classes) is None or len(pipe.classes) < 2:
            some = ", ".join(found.classes[:4])
            raise InputError(f"--classify: expected data of the model's own classes, two or more, got {some}")
        wanted = likelihood.asked(pipe, found.validation, most=self.count)
        with bar("classifying") as told:
            classes = likelihood.classify(pipe, wanted, batch=self.batch, progress=told)
        figures = likelihood.class_figures(classes, wanted.labels)
        return dataclasses.replace(figures, **self._neighbour(pipe, found, wanted))

    def _neighbour(self, pipe: Pipeline, found: DataSet, wanted: Asked) -> dict[str, Any]:
        from nextscale import features
        from nextscale.cli.looking import seen
        from nextscale.evaluation.likelihood import share
        from nextscale.evaluation.neighbours import nearest

        network = features.load(self.features, device=pipe.device)
        ours = seen(network, found.validation, "held out", batch=self.batch)
        theirs = seen(network, found.train, "trained on", batch=self.batch)
        chosen = nearest(ours.features[list(wanted.indices)], theirs.features).indices[:, 0]
        hits = theirs.labels[chosen] == ours.labels[list(wanted.indices)]
        return {
            "nearest_neighbour": share(f"nearest neighbour, {network.name}", hits.double()),
            "nearest_network": network.name,
        }

    def _setting(self, pipe: Pipeline, found: DataSet) -> dict[str, Any]:
        """How the figures were made, as plain JSON values."""
        from nextscale.evaluation import likelihood
        from nextscale.evaluation.judging import versions

        known = likelihood.class_numbers(pipe, found.classes) is not None
        words = pipe.reader is not None and found.validation.captions is not None
        return {
            "model": models.called(self.model),
            "fingerprint": pipe.fingerprint,
            "precision": str(pipe.transformer.compute_dtype).removeprefix("torch."),
            "device": str(pipe.device),
            "data": printable(self.data),
            "held_out": {"fingerprint": found.validation.fingerprint, "pictures": len(found.validation)},
            "trained_on": {"fingerprint": found.train.fingerprint, "pictures": len(found.train)},
            "classes": "own" if known else "none",
            "captions": "first" if words else "none",
            "reads": pipe.reader is not None,
            "versions": versions(),
        }


# ---- for people ------------------------------------------------------------------------------------------------------


def _give(looked: dict[str, Any], counted: ClassFigures | None) -> None:
    held_out, trained_on, gap = looked["held_out"], looked["trained_on"], looked["gap"]
    for name, split in (("held out", held_out), ("trained on", trained_on)):
        print(f"{name}, {split.pictures:,} pictures")
        tell([split.nats_per_picture, split.nats_per_token, split.bits_per_pixel])
    tell([gap.nats_per_token, gap.auc, *([looked["captions"]] if "captions" in looked else [])])
    console().print(_scales(held_out, trained_on), "", sep="\n")
    if counted is not None:
        _tell_classes(counted)


def _scales(held_out: SplitFigures, trained_on: SplitFigures) -> Table:
    rows: list[tuple[object, ...]] = [
        (
            ours.size,
            ours.tokens,
            f"{ours.nats_per_token:.3f}",
            f"{ours.entropy_per_token:.3f}",
            f"{theirs.nats_per_token:.3f}",
            f"{ours.nats_per_token - theirs.nats_per_token:.3f}",
        )
        for ours, theirs in zip(held_out.scales, trained_on.scales, strict=True)
    ]
    names = ("scale",), ("tokens", "held out", "expected", "trained on", "gap")
    return table("Nats a token; expected is the entropy", *names, rows)


def _tell_classes(counted: ClassFigures) -> None:
    """How often it was right, beside what a guess and a neighbour are."""
    neighbour = [] if counted.nearest_neighbour is None else [counted.nearest_neighbour]
    tell([counted.accuracy, *neighbour])
    say(f"a guess of the most frequent class is right in {counted.most_frequent:.4f}")
    parts = " ".join(f"{share:.3f}" for share in counted.through)
    say(f"right class by the first 1, 2, ... scales alone: {parts}")
    print()


def _lines(setting: dict[str, Any]) -> Iterator[str]:
    split = {name: f"{setting[name]['pictures']:,}" for name in ("held_out", "trained_on")}
    yield (
        f"data       {setting['data']}, {split['held_out']} held out ({setting['held_out']['fingerprint']}), "
        f"{split['trained_on']} to train on ({setting['trained_on']['fingerprint']})"
    )
    classes = "their own class" if setting["classes"] == "own" else "no class, as the model does not know theirs"
    words = ", their first caption" if setting["captions"] == "first" else ""
    yield f"condition  {classes}{words}"
    yield f"model      {setting['model']} ({setting['fingerprint']}), {setting['precision']} on {setting['device']}"
    yield "intervals  95 %, over pictures; of tokens, not of pixels: they compare models on one tokenizer"
    yield "versions   " + ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    if setting["reads"] and setting["captions"] == "none":
        yield "warning: the model reads text and was asked without: --captions says where there is some"
