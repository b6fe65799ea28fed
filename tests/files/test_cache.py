"""Laws of the cache of remote objects: whole copies, fetched once a node, never above the bound, none taken in use."""

from __future__ import annotations

import errno
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from objects import Objects, served

from nextscale.errors import InputError
from nextscale.files import cache, remote
from nextscale.files.cache import Cache

LENGTH = 20_000
CONTENT = {f"{number}.tar": random.Random(number).randbytes(LENGTH) for number in range(8)}
READER = """
import random, sys
from pathlib import Path
from nextscale.files import remote
from nextscale.files.cache import Cache
directory, size, seed, *addresses = sys.argv[1:]
dice = random.Random(int(seed))
for address in dice.sample(addresses, len(addresses)):
    with Cache(Path(directory), int(size)).held(remote.find(address)) as path:
        content = path.read_bytes()
    assert content[:4] and len(content) == 20000
    print(address, content[:4].hex(), flush=True)
"""


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    with served(dict(CONTENT)) as found:
        yield found


def held(directory: Path) -> int:
    """Bytes of all files of a cache but its lock, what is being fetched included; some may go meanwhile."""
    total = 0
    for path in directory.glob("*"):
        try:
            total += path.stat().st_size if path.name != cache.LOCK else 0
        except FileNotFoundError:
            continue
    return total


def use(kept: Cache, objects: Objects, *numbers: int) -> list[Path]:
    """The copies of some objects, used one after the other."""
    paths = []
    for number in numbers:
        with kept.held(remote.find(objects.url(f"{number}.tar"))) as path:
            assert path.read_bytes() == objects.content[f"{number}.tar"]
        paths.append(path)
        time.sleep(0.002)  # for dates that differ
    return paths


def test_an_object_is_fetched_once(tmp_path: Path, objects: Objects) -> None:
    """Under a name of its own that ends with the object's."""
    first, second = use(Cache(tmp_path, 10 * LENGTH), objects, 0, 0)
    assert first == second
    assert first.name.endswith("-0.tar")
    assert objects.fetched("0.tar") == 1
    assert {path.name for path in tmp_path.iterdir()} == {first.name, cache.LOCK}


def test_the_copy_used_longest_ago_goes_first(tmp_path: Path, objects: Objects) -> None:
    """Only as many as need be."""
    kept = Cache(tmp_path, 3 * LENGTH)
    zero, one, two, _, three = use(kept, objects, 0, 1, 2, 0, 3)
    assert [path.exists() for path in (zero, one, two, three)] == [True, False, True, True]


def test_a_copy_in_use_stays(tmp_path: Path, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others go instead; when all are in use, the next one waits, and says so at last."""
    kept = Cache(tmp_path, 2 * LENGTH)
    with kept.held(remote.find(objects.url("0.tar"))) as zero:
        use(kept, objects, 1, 2, 3)
        assert zero.read_bytes() == CONTENT["0.tar"]
        with kept.held(remote.find(objects.url("1.tar"))):
            monkeypatch.setattr(cache, "PATIENCE", 0.1)
            with pytest.raises(InputError, match=r"all 40,000 bytes are in use: --cache-size"):
                use(kept, objects, 2)
    assert held(tmp_path) <= 2 * LENGTH
    use(kept, objects, 2)


def test_room_is_waited_for(tmp_path: Path, objects: Objects) -> None:
    """Until a copy is no longer in use."""
    kept = Cache(tmp_path, LENGTH)
    with ThreadPoolExecutor() as pool:
        with kept.held(remote.find(objects.url("0.tar"))):
            waiting = pool.submit(use, kept, objects, 1)
            time.sleep(0.1)
            assert not waiting.done()
        assert waiting.result(timeout=10)[0].exists()


def test_an_object_larger_than_the_cache_is_refused(tmp_path: Path, objects: Objects) -> None:
    """Before a byte is fetched."""
    with pytest.raises(InputError, match=r"a cache that holds .*0.tar, 20,000 bytes, got one of 19,999: --cache-size"):
        use(Cache(tmp_path, LENGTH - 1), objects, 0)
    assert objects.fetched("0.tar") == 0
    assert held(tmp_path) == 0


def test_threads_fetch_an_object_once(tmp_path: Path, objects: Objects) -> None:
    """They wait for the first of them."""
    objects.fault = lambda method, name: ("wait", 0.05) if method == "GET" else None
    kept = Cache(tmp_path, 10 * LENGTH)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: use(kept, objects, 0), range(8)))
    assert objects.fetched("0.tar") == 1


def test_the_bound_holds_at_every_moment(tmp_path: Path, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """While threads fetch eight objects in any order into the room of three, with cuts and errors."""
    monkeypatch.setattr(remote, "TRIES", 40)
    dice, most, end = random.Random(3), [0], threading.Event()
    objects.fault = lambda method, name: dice.choice([None, None, 503, ("cut", dice.randrange(LENGTH))])
    kept = Cache(tmp_path, 3 * LENGTH)

    def look() -> None:
        while not end.is_set():  # files that come and go while they are added up were never there together
            before, total = {*tmp_path.iterdir()}, held(tmp_path)
            most[0] = max(most[0], total if before == {*tmp_path.iterdir()} else 0)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            orders = [random.Random(seed).sample(range(8), 8) for seed in range(4)]
            list(pool.map(lambda order: use(kept, objects, *order), orders))
    finally:
        end.set()
        watcher.join()
    assert LENGTH <= most[0] <= 3 * LENGTH
    assert not list(tmp_path.glob(f"*{cache.PART}"))


def test_a_cut_fetch_leaves_nothing(tmp_path: Path, objects: Objects) -> None:
    """Nor one that the disk did not take, which says so."""
    objects.fault = lambda method, name: 500 if method == "GET" else None
    kept = Cache(tmp_path, 10 * LENGTH)
    with pytest.raises(InputError, match="cannot read"):
        use(kept, objects, 0)
    assert {path.name for path in tmp_path.iterdir()} == {cache.LOCK}


def test_a_full_disk_is_one_line(tmp_path: Path, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves nothing."""

    def full(wanted: object, file: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(remote, "fetch", full)
    with pytest.raises(InputError, match="cannot use the cache .*: No space left on device: a smaller --cache-size"):
        use(Cache(tmp_path, 10 * LENGTH), objects, 0)
    assert {path.name for path in tmp_path.iterdir()} == {cache.LOCK}


def test_a_file_in_the_way_is_one_line(tmp_path: Path, objects: Objects) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot use the cache"):
        use(Cache(tmp_path / "file", 10 * LENGTH), objects, 0)


def test_a_damaged_copy_is_fetched_again(tmp_path: Path, objects: Objects) -> None:
    """One of another length."""
    kept = Cache(tmp_path, 10 * LENGTH)
    (path,) = use(kept, objects, 0)
    path.write_bytes(CONTENT["0.tar"][:-1])
    assert use(kept, objects, 0) == [path]


def test_another_version_is_another_copy(tmp_path: Path, objects: Objects) -> None:
    """And the old one is not given for it."""
    kept = Cache(tmp_path, 10 * LENGTH)
    old = remote.find(objects.url("0.tar"))
    use(kept, objects, 0)
    objects.content["0.tar"] = bytes(LENGTH)
    use(kept, objects, 0)
    with kept.held(old) as path:
        assert path.read_bytes() == CONTENT["0.tar"]


def test_fetching_ahead_waits_for_nobody(tmp_path: Path, objects: Objects) -> None:
    """Another one is at it, or it is there."""
    kept, wanted = Cache(tmp_path, 10 * LENGTH), remote.find(objects.url("0.tar"))
    objects.fault = lambda method, name: ("wait", 0.3) if method == "GET" else None
    with ThreadPoolExecutor() as pool:
        first = pool.submit(kept.fetch, wanted)
        time.sleep(0.1)
        assert kept.fetch(wanted) is False
        assert first.result() is True
    assert kept.fetch(wanted) is True
    assert objects.fetched("0.tar") == 1


def test_a_cache_is_plain_data(tmp_path: Path) -> None:
    """For processes that are spawned."""
    kept = Cache(tmp_path, 5)
    assert pickle.loads(pickle.dumps(kept)) == kept
    with pytest.raises(InputError, match="at least 1 byte"):
        Cache(tmp_path, 0)


def test_the_directory_is_among_the_users_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache().directory == tmp_path / "nextscale" / "remote"


def reader(directory: Path, size: int, seed: int, objects: Objects) -> subprocess.Popen[str]:
    addresses = [objects.url(name) for name in CONTENT]
    command = [sys.executable, "-c", READER, str(directory), str(size), str(seed), *addresses]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_that_are_killed_leave_the_others_well(tmp_path: Path, objects: Objects) -> None:
    """Twenty kills inside of fetches: whoever comes next has whole copies, below the bound, and no rest stays."""
    objects.fault = lambda method, name: ("wait", 0.05) if method == "GET" else None
    size, dice = 3 * LENGTH, random.Random(5)
    for kill in range(20):
        with reader(tmp_path, size, kill, objects) as process:
            assert process.stdout is not None
            process.stdout.readline()  # it is at work
            time.sleep(dice.random() * 0.2)
            process.kill()
        assert held(tmp_path) <= size
    objects.fault = lambda method, name: None
    ends = [reader(tmp_path, size, seed, objects) for seed in range(2)]
    for process in ends:
        lines = process.communicate()[0].splitlines()
        assert process.returncode == 0
        assert sorted(lines) == sorted(f"{objects.url(name)} {CONTENT[name][:4].hex()}" for name in CONTENT)
    assert held(tmp_path) <= size
    assert not list(tmp_path.glob(f"*{cache.PART}"))
