"""Ranks, process groups, shards of work: the only room that imports torch.distributed.

Everything here works for one process too, where nothing is started and nothing is sent. Processes are started by
torchrun, which says by environment variables who is who; what the processes compute is not known here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nextscale.errors import InputError

T = TypeVar("T")

# Longer than anything one rank does while the others wait for it (a checkpoint, pictures); a rank that hangs ends all
# of them after that. One that dies ends them at once: its connections break, and torchrun stops the rest.
TIMEOUT = timedelta(minutes=20)
NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


# ---- joining ---------------------------------------------------------------------------------------------------------


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Inside, the processes that torchrun started are one group; nothing is done for one process, nor inside another.

    Arguments:
        device: where the models are: CPU tensors are exchanged by gloo, CUDA tensors by nccl.

    Raises `InputError` when the environment tells of several processes but not of which this is, or when `device` does
    not fit (see `local_device`). The group is left at the end, also after an exception.
    """
    if _member() or _expected() <= 1:
        yield
        return
    _start(device)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """`device` for this process: under torchrun "cuda" is its own GPU, cuda:LOCAL_RANK; any other stays as it is.

    Raises `InputError` when the node has fewer GPUs than processes.
    """
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    index, gpus = _variable("LOCAL_RANK", 0), torch.cuda.device_count()
    processes = _variable("LOCAL_WORLD_SIZE", index + 1)
    if gpus < processes:
        raise InputError(f"device: expected a GPU for each of {processes} processes of this node, got {gpus}")
    return torch.device("cuda", index)


def _start(device: torch.device) -> None:
    if not torch.distributed.is_available():
        raise InputError(f"WORLD_SIZE is {_expected()}: expected 1, since this build of torch has no torch.distributed")
    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise InputError(f"WORLD_SIZE is {_expected()}: expected {', '.join(missing)} too, as torchrun sets them")
    own = local_device(device)
    if own.type != "cuda":
        torch.distributed.init_process_group("gloo", timeout=TIMEOUT)
        return
    if own.index != _variable("LOCAL_RANK", 0):
        raise InputError(f"device: expected cuda, which gives each of several processes a GPU, got {device}")
    torch.cuda.set_device(own)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl", timeout=TIMEOUT, device_id=own)


def _expected() -> int:
    """How many processes were started."""
    return _variable("WORLD_SIZE", 1)


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise InputError(f"environment variable {name}: expected a number, as torchrun sets it, got {text!r}")
    return int(text)


def _member() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


# ---- who and how many ------------------------------------------------------------------------------------------------


def rank() -> int:
    """The number of this process in the group, 0 .. `world()` - 1; 0 outside `joined`."""
    return torch.distributed.get_rank() if _member() else 0


def world() -> int:
    """The number of processes in the group; 1 outside `joined`."""
    return torch.distributed.get_world_size() if _member() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def shared(count: int) -> slice:
    """This rank's contiguous part of `count` items; the parts in the order of ranks are all of them.

    Raises `InputError` unless they divide into equal parts.
    """
    if count % world():
        raise InputError(f"expected a number that divides among {world()} processes, got {count}")
    part = count // world()
    return slice(rank() * part, (rank() + 1) * part)


# ---- exchange: every rank must call these, in the same order ---------------------------------------------------------


def summed(tensor: Tensor) -> Tensor:
    """The sum over ranks, on all of them; a new tensor of the same shape and dtype, without a gradient."""
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    if world() > 1:
        torch.distributed.all_reduce(total)
    return total


def averaged(tensor: Tensor) -> Tensor:
    """The mean over ranks of a floating-point tensor, on all of them; new, without a gradient."""
    return summed(tensor) / world()


def gathered(tensor_Nd: Tensor) -> Tensor:
    """The rows of all ranks in the order of ranks: (N, ...) -> (`world()` * N, ...); new, without a gradient.

    All ranks must bring the same shape.
    """
    rows = tensor_Nd.detach().contiguous()
    if world() == 1:
        return rows.clone()
    everything = [torch.empty_like(rows) for _ in range(world())]
    torch.distributed.all_gather(everything, rows)
    return torch.cat(everything)


def from_first(value: T) -> T:
    """Rank 0's value on all ranks: something small that pickles. A tensor comes to the device of the rank's own one.

    What other ranks bring is otherwise not looked at. Tensors inside something else must be on the CPU.
    """
    if world() == 1:
        return value
    box: list[object] = [value.detach().cpu() if isinstance(value, Tensor) else value]
    torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    (first,) = box
    if isinstance(first, Tensor) and isinstance(value, Tensor):
        first = first.to(value.device)
    return first  # type: ignore[return-value]


def any_of(flag: bool) -> bool:
    """Whether it is so on any rank."""
    return bool(summed(torch.tensor(int(flag))) > 0)


def barrier() -> None:
    """Wait until every rank is here."""
    summed(torch.zeros(()))


# ---- gradients -------------------------------------------------------------------------------------------------------


def wrapped(module: nn.Module, *, idle: bool = False) -> nn.Module:
    """`module` with gradients averaged over ranks in `backward`; itself for one process.

    Parameters and buffers become rank 0's, once; later, buffers are the module's own business. Call the wrapped one:
    what goes past its `forward` is not averaged. At least one parameter must want a gradient, and every one that does
    must get one in every step, unless `idle` says that some may get none.
    """
    if world() == 1:
        return module
    together = DistributedDataParallel(module, gradient_as_bucket_view=True, find_unused_parameters=idle)
    together.broadcast_buffers = False  # not as an argument: that has one name in torch 2.11 and another in 2.13
    return together


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, `backward` adds to this rank's own gradients and exchanges nothing: for all but the last of several."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()
