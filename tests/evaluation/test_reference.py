"""Laws of references: whatever pictures come from, what is seen is the same, once; a cache is never an obstacle."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from nextscale import data, features, images
from nextscale.data import Pictures
from nextscale.data.pictures import Split
from nextscale.errors import InputError
from nextscale.evaluation import reference, samples
from nextscale.evaluation.card import INCEPTION
from nextscale.evaluation.gathering import kept
from nextscale.evaluation.reference import Reference, ReferenceFeatures
from nextscale.evaluation.samples import Statistics
from nextscale.evaluation.statistics import Gaussian, frechet_distance
from nextscale.features import FeatureNetwork


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left in the home of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path, levels: Tensor) -> Path:
    """The 24 pictures as files, in the order of their names."""
    for index, picture in enumerate(levels):
        images.save(tmp_path / "pictures" / f"{index:02}.png", images.from_uint8(picture))
    return tmp_path / "pictures"


@pytest.fixture
def file(tmp_path: Path, levels: Tensor) -> Path:
    """The 24 pictures as ADM's samples."""
    samples.write(tmp_path / "samples.npz", [levels], count=24, labels=[index % 3 for index in range(24)])
    return tmp_path / "samples.npz"


def same(one: ReferenceFeatures, other: ReferenceFeatures) -> bool:
    """To the last bit."""
    assert one.features is not None
    assert other.features is not None
    assert one.spatial is not None
    assert other.spatial is not None
    pairs = zip(
        (one.features, *one.gaussian, *one.spatial), (other.features, *other.gaussian, *other.spatial), strict=True
    )
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


class Counting:
    """A split that counts how often it was asked."""

    def __init__(self, split: Pictures) -> None:
        self.split, self.asked = split, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.split, name)

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Any, **views: Any) -> tuple[Tensor, Tensor]:
        self.asked += 1
        return self.split.batch(indices, **views)


# ---- where pictures come from ----------------------------------------------------------------------------------------


def test_split_folder_and_samples_of_the_same_pictures_are_seen_alike(
    split: Split, folder: Path, file: Path, glance: FeatureNetwork
) -> None:
    """To the last bit, though not under the same fingerprint."""
    found = [reference.of_split(split, name="split"), reference.of_folder(folder, size=(8, 8)), reference.of_file(file)]
    seen = [each.features(glance) for each in found]
    assert same(seen[0], seen[1])
    assert same(seen[0], seen[2])
    assert [(each.count, each.size) for each in seen] == [(24, (8, 8))] * 3
    assert len({each.fingerprint for each in seen}) == 3
    assert [each.name for each in seen] == ["split", str(folder), str(file)]


@pytest.mark.slow
def test_names_find_their_reference(folder: Path, file: Path) -> None:
    """`.npz`, a folder taken whole, the embedded set and its splits."""
    emoji = data.load("emoji", height=16, width=16)
    expected = {
        (str(file), None): reference.of_file(file).fingerprint,
        (str(folder), None): reference.of_folder(folder, size=(16, 16)).fingerprint,
        (str(folder), "train"): data.load(folder, height=16, width=16).train.fingerprint,
        ("emoji", None): emoji.train.fingerprint,
        ("emoji", "train"): emoji.train.fingerprint,
        ("emoji", "validation"): emoji.validation.fingerprint,
    }
    for (source, split), fingerprint in expected.items():
        assert reference.load(source, size=(16, 16), split=split).fingerprint == fingerprint  # type: ignore[arg-type]


def test_a_reference_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    """A file, a folder, and a folder without pictures."""
    (tmp_path / "empty").mkdir()
    for source, told in (("x.npz", "found none"), ("x", "found nothing at"), ("empty", "found none")):
        with pytest.raises(InputError, match=told):
            reference.load(tmp_path / source, size=(8, 8))


def test_a_split_without_pictures_is_refused(make_split: Callable[[Tensor], Split]) -> None:
    """It has nothing to compare with."""
    with pytest.raises(InputError, match="nothing: expected at least one picture, got none"):
        reference.of_split(make_split(torch.zeros(0, 3, 8, 8, dtype=torch.uint8)), name="nothing")


def test_splits_are_no_classes(tmp_path: Path) -> None:
    """A folder taken whole that holds them has the classes inside them."""
    picture = torch.zeros(3, 8, 8)
    for number, name in enumerate(["train/dog/1", "train/cat/2", "val/dog/3", "val/dog/4"]):
        images.save(tmp_path / f"{name}.png", picture + number / 9)
    found = reference.of_folder(tmp_path, size=(8, 8))
    assert found.classes == ("cat", "dog")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 1, 1]


def test_classes_are_numbered_as_the_model_s(tmp_path: Path) -> None:
    """By name: ten comes after nine in a table, and after one among folders. Other names keep their numbers."""
    for name in ("0", "1", "10", "2"):
        images.save(tmp_path / name / "picture.png", torch.zeros(3, 8, 8))
    found = reference.of_folder(tmp_path, size=(8, 8))
    for classes, labels in ((("0", "1", "2", "10"), [0, 1, 3, 2]), (("a", "b", "c", "d"), [0, 1, 2, 3])):
        ordered = found.ordered(classes)
        assert ordered.labels is not None
        assert ordered.labels.tolist() == labels
        assert (ordered.fingerprint, ordered.count) == (found.fingerprint, found.count)


def test_labels_stay_with_their_features(
    split: Split, file: Path, folder: Path, glance: FeatureNetwork, levels: Tensor
) -> None:
    """Of a split and of samples their own, of a folder the folders in it; of loose pictures there are none."""
    for index, picture in enumerate(levels[:6]):
        images.save(folder.parent / "classes" / "ba"[index % 2] / "deep" / f"{index}.png", images.from_uint8(picture))
    found = {
        reference.of_split(split, name="split"): [0] * 24,
        reference.of_file(file): [0, 1, 2] * 8,
        reference.of_folder(folder.parent / "classes", size=(8, 8)): [0, 0, 0, 1, 1, 1],
        reference.of_folder(folder, size=(8, 8)): None,
    }
    for each, labels in found.items():
        seen = each.features(glance)
        assert (seen.labels.tolist() if seen.labels is not None else None) == labels
    few = reference.of_file(file).features(glance, keep=5)
    assert few.labels is not None
    assert few.labels.tolist() == (kept(24, 5) % 3).tolist()


def test_pictures_of_a_folder_are_brought_to_one_size(tmp_path: Path, glance: FeatureNetwork) -> None:
    """Covered and cropped; those that have it stay as they are."""
    for height, width in ((8, 8), (16, 24), (5, 7)):
        images.save(tmp_path / "odd" / f"{height}.png", torch.zeros(3, height, width))
    seen = reference.of_folder(tmp_path / "odd", size=(8, 8)).features(glance)
    assert (seen.count, seen.size) == (3, (8, 8))


def test_a_damaged_picture_is_named(folder: Path, glance: FeatureNetwork) -> None:
    """A reference with holes would be another one."""
    (folder / "07.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="07.png"):
        reference.of_folder(folder, size=(8, 8)).features(glance)


def test_damaged_pictures_may_be_left_out_and_are_named(folder: Path, glance: FeatureNetwork) -> None:
    """As many as are allowed: the rest is a folder without them, and says so."""
    whole = reference.of_folder(folder, size=(8, 8))
    (folder / "07.png").write_bytes(b"no picture")
    named: list[tuple[str, str]] = []
    found = reference.load(folder, size=(8, 8), max_broken=0.1, broken=lambda *each: named.append(each))
    assert [name for name, _ in named] == ["07.png"]
    assert named[0][1]
    assert found.told[-1] == "1 pictures cannot be read and are left out"
    assert found.features(glance).count == whole.count - 1
    (folder / "07.png").unlink()
    assert found.fingerprint == reference.of_folder(folder, size=(8, 8)).fingerprint


@pytest.mark.parametrize("asked", [{"max_broken": 0.01}, {"broken": lambda name, why: None}], ids=["share", "list"])
def test_more_damaged_pictures_than_allowed_are_refused(folder: Path, asked: dict[str, Any]) -> None:
    """At once, with their number and the first; a list alone allows none."""
    for name in ("07.png", "05.png"):
        (folder / name).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"unreadable pictures in .*, got 2 of \d+; the first: 05.png"):
        reference.load(folder, size=(8, 8), **asked)


def test_unreadable_pictures_of_a_split_are_told(folder: Path) -> None:
    """A data set bears with 1 % by itself; of more it is refused unless that is allowed."""
    (folder / "07.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="at most 1.0% unreadable"):
        reference.load(folder, size=(8, 8), split="train")
    found = reference.load(folder, size=(8, 8), split="train", max_broken=0.5)
    assert found.told[-1] == "1 pictures cannot be read and are left out"


def test_progress_is_told(split: Split, glance: FeatureNetwork) -> None:
    """After each batch."""
    told: list[tuple[int, int]] = []
    reference.of_split(split, name="split").features(glance, batch=10, progress=lambda *now: told.append(now))
    assert told == [(10, 24), (20, 24), (24, 24)]


def test_batches_do_not_matter(split: Split, glance: FeatureNetwork, tmp_path: Path) -> None:
    """1e-6."""
    found = reference.of_split(split, name="split")
    one, other = (found.features(glance, batch=n, cache=tmp_path / str(n)) for n in (24, 5))
    for ours, theirs in zip((one.features, *one.gaussian), (other.features, *other.gaussian), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert frechet_distance(one.gaussian, other.gaussian) == pytest.approx(0, abs=1e-9)


# ---- stored statistics -----------------------------------------------------------------------------------------------


def stored_in(path: Path, seen: ReferenceFeatures, network: str | None = None) -> Reference:
    samples.write_statistics(path, Statistics(seen.gaussian, seen.spatial, network))
    return reference.of_file(path)


def test_statistics_are_what_they_were_stored_as(split: Split, glance: FeatureNetwork, tmp_path: Path) -> None:
    """Their Gaussians; no features, and it is not known of how many pictures they are."""
    seen = reference.of_split(split, name="split").features(glance)
    for network in (None, reference.identity(glance)):
        back = stored_in(tmp_path / "s.npz", seen, network).features(glance)
        assert (back.features, back.labels, back.count, back.size) == (None, None, None, None)
        assert back.spatial is not None
        assert seen.spatial is not None
        assert frechet_distance(back.gaussian, seen.gaussian) == pytest.approx(0, abs=1e-9)
        assert frechet_distance(back.spatial, seen.spatial) == pytest.approx(0, abs=1e-9)


def test_statistics_of_another_network_are_refused(split: Split, glance: FeatureNetwork, tmp_path: Path) -> None:
    """By their number of features, or by the name that our files carry, as at another size."""
    seen = reference.of_split(split, name="split").features(glance)
    other = stored_in(tmp_path / "other.npz", seen, "Glance 0123456789abcdef 16")
    with pytest.raises(InputError, match=r"statistics of 7 features \(Glance 0123456789abcdef 8\), got Glance .* 16"):
        other.features(glance)
    np.savez(tmp_path / "five.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(InputError, match=r"statistics of 7 features \(Glance .* 8\), got those of 5"):
        reference.of_file(tmp_path / "five.npz").features(glance)


@pytest.mark.slow
def test_published_statistics_are_inceptions_alone(tmp_path: Path) -> None:
    """They do not say so, and other networks have 2048 features too."""
    np.savez(tmp_path / "published.npz", mu=np.zeros(2048, dtype=np.float32), sigma=np.eye(2048, dtype=np.float32))
    published = reference.of_file(tmp_path / "published.npz")
    module = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3, 2048))
    other = features.of_module(module, name="R", side=8)
    with pytest.raises(InputError, match="of 2048 features .*, got those of 2048 that do not say whose they are"):
        published.features(other)
    other.name = INCEPTION
    assert published.features(other).gaussian.mean.shape == (2048,)


def test_spatial_statistics_of_another_map_are_left_out(glance: FeatureNetwork, tmp_path: Path) -> None:
    """The others stay."""
    np.savez(tmp_path / "s.npz", mu=np.zeros(7), sigma=np.eye(7), mu_s=np.zeros(5), sigma_s=np.eye(5))
    seen = reference.of_file(tmp_path / "s.npz").features(glance)
    assert seen.spatial is None
    assert torch.equal(seen.gaussian.covariance, torch.eye(7, dtype=torch.float64))


def test_statistics_beside_samples_are_of_more_pictures(levels: Tensor, glance: FeatureNetwork, tmp_path: Path) -> None:
    """As in ADM's files: they give the Gaussian, the samples the features; of another network, samples give both."""
    pictures = levels.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "both.npz", arr_0=pictures, mu=np.full(7, 3.0), sigma=np.eye(7))
    np.savez(tmp_path / "other.npz", arr_0=pictures, mu=np.full(5, 3.0), sigma=np.eye(5))
    both, other = (reference.of_file(tmp_path / name).features(glance) for name in ("both.npz", "other.npz"))
    assert both.gaussian.mean.tolist() == [3.0] * 7
    assert (both.count, both.spatial, both.size) == (None, None, (8, 8))
    assert both.features is not None
    assert other.features is not None
    assert torch.equal(both.features, other.features)
    assert other.count == 24
    torch.testing.assert_close(other.gaussian.mean, other.features.double().mean(dim=0))


def test_a_file_of_neither_is_refused(tmp_path: Path) -> None:
    """With what was found."""
    np.savez(tmp_path / "s.npz", weights=np.zeros(3))
    with pytest.raises(InputError, match="expected samples arr_0, or statistics mu and sigma, found weights"):
        reference.of_file(tmp_path / "s.npz")


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_pictures_are_looked_at_once(split: Split, glance: FeatureNetwork, tmp_path: Path) -> None:
    """And are the same from the cache, whatever they are called by then."""
    pictures = Counting(split)
    found = reference.of_split(pictures, name="first")
    first, asked = found.features(glance, cache=tmp_path / "here"), pictures.asked
    again = reference.of_split(split, name="again").features(glance, cache=tmp_path / "here")
    found.features(glance, batch=3, cache=tmp_path / "here")
    assert pictures.asked == asked
    assert same(first, again)
    assert (again.name, again.count, again.size) == ("again", 24, (8, 8))
    assert [file.suffix for file in (tmp_path / "here").iterdir()] == [".safetensors"]


def test_whatever_changes_features_changes_their_place(
    split: Split, make_split: Callable[[Tensor], Split], levels: Tensor, glance: FeatureNetwork, folder: Path
) -> None:
    """Pictures, network, its weights, its side, how many are kept."""

    def like(**changed: Any) -> FeatureNetwork:
        return type("Other", (type(glance),), changed)()

    found = reference.of_split(split, name="split")
    one = folder / "00.png"
    keys = [found.key(glance), found.key(glance, keep=9)]
    keys += [found.key(like(**change)) for change in ({"name": "x"}, {"fingerprint": "x"}, {"side": 9})]
    keys += [reference.of_folder(folder, size=size).key(glance) for size in ((8, 8), (8, 9))]
    images.save(one, images.from_uint8(levels[1]))
    keys.append(reference.of_folder(folder, size=(8, 8)).key(glance))
    one.rename(folder / "zz.png")
    keys.append(reference.of_folder(folder, size=(8, 8)).key(glance))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "bit", "other", "folder"])
def test_a_damaged_cache_is_made_again(split: Split, glance: FeatureNetwork, tmp_path: Path, damage: str) -> None:
    """Cut short, not ours, or with one bit wrong: it is no error, and afterwards it is whole (but for a folder)."""
    pictures = Counting(split)
    found = reference.of_split(pictures, name="split")
    right = found.features(glance, cache=tmp_path / "here")
    (file,) = (tmp_path / "here").iterdir()
    whole = file.read_bytes()
    spoil(file, whole, damage)
    asked = pictures.asked
    assert same(found.features(glance, cache=tmp_path / "here"), right)
    assert pictures.asked > asked
    assert damage == "folder" or file.read_bytes() == whole


def spoil(file: Path, whole: bytes, damage: str) -> None:
    flipped = bytearray(whole)
    flipped[-9] ^= 1
    contents = {"cut": whole[:-8], "text": b"text", "empty": b"", "bit": bytes(flipped)}
    contents["other"] = safetensors.torch.save({"weights": torch.zeros(3)})
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        file.write_bytes(contents[damage])


def test_a_cache_that_cannot_be_written_is_not_used(split: Split, glance: FeatureNetwork, tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "file").touch()
    found = reference.of_split(split, name="split")
    assert same(found.features(glance, cache=tmp_path / "file" / "below"), found.features(glance))


def test_the_cache_is_where_the_user_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`XDG_CACHE_HOME`, or what it stands for when it is not set."""
    assert reference.default_cache() == tmp_path / "cache" / "nextscale" / "references"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert reference.default_cache() == tmp_path / "home" / ".cache" / "nextscale" / "references"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)  # of a container, in no list of users
    assert tempfile.gettempdir() in str(reference.default_cache())


def test_what_is_seen_does_not_depend_on_the_cache_file_that_follows(
    split: Split, glance: FeatureNetwork, tmp_path: Path
) -> None:
    """It is mapped: another one in its place leaves it alone."""
    found = reference.of_split(split, name="split")
    right = found.features(glance, cache=tmp_path / "here")
    mapped = found.features(glance, cache=tmp_path / "here")
    (file,) = (tmp_path / "here").iterdir()
    file.unlink()
    file.write_bytes(b"text")
    assert same(mapped, right)


def test_gaussians_of_a_reference_are_plain(split: Split, glance: FeatureNetwork) -> None:
    """Float64 from the cache, too."""
    for _ in range(2):
        gaussian = reference.of_split(split, name="split").features(glance).gaussian
        assert isinstance(gaussian, Gaussian)
        assert gaussian.mean.dtype == gaussian.covariance.dtype == torch.float64
