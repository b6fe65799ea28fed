"""The package as users get it: what is in it, that it runs without the source tree, and what stands around it."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import nextscale
from nextscale.cli import COMMANDS, parse

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
STAGES = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)[1:]


@pytest.fixture(scope="module")
def smoke() -> ModuleType:
    """scripts/smoke.py, which no package holds."""
    spec = importlib.util.spec_from_file_location("smoke", ROOT / "scripts" / "smoke.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(once: Callable[..., Path], smoke: ModuleType) -> Path:
    """Built from the sdist, which lies beside it."""
    (built,) = once("dist", smoke.build).glob("*.whl")
    return built


def test_every_command_is_tried(smoke: ModuleType) -> None:
    """And each line parses."""
    lines = [line for line in smoke.LINES if line != "nextscale --version"]
    tried = {name for name in COMMANDS for line in lines if f"{line} ".startswith(f"nextscale {name} ")}
    assert tried == set(COMMANDS)
    assert all(parse(shlex.split(line)[1:]) is not None for line in lines)


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    """Pictures, licences, the studio's style and script, and the marker of types among them."""
    names = set(zipfile.ZipFile(wheel).namelist())
    files = (path for path in (ROOT / "nextscale").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    inside = {name for name in names if name.startswith("nextscale/")}
    assert inside == {path.relative_to(ROOT).as_posix() for path in files}
    assert {"nextscale/py.typed", "nextscale/data/emoji_pack/pictures.bin", "nextscale/web/studio.css"} <= inside
    others = {name.partition("/")[2] for name in names - inside}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE", "licenses/NOTICE"} <= others


@pytest.mark.slow
def test_the_sdist_holds_what_the_tests_need(wheel: Path) -> None:
    """And nothing that a run, a build or a cache has left."""
    (file,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(file) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"README.md", "Makefile", "tests/conftest.py", "docs/sampling.md", "benchmarks/miniature.py"} <= names
    assert not [name for name in names if re.search(r"^(runs|\.venv|dist)/|__pycache__|\.egg-info", name)]


@pytest.mark.slow
def test_the_installed_package_runs_without_the_source_tree(wheel: Path, smoke: ModuleType, tmp_path: Path) -> None:
    """Its own files are imported, from an environment of their own, and the program is there."""
    programs = smoke.install(wheel, tmp_path / "environment")
    script = "import nextscale.data.emoji as pack; print(pack.__file__, len(pack.entries()))"
    for words in ((programs / "python", "-c", script), (programs / "nextscale", "--version")):
        done = subprocess.run(
            words, cwd=tmp_path, env=smoke.environment(programs), capture_output=True, text=True, check=True
        )
        assert str(tmp_path / "environment") in done.stdout or done.stdout == f"nextscale {nextscale.__version__}\n"


@pytest.mark.slow
def test_a_command_that_fails_is_told(wheel: Path, smoke: ModuleType, tmp_path: Path) -> None:
    """So that the smoke run cannot pass by accident."""
    programs = smoke.install(wheel, tmp_path / "environment")
    told = smoke._command("nextscale presetz", programs, tmp_path)
    assert told.startswith("status 2: nextscale: error: command: expected one of")
    assert smoke._command("nextscale --version", programs, tmp_path) == ""


def test_the_citation_names_this_version() -> None:
    """And the paper."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert str(citation["version"]) == nextscale.__version__
    assert citation["preferred-citation"]["authors"][0]["family-names"] == "Tian"


def test_the_workflow_runs_the_checks_on_every_python_that_is_supported() -> None:
    """From the oldest that pyproject.toml allows."""
    (job,) = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text("utf-8"))["jobs"].values()
    versions = job["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert versions == ["3.11", "3.12", "3.13"]
    assert job["steps"][-1] == {"run": ".ci/run"}


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")))
def test_issue_forms_are_complete(name: str) -> None:
    """Each field has a label and a name of its own."""
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE" / name).read_text("utf-8"))
    if name == "config.yml":
        assert form == {"blank_issues_enabled": True}
        return
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert {"name", "description", "labels"} < form.keys()
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert all(field["attributes"]["label"] for field in fields)


def test_the_container_starts_a_studio_that_the_host_reaches() -> None:
    """In both stages: its words parse, it listens on all addresses, and the port is the one that is told."""
    base, *stages = STAGES
    assert [stage.partition("\n")[0] for stage in stages] == ["base AS cpu", "base AS cuda"]
    start, model = (re.findall(rf"^{what} \[(.*)\]$", base, re.MULTILINE) for what in ("ENTRYPOINT", "CMD"))
    program, *words = (word.strip('" ') for word in f"{start[0]}, {model[0]}".split(","))
    web = parse(words)
    assert (program, web.host, web.port) == ("nextscale", "0.0.0.0", int(re.findall(r"EXPOSE (\d+)", base)[0]))


def test_the_container_is_given_what_the_package_is_built_from() -> None:
    """Every extra that it installs exists, and every file that .dockerignore lets in."""
    extras = {extra for stage in STAGES for extra in re.findall(r"\[(\w+(?:,\w+)*)\]\"", stage)}
    assert {name for extra in extras for name in extra.split(",")} <= PROJECT["optional-dependencies"].keys()
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE)
    assert all((ROOT / name).exists() for name in let_in)
    assert {"nextscale", "pyproject.toml", PROJECT["readme"], "LICENSE", "NOTICE"} <= set(let_in)
