"""Pictures of a class, and one of them as it grows from scale to scale.

python examples/sample.py runs/demo
"""

import sys

import torch

import nextscale
from nextscale import images

(model,) = sys.argv[1:]
pipe = nextscale.Pipeline.load(model)
label = pipe.classes[0]  # a name; its number 0 would do as well

out = pipe.generate(label, seeds=range(8), guidance=1.5, top_k=900, top_p=0.96)
for path in out.save("samples"):
    print(path)  # seed i alone decides picture i: another batch or machine's number of processes changes nothing

steps = pipe.stream(label, seeds=0)
growing = torch.cat([step.preview() for step in steps])  # (K, 3, H, W) in [0, 1], one picture a scale
images.save("growing.png", images.from_unit(images.grid(growing, columns=len(growing))))
