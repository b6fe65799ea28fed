"""What `test_learner` starts in two processes: a learner's gradients under DDP and FSDP2; an error if they differ."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from conftest import TRANSFORMER, awaken
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from nextscale import VAR, distributed
from nextscale.training.learner import Learner


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
            learner = Learner(awaken(VAR(TRANSFORMER)), recompute=recompute)
            wrapped = distributed.wrapped(learner)
            wrapped(*mine)[0].backward()
            check(learner, expected)
            learner = Learner(awaken(VAR(TRANSFORMER)), recompute=recompute)
            mesh = init_device_mesh("cpu", (2,))
            for block in learner.model.blocks:
                for part in block.children():
                    fully_shard(part, mesh=mesh)
            fully_shard(learner, mesh=mesh)
            learner(*mine)[0].backward()
            check(learner, expected)


def check(learner: Learner, expected: dict[str, torch.Tensor]) -> None:
    for name, parameter in learner.named_parameters():
        gradient = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        torch.testing.assert_close(
            gradient, expected[name], atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


if __name__ == "__main__":
    main()
