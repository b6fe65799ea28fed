"""Global refinement: all tokens of one map are predicted from some right ones among random ones, again and again (GRN).

After Han et al. 2026 (arXiv:2604.13030), on the tokens of any quantizer. In training each token is told as it is with
probability t, else as a random code, t of a picture logistic-normal; the cross-entropy is that of all tokens. Sampling
begins with random codes. Each step draws all tokens, and the next step sees each of them with probability t, drawn
anew, else the random code of the beginning: what was drawn may be taken back. Attention is not causal: no cache.

The authors' transformer takes t into its modulations; here it is added to the tokens, beside class and place, so that
class and text are still worked out once a picture.

Shapes: B batch, D width, C code channels, F frequencies, L = H W tokens, V codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nextscale.config import WAVES, Order, TransformerConfig
from nextscale.errors import InputError
from nextscale.machine.precision import as_held
from nextscale.rivals.whole import Guided, canvas_of, codes_of, require_steps
from nextscale.sampling.guidance import Guidance
from nextscale.sampling.loop import Choice, Painted, Process, choose, random_keys, uniform
from nextscale.scales import Scales
from nextscale.text.prompts import Prompts
from nextscale.tokenizer.quantizer import MultiScaleQuantizer
from nextscale.transformer import VAR, Condition
from nextscale.transformer.model import Inputs, check_given

MEAN, DEVIATION = -0.8, 0.8  # of the logit of t in training

# ---- the model -------------------------------------------------------------------------------------------------------


class Mixed(NamedTuple):
    """What the transformer sees of a map."""

    codes: Tensor
    """(B, L, C) float, right ones among random ones."""
    rights: Tensor
    """(B,) float32 in 0 .. 1: t, the share of right ones that is to be expected."""


class Refined(VAR):
    """VAR on one map of which each token is told, rightly or not."""

    order: ClassVar[Order] = "refined"

    def add_parts(self) -> None:
        self.rights = nn.Linear(2 * WAVES, self.config.width)

    def check(self, labels_B: Tensor, inputs: Inputs) -> None:
        if not isinstance(inputs, Mixed):
            raise InputError(f"inputs: expected refined.Mixed, got {type(inputs).__name__}")
        check_given(labels_B, inputs.codes, self.config.classes)

    def embedded(self, inputs: Inputs, condition: Condition) -> tuple[Tensor, Scales]:
        with as_held(inputs.codes.device):
            told_BLD = self.code_projection(inputs.codes.float()) + self.rights(waves(inputs.rights)).unsqueeze(1)
        return self._place(condition.embedding + self.start + told_BLD, 0, 1), self.walk


# [sin(w_i t), cos(w_i t)], w_i from pi / 2 to 256 pi, evenly in their logarithms
def waves(rights_B: Tensor) -> Tensor:
    """t -> (B, 2 F) float32."""
    speeds_F = torch.logspace(-1, 8, WAVES, base=2, device=rights_B.device) * torch.pi
    angles_BF = rights_B.float().unsqueeze(1) * speeds_F
    return torch.cat([angles_BF.sin(), angles_BF.cos()], dim=1)


# ---- what is told ----------------------------------------------------------------------------------------------------


# t = sigmoid(0.8 n - 0.8), n normal
def rights_of(normal_B: Tensor) -> Tensor:
    """The shares of right tokens that training draws."""
    return (DEVIATION * normal_B + MEAN).sigmoid()


def mix(tokens_BL: Tensor, random_BL: Tensor, keys_BL: Tensor, rights_B: Tensor) -> Tensor:
    """Each token where its key in 0 .. 1 is below t, else the random one."""
    return torch.where(keys_BL < rights_B.unsqueeze(1), tokens_BL, random_BL)


# ---- sampling --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RefinedSampler:
    """Draw all tokens, keep some at random, and again. Raises `InputError` for values out of range."""

    steps: int = 50
    """Looks at the whole map; t grows evenly from 0 to 1."""

    def __post_init__(self) -> None:
        require_steps(self.steps)

    def count(self, config: TransformerConfig) -> int:
        return self.steps

    @torch.inference_mode()
    def paint(
        self,
        transformer: VAR,
        quantizer: MultiScaleQuantizer,
        labels: Sequence[int],
        seeds: Sequence[int],
        *,
        guidance: Guidance,
        choice: Sequence[Choice],
        prompts: Prompts | None = None,
        negative: Prompts | None = None,
        process: Process | None = None,
        **of_scales: object,
    ) -> Iterator[Painted]:
        """As `loop.generate`; yields the whole map after each step, as the tokens were drawn in it."""
        if choice[0].smooth:
            raise InputError("smooth: expected with a model that paints a token once, got one of order refined")
        total, config = transformer.walk.total, transformer.config
        look = Guided(transformer, labels, prompts, negative, guidance=guidance, steps=self.steps, process=process)
        keys = random_keys(seeds, (2 * self.steps + 1) * total).unflatten(1, (2 * self.steps + 1, total))
        random_BL, *each = keys.to(quantizer.device).unbind(1)
        seen_BL = random_BL = random_BL % config.codebook_size
        nothing = torch.zeros((), dtype=torch.int64, device=seen_BL.device)
        for k, (drawing_BL, keeping_BL) in enumerate(zip(each[::2], each[1::2], strict=True)):
            rights_B = torch.full((len(seen_BL),), k / self.steps, device=seen_BL.device)
            logits_BLV = look(k, Mixed(codes_of(quantizer, seen_BL), rights_B))
            tokens_BL, _ = choose(logits_BLV, drawing_BL, choice[k], progress=0.0, groups=config.groups)
            seen_BL = mix(tokens_BL, random_BL, uniform(keeping_BL, nothing), rights_B + 1 / self.steps)
            yield Painted(k, tokens_BL.unflatten(1, transformer.walk.sizes[0]), canvas_of(quantizer, tokens_BL))
