"""Ranks, process groups, shards of work: the only room that imports torch.distributed.

Everything here works for one process too, where nothing is started and nothing is sent. Processes are started by
torchrun, which says by environment variables who is who; what the processes compute is not known here.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import math
import os
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nextscale.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.api import CheckpointException

T = TypeVar("T")

# Longer than anything one rank does while the others wait for it (a checkpoint, pictures); a rank that hangs ends all
# of them after that. One that dies ends them at once: its connections break, and torchrun stops the rest.
TIMEOUT = timedelta(minutes=20)
PARENT = os.getppid()  # of this process when it joined the others: torchrun
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
        # A model in shards holds on to its last tensors, in circles. Were they still there when the interpreter goes,
        # gloo's threads could let go of them too late, which ends the process with an abort.
        gc.collect()


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
    # Its functions take the group that there is when they are defined as their default, and so hold on to it for good;
    # torchmetrics and FSDP would import it at that time.
    importlib.import_module("torch.distributed.nn.functional")
    global PARENT
    PARENT = os.getppid()
    own = local_device(device)
    if own.type != "cuda":
        _meet("gloo")
        return
    if own.index != _variable("LOCAL_RANK", 0):
        raise InputError(f"device: expected cuda, which gives each of several processes a GPU, got {device}")
    torch.cuda.set_device(own)
    _meet("cpu:gloo,cuda:nccl", device_id=own)


def _meet(backend: str, **options: Any) -> None:
    """Form the group."""
    store, rank, world = next(torch.distributed.rendezvous("env://", timeout=TIMEOUT))  # type: ignore[attr-defined]
    apart = torch.distributed.PrefixStore(_agreed_name(store, rank, world), store)  # type: ignore[attr-defined]
    torch.distributed.init_process_group(backend, store=apart, rank=rank, world_size=world, timeout=TIMEOUT, **options)


def _agreed_name(store: Any, rank: int, world: int) -> str:
    """A name for the group that none before it had: the store may still hold addresses of processes that are gone.

    It may hold them because torchrun has started these ones in place of others, or because these have been a group
    before. So each rank leaves a random word, the first proposes all words it sees, and every other agrees once its own
    is among them.
    """
    word, deadline = uuid.uuid4().hex, time.monotonic() + TIMEOUT.total_seconds()
    store.set(f"word-{rank}", word)
    while time.monotonic() < deadline:
        if rank == 0:
            words = [store.get(f"word-{other}").decode() for other in range(world)]
            store.set("words", ",".join(words))
        else:
            words = store.get("words").decode().split(",")
        name = hashlib.sha256(",".join(words).encode()).hexdigest()
        if words[rank : rank + 1] == [word]:
            store.set(f"{name}-{rank}", "agreed")
            if store.check([f"{name}-{other}" for other in range(world)]):
                return name
        time.sleep(0.02)
    raise TimeoutError(f"expected {world} processes, not all came")


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


def swapped(parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """What the ranks have for this one, in their order, where `parts` are what this one has for each of them.

    Arguments:
        parts: as many as ranks, each of any shape, or empty; of one dtype on one device.
        shapes: of what will come.
    """
    if world() == 1:
        return list(parts)
    sent = torch.cat([part.detach().flatten() for part in parts])
    sizes = [math.prod(shape) for shape in shapes]
    received = sent.new_empty(sum(sizes))
    torch.distributed.all_to_all_single(received, sent, sizes, [part.numel() for part in parts])
    return [part.view(shape) for part, shape in zip(received.split(sizes), shapes, strict=True)]


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


def from_all(value: T) -> list[T]:
    """The values of all ranks in their order, on every rank: something small that pickles, without tensors."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    torch.distributed.all_gather_object(values, value)
    return values


def any_of(flag: bool) -> bool:
    """Whether it is so on any rank."""
    return any_of_each(flag)[0]


def any_of_each(*flags: bool) -> list[bool]:
    """Of each of these, whether it is so on any rank; for one exchange."""
    return (summed(torch.tensor(flags, dtype=torch.int64)) > 0).tolist()


def orphaned() -> bool:
    """Whether torchrun, which started this rank, is gone: nobody would stop it any more. A process alone needs none."""
    return world() > 1 and os.getppid() != PARENT


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
    """Inside, `backward` adds to this rank's own gradients and exchanges nothing: for all but the last of several.

    A `sharded` module then keeps whole gradients in memory, until the last `backward` shares them out.
    """
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return _held_back(module) if hasattr(module, "set_requires_gradient_sync") else nullcontext()


@contextmanager
def _held_back(module: Any) -> Iterator[None]:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


# ---- a model in shards -----------------------------------------------------------------------------------------------


def sharded(module: nn.Module, parts: Iterable[nn.Module], *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """`module`, changed in place so that each rank holds a share of every parameter (FSDP2); itself for one process.

    A part is gathered for its forward, let go, and gathered again for its `backward`; whatever else `module` has is
    gathered from the start of its forward to the end of `backward`, and may be used by anything called in between.
    Gradients come averaged over ranks, and cut as the parameters are.

    Arguments:
        module: on the device to train on. Parameters and buffers become rank 0's, once. Call this module: a forward of
            something inside it finds shards where it expects tensors.
        parts: modules inside, of about the same size, in the order of use, whose parameters are used by their own
            forward alone. A block some of whose parameters are used elsewhere is given as its children.
        dtype: what parts are gathered in, as autocast would convert their weights anyway: bfloat16 halves what is sent,
            and lets go of the converted weights too. The rest, the shards and the averaging of gradients stay float32.

    An optimiser is to be made afterwards: the parameters are new.
    """
    if world() == 1:
        return module
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # A linear layer's result on CPUs is a view. Nothing here writes to one, which is what torch warns of.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        torch.distributed.broadcast(tensor.detach(), src=0)
    mesh = init_device_mesh(tensors[0].device.type, (world(),))
    lowered = None if dtype == torch.float32 else dtype
    policy = MixedPrecisionPolicy(param_dtype=lowered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in parts:
        fully_shard(part, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh)
    return module


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds no more than a share of it."""
    if world() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def own_share(tensor: Any) -> Tensor:
    """This rank's share of a sharded tensor, not copied; a whole tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def rows_held(tensor: Tensor, rank: int) -> range:
    """Which rows of a sharded tensor that rank holds, as `torch.chunk` cuts it; of a whole tensor all of them."""
    if not is_sharded(tensor):
        return range(len(tensor))
    share = -(-len(tensor) // world())
    first, last = (min(place * share, len(tensor)) for place in (rank, rank + 1))
    return range(first, last)


def whole(tensor: Any) -> Tensor:
    """All of a sharded tensor, on every rank, which all must ask for it; a whole tensor as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def share_out(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor, the same on all ranks, cut as `like` is and copied to its device; as it is if `like` is not cut.

    Raises `ValueError` for another shape.
    """
    if not is_sharded(like) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    if tensor.shape != like.shape:
        raise ValueError(f"expected a tensor of shape {tuple(like.shape)}, got {tuple(tensor.shape)}")
    # without a source nothing is sent, each rank looks at its own share; the copy lets go of the rest
    whole_there = tensor.to(like.device)
    return distribute_tensor(whole_there, like.device_mesh, like.placements, src_data_rank=None).clone()


def whole_state(source: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a module's state dict, or of other named tensors, whole and on the CPU of rank 0; {} on other ranks.

    All ranks must call it. Tensors are gathered one after the other: a rank's device needs room for the largest one.
    """
    state = {}
    for name, tensor in (source.state_dict() if isinstance(source, nn.Module) else source).items():
        complete = whole(tensor.detach())
        if is_first():
            state[name] = complete.to("cpu", copy=True)
    return state


def save_shares(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write sharded tensors to safetensors in an empty directory that all ranks see, each rank its own shares.

    All ranks must call it, and when it returns all have written. Raises `InputError` on every rank when one could not.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    # the default writer's index is a pickle, which would run what is in it when it is read
    writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        raise InputError(f"cannot write {directory}: {_reason(error)}") from None


def load_shares(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors`, sharded or whole, from what `save_shares` wrote with however many ranks.

    All ranks must call it. Raises `ValueError` on every rank when something is missing, damaged or of another shape.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with warnings.catch_warnings():  # one process reads without a group, on purpose
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(directory)), no_dist=world() == 1)
    except CheckpointException as error:
        raise ValueError(_reason(error)) from None


def _reason(error: CheckpointException) -> str:
    """What the first rank that failed says, in a line."""
    (cause, _), *_ = error.failures.values()
    return str(getattr(cause, "strerror", None) or cause).partition("\n")[0]
