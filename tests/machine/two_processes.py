"""What `test_distributed` starts in two processes: `laws`, or one that dies; an error where a law is broken."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nextscale.errors import InputError
from nextscale.machine import distributed

CPU = torch.device("cpu")


def laws() -> None:
    """Every function of the room, among two."""
    assert (distributed.rank(), distributed.world()) == (0, 1), "outside of the group there is one process"
    leaving_for_good()
    with distributed.joined(CPU):
        me = int(os.environ["RANK"])
        assert (distributed.rank(), distributed.world(), distributed.is_first()) == (me, 2, me == 0)
        shares_of_work(me)
        sums(me)
        rows(me)
        swaps(me)
        values_of_the_first(me)
        gradients(me)
        shards(me)
        with distributed.joined(CPU):
            distributed.barrier()
        assert distributed.world() == 2, "the inner one leaves the outer one's group alone"
    assert distributed.world() == 1
    leaving_after_an_exception()
    joining_again()


def shares_of_work(me: int) -> None:
    assert distributed.shared(6) == (slice(0, 3), slice(3, 6))[me]
    with pytest.raises(InputError, match="2 processes, got 7"):
        distributed.shared(7)


def sums(me: int) -> None:
    mine = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T * (me + 1)
    before = mine.clone()
    assert torch.equal(distributed.summed(mine), torch.tensor([[3.0, 9.0], [6.0, 12.0]]))
    assert torch.equal(distributed.averaged(mine), torch.tensor([[1.5, 4.5], [3.0, 6.0]]))
    assert torch.equal(mine, before), "what was brought stays as it is"
    assert torch.equal(distributed.summed(torch.tensor(2**40 + me)), torch.tensor(2**41 + 1))
    assert [distributed.any_of(flag) for flag in (False, True, me == 0, me == 1)] == [False, True, True, True]


def rows(me: int) -> None:
    mine = torch.tensor([[0, 1], [2, 3], [4, 5]]) + 10 * me
    assert distributed.gathered(mine).tolist() == [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13], [14, 15]]
    assert distributed.gathered(mine.T).tolist() == [[0, 2, 4], [1, 3, 5], [10, 12, 14], [11, 13, 15]]
    assert distributed.gathered(torch.tensor([float(me)])).tolist() == [0.0, 1.0]
    assert distributed.gathered(torch.zeros(0, 3)).shape == (0, 3)


def swaps(me: int) -> None:
    """Each rank gets what the other has for it, of any shape, also nothing, and keeps its own."""
    parts = [torch.full((2, 3), 10.0 * me), torch.full((1 + me, 2), 10.0 * me + 1)]
    shapes = [((2, 3), (2, 3)), ((1, 2), (2, 2))][me]
    got = distributed.swapped(parts, shapes)
    assert [part.tolist() for part in got] == [
        torch.full(shape, 10.0 * other + me).tolist() for other, shape in enumerate(shapes)
    ]
    nothing = torch.empty(0, 4, dtype=torch.bfloat16)
    mine = torch.arange(4, dtype=torch.bfloat16).view(1, 4)
    got = distributed.swapped([mine, nothing] if me == 0 else [nothing, mine], [((1, 4), (0, 4)), ((0, 4), (1, 4))][me])
    assert torch.equal(got[me], mine)
    assert got[1 - me].shape == (0, 4)


def values_of_the_first(me: int) -> None:
    assert distributed.from_first({"steps": 7 + me, "name": "a"}) == {"steps": 7, "name": "a"}
    assert distributed.from_first("told" if me == 0 else None) == "told"
    assert distributed.from_all({"rank": me}) == [{"rank": 0}, {"rank": 1}]
    assert distributed.any_of_each(False, me == 1, True) == [False, True, True]
    assert torch.equal(distributed.from_first(torch.arange(3 + me) + me), torch.arange(3))


def gradients(me: int) -> None:
    """Averaged over ranks; inside `no_sync` each rank's own, until the next `backward` outside it."""
    module = nn.Linear(2, 1, bias=False)
    nn.init.constant_(module.weight, 1.0 + me)
    module.register_buffer("hits", torch.tensor(me))
    wrapped = distributed.wrapped(module)
    assert torch.equal(module.weight, torch.ones(1, 2)), "all begin with the weights of the first"
    assert module.hits == 0, "and its buffers"
    module.hits.fill_(me)
    wrapped(torch.full((1, 2), me + 1.0)).sum().backward()
    assert module.weight.grad.tolist() == [[1.5, 1.5]]
    module.weight.grad = None
    with distributed.no_sync(wrapped):
        wrapped(torch.full((1, 2), me + 1.0)).sum().backward()
    assert module.weight.grad.tolist() == [[me + 1.0, me + 1.0]]
    wrapped(torch.full((1, 2), me + 1.0)).sum().backward()
    assert module.weight.grad.tolist() == [[3.0, 3.0]], "what was held back is averaged with the rest"
    assert module.hits == me, "buffers are left alone later"


def shards(me: int) -> None:
    """Rank 0's weights, cut; gradients averaged and cut alike, once nothing is held back."""
    module = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1))
    for parameter in module.parameters():
        nn.init.constant_(parameter, 1.0 + me)
    assert distributed.sharded(module, [module[0]]) is module
    assert [distributed.own_share(p).shape for p in module.parameters()] == [
        [(2, 2), (1, 3), (1,)],
        [(1, 2), (0, 3), (0,)],
    ][me]
    assert [[*distributed.rows_held(p, me)] for p in module.parameters()] == [[[0, 1], [0], [0]], [[2], [], []]][me]
    assert all(
        distributed.is_sharded(p) and torch.equal(distributed.whole(p), torch.ones(p.shape))
        for p in module.parameters()
    )
    mine = torch.full((1, 2), me + 1.0)
    with distributed.no_sync(module):
        module(mine).sum().backward()
    module(mine).sum().backward()
    assert distributed.whole(module[0].weight.grad).tolist() == [[3.0, 3.0]] * 3, "twice the mean of 1 and 2"
    norm = distributed.whole(nn.utils.clip_grad_norm_(module.parameters(), 1e9))
    torch.testing.assert_close(norm, torch.tensor([3.0] * 6 + [6.0] * 3 + [2.0]).norm())
    state = distributed.whole_state(module)
    assert state.keys() == ({"0.weight", "1.weight", "1.bias"} if me == 0 else set())
    again = distributed.share_out(torch.arange(6.0).view(3, 2), module[0].weight)
    assert distributed.own_share(again).tolist() == [[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0]]][me]
    with pytest.raises(ValueError, match=r"shape \(3, 2\), got \(2, 3\)"):
        distributed.share_out(torch.zeros(2, 3), module[0].weight)


def leaving_for_good() -> None:
    """With the group's threads, beside which an interpreter cannot safely end; whatever is imported meanwhile."""
    with distributed.joined(CPU):
        importlib.import_module("torch.distributed.nn.functional")
        distributed.barrier()
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in names if "gloo" in name], names


def leaving_after_an_exception() -> None:
    with pytest.raises(KeyError), distributed.joined(CPU):
        raise KeyError("a bug")
    assert distributed.world() == 1


def joining_again() -> None:
    """However soon after the group before, which left its addresses behind."""
    for _ in range(5):
        with distributed.joined(CPU):
            distributed.barrier()


def one_dies() -> None:
    """The other waits for it, and must not for ever."""
    with distributed.joined(CPU):
        if distributed.rank() == 1:
            raise InputError("the second of two died")
        distributed.barrier()


def one_is_killed_once() -> None:
    """Both are started again, and meet as if nothing had been."""
    with distributed.joined(CPU):
        distributed.barrier()
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        distributed.barrier()


if __name__ == "__main__":
    {"laws": laws, "one_dies": one_dies, "one_is_killed_once": one_is_killed_once}[sys.argv[1]]()
