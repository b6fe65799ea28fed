"""`nextscale edit`: a part of a picture painted anew, what is around it, or all but its coarse scales."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nextscale.cli import models
from nextscale.cli.options import Pictures
from nextscale.cli.output import bar, directory
from nextscale.cli.painting import TOP_K, Painting, again, is_file
from nextscale.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from nextscale.config import TokenizerConfig
    from nextscale.pipeline import Generated, Pipeline

Edges = Annotated[str | None, tyro.conf.arg(metavar="X0,Y0,X1,Y1", help_behavior_hint="")]
Room = Annotated[str | None, tyro.conf.arg(metavar="LEFT,TOP,RIGHT,BOTTOM", help_behavior_hint="")]
MaskFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
DIM = 0.25  # what is left of the light where the sheet shows a mask


@dataclass(frozen=True, kw_only=True)
class Edit(Painting):
    """Repaint a part of a picture, its surroundings, or its details."""

    pictures: Pictures = ()
    """Files in any format Pillow reads; resized and centre-cropped to the model's size."""
    mask: MaskFile = None
    """Mask of what to repaint: a picture, white on black, or drawn on transparency."""
    box: Edges = None
    """Box to repaint: left, top, right, bottom, in pixels of the picture."""
    expand: Room = None
    """Room to paint around the picture: left, top, right, bottom, in its pixels."""
    keep_scales: int = 0
    """Number of coarse scales to keep, also inside the mask; without a mask, a variation."""
    feather: int = 0
    """Width in pixels of the soft edge of the mask, on the repainted side."""
    show_hidden: bool = False
    """Let the model see the region to repaint: closer to the picture, but not leak-free."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR|FILE.png")] = Path("edits")
    """Directory for the results and a sheet of them; or a file for the only result."""

    def run(self) -> None:
        self._check()
        pipe = self.pipeline()
        models.note_top_k(pipe, (self.top_k,), usual=TOP_K)
        pairs = [self._pair(file, pipe.tokenizer.config) for file in self.pictures]
        alone = is_file(self.out)
        folder = directory("--out", self.out.parent if alone else self.out)
        results = []
        with models.notes(), bar("painting") as told:
            for number, (picture, mask) in enumerate(pairs):
                results.append(self._edited(pipe, picture, mask, self.seed + number * self.count))
                told(number + 1, len(pairs))
        for file, done in zip(self.pictures, results, strict=True):
            self._save(folder, file, done, alone=alone)
        if not alone:
            _sheet(folder / "sheet.png", pairs, results, pipe.tokenizer.config)
        self._tell(pairs, pipe.tokenizer.config, folder / "sheet.png")

    def _check(self) -> None:
        """What can be known to be wrong before torch is imported."""
        self.check()
        if not self.pictures:
            raise InputError("PICTURE: expected at least one file, got none")
        given = [name for name in ("mask", "box", "expand") if getattr(self, name) is not None]
        if len(given) > 1 or not (given or self.keep_scales):
            told = " and ".join(f"--{name}" for name in given) or "none"
            raise InputError(f"expected one of --mask, --box, --expand, or --keep-scales alone, got {told}")
        if len(self.label) + len(self.label_index) > 1:
            raise InputError("--label: expected one class for all pictures, got several")
        if len(self.prompt) > 1:
            raise InputError("--prompt: expected one text for all pictures, got several")
        if is_file(self.out) and len(self.pictures) * self.count > 1:
            raise InputError(
                f"--out: expected a directory for {len(self.pictures) * self.count} results, got {self.out}"
            )

    def _pair(self, file: Path, size: TokenizerConfig) -> tuple[Image.Image, Image.Image | None]:
        """The picture and its mask, which lie on each other."""
        from PIL import Image

        from nextscale import images
        from nextscale.sampling import masks

        picture = images.open_rgb(file)
        if self.expand is not None:
            return masks.extended(picture, _four("--expand", self.expand), height=size.height, width=size.width)
        if self.box is not None:
            return picture, masks.box(picture.size, _four("--box", self.box))
        if self.mask is None:
            return picture, None
        mask = images.open_mask(self.mask)
        return picture, mask.resize(picture.size, Image.Resampling.BOX) if mask.size != picture.size else mask

    def _edited(self, pipe: Pipeline, picture: Image.Image, mask: Image.Image | None, seed: int) -> Generated:
        labels = self.asked(pipe)
        return pipe.edit(
            picture,
            mask,
            labels[0] if labels else None,
            seed,
            prompts=self.prompt[0] if self.prompt else None,
            count=self.count,
            leak_free=not self.show_hidden,
            keep_scales=self.keep_scales,
            feather=self.feather,
            **self.settings(),
        )

    def _save(self, folder: Path, file: Path, done: Generated, *, alone: bool) -> None:
        from nextscale import images

        for picture, request in zip(done.pil(), done.requests, strict=True):
            path = self.out if alone else folder / f"{file.stem}-{request.stem}.png"
            images.save(path, picture, notes=self.notes(request))

    def _tell(self, pairs: list[tuple[Image.Image, Image.Image | None]], size: TokenizerConfig, sheet: Path) -> None:
        """How much was repainted, what was written, and the command that writes it again."""
        from nextscale.sampling.masks import as_mask

        for file, (_, mask) in zip(self.pictures, pairs, strict=True):
            share = (
                1.0 if mask is None else float((as_mask(mask, height=size.height, width=size.width) > 0).float().mean())
            )
            print(f"{file}: {share:.0%} repainted")
        count = len(self.pictures) * self.count
        what = f"{count} picture{'s' if count > 1 else ''}"
        print(f"{what} in {self.out}" if is_file(self.out) else f"{what} and {sheet.name} in {sheet.parent}")
        print(again("edit", self, *self.pictures))


def _four(option: str, text: str) -> tuple[int, int, int, int]:
    """`0,10,32,64` as numbers."""
    words = text.split(",")
    if len(words) != 4 or not all(word.strip().lstrip("-").isdecimal() for word in words):
        raise InputError(f"{option}: expected four whole numbers of pixels such as 0,10,32,64, got {text!r}")
    first, second, third, fourth = map(int, words)
    return first, second, third, fourth


def _sheet(
    file: Path,
    pairs: list[tuple[Image.Image, Image.Image | None]],
    results: list[Generated],
    size: TokenizerConfig,
) -> None:
    """A row a picture: as it was, with the mask dimmed, and the results."""
    import torch

    from nextscale import images
    from nextscale.cli.sheet import Row, drawn
    from nextscale.sampling.masks import as_mask

    rows = []
    for (picture, mask), done in zip(pairs, results, strict=True):
        unit = images.as_unit(picture, height=size.height, width=size.width)
        dim = torch.ones(1) if mask is None else as_mask(mask, height=size.height, width=size.width)
        shown = torch.cat([unit, unit * (1 - (1 - DIM) * dim), done.images.cpu()])
        over = ["picture", "repainted", *(f"seed {request.seed}" for request in done.requests)]
        rows.append(Row(done.requests[0].name, images.from_unit(shown), over))
    images.save(file, drawn(rows))
