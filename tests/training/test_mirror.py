"""Laws of the mirror: a machine that has nothing else continues bit for bit, whenever the other one was killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch import Tensor, nn
from training.toy import RECIPE, data_set

from nextscale.errors import InputError
from nextscale.files import checkpoint, remote
from nextscale.files.stamps import Stamp
from nextscale.training import mirror as mirrors
from nextscale.training.loop import Health, Length, Rhythm, train
from nextscale.training.mirror import Mirror, Pointer, restore
from nextscale.training.optimization import Outcome

ADDRESS = "memory://bucket/run"
AGAIN = pytest.mark.filterwarnings("ignore:.* was made again from")


@pytest.fixture(autouse=True)
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    """An empty one, in memory."""
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


class Sum:
    """A stage of one number and no work."""

    name, batch = "sum", 1

    def __init__(self, batch: int) -> None:
        self.data, self.recipe, self.settings = data_set(), RECIPE, {"pictures": batch}
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.state = {"model": self.model}

    def prepare(self) -> None:
        pass

    def update(self, step: int, total: int | None) -> Outcome:
        with torch.no_grad():
            self.model.weight += step + 1
        return Outcome({"loss": 1.0}, True)

    def validate(self) -> dict[str, float]:
        return {"sum": self.model.weight.item()}

    def score(self, validation: Mapping[str, float]) -> float:
        return validation["sum"]

    def sound(self) -> bool:
        return True

    def health(self, *told: object) -> Health:
        return Health()

    def pictures(self) -> Tensor:
        return torch.zeros(3, 2, 2)

    def export(self, directory: Path) -> None:
        checkpoint.write_tensors(directory / "sum.safetensors", self.model.state_dict())


def stage(batch: int = 1) -> Any:
    """One about to be trained."""
    return Sum(batch)


def run(stage: Any, out: Path, *, until: int = 6, address: str | None = ADDRESS) -> None:
    """Six steps with a check every second one; left after some of them."""
    events = train(stage, out, Length(steps=6), seed=0, rhythm=Rhythm(checks=3), mirror=address)
    for event in events:
        if event.step == until < 6:
            break
    events.close()


def contents(directory: Path) -> dict[str, bytes]:
    """Files but for logs, by name."""
    files = (path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in files if "tensorboard" not in str(path)
    }


@pytest.mark.slow
@AGAIN
def test_a_new_machine_continues_bit_for_bit(make_stage, tmp_path: Path, left_behind) -> None:
    """From the last checkpoint; and a finished run is finished there, too."""
    run(make_stage(), tmp_path / "undisturbed", address=None)
    run(make_stage(), tmp_path / "first", until=5)
    shutil.rmtree(tmp_path / "first")
    with pytest.warns(UserWarning, match=f"second was made again from {ADDRESS}, at step 4"):
        run(make_stage(), tmp_path / "second")
    assert left_behind(tmp_path / "second") == left_behind(tmp_path / "undisturbed")
    run(make_stage(), tmp_path / "third", until=0)
    assert contents(tmp_path / "third") == contents(tmp_path / "second")


@pytest.mark.slow
def test_whenever_it_is_killed_the_mirror_is_a_checkpoint(
    tmp_path: Path, bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any of the writes and removals that a run makes there: the last one, or the one before, whole."""
    done: list[Callable[[], object]] = []
    states: list[bytes] = []

    def recorded(name: str) -> None:
        real = getattr(remote, name)

        def do(*given: object) -> None:
            first = given[0].read_bytes() if isinstance(given[0], Path) else given[0]
            change = remote.remove if name == "remove" else remote.write
            done.append(lambda: change(*((first,) if name == "remove" else (first, given[1]))))
            if str(given[-1]).endswith("state.pt") and name == "put":
                states.append(first)
            real(*given)

        monkeypatch.setattr(mirrors.remote, name, do)

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "keep", lambda mirror, step: mirror._copy(step, mirrors._snapshot(mirror._directory)))
        for name in ("put", "write", "remove"):
            recorded(name)
        run(stage(), tmp_path / "run")
    monkeypatch.undo()
    assert len(states) == 3
    bucket.store.clear()
    steps = []
    for number, change in enumerate(list(done)):
        change()
        steps.append(restore(ADDRESS, tmp_path / f"{number}") or 0)
        if steps[-1]:
            assert (tmp_path / f"{number}" / "state.pt").read_bytes() in states
            assert json.loads((tmp_path / f"{number}" / "run.json").read_text())["settings"]
    assert steps == sorted(steps)
    assert set(steps) == {0, 2, 4, 6}


def test_what_no_pointer_names_is_removed(tmp_path: Path, bucket) -> None:
    """And what has not changed is not copied again."""
    run(stage(), tmp_path / "run")
    pointer = Pointer.read(ADDRESS)
    assert pointer is not None
    objects = {remote.joined("bucket/run", file["object"]) for file in pointer.files.values()}
    assert {path.lstrip("/") for path in bucket.store} == {*objects, "bucket/run/mirror.json"}
    steps = {file["object"].split("-")[1] for file in pointer.files.values()}
    assert {"0000006"} < steps <= {"0000002", "0000004", "0000006"}  # one of which may have been left out
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".nextscale-")]


def test_a_mirror_is_of_one_run(tmp_path: Path) -> None:
    """Others are refused, whether they are new or have begun."""
    run(stage(), tmp_path / "run", until=2)
    with pytest.raises(InputError, match="the mirror of another run: choose another --mirror"):
        run(stage(batch=2), begun(tmp_path / "other"))
    with pytest.warns(UserWarning, match="made again"), pytest.raises(InputError, match="holds another run"):
        run(stage(batch=2), tmp_path / "new")


def begun(out: Path) -> Path:
    """The directory of a run of two pictures a step."""
    run(stage(batch=2), out, until=2, address=None)
    return out


def test_a_directory_that_is_behind_its_mirror_is_refused(tmp_path: Path) -> None:
    """Rather than doing again, and copying there, what is done; one that is ahead goes on."""
    run(stage(), tmp_path / "run", until=2)
    shutil.copytree(tmp_path / "run", tmp_path / "behind")
    run(stage(), tmp_path / "run", until=4, address=None)
    run(stage(), tmp_path / "run", until=6)
    with pytest.raises(InputError, match=r"behind is at step 2, its mirror .* at step 6: an empty --out"):
        run(stage(), tmp_path / "behind")


def test_other_files_are_not_written_over(tmp_path: Path) -> None:
    """A directory that holds something, and no run."""
    run(stage(), tmp_path / "run", until=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "state.pt").write_text("mine")
    with pytest.raises(InputError, match=r"holds state\.pt, but no run\.json"):
        run(stage(), tmp_path / "full")
    assert contents(tmp_path / "full") == {"state.pt": b"mine"}


def test_a_restoration_that_is_cut_short_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any of its files; nothing counts before state.pt is there, which comes last."""
    run(stage(), tmp_path / "run", until=4)
    real, count = os.replace, len(Pointer.read(ADDRESS).files)  # type: ignore[union-attr]
    for last in range(count):
        left = [last]

        def replace(source: Path, target: Path, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            real(source, target)

        monkeypatch.setattr(mirrors.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            restore(ADDRESS, tmp_path / "again")
        assert not (tmp_path / "again" / "state.pt").exists()
    monkeypatch.undo()
    assert restore(ADDRESS, tmp_path / "again") == 4
    pointer = Pointer.read(ADDRESS)
    assert pointer is not None
    assert all(
        Stamp(**f["stamp"]).fault_inside((tmp_path / "again" / n).parent) is None for n, f in pointer.files.items()
    )


def test_a_damaged_mirror_is_refused(tmp_path: Path, bucket) -> None:
    """An object that is not what was copied, one that is gone, and a pointer that is none."""
    run(stage(), tmp_path / "run", until=2)
    pointer = Pointer.read(ADDRESS)
    assert pointer is not None
    place = f"/bucket/run/{pointer.files['state.pt']['object']}"
    content = bucket.cat_file(place)
    bucket.pipe_file(place, content[:-1] + b"x")
    with pytest.raises(InputError, match=r"state\.pt: expected a file of a run as it was copied, got checksum"):
        restore(ADDRESS, tmp_path / "new")
    bucket.rm_file(place)
    with pytest.raises(InputError, match="found nothing at"):
        restore(ADDRESS, tmp_path / "new")
    bucket.pipe_file("/bucket/run/mirror.json", b"[]")
    with pytest.raises(InputError, match=r"mirror\.json: expected that of a mirror, got something else"):
        restore(ADDRESS, tmp_path / "new")
    assert not contents(tmp_path / "new")


def test_a_bucket_out_of_reach_is_told_and_the_run_goes_on(
    tmp_path: Path, bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the next checkpoint all is copied that is not there."""
    real, down = type(bucket).put_file, [True]

    def put_file(system: fsspec.AbstractFileSystem, source: str, target: str) -> None:
        if down[0]:
            raise ConnectionError("bucket down")
        real(system, source, target)

    monkeypatch.setattr(type(bucket), "put_file", put_file)  # each thread has a system of its own
    with pytest.warns(UserWarning, match="mirror: cannot write memory://.*: bucket down, 6 times; the last checkpoint"):
        run(stage(), tmp_path / "run", until=4)
    down[0] = False
    run(stage(), tmp_path / "run")
    assert restore(ADDRESS, tmp_path / "new") == 6
    assert contents(tmp_path / "new") == contents(tmp_path / "run")


@pytest.mark.parametrize(
    "address", ["https://host/run", "hf://owner/name", "sftp://host/run", "pipe:cat", "runs/mirror"]
)
def test_only_buckets_take_mirrors(tmp_path: Path, address: str) -> None:
    """Where an object is replaced at once."""
    with pytest.raises(InputError, match="expected an address"):
        run(stage(), tmp_path / "run", address=address)
