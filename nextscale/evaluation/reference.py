"""What generated pictures are compared with: a split, a folder, a file of samples, or statistics that somebody stored.

A `Reference` is a description; `features` looks at its pictures through a network, once: what was seen is kept in a
cache, under the fingerprints of pictures and network. Shapes: N pictures whose features are kept, D features.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from nextscale import data, images
from nextscale.data import Pictures, Progress
from nextscale.data.listing import told_apart
from nextscale.data.pictures import fingerprint, in_threads
from nextscale.data.reading import Broken
from nextscale.data.splits import roles_of_folders
from nextscale.data.walk import Folder, LeftOut, pictures_below
from nextscale.errors import InputError, printable
from nextscale.evaluation import samples
from nextscale.evaluation.card import INCEPTION
from nextscale.evaluation.gathering import KEPT, Gathered, gather, kept, shares, spatial_dimensions
from nextscale.evaluation.samples import Statistics
from nextscale.evaluation.statistics import Gaussian
from nextscale.features import FeatureNetwork
from nextscale.files import checkpoint, durable
from nextscale.machine import distributed

Size = tuple[int, int]  # (height, width) in pixels
Batches = Callable[[Iterable[range]], Iterator[Tensor]]  # which -> (B, 3, H, W) float in [-1, 1] of each

FORMAT = "1"  # of the cached files, and of what is in them: raised whenever either changes
MOST_BROKEN = 0.01  # share of unreadable pictures of a data set that is borne with
MARK = 4096  # bytes from either end of a picture's file that its fingerprint is made from


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceFeatures:
    """What a network saw in a reference."""

    name: str
    """Of the reference, for people."""
    fingerprint: str
    """Of the reference: 16 hex digits."""
    gaussian: Gaussian
    spatial: Gaussian | None
    """Of `spatial_features`; None for statistics without, and for a network without inner maps."""
    features: Tensor | None
    """(N, D) float32: of all pictures in their order, or of `keep` of them; None when statistics are all there is."""
    spatial_features: Tensor | None = None
    """(N, S) float32, of the same pictures; None where only the Gaussian of them is known."""
    labels: Tensor | None
    """(N,) int64, the classes of those, by the reference's numbers; None when they are not known."""
    count: int | None
    """Of the pictures that the Gaussians were gathered from; None when they were stored, and it is not known."""
    size: Size | None
    """(height, width) in pixels; None when statistics are all there is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Pictures, or statistics, or both, as ADM's files have them: those of many pictures beside some of them."""

    name: str
    fingerprint: str
    count: int | None
    """None when there are no pictures."""
    size: Size | None
    """None when there are no pictures."""
    labels: Tensor | None
    """(count,) int64; None when they are not known."""
    batches: Batches | None
    """None when there are no pictures."""
    statistics: Statistics | None
    classes: tuple[str, ...] | None = None
    """The name of each label; None when they are not known."""
    told: tuple[str, ...] = ()
    """What should be said of the pictures, such as what was left out: a line each."""

    def ordered(self, classes: Sequence[str]) -> Reference:
        """The same with its labels numbered as in `classes`, if these are its own by name; otherwise as it is."""
        if self.labels is None or self.classes is None or sorted(self.classes) != sorted(classes):
            return self
        number = {name: label for label, name in enumerate(classes)}
        labels = torch.tensor([number[name] for name in self.classes])[self.labels]
        return dataclasses.replace(self, labels=labels, classes=tuple(classes))

    def features(
        self,
        network: FeatureNetwork,
        *,
        batch: int = 32,
        keep: int = KEPT,
        progress: Progress | None = None,
        cache: Path | None = None,
    ) -> ReferenceFeatures:
        """What the network sees in it, from the cache where it has been seen before.

        Stored statistics are taken as they are if they are of this network, as far as their file tells; where they are
        not, the Gaussians come from the pictures, like features always.

        Arguments:
            network: on the device where pictures are to be looked at.
            batch: pictures at a time; what is seen does not depend on it.
            keep: how many features are kept at most.
            progress: called with (done, total) after each batch of this process's.
            cache: a folder, made if need be; None is `default_cache()`. One that cannot be written is not used.

        Several processes share the work, and all must call this. Raises `InputError` for a damaged picture or file,
        and for statistics of another network without pictures.
        """
        seen = None if self.batches is None else self._seen(self.batches, network, batch, keep, progress, cache)
        stored = self._stored(network)
        gaussians = stored or seen
        if gaussians is None:
            raise self._of_another(network)
        return ReferenceFeatures(
            name=self.name,
            fingerprint=self.fingerprint,
            gaussian=gaussians.gaussian,
            spatial=gaussians.spatial,
            features=seen.features if seen else None,
            labels=self.labels[kept(seen.count, keep)] if seen and self.labels is not None else None,
            count=seen.count if seen and stored is None else None,
            size=self.size,
        )

    def key(self, network: FeatureNetwork, keep: int = KEPT) -> str:
        """16 hex digits that change with the pictures, the network, and the size at which it looks at them."""
        return fingerprint([FORMAT, keep, self.fingerprint, identity(network)])

    def _stored(self, network: FeatureNetwork) -> Statistics | None:
        """The statistics, if they are of this network; without those of spatial features that are not."""
        if self.statistics is None or len(self.statistics.gaussian.mean) != network.dimensions:
            return None
        gaussian, spatial, whose = self.statistics
        other = whose is not None and whose != identity(network)
        if other or (self.statistics.look_like_inceptions and network.name != INCEPTION):
            return None
        fits = spatial is not None and len(spatial.mean) == spatial_dimensions(network)
        return Statistics(gaussian, spatial if fits else None, whose)

    def _of_another(self, network: FeatureNetwork) -> InputError:
        assert self.statistics is not None
        whose = " that do not say whose they are, like Inception's" if self.statistics.look_like_inceptions else ""
        got = self.statistics.network or f"those of {len(self.statistics.gaussian.mean)}{whose}"
        wanted = f"{network.dimensions} features ({identity(network)})"
        return InputError(f"{self.name}: expected statistics of {wanted}, got {got}")

    def _seen(
        self,
        batches: Batches,
        network: FeatureNetwork,
        batch: int,
        keep: int,
        progress: Progress | None,
        cache: Path | None,
    ) -> Gathered:
        assert self.count is not None
        path = (cache or default_cache()) / f"{self.key(network, keep)}.safetensors"
        found = _read(path)
        missed = distributed.any_of(found is None)  # anywhere: then all look
        if found is not None and not missed:
            return found
        own = list(shares(self.count, batch))
        told = _told(zip(own, batches(own), strict=True), progress, self.count)
        seen = gather(told, network, total=self.count, keep=keep)
        if distributed.is_first():
            _write(path, seen)
        return seen


def identity(network: FeatureNetwork) -> str:
    """What tells features from those of other networks, and of the same at another size."""
    return f"{network.name} {network.fingerprint} {network.side}"


def _told(
    batches: Iterable[tuple[range, Tensor]], progress: Progress | None, total: int
) -> Iterator[tuple[range, Tensor]]:
    """The same batches; after each `progress` is called."""
    for indices, images_B3HW in batches:
        yield indices, images_B3HW
        if progress is not None:
            progress(indices.stop, total)


# ---- where references come from --------------------------------------------------------------------------------------


def load(
    source: str | Path,
    *,
    size: Size,
    split: Literal["train", "validation"] | None = None,
    max_broken: float | None = None,
    broken: Broken | None = None,
    progress: Progress | None = None,
) -> Reference:
    """The reference called `source`: a `.npz` of samples, statistics or both; a folder; or a data set.

    Arguments:
        source: a path, or "emoji".
        size: (height, width) that pictures are scaled to cover, and cropped to at the centre; those of a `.npz` stay as
            they are.
        split: of a data set as `nextscale.data.load` knows it, seen as in training: a little larger than `size` before
            the crop. Without it a folder of pictures is taken whole, at any depth; of others it is the training split.
        max_broken: share of unreadable pictures that is left out; of more, the reference is refused. None is 1 % of a
            data set, and none of a folder that is taken whole: these are decoded one time more to know only if asked.
        broken: called with the name of each unreadable picture and the reason, and asks like `max_broken`.
        progress: called with (done, total) while pictures are looked for.

    Raises `InputError` for anything else.
    """
    if str(source).endswith(".npz"):
        return of_file(source)
    folder = Path(source)
    if split is None and source != "emoji" and folder.is_dir() and any(True for _ in pictures_below(folder)):
        return of_folder(folder, size=size, max_broken=max_broken, broken=broken)
    share = MOST_BROKEN if max_broken is None else max_broken
    pictures = data.load(source, height=size[0], width=size[1], max_broken=share, broken=broken, progress=progress)
    held_out = split == "validation"
    return of_split(
        pictures.validation if held_out else pictures.train,
        name=f"{printable(str(source))}, {split or 'train'} split",
        classes=pictures.classes,
        told=(*pictures.told, *_left_out(len(pictures.broken))),
    )


def of_split(
    pictures: Pictures, *, name: str, classes: Sequence[str] | None = None, told: tuple[str, ...] = ()
) -> Reference:
    """A split of a data set, seen as `Pictures.batch` gives it. Raises `InputError` for one without pictures."""
    if not len(pictures):
        raise InputError(f"{name}: expected at least one picture, got none")
    height, width = pictures.batch([0])[0].shape[2:]

    def batches(wanted: Iterable[range]) -> Iterator[Tensor]:
        return (pictures.batch(indices)[0] for indices in wanted)

    return Reference(
        name=name,
        fingerprint=pictures.fingerprint,
        count=len(pictures),
        size=(height, width),
        labels=pictures.labels,
        batches=batches,
        statistics=None,
        classes=tuple(classes) if classes is not None else None,
        told=told,
    )


def of_folder(
    root: str | Path, *, size: Size, max_broken: float | None = None, broken: Broken | None = None
) -> Reference:
    """All pictures of a folder, at any depth, in the order of their names; covered by and cropped to (height, width).

    Classes are the first folders, by name, if all pictures lie in some. Unreadable pictures are left out if
    `max_broken` or `broken` asks for it, see `load`; otherwise one raises `InputError` when its turn comes. So does a
    folder without pictures.
    """
    root = Path(root)
    found, left = Folder(root).names() if root.is_dir() else ([], Counter())
    if not found:
        raise InputError(f"expected a folder of pictures, found none in {root}")
    names = found if max_broken is None and broken is None else _readable(root, found, max_broken or 0.0, broken)
    paths = [root / name for name in names]

    def batches(wanted: Iterable[range]) -> Iterator[Tensor]:
        for indices in wanted:
            files = paths[indices.start : indices.stop]
            yield torch.stack(list(in_threads(lambda path: images.read(path, height=size[0], width=size[1]), files)))

    labels, classes = _folder_classes(names)
    return Reference(
        name=printable(str(root)),
        fingerprint=fingerprint(["folder", *size, *names, *in_threads(_mark, paths)]),
        count=len(paths),
        size=size,
        labels=labels,
        batches=batches,
        statistics=None,
        classes=classes,
        told=(*([f"left out: {LeftOut(left)}"] if left else []), *_left_out(len(found) - len(names))),
    )


def _readable(root: Path, names: Sequence[str], max_broken: float, broken: Broken | None) -> list[str]:
    """Names of the pictures that can be decoded. Raises `InputError` where too few can."""
    reasons = dict(zip(names, in_threads(lambda name: _why_not(root / name), names), strict=True))
    good = [name for name in names if reasons[name] is None]
    for name, why in reasons.items():
        if why is not None and broken is not None:
            broken(printable(name), why)
    lost = len(names) - len(good)
    if lost > max_broken * len(names) or not good:
        first = next(name for name in names if reasons[name] is not None)
        raise InputError(
            f"expected at most {max_broken:.1%} unreadable pictures in {root}, got {lost} of {len(names)}; "
            f"the first: {first} ({reasons[first]})"
        )
    return good


def _why_not(path: Path) -> str | None:
    """Why a picture cannot be read; None of one that can."""
    try:
        images.open_rgb(path)
    except (InputError, OSError, MemoryError) as error:
        return images.reason(error)
    return None


def _left_out(unreadable: int) -> list[str]:
    return [f"{unreadable:,} pictures cannot be read and are left out"] if unreadable else []


def of_file(path: str | Path) -> Reference:
    """A `.npz` of samples, of statistics, or of both. Raises `InputError` for a damaged file, or one of neither."""
    path, names = Path(path), samples.holds(path)
    if samples.PICTURES not in names and "mu" not in names:
        held = samples.listed(names)
        raise InputError(f"{path}: expected samples {samples.PICTURES}, or statistics mu and sigma, found {held}")
    stored = samples.read(path) if samples.PICTURES in names else None
    return Reference(
        name=str(path),
        fingerprint=samples.content(path),
        count=stored.count if stored else None,
        size=(stored.height, stored.width) if stored else None,
        labels=stored.labels if stored else None,
        batches=stored.batches if stored else None,
        statistics=samples.read_statistics(path) if "mu" in names else None,
        told=(stored.note,) if stored and stored.note else (),
    )


def _folder_classes(names: Sequence[str]) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """The first folders, or those inside them if they are splits; none unless every picture lies in one."""
    folders = _unwrapped([name.split("/")[:-1] for name in names])
    firsts = {"".join(inside[:1]) for inside in folders}
    if roles_of_folders(firsts).keys() == firsts:
        folders = [inside[1:] for inside in folders]
    folders = _unwrapped(folders)
    if not all(folders):
        return None, None
    classes = sorted({inside[0] for inside in folders})
    number = {name: label for label, name in enumerate(classes)}
    return torch.tensor([number[inside[0]] for inside in folders]), told_apart(classes)


def _unwrapped(folders: list[list[str]]) -> list[list[str]]:
    """Without the folders around all of them, as `nextscale.data.folder` sees them; one class alone stays."""
    inner = folders
    while all(inner) and len({inside[0] for inside in inner}) == 1:
        inner = [inside[1:] for inside in inner]
    return inner if all(inner) else folders


def _mark(path: Path) -> str:
    """Tells an edited picture from the old one without reading all of it."""
    with path.open("rb") as stream:
        length = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        start = stream.read(MARK)
        stream.seek(max(0, length - MARK))
        return fingerprint([length, start, stream.read(MARK)])


# ---- the cache -------------------------------------------------------------------------------------------------------


def default_cache() -> Path:
    """`references` in the user's cache."""
    return durable.user_cache("references")


def _write(path: Path, seen: Gathered) -> None:
    """A cache that cannot be written costs time later, but nothing now."""
    tensors = {
        "mean": seen.gaussian.mean,
        "covariance": seen.gaussian.covariance,
        "features": seen.features,
        "numbers": torch.tensor([seen.count, *seen.size]),
    }
    if seen.spatial is not None:
        tensors |= {"spatial_mean": seen.spatial.mean, "spatial_covariance": seen.spatial.covariance}
    with suppress(InputError):
        checkpoint.write_tensors(path, tensors | {"checksum": _checksum(tensors)})


def _read(path: Path) -> Gathered | None:
    """What `_write` wrote; None where there is nothing, or something damaged."""
    try:
        tensors = checkpoint.read_tensors(path)
        if int(tensors.pop("checksum")) != _checksum(tensors):
            return None
        count, height, width = tensors["numbers"].tolist()
        has_spatial = "spatial_mean" in tensors
        return Gathered(
            gaussian=Gaussian(tensors["mean"], tensors["covariance"]),
            spatial=Gaussian(tensors["spatial_mean"], tensors["spatial_covariance"]) if has_spatial else None,
            features=tensors["features"],
            count=count,
            size=(height, width),
        )
    except (InputError, OSError, KeyError, ValueError):
        return None


def _checksum(tensors: dict[str, Tensor]) -> Tensor:
    total = 0
    for _, tensor in sorted(tensors.items()):
        total = zlib.crc32(tensor.contiguous().numpy().data, total)
    return torch.tensor(total)
