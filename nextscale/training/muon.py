"""Muon: hidden matrices step along their momentum with all its directions made about equally long.

Which weights are such matrices is said where they are born: `MATRICES` of a module names its layers, and how many
matrices the weight of each stacks. Several processes share the work: each orthogonalises whole matrices of its own.

K. Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024; scale of the step: arXiv:2502.16982.
Shapes: m rows and n columns of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nextscale.machine import distributed

MOMENTUM = 0.95
STEPS, A, B, C = 5, 3.4445, -4.7750, 2.0315  # of the iteration: singular values in 0 .. 1 end between 0.7 and 1.2
SMALLEST = 1e-7  # norm that a matrix is divided by


class Matrix(NamedTuple):
    """Some rows of a weight, whose other dimensions count as one."""

    weight: nn.Parameter
    rows: range

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), math.prod(self.weight.shape[1:])


def hidden_matrices(model: nn.Module) -> list[Matrix]:
    """Of those parameters of `model` that want a gradient, in the order of its modules."""
    found = []
    for module in model.modules():
        for name, stacked in getattr(module, "MATRICES", {}).items():
            weight = getattr(module, name).weight
            rows = len(weight) // stacked
            if weight.requires_grad:
                found += [Matrix(weight, range(first, first + rows)) for first in range(0, len(weight), rows)]
    return found


# X <- X / |X|, then five times X <- a X + b (X X^T) X + c (X X^T)^2 X; of X = U S V^T nearly U V^T is left
def orthogonalised(matrix_mn: Tensor) -> Tensor:
    """A matrix with its singular values made about 1, in its dtype.

    What `torch.optim.Muon` does, to the bit in bfloat16, the only dtype that it has. On a processor without bfloat16 it
    takes 13 s for 256 x 1024 numbers; in float32 this takes 0.14 s.
    """
    tall = matrix_mn.shape[0] > matrix_mn.shape[1]
    x = matrix_mn.T if tall else matrix_mn
    x = x / x.norm().clamp(min=SMALLEST)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.T if tall else x


class Muon(Optimizer):
    """M <- mu M + (1 - mu) G;  W <- (1 - rate decay) W - 0.2 rate sqrt(max(m, n)) orthogonalised((1 - mu) G + mu M).

    By the factor an update is about as large as AdamW's, so that AdamW's rates serve. A weight without a gradient stays
    as it is.

    Of several processes each orthogonalises every so many-th matrix. Where weights lie in shards, the rows of a matrix
    come together in the process whose it is, and go back from there. They are sent in the dtype of the iteration, so
    that nothing is rounded on the way.

    Arguments:
        matrices: of weights that all lie in shards or are all whole.
        rate, decay: at first; `param_groups` holds them as "lr" and "weight_decay".
        dtype: of the iteration.
    """

    def __init__(self, matrices: Sequence[Matrix], *, rate: float, decay: float, dtype: torch.dtype) -> None:
        weights = list(dict.fromkeys(matrix.weight for matrix in matrices))
        super().__init__(weights, {"lr": rate, "weight_decay": decay})
        self.dtype = dtype
        # those that processes work on at the same time are alike
        self.matrices = sorted(matrices, key=lambda matrix: (sorted(matrix.shape), matrix.shape), reverse=True)
        for weight in weights:  # at once: a checkpoint of shares is read to where they already lie
            self.state[weight] = {"momentum_buffer": torch.zeros_like(weight)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Down the gradients that there are; every process must call it."""
        (group,) = self.param_groups
        for weight in (weight for weight in group["params"] if weight.grad is not None):
            momentum, gradient = self.state[weight]["momentum_buffer"], distributed.own_share(weight.grad)
            distributed.own_share(momentum).lerp_(gradient, 1 - MOMENTUM)
            distributed.own_share(weight).mul_(1 - group["lr"] * group["weight_decay"])
        for together in self._rounds():
            for matrix, update_mn in zip(together, self._updates(together), strict=True):
                factor = group["lr"] * (0.2 * math.sqrt(max(matrix.shape)))
                _of(matrix, matrix.weight).add_(update_mn, alpha=-factor)

    def _rounds(self) -> Iterator[list[Matrix]]:
        """The matrices that have a gradient, one a process at a time; at the end there may be some of no rows."""
        world = distributed.world()
        matrices = [matrix for matrix in self.matrices if matrix.weight.grad is not None]
        matrices += [matrix._replace(rows=range(0)) for matrix in matrices[:1] * (-len(matrices) % world)]
        return (matrices[first : first + world] for first in range(0, len(matrices), world))

    def _updates(self, together: Sequence[Matrix]) -> list[Tensor]:
        """Of each matrix, orthogonalised by the process of its place, the rows that this process holds."""
        ranks, rank = range(distributed.world()), distributed.rank()
        own = together[rank]
        if distributed.is_sharded(own.weight):
            given = [self._direction(matrix) for matrix in together]
            whole_mn = torch.cat(distributed.swapped(given, [_shape(own, giver) for giver in ranks]))
        else:
            whole_mn = self._direction(own)
        update_mn = orthogonalised(whole_mn)
        taken = [update_mn[_rows(own, taker)] for taker in ranks]
        return distributed.swapped(taken, [_shape(matrix, rank) for matrix in together])

    def _direction(self, matrix: Matrix) -> Tensor:
        """(1 - mu) G + mu M, those rows that this process holds."""
        gradient, momentum = _of(matrix, matrix.weight.grad), _of(matrix, self.state[matrix.weight]["momentum_buffer"])
        return gradient.lerp(momentum, MOMENTUM).to(self.dtype)


def _rows(matrix: Matrix, rank: int) -> slice:
    """Which rows of a matrix the process of that rank holds, counted from the first of the matrix."""
    held = distributed.rows_held(matrix.weight, rank)
    first, last = (min(max(end - matrix.rows.start, 0), len(matrix.rows)) for end in (held.start, held.stop))
    return slice(first, last)


def _shape(matrix: Matrix, rank: int) -> tuple[int, int]:
    """Of what the process of that rank holds of a matrix."""
    rows = _rows(matrix, rank)
    return rows.stop - rows.start, matrix.shape[1]


def _of(matrix: Matrix, tensor: Tensor | None) -> Tensor:
    """Those rows that this process holds, as a view into its share of `tensor`, which is cut as the weight is."""
    assert tensor is not None
    rank = distributed.rank()
    share = distributed.own_share(tensor)
    before = matrix.rows.start - distributed.rows_held(matrix.weight, rank).start
    rows = _rows(matrix, rank)
    return share.view(len(share), matrix.shape[1])[before + rows.start : before + rows.stop]
