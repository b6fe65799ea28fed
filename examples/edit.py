"""The middle of a picture painted anew, in four ways; everything around it stays, bit for bit.

python examples/edit.py runs/demo cat.jpg
"""

import sys

import torch
from PIL import Image, ImageOps

import nextscale
from nextscale import images

model, picture = sys.argv[1:]
pipe = nextscale.Pipeline.load(model)
size = pipe.tokenizer.config

original = ImageOps.fit(Image.open(picture).convert("RGB"), (size.width, size.height))
mask = torch.zeros(size.height, size.width, dtype=torch.bool)
mask[size.height // 4 : -size.height // 4, size.width // 4 : -size.width // 4] = True  # True is repainted

out = pipe.edit([original], mask, seeds=0, count=4)  # labels= or prompts= would say what is to appear
for path in out.save("edits"):
    print(path)

given = images.uint8_from_pil(original)
for edited in out.pil():
    assert torch.equal(images.uint8_from_pil(edited)[:, ~mask], given[:, ~mask])
