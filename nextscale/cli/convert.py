"""`nextscale convert`: files of the public release to a directory of ours, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nextscale.cli import models
from nextscale.cli.options import Depth, Model
from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.pipeline import Pipeline

FILES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """A model from the public release's format to ours, or back: whether --out is a directory or two files decides."""

    model: Model = ()
    """Directory, hub name, the release's tokenizer and transformer files, or a checkpoint of its trainer."""
    depth: Depth = None
    """Which of the release's transformers, when --model is a folder or hub name that holds them."""
    out: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR|VAE VAR", help_behavior_hint="")] = ()
    """A directory for our format; two files, .pth or .safetensors, for the release's."""
    num_heads: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Attention heads of a release transformer whose tensors do not tell (default: heads of 64 channels)."""
    scales: Annotated[tuple[str, ...], tyro.conf.arg(metavar="N|HxW", help_behavior_hint="")] = ()
    """Token maps of release files, as in 1 2 3 4x6 (default: squares)."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """What "nearest code" means in release files."""

    def run(self) -> None:
        self._check()
        pipe = self._load()
        if len(self.out) == 1:
            pipe.save(self.out[0])
        else:
            from nextscale import official
            from nextscale.release import files

            for file, state in zip(self.out, official.export(pipe), strict=True):
                files.write(file, state)
        print(
            f"{pipe.transformer.config.parameters:,} parameters and their tokenizer in {' '.join(map(str, self.out))}"
        )

    def _check(self) -> None:
        if not self.model:
            raise InputError("--model: expected what is to be converted, got nothing")
        files = [file for file in self.out if file.suffix in FILES]
        if not (len(self.out) == 1 and not files) and not (len(set(self.out)) == len(files) == 2):
            got = " ".join(map(str, self.out)) or "nothing"
            raise InputError(f"--out: expected a directory, or two files that end in {', '.join(FILES)}, got {got}")

    def _load(self) -> Pipeline:
        """In float32, which loses nothing."""
        files = models.release_files(self.model, self.depth)
        if files is None:
            if self.scales or self.num_heads is not None or self.distance != "euclidean":
                told = "--scales, --num-heads, --distance"
                raise InputError(f"{told}: expected with the release's files, got a model that tells them")
            return models.load(self.model, self.depth, device="cpu", precision="fp32")
        from nextscale import official

        scales = [_sides(word) for word in self.scales] or None
        return official.load(*files, num_heads=self.num_heads, scales=scales, distance=self.distance, precision="fp32")


def _sides(word: str) -> int | tuple[int, int]:
    """`3` or `4x6`."""
    try:
        height, times, width = word.partition("x")
        return (int(height), int(width)) if times else int(height)
    except ValueError:
        raise InputError(f"--scales: expected sides such as 3 or 4x6, got {word!r}") from None
