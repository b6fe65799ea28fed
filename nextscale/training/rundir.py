"""A run as a directory: what it is, how far it has come, and what it showed on the way.

run.json              settings, versions; says whether the run is finished
state.pt              the last checkpoint: weights, averages, optimisers, step; one file, renamed into place
state-STEP/           its tensors where several processes have a share of each: as safetensors, one file a process
config.json, *.safetensors   the model as `load` reads it, exported with every checkpoint
best/                 the same at the check whose held-out figure was best
data.json             counts, classes, and the pictures that could not be read
history.json          figures on held-out data along the run
tensorboard/          scalars and pictures
samples/              pictures along the run
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from nextscale import images
from nextscale.data import DataSet
from nextscale.data.tokens import TokenSet, is_cache
from nextscale.errors import InputError
from nextscale.files import pickles
from nextscale.files.checkpoint import CONFIG, read_json, read_tensors, write_beside, write_json, write_tensors
from nextscale.machine import distributed

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STEPS = "length.steps"  # the setting that may grow

# What loading may raise over a checkpoint that is altered, or not ours.
DAMAGE = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)


@dataclass
class State:
    """How far a run has come; the caller's, never the model's."""

    step: int = 0
    """Steps done."""
    total: int | None = None
    """Steps in all, once known."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Figures of the step and on held-out data: one entry a check."""
    skipped: int = 0
    """Steps whose gradient was not finite, and which changed nothing."""
    skipped_in_row: int = 0
    """Of those, how many came last."""


class Stateful(Protocol):
    """What can be kept in a checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Exportable(Protocol):
    """The part of a stage that a checkpoint needs."""

    @property
    def state(self) -> Mapping[str, Stateful]: ...

    @property
    def data(self) -> DataSet | TokenSet: ...

    def export(self, directory: Path) -> None: ...


class RunDirectory:
    """One run's files. Made by `open`. All of several processes read, only the first one writes."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self._writer: SummaryWriter | None = None
        self._shares: str | None = None  # the directory that state.pt names

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, object], *, endless: bool = False) -> RunDirectory:
        """The directory at `path` for a run with `settings`, made, continued, or where it is `endless` made longer.

        Raises `InputError`, with the differences, when it holds another run, or when it cannot be written.
        """
        # through JSON, so that tuples compare equal to the lists that will be read back
        wanted = json.loads(json.dumps(settings))
        if distributed.is_first():
            cls._claim(path, wanted, endless=endless)
        distributed.barrier()
        if distributed.any_of(not (path / "run.json").exists()):
            raise InputError(f"expected one {path} that all processes see, got one that some do not")
        return cls(path, wanted)

    @staticmethod
    def _claim(path: Path, wanted: dict[str, Any], *, endless: bool) -> None:
        file = path / "run.json"
        ran = file.exists()
        stored = read_json(file) if ran else None
        if ran and (path / "state.pt").exists():
            grown = _refuse_other_run(
                path, stored.get("settings") if isinstance(stored, dict) else None, wanted, endless
            )
            if grown:
                write_json(file, {"settings": wanted, "finished": False})
            return
        # without a checkpoint there is nothing to lose, but for a model
        if isinstance(stored, dict) and stored.get("finished"):
            raise InputError(f"{path} holds a finished run without its checkpoint, state.pt: choose another --out")
        if not ran and (path / CONFIG).exists():
            raise InputError(f"{path} holds a model that was not trained there: choose another --out")
        if not ran and is_cache(path):
            raise InputError(f"{path} holds a token cache: choose another --out")
        write_json(file, {"settings": wanted, "finished": False})

    def require_room(self, stage: Exportable) -> None:
        """Raise `InputError` unless the disk has room for the next checkpoint; to be asked before `restore`.

        That is the size of the last one, or a guess at the first two: of each weight also two moments. What others
        write meanwhile, or a quota, is not seen.
        """
        if not distributed.is_first():
            return
        needed = sum(file.stat().st_size for file in (*self.path.glob("state.pt"), *self.path.glob("state-*/*")))
        if not needed:
            tensors = [
                tensor for _, tensor in _tensors({name: part.state_dict() for name, part in stage.state.items()})
            ]
            kept = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            needed = 2 * kept * (1 if any(map(distributed.is_sharded, tensors)) else 3)  # the moments are there already
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise InputError(
                f"cannot write {self.path}: expected room for a checkpoint, about {needed / 1e9:.3g} GB, "
                f"got {free / 1e9:.3g} GB"
            )

    def restore(self, stage: Exportable) -> State:
        """Load the last checkpoint into the stage's parts; a fresh `State` when there is none.

        It may be another number of processes that wrote it, with or without shards.
        """
        file = self.path / "state.pt"
        if not file.exists():
            return State()
        ours = {name: part.state_dict() for name, part in stage.state.items()}
        try:
            stored = pickles.read(file, mmap=_is_cut(ours))  # each process wants its own share alone
            parts, shares = stored.pop("parts"), stored.pop("shares", None)
            if parts.keys() != stage.state.keys() or stored.keys() != vars(State()).keys():
                raise KeyError
            if shares is not None:
                parts, self._shares = _read_shares(self.path, shares, parts, ours), shares["directory"]
            for name, part in stage.state.items():
                part.load_state_dict(_shared_out(parts[name], ours[name]))
            return State(**stored)
        except DAMAGE:
            raise InputError(f"{file}: expected this run's checkpoint, got a damaged one or another's") from None

    def save(self, state: State, stage: Exportable) -> None:
        """Write the loadable model and the history, then the checkpoint. All processes must call it.

        In this order a kill in between leaves a checkpoint that will write the others once more, never one that is
        at the end while they are not. Shares are written first of the checkpoint; until state.pt names them, it is the
        one before that counts.
        """
        if distributed.is_first():
            stage.export(self.path)
            write_json(self.path / "history.json", state.history)
            self.describe(stage.data)
        parts: Any = {name: part.state_dict() for name, part in stage.state.items()}
        cut = {path: tensor for path, tensor in _tensors(parts) if distributed.is_sharded(tensor)}
        content, shares = {"parts": parts, **vars(state)}, f"state-{state.step:07d}" if cut else None
        if shares is not None:
            content["parts"] = _changed(parts, lambda path, tensor: _placeholder(tensor) if path in cut else tensor)
            content["shares"] = {"directory": shares, "files": self._save_shares(shares, cut)}
        if distributed.is_first():
            write_beside(self.path / "state.pt", lambda beside: _write(content, beside))
            self._remove_shares(but=shares)
        self._shares = shares

    def _save_shares(self, name: str, cut: Mapping[str, Tensor]) -> list[str]:
        """Write sharded tensors to a directory, each process its own; the names of the files."""
        assert name != self._shares, "what the last checkpoint needs is never written over"
        directory = self.path / name
        if distributed.is_first():
            self._remove_shares(but=self._shares)
            try:
                directory.mkdir()
            except OSError as error:
                raise InputError(f"cannot write {directory}: {error.strerror}") from None
        distributed.barrier()
        distributed.save_shares(directory, cut)
        return sorted(file.name for file in directory.iterdir())

    def _remove_shares(self, *, but: str | None) -> None:
        """Of checkpoints that no longer count, or never came to."""
        for directory in self.path.glob("state-*"):
            if directory.name.removeprefix("state-").isdecimal() and directory.name != but:
                shutil.rmtree(directory, ignore_errors=True)

    def keep(self, step: int, pictures: Tensor) -> Path:
        """Pictures (B, 3, H, W) that no finite gradient came of, as tensors and to look at; where they are."""
        file = self.path / f"not-finite-step-{step + 1:07d}.png"
        if distributed.is_first():
            write_tensors(file.with_suffix(".safetensors"), {"images": pictures})
            images.save(file, images.grid(pictures.nan_to_num(), columns=8))
        return file

    def describe(self, data: DataSet | TokenSet) -> None:
        """Write what the run is trained on; large folders may turn out to hold broken pictures as they are read."""
        if not distributed.is_first():
            return
        counts = {"train": len(data.train), "validation": len(data.validation)}
        write_json(self.path / "data.json", {**counts, "classes": list(data.classes), "broken": list(data.broken)})

    def finish(self, state: State) -> None:
        """Mark the run as finished, and remove what killed attempts left half written."""
        if not distributed.is_first():
            return
        for pattern in (".*.[0-9]*", ".tmp??????"):  # ours and those of safetensors
            for place in (self.path, self.path / "best", self.path / "samples"):
                for rest in place.glob(pattern):
                    rest.unlink(missing_ok=True)
        self._remove_shares(but=self._shares)
        write_json(self.path / "run.json", {"settings": self.settings, "finished": True, "steps": state.step})

    # -- what people look at -------------------------------------------------------------------------------------------

    @contextmanager
    def logging(self, step: int) -> Iterator[None]:
        """Open the tensorboard log; what an earlier attempt logged after `step` is hidden."""
        if not distributed.is_first():
            yield
            return
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)
        try:
            yield
        finally:
            if self._writer is not None:
                with self._logged() as writer:
                    writer.close()
            self._writer = None

    @contextmanager
    def _logged(self) -> Iterator[SummaryWriter]:
        """The log, which is no reason to end a run: one that cannot be written any more is left, with a warning."""
        assert self._writer is not None
        try:
            yield self._writer
        except OSError as error:
            self._writer = None
            warnings.warn(f"{self.path}/tensorboard cannot be written any more: {error}", stacklevel=2)

    def log(self, step: int, figures: Mapping[str, float], validation: Mapping[str, float]) -> None:
        """Scalars of a step, and of its validation if there was one."""
        if self._writer is None:
            return
        with self._logged() as writer:
            for group, values in (("train", figures), ("validation", validation)):
                for name, value in values.items():
                    writer.add_scalar(f"{group}/{name}", value, step)

    def show(self, step: int, picture: Tensor) -> None:
        """A picture (3, H, W) in [-1, 1], as a file and in tensorboard."""
        images.save(self.path / "samples" / f"step-{step:07d}.png", picture)
        if self._writer is not None:
            with self._logged() as writer:
                writer.add_image("pictures", images.to_uint8(picture), step)


def _write(content: dict[str, Any], file: Path) -> None:
    """The checkpoint."""
    pickles.write(content, file)


def _tensors(tree: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested containers, with names such as "model/head.weight"."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _tensors(value, f"{path}/{key}".lstrip("/"))


def _changed(tree: Any, change: Callable[[str, Tensor], Tensor], path: str = "") -> Any:
    """Nested containers with other tensors in them."""
    if isinstance(tree, Tensor):
        return change(path, tree)
    if isinstance(tree, dict):
        return {key: _changed(value, change, f"{path}/{key}".lstrip("/")) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_changed(value, change, f"{path}/{i}".lstrip("/")) for i, value in enumerate(tree))
    return tree


def _is_cut(tree: Any) -> bool:
    """Whether there are sharded tensors in it."""
    return any(distributed.is_sharded(tensor) for _, tensor in _tensors(tree))


def _placeholder(tensor: Tensor) -> Tensor:
    """Shape and dtype alone, for what lies elsewhere."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _read_shares(run: Path, shares: Any, parts: Any, ours: Any) -> Any:
    """`parts` with tensors for placeholders: cut like those of `ours` that are cut, and whole otherwise."""
    directory, like, read = run / shares["directory"], dict(_tensors(ours)), dict[str, Tensor]()
    if sorted(file.name for file in directory.glob("*")) != shares["files"]:
        raise LookupError("a share is missing")
    for name in shares["files"]:
        read_tensors(directory / name)  # maps it, and raises if it is damaged, where torch would show a traceback first

    def place(path: str, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            cut = path in like and distributed.is_sharded(like[path])
            read[path] = tensor = torch.empty_like(like[path] if cut else tensor, device=None if cut else "cpu")
        return tensor

    placed = _changed(parts, place)
    distributed.load_shares(directory, read)
    return placed


def _shared_out(stored: Any, ours: Any) -> Any:
    """`stored`, its whole tensors cut like those of `ours` that are cut."""
    if not _is_cut(ours):
        return stored
    like = dict(_tensors(ours))
    return _changed(stored, lambda path, tensor: distributed.share_out(tensor, like.get(path)))


def _refuse_other_run(path: Path, stored: Any, wanted: dict[str, Any], endless: bool) -> bool:
    """Raise `InputError` unless it is the same run; whether it is the same but for a larger number of steps."""
    if not isinstance(stored, dict):
        raise InputError(f"{path}/run.json: expected the settings of a run, got something else")
    ours, theirs = _flat(wanted), _flat(stored)
    names = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]  # in one order, unlike a set's
    if not names:
        return False
    longer = names == [STEPS] and (ours.get(STEPS) or 0) > (theirs.get(STEPS) or math.inf)
    if longer and endless:
        return True
    shown = "; ".join(f"{name} is {theirs.get(name)} there, {ours.get(name)} here" for name in names[:4])
    way = f"choose another --out, with --init {path} to go on from its model" if longer else "choose another --out"
    raise InputError(f"{path} holds another run ({shown}): {way}, or ask for the same run")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"recipe.batch": 64, ...}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
