"""`nextscale push`: a model to the hub, with a page that describes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nextscale.cli import models
from nextscale.cli.options import Depth, Encoder, Model, Precision, Prompts
from nextscale.cli.output import directory, say
from nextscale.errors import InputError

MODEL = ("config.json", "README.md")  # what --out may hold from before


@dataclass(frozen=True, kw_only=True)
class Push:
    """Upload a model with a card: data and recipe of its training run, metrics, samples."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """Repository on the hub, created if needed. Log in with `hf auth login`, or a token in HF_TOKEN."""
    model: Model = ()
    """Directory such as `nextscale demo` leaves, hub name, or the public release's tokenizer and transformer files."""
    depth: Depth = None
    """Depth of the release's transformer, if --model is a folder or hub name with several: 16, 20, 24 ..."""
    text_encoder: Encoder = None
    """Path of the frozen text encoder that the model was trained with, if it has moved."""
    figures: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = ()
    """Files written by `nextscale evaluate ... --json FILE`; each becomes a table of the card."""
    about: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Markdown for the card: source of the pictures, acknowledgements, intended use."""
    license: Annotated[str | None, tyro.conf.arg(metavar="ID", help_behavior_hint="")] = None
    """Licence of the weights, as the hub spells it: mit, apache-2.0, cc-by-4.0 ..."""
    prompt: Prompts = ()
    """Prompts of the card's samples, for models that read text (default: class after class)."""
    samples: int = 16
    """Samples on the card, not selected; 0 is none."""
    private: bool = False
    """Make a new repository private."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Write everything into this directory instead of uploading it, to check the card first."""
    device: str = "auto"
    """Paint the samples on cpu, cuda, cuda:1 ...; auto is CUDA if available."""
    precision: Precision = "fp32"
    """Format of the stored weights: fp32 is lossless, bf16 takes half the space; auto is bf16 where it is fast."""

    def run(self) -> None:
        if not self.model:
            raise InputError("--model: expected the model that is to be pushed, got nothing")
        about = "" if self.about is None else _text(self.about)
        if self.out is not None:
            _check_place(directory("--out", self.out))
        pipe = models.load(
            self.model, self.depth, device=self.device, precision=self.precision, text_encoder=self.text_encoder
        )
        run = Path(self.model[0])
        with models.notes():
            address = pipe.push_to_hub(
                self.name,
                private=self.private,
                about=about,
                license=self.license,
                run=run if (run / "run.json").is_file() else None,
                figures=self.figures,
                samples=self.samples,
                prompts=self.prompt,
                out=self.out,
            )
        self._tell(address)

    def _tell(self, address: str) -> None:
        """Where it is, and how it is used."""
        if self.out is not None:
            say(f"model and page in {address}; without --out they are uploaded to {self.name}")
            return
        say(f"{self.name}: {address}")
        print(f"nextscale sample --model {self.name}")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"--about: expected text in UTF-8, got {file}") from None
    except OSError as error:
        raise InputError(f"--about: expected a text file, got {file} ({error.strerror})") from None


def _check_place(out: Path) -> None:
    """Raise `InputError` where a run or something else lies, which the page would be written into."""
    if any(out.iterdir()) and not all((out / name).exists() for name in MODEL):
        raise InputError(f"--out: expected an empty directory, or one that this has written, got {out}")
