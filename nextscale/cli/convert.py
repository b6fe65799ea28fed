"""`nextscale convert`: files of the public release to a directory of ours, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nextscale.cli import models
from nextscale.cli.options import Depth, Model, TokenMaps
from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.pipeline import Pipeline
    from nextscale.tokenizer import MultiScaleVQVAE
    from nextscale.transformer import VAR

FILES = (".pth", ".pt", ".safetensors")
OURS = ("config.json", "run.json")  # either tells that a directory holds a model


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert a model from the public release's format to ours, or back if --out names files."""

    model: Model = ()
    """Directory, hub name, the release's tokenizer and transformer files, its tokenizer alone, or a trainer's file."""
    depth: Depth = None
    """Depth of the release's transformer, if --model is a folder or hub name with several."""
    out: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR|VAE VAR", help_behavior_hint="")] = ()
    """A directory for our format; two files, .pth or .safetensors, for the release's, one for a tokenizer alone."""
    overwrite: bool = False
    """Replace an existing model."""
    num_heads: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Attention heads, if the release's tensors do not determine them (default: heads of 64 channels)."""
    scales: TokenMaps = ()
    """Token maps of release files, as in 1 2 3 4x6 (default: squares; of a tokenizer alone, the 256 px release's)."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """What "nearest code" means in release files."""
    weights: Literal["plain", "ema"] = "plain"
    """Which weights of release files to read: plain, or the EMA if the trainer kept one."""
    classes: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Class names: one per line, imagenet_class_index.json, or a CSV file with a column wnid or name."""

    def run(self) -> None:
        self._check()
        with models.notes():
            model = self._load()
        told = self._write(model)
        print(f"{told} in {' '.join(map(str, self.out))}")

    def _check(self) -> None:
        if not self.model:
            raise InputError("--model: expected what is to be converted, got nothing")
        files = [file for file in self.out if file.suffix in FILES]
        if not (len(self.out) == 1 and len(files) <= 1) and not (len(set(self.out)) == len(files) == 2):
            got = " ".join(map(str, self.out)) or "nothing"
            raise InputError(f"--out: expected a directory, or two files that end in {', '.join(FILES)}, got {got}")
        for out in self.out:
            there = [out, *(out / name for name in OURS)] if out.suffix in FILES else [out / name for name in OURS]
            if not self.overwrite and any(path.exists() for path in there):
                raise InputError(f"--out: expected no model there yet, or --overwrite, got {out}, which holds one")

    def _load(self) -> Pipeline | MultiScaleVQVAE:
        """In float32, which loses nothing."""
        files = models.release_files(self.model, self.depth)
        if files is None:
            return self._load_ours()
        from nextscale import official
        from nextscale.release import files as release_files

        scales = models.sides(self.scales)
        if files[0] == files[1] and not release_files.holds(files[0], "transformer"):
            if self.num_heads is not None:
                raise InputError(f"--num-heads: expected with a transformer, got {files[0]}, which has none")
            return official.load_tokenizer(files[0], scales=scales, distance=self.distance, weights=self.weights)
        return official.load(
            *files,
            num_heads=self.num_heads,
            scales=scales,
            distance=self.distance,
            weights=self.weights,
            precision="fp32",
        )

    def _load_ours(self) -> Pipeline | MultiScaleVQVAE:
        told = (self.scales, self.num_heads, self.distance, self.weights)
        if told != ((), None, "euclidean", "plain"):
            options = "--scales, --num-heads, --distance, --weights"
            raise InputError(f"{options}: expected with the release's files, got a model that stores them")
        if models.is_tokenizer(self.model[0]):
            return models.tokenizer_alone(Path(self.model[0]))
        return models.load(self.model, self.depth, device="cpu", precision="fp32")

    def _write(self, model: Pipeline | MultiScaleVQVAE) -> str:
        """Write the model where `--out` says; what it was, for people."""
        from nextscale.pipeline import Pipeline
        from nextscale.release import convert, files
        from nextscale.tokenizer import MultiScaleVQVAE

        parts: list[MultiScaleVQVAE | VAR] = [model] if isinstance(model, MultiScaleVQVAE) else []
        if isinstance(model, Pipeline):
            parts = [model.tokenizer, model.transformer]
            self._name(model)
        elif self.classes is not None:
            raise InputError(f"--classes: expected a model with a transformer, got {self.model[0]}, which has none")
        if self.out[0].suffix not in FILES:
            model.save(self.out[0])
        elif len(parts) != len(self.out):
            raise InputError(f"--out: expected {len(parts)} files for {len(parts)} models, got {len(self.out)}")
        else:
            states = [convert.exported(part) for part in parts]  # all of them before any is written
            for file, state in zip(self.out, states, strict=True):
                files.write(file, state)
        count = sum(parameter.numel() for parameter in parts[-1].parameters())
        return f"{count:,} parameters{' and their tokenizer' if len(parts) == 2 else ' of a tokenizer'}"

    def _name(self, pipe: Pipeline) -> None:
        """Give the classes their names."""
        if self.classes is None:
            return
        if self.out[0].suffix in FILES:
            raise InputError("--classes: expected a directory as --out, got files, which hold no names")
        from nextscale.release import classes

        pipe.classes = tuple(classes.read(self.classes, len(pipe.classes)))
