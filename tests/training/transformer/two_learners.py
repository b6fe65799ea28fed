"""What `test_learner` starts in two processes: a learner's gradients under DDP and FSDP2; `alike` if they are right."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from conftest import TRANSFORMER, awaken

from nextscale import VAR
from nextscale.machine import distributed
from nextscale.training.transformer.learner import Learner


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    total = TRANSFORMER.scales.total
    inputs = torch.randn(6, total - 1, TRANSFORMER.code_channels, generator=generator)
    batch = torch.arange(6), inputs, torch.randint(64, (6, total), generator=generator)
    whole = Learner(awaken(VAR(TRANSFORMER)))
    whole(*batch)[0].backward()
    expected = {name: p.grad for name, p in whole.named_parameters()}
    with distributed.joined(torch.device("cpu")):
        share = distributed.shared(6)
        mine = [tensor[share] for tensor in batch]
        for recompute in (False, True):
            copies(mine, expected, recompute=recompute)
            shares(mine, expected, recompute=recompute)
        print("alike", flush=True)
        distributed.barrier()


def copies(mine: list[torch.Tensor], expected: dict[str, torch.Tensor], *, recompute: bool) -> None:
    """DDP."""
    learner = Learner(awaken(VAR(TRANSFORMER)), recompute=recompute)
    wrapped = distributed.wrapped(learner)
    wrapped(*mine)[0].backward()
    check(learner, expected)


def shares(mine: list[torch.Tensor], expected: dict[str, torch.Tensor], *, recompute: bool) -> None:
    """FSDP2."""
    learner = Learner(awaken(VAR(TRANSFORMER)), recompute=recompute)
    parts = [part for block in learner.model.blocks for part in block.children()]
    distributed.sharded(learner, parts)(*mine)[0].backward()
    check(learner, expected)


def check(learner: Learner, expected: dict[str, torch.Tensor]) -> None:
    for name, parameter in learner.named_parameters():
        gradient = distributed.whole(parameter.grad)
        torch.testing.assert_close(
            gradient, expected[name], atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


if __name__ == "__main__":
    main()
