"""The public release's checkpoints, as they are: sample from them, and go back bit for bit.

python examples/release.py vae_ch160v4096z32.pth var_d16.pth 207
"""

import sys

import torch

import nextscale

vae, var, label = sys.argv[1:]
pipe = nextscale.official.load(vae, var)  # the configuration is read off the tensors
print(pipe)

pipe.generate(int(label), seeds=range(4), guidance=1.5, top_k=900, top_p=0.96).save("samples")
pipe.save("converted")  # `Pipeline.load("converted")` and `--model converted` read it

state, _ = nextscale.official.export(pipe)
published = torch.load(vae, map_location="cpu", weights_only=True)
assert all(torch.equal(state[name], published[name]) for name in state)
