"""Laws of data at addresses: what a run sees is what it would see of the same files here, whatever the network does."""

from __future__ import annotations

import io
import pickle
import random
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from objects import Objects, served
from PIL import Image

from nextscale import data
from nextscale.data import Cache, reading
from nextscale.data.pictures import Split
from nextscale.errors import InputError
from nextscale.files import remote
from nextscale.files.remote import UnreachableError
from nextscale.training.order import batch_indices, batch_of

SHARDS, EACH = 6, 5


def picture(seed: int) -> bytes:
    """Noise of 20x20 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def shard(number: int) -> bytes:
    """Five samples with classes and captions."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for index in range(number * EACH, number * EACH + EACH):
            said = {"png": picture(index), "cls": str(index % 2).encode(), "txt": f"picture {index}".encode()}
            for suffix, content in said.items():
                info = tarfile.TarInfo(f"{index:04}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Of a data set, by their names."""
    return {**{f"pets/a-{n}.tar": shard(n) for n in range(SHARDS)}, "pets/classes.txt": b"zebra\nant\n"}


@pytest.fixture
def here(files: dict[str, bytes], tmp_path: Path) -> Path:
    """The same on this machine."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path / "pets"


@pytest.fixture
def objects(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    """The same on a server."""
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    with served(dict(files)) as found:
        yield found


@pytest.fixture
def cache(files: dict[str, bytes], tmp_path: Path) -> Cache:
    """With room for four of the six shards."""
    return Cache(tmp_path / "cache", 4 * len(files["pets/a-0.tar"]))


def load(source: str | Path, cache: Cache | None = None, *, window: int | None = 2) -> data.DataSet:
    return data.load(str(source), height=16, width=16, captions="own", cache=cache, window=window)


def everything(split: data.Pictures) -> list[object]:
    """All that there is of a split, bit for bit."""
    pictures, labels = split.batch(range(len(split)))
    captions = list(split.captions or ())
    return [split.fingerprint, split.classes, list(split.names), captions, labels.tolist(), pictures.numpy().tobytes()]


@pytest.mark.parametrize("memory", [0, 2**31], ids=["on demand", "in memory"])
def test_shards_elsewhere_are_the_shards_here(
    here: Path, objects: Objects, cache: Cache, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    """Pixels, names, classes of the list beside them, captions, splits and fingerprints."""
    monkeypatch.setattr(reading, "MEMORY", memory)
    there, local = load(objects.url("pets/a-{0..5}.tar"), cache), load(here)
    assert local.classes == ("zebra", "ant")
    for ours, theirs in ((there.train, local.train), (there.validation, local.validation)):
        assert everything(ours) == everything(theirs)
    assert there.held_out == local.held_out


def test_fsspec_gives_the_same(here: Path, files: dict[str, bytes], cache: Cache) -> None:
    """An address of another kind."""
    system = fsspec.filesystem("memory")
    for name, content in files.items():
        system.pipe_file(f"/{name}", content)
    try:
        assert everything(load("memory://pets/a-{0..5}.tar", cache).train) == everything(load(here).train)
    finally:
        system.rm("/pets", recursive=True)


def test_the_start_fetches_each_shard_once(
    objects: Objects, files: dict[str, bytes], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they do not fit into the cache together; the next start takes what is there."""
    monkeypatch.setattr(reading, "MEMORY", 0)
    load(objects.url("pets/a-{0..5}.tar"), cache)
    assert [objects.fetched(f"pets/a-{n}.tar") for n in range(SHARDS)] == [1] * SHARDS


def test_an_epoch_fetches_each_shard_about_once(
    objects: Objects, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last ones of an epoch may be the first of the next; what comes is fetched ahead."""
    monkeypatch.setattr(reading, "MEMORY", 0)
    train = load(objects.url("pets/a-{0..5}.tar"), cache).train
    objects.requests.clear()
    for step in range(-(-3 * len(train) // 4)):
        train.batch(batch_of(train, 4, step, seed=0))
    fetched = sum(objects.fetched(f"pets/a-{n}.tar") for n in range(SHARDS))
    assert 2 * SHARDS <= fetched <= 4 * SHARDS


def test_the_window_after_this_one_is_fetched_meanwhile(
    objects: Objects, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a thread, before a batch asks for it; pickled it still is."""
    monkeypatch.setattr(reading, "MEMORY", 0)
    train = pickle.loads(pickle.dumps(load(objects.url("pets/a-{0..5}.tar"), cache).train))
    assert isinstance(train, Split)
    for path in cache.directory.iterdir():
        path.unlink()
    train.batch(batch_of(train, 1, 0, seed=0))
    assert train.windows is not None
    wait_for(lambda: len(list(cache.directory.glob("*.tar"))) >= 1 + 2)


def wait_for(happens: Callable[[], bool]) -> None:
    """Until it does; ten seconds at most."""
    end = time.monotonic() + 10
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_order_is_the_windows_of_the_same_shards_here(here: Path, objects: Objects, cache: Cache) -> None:
    """The same window is the same order, wherever the shards lie; without one, those here are in any order."""
    there, local, free = load(objects.url("pets/a-{0..5}.tar"), cache), load(here), load(here, window=None)
    for step in range(20):
        assert batch_of(there.train, 4, step, seed=3).equal(batch_of(local.train, 4, step, seed=3))
        assert batch_of(free.train, 4, step, seed=3).equal(batch_indices(len(free.train), 4, step, 3))
    assert free.train.windows is None
    assert load(objects.url("pets/a-{0..5}.tar"), Cache(cache.directory), window=None).train.windows.width == 16


def zipped(folder: Path) -> tuple[Path, str, list[str]]:
    """Where a zip lies, its address, and the names of its files."""
    with zipfile.ZipFile(folder / "pets.zip", "w") as archive:
        for number in range(10):
            archive.writestr(f"{'ab'[number % 2]}/{number}.png", picture(number))
    return folder / "pets.zip", "pets.zip", ["pets.zip"]


def rows(folder: Path) -> tuple[Path, str, list[str]]:
    """The same of two parquet files."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (folder / "rows").mkdir()
    names = [f"rows/train-0000{part}.parquet" for part in range(2)]
    for part, name in enumerate(names):
        column = pyarrow.array([{"bytes": picture(5 * part + n), "path": f"{n}.png"} for n in range(5)])
        parquet.write_table(pyarrow.table({"image": column, "label": [n % 2 for n in range(5)]}), folder / name)
    return folder / "rows", "rows/train-{00000..00001}.parquet", names


@pytest.mark.parametrize("made", [zipped, rows])
def test_what_is_read_at_random_is_fetched_whole(
    tmp_path: Path, objects: Objects, cache: Cache, made: Callable[[Path], tuple[Path, str, list[str]]]
) -> None:
    """To the same fingerprints; what does not fit into the cache is refused."""
    local, address, names = made(tmp_path)
    objects.content.update({name: (tmp_path / name).read_bytes() for name in names})
    there = data.load(objects.url(address), height=16, width=16, cache=cache)
    assert everything(there.train) == everything(data.load(local, height=16, width=16).train)
    with pytest.raises(InputError, match=r"a cache that holds all of .*, got one of 100: --cache-size"):
        data.load(objects.url(address), height=16, width=16, cache=Cache(tmp_path / "small", 100))


def test_a_shard_that_changed_is_refused(objects: Objects, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is needed again; no other picture stands in for those in it."""
    monkeypatch.setattr(reading, "MEMORY", 0)
    loaded = load(objects.url("pets/a-{0..5}.tar"), cache)
    objects.content["pets/a-2.tar"] = shard(7)
    for path in cache.directory.iterdir():
        path.unlink()
    with pytest.raises(UnreachableError, match=r"a-2\.tar: expected the object as it was indexed, got another one"):
        loaded.train.batch(range(len(loaded.train)))
    assert not loaded.unreadable


def test_a_server_that_is_gone_ends_the_run(objects: Objects, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, instead of unreadable pictures."""
    monkeypatch.setattr(reading, "MEMORY", 0)
    loaded = load(objects.url("pets/a-{0..5}.tar"), cache)
    for path in cache.directory.iterdir():
        path.unlink()
    objects.fault = lambda method, name: 503
    with pytest.raises(UnreachableError, match=r"cannot read http://.*tar: HTTP Error 503: .*, 6 times"):
        loaded.train.batch(range(len(loaded.train)))
    assert not loaded.unreadable


def test_faults_on_the_way_change_nothing(
    here: Path, objects: Objects, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors, throttling and cuts, while epochs go through a cache that is too small."""
    monkeypatch.setattr(reading, "MEMORY", 0)
    monkeypatch.setattr(remote, "TRIES", 40)
    dice = random.Random(0)
    objects.fault = lambda method, name: dice.choice([None, None, 500, 429, ("cut", dice.randrange(5000))])
    there, local = load(objects.url("pets/a-{0..5}.tar"), cache).train, load(here).train
    for step in range(12):
        wanted = batch_of(there, 4, step, seed=0)
        for ours, theirs in zip(there.batch(wanted), local.batch(wanted), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pets/", "expected an address of .tar shards, parquet or Arrow files or a zip"),
        ("pets/a.tar.gz", "expected uncompressed .tar shards"),
        ("pets/a-{0..9}.tar", "found nothing at http://.*/pets/a-6.tar"),
        ("pets/a-{0..5}.{tar,zip}", "expected an address of .tar shards"),
        ("pets/not.tar", r"expected a whole, uncompressed tar, got http://.*/pets/not.tar: "),
    ],
)
def test_other_addresses_are_refused(objects: Objects, cache: Cache, name: str, told: str) -> None:
    """And what is wrong is told of the address, not of a file of the cache."""
    objects.content["pets/not.tar"] = b"x" * 2000
    with pytest.raises(InputError, match=told):
        load(objects.url(name), cache)


def test_a_cache_without_room_for_two_windows_is_refused(objects: Objects, cache: Cache) -> None:
    """Rather than fetching the same shards again and again."""
    with pytest.raises(InputError, match="a cache that holds two windows of 3 shards, .*, got one of"):
        load(objects.url("pets/a-{0..5}.tar"), cache, window=3)


@pytest.mark.parametrize("source", ["emoji", "folder"])
def test_windows_are_of_shards_alone(tmp_path: Path, source: str) -> None:
    """Whoever asks for one elsewhere learns that."""
    (tmp_path / "folder").mkdir()
    for number in range(4):
        (tmp_path / "folder" / f"{number}.png").write_bytes(picture(number))
    place = source if source == "emoji" else str(tmp_path / source)
    with pytest.raises(InputError, match=r"window: expected \.tar shards, got"):
        data.load(place, height=16, width=16, window=2)
    with pytest.raises(InputError, match=r"window: expected at least 1 shard, got 0"):
        data.load(place, height=16, width=16, window=0)
