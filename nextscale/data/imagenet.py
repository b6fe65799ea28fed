"""ImageNet as people get it, seen as the folder that it is usually unpacked to: `train/WNID/…`, `val/WNID/…`.

Two forms. The tars of its site: `ILSVRC2012_img_train.tar`, a tar of a thousand tars, with `ILSVRC2012_img_val.tar` and
the devkit (`ILSVRC2012_devkit_t12.tar.gz`, or unpacked) beside it; any other tar of tars is read likewise, a class from
each. Kaggle's: `ILSVRC/Data/CLS-LOC` with `LOC_val_solution.csv`, in a folder or a zip. Nothing is unpacked or copied.

The devkit numbers classes by its own list (`meta.mat`), not in the order of their names (WNIDs) as torch's models do:
here every held-out picture lies in the folder of its WNID, and `nextscale.data.folder` does the rest.
"""

from __future__ import annotations

import csv
import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath

import numpy as np

from nextscale.data.archive import INSIDE, Archive
from nextscale.data.names import Names
from nextscale.data.pictures import Progress, in_threads
from nextscale.data.shards import Members
from nextscale.data.tar import Member, members
from nextscale.data.walk import Folder, Tree, inside, is_picture, kind_of
from nextscale.errors import InputError

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
BESIDE = (VALIDATION, f"{DEVKIT}.tar.gz", f"{DEVKIT}/data/meta.mat")  # a tar of tars, and read with it
META, TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"  # in the devkit's folder `data`
KAGGLE, SOLUTION, IMAGE, ANSWER = "ILSVRC/Data/CLS-LOC/", "LOC_val_solution.csv", "ImageId", "PredictionString"
MOST_BYTES = 2**26  # of a file of the devkit
NUMBER = re.compile(r"ILSVRC2012_val_([0-9]{8})\.[A-Za-z]+")


# ---- the tars of its site --------------------------------------------------------------------------------------------


def find(source: str | Path, *, progress: Progress | None = None) -> Archive | None:
    """The tree in the tars of a folder, or in a tar of tars; None for anything else.

    `progress` runs through the classes. Raises `InputError` for damaged tars, and for a devkit that is damaged or needs
    a package that is not there.
    """
    path = Path(source)
    if os.path.isdir(path):
        return _tree(path / TRAIN, path, progress) if (path / TRAIN).is_file() else None
    if path.suffix.lower() == ".tar" and os.path.isfile(path) and _holds_tars(path):
        return _tree(path, path.parent if path.name == TRAIN else None, progress)
    return None


def _holds_tars(path: Path) -> bool:
    """Whether the first file in a tar is one; the shards of a data set are looked at no further."""
    try:
        return next((_is_tar(member) for member in members(path)), False)
    except InputError:
        return False  # which is told when it is read


def _is_tar(member: Member) -> bool:
    return member.name.lower().endswith(".tar")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Pictures in a tar: their names in the tree, and the places of their bytes, (N,) int64 each."""

    names: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    left: Counter[str]


def _tree(train: Path, beside: Path | None, progress: Progress | None) -> Archive:
    left: Counter[str] = Counter()
    outer = list(members(train, left))
    left.update(kind_of(member.name) for member in outer if not _is_tar(member))
    parts = list(in_threads(_class, [member for member in outer if _is_tar(member)], progress=progress))
    paths, shards = [train], [0] * len(parts)
    if beside is not None:
        left += _others(beside)
        if (beside / VALIDATION).is_file():
            paths, shards = [train, beside / VALIDATION], [*shards, 1]
            parts.append(_held_out(beside / VALIDATION, _devkit(beside)))
    counts = [len(part.names) for part in parts]
    store = Members(
        paths=tuple(paths),
        shards=np.repeat(np.array(shards, dtype=np.int32), counts),
        offsets=np.concatenate([part.offsets for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
    )
    names = (name for part in parts for name in part.names)
    return Archive(train if beside is None else beside, names, store, sum((part.left for part in parts), left))


def _others(folder: Path) -> Counter[str]:
    """What lies beside the tars and is not looked at."""
    here = inside(str(folder))
    known = (TRAIN, VALIDATION, f"{DEVKIT}.tar.gz")
    left = here.gone + Counter(kind_of(name) for name in here.others if name not in known)
    if here.pictures:
        left["picture{s} beside the tars"] += len(here.pictures)
    if unseen := len([name for name in here.folders if name != DEVKIT]):
        left["folder{s} beside the tars"] += unseen
    return left


def _class(tar: Member) -> Part:
    """The pictures of a tar in another, below the folder of its class."""
    below = f"train/{PurePosixPath(tar.name).stem}/"
    return _part(tar, lambda name: f"{below}{name}")


def _part(tar: Path | Member, placed: Callable[[str], str | None], *, unplaced: str = "") -> Part:
    """Those of a tar, by the names that they are given; None counts one as left out, as `unplaced`."""
    left: Counter[str] = Counter()
    found = [(placed(member.name), member) for member in members(tar, left) if _is_kept(member.name, left)]
    kept = [(name, member) for name, member in found if name is not None]
    left[unplaced] += len(found) - len(kept)
    return Part(
        names=[name for name, _ in kept],
        offsets=np.array([member.offset for _, member in kept], dtype=np.int64),
        sizes=np.array([member.size for _, member in kept], dtype=np.int64),
        left=+left,
    )


def _is_kept(name: str, left: Counter[str]) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        left[INSIDE] += 1
        return False
    if not is_picture(path.name):
        left[kind_of(path.name)] += 1
        return False
    return True


def _held_out(tar: Path, wnids: Mapping[int, str] | None) -> Part:
    """The pictures of the validation tar, each below the folder of its class, which the devkit tells."""

    def placed(name: str) -> str | None:
        last = PurePosixPath(name).name
        number = NUMBER.fullmatch(last)
        wnid = wnids.get(int(number[1])) if number and wnids else None
        return f"val/{wnid}/{last}" if wnid else None

    missing = f"picture{{s}} of {VALIDATION}, whose classes {DEVKIT}.tar.gz beside it would tell"
    return _part(
        tar, placed, unplaced=missing if wnids is None else "held-out picture{s} without a class in the devkit"
    )


# ---- the devkit ------------------------------------------------------------------------------------------------------


def _devkit(folder: Path) -> dict[int, str] | None:
    """The WNID of each held-out picture by its number, from 1; None without a devkit."""
    packed, unpacked = folder / f"{DEVKIT}.tar.gz", folder / DEVKIT / "data"
    if unpacked.is_dir():
        files = {name: _content(unpacked / name) for name in (META, TRUTH)}
    elif packed.is_file():
        files = _contents(packed)
    else:
        return None
    where = packed if packed.is_file() else unpacked
    if missing := next((name for name in (META, TRUTH) if name not in files), None):
        raise InputError(f"expected {missing} in the devkit {where}, found none")
    wnids = _wnids(files[META], f"{META} of {where}")
    return dict(enumerate(_truth(files[TRUTH], wnids, f"{TRUTH} of {where}"), start=1))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"expected the devkit's {path.name}, cannot read {path} ({error.strerror})") from None


def _contents(packed: Path) -> dict[str, bytes]:
    """The two files that are needed, by name."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(packed, "r:gz") as tar:
            for info in tar:
                name = PurePosixPath(info.name).name
                if (
                    name in (META, TRUTH)
                    and info.isreg()
                    and info.size <= MOST_BYTES
                    and (file := tar.extractfile(info))
                ):
                    found[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(f"expected a whole devkit, a .tar.gz, got {packed}: {error}") from None
    return found


def _wnids(content: bytes, where: str) -> dict[int, str]:
    """The WNID of each of the devkit's numbers, by the table `synsets` in `meta.mat`."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise InputError(
            f"{where}: expected the package scipy, which reads it (pip install 'nextscale[imagenet]'), found none"
        ) from None
    try:
        rows = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        found = {int(number): str(wnid) for number, wnid in zip(rows["ILSVRC2012_ID"], rows["WNID"], strict=True)}
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"expected the devkit's table of classes, got {where} ({type(error).__name__})") from None
    if other := next((wnid for wnid in found.values() if not re.fullmatch(r"n[0-9]{8}", wnid)), None):
        raise InputError(f"{where}: expected WNIDs such as n01440764, got {other[:60]!r}")
    return found


def _truth(content: bytes, wnids: Mapping[int, str], where: str) -> Iterator[str]:
    for line, number in enumerate(content.split(), start=1):
        wnid = wnids.get(int(number)) if number.isdigit() else None
        if wnid is None:
            raise InputError(f"{where}, line {line}: expected a number of a class in {META}, got {number[:60]!r}")
        yield wnid


# ---- Kaggle's --------------------------------------------------------------------------------------------------------


def arranged(tree: Tree) -> Tree:
    """The tree itself, or if it is Kaggle's, as the splits and classes of its pictures.

    Raises `InputError` for a table of classes that is damaged.
    """
    if isinstance(tree, Folder):
        root = tree.root.resolve()
        above = zip(_steps(), [root, *root.parents], strict=False)
        place = next((place for step, place in above if (place / SOLUTION).is_file() and place / step == root), None)
        return tree if place is None else _kaggle(Folder(place), "", tree.root)
    homes = ["", *(f"{folder}/" for folder in tree.inside().folders)]
    home = next((home for home in homes if tree.holds(f"{home}{SOLUTION}")), None)
    return tree if home is None else _kaggle(tree, home, tree.root)


def beside(root: Path) -> list[Path]:
    """Where, above a folder, there may be a table that tells classes of its pictures."""
    return [place / SOLUTION for place in root.resolve().parents[: len(_steps()) - 1]]


def _steps() -> list[str]:
    """The ways from the folder of the table down to that of the pictures, the shortest first."""
    return ["", *accumulate(KAGGLE.split("/")[:-1], "{}/{}".format)]


def _kaggle(tree: Tree, home: str, root: Path) -> Tree:
    left: Counter[str] = Counter()
    wnids = _solution(tree, f"{home}{SOLUTION}")
    place = f"{home}{KAGGLE}"
    train, held_out = (_names(tree, place, side, left) for side in ("train", "val"))
    known = [name for name in held_out if PurePosixPath(name).stem in wnids]
    left[f"held-out picture{{s}} without a row in {SOLUTION}"] += len(held_out) - len(known)
    left["picture{s} of the test split, which has no classes"] += len(_names(tree, place, "test", Counter()))
    seen = [f"val/{wnids[PurePosixPath(name).stem]}/{PurePosixPath(name).name}" for name in known]
    names = [*(name.removeprefix(place) for name in train), *seen]
    return Archive(root, names, tree.store(Names([*train, *known])), +left)


def _names(tree: Tree, place: str, side: str, left: Counter[str]) -> list[str]:
    """The pictures of a split, wherever they lie below its folder."""
    if side not in tree.inside(place).folders:
        return []
    names, gone = tree.names(f"{place}{side}/")
    left.update(gone)
    return names


def _solution(tree: Tree, name: str) -> dict[str, str]:
    """The WNID of each held-out picture, by its name without a suffix: the first word of its answer."""
    where = f"{tree.root}/{name}"
    try:
        with tree.open(name) as stream:
            rows = csv.reader(io.StringIO(stream.read().decode("utf-8-sig", "replace")))
        if next(rows, []) == [IMAGE, ANSWER]:
            return {row[0]: row[1].split()[0] for row in rows if len(row) == 2 and row[1].strip()}
    except (OSError, csv.Error) as error:
        raise InputError(f"{where}: expected a table of classes in CSV ({error})") from None
    raise InputError(f"{where}: expected a first line {IMAGE},{ANSWER}, got another")
