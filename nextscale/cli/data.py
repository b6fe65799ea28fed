"""What `--data` names, read with a bar; what is said of it, and where nothing may be written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nextscale.cli.output import progress, say
from nextscale.errors import InputError, printable
from nextscale.files.remote import is_address

if TYPE_CHECKING:
    from nextscale.data import Cache, Columns, DataSet

Labelling = Annotated[str | None, tyro.conf.arg(metavar="FILE|folders|none", help_behavior_hint="")]
Captioned = Annotated[str | None, tyro.conf.arg(metavar="own|names|FILE", help_behavior_hint="")]
Column = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
MaxBroken = Annotated[float, tyro.conf.arg(metavar="SHARE")]
IndexFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
ListBroken = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
CacheDir = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
CacheSize = Annotated[str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="")]
Window = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]

SHOWN = 4  # names of classes that are told
BROKEN = 0.01  # share of unreadable pictures that is borne with
BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def load_data(
    source: str,
    *,
    height: int,
    width: int,
    labels: str | None = None,
    captions: str | None = None,
    columns: Columns | None = None,
    index: Path | None = None,
    max_broken: float = BROKEN,
    list_broken: Path | None = None,
    cache: Cache | None = None,
    window: int | None = None,
) -> DataSet:
    """The data set; says what was found.

    `labels`, `captions`, `columns`, `index`, `cache` and `window` are those of `nextscale.data.load`.
    `list_broken` is a file for the names of unreadable pictures, those included that turn out so later.
    """
    found = read_data(
        source,
        height=height,
        width=width,
        labels=labels,
        captions=captions,
        columns=columns,
        index=index,
        max_broken=max_broken,
        list_broken=list_broken,
        cache=cache,
        window=window,
    )
    classes = "no classes" if labels == "none" else _told_of(found.classes, labels)
    say(
        f"data: {printable(source)} at {height}x{width}, {len(found.train)} pictures to train on, "
        f"{len(found.validation)} held out, {classes}"
    )
    tell(found)
    return found


def _told_of(classes: Sequence[str], labels: str | None) -> str:
    """How many there are, where they come from, and the first names: what should be no class is seen among them."""
    some = ", ".join(classes[:SHOWN]) + (", ..." if len(classes) > SHOWN else "")
    return f"{len(classes)} classes" + (f" as in {printable(labels)}" if labels else "") + f": {some}"


def tell(found: DataSet) -> None:
    """What else there is to say of a data set: how its parts came about, and what is not in them."""
    for line in found.told:
        say(f"data: {line}")
    if found.broken:
        say(f"data: {len(found.broken)} pictures cannot be read and are left out; --list-broken FILE names them")


def read_data(
    source: str,
    *,
    height: int,
    width: int,
    labels: str | None = None,
    captions: str | None = None,
    columns: Columns | None = None,
    index: Path | None = None,
    max_broken: float = BROKEN,
    list_broken: Path | None = None,
    cache: Cache | None = None,
    window: int | None = None,
) -> DataSet:
    """The data set, in silence."""
    from nextscale import data

    check_broken(max_broken)
    with progress() as bar:
        task = bar.add_task("reading pictures", total=None)
        return data.load(
            source,
            height=height,
            width=width,
            labels=labels,
            captions=captions,
            columns=columns,
            index=index,
            max_broken=max_broken,
            broken=None if list_broken is None else written_to(list_broken),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            cache=cache,
            window=window,
        )


def cache_of(command: Any) -> Cache:
    """What the options of a command say of the cache for data at addresses."""
    from nextscale.data import Cache

    given: dict[str, Any] = {}
    if command.cache_dir is not None:
        given["directory"] = command.cache_dir
    if command.cache_size is not None:
        given["size"] = _size(command.cache_size)
    if given and not is_address(command.data):
        raise InputError(f"--cache-dir, --cache-size: expected data at an address, got {command.data}")
    return Cache(**given)


def options_of_cache(command: Any) -> list[str]:
    """The same options for another command."""
    given = {"--cache-dir": command.cache_dir, "--cache-size": command.cache_size, "--window": command.window}
    return [str(word) for name, value in given.items() if value is not None for word in (name, value)]


def _size(text: str) -> int:
    """Bytes, as in 500GB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(kB|MB|GB|TB)", text)
    if found is None:
        raise InputError(f"--cache-size: expected a size such as 500GB, in {', '.join(BYTES)}, got {text}")
    return round(float(found[1]) * BYTES[found[2]])


def columns_of(command: Any) -> Columns:
    """What the options of a command say of columns; one that reads no captions asks for none."""
    from nextscale.data import Columns

    return Columns(
        image=command.image_column,
        label=command.label_column,
        caption=getattr(command, "caption_column", None),
        outside=command.outside_files,
    )


def check_broken(share: float) -> None:
    """Raise `InputError` for a share of unreadable pictures that is none."""
    if not 0 <= share <= 1:
        raise InputError(f"--max-broken: expected a share from 0 to 1, got {share:g}")


def written_to(file: Path) -> Callable[[str, str], None] | None:
    """What adds a line to the file for each broken picture, its name and the reason; the first process's."""
    from nextscale.machine import distributed

    def add(name: str, reason: str) -> None:
        _write(file, "a", f"{name}\t{reason}\n")

    if not distributed.is_first():
        return None
    _write(file, "w", "")
    return add


def _write(file: Path, mode: str, text: str) -> None:
    try:
        with file.open(mode, encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise InputError(f"--list-broken: expected a file to write, got {file} ({error.strerror})") from None


def check_outside(out: Path, source: str) -> None:
    """Raise `InputError` for an output inside the folder of the data, which would be data the next time."""
    if source == "emoji" or not os.path.isdir(source):
        return
    inner, outer = os.path.realpath(out), os.path.realpath(source)
    if os.path.commonpath([inner, outer]) == outer:
        raise InputError(f"--out: expected a directory outside of the data in {source}, got {out}")
