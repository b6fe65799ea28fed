"""`nextscale evaluate reconstruction`: how good a tokenizer is, on pictures it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nextscale.cli import models, networks
from nextscale.cli.data import BROKEN, Column, ListBroken, MaxBroken, check_outside, columns_of, read_data
from nextscale.cli.data import tell as tell_data
from nextscale.cli.figures import tell, tell_card
from nextscale.cli.options import Depth, Json, Model, NetworkAndHeads, TokenizerRun, TokenMaps
from nextscale.cli.output import at_least, bar, check_json, console, directory, say, table, write_json
from nextscale.cli.training import together
from nextscale.errors import printable

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from nextscale.cli.sheet import Row
    from nextscale.data import Pictures
    from nextscale.evaluation.reconstruction import ReconstructionFigures, ScaleFigures, Source
    from nextscale.tokenizer import MultiScaleVQVAE

COLUMNS = 8  # pictures in a row of the sheet
SHEET = "worst-and-best.png"


@dataclass(frozen=True, kw_only=True)
class EvaluateReconstruction:
    """Compare pictures with their reconstructions, also scale by scale.

    FD: Fréchet distance, named after the network whose features it compares

    behind torchrun: processes share the pictures
    """

    model: Model = ()
    """Directory, hub name, or the public release's tokenizer and transformer files; the tokenizer is used (default:
    the model that comes with nextscale)."""
    depth: Depth = None
    """Depth of the release's transformer, if --model is a folder or hub name with several."""
    tokenizer: TokenizerRun = None
    """Tokenizer run, or the public release's tokenizer file, instead of a model; default is the packaged one, for icons
    of 64 px."""
    scales: TokenMaps = ()
    """Token maps of such a file, as in 1 2 3 4x6 (default: for ten, the release's for 256 px)."""
    data: str = "emoji"
    """emoji (embedded), a folder of pictures (DIR/class/picture or flat), a zip of one, WebDataset shards, parquet
    files; docs/data.md lists all formats."""
    image_column: Column = None
    """Column of metadata or parquet files with the pictures or their names (default: found by name and type)."""
    label_column: Column = None
    """Column of the classes (default: found by name and type)."""
    outside_files: bool = False
    """Allow tables to name pictures outside the folder, by absolute paths or through parent folders (..)."""
    max_broken: MaxBroken = BROKEN
    """Largest share of unreadable pictures to leave out; with more, the data are refused."""
    list_broken: ListBroken = None
    """File for the list of unreadable pictures, name and reason, one per line."""
    split: Literal["validation", "train"] = "validation"
    """Split to evaluate."""
    features: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")] = "efficientnet-lite0"
    """Feature network to compare pictures and reconstructions as sets."""
    perceptual: NetworkAndHeads = ()
    """Network of the perceptual distance, and LPIPS's linear heads, if any (default: that of --features, if it
    has inner maps)."""
    keep: int = 10_000
    """Largest number of pictures for set metrics other than Fréchet distances."""
    batch: int = 32
    """Pictures per batch; does not change the metrics."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available."""
    json: Json = None
    """Also write all metrics as JSON; - is stdout, without the table."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Directory for a sheet of the worst and the best reconstructions, with originals and perceptual distances."""

    def run(self) -> None:
        self._check()
        with together(self.device) as device:
            self._evaluate(device)

    def _check(self) -> None:
        """What can be known to be wrong before torch is imported."""
        models.check_tokenizer(self.model, self.tokenizer, self.depth)
        at_least("--batch", 1, self.batch)
        at_least("--keep", 4, self.keep)
        check_json(self.json)
        if self.out is not None:
            check_outside(self.out, self.data)

    def _evaluate(self, device: str) -> None:
        """Look, all processes together; the first one judges and tells."""
        from nextscale import features
        from nextscale.evaluation import reconstruction
        from nextscale.evaluation.reconstruction import perceptual_of
        from nextscale.machine import distributed

        found_tokenizer = models.load_tokenizer(self.model, self.tokenizer, self.depth, self.scales)
        tokenizer = found_tokenizer.to(device).eval()
        network = features.load(self.features, device=device)
        perceptual = networks.perceptual(self.perceptual, device=device) or perceptual_of(network)
        found = read_data(
            self.data,
            height=tokenizer.config.height,
            width=tokenizer.config.width,
            columns=columns_of(self),
            max_broken=self.max_broken,
            list_broken=self.list_broken,
        )
        pictures = found.train if self.split == "train" else found.validation
        if self.out is not None:
            directory("--out", self.out)
        with bar("reconstructing") as told:
            looked = reconstruction.look(
                tokenizer, pictures, network, perceptual, batch=self.batch, keep=self.keep, progress=told
            )
        if distributed.is_first():
            source = self._source(len(found.broken))
            card = reconstruction.card_of(tokenizer, pictures, network, perceptual, source, keep=self.keep)
            self._give(tokenizer, pictures, reconstruction.judge(looked, network, card))
            if str(self.json) != "-":
                tell_data(found)

    def _source(self, left_out: int) -> Source:
        from nextscale.evaluation.reconstruction import Source

        name = str(self.tokenizer) if self.tokenizer is not None else models.called(self.model)
        return Source(tokenizer=name, data=printable(self.data), split=self.split, left_out=left_out)

    def _give(self, tokenizer: MultiScaleVQVAE, pictures: Pictures, figures: ReconstructionFigures) -> None:
        """All that was asked for, files first: what is printed may have nowhere to go."""
        sheet = None if self.out is None else self._draw(self.out / SHEET, tokenizer, pictures, figures)
        if self.json is not None:
            write_json(self.json, figures.to_json())
        if str(self.json) == "-":
            return
        tell(figures.figures.values())
        console().print(_scales(figures.scales), "", sep="\n")
        say("residual: share of the features' energy that is left after the scale; PSNR: painted up to the scale")
        tell_card(figures.card, figures.card.warnings())
        if sheet is not None:
            say(f"the worst and the best by perceptual distance, originals above: {sheet}")

    def _draw(
        self, sheet: Path, tokenizer: MultiScaleVQVAE, pictures: Pictures, figures: ReconstructionFigures
    ) -> Path:
        from nextscale import images
        from nextscale.cli.sheet import drawn

        distances = figures.each.perceptual_distance
        order = distances.argsort(descending=True, stable=True)
        worst, best = (
            _pair(name, tokenizer, pictures, chosen, distances)
            for name, chosen in (("worst", order[:COLUMNS]), ("best", order[-COLUMNS:]))
        )
        images.save(sheet, drawn([*worst, *best]))
        return sheet


def _pair(
    name: str, tokenizer: MultiScaleVQVAE, pictures: Pictures, indices: Tensor, distances_N: Tensor
) -> tuple[Row, Row]:
    """Some pictures under their distances, and their reconstructions."""
    import torch

    from nextscale.cli.sheet import Row

    originals, _ = pictures.batch(indices)
    with torch.inference_mode():
        device = tokenizer.quantizer.device
        painted = tokenizer.decode(tokenizer.encode(originals.to(device))).cpu()
    over = [f"{distance:.4f}" for distance in distances_N[indices].tolist()]
    return Row(name, originals, over), Row("reconstructed", painted)


# ---- for people ------------------------------------------------------------------------------------------------------


def _scales(scales: Sequence[ScaleFigures]) -> Table:
    rows: list[tuple[object, ...]] = [
        (
            scale.size,
            scale.tokens,
            scale.used,
            scale.possible,
            f"{scale.perplexity:.1f}",
            f"{100 * scale.residual:.1f}",
            f"{scale.psnr:.2f}",
        )
        for scale in scales
    ]
    names = ("tokens", "codes used", "possible", "perplexity", "residual %", "PSNR dB")
    return table("Scale by scale", ("scale",), names, rows)
