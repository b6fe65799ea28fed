"""Models as files: config.json beside *.safetensors. Written beside and renamed, so that a kill never leaves half a file.

No pickle is read or written here. What is missing, damaged or of the wrong shape is an `InputError` that names it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from nextscale.errors import InputError

CONFIG = "config.json"


def write_beside(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a sibling of `path`, then rename it into place; its parent is made if need be."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(beside)
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """`values` as indented JSON."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    write_beside(path, lambda beside: None if beside.write_text(text, encoding="utf-8") else None)


def read_json(path: Path) -> Any:
    """The JSON in `path`. Raises `InputError` when it is missing or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"expected a file {path}, found none") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, got {error}") from None


def save(directory: str | Path, config: dict[str, Any], files: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write each of `files` (name -> tensors) and, last, config.json."""
    for name, tensors in files.items():
        write_tensors(Path(directory) / name, tensors)
    write_json(Path(directory) / CONFIG, config)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors as safetensors."""
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_beside(path, lambda beside: safetensors.torch.save_file(whole, beside))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    if not path.is_file():
        raise InputError(f"expected a file {path}, found none")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: expected safetensors, got a damaged file ({error})") from None


def read_config(directory: str | Path, sections: Sequence[str]) -> dict[str, Any]:
    """A model directory's config.json. Raises `InputError` when the directory, the file or one of `sections` is not there."""
    if not Path(directory).is_dir():
        raise InputError(f"expected a model directory, found none at {directory}")
    if not (Path(directory) / CONFIG).is_file():
        raise InputError(f"expected a model directory with {CONFIG}, got {directory}, which has none")
    values = read_json(Path(directory) / CONFIG)
    missing = [name for name in sections if not isinstance(values, dict) or name not in values]
    if missing:
        raise InputError(f"{directory}: expected a model with a {missing[0]}, its {CONFIG} has none")
    return values


def assign(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make `tensors` the weights of `model` (built on the meta device), without a copy.

    Raises `InputError` that names the tensors which are missing, too many, or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    complaints = [
        *(f"{name} is missing" for name in expected.keys() - got.keys()),
        *(f"{name} is not expected" for name in got.keys() - expected.keys()),
        *(f"{n} should be {expected[n]}, is {got[n]}" for n in expected.keys() & got.keys() if expected[n] != got[n]),
    ]
    if complaints:
        more = f" and {len(complaints) - 4} more" if len(complaints) > 4 else ""
        raise InputError(f"weights do not fit the {type(model).__name__}: {'; '.join(sorted(complaints)[:4])}{more}")
    model.load_state_dict(dict(tensors), assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
