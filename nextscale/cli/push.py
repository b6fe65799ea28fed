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
    """Upload a model and its page: data and recipe of its training run, figures of its evaluations, samples."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """The repository on the hub, made if need be. The login is `hf auth login`'s, or a token in HF_TOKEN."""
    model: Model = ()
    """Directory such as `nextscale demo` leaves, hub name, or the public release's tokenizer and transformer files."""
    depth: Depth = None
    """Which of the release's transformers, when --model is a folder or hub name that holds them: 16, 20, 24 ..."""
    text_encoder: Encoder = None
    """The frozen text encoder that the model was trained with, where it is not in its old place."""
    figures: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = ()
    """Files that `nextscale evaluate ... --json FILE` wrote; each becomes a table of the page."""
    about: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Markdown for the page: where the pictures come from, whom to thank, what the model is for."""
    license: Annotated[str | None, tyro.conf.arg(metavar="ID", help_behavior_hint="")] = None
    """Licence of the weights, as the hub spells it: mit, apache-2.0, cc-by-4.0 ..."""
    prompt: Prompts = ()
    """What the samples of the page show, in words, for models that read text (default: class after class)."""
    samples: int = 16
    """Pictures on the page, not picked; 0 is none."""
    private: bool = False
    """Make a new repository for its owner alone."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Write everything into this directory instead of uploading it, to look at the page first."""
    device: str = "auto"
    """Paint the samples on cpu, cuda, cuda:1 ...; auto is CUDA where there is some."""
    precision: Precision = "fp32"
    """What the weights are stored in: fp32 loses nothing, bf16 takes half the room; auto is bf16 where it is fast."""

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
