"""What text costs: a training step and a batch of pictures with it and without, in turn, in one process.

    python benchmarks/text_cost.py [--preset icons-64] [--batch 32] [--pictures 8] [--repeats 9] [--precision auto]

Training is `TransformerStage.update` on cached tokens and captions of eight words; sampling is `Pipeline.generate`,
guided, decoding included. "Without" is the same transformer of classes alone. Each ratio is the median of the ratios of
the repeats, since machines are noisy.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from itertools import count
from statistics import median

import torch

from nextscale import VAR, MultiScaleVQVAE, Pipeline, presets
from nextscale.bench.sampling import seconds_of
from nextscale.config import TransformerConfig
from nextscale.data.captions import Captions
from nextscale.data.tokens import CachedTokens, TokenSet
from nextscale.presets import Preset
from nextscale.text.vocabulary import Vocabulary
from nextscale.training import recipes
from nextscale.training.recipes import TransformerRecipe
from nextscale.training.transformer.stage import TransformerStage

WORDS = ["red", "blue", "round", "square", "heart", "cat", "face", "smiling", "open", "big", "star", "moon", "noto"]
CPU = torch.device("cpu")


def captions(many: int) -> list[str]:
    """Of eight words."""
    numbers = torch.Generator().manual_seed(0)
    return [" ".join(WORDS[place] for place in torch.randperm(len(WORDS), generator=numbers)[:8]) for _ in range(many)]


def written(config: TransformerConfig, many: int) -> TokenSet:
    """Random tokens with captions."""
    numbers = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.codebook_size, (many, 1, config.scales.total), generator=numbers)
    split = CachedTokens(
        classes=("picture",),
        labels=torch.zeros(many, dtype=torch.int64),
        fingerprint="random",
        shards=[tokens.numpy().astype("uint16")],
        captions=Captions([caption] for caption in captions(many)),
    )
    return TokenSet(train=split, validation=split, classes=("picture",), unreadable=[])


def steps(preset: Preset, config: TransformerConfig, batch: int, precision: str) -> Callable[[], object]:
    """A function that makes the next training step."""
    recipe, _ = recipes.for_transformer(preset.name)
    recipe = recipes.changed(recipe, [f"optimization.batch={batch}"])
    stage = TransformerStage(
        config,
        MultiScaleVQVAE(preset.tokenizer),
        written(config, 4 * batch),
        recipe=TransformerRecipe(optimization=recipe.optimization),
        precision=precision,  # type: ignore[arg-type]
        reader=None if config.text is None else reader(config),
    )
    number = count()
    return lambda: stage.update(next(number), 1000)


def pictures(preset: Preset, config: TransformerConfig, many: int, precision: str) -> Callable[[], object]:
    """A function that paints a batch."""
    made = VAR(config)
    pipe = Pipeline(
        MultiScaleVQVAE(preset.tokenizer),
        made,
        precision=precision,  # type: ignore[arg-type]
        reader=None if config.text is None else reader(config),
    )
    if config.text is None:
        return lambda: pipe.generate([0] * many)
    prompts = captions(many)
    return lambda: pipe.generate(prompts=prompts)


def reader(config: TransformerConfig) -> Vocabulary:
    assert config.text is not None
    return Vocabulary.learned(captions(500), size=config.text.vocabulary, tokens=config.text.tokens)


def spent(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of the processor, which others on the machine do not add to."""
    start = time.process_time()
    clock = seconds_of(run, CPU)
    return clock, time.process_time() - start


def compare(name: str, with_text: Callable[[], object], without: Callable[[], object], repeats: int) -> None:
    """Prints medians, and the median ratios."""
    for run in (with_text, without) * 2:
        run()
    pairs = [(spent(with_text), spent(without)) for _ in range(repeats)]
    for what, place in (("clock", 0), ("processor", 1)):
        read, plain = (median(each[place] for each in column) for column in zip(*pairs, strict=True))
        ratio = median(mine[place] / theirs[place] for mine, theirs in pairs)
        print(f"{name}, {what}: {read * 1e3:.0f} ms with text, {plain * 1e3:.0f} ms without, ratio {ratio:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="icons-64")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--precision", default="auto")
    asked = parser.parse_args()
    preset = presets.get(asked.preset)
    reads = preset.transformer
    plain = dataclasses.replace(reads, text=None)
    print(f"{preset.name}: {reads.parameters / 1e6:.1f} M parameters with text, {plain.parameters / 1e6:.1f} M without")
    training = (steps(preset, config, asked.batch, asked.precision) for config in (reads, plain))
    compare(f"a training step of {asked.batch}", *training, asked.repeats)
    sampling = (pictures(preset, config, asked.pictures, asked.precision) for config in (reads, plain))
    compare(f"sampling {asked.pictures}", *sampling, asked.repeats)


if __name__ == "__main__":
    main()
