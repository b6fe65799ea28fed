"""`nextscale inspect`: how likely a model takes a picture to be, where it is unsure, and what it has seen like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from nextscale.cli import memory, models
from nextscale.cli.data import BROKEN, Captioned, Column, Labelling, columns_of, read_data
from nextscale.cli.data import tell as tell_data
from nextscale.cli.options import Depth, Encoder, Indices, Json, Labels, Model, Pictures, Precision, Prompts
from nextscale.cli.output import at_least, bar, check_json, console, directory, say, table, write_json
from nextscale.errors import InputError, printable

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from nextscale.cli.inspect_sheet import Neighbour
    from nextscale.data import DataSet
    from nextscale.features import FeatureNetwork
    from nextscale.pipeline import Pipeline
    from nextscale.transformer.likelihood import Classified, Likelihood

MOST_CLASSES = 64  # of which all are tried: each costs a forward pass for each picture
NEAREST = 5  # training pictures that are shown
OF_DATA = ("labels", "captions", "image_column", "label_column", "caption_column", "outside_files")
COMPARED = 200  # pictures of each split
SHOWN = 4  # classes in a line


class Condition(NamedTuple):
    """What a picture is taken to show, and how that was found out."""

    label: int
    prompt: str | None
    title: str
    why: str


@dataclass(frozen=True)
class Known:
    """What is known of the data that the model was trained on."""

    data: DataSet
    network: FeatureNetwork
    features: Tensor
    """(N, D) of the pictures to train on."""
    usual: Tensor
    """(M,) float64: how far held-out pictures are from the nearest of these."""
    trained_on: Tensor | None
    """(n,) float64: -log p of some of them, a token; None where that was not asked for."""
    held_out: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Likelihood of pictures under a model: a sheet of each, and numbers.

    by scale and token, with the model's uncertainty and the likeliest class

    with --data: the nearest training pictures, and the rank among those
    """

    pictures: Pictures = ()
    """Files in any format Pillow reads; resized and centre-cropped to the model's size."""
    model: Model = ()
    """Directory such as `nextscale demo` leaves, hub name, or the public release's tokenizer and transformer files
    (default: the model that comes with nextscale)."""
    depth: Depth = None
    """Depth of the release's transformer, if --model is a folder or hub name with several: 16, 20, 24 ..."""
    text_encoder: Encoder = None
    """Path of the frozen text encoder that the model was trained with, if it has moved."""
    label: Labels = ()
    """Class of the pictures, by name, or by number where no class has that name; of several, the likeliest (default: as
    stored in a picture of ours, or else the likeliest of all classes)."""
    label_index: Indices = ()
    """The same by number, whatever the names of classes are."""
    prompt: Prompts = ()
    """Prompt of the pictures, for models that read text; of several, the likeliest."""
    data: Annotated[str | None, tyro.conf.arg(metavar="emoji|DIR", help_behavior_hint="")] = None
    """The model's training data, to find the nearest training pictures and the usual range."""
    labels: Labelling = None
    """Classes of a folder's pictures, as it was trained on: a table, folders, or none (default: what is there)."""
    captions: Captioned = None
    """Captions of the data, for models that read: own, names, or a table (default: none)."""
    image_column: Column = None
    """Column of metadata or parquet files with the pictures or their names (default: found by name and type)."""
    label_column: Column = None
    """Column of the classes (default: found by name and type)."""
    caption_column: Column = None
    """Column of the captions; implies --captions own (default: found by name and type)."""
    outside_files: bool = False
    """Allow tables to name pictures outside the folder, by absolute paths or through parent folders (..)."""
    compare: int = COMPARED
    """Largest number of pictures of each split to compare likelihoods with; 0 for none."""
    features: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")] = "efficientnet-lite0"
    """Network whose features define the nearest pictures."""
    batch: int = 32
    """Pictures, or pairs of a picture and a class, per batch; does not change the numbers."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available."""
    precision: Precision = "auto"
    """auto is bf16 where the hardware supports it natively, else fp32."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("inspections")
    """Directory for the sheets."""
    json: Json = None
    """Also write all metrics as JSON; - is stdout, without the tables."""

    def run(self) -> None:
        self._check()
        memory.keep_freed()
        from nextscale import images
        from nextscale.cli.inspect_sheet import painted
        from nextscale.cli.reconstruct import stems

        pipe = models.load(
            self.model, self.depth, device=self.device, precision=self.precision, text_encoder=self.text_encoder
        )
        size = pipe.tokenizer.config
        originals = [images.read(file, height=size.height, width=size.width) for file in self.pictures]
        folder = directory("--out", self.out)
        known = None if self.data is None else self._known(pipe, self.data)
        found = []
        for file, stem, original in zip(self.pictures, stems(self.pictures), originals, strict=True):
            inspected = self._inspected(pipe, file, original, known)
            sheet = folder / f"{stem}-inspected.png"  # never the picture itself, whatever --out is
            images.save(sheet, painted(inspected.sheet()))
            found.append(inspected)
            if str(self.json) != "-":
                inspected.tell(sheet)
        if self.json is not None:
            write_json(self.json, [inspected.to_json() for inspected in found])
        if known is not None and str(self.json) != "-":
            tell_data(known.data)

    def _check(self) -> None:
        """What can be known to be wrong before torch is imported."""
        if not self.pictures:
            raise InputError("PICTURE: expected at least one file, got none")
        at_least("--batch", 1, self.batch)
        at_least("--compare", 0, self.compare)
        check_json(self.json)
        for option in OF_DATA if self.data is None else ():
            if getattr(self, option):
                raise InputError(f"--{option.replace('_', '-')}: expected with --data, got it alone")

    # -- one picture ---------------------------------------------------------------------------------------------------

    def _inspected(self, pipe: Pipeline, file: Path, original: Tensor, known: Known | None) -> Inspected:
        from nextscale import images
        from nextscale.cli.reconstruct import stages_of

        tokens = pipe.tokenizer.encode(original[None].to(pipe.device))
        candidates = self._candidates(pipe, file)
        with bar(f"inspecting {file.name}") as told:
            condition, classes = _condition(pipe, tokens, candidates, batch=self.batch, told=told)
        found = pipe.log_likelihood(tokens=tokens, labels=condition.label, prompts=condition.prompt)
        stages = stages_of(pipe.tokenizer, original.to(pipe.device))
        return Inspected(
            file=file,
            condition=condition,
            found=found,
            classes=classes,
            stages=stages,
            decibels=images.psnr(stages[1:], stages[:1].expand_as(stages[1:])).tolist(),
            most=_most(pipe),
            standing=None if known is None else _standing(file, original, found, known),
        )

    def _candidates(self, pipe: Pipeline, file: Path) -> list[Condition]:
        """What the picture may show: what is asked, what it tells, or any class; where these are many, no class."""
        from nextscale.pipeline import NO_CLASS, titled

        names = (*pipe.classes, NO_CLASS)
        asked = [*(models.class_called(pipe, word) for word in self.label), *map(pipe.label, self.label_index)]
        if asked or self.prompt:
            pairs = [(label, word) for label in asked or [len(pipe.classes)] for word in self.prompt or [None]]
            return [Condition(label, word, titled(names[label], word), "as asked") for label, word in pairs]
        told = _told_by(file, pipe)
        if told is not None:
            return [told]
        if len(pipe.classes) > MOST_CLASSES:
            say(f"{file}: taken as of no class, as {len(pipe.classes)} are many to try; --label says what it shows")
            return [Condition(len(pipe.classes), None, NO_CLASS, "as no class was given")]
        return [Condition(label, None, name, "the likeliest class") for label, name in enumerate(pipe.classes)]

    # -- the data ------------------------------------------------------------------------------------------------------

    def _known(self, pipe: Pipeline, source: str) -> Known:
        from nextscale import features
        from nextscale.cli.looking import seen
        from nextscale.evaluation import likelihood
        from nextscale.evaluation.neighbours import nearest

        size = pipe.tokenizer.config
        data = read_data(
            source,
            height=size.height,
            width=size.width,
            labels=self.labels,
            captions=self.captions,
            columns=columns_of(self),
            max_broken=BROKEN,
        )
        network = features.load(self.features, device=pipe.device)
        training = seen(network, data.train, "trained on", batch=self.batch).features
        others = seen(network, data.validation, "held out", batch=self.batch).features
        nats: list[Tensor | None] = [None, None]
        for place, split in enumerate((data.train, data.validation) if self.compare else ()):
            wanted = likelihood.asked(pipe, split, most=self.compare)
            with bar("likelihoods of the data") as told:
                looked = likelihood.look(pipe, wanted, batch=self.batch, progress=told)
            nats[place] = looked.nats.sum(dim=1) / size.scales.total
        return Known(data, network, training, nearest(others, training).distances[:, 0], *nats)


def _standing(file: Path, original: Tensor, found: Likelihood, known: Known) -> Standing:
    """The picture among those of the data; as it is, and as it would be seen in training, whichever is nearer."""
    import torch

    from nextscale import images
    from nextscale.cli.inspect_sheet import Neighbour
    from nextscale.evaluation.neighbours import nearest, share_below

    views = torch.stack([original.cpu(), _as_in_training(file, original)])
    device = known.network.mean_311.device
    near = nearest(known.network(views.to(device)).cpu()[None], known.features, k=NEAREST)
    indices, distances = near.indices[0].tolist(), near.distances[0].tolist()
    pictures, _ = known.data.train.batch(indices)
    alike = torch.stack([images.psnr(pictures, view.expand_as(pictures)) for view in views]).amax(dim=0).tolist()
    neighbours = [
        Neighbour(name=known.data.train.names[index], distance=distance, decibels=decibels, image=picture)
        for index, distance, decibels, picture in zip(indices, distances, alike, pictures, strict=True)
    ]
    nats = float(-found.images[0]) / found.sizes.total
    likelier = [None if one is None else 1 - share_below(nats, one) for one in (known.trained_on, known.held_out)]
    return Standing(
        neighbours=neighbours,
        nearer=share_below(distances[0], known.usual),
        trained_on=likelier[0],
        held_out=likelier[1],
        network=known.network.name,
    )


def _as_in_training(file: Path, original: Tensor) -> Tensor:
    """The middle of the picture, scaled as pictures to train on are."""
    from nextscale import images
    from nextscale.data.reading import MARGIN

    height, width = original.shape[1:]
    larger = images.open_covering(file, height=height, width=width, margin=MARGIN)
    return images.center_crop(images.from_pil(larger), height=height, width=width)


def _told_by(file: Path, pipe: Pipeline) -> Condition | None:
    """What a picture of ours tells that it shows, if this model knows it."""
    from nextscale import images
    from nextscale.pipeline import NO_CLASS, Request, titled

    try:
        request = Request.from_notes(images.notes(file))
    except InputError:
        return None
    names = (*pipe.classes, NO_CLASS)
    if request.name not in names or (request.prompt and pipe.reader is None):
        return None
    title = titled(request.name, request.prompt)
    return Condition(names.index(request.name), request.prompt, title, "as the picture tells")


def _condition(
    pipe: Pipeline, tokens: Tensor, candidates: Sequence[Condition], *, batch: int, told: Any
) -> tuple[Condition, Classified | None]:
    """The likeliest candidate, and how likely each is; of a single one among few classes, of all of these."""
    words = [candidate.prompt for candidate in candidates]
    if len(candidates) > 1:
        labels = [candidate.label for candidate in candidates]
        classes = pipe.classify(tokens=tokens, labels=labels, prompts=_texts(words), batch=batch, progress=told)
        return candidates[int(classes.best[0])], classes
    if not 1 < len(pipe.classes) <= MOST_CLASSES:
        return candidates[0], None
    everything = range(len(pipe.classes))
    return candidates[0], pipe.classify(tokens=tokens, labels=everything, prompts=words[0], batch=batch, progress=told)


def _texts(words: Sequence[str | None]) -> list[str] | None:
    """Either all of them are there, or none."""
    texts = [word for word in words if word is not None]
    return texts or None


def _most(pipe: Pipeline) -> float:
    """ln V: nats of a token under a model that knows nothing."""
    import math

    config = pipe.transformer.config
    return sum(math.log(size) for size in config.groups) if config.groups else math.log(config.codebook_size)


# ---- what is found ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Standing:
    """Where a picture stands in the data."""

    neighbours: Sequence[Neighbour]
    """The nearest training pictures."""
    nearer: float
    """Share of held-out pictures that are nearer to a training picture."""
    trained_on: float | None
    """Share of training pictures that are less likely than this one."""
    held_out: float | None
    """Likewise of held-out ones."""
    network: str

    def lines(self) -> list[str]:
        """For people."""
        first = self.neighbours[0]
        told = [
            f"nearest training picture: {printable(first.name)}, at {first.distance:.3f} ({self.network}), "
            f"{first.decibels:.1f} dB alike; {self.nearer:.0%} of held-out pictures are nearer to one"
        ]
        if self.trained_on is not None and self.held_out is not None:
            shares = f"{self.trained_on:.0%} of training pictures and {self.held_out:.0%} of those held out"
            told.append(f"likelier a token than {shares}")
        return told

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "neighbours": [
                {"name": each.name, "distance": each.distance, "psnr": each.decibels} for each in self.neighbours
            ],
            "held_out_nearer": self.nearer,
            "less_likely_trained_on": self.trained_on,
            "less_likely_held_out": self.held_out,
            "network": self.network,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspected:
    """All about one picture."""

    file: Path
    condition: Condition
    found: Likelihood
    classes: Classified | None
    stages: Tensor
    """(1 + K, 3, H, W) in [-1, 1]: the picture, and what is painted through each scale."""
    decibels: Sequence[float]
    """PSNR through each scale."""
    most: float
    standing: Standing | None

    def probabilities(self) -> list[tuple[str, float]]:
        """Of the candidates, the likeliest first."""
        if self.classes is None:
            return []
        pairs = zip(self.classes.names, self.classes.probabilities[0].tolist(), strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])

    def headline(self) -> str:
        """The picture in a line."""
        nats, title = float(-self.found.images[0]), printable(self.condition.title)
        return (
            f"{printable(self.file.name)} as {title} ({self.condition.why}): {nats:.1f} nats, "
            f"{nats / self.found.sizes.total:.3f} a token, {float(self.found.bits_per_pixel[0]):.3f} bits a pixel, "
            f"painted at {self.decibels[-1]:.1f} dB"
        )

    def sheet(self) -> Any:
        """What is drawn."""
        from nextscale.cli.inspect_sheet import Sheet

        return Sheet(
            lines=[self.headline(), *([] if self.standing is None else self.standing.lines())],
            stages=self.stages,
            sizes=self.found.sizes,
            surprise=[each[0] for each in self.found.maps(-self.found.tokens)],
            entropy=[each[0] for each in self.found.maps(self.found.entropy)],
            most=self.most,
            neighbours=() if self.standing is None else self.standing.neighbours,
            classes=self.probabilities(),
        )

    def tell(self, sheet: Path) -> None:
        """For people."""
        say(self.headline())
        console().print(self._table(), "", sep="\n")
        if self.classes is not None:
            some = ", ".join(f"{printable(name)} {p:.3f}" for name, p in self.probabilities()[:SHOWN])
            say(f"classes: {some}")
        for line in () if self.standing is None else self.standing.lines():
            say(line)
        say(f"sheet: {sheet}")
        print()

    def _table(self) -> Table:
        rows: list[tuple[object, ...]] = [
            (
                row["size"],
                row["tokens"],
                f"{row['nats']:.2f}",
                f"{row['nats'] / row['tokens']:.3f}",
                f"{row['entropy'] / row['tokens']:.3f}",
                f"{row['psnr']:.1f}",
            )
            for row in self._scales()
        ]
        return table("", ("scale",), ("tokens", "nats", "a token", "expected", "dB"), rows)

    def _scales(self) -> list[dict[str, Any]]:
        from nextscale.transformer.likelihood import by_scale

        expected = by_scale(self.found.entropy, self.found.sizes)[0].tolist()
        columns = zip(self.found.sizes, (-self.found.scales[0]).tolist(), expected, self.decibels, strict=True)
        return [
            {"size": f"{h}x{w}", "tokens": h * w, "nats": nats, "entropy": entropy, "psnr": decibels}
            for (h, w), nats, entropy, decibels in columns
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; tokens and entropies scale after scale."""
        found = self.found
        return {
            "file": str(self.file),
            "label": self.condition.label,
            "prompt": self.condition.prompt,
            "condition": self.condition.why,
            "nats": float(-found.images[0]),
            "nats_per_token": float(-found.images[0]) / found.sizes.total,
            "bits_per_pixel": float(found.bits_per_pixel[0]),
            "scales": self._scales(),
            "tokens": (-found.tokens[0]).tolist(),
            "entropy": found.entropy[0].tolist(),
            "classes": dict(self.probabilities()) or None,
            "standing": None if self.standing is None else self.standing.to_json(),
        }
