"""Both stages from nothing on a folder of pictures; the same lines continue a run that was stopped.

    python examples/train.py pictures/ runs/mine 30

trains for 30 minutes. The folder holds one folder a class, or pictures alone. `nextscale train` does the same with
several processes, token caches, captions and more.
"""

import sys
from pathlib import Path

import nextscale
from nextscale.training import recipes
from nextscale.training.loop import Length, train
from nextscale.training.tokenizer.stage import TokenizerStage
from nextscale.training.transformer.stage import TransformerStage, fitted

PRESET = "emoji-64"  # 64 x 64 pixels; `nextscale presets` lists others
folder, out, minutes = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])

preset = nextscale.presets.get(PRESET)
data = nextscale.data.load(folder, height=preset.tokenizer.height, width=preset.tokenizer.width)
print(f"{len(data.train)} pictures, {len(data.validation)} held out, classes: {', '.join(data.classes)}")
half = Length(minutes=minutes, share=0.5)

recipe, _ = recipes.for_preset(PRESET)
first = TokenizerStage(preset.tokenizer, data, recipe=recipe)
for event in train(first, out / "tokenizer", half, seed=0):
    if event.validation:
        print(f"tokenizer {event.step}/{event.total}: {event.validation['psnr']:.2f} dB on held-out pictures")
tokenizer = first.best_model

recipe, _ = recipes.for_transformer(PRESET)
config = fitted(preset.transformer, tokenizer, classes=len(data.classes))
second = TransformerStage(config, tokenizer, data, recipe=recipe)
for event in train(second, out, half, seed=0):
    if event.validation:
        print(f"transformer {event.step}/{event.total}: held-out loss {event.validation['cross_entropy']:.3f}")

nextscale.Pipeline.load(out).generate(0, seeds=range(4)).save(out / "pictures")
