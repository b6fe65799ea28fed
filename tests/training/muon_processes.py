"""What `test_muon` starts in several processes: Muon over copies and over shares of a few matrices.

`python muon_processes.py OUT` writes OUT/STRATEGY-RANK.pt: the whole weights and momenta after three steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import nn
from training.test_muon import Stacked, give_gradients

from nextscale.machine import distributed
from nextscale.training.muon import Muon, hidden_matrices


def stepped(model: nn.Module) -> Muon:
    """After three steps down the gradients of one process."""
    muon = Muon(hidden_matrices(model), rate=0.1, decay=0.1, dtype=torch.float32)
    weights = muon.param_groups[0]["params"]
    for step in range(3):
        whole = [torch.empty(weight.shape) for weight in weights]
        give_gradients(whole, step)
        for weight, other in zip(weights, whole, strict=True):
            weight.grad = distributed.share_out(other.grad, weight)
        muon.step()
    return muon


def main(out: Path) -> None:
    """With copies, then with shares."""
    with distributed.joined(torch.device("cpu")):
        for strategy in ("copies", "shares"):
            model = Stacked()
            if strategy == "shares":
                distributed.sharded(model, model.children())
                assert distributed.is_sharded(model.tall.weight)
            muon = stepped(model)
            told = {
                "weights": {name: distributed.whole(tensor) for name, tensor in model.state_dict().items()},
                "momenta": [distributed.whole(state["momentum_buffer"]) for state in muon.state.values()],
            }
            torch.save(told, out / f"{strategy}-{distributed.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
