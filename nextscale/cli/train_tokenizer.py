"""`nextscale train tokenizer`: the first stage."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path

from nextscale.cli.options import Directory, Precision
from nextscale.cli.output import say
from nextscale.cli.training import length, load_data, watch


@dataclass(frozen=True, kw_only=True)
class TrainTokenizer:
    """Train a multi-scale tokenizer; its directory is what `train transformer --tokenizer` wants."""

    data: str = "emoji"
    """emoji (embedded), or a folder of pictures: DIR/class/picture or flat."""
    preset: str = "emoji-32"
    """Whose architecture and picture size; see nextscale presets."""
    out: Directory = Path("runs/tokenizer")
    """Run directory; one that holds the same run is continued."""
    steps: int | None = None
    """Length in steps."""
    minutes: float | None = None
    """Length in minutes (default: 10); the first steps are timed, then the number of steps is fixed."""
    batch: int | None = None
    """Pictures a step (default: 32)."""
    seed: int = 0
    """Decides weights and the order of the data."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA where there is some."""
    precision: Precision = "auto"
    """auto is bf16 where the hardware is fast at it, else fp32."""

    def run(self) -> None:
        from nextscale import presets

        config = presets.get(self.preset).tokenizer
        asked = length(self.steps, self.minutes)
        data = load_data(self.data, height=config.height, width=config.width)

        from nextscale.training.loop import train
        from nextscale.training.tokenizer import RECIPE, TokenizerStage

        recipe = dataclasses.replace(RECIPE, batch=RECIPE.batch if self.batch is None else self.batch)
        stage = TokenizerStage(
            config, data, recipe=recipe, seed=self.seed, device=self.device, precision=self.precision
        )
        watch("tokenizer", train(stage, self.out, asked, seed=self.seed), self.out)
        say(f"tokenizer in {self.out}; next:")
        told = ["--data", self.data, "--preset", self.preset, "--tokenizer", str(self.out)]
        print(shlex.join(["nextscale", "train", "transformer", *told]))
