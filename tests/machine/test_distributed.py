"""Laws of ranks and groups: one process needs nothing, and two agree. Two meet as torchrun's do, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import together
from torch import nn

from nextscale.errors import InputError
from nextscale.machine import distributed

CPU = torch.device("cpu")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    """`environment(RANK=1)`: as if torchrun had set these variables, and only these."""
    for name in (*distributed.NEEDED, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def set_to(**variables: object) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return set_to


SCRIPT = Path(__file__).with_name("two_processes.py")


def under_torchrun(law: str, *options: str) -> subprocess.CompletedProcess[str]:
    """One of its programs."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    command = [*launcher, "--no-python", sys.executable, "-W", "error", str(SCRIPT), law]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# ---- one process -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": 1}, {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}])
def test_one_process_starts_nothing(environment, variables: dict[str, int]) -> None:
    """Whether torchrun started it or not; it is rank 0 of 1."""
    environment(**variables)
    with distributed.joined(CPU), distributed.joined(CPU):
        assert not torch.distributed.is_initialized()
        assert (distributed.rank(), distributed.world(), distributed.is_first()) == (0, 1, True)


def test_one_process_keeps_what_it_brings() -> None:
    """Sum, mean, rows of all and the first's value are its own; all items are its share."""
    mine = torch.randn(3, 2, requires_grad=True)
    for same in (distributed.summed, distributed.averaged, distributed.gathered, distributed.from_first):
        assert torch.equal(same(mine), mine)
    assert torch.equal(distributed.swapped([mine], [(3, 2)])[0], mine)
    assert distributed.rows_held(mine, 0) == range(3)
    assert distributed.shared(7) == slice(0, 7)
    assert [distributed.any_of(flag) for flag in (False, True)] == [False, True]
    distributed.barrier()


@pytest.mark.parametrize("exchange", [distributed.summed, distributed.averaged, distributed.gathered])
def test_what_comes_back_is_new(exchange) -> None:
    """It can be written to; it has no gradient, for one process as for many."""
    mine = torch.ones(3, 2, requires_grad=True)
    exchange(mine).zero_()
    assert torch.equal(mine, torch.ones(3, 2))
    assert not exchange(mine).requires_grad


def test_a_module_is_wrapped_only_among_several() -> None:
    """For one process it is itself, and has nothing to hold back."""
    module = nn.Linear(2, 2)
    assert distributed.wrapped(module) is module
    with distributed.no_sync(module):
        module(torch.ones(1, 2)).sum().backward()
    assert module.weight.grad is not None


def test_a_module_is_shared_only_among_several() -> None:
    """For one process it is itself, its tensors are whole, and its state is copied."""
    module = nn.Linear(2, 2)
    assert distributed.sharded(module, [], dtype=torch.bfloat16) is module
    assert type(module) is nn.Linear
    weight = module.weight
    assert not distributed.is_sharded(weight)
    assert all(same(weight) is weight for same in (distributed.whole, distributed.own_share))
    assert distributed.share_out(weight, torch.zeros(7)) is weight
    state = distributed.whole_state(module)
    assert torch.equal(state["weight"], weight)
    state["weight"].zero_()
    assert weight.any()


def test_a_process_alone_outlives_whoever_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell that it was started from may be closed; a rank whose torchrun is gone is nobody's."""
    assert not distributed.orphaned()
    monkeypatch.setattr(distributed, "PARENT", -1)
    assert not distributed.orphaned()
    monkeypatch.setattr(distributed, "world", lambda: 2)
    assert distributed.orphaned()
    monkeypatch.setattr(distributed, "PARENT", os.getppid())
    assert not distributed.orphaned()


# ---- devices and mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "variables", "own"),
    [
        ("cpu", {"LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}, "cpu"),
        ("cuda", {}, "cuda"),
        ("cuda", {"LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}, "cuda:1"),
        ("cuda:0", {"LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}, "cuda:0"),
    ],
)
def test_each_process_of_a_node_has_its_own_gpu(environment, monkeypatch, name: str, variables, own: str) -> None:
    """Where "cuda" was asked for and torchrun started it; whatever else was asked for stays."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    environment(**variables)
    assert distributed.local_device(torch.device(name)) == torch.device(own)


def test_fewer_gpus_than_processes_is_a_mistake(environment, monkeypatch) -> None:
    """Told with both numbers."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    environment(LOCAL_RANK=1, LOCAL_WORLD_SIZE=3)
    with pytest.raises(InputError, match="each of 3 processes of this node, got 2"):
        distributed.local_device(torch.device("cuda"))


ALL = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}


@pytest.mark.parametrize(
    ("device", "variables", "told"),
    [
        ("cpu", {"WORLD_SIZE": 2, "RANK": 0}, "expected LOCAL_RANK, MASTER_ADDR, MASTER_PORT too"),
        ("cpu", {"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a number, as torchrun sets it, got 'two'"),
        ("cuda:0", ALL, "expected cuda, which gives each of several processes a GPU, got cuda:0"),
    ],
)
def test_a_group_that_cannot_be_is_a_mistake(environment, device: str, variables, told: str) -> None:
    """Told at once, where starting it would wait for processes that never come."""
    environment(**variables)
    with pytest.raises(InputError, match=told), distributed.joined(torch.device(device)):
        pass


# ---- two processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_agree() -> None:
    """Every function of the room at once, since it takes seconds to start two."""
    done = together(SCRIPT, "laws")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_nobody_waits_for_a_rank_that_died() -> None:
    """The whole ends with an error."""
    done = under_torchrun("one_dies")
    assert done.returncode != 0
    assert "the second of two died" in done.stderr


@pytest.mark.slow
def test_processes_that_are_started_again_meet() -> None:
    """What those before them left in torchrun's store is not taken for theirs."""
    done = under_torchrun("one_is_killed_once", "--max-restarts", "1")
    assert done.returncode == 0, done.stderr
