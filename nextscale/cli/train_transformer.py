"""`nextscale train transformer`: the second stage."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path

from nextscale.cli.data import load_data
from nextscale.cli.options import Count, Directory, Minutes, Precision
from nextscale.cli.output import say
from nextscale.cli.training import length, together, watch

DEFAULT_MINUTES = 10.0


@dataclass(frozen=True, kw_only=True)
class TrainTransformer:
    """Train a next-scale transformer on a finished tokenizer; its directory is what `sample --model` wants."""

    data: str = "emoji"
    """emoji (embedded), a folder of pictures (DIR/class/picture or flat), or of WebDataset shards."""
    tokenizer: Directory = Path("runs/tokenizer")
    """Run directory of the tokenizer, or any model directory that holds one."""
    preset: str = "emoji-32"
    """Whose depth, width and heads; see nextscale presets. Scales and codes are the tokenizer's, classes the data's."""
    out: Directory = Path("runs/transformer")
    """Run directory; one that holds the same run is continued."""
    steps: Count = None
    """Length in steps."""
    minutes: Minutes = None
    """Length in minutes (default: 10); the first steps are timed, then the number of steps is fixed."""
    batch: Count = None
    """Pictures a step, over all processes (default: 32)."""
    seed: int = 0
    """Decides weights and the order of the data."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA where there is some."""
    precision: Precision = "auto"
    """auto is bf16 where the hardware is fast at it, else fp32."""

    def run(self) -> None:
        with together(self.device) as device:
            self._train(device)

    def _train(self, device: str) -> None:
        from nextscale import presets
        from nextscale.tokenizer import MultiScaleVQVAE
        from nextscale.training.loop import Length, train
        from nextscale.training.transformer import RECIPE, TransformerStage, fitted

        preset = presets.get(self.preset)
        asked = length(self.steps, self.minutes, default=Length(minutes=DEFAULT_MINUTES))
        tokenizer = MultiScaleVQVAE.load(self.tokenizer)
        data = load_data(self.data, height=tokenizer.config.height, width=tokenizer.config.width)
        recipe = dataclasses.replace(RECIPE, batch=RECIPE.batch if self.batch is None else self.batch)
        stage = TransformerStage(
            fitted(preset.transformer, tokenizer, classes=len(data.classes)),
            tokenizer,
            data,
            recipe=recipe,
            seed=self.seed,
            device=device,
            precision=self.precision,
        )
        watch("transformer", train(stage, self.out, asked, seed=self.seed), self.out)
        say(f"model in {self.out}; next:")
        print(shlex.join(["nextscale", "sample", "--model", str(self.out)]))
