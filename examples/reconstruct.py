"""A picture through the tokens and back, with one scale more in each step.

python examples/reconstruct.py runs/demo cat.jpg
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageOps

import nextscale
from nextscale import images

model, picture = sys.argv[1:]
pipe = nextscale.Pipeline.load(model)
size = pipe.tokenizer.config

original = ImageOps.fit(Image.open(picture).convert("RGB"), (size.width, size.height))
stages = [pipe.reconstruct([original], through=k + 1) for k in range(len(size.scales))]  # (1, 3, H, W) in [0, 1] each

for k, stage in enumerate(stages):
    height, width = size.scales.sizes[k]
    error = (stage - stages[-1]).square().mean().sqrt()
    print(f"through scale {k + 1} ({height}x{width}): differs from the last by {error:.3f}")

strip = images.grid(torch.cat(stages), columns=len(stages))
images.save(Path("reconstruction.png"), images.from_unit(strip))
