"""Laws of the token cache: it holds what the tokenizer says, survives kills and finds damage."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from data import noise
from data.noise import CLASSES, HELD_OUT, TRAIN
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import together
from torch import Tensor

from nextscale import MultiScaleVQVAE, Scales
from nextscale.data import DataSet, encoding, tokens
from nextscale.data.reading import OnDemand, Size
from nextscale.data.tokens import CachedTokens, Meta, TokenCache
from nextscale.errors import InputError
from nextscale.files import lock, stamps
from nextscale.machine import distributed

ROWS = 3 * TRAIN + HELD_OUT


@pytest.fixture(scope="module")
def data() -> DataSet:
    return noise.data_set()


@pytest.fixture(scope="module")
def encode(tokenizer: MultiScaleVQVAE) -> Callable[[Tensor], Tensor]:
    return torch.no_grad()(tokenizer.encode)


@pytest.fixture(scope="module")
def meta(tokenizer: MultiScaleVQVAE, data: DataSet) -> Meta:
    return noise.made_of(tokenizer, data)


@pytest.fixture(scope="module")
def finished(data: DataSet, encode, meta: Meta, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache; look, do not touch."""
    directory = tmp_path_factory.mktemp("tokens")
    assert encoding.write(directory, data, encode, meta, batch=4) == 3 * TRAIN + HELD_OUT
    return directory


@pytest.fixture(scope="module")
def cache(finished: Path) -> TokenCache:
    return tokens.load(finished)


@pytest.fixture
def spoilt(finished: Path, tmp_path: Path) -> Path:
    """A finished cache, to be spoilt."""
    return shutil.copytree(finished, tmp_path / "spoilt")


def contents(directory: Path) -> dict[str, bytes]:
    """Every file, those left half written included."""
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


# ---- what it holds ---------------------------------------------------------------------------------------------------


def test_centred_tokens_are_the_tokenizer_s(data: DataSet, encode, cache: TokenCache) -> None:
    """Of both splits, bit for bit, with the labels, in any order and more than once."""
    for pictures, cached in ((data.train, cache.train), (data.validation, cache.validation)):
        indices = [*reversed(range(len(pictures))), 1, 1, -1]
        images, labels = pictures.batch(indices)
        found, found_labels = cached.batch(indices)
        assert torch.equal(found, encode(images))
        assert torch.equal(found_labels, labels)
        assert torch.equal(cached.labels, pictures.labels)
        assert (found.dtype, found_labels.dtype) == (torch.int64, torch.int64)
        assert len(cached) == len(pictures)


def test_every_view_is_the_tokenizer_s(data: DataSet, encode, meta: Meta, cache: TokenCache) -> None:
    """View v of picture i is what `stored_views` says; the first number of a view chooses it."""
    offsets = torch.rand((TRAIN, 3), generator=torch.Generator().manual_seed(meta.seed))
    every = torch.arange(TRAIN)
    for view in range(3):
        seen = encoding.stored_views(offsets, torch.full((TRAIN,), view), flip=True)
        expected = encode(data.train.batch(every, views=seen)[0])
        for number in (view / 3 + 0.01, (view + 1) / 3 - 0.01):
            asked = torch.tensor([number, 0.9, 0.9]).expand(TRAIN, 3)
            assert torch.equal(cache.train.batch(every, views=asked)[0], expected)


def test_held_out_pictures_have_one_view(cache: TokenCache) -> None:
    """Whatever is asked for, it is the centred one."""
    centred, _ = cache.validation.batch([0, 2])
    assert torch.equal(cache.validation.batch([0, 2], views=torch.full((2, 3), 0.999))[0], centred)


def test_what_it_was_made_of_is_told(cache: TokenCache, meta: Meta) -> None:
    """All of it, the names of the classes in their order included."""
    assert cache.meta == meta
    assert cache.classes == cache.train.classes == CLASSES
    assert cache.broken == ()


def test_a_picture_takes_two_bytes_a_token(finished: Path) -> None:
    """Besides the head of the file: 30 tokens in 3 views."""
    file = finished / "train-00000.npy"
    assert np.load(file, mmap_mode="r").dtype == np.uint16
    assert file.stat().st_size - 128 == 2 * 3 * 30 * 2


@given(drawn=st.lists(st.tuples(st.integers(0, TRAIN - 1), st.integers(0, 2)), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_a_batch_is_its_rows_one_by_one(cache: TokenCache, drawn: list[tuple[int, int]]) -> None:
    """Wherever in the files they lie."""
    indices = [index for index, _ in drawn]
    views = torch.tensor([[(view + 0.5) / 3, 0, 0] for _, view in drawn])
    together, labels = cache.train.batch(indices, views=views)
    alone = [cache.train.batch([index], views=row[None]) for index, row in zip(indices, views, strict=True)]
    assert torch.equal(together, torch.cat([found for found, _ in alone]))
    assert torch.equal(labels, torch.cat([label for _, label in alone]))


def test_an_empty_batch_is_empty(cache: TokenCache) -> None:
    """As of pictures."""
    assert [tuple(part.shape) for part in cache.train.batch([])] == [(0, 30), (0,)]


@pytest.mark.parametrize("index", [TRAIN, -TRAIN - 1, 10**9])
def test_an_index_out_of_range_is_an_index_error(cache: TokenCache, index: int) -> None:
    """As in lists, and as with pictures."""
    with pytest.raises(IndexError):
        cache.train.batch([0, index])


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (3,)])
def test_views_of_another_shape_are_refused(cache: TokenCache, shape: tuple[int, ...]) -> None:
    """One row of three a picture."""
    with pytest.raises(InputError, match=r"views of shape \(3, 3\), got \("):
        cache.train.batch([0, 1, 2], views=torch.zeros(shape))


def test_all_of_16_bits_is_kept(data: DataSet, meta: Meta, tmp_path: Path) -> None:
    """The last code of the largest codebook comes back as it went in."""
    most = dataclasses.replace(meta, codebook_size=2**16)
    encoding.write(tmp_path, data, lambda images: torch.full((len(images), 30), 65535), most)
    assert (tokens.load(tmp_path).train.batch([3])[0] == 65535).all()


# ---- views -----------------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 40), view=st.integers(0, 500), flip=st.booleans(), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_views_are_such_as_pictures_take(count: int, view: int, flip: bool, seed: int) -> None:
    """In [0, 1); the first one centred; none mirrored that was not asked for."""
    offsets = torch.rand((count, 3), generator=torch.Generator().manual_seed(seed))
    seen = encoding.stored_views(offsets, torch.full((count,), view), flip=flip)
    assert (seen.shape, seen.dtype) == ((count, 3), torch.float32)
    assert 0 <= seen.min() <= seen.max() < 1
    if view == 0:
        assert torch.equal(seen, torch.tensor([[0.5, 0.5, 0.0]]).expand(count, 3))
    assert flip or not seen[:, 2].any()


def test_views_are_spread_over_a_picture_and_over_pictures() -> None:
    """Of eight crops of one picture some lie in each quarter; half are mirrored; no two pictures see the same."""
    offsets = torch.rand((50, 3), generator=torch.Generator().manual_seed(0))
    seen = torch.stack([encoding.stored_views(offsets, torch.full((50,), v), flip=True) for v in range(1, 9)])
    quarters = 2 * (seen[..., 0] >= 0.5) + (seen[..., 1] >= 0.5)
    assert all(quarters[:, picture].unique().numel() == 4 for picture in range(50))
    assert ((seen[..., 2] >= 0.5).sum(dim=0) == 4).all()
    assert seen[0].unique(dim=0).shape == (50, 3)


# ---- cut short -------------------------------------------------------------------------------------------------------


class KilledError(Exception):
    """In place of SIGKILL, where only the moment counts."""


@pytest.mark.parametrize("calls", [0, 1, 2, 5, 9, 10])
def test_what_is_cut_short_goes_on_to_the_same_files(
    data: DataSet, encode, meta: Meta, finished: Path, tmp_path: Path, calls: int
) -> None:
    """And does no more than what was left."""
    left = iter(range(calls))

    def until_killed(images: Tensor) -> Tensor:
        if next(left, None) is None:
            raise KilledError
        return encode(images)

    with pytest.raises(KilledError):
        encoding.write(tmp_path, data, until_killed, meta, batch=4)
    with pytest.raises(InputError, match="expected a finished token cache"):
        tokens.load(tmp_path)
    kept = len(list((tmp_path / "parts").glob("*.json")))
    assert encoding.write(tmp_path, data, encode, meta, batch=4) == ROWS - 6 * kept
    assert contents(tmp_path) == contents(finished)


def test_encoders_whose_torchrun_is_gone_end_and_are_gone_on_with(
    data: DataSet, encode, meta: Meta, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the batch that they are at; the lock goes with them."""
    seen: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "orphaned", lambda: len(seen) == 3)
        with pytest.raises(KeyboardInterrupt):
            encoding.write(tmp_path, data, lambda images: (seen.append(0), encode(images))[1], meta, batch=4)
    assert len(seen) == 3
    assert not (tmp_path / lock.NAME).exists()
    encoding.write(tmp_path, data, encode, meta, batch=4)
    assert contents(tmp_path) == contents(finished)


def states(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """What a kill may leave: any file missing, and any file half written beside where it will be."""
    for number, file in enumerate(sorted(file for file in finished.rglob("*") if file.is_file())):
        for half in (False, True):
            left = shutil.copytree(finished, tmp_path / f"{number} {half}")
            name = left / file.relative_to(finished)
            if half:
                (left / lock.NAME).write_text('{"words": ["0123456789abcdef"]}')
                (name.parent / ".nextscale-0123456789abcdef-7-3").mkdir()
                (name.parent / ".nextscale-0123456789abcdef-7-3" / name.name).write_bytes(b"half")
            name.unlink()
            yield left


@pytest.mark.slow
def test_a_kill_at_any_write_is_mended(data: DataSet, encode, meta: Meta, finished: Path, tmp_path: Path) -> None:
    """The files of a finished cache come back, and nothing else stays."""
    for left in states(finished, tmp_path):
        encoding.write(left, data, encode, meta, batch=4)
        assert contents(left) == contents(finished)


def test_a_finished_cache_is_left_alone(data: DataSet, meta: Meta, spoilt: Path) -> None:
    """Nothing is encoded, no file is written."""
    before = {file: file.stat().st_mtime_ns for file in spoilt.rglob("*")}

    def never(images: Tensor) -> Tensor:
        raise AssertionError

    assert encoding.write(spoilt, data, never, meta) == 0
    assert {file: file.stat().st_mtime_ns for file in spoilt.rglob("*")} == before


def test_progress_runs_from_what_is_there_to_all(data: DataSet, encode, meta: Meta, spoilt: Path) -> None:
    """Rows of all files; of a batch of four, all three views of one picture."""
    (spoilt / "train-00001.npy").unlink()
    told: list[tuple[int, int]] = []
    encoding.write(spoilt, data, encode, meta, batch=4, progress=lambda *figures: told.append(figures))
    assert told == [(ROWS - 3, ROWS), (ROWS, ROWS)]


def test_another_cache_is_refused_with_the_difference(data: DataSet, encode, meta: Meta, spoilt: Path) -> None:
    """And left as it is."""
    before = contents(spoilt)
    other = dataclasses.replace(meta, seed=5, scales=Scales([1, 2, 4]))
    with pytest.raises(InputError, match=r"another token cache \(scales is .*; seed is 4 there, 5 here\)"):
        encoding.write(spoilt, data, encode, other)
    assert contents(spoilt) == before


def test_before_its_first_file_a_cache_may_become_another(data: DataSet, encode, meta: Meta, tmp_path: Path) -> None:
    """There is nothing to lose."""

    def stopped(images: Tensor) -> Tensor:
        raise KilledError

    with pytest.raises(KilledError):
        encoding.write(tmp_path, data, stopped, meta)
    encoding.write(tmp_path, data, encode, dataclasses.replace(meta, views=1, flip=False))
    assert tokens.load(tmp_path).meta.views == 1


def test_two_processes_make_the_files_of_one(finished: Path, tmp_path: Path) -> None:
    """Each its share, and a file that one of them finds finished is kept."""
    done = together(Path(__file__).with_name("two_processes.py"), tmp_path)
    assert done.returncode == 0, done.stderr
    encoded = [int((tmp_path / f"rank-{rank}.txt").read_text()) for rank in (0, 1)]
    assert min(encoded) > 0
    assert sum(encoded) == ROWS
    assert contents(tmp_path / "tokens") == contents(finished)


# ---- damage and mistakes ---------------------------------------------------------------------------------------------


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("spoil", [flip_a_bit, halve, Path.unlink, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("name", ["train-00001.npy", "validation-00000.npy", "train-labels.npy"])
def test_damage_is_found_and_mended(
    data: DataSet, encode, meta: Meta, finished: Path, spoilt: Path, spoil: Callable[[Path], object], name: str
) -> None:
    """One line that names the file; encoding once more makes that file alone."""
    spoil(spoilt / name)
    with pytest.raises(InputError, match=f"{name}: expected") as caught:
        tokens.load(spoilt)
    assert "\n" not in str(caught.value)
    encoding.write(spoilt, data, encode, meta, batch=4)
    assert contents(spoilt) == contents(finished)
    tokens.load(spoilt)


@pytest.mark.parametrize("spoil", [Path.unlink, halve, lambda file: file.write_text("[]")])
def test_an_index_is_mended_too(
    data: DataSet, encode, meta: Meta, finished: Path, spoilt: Path, spoil: Callable[[Path], object]
) -> None:
    """The files tell what they are of; another cache's are not taken for one's own, nor written over."""
    spoil(spoilt / "tokens.json")
    before = contents(spoilt)
    with pytest.raises(InputError, match=f"^{spoilt} holds another token cache, which lost its tokens.json"):
        encoding.write(spoilt, data, encode, dataclasses.replace(meta, tokenizer="0123456789abcdef"))
    assert contents(spoilt) == before
    assert encoding.write(spoilt, data, encode, meta, batch=4) == 0
    assert contents(spoilt) == contents(finished)


def test_a_directory_of_something_else_is_refused(data: DataSet, encode, meta: Meta, tmp_path: Path) -> None:
    """Such as that of the pictures; hidden files do not count."""
    (tmp_path / ".notes").touch()
    encoding.write(tmp_path, data, encode, meta)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    (tmp_path / "cat.png").touch()
    with pytest.raises(InputError, match="expected a new or empty directory, or this token cache"):
        encoding.write(tmp_path, data, encode, meta)
    assert [file.name for file in tmp_path.iterdir()] == ["cat.png"]


def test_without_verifying_sizes_are_compared_all_the_same(spoilt: Path) -> None:
    """A changed bit passes, a cut file does not."""
    flip_a_bit(spoilt / "train-00001.npy")
    tokens.load(spoilt, verify=False)
    halve(spoilt / "train-00001.npy")
    with pytest.raises(InputError, match="train-00001.npy: expected"):
        tokens.load(spoilt, verify=False)


def test_verifying_tells_how_far_it_is(finished: Path) -> None:
    """Over the files: six of tokens and one of labels to train on, and two held out."""
    told: list[tuple[int, int]] = []
    tokens.load(finished, progress=lambda *figures: told.append(figures))
    assert told == [(number, 9) for number in range(1, 10)]


def test_another_tokenizer_is_refused(finished: Path, meta: Meta) -> None:
    """In one line that names both; its own is welcome."""
    tokens.load(finished, tokenizer=meta.tokenizer)
    with pytest.raises(InputError, match=f"tokenizer 0123456789abcdef, got those of tokenizer {meta.tokenizer}") as e:
        tokens.load(finished, tokenizer="0123456789abcdef")
    assert "\n" not in str(e.value)


def change(**changes: object) -> Callable[[dict], object]:
    return lambda index: index.update(changes)


@pytest.mark.parametrize(
    "spoil",
    [
        change(settings=None),
        change(settings={}),
        change(files={}),
        change(files={"train": [], "validation": []}),
        lambda index: index.pop("finished"),
        lambda index: index.pop("classes"),
        lambda index: index["settings"].pop("seed"),
        lambda index: index["settings"].update(views="3"),
        lambda index: index["settings"].update(extra=3),
        lambda index: index["files"]["train"][1].pop("crc32"),
    ],
)
def test_a_spoilt_index_is_one_line(spoilt: Path, spoil: Callable[[dict], object]) -> None:
    """Whatever is missing."""
    index = json.loads((spoilt / "tokens.json").read_text())
    spoil(index)
    (spoilt / "tokens.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="tokens.json: expected the index of a token cache"):
        tokens.load(spoilt)


def test_files_that_contradict_the_index_are_refused(spoilt: Path) -> None:
    """Checksums may fit what does not belong there."""
    index = json.loads((spoilt / "tokens.json").read_text())
    index["files"]["train"].pop()
    (spoilt / "tokens.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"expected train tokens of shape \(pictures, 3, 30\), got others"):
        tokens.load(spoilt)


def test_no_pickle_is_read(spoilt: Path) -> None:
    """Not even one that the index vouches for."""
    index = json.loads((spoilt / "tokens.json").read_text())
    file = spoilt / "train-00000.npy"
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    index["files"]["train"][1].update(bytes=file.stat().st_size, crc32=stamps.checksum(file))
    (spoilt / "tokens.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="train-00000.npy: expected"):
        tokens.load(spoilt)


def test_what_is_no_cache_is_told_apart(finished: Path, tmp_path: Path) -> None:
    """By its tokens.json."""
    assert tokens.is_cache(finished)
    assert not tokens.is_cache(tmp_path)
    assert not tokens.is_cache("emoji")
    with pytest.raises(InputError, match="expected a token cache"):
        tokens.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"codebook_size": 65537}, "1 .. 65536 codes.*got 65537"),
        ({"views": 0}, "views: expected at least 1, got 0"),
        ({"shard": 0}, "shard: expected at least 1, got 0"),
        ({"views": 1}, "flip: expected with 2 views or more"),
    ],
)
def test_what_cannot_be_is_refused(meta: Meta, changes: dict[str, int], told: str) -> None:
    """Before anything is made."""
    with pytest.raises(InputError, match=told):
        dataclasses.replace(meta, **changes)


def test_a_full_disk_leaves_the_finished_files(
    data: DataSet, encode, meta: Meta, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, and the same work goes on once there is room."""
    room = iter(range(7))
    write_bytes = Path.write_bytes

    def until_full(path: Path, content: bytes) -> int:
        if next(room, None) is None:
            raise OSError(28, "No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", until_full)
    with pytest.raises(InputError, match="cannot write .*No space left on device"):
        encoding.write(tmp_path, data, encode, meta, batch=4)
    monkeypatch.undo()
    assert len(list((tmp_path / "parts").glob("*.json"))) == 3
    encoding.write(tmp_path, data, encode, meta, batch=4)
    assert contents(tmp_path) == contents(finished)


# ---- pictures that break ---------------------------------------------------------------------------------------------


def test_broken_pictures_are_replaced_and_named(data: DataSet, encode, meta: Meta, tmp_path: Path) -> None:
    """As the data set replaces them, label included; the names survive a kill and are told by the cache."""
    broken = ["known-before"]

    def fetch(wanted: list[int]) -> tuple[list[int], list[Tensor]]:
        broken.extend("train-4" for index in wanted if index == 4)
        return data.train.fetch([5 if index == 4 else index for index in wanted])

    train = dataclasses.replace(data.train, fetch=fetch)
    with_broken = dataclasses.replace(data, train=train, unreadable=broken)
    encoding.write(tmp_path, with_broken, encode, meta, batch=4)
    del broken[1:]
    (tmp_path / "train-00000.npy").unlink()
    encoding.write(tmp_path, with_broken, encode, meta, batch=4)
    cached = tokens.load(tmp_path)
    assert cached.broken == ("known-before", "train-4")
    assert cached.train.labels[4] == data.train.labels[5]
    assert torch.equal(cached.train.batch([4])[0], cached.train.batch([5])[0])


# ---- telling caches apart --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fleeting:
    """A picture of one level of grey, that can be opened so many times and is then gone."""

    label: int
    opened: list[int]
    lasts: int

    name = "fleeting.png"
    held_out = False

    def open(self) -> BinaryIO:
        self.opened.append(1)
        if len(self.opened) > self.lasts:
            raise FileNotFoundError(2, "gone")
        content = io.BytesIO()
        Image.new("L", (9, 9), 10 * self.label).save(content, "PNG")
        return io.BytesIO(content.getvalue())


@pytest.mark.parametrize("batch", [1, 4, 64])
@pytest.mark.parametrize("lasts", range(4))
def test_all_views_of_a_picture_and_its_label_are_one_picture_s(
    meta: Meta, tmp_path: Path, batch: int, lasts: int
) -> None:
    """A picture that is lost after so many looks is told by its grey: three views, one grey, and the label of that."""
    items = [Fleeting(label, [], lasts if label == 2 else 99) for label in range(5)]
    size = Size(height=8, width=8)
    fetch = OnDemand(items=items, size=size, report=lambda name, why: None)
    train = dataclasses.replace(noise.split("train", 5), labels=torch.arange(5), fetch=fetch)
    data = dataclasses.replace(noise.data_set(), train=train)

    def grey(images: Tensor) -> Tensor:
        level = ((images[:, 0, 0, 0] + 1) * 127.5 / 10).round().long().clamp(0, 63)
        return level[:, None].expand(-1, meta.scales.total)

    encoding.write(tmp_path, data, grey, dataclasses.replace(meta, data=train.fingerprint, shard=30), batch=batch)
    cached = tokens.load(tmp_path).train
    views = torch.tensor([[(view + 0.5) / 3, 0, 0] for view in range(3)])
    for index in range(5):
        tokens_3L, label_3 = cached.batch([index] * 3, views=views)
        assert tokens_3L.unique().tolist() == label_3.unique().tolist()


def test_fingerprints_tell_splits_and_caches_apart(
    data: DataSet, encode, meta: Meta, cache: TokenCache, tmp_path
) -> None:
    """Other views, another tokenizer or other labels are another fingerprint; the same cache again is the same one."""
    again = tmp_path / "again"
    encoding.write(again, data, encode, meta, batch=4)
    assert tokens.load(again).train.fingerprint == cache.train.fingerprint
    encoding.write(tmp_path / "other", data, encode, dataclasses.replace(meta, seed=5))
    other = tokens.load(tmp_path / "other")
    assert len({split.fingerprint for split in (cache.train, cache.validation, other.train)}) == 3


def test_no_random_numbers_are_drawn(data: DataSet, encode, meta: Meta, untouched, tmp_path: Path) -> None:
    """Torch's own are neither used nor changed, in writing and in reading."""
    with untouched():
        encoding.write(tmp_path, data, encode, meta)
        tokens.load(tmp_path).train.batch([1, 2], views=torch.rand(2, 3, generator=torch.Generator()))


def test_files_are_mapped_and_not_read(cache: TokenCache) -> None:
    """Tokens stay in the file until they are looked at."""
    assert isinstance(cache.train, CachedTokens)
    assert all(isinstance(shard.base, np.memmap) and shard.dtype == np.uint16 for shard in cache.train.shards)
