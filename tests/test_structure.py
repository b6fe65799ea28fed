"""Laws of the structure: the README's tree is the tree on disk, and no import runs against its order or in a circle."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import nextscale

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
(TREE,) = re.findall(r"^```text\n(nextscale/\n.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PAGES = {"nextscale", "nextscale.__main__"}  # the page of public names, and the program: doors, no rooms
FREE = {"default_model", "cli"}  # rooms of the tree whose files are not named one by one


def tree() -> dict[str, list[str]]:
    """Rooms in the order of the README's tree, such as `training.tokenizer`, with the files that it names there."""
    joined = re.sub(r"\n {20,}", " ", TREE)  # a line that goes on
    rooms: dict[str, list[str]] = {}
    parents = {0: ""}
    for indent, name, told in re.findall(r"^( +)([\w.]+/?) +(.*)$", joined, re.MULTILINE):
        room = f"{parents[len(indent) - 2]}{name.removesuffix('/').removesuffix('.py')}"
        parents[len(indent)] = f"{room}."
        rooms[room] = told.partition(":")[0].split(", ") if name.endswith("/") and room not in FREE else []
    return rooms


def modules() -> dict[str, Path]:
    """Every module of the package by its full name."""
    found = {}
    for path in (ROOT / "nextscale").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def room_of(module: str) -> str:
    """The innermost room of the tree that a module is in."""
    inside = module.removeprefix("nextscale.")
    return max((room for room in tree() if f"{inside}.".startswith(f"{room}.")), key=len)


def imports(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Modules of the package that a file names anywhere: at its top, inside functions, for type checking."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if alias.name != "__version__":
                    yield inner if inner in known else node.module


def arrows() -> dict[str, set[str]]:
    """Who imports whom, but for the doors."""
    known = modules()
    return {name: set(imports(path, known)) - {name} for name, path in known.items() if name not in PAGES}


def test_the_tree_is_the_tree_on_disk() -> None:
    """Every file and folder of the package is on it, and nothing else."""
    package = ROOT / "nextscale"
    on_disk = {path.stem if path.suffix else path.name for path in package.iterdir()} - {"__pycache__"}
    rooms = tree()
    assert {room for room in rooms if "." not in room} == on_disk - {"__init__", "__main__", "py"}
    for room, named in rooms.items():
        folder = package / room.replace(".", "/")
        if folder.is_dir() and room not in FREE:
            assert sorted(named) == sorted({path.stem for path in folder.glob("*.py")} - {"__init__"}), room


@pytest.mark.parametrize("folder", ["benchmarks", "docs", "examples", "scripts", "tests"])
def test_the_tree_names_what_stands_beside_the_package(folder: str) -> None:
    """Folders of the project."""
    assert re.search(rf"^{folder}/ ", TREE, re.MULTILINE)
    assert (ROOT / folder).is_dir()


@pytest.mark.slow
def test_no_import_runs_against_the_order_of_the_tree() -> None:
    """A module imports from its own room and from those above it in the README."""
    place = {room: number for number, room in enumerate(tree())}
    against = [
        f"{name} imports {other}"
        for name, others in arrows().items()
        for other in others
        if other in PAGES or place[room_of(other)] > place[room_of(name)]
    ]
    assert not against


@pytest.mark.slow
def test_no_imports_run_in_a_circle() -> None:
    """Not even inside functions: `prepare` raises and names the circle."""
    TopologicalSorter(arrows()).prepare()


@pytest.mark.slow
def test_the_files_of_a_room_are_told_in_the_order_of_their_imports() -> None:
    """So that a reader who opens them in the order of the tree meets nothing unexplained."""
    order = {f"nextscale.{room}.{file}": place for room, named in tree().items() for place, file in enumerate(named)}
    against = [
        f"{name} imports {other}"
        for name, others in arrows().items()
        for other in others
        if {name, other} <= order.keys() and room_of(name) == room_of(other) and order[other] > order[name]
    ]
    assert not against


def test_every_page_of_the_documentation_has_a_place_in_the_site() -> None:
    """And every place a page, once: mkdocs.yml is the table of contents."""
    (nav,) = re.findall(r"^nav:\n(.*)", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    places = re.findall(r": ([\w-]+\.md)$", nav, re.MULTILINE)
    assert sorted(places) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_folders_of_tests_are_folders_of_the_package() -> None:
    """What else there is under tests/ holds no tests."""
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    assert all((ROOT / "nextscale" / folder).is_dir() for folder in folders)


def test_completion_shows_the_public_names_and_nothing_else() -> None:
    """Whatever has been imported; each of them is there."""
    assert dir(nextscale) == sorted(nextscale.__all__)
    assert "nextscale.config" in sys.modules
    assert all(getattr(nextscale, name) is not None for name in dir(nextscale))
    with pytest.raises(AttributeError, match="module 'nextscale' has no attribute 'Pipelin'"):
        nextscale.Pipelin  # noqa: B018
