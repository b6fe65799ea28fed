"""Laws of timing the transformer's training: the arithmetic is torch's, the naive step's logits are the model's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nextscale import VAR, Scales
from nextscale.bench.transformer import dense_logits, step_work
from nextscale.machine import flops

SCALES = Scales([1, 2, 4, 8])


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_naive_logits_are_the_models(
    make_transformer: Callable[..., VAR], random_inputs: Callable[..., Tensor], shared: bool
) -> None:
    """To rounding, though attention is masked and not split."""
    model = make_transformer(scales=SCALES, shared_modulation=shared)
    labels, inputs = torch.tensor([0, 5]), random_inputs(SCALES, batch=2)
    torch.testing.assert_close(dense_logits(model, labels, inputs), model(labels, inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_work_of_a_step_is_what_torch_counts_less_what_the_mask_forbids(
    make_transformer: Callable[..., VAR], random_inputs: Callable[..., Tensor]
) -> None:
    """Forward and backward; but for the gradient of the inputs and of the class, which nobody asks for."""
    model = make_transformer(scales=SCALES)
    config, inputs = model.config, random_inputs(SCALES, batch=1)
    with FlopCounterMode(display=False) as counter:
        model(torch.tensor([0]), inputs).sum().backward()
    masked = sum(part.stop - part.start for part in SCALES.slices()[:3]) ** 2
    useful = sum((part.stop - part.start) * part.stop for part in SCALES.slices()[:3])
    wasted = 3 * 4 * config.depth * config.width * (masked - useful)
    unasked = 2 * inputs.shape[1] * config.code_channels * config.width
    assert counter.get_total_flops() == step_work(config).matrix + wasted - unasked
    assert step_work(config).matrix > 3 * flops.condition_work(config, guided=False).matrix
