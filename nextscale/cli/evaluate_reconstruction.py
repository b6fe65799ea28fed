"""`nextscale evaluate reconstruction`: how good a tokenizer is, on pictures it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nextscale.cli import models
from nextscale.cli.data import read_data
from nextscale.cli.options import Depth, Json, Model, TokenizerRun
from nextscale.cli.output import at_least, check_json, console, directory, progress, say, table, write_json

if TYPE_CHECKING:
    import torch
    from rich.table import Table
    from torch import Tensor

    from nextscale.data import DataSet, Pictures
    from nextscale.evaluation.reconstruction import ReconstructionFigures
    from nextscale.features import FeatureNetwork
    from nextscale.tokenizer import MultiScaleVQVAE

COLUMNS = 8  # pictures in a row of the sheet
SHEET = "worst-and-best.png"


@dataclass(frozen=True, kw_only=True)
class EvaluateReconstruction:
    """How far pictures are from what they were, and what each scale does for it.

    FD: Fréchet distance, named after the network whose features it compares
    """

    model: Model = ()
    """Directory, hub name, or the public release's tokenizer and transformer files; the tokenizer is used."""
    depth: Depth = None
    """Which of the release's transformers, when --model is a folder or hub name that holds them."""
    tokenizer: TokenizerRun = None
    """Tokenizer run, instead of a model."""
    data: str = "emoji"
    """emoji (embedded), a folder of pictures (DIR/class/picture or flat), or of WebDataset shards."""
    split: Literal["validation", "train"] = "validation"
    """The pictures held out, or those to train on."""
    features: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")] = "efficientnet-lite0"
    """Feature network of the perceptual and of the Fréchet distance."""
    batch: int = 32
    """Pictures at a time; the figures do not depend on it."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA where there is some."""
    json: Json = None
    """Also write all figures as JSON; - is stdout, without the table."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Where to put a sheet of the worst and the best reconstructions, originals above."""

    def run(self) -> None:
        self._check()
        from nextscale import features
        from nextscale.precision import find_device

        device = find_device(self.device)
        tokenizer = models.load_tokenizer(self.model, self.tokenizer, self.depth).to(device).eval()
        network = features.load(self.features, device=device)
        found = read_data(self.data, height=tokenizer.config.height, width=tokenizer.config.width)
        pictures = found.train if self.split == "train" else found.validation
        if self.out is not None:
            directory("--out", self.out)
        figures = self._judge(tokenizer, pictures, network)
        values = figures.to_json() | self._setting(device)
        values["warnings"] += self._warnings(found)
        if str(self.json) != "-":
            _tell(figures, values)
        if self.out is not None:
            self._draw(tokenizer, pictures, figures)
        if self.json is not None:
            write_json(self.json, values)

    def _check(self) -> None:
        """What can be known to be wrong before torch is imported."""
        models.check_tokenizer(self.model, self.tokenizer, self.depth)
        at_least("--batch", 1, self.batch)
        check_json(self.json)

    def _judge(self, tokenizer: MultiScaleVQVAE, pictures: Pictures, network: FeatureNetwork) -> ReconstructionFigures:
        from nextscale.evaluation.reconstruction import evaluate

        with progress() as bar:
            task = bar.add_task("reconstructing", total=len(pictures))
            return evaluate(
                tokenizer,
                pictures,
                network,
                batch=self.batch,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )

    def _setting(self, device: torch.device) -> dict[str, Any]:
        """What was judged and with what, as plain JSON values."""
        import torch
        import torchmetrics

        import nextscale

        return {
            "tokenizer": str(self.tokenizer) if self.tokenizer is not None else " ".join(self.model) or "embedded",
            "data": self.data,
            "split": self.split,
            "device": device.type,
            "nextscale": nextscale.__version__,
            "torch": torch.__version__,
            "torchmetrics": torchmetrics.__version__,
        }

    def _warnings(self, found: DataSet) -> list[str]:
        """What the figures themselves cannot know."""
        lines = []
        if self.split == "train":
            lines.append(
                "these pictures are there to train on: a tokenizer may know them; --split validation judges it"
            )
        if found.broken:
            lines.append(f"{len(found.broken)} pictures of {self.data} cannot be read and are left out")
        return lines

    def _draw(self, tokenizer: MultiScaleVQVAE, pictures: Pictures, figures: ReconstructionFigures) -> None:
        from nextscale import images

        assert self.out is not None
        order = figures.each.perceptual.argsort(descending=True, stable=True)
        rows = [row for chosen in (order[:COLUMNS], order[-COLUMNS:]) for row in _pair(tokenizer, pictures, chosen)]
        sheet = self.out / SHEET
        images.save(sheet, images.grid(_joined(rows), columns=len(rows[0])))
        if str(self.json) != "-":
            say(f"the worst and the best by perceptual distance, originals above: {sheet}")


def _pair(tokenizer: MultiScaleVQVAE, pictures: Pictures, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Some pictures and their reconstructions, (n, 3, H, W) each."""
    import torch

    originals, _ = pictures.batch(indices)
    with torch.inference_mode():
        device = tokenizer.quantizer.codebook.weight.device
        return originals, tokenizer.decode(tokenizer.encode(originals.to(device))).cpu()


def _joined(rows: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(rows)


# ---- for people ------------------------------------------------------------------------------------------------------


def _tell(figures: ReconstructionFigures, values: dict[str, Any]) -> None:
    """The figures, what each scale does, what they were made with, and what to keep in mind."""
    size = f"{figures.height}x{figures.width}"
    say(f"Reconstruction of {figures.pictures:,} pictures: {values['data']}, {values['split']}, {size}")
    print()
    for name, value in _figures(figures):
        print(f"  {name:<22}{value}")
    print()
    console().print(_scales(figures), "", sep="\n")
    for line in _made_with(figures, values):
        say(line)
    for warning in values["warnings"]:
        say(f"warning: {warning}")


def _figures(figures: ReconstructionFigures) -> list[tuple[str, str]]:
    bits = f"{figures.bits_per_pixel:8.4f}  ({figures.entropy_bits_per_pixel:.4f} entropy-coded)"
    return [
        ("PSNR", f"{figures.psnr:8.2f}  dB"),
        ("SSIM", f"{figures.ssim:8.4f}"),
        ("perceptual distance", f"{figures.perceptual_distance:8.4f}  ({figures.network.name})"),
        (figures.frechet_name, f"{figures.frechet_distance:8.4f}"),
        ("bits per pixel", bits),
    ]


def _scales(figures: ReconstructionFigures) -> Table:
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
        for scale in figures.scales
    ]
    names = ("tokens", "codes used", "possible", "perplexity", "residual %", "PSNR dB")
    return table("Scale by scale", ("scale",), names, rows)


def _made_with(figures: ReconstructionFigures, values: dict[str, Any]) -> list[str]:
    network = figures.network
    return [
        "residual: share of the features' energy that is left after the scale; PSNR: painted up to the scale",
        f"tokenizer {values['tokenizer']} ({figures.tokenizer_fingerprint})",
        f"data {values['data']}, {values['split']} ({figures.data_fingerprint})",
        f"features {network.name} at {network.side} px, inner maps at {network.perceptual_side} px "
        f"({network.fingerprint})",
        f"nextscale {values['nextscale']}, torch {values['torch']}, {values['device']}, fp32",
    ]
