"""A run as a directory: what it is, how far it has come, and what it showed on the way.

run.json              settings, fingerprint of the held-out part, versions; says whether the run is finished
state.pt              the last checkpoint: weights, averages, optimisers, step; one file, renamed into place
state-STEP/           its tensors where several processes have a share of each: as safetensors, one file a process
shares.json           the directories of such a kind that are the run's own
config.json, *.safetensors   the model as `load` reads it, exported with every checkpoint
best/                 the same at the check whose held-out figure was best
milestones/           the same after some of the steps, if asked for: step-STEP/
plan.json             how many steps a budget in minutes has become, decision by decision, and how much of it is spent
data.json             counts, classes, and the pictures that could not be read
history.json          figures on held-out data along the run
health.txt            the table and the warnings of the last check, as they were printed
tensorboard/          scalars and pictures
samples/              pictures along the run

Every file is whole or not there, and on the disk before what it replaces is removed. Nothing is removed that the run
has not written.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import platform
import re
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nextscale import __version__, images
from nextscale.data import DataSet
from nextscale.data.tokens import TokenSet, is_cache
from nextscale.data.walk import visible
from nextscale.errors import InputError
from nextscale.files import durable, pickles
from nextscale.files.checkpoint import CONFIG, read_json, write_json, write_tensors
from nextscale.files.durable import write_beside
from nextscale.files.stamps import Stamp
from nextscale.machine import distributed
from nextscale.training.pace import Record

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STEPS = "length.steps"  # the setting that may grow
SHARES, PLAN = "shares.json", "plan.json"

# What a run writes, so that it does not begin where such a thing is somebody else's.
OWN = (
    "state.pt",
    SHARES,
    PLAN,
    "data.json",
    "history.json",
    "health.txt",
    "best",
    "milestones",
    "tensorboard",
    "samples",
)

# What loading may raise over a checkpoint that is altered, or not ours.
DAMAGE = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)
UNREADABLE = (*DAMAGE, OSError, EOFError, zipfile.BadZipFile, zlib.error)


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


class Keeps(Protocol):
    """What is told of every checkpoint that is written."""

    def keep(self, step: int) -> None: ...


class RunDirectory:
    """One run's files. Made by `open`. All of several processes read, only the first one writes."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self._record = record  # what run.json holds
        self._writer: SummaryWriter | None = None
        self._shares: str | None = None  # the directory that state.pt names
        self.mirror: Keeps | None = None
        """What copies every checkpoint away (`nextscale.training.mirror`)."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON values that make this run this run."""
        settings: Mapping[str, Any] = self._record["settings"]
        return settings

    @classmethod
    def open(
        cls, path: Path, settings: Mapping[str, object], *, held_out: str = "", endless: bool = False
    ) -> RunDirectory:
        """The directory at `path` for a run with `settings`, made, continued, or where it is `endless` made longer.

        Arguments:
            settings: JSON values that make this run this run.
            held_out: fingerprint of the held-out part. One that has changed is told by a warning.
            endless: whether the run may be made longer.

        Raises `InputError`, with the differences, when it holds another run or files that the run would replace, or
        when it cannot be written.
        """
        # through JSON, so that tuples compare equal to the lists that will be read back
        record = {"settings": json.loads(json.dumps(settings)), "finished": False, "held_out": held_out}
        if distributed.is_first():
            record = cls._claim(path, record, endless=endless)
        distributed.barrier()
        if distributed.any_of(not (path / "run.json").exists()):
            raise InputError(f"expected one {path} that all processes see, got one that some do not")
        return cls(path, record)

    @staticmethod
    def _claim(path: Path, record: dict[str, Any], *, endless: bool) -> dict[str, Any]:
        """Begin or continue; what run.json holds from now on."""
        file = path / "run.json"
        if not file.exists():
            _refuse_other_files(path)
            stored = None
        else:
            stored = _read_record(file)
            record = _continued(path, stored, record, endless=endless)
        record["versions"] = _with_ours((stored or {}).get("versions"))
        if record != stored:
            write_json(file, record)
        return record

    def require_room(self, stage: Exportable) -> None:
        """Raise `InputError` unless the disk has room for the next checkpoint; to be asked before `restore`.

        That is the size of the last one, or a guess at the first two: of each weight also two moments. What others
        write meanwhile, or a quota, is not seen.
        """
        if not distributed.is_first():
            return
        shares = (file for name in self._own_shares() for file in (self.path / name).glob("*"))
        needed = sum(file.stat().st_size for file in (*self.path.glob("state.pt"), *shares))
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

        It may be another number of processes that wrote it, with or without shares. Shares that it does not name, as
        of an attempt that was killed, are removed.

        Raises `InputError`, in all processes, for a checkpoint that is damaged, naming the file.
        """
        state = State()
        if (self.path / "state.pt").exists():
            state, self._shares = _restored(self.path, stage)
        self._remove_shares()
        return state

    def fork(self, other: Path, stage: Exportable, free: Collection[str]) -> tuple[State, dict[str, Any]]:
        """Load another run's last checkpoint into the stage's parts; its state without history, and its settings.

        Arguments:
            free: settings that may be others there, besides the length.

        Raises `InputError`, in all processes, unless there is such a checkpoint, of a run that is this one otherwise.
        """
        record = _read_record(other / "run.json")
        ours, theirs = _flat(self._record["settings"]), _flat(record["settings"])
        names = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
        wrong = [name for name in names if not name.startswith("length.") and name not in free]
        if wrong:
            raise InputError(f"{other} holds another run ({_told(wrong, theirs, ours)})")
        if not (other / "state.pt").exists():
            raise InputError(f"{other}: expected a run with a checkpoint, got one without")
        _tell_other_held_out(other, record.get("held_out"), self._record["held_out"])
        state, _ = _restored(other, stage)
        return dataclasses.replace(state, history=[]), record["settings"]

    def save(self, state: State, stage: Exportable) -> None:
        """Write the loadable model and the history, then the checkpoint. All processes must call it.

        In this order a kill in between leaves a checkpoint that will write the others once more, never one that is
        at the end while they are not. Shares are written first of the checkpoint; until state.pt names them, it is the
        one before that counts.
        """
        if distributed.is_first():
            stage.export(self.path)
            write_json(self.path / "history.json", [_finite(entry) for entry in state.history])
            self.describe(stage.data)
        parts: Any = {name: part.state_dict() for name, part in stage.state.items()}
        cut = {path: tensor for path, tensor in _tensors(parts) if distributed.is_sharded(tensor)}
        content: dict[str, Any] = {"parts": parts, **vars(state)}
        if cut:
            content["parts"] = _changed(parts, lambda path, tensor: _placeholder(tensor) if path in cut else tensor)
            content["shares"] = self._save_shares(f"state-{state.step:07d}", cut)
        if distributed.is_first():
            write_beside(self.path / "state.pt", lambda beside: _write(content, beside))
        self._shares = content["shares"]["directory"] if cut else None
        self._remove_shares()
        if self.mirror is not None:
            self.mirror.keep(state.step)
        distributed.barrier()  # one that ended before would have torchrun end the others, in the middle of this

    def _save_shares(self, name: str, cut: Mapping[str, Tensor]) -> dict[str, Any]:
        """Write sharded tensors to a new directory, each process its own; its name, and the stamps of its files."""
        directory = self.path / distributed.from_first(self._make_shares(name) if distributed.is_first() else "")
        distributed.barrier()
        distributed.save_shares(directory, cut)
        mine = sorted(directory.iterdir())[distributed.rank() :: distributed.world()]
        for file in mine:
            durable.settle(file)
        stamps = [stamp for stamps in distributed.from_all([Stamp.of(file) for file in mine]) for stamp in stamps]
        return {"directory": directory.name, "files": [vars(stamp) for stamp in sorted(stamps, key=_file)]}

    def _make_shares(self, name: str) -> str:
        """A new directory for shares, called `name` or nearly so if that is taken; remembered before it is made."""
        self._remove_shares()
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        free = next(other for other in itertools.chain([name], numbered) if not (self.path / other).exists())
        write_json(self.path / SHARES, [*self._own_shares(), free])
        try:
            durable.make_directory(self.path / free)
        except OSError as error:
            raise InputError(f"cannot write {self.path / free}: {error.strerror}") from None
        return free

    def _own_shares(self) -> list[str]:
        """Names of the directories that this run has made for shares; whatever else is said, no others are removed."""
        file = self.path / SHARES
        names = read_json(file) if file.exists() else []
        return [name for name in names if isinstance(name, str) and re.fullmatch(r"state-\d+(-\d+)?", name)]

    def _remove_shares(self) -> None:
        """Of checkpoints that no longer count, or never came to."""
        if not distributed.is_first() or not (own := self._own_shares()):
            return
        gone = [name for name in own if name != self._shares]
        for name in gone:
            shutil.rmtree(self.path / name, ignore_errors=True)
        durable.flush_directory(self.path)  # before they are forgotten
        if self._shares is None:
            (self.path / SHARES).unlink()
        elif gone:
            write_json(self.path / SHARES, [self._shares])

    def remember(self, record: Record) -> None:
        """Write what was decided of a budget in minutes, and how much of it is spent."""
        if distributed.is_first():
            write_json(self.path / PLAN, record.to_json())

    def remembered(self) -> Record | None:
        """What was written last of that, as the first process reads it, in all of them; None where nothing was.

        Raises `InputError`, in all processes, for a file that is damaged.
        """
        file = self.path / PLAN
        found: Record | None = None
        if distributed.is_first() and file.exists():
            with suppress(*DAMAGE):  # an `InputError` among them
                found = Record.from_json(read_json(file))
        found, there = distributed.from_first((found, file.exists()))
        if there and found is None:
            raise InputError(f"{file}: expected the record of this run's minutes, got something else")
        return found

    def keep_model(self, step: int, stage: Exportable) -> None:
        """Export the loadable model to a directory of its own, which stays."""
        if distributed.is_first():
            stage.export(self.path / "milestones" / f"step-{step:07d}")

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
        """Mark the run as finished."""
        if distributed.is_first():
            self._record |= {"finished": True, "steps": state.step}
            write_json(self.path / "run.json", self._record)
        if self.mirror is not None:
            self.mirror.keep(state.step)

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

    def tell(self, lines: Iterable[str]) -> None:
        """Keep what a check says of the run, in place of what the one before said."""
        told = "".join(f"{line}\n" for line in lines)
        write_beside(self.path / "health.txt", lambda beside: beside.write_text(told, encoding="utf-8"))

    def show(self, step: int, picture: Tensor) -> None:
        """A picture (3, H, W) in [-1, 1], as a file and in tensorboard."""
        file = self.path / "samples" / f"step-{step:07d}.png"
        images.save(file, picture)
        durable.settle(file)
        if self._writer is not None:
            with self._logged() as writer:
                writer.add_image("pictures", images.to_uint8(picture), step)


def steps_done(path: Path) -> int:
    """By the last checkpoint of a run. Raises `InputError` when there is none."""
    if not (path / "state.pt").exists():
        raise InputError(f"expected a run with a checkpoint, got {path}")
    try:
        return int(pickles.read(path / "state.pt", mmap=True)["step"])
    except UNREADABLE:
        raise _damaged(path / "state.pt") from None


def steps_asked(path: Path) -> int | None:
    """How many steps the run in a directory was asked for last; None where there is no run, or one in minutes."""
    if not (path / "state.pt").exists():
        return None
    return _flat(_read_record(path / "run.json")["settings"]).get(STEPS)


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


def all_finite(stage: Exportable) -> bool:
    """Whether no number in a checkpoint of `stage` is NaN or infinite, in this process's share of it."""
    own = (
        distributed.own_share(tensor) for _, tensor in _tensors([part.state_dict() for part in stage.state.values()])
    )
    # a sum passes a NaN or an infinity on, and takes a tenth of the time; one that only overflows is looked at again
    return all(bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all()) for tensor in own)


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Without the numbers that JSON does not know, such as the PSNR of a perfect reconstruction."""
    return {name: figure for name, figure in figures.items() if math.isfinite(figure)}


class _Shares(NamedTuple):
    """Where the shares of a checkpoint are, and what they were."""

    directory: str
    stamps: list[Stamp]


def _restored(path: Path, stage: Exportable) -> tuple[State, str | None]:
    """Load the checkpoint in a run directory into the stage's parts; also the directory of its shares, if it has some.

    Raises `InputError`, in all processes, for a checkpoint that is damaged, naming the file.
    """
    file = path / "state.pt"
    ours = {name: part.state_dict() for name, part in stage.state.items()}
    stored, shares = _read_checkpoint(file, ours)
    parts = stored.pop("parts")
    if shares is not None:
        _refuse_damaged_shares(path / shares.directory, shares.stamps)
    try:
        if shares is not None:
            parts = _read_shares(path / shares.directory, parts, ours)
        for name, part in stage.state.items():
            part.load_state_dict(_shared_out(parts[name], ours[name]))
    except DAMAGE:
        raise _damaged(file) from None
    return State(**stored), None if shares is None else shares.directory


def _read_checkpoint(file: Path, ours: Any) -> tuple[dict[str, Any], _Shares | None]:
    """What a checkpoint of the parts `ours` holds. Raises `InputError` for a damaged one, and one of other parts."""
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:  # torch does not look at the checksums that it writes
                raise LookupError
        stored = pickles.read(file, mmap=_is_cut(ours))  # each process wants its own share alone
        found = stored.pop("shares", None)
        if stored.keys() != {"parts", *vars(State())} or stored["parts"].keys() != ours.keys():
            raise LookupError
        shares = _Shares(found["directory"], [Stamp(**stamp) for stamp in found["files"]]) if found else None
        return stored, shares
    except UNREADABLE:
        raise _damaged(file) from None


def _file(stamp: Stamp) -> str:
    return stamp.file


def _damaged(file: Path) -> InputError:
    return InputError(f"{file}: expected this run's checkpoint, got a damaged one or another's")


def _refuse_damaged_shares(directory: Path, stamps: list[Stamp]) -> None:
    """Raise `InputError`, in all processes, for a file that is not what was written; each process reads some."""
    mine = {stamp.file: stamp.fault_inside(directory) for stamp in stamps[distributed.rank() :: distributed.world()]}
    faults = {name: fault for faults in distributed.from_all(mine) for name, fault in faults.items()}
    faults |= {file.name: "got one more" for file in directory.glob("*") if file.name not in faults}
    for name, fault in sorted(faults.items()):
        if fault:
            raise InputError(f"{directory / name}: expected a file of this run's checkpoint, {fault}")


def _read_shares(directory: Path, parts: Any, ours: Any) -> Any:
    """`parts` with tensors for placeholders: cut like those of `ours` that are cut, and whole otherwise."""
    like, read = dict(_tensors(ours)), dict[str, Tensor]()

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


def _refuse_other_files(path: Path) -> None:
    """Raise `InputError` where a new run would replace what it has not written; other files are told by a warning."""
    if (path / CONFIG).exists():
        raise InputError(f"{path} holds a model that was not trained there: choose another --out")
    if is_cache(path):
        raise InputError(f"{path} holds a token cache: choose another --out")
    for name in OWN:
        if (path / name).exists():
            raise InputError(f"{path} holds {name}, but no run.json that would say whose it is: choose another --out")
    others = [other.name for other in visible(path) if not (other / "run.json").exists()]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        warnings.warn(f"{path} holds other files, which stay: {', '.join(others[:3])}{more}", stacklevel=2)


def _tell_other_held_out(path: Path, stored: str | None, wanted: str) -> None:
    """Warn of a held-out part that is another one than before."""
    if stored and wanted and stored != wanted:
        warnings.warn(
            f"{path}: the held-out pictures are others than so far (fingerprint {stored} there, {wanted} here): "
            "figures before and after this point cannot be compared",
            stacklevel=2,
        )


def _with_ours(before: Any) -> list[dict[str, str]]:
    """The versions that have trained here so far, and those of this process."""
    ours = {"nextscale": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    known = before if isinstance(before, list) else []
    return known if ours in known else [*known, ours]


def _read_record(file: Path) -> dict[str, Any]:
    stored = read_json(file)
    if not isinstance(stored, dict) or not isinstance(stored.get("settings"), dict):
        raise InputError(f"{file}: expected the settings of a run, got something else")
    return stored


def _continued(path: Path, stored: dict[str, Any], wanted: dict[str, Any], *, endless: bool) -> dict[str, Any]:
    """What run.json holds when the run `wanted` continues the one that is `stored`, or takes its place."""
    if not (path / "state.pt").exists():  # there is nothing to lose, but for a model
        if stored.get("finished"):
            raise InputError(f"{path} holds a finished run without its checkpoint, state.pt: choose another --out")
        return wanted
    grown = _refuse_other_run(path, stored["settings"], wanted["settings"], endless)
    _tell_other_held_out(path, stored.get("held_out"), wanted["held_out"])
    return wanted if grown else stored | {"held_out": wanted["held_out"]}


def _refuse_other_run(path: Path, stored: dict[str, Any], wanted: dict[str, Any], endless: bool) -> bool:
    """Raise `InputError` unless it is the same run; whether it is the same but for a larger number of steps."""
    ours, theirs = _flat(wanted), _flat(stored)
    names = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]  # in one order, unlike a set's
    if not names:
        return False
    longer = names == [STEPS] and (ours.get(STEPS) or 0) > (theirs.get(STEPS) or math.inf)
    if longer and endless:
        return True
    way = f"choose another --out, with --init {path} to go on from its model" if longer else "choose another --out"
    told = _told(names, theirs, ours)
    raise InputError(f"{path} holds another run ({told}): {way}, or ask for the same run")


def _told(names: Sequence[str], theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The first differences of two runs."""
    return "; ".join(f"{name} is {theirs.get(name)} there, {ours.get(name)} here" for name in names[:4])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"recipe.batch": 64, ...}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
