"""`nextscale train tokenizer`: the first stage."""

from __future__ import annotations

import dataclasses
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nextscale.cli import models, networks
from nextscale.cli.data import (
    BROKEN,
    CacheDir,
    CacheSize,
    Column,
    IndexFile,
    ListBroken,
    MaxBroken,
    Window,
    cache_of,
    check_outside,
    columns_of,
    load_data,
    options_of_cache,
)
from nextscale.cli.options import (
    Count,
    Directory,
    EveryMinutes,
    Minutes,
    MirrorAddress,
    NetworkAndHeads,
    Precision,
    Settings,
    Start,
    Times,
)
from nextscale.cli.output import say
from nextscale.cli.training import check_mirror, length, together, watch
from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.config import TokenizerConfig
    from nextscale.tokenizer import MultiScaleVQVAE
    from nextscale.training.recipes import TokenizerRecipe

ARCHITECTURE = "architecture."  # begins the names of settings that are about the model

Network = Annotated[str | None, tyro.conf.arg(metavar="PATH|HUB", help_behavior_hint="")]
Discriminator = Literal["recipe", "none", "patch", "features"]
Size = Annotated[str | None, tyro.conf.arg(metavar="HEIGHTxWIDTH", help_behavior_hint="(default: the preset's)")]


@dataclass(frozen=True, kw_only=True)
class TrainTokenizer:
    """Train a multi-scale tokenizer, for `train transformer --tokenizer`.

    docs/tokenizer.md explains the losses, the printed table and the warnings.
    """

    data: str = "emoji"
    """emoji (embedded), figures (drawn, extra figures), a folder of pictures (DIR/class/picture or flat), a zip of one,
    WebDataset shards, parquet files; docs/data.md lists all formats."""
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
    index: IndexFile = None
    """File for the index of the pictures (default: in the user's cache, for 10,000 pictures or more)."""
    cache_dir: CacheDir = None
    """Cache for files at an address (default: nextscale/remote in the user's cache directory)."""
    cache_size: CacheSize = None
    """Largest size of that cache, such as 500GB (default: 64GB)."""
    window: Window = None
    """Number of shards to shuffle together (default: 16 at an address, all on this machine)."""
    preset: str = "emoji-32"
    """Architecture, picture size and recipe; `nextscale presets` lists what each costs."""
    size: Size = None
    """Size of the pictures in pixels, such as 96x128, with suggested scales."""
    init: Start = None
    """Trained tokenizer to start from, of the same architecture; picture size and scales may differ."""
    out: Directory = Path("runs/tokenizer")
    """Run directory; an existing run with the same settings is continued."""
    mirror: MirrorAddress = None
    """Address in a bucket to copy every checkpoint to; an empty --out continues from there."""
    steps: Count = None
    """Length in steps (default: the recipe's)."""
    minutes: Minutes = None
    """Length in minutes instead; the number of steps follows from the speed."""
    checks: Count = None
    """Number of validations, each followed by a checkpoint (default: one in ten steps, at most 20)."""
    checkpoint_minutes: EveryMinutes = 15.0
    """Also save when the last checkpoint is this old."""
    keep: Times = 0
    """Number of intermediate models to keep in --out/milestones, evenly spaced."""
    batch: Count = None
    """Pictures per step, over all processes (default: the recipe's)."""
    discriminator: Discriminator = "recipe"
    """Adversarial term: the recipe's, none, a PatchGAN, or heads on the features of --backbone."""
    perceptual: NetworkAndHeads = ()
    """Network of the perceptual term: weights of VGG16 or DINO, and LPIPS's linear heads, if any (default: the packaged
    EfficientNet-Lite0)."""
    backbone: Network = None
    """Network of the feature discriminator, with the same choices."""
    semantic: Network = None
    """Network of the semantic term, with the same choices; --set objective.semantic=0.1 turns the term on."""
    set: Settings = ()
    """Any value of recipe or architecture, such as objective.perceptual=0.1 architecture.code_channels=8."""
    seed: int = 0
    """Seed of the weights and the order of the data."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available, under torchrun one GPU per process."""
    precision: Precision = "auto"
    """auto is bf16 where the hardware supports it natively, else fp32."""

    def run(self) -> None:
        with together(self.device) as device:
            self._train(device)

    def _train(self, device: str) -> None:
        from nextscale import features
        from nextscale.training.loop import Length, Rhythm, train
        from nextscale.training.tokenizer.stage import TokenizerStage

        config = self._config()
        recipe, steps = self._recipe(config)
        self._refuse_unheard(recipe)
        asked = length(self.steps, self.minutes, default=Length(steps=steps))
        rhythm = Rhythm(checks=self.checks, checkpoint_minutes=self.checkpoint_minutes, keep=self.keep)
        check_outside(self.out, self.data)
        check_mirror(self.mirror)
        begin = self._begin(config)
        data = load_data(
            self.data,
            height=config.height,
            width=config.width,
            columns=columns_of(self),
            index=self.index,
            max_broken=self.max_broken,
            list_broken=self.list_broken,
            cache=cache_of(self),
            window=self.window,
        )
        stage = TokenizerStage(
            config,
            data,
            recipe=recipe,
            seed=self.seed,
            device=device,
            precision=self.precision,
            begin=begin,
            perceptual=networks.perceptual(self.perceptual, device=device),
            backbone=features.load(self.backbone, device=device) if self.backbone else None,
            semantic=features.load(self.semantic, device=device) if self.semantic else None,
        )
        watch("tokenizer", train(stage, self.out, asked, seed=self.seed, rhythm=rhythm, mirror=self.mirror), self.out)
        say(f"tokenizer in {self.out}; next:")
        told = ["--data", self.data, "--preset", self.preset, "--tokenizer", str(self.out)]
        told += columns_of(self).options
        told += options_of_cache(self)
        told += [] if self.max_broken == BROKEN else ["--max-broken", f"{self.max_broken:g}"]
        print(shlex.join(["nextscale", "train", "transformer", *told]))

    def _refuse_unheard(self, recipe: TokenizerRecipe) -> None:
        """Raise `InputError` for a network that the recipe would not look through."""
        if self.perceptual and not recipe.objective.perceptual:
            raise InputError(
                f"--perceptual {self.perceptual[0]}: expected a recipe with a perceptual term, such as "
                "--set objective.perceptual=0.5, got one without"
            )
        if self.semantic and not recipe.objective.semantic:
            raise InputError(
                f"--semantic {self.semantic}: expected a recipe with a semantic term, such as --set "
                "objective.semantic=0.1, got one without"
            )
        if self.backbone and recipe.adversarial.discriminator != "features":
            got = recipe.adversarial.discriminator
            raise InputError(f"--backbone {self.backbone}: expected --discriminator features, got {got}")

    def _config(self) -> TokenizerConfig:
        """The preset's with the changes asked for, for pictures of the size asked for."""
        from nextscale import presets
        from nextscale.scales import Scales
        from nextscale.training import recipes

        settings = [setting for setting in self.set if setting.startswith(ARCHITECTURE)]
        config = recipes.changed(presets.get(self.preset).tokenizer, settings, ARCHITECTURE)
        if self.size is None:
            return config
        if any(setting.startswith(f"{ARCHITECTURE}scales=") for setting in settings):
            raise InputError(f"expected --size or --set {ARCHITECTURE}scales, got both")
        sides = re.fullmatch(r"(\d+)x(\d+)", self.size)
        if not sides:
            raise InputError(f"--size: expected HEIGHTxWIDTH in pixels, such as 96x128, got {self.size!r}")
        return dataclasses.replace(config, scales=Scales.suggest(int(sides[1]), int(sides[2]), config.stride))

    def _begin(self, config: TokenizerConfig) -> MultiScaleVQVAE | None:
        """The tokenizer to begin from, on the scales of `config`, whose architecture must be its own."""
        if self.init is None:
            return None
        from nextscale.tokenizer.rescaled import rescaled

        found = models.tokenizer_alone(self.init, str(config.scales).split() if self.init.is_file() else ())
        names = [
            name for name in vars(config) if name != "scales" and getattr(config, name) != getattr(found.config, name)
        ]
        if names:
            told = ", ".join(
                f"{name} {getattr(found.config, name)} there and {getattr(config, name)} here" for name in names
            )
            raise InputError(f"--init {self.init}: expected the architecture of --preset {self.preset}, got {told}")
        return rescaled(found, config.scales)

    def _recipe(self, config: TokenizerConfig) -> tuple[TokenizerRecipe, int]:
        """The preset's, suited to the kind of codes, with the changes asked for; and its number of steps."""
        from nextscale.training import recipes

        recipe, steps = recipes.for_preset(self.preset)
        settings = [setting for setting in self.set if not setting.startswith(ARCHITECTURE)]
        if self.batch is not None:
            settings.append(f"optimization.batch={self.batch}")
        if self.discriminator != "recipe":
            settings.append(f"adversarial.discriminator={self.discriminator}")
        changed = recipes.changed(recipe.suited(config), settings)
        changed.check(config)
        return changed, steps
