"""A trained tokenizer for pictures of another size, or in other steps to the same one. Nothing is trained anew.

The convnet knows no size, and codebook and phis are shared by all scales: the release reads 256 px and 512 px with the
same weights. How well it does away from the size that it was trained at, `nextscale evaluate reconstruction` tells.
"""

from __future__ import annotations

import dataclasses

from nextscale.files import checkpoint
from nextscale.scales import Scales
from nextscale.tokenizer.model import MultiScaleVQVAE
from nextscale.tokenizer.quantizer import nearest_scale

COUNTS = "quantizer.hits_KV"  # how often each scale took each code: nothing is known of other scales
GAINS = "quantizer.gain_K"


def rescaled(tokenizer: MultiScaleVQVAE, scales: Scales) -> MultiScaleVQVAE:
    """A copy of `tokenizer` that walks `scales`; which phi a scale uses follows from how far along it is.

    Arguments:
        tokenizer: left as it is; nothing is shared with it.
        scales: the last is the size of the latent, pictures are `stride` times as large (`Scales.suggest`).

    Raises `InputError` where every scale has a phi of its own and the number of scales is another.
    """
    config = dataclasses.replace(tokenizer.config, scales=scales)
    new = MultiScaleVQVAE(config, seed=None)
    weights = dict(tokenizer.state_dict())
    if scales != tokenizer.config.scales and GAINS in weights:
        weights[GAINS] = weights[GAINS][nearest_scale(scales, tokenizer.config.scales)]
    elif scales != tokenizer.config.scales:
        weights[COUNTS] = weights[COUNTS].new_zeros(len(scales), config.codebook_size)
    checkpoint.assign(new, lambda: weights, copy=True)
    return new
