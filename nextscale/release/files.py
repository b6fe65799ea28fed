"""Files of the public release: state dicts as .pth or .safetensors, and the checkpoints that trainers wrap them in.

A .pth file is a pickle; only tensors and plain values are taken from it, and nothing in it is ever run. Where in a
checkpoint a model lies is found by the names that it must have, whatever stands around them or before them.
What the tensors mean is known to `release.convert` alone.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from nextscale.checks import check_place
from nextscale.errors import InputError
from nextscale.files import checkpoint, durable, pickles

State = Mapping[str, Any]
Weights = Literal["plain", "ema"]
PARTS = {  # the two models, and names that each has and the other has not
    "tokenizer": (
        "quantize.embedding.weight",
        "encoder.conv_in.weight",
        "decoder.conv_in.weight",
        "quant_conv.weight",
        "post_quant_conv.weight",
    ),
    "transformer": ("word_embed.weight", "pos_start", "pos_1LC", "lvl_embed.weight", "class_emb.weight"),
}
# what DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into names
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
COUNTER = "n_averaged"  # of torch's AveragedModel
DEPTH = 8  # of the containers that are looked into
SHOWN = 4  # names in a message


class Place(NamedTuple):
    """Where in a checkpoint a model lies."""

    path: tuple[Any, ...]
    """Keys of the containers around it."""
    prefix: str
    """What stands before each of its names, once wrappers are dropped."""
    known: int = 0
    """How many of the names in `PARTS` are there."""

    def __str__(self) -> str:
        return ".".join([*map(str, self.path), self.prefix.rstrip(".")]).strip(".")[:80] or "the state dict itself"

    @property
    def averaged(self) -> bool:
        """Whether a running average of the weights lies there, by the word ema in its address."""
        return "ema" in re.split(r"[^a-z0-9]+|_", ".".join([*map(str, self.path), self.prefix]).lower())


class Source:
    """One model's tensors in a file or a state dict, mapped anew at each call where that is possible.

    Arguments:
        source: a file or a state dict.
        part: which of `PARTS` is wanted.
        weights: the weights themselves, or their running average, where there is one.

    Raises `InputError` for a file that is missing, damaged, or has no such model. What is left out is said.
    """

    def __init__(self, source: str | Path | State, part: str, weights: Weights = "plain") -> None:
        if weights not in get_args(Weights):
            raise InputError(f"weights: expected plain or ema, got {weights!r}")
        self.what = "state dict" if isinstance(source, Mapping) else str(source)
        self._read = _reader(source)
        values = self._read()
        self.place = _find(self.what, values, part, weights)
        (other,) = PARTS.keys() - {part}
        self._others = [place for place in _places(values, other) if place.path == self.place.path]
        for said in (self._left_out(values, part), _averages_left_out(self.what, values, part, weights)):
            if said:
                warnings.warn(said, stacklevel=3)

    def __call__(self) -> dict[str, Tensor]:
        """The tensors by the names they have in the release."""
        tensors: dict[str, Tensor] = {}
        for name, value in self._named(self._read()):
            if self._is_ours(name):
                inner = name.removeprefix(self.place.prefix)
                if inner in tensors:
                    raise InputError(
                        f"{self.what}: expected every tensor once, got names that differ only in their wrappers"
                    )
                if _is_weight(self.what, inner, value):
                    tensors[inner] = value
        return tensors

    def _named(self, values: Any) -> Iterator[tuple[str, Any]]:
        """What lies in the model's container, by names without wrappers."""
        for key in self.place.path:
            values = values[key]
        return ((_unwrapped(str(name)), value) for name, value in values.items())

    def _is_ours(self, name: str) -> bool:
        inside = (other.prefix for other in self._others if len(other.prefix) > len(self.place.prefix))
        behind = name.startswith(self.place.prefix) and name != f"{self.place.prefix}{COUNTER}"
        return behind and not any(map(name.startswith, inside))

    def _left_out(self, values: Any, part: str) -> str:
        """Of tensors beside the model those that belong to neither model, in a line."""
        places = [*_places(values, part), *self._others]  # averages, too
        prefixes = [place.prefix for place in places if place.path == self.place.path]
        left = [
            name
            for name, value in self._named(values)
            if isinstance(value, Tensor) and name.split(".")[-1] != COUNTER and not any(map(name.startswith, prefixes))
        ]
        if not left:
            return ""
        groups = ", ".join(sorted({name.partition(".")[0] for name in left})[:SHOWN])
        return f"{self.what}: tensors beside the {part} ({self.place}) are left out, {len(left)} of them: {groups}"


def holds(source: str | Path | State, part: str) -> bool:
    """Whether there is such a model, or what is left of one. Raises `InputError` for files that cannot be read."""
    return bool(_places(_reader(source)(), part))


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write one state dict of `release.convert.export`: safetensors by that suffix, else as `torch.load` reads it."""
    tensors = {name: tensor.detach().cpu() for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        checkpoint.write_tensors(path, tensors)
        return
    # torch.save writes whole storages, and that of a mapped weight is all of its file; an array's ends where it ends
    alone = {name: torch.from_numpy(tensor.numpy()) for name, tensor in tensors.items()}
    durable.write_beside(path, lambda beside: pickles.write(alone, beside))


def _reader(source: str | Path | State) -> Any:
    """How to read everything in a file, anew at each call where it can be mapped."""
    if isinstance(source, Mapping):
        return lambda: source
    if not isinstance(source, str | Path):
        hint = ", whose state_dict() is one" if isinstance(source, nn.Module) else ""
        raise InputError(f"expected a file or a state dict, got a {type(source).__name__}{hint}")
    check_place("file", source)
    path = Path(source)
    if path.suffix == ".safetensors":
        return lambda: checkpoint.read_tensors(path)
    if not path.is_file():
        raise InputError(f"expected a file {path}, {'got a folder' if path.is_dir() else 'found none'}")
    if zipfile.is_zipfile(path):
        return pickles.reader(path, mmap=True)
    whole = pickles.read(path)  # torch's format before 1.6 cannot be mapped
    return lambda: whole


# -- where a model lies ------------------------------------------------------------------------------------------------


def _find(what: str, values: Any, part: str, weights: Weights) -> Place:
    """The one place of a model: the plain weights' or their average's; without an average it is the plain weights'."""
    places = _places(values, part)
    plain, averaged = ([place for place in places if place.averaged is wanted] for wanted in (False, True))
    if averaged and not plain and weights == "plain":
        raise InputError(
            f"{what}: expected plain weights, got a running average alone ({averaged[0]}): weights='ema' takes it "
            "(--weights ema of nextscale convert)"
        )
    wanted = averaged if weights == "ema" and averaged else plain
    best = [place for place in wanted if place.known == max(other.known for other in wanted)]
    if not best:
        raise InputError(_found_none(what, values, part))
    if len(best) > 1:
        told = ", ".join(map(str, best[:SHOWN]))
        raise InputError(f"{what}: expected one {part}, got {len(best)}: {told}; save or give one of them alone")
    return best[0]


def _found_none(what: str, values: Any, part: str) -> str:
    if _places(values, next(iter(PARTS.keys() - {part}))):
        return f"{what}: expected a {part} of the release, got the other model of the pair"
    tensors = [name for _, node in _containers(values) for name, value in node.items() if isinstance(value, Tensor)]
    if not tensors:
        return f"{what}: expected a state dict or a trainer's checkpoint of a {part}, got neither"
    told = ", ".join(str(name)[:80] for name in tensors[:SHOWN])
    return f"{what}: expected a {part} of the release, got weights without {PARTS[part][0]} ({told} ...)"


def _averages_left_out(what: str, values: Any, part: str, weights: Weights) -> str:
    averaged = [place for place in _places(values, part) if place.averaged]
    if weights == "ema" and not averaged:
        return f"{what}: has no running average (ema) of the {part}, its plain weights are taken"
    if weights == "plain" and averaged:
        return f"{what}: the plain weights are taken; weights='ema' takes their running average ({averaged[0]})"
    return ""


def _places(values: Any, part: str) -> list[Place]:
    """Every place where some of a model's names stand, all behind the same prefix."""
    places = []
    for path, node in _containers(values):
        prefixes = Counter(
            name.removesuffix(known)
            for name in map(_unwrapped, filter(lambda key: isinstance(key, str), node))
            for known in PARTS[part]
            if name == known or name.endswith(f".{known}")
        )
        places += [Place(path, prefix, count) for prefix, count in prefixes.items()]
    return places


def _containers(values: Any) -> Iterator[tuple[tuple[Any, ...], State]]:
    """The mappings in nested mappings and sequences, with their addresses, though they may be in circles.

    Each once, or twice where one lies under two addresses of which one is an average's: untrained, they may be one.
    """
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), values)]
    seen = set()
    while waiting:
        path, node = waiting.pop()
        found = (id(node), Place(path, "").averaged)
        if found in seen or len(path) > DEPTH:
            continue
        seen.add(found)
        if isinstance(node, Mapping):
            yield path, node
        items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
        waiting += [((*path, key), inner) for key, inner in items if isinstance(inner, Mapping | list | tuple)]


def _unwrapped(name: str) -> str:
    return ".".join(word for word in name.split(".") if word not in WRAPPERS)


def _is_weight(what: str, name: str, value: Any) -> bool:
    """Whether it is a tensor, rather than a counter or settings that lie beside the tensors.

    Raises `InputError` for what has the name of a weight and is no tensor that lies in memory or file as it is.
    """
    if not isinstance(value, Tensor):
        if "." in name or any(name in known for known in PARTS.values()):
            got = "a NumPy array" if isinstance(value, pickles.SideData | np.ndarray) else f"a {type(value).__name__}"
            raise InputError(f"{what}: expected tensors only, got {got}: {name}")
        return False
    got = _strangeness(value)
    if got:
        raise InputError(f"{what}: expected plain tensors, got {got}: {name}")
    return True


def _strangeness(tensor: Tensor) -> str:
    """What a tensor is if it is none that lies in memory or file value by value."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_nested:
        return "a nested one"
    if tensor.is_quantized or tensor.layout != torch.strided:
        return (
            "a quantized one" if tensor.is_quantized else f"one of layout {str(tensor.layout).removeprefix('torch.')}"
        )
    if tensor.is_meta:
        return "a shape alone, on the meta device"
    # a few bytes may claim to be a model of any size
    repeated = tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size()
    return "one that repeats its values" if repeated else ""
