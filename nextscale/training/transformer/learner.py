"""A transformer together with its loss, as one module: what DDP and FSDP2 wrap, and how its blocks are run.

Gradients are exchanged only of what happens in the `forward` of the wrapped module, so the loss belongs inside it. The
head's logits are never all there (`losses.chunked_cross_entropy`).

Shapes: B images, L positions, C code channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nextscale.text.prompts import Prompts
from nextscale.training.losses import chunked_cross_entropy
from nextscale.transformer import VAR, DropPath
from nextscale.transformer.model import Inputs


class Learner(nn.Module):
    """`model` and its cross-entropy; the same weights, the same gradients, whatever the options.

    For FSDP2: `fully_shard` the children of each of `model.blocks`, then the learner itself. Not the blocks, whose
    modulations are used before their `forward`, nor the model or its head, whose `forward` is not called.

    Arguments:
        model: learns; it keeps its own names, so it can be saved by itself.
        recompute: keep only what goes into each block and compute its inside again in the backward pass: a third more
            work, and memory that hardly grows with depth.
        compiled: run the blocks through `torch.compile`, for one shape of batch; costs a minute or so at first.
    """

    def __init__(self, model: VAR, *, recompute: bool = False, compiled: bool = False) -> None:
        super().__init__()
        self.model, self.recompute = model, recompute
        if compiled:
            for block in model.blocks:
                block.compile(dynamic=False)

    def forward(
        self,
        labels_B: Tensor,
        inputs_BLC: Inputs,
        tokens_BL: Tensor,
        drop_path: DropPath | None = None,
        weights_L: Tensor | None = None,
        smoothing: float = 0.0,
        prompts: Prompts | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, -log p of each token (B, L), and whether it is the likeliest (B, L): see `chunked_cross_entropy`.

        Arguments:
            labels_B, inputs_BLC, drop_path, prompts: as `VAR.hidden` takes them.
            tokens_BL: int64, the targets.
            weights_L: float, what each position counts, or (B, L) each token; None: all alike.
            smoothing: of the targets.

        Under autocast the head multiplies in its dtype too, which `VAR.forward` does not.
        """
        run = _recomputed if self.recompute and torch.is_grad_enabled() else None
        h_BLD = self.model.hidden(labels_B, inputs_BLC, prompts=prompts, drop_path=drop_path, run=run)
        weights = torch.ones(h_BLD.shape[1], device=h_BLD.device) if weights_L is None else weights_L
        head = self.model.head
        return chunked_cross_entropy(
            h_BLD,
            head.weight,
            head.bias,
            tokens_BL,
            weights,
            smoothing=smoothing,
            groups=self.model.config.groups,
            cap=self.model.config.logit_cap,
            dtype=_dtype(h_BLD.device),
        )


def _recomputed(block: nn.Module, *arguments: object) -> Tensor:
    return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)


def _dtype(device: torch.device) -> torch.dtype:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
