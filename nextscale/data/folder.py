"""A folder of pictures as a listing. Nothing to prepare: point at it.

Layouts: `DIR/class/…/*.jpg` (the class is the first folder, classes sorted by name), or pictures directly in `DIR` (one
class, named as the folder). If `DIR/train` and one of `DIR/val`, `DIR/validation`, `DIR/test` hold pictures, they are
the splits; otherwise 5 %, at least one, is held out by the hash of the relative path: the same files at every size and
on every machine. Hidden files are ignored; links are followed, but never into a folder they lie in. Where a table or
"none" gives the classes (`nextscale.data.labels`), pictures may lie at any depth, with the same splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from nextscale.data.labels import NONE, Groups, Labels, one_class, read_table
from nextscale.data.listing import VALIDATION, Listing, hold_out
from nextscale.errors import InputError
from nextscale.images import SUFFIXES


@dataclass(frozen=True, kw_only=True)
class File:
    """One picture file; `name` is its path below the folder, with forward slashes."""

    path: Path
    name: str
    label: int
    held_out: bool

    def open(self) -> BinaryIO:
        """See `nextscale.data.listing.Item`."""
        return self.path.open("rb")


def survey(root: Path, *, labels: Labels | None = None) -> Listing:
    """The picture files below `root`, in the order of their classes and names; `labels` as `nextscale.data.load` tells.

    Raises `InputError` unless it is a folder with pictures in one of the layouts, and for labels that do not fit them.
    """
    if not root.exists():
        raise InputError(f"expected a folder of pictures, found nothing at {root}; .tar shards would do as well")
    if not root.is_dir():
        raise InputError(f"expected a folder of pictures, got the file {root}; .tar shards would do as well")
    grouped = _grouping(root, labels)
    return _two_folders(root, grouped) or _one_folder(root, grouped)


def _grouping(root: Path, labels: Labels | None) -> Callable[[Path], Groups]:
    """What finds the pictures below a folder and tells their classes."""
    flat_name = root.resolve().name
    if labels is None:
        return partial(_by_class, flat_name=flat_name)
    stated = one_class(flat_name) if labels == NONE else read_table(Path(labels), root)
    return lambda folder: stated(list(pictures_below(folder)) if folder.is_dir() else [])


def _two_folders(root: Path, grouped: Callable[[Path], Groups]) -> Listing | None:
    """`root/train` beside `root/val`, if both hold pictures; a `root/test` beside them is not looked into."""
    if not (train := grouped(root / "train")):
        return None
    validation = next((groups for name in VALIDATION if (groups := grouped(root / name))), None)
    if validation is None:
        return None
    if unknown := sorted(validation.keys() - train.keys()):
        raise InputError(f"expected the held-out classes of {root} among those of its train folder, got {unknown[0]!r}")
    classes = tuple(train)
    files = [
        File(path=path, name=_name(path, root), label=classes.index(group), held_out=groups is validation)
        for groups in (train, validation)
        for group, paths in groups.items()
        for path in paths
    ]
    return Listing(kind="folder", root=root, items=files, classes=classes)


def _one_folder(root: Path, grouped: Callable[[Path], Groups]) -> Listing:
    """`root` with a share held out by the hash of the names, so that a new file moves few others."""
    groups = grouped(root)
    labelled = [(path, label) for label, paths in enumerate(groups.values()) for path in paths]
    if not labelled:
        raise InputError(f"expected pictures ({', '.join(SUFFIXES)}) or .tar shards in {root}, found none")
    names = [_name(path, root) for path, _ in labelled]
    held_out = hold_out(names, root=root)
    files = [
        File(path=path, name=name, label=label, held_out=index in held_out)
        for index, ((path, label), name) in enumerate(zip(labelled, names, strict=True))
    ]
    return Listing(kind="folder", root=root, items=files, classes=tuple(groups))


def _by_class(folder: Path, *, flat_name: str) -> dict[str, list[Path]]:
    """Picture files by class name, sorted; empty if there are none or no such folder."""
    if not folder.is_dir():
        return {}
    inside = visible(folder)
    loose = [path for path in inside if _is_picture(path)]
    above = frozenset({folder.resolve()})
    nested = {path.name: list(pictures_below(path, above)) for path in inside if path.is_dir()}
    nested = {name: paths for name, paths in nested.items() if paths}
    if loose and nested:
        raise InputError(
            f"expected pictures either in class folders or directly in {folder}, got both: "
            f"{loose[0].name} beside {next(iter(nested))}/"
        )
    return {flat_name: loose} if loose else nested


def pictures_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """All picture files at any depth; `above` holds the folders on the way here, where a link would go round."""
    here = folder.resolve()
    if here in above:
        return
    for path in visible(folder):
        if path.is_dir():
            yield from pictures_below(path, above | {here})
        elif _is_picture(path):
            yield path


def visible(folder: Path) -> list[Path]:
    """What lies directly in a folder, sorted, without hidden files. Raises `InputError` if that is not allowed."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except PermissionError:
        raise InputError(f"expected a folder that may be read, got {folder}") from None


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
