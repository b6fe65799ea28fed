"""`nextscale train transformer`: the second stage."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nextscale.cli import models
from nextscale.cli.data import (
    BROKEN,
    CacheDir,
    CacheSize,
    Captioned,
    Column,
    IndexFile,
    Labelling,
    ListBroken,
    MaxBroken,
    Window,
    cache_of,
    check_outside,
    columns_of,
    load_data,
)
from nextscale.cli.options import (
    Count,
    Directory,
    EveryMinutes,
    Minutes,
    MirrorAddress,
    Precision,
    Settings,
    Share,
    Start,
    Times,
    TokenizerSource,
    TokenMaps,
)
from nextscale.cli.output import at_least, progress, say
from nextscale.cli.training import check_mirror, length, together, watch
from nextscale.config import Order
from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.config import TransformerConfig
    from nextscale.data import DataSet
    from nextscale.data.tokens import TokenSet
    from nextscale.pipeline import Pipeline
    from nextscale.presets import Preset
    from nextscale.text.prompts import Reader
    from nextscale.tokenizer import MultiScaleVQVAE
    from nextscale.training.recipes import TransformerRecipe

Named = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the tokenizer's)")]
Text = Annotated[str | None, tyro.conf.arg(metavar="embedded|none|DIR|HUB", help_behavior_hint="")]
Ordered = Annotated[Order | None, tyro.conf.arg(help_behavior_hint="")]
Depth = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: the preset's)")]


CHOSEN = ("groups", "feed_forward", "activation", "logit_cap")  # of the architecture, by --set


@dataclass(frozen=True, kw_only=True)
class TrainTransformer:
    """Train a next-scale transformer on a finished tokenizer, for `sample --model`.

    docs/transformer.md explains the recipe, the printed table and the costs.
    """

    data: str = "emoji"
    """emoji (embedded), figures (drawn, extra figures), a folder of pictures (DIR/class/picture or flat), a zip of one,
    WebDataset shards, parquet files (docs/data.md lists all formats), or a cache that nextscale encode made."""
    labels: Labelling = None
    """Classes of a folder's pictures: a table with the columns file and label (CSV, JSON lines, parquet), folders, or
    none (default: metadata beside them, or else its folders)."""
    captions: Captioned = None
    """Captions: own (metadata or .txt files beside the pictures, .txt and .json in shards), names (the words of file
    names), or a table with the columns file and caption (default: none)."""
    image_column: Column = None
    """Column of metadata or parquet files with the pictures or their names (default: found by name and type)."""
    label_column: Column = None
    """Column of the classes (default: found by name and type)."""
    caption_column: Column = None
    """Column of the captions; implies --captions own (default: found by name and type)."""
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
    tokenizer: TokenizerSource = Path("runs/tokenizer")
    """Run directory of the tokenizer, a model directory, or the public release's tokenizer file; default is the
    packaged one, for icons of 64 px."""
    scales: TokenMaps = ()
    """Token maps of such a file, as in 1 2 3 4x6 (default: for ten, the release's for 256 px)."""
    preset: Named = None
    """Depth, width, heads and recipe; see `nextscale presets`. Scales and codes are the tokenizer's, classes the
    data's."""
    depth: Depth = None
    """Blocks; the paper's one dial, with width = 64 * depth and depth heads."""
    order: Ordered = None
    """What is predicted from what (default: as --init, else scale). A rival of VAR, on a tokenizer of one scale: raster
    is token by token, row by row; masked all tokens from some that are known; refined all from
    some right ones among random ones (docs/rivals.md)."""
    text: Text = None
    """Text encoder: embedded is trained with the transformer, none ignores captions, anything else is a frozen encoder
    of the transformers library (default: that of the preset or --init)."""
    init: Start = None
    """Trained model to start from, with its size; classes and scales may differ."""
    out: Directory = Path("runs/transformer")
    """Run directory; an existing run with the same settings is continued."""
    mirror: MirrorAddress = None
    """Address in a bucket to copy every checkpoint to; an empty --out continues from there."""
    steps: Count = None
    """Length in steps (default: the recipe's)."""
    minutes: Minutes = None
    """Length in minutes instead; the number of steps follows from the speed."""
    cooldown: Share = None
    """Keep the learning rate constant after the warm-up and decay it over this last share of the run; 0: no decay."""
    plateau: Start = None
    """Run with the same settings except length and --cooldown, whose rate has not begun to decay: start the cooldown
    from its last checkpoint."""
    checks: Count = None
    """Number of validations, each followed by a checkpoint (default: one in ten steps, at most 20)."""
    checkpoint_minutes: EveryMinutes = 15.0
    """Also save when the last checkpoint is this old."""
    keep: Times = 0
    """Number of intermediate models to keep in --out/milestones, evenly spaced."""
    batch: Count = None
    """Pictures per step, over all processes (default: the recipe's)."""
    set: Settings = ()
    """Any value of the recipe, such as label_smoothing=0.1 optimization.learning_rate=1e-4; some of the architecture's,
    such as architecture.activation=swiglu (docs/transformer.md)."""
    shard: bool = False
    """Shard the model over the processes (FSDP2) instead of copying it (DDP): for models that do not fit one device."""
    recompute: bool = False
    """Recompute activations inside blocks in the backward pass: a third more work, much less memory."""
    compile: bool = False
    """Run the blocks through torch.compile; the first step then takes a minute or so."""
    seed: int = 0
    """Seed of the weights and the order of the data."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available, under torchrun one GPU per process."""
    precision: Precision = "auto"
    """auto is bf16 where the hardware supports it natively, else fp32."""

    def run(self) -> None:
        at_least("--depth", 1, 1 if self.depth is None else self.depth)
        if self.init is not None and self.depth is not None:
            raise InputError(f"expected --depth or --init, whose depth it is, got both ({self.depth} and {self.init})")
        if self.plateau is not None and self.cooldown is None:
            raise InputError("--plateau: expected --cooldown too, the share of the run over which the rate falls")
        if self.plateau is not None and self.minutes is not None:
            raise InputError(f"--plateau: expected a length in --steps, got --minutes {self.minutes:g}")
        with together(self.device) as device:
            self._train(device)

    def _train(self, device: str) -> None:
        from nextscale import presets
        from nextscale.cli import reading
        from nextscale.training.loop import Length, Rhythm, train
        from nextscale.training.rivals.stages import STAGES
        from nextscale.training.transformer.stage import fitted
        from nextscale.transformer.adapted import adapted, kept

        rhythm = Rhythm(checks=self.checks, checkpoint_minutes=self.checkpoint_minutes, keep=self.keep)
        check_outside(self.out, self.data)
        check_mirror(self.mirror)
        chosen = None if self.preset is None else presets.get(self.preset)
        tokenizer = models.tokenizer_alone(self.tokenizer, self.scales)
        preset = chosen or self._of(tokenizer)
        first = self._begin(tokenizer)
        reader = reading.reader_before(self.text, first)
        architecture = reading.with_text(self._architecture(preset, first), self.text, reader)
        recipe, steps = self._recipe(preset, reader, reads=architecture.text is not None)
        asked = length(self.steps, self.minutes, default=Length(steps=self._until(steps)))
        data = self._data(tokenizer)
        if architecture.text is not None:
            reader, architecture = reading.read(architecture, reader, recipe, data, self.data)
        config = self._chosen(fitted(architecture, tokenizer, classes=len(data.classes), order=self.order))
        if first:
            known = kept(first.classes, data.classes)
            say(f"--init: {known} of {len(data.classes)} classes known by name; the others start as no class")
        stage = STAGES[config.order](
            config,
            tokenizer,
            data,
            recipe=recipe,
            seed=self.seed,
            device=device,
            precision=self.precision,
            sharded=self.shard,
            recompute=self.recompute,
            compiled=self.compile,
            reader=reader,
            begin=adapted(first.transformer, config, known=first.classes, classes=data.classes, seed=self.seed)
            if first
            else None,
        )
        events = train(stage, self.out, asked, seed=self.seed, rhythm=rhythm, plateau=self.plateau, mirror=self.mirror)
        watch("transformer", events, self.out)
        say(f"model in {self.out}; next:")
        told = ["--model", str(self.out), "--out", f"samples/{self.out.resolve().name}"]
        print(shlex.join(["nextscale", "sample", *told]))

    def _of(self, tokenizer: MultiScaleVQVAE) -> Preset:
        """The preset that goes with the tokenizer; says which."""
        from nextscale import presets

        preset = presets.of_tokenizer(tokenizer.config)
        same = preset.tokenizer == tokenizer.config
        which = "that of the tokenizer" if same else "whose tokenizer is most like that"
        say(f"preset: {preset.name}, {which} in {self.tokenizer}; --preset takes another")
        return preset

    def _recipe(self, preset: Preset, reader: Reader | None, *, reads: bool) -> tuple[TransformerRecipe, int]:
        """The preset's with the changes asked for, and its number of steps."""
        from nextscale.cli.reading import recipe_of
        from nextscale.training import recipes

        recipe, steps = recipes.for_transformer(preset.name)
        recipe = recipe_of(recipe, reader) if reads else recipe
        batch = [] if self.batch is None else [f"optimization.batch={self.batch}"]
        settings = [setting for setting in self.set if not _of_architecture(setting)]
        if self.cooldown is not None:
            course = recipe.optimization.until_the_fall(self.cooldown, steps)
            recipe = dataclasses.replace(recipe, optimization=course)
        return recipes.changed(recipe, [*settings, *batch]), steps

    def _until(self, steps: int) -> int:
        """The length where none is asked for: with a plateau that of the run so far, or so that the fall begins now."""
        if self.plateau is None or self.cooldown is None:
            return steps
        from nextscale.training import rundir

        return rundir.steps_asked(self.out) or round(rundir.steps_done(self.plateau) / (1 - self.cooldown))

    def _chosen(self, config: TransformerConfig) -> TransformerConfig:
        """The same with what --set says of the architecture."""
        from nextscale.training import recipes

        return recipes.changed(config, [setting for setting in self.set if _of_architecture(setting)], "architecture.")

    def _architecture(self, preset: Preset, first: Pipeline | None) -> TransformerConfig:
        """That of the model to begin from, or the preset's at the depth asked for."""
        config = first.transformer.config if first else preset.transformer
        return config if self.depth is None else config.of_depth(self.depth)

    def _data(self, tokenizer: MultiScaleVQVAE) -> DataSet | TokenSet:
        """Pictures or cached tokens; says what was found."""
        from nextscale.data import tokens
        from nextscale.data.captions import counted
        from nextscale.files.checkpoint import fingerprint
        from nextscale.machine import distributed

        place = self._token_cache()
        if place is None:
            return load_data(
                self.data,
                height=tokenizer.config.height,
                width=tokenizer.config.width,
                labels=self.labels,
                captions=self.captions,
                columns=columns_of(self),
                index=self.index,
                max_broken=self.max_broken,
                list_broken=self.list_broken,
                cache=cache_of(self),
                window=self.window,
            )
        if self.labels is not None:
            raise InputError(f"--labels: expected pictures, got a token cache, {self.data}, which has its classes")
        if self.window is not None:
            raise InputError(f"--window: expected .tar shards, got a token cache, {self.data}")
        if self.captions is not None:
            raise InputError(f"--captions: expected pictures, got a token cache, {self.data}, which has its captions")
        columns_of(self).refuse(f"the token cache {self.data}")
        if self.list_broken is not None or self.max_broken != BROKEN:
            raise InputError(f"--list-broken, --max-broken: expected pictures, got a token cache, {self.data}")
        if self.index is not None:
            raise InputError(f"--index: expected pictures, got a token cache, {self.data}")
        with progress() as bar:
            task = bar.add_task("checking the token cache", total=None)
            found = tokens.load(
                place,
                tokenizer=fingerprint(tokenizer.state_dict()),
                verify=distributed.is_first(),
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        say(
            f"data: token cache {self.data}, {len(found.train)} pictures to train on, {len(found.validation)} held "
            f"out, {len(found.classes)} classes"
        )
        for line in counted(found.train.captions, found.validation.captions):
            say(f"data: {line}")
        return found

    def _token_cache(self) -> Path | None:
        """Where a token cache lies, or has been fetched to; None for pictures."""
        from nextscale.data import remote, tokens
        from nextscale.files.remote import is_address

        if tokens.is_cache(self.data):
            return Path(self.data)
        if not is_address(self.data) or self.data.startswith("hf://") or self.data.lower().endswith(remote.SUFFIXES):
            return None
        return remote.token_cache(self.data, cache_of(self))

    def _begin(self, tokenizer: MultiScaleVQVAE) -> Pipeline | None:
        """The model to begin from, whose codes must be the tokenizer's."""
        if self.init is None:
            return None
        from nextscale.pipeline import Pipeline

        begin = Pipeline.load(self.init, precision="fp32")
        if not _same_codes(begin.tokenizer, tokenizer):
            raise InputError(
                f"--init {self.init}: expected a model of the codes of {self.tokenizer}, got one of other codes; "
                f"--tokenizer {self.init} is its own tokenizer"
            )
        return begin


def _of_architecture(setting: str) -> bool:
    """Whether a setting is one of the architecture that may be chosen."""
    part, _, name = setting.partition("=")[0].strip().partition(".")
    return part == "architecture" and name in CHOSEN


def _same_codes(one: MultiScaleVQVAE, other: MultiScaleVQVAE) -> bool:
    """Whether tokens mean the same to both: by their codes or, where those are fixed, by the layer before them."""
    if one.config.fixed or other.config.fixed:
        kinds = [(config.quantizer, config.digits, config.code_channels) for config in (one.config, other.config)]
        return kinds[0] == kinds[1] and one.pre_quantizer.weight.equal(other.pre_quantizer.weight)
    return one.quantizer.learned.vectors().equal(other.quantizer.learned.vectors())
