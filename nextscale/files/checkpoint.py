"""Models as files: config.json beside *.safetensors. Written by `durable`, so that a kill leaves no half a file.

No pickle is read or written here. What is missing, damaged or of the wrong shape is an `InputError` that names it.

A file of weights that `save` wrote has a checksum of each tensor in its header, and config.json names the fingerprint
of these for each file: so files of two models are not taken for one, which a look at the headers tells, and a tensor
that is not what was written is found when it is read. Files of other programs have neither.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nextscale.errors import InputError
from nextscale.files.durable import beside, remove_abandoned, settle, write_beside

CONFIG = "config.json"
WEIGHTS = "weights"  # in config.json: the fingerprint of each file
SUMS = "checksums"  # in a file's header: JSON, as several entries would come in any order
BLOCK = 1 << 15  # bytes whose sum stands for them in a checksum
Read = Callable[[], Mapping[str, Tensor]]
CPU = torch.device("cpu")
CHUNK = 1 << 26  # bytes of a file that may be resident while they are converted
LOOKED = 1 << 28  # and while they are only looked at, when there are no others


def write_json(path: Path, values: Any) -> None:
    """`values` as indented JSON."""
    write_beside(path, lambda sibling: sibling.write_bytes(_json(values)))


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """The JSON in `path`. Raises `InputError` when it is missing or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"expected a file {path}, found none") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except RecursionError:
        raise InputError(f"{path}: expected JSON, got brackets inside each other by the thousand") from None
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, got {kind(path) or error}") from None


def kind(path: Path) -> str | None:
    """What a file is that is often there instead of another, by its first bytes; None for any other."""
    with path.open("rb") as file:
        head = file.read(200).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS: git lfs pull fetches the file itself"
    return "a web page" if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")) else None


def save(directory: str | Path, config: dict[str, Any], files: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write config.json and each of `files` (name -> tensors), which are a model together.

    Whenever this is interrupted, what is there is the old model or the new one: the files are written under names of
    their own, config.json is replaced, which names them by their fingerprints, and then they take their places. What
    saves that were killed have left is removed.
    """
    place = Path(directory)
    sums = {name: {tensor: checksum(values) for tensor, values in files[name].items()} for name in files}
    prints = {name: _fingerprint_of(sums[name]) for name in files}
    remove_abandoned(place)
    try:
        with ExitStack() as renames:
            for name, tensors in files.items():
                file = renames.enter_context(beside(place / _aside(name, prints[name])))
                _write_safetensors(tensors, file, metadata={SUMS: json.dumps(sums[name])})
        write_json(place / CONFIG, config | {WEIGHTS: prints})  # the old model until here, the new one from here on
        for name in files:
            _replace(place / _aside(name, prints[name]), place / name)
        settle(place / CONFIG)
    finally:
        _remove_left(place, files)


def _aside(name: str, fingerprint: str) -> str:
    """What a file of weights is called until it takes its place."""
    return f"{Path(name).stem}.{fingerprint}{Path(name).suffix}"


def _replace(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from None


def _remove_left(directory: Path, names: Iterable[str]) -> None:
    """Remove what interrupted saves have left: files named by their own fingerprints that no config.json needs."""
    config = read_json(directory / CONFIG) if (directory / CONFIG).is_file() else {}
    for name in names:
        for path in directory.glob(_aside(name, "?" * 16)):
            fingerprint = path.name.split(".")[-2]
            if fingerprint != _stated(config, name) and _fingerprint_of(_sums_in(path)) == fingerprint:
                path.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors as safetensors."""
    write_beside(path, lambda sibling: _write_safetensors(tensors, sibling))


def _write_safetensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    written = {name: _written(tensor) for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(written, file, metadata)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error


def _written(tensor: Tensor) -> Tensor:
    """As it is written. Raises `InputError` for shapes alone."""
    if tensor.is_meta:
        raise InputError("expected weights to write, got shapes alone, on the meta device")
    return tensor.detach().contiguous()


# ---- checksums -------------------------------------------------------------------------------------------------------


def checksum(tensor: Tensor) -> str:
    """16 hex digits of a tensor's bytes: a hash of the sums of its blocks, as integers, and of the bytes behind them.

    It finds accidents, which is all it is for, at 10 GB/s of one core, where CRC-32 has 1.6 and SHA-256 0.7.
    """
    values = _written(tensor).cpu()
    bytes_n = values.as_strided((values.numel(),), (1,)).view(torch.uint8).numpy()  # of one value strides say nothing
    end = len(bytes_n) // BLOCK * BLOCK
    sums = bytes_n[:end].view(np.int64).reshape(-1, BLOCK // 8).sum(axis=1)
    return hashlib.sha256(sums.tobytes() + bytes_n[end:].tobytes()).hexdigest()[:16]


def _fingerprint_of(sums: Mapping[str, str] | None) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


def _sums_in(path: Path) -> dict[str, str] | None:
    """The checksums in the header of a file of weights; None where there are none."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            sums = json.loads((file.metadata() or {}).get(SUMS, "null"))
    except (safetensors.SafetensorError, OSError, ValueError):
        return None
    return sums if isinstance(sums, dict) else None


def _stated(config: Any, name: str) -> str | None:
    """The fingerprint of a file that config.json names; None where it names none, as earlier versions did not."""
    prints = config.get(WEIGHTS) if isinstance(config, dict) else None
    return prints.get(name) if isinstance(prints, dict) else None


class Weights(NamedTuple):
    """A file of weights that belongs to a config.json."""

    path: Path
    sums: Mapping[str, str]
    """The checksum of each tensor; none where they are not known."""


def find_weights(directory: Path, name: str, config: Mapping[str, Any]) -> Weights:
    """The file of weights that config.json was written with, by a look at headers alone.

    Arguments:
        config: what `read_config` gave for the directory; one that names no fingerprints takes any file.

    Raises `InputError` where it is not there.
    """
    stated = _stated(config, name)
    if stated is None:
        return Weights(directory / name, {})
    for path in (directory / name, directory / _aside(name, stated)):  # where an interrupted save may have left it
        if (sums := _sums_in(path)) is not None and _fingerprint_of(sums) == stated:
            return Weights(path, sums)
    read_tensors(directory / name)  # which says so if there is none, or a damaged one
    raise InputError(
        f"{directory / name}: expected the weights that {CONFIG} was written with, got those of another model: "
        f'save or export the model again (without "{WEIGHTS}", {CONFIG} takes any)'
    )


# ---- reading ---------------------------------------------------------------------------------------------------------


def load(model: nn.Module, weights: Weights, *, device: torch.device) -> None:
    """Give `model`, on the meta device, the weights of a file; see `assign`.

    Raises `InputError` for a file that is missing, damaged, or does not fit the model.
    """

    def check(name: str, values: Tensor) -> None:
        if weights.sums and checksum(values) != weights.sums.get(name):
            raise InputError(f"{weights.path}: expected {name} as it was written, got other bytes: the file is damaged")

    assign(model, lambda: read_tensors(weights.path), device=device, check=check)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped: read when looked at; writing to one leaves the file as it is."""
    if not path.is_file():
        raise InputError(f"expected a file {path}, found none")
    try:
        path.open("rb").close()  # safetensors calls a file that may not be read one that is not there
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        told = kind(path) or f"a damaged file{_cut(path)} ({error})"
        raise InputError(f"{path}: expected safetensors, got {told}") from None


def check_room(path: Path, *, parameters: int, blocks: int) -> None:
    """Raise `InputError` unless a safetensors file can hold a model, before it is made, which could take hours.

    Of parameters there may be up to 16 times too many: what is nearly right is told tensor by tensor later on.

    Arguments:
        parameters: how many the model has.
        blocks: how many of its parts have tensors of their own.
    """
    tensors = read_tensors(path)
    held = sum(tensor.numel() for tensor in tensors.values())
    if parameters > 16 * held or blocks > len(tensors):
        told = f"{parameters:,} parameters in {blocks:,} blocks"
        raise InputError(f"{path}: expected {told}, as {CONFIG} says, got {held:,} in {len(tensors):,} tensors")


def _cut(path: Path) -> str:
    """How much of a damaged file is missing, if its header is whole and tells."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        wanted = 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        return f", cut short at {size:,} of {wanted:,} bytes" if wanted > size else ""
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return ""


def read_config(directory: str | Path, sections: Sequence[str]) -> dict[str, Any]:
    """A model directory's config.json. Raises `InputError` when it, its directory or one of `sections` is not there."""
    if not Path(directory).is_dir():
        found = f"got the file {directory}" if Path(directory).is_file() else f"found none at {directory}"
        raise InputError(f"expected a model directory, {found}")
    if not (Path(directory) / CONFIG).is_file():
        raise InputError(f"expected a model directory with {CONFIG}, got {directory}, which has none")
    values = read_json(Path(directory) / CONFIG)
    missing = [name for name in sections if not isinstance(values, dict) or name not in values]
    if missing:
        raise InputError(f"{directory}: expected a model with a {missing[0]}, its {CONFIG} has none")
    return values


def assign(
    model: nn.Module,
    read: Read,
    *,
    device: torch.device = CPU,
    copy: bool = False,
    called: Mapping[str, str] | None = None,
    check: Callable[[str, Tensor], None] = lambda name, tensor: None,
) -> None:
    """Give `model`, built on the meta device, its weights, in the dtypes that its meta tensors have.

    What a file holds in the right dtype stays mapped to it. What has to be converted or moved is read through mappings
    that are closed again after `CHUNK` bytes, because a page of a file counts as memory as long as its mapping lives;
    what stays is looked at through such a mapping, too, for values that are not finite.

    Arguments:
        model: nothing of it is initialised; afterwards all its parameters are trainable.
        read: maps the tensors, names as in the model's state dict; called anew for every chunk.
        device: where the weights go.
        copy: copy what would otherwise stay as it was read.
        called: what messages call the tensors of the model, if not by its own names.
        check: called with each tensor as it is read, by the model's name for it.

    Raises `InputError` that names the tensors which are missing, too many, of another shape, no floating point, or not
    finite.
    """
    check_fit(type(model).__name__, model.state_dict(), read())
    kept, passing, touched = read(), read(), 0
    weights = {}
    for name, wanted in model.state_dict().items():
        passes = copy or kept[name].dtype != wanted.dtype or kept[name].device != device
        if touched >= (CHUNK if passes else LOOKED):
            passing, touched = read(), 0
        tensor = passing[name].detach()
        touched += tensor.nbytes
        check(name, tensor)
        if passes:
            tensor = tensor.to(device, wanted.dtype, copy=True, memory_format=torch.contiguous_format)
        _check_finite(type(model).__name__, (called or {}).get(name, name), tensor)
        weights[name] = tensor if passes else kept[name]  # whose mapping is not touched yet
    model.load_state_dict(weights, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _check_finite(what: str, name: str, tensor: Tensor) -> None:
    """Raise `InputError` for a NaN or an infinity, which any sum passes on; one that only overflows is looked at again.

    The sum of 310 M weights takes 0.1 s in float32 and 0.03 s in bfloat16, of one core.
    """
    if tensor.is_meta or bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all()):
        return
    raise InputError(
        f"weights of the {what}: expected finite numbers, got {name} with values that are not, in "
        f"{str(tensor.dtype).removeprefix('torch.')}"
    )


def check_fit(what: str, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise `InputError`, naming what is wrong, unless `tensors` have the names and shapes of `expected`."""
    both = expected.keys() & tensors.keys()
    shapes = {name: (tuple(expected[name].shape), tuple(tensors[name].shape)) for name in both}
    integers = [n for n in both if expected[n].is_floating_point() and not tensors[n].is_floating_point()]
    complaints = [
        *(f"{name} is missing" for name in expected.keys() - tensors.keys()),
        *(f"{name} is not expected" for name in tensors.keys() - expected.keys()),
        *(f"{name} should be {wanted}, is {got}" for name, (wanted, got) in shapes.items() if wanted != got),
        *(f"{name} should be floating point, is {tensors[name].dtype}" for name in integers),
    ]
    if complaints:
        more = f" and {len(complaints) - 4} more" if len(complaints) > 4 else ""
        raise InputError(f"weights do not fit the {what}: {'; '.join(sorted(complaints)[:4])}{more}")


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits that any change of a name, a shape or a value changes; dtype and device do not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()[:16]
