"""`nextscale reconstruct`: pictures through the tokenizer and back, as strips that show what each scale adds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nextscale.cli import models
from nextscale.cli.options import Depth, Directory, Model, Pictures, TokenizerRun, TokenMaps
from nextscale.cli.output import bar, directory
from nextscale.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from nextscale.tokenizer import MultiScaleVQVAE


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Pass pictures through the tokenizer: a strip of each, the original and then the result of each scale."""

    pictures: Pictures = ()
    """Files in any format Pillow reads; resized and centre-cropped to the tokenizer's size."""
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
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available."""
    out: Directory = Path("reconstructions")
    """Directory for the strips."""

    def run(self) -> None:
        if not self.pictures:
            raise InputError("PICTURE: expected at least one file, got none")
        models.check_tokenizer(self.model, self.tokenizer, self.depth)
        from nextscale import images
        from nextscale.cli.sheet import Row, drawn, scale_names
        from nextscale.machine.precision import find_device

        device = find_device(self.device)
        tokenizer = models.load_tokenizer(self.model, self.tokenizer, self.depth, self.scales).to(device).eval()
        size = tokenizer.config
        originals = [images.read(file, height=size.height, width=size.width) for file in self.pictures]
        folder = directory("--out", self.out)
        lines = []
        with bar("reconstructing") as told:
            for file, stem, original in zip(self.pictures, stems(self.pictures), originals, strict=True):
                stages = stages_of(tokenizer, original.to(device))
                strip = folder / f"{stem}.png"
                over = ["original", *scale_names(tokenizer.config.scales)]
                images.save(strip, drawn([Row("", stages, over)]))
                lines.append(f"{file}: {images.psnr(stages[-1:], stages[:1]).item():.2f} dB, {strip}")
                told(len(lines), len(originals))
        print("\n".join(lines))


def stems(files: Iterable[Path]) -> list[str]:
    """A file name for each strip; equal names from different folders are numbered."""
    stems: list[str] = []
    for file in files:
        numbered = (f"{file.stem}-{number}" for number in range(2, len(stems) + 3))
        stems.append(next(stem for stem in (file.stem, *numbered) if stem not in stems))
    return stems


def stages_of(tokenizer: MultiScaleVQVAE, original_3HW: Tensor) -> Tensor:
    """The original and what is painted through scale 1 .. K: (1 + K, 3, H, W) in [-1, 1]."""
    import torch

    with torch.inference_mode():
        tokens_1L = tokenizer.encode(original_3HW[None])
        painted = [tokenizer.decode(tokens_1L, through=k + 1) for k in range(len(tokenizer.config.scales))]
    return torch.cat([original_3HW[None], *painted]).cpu()
