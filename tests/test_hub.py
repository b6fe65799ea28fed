"""Laws of hub names: what is one, and how long the hub is waited for."""

from __future__ import annotations

import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from PIL import Image

from nextscale import InputError, data, hub


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("owner/name", True),
        ("FoundationVision/var", True),
        ("runs/demo", False),
        ("./owner/name", False),
        ("~/name", False),
        ("/owner/name", False),
        ("owner/name/more", False),
        ("owner", False),
        ("owner/..", False),
        ("", False),
        ("owner/na me", False),
        ("owner/" + "n" * 200, False),
        ("owner/name.safetensors", False),
        ("owner/var_d16.pth", False),
    ],
)
def test_a_hub_name_is_two_words_and_no_path(
    text: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder `runs` here means that `runs/demo` was mistyped; a file's suffix, that a file was."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub.is_name(text) is named


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client would try again for half a minute; what is in the local cache is found all the same."""
    asked: list[dict[str, Any]] = []

    def silent(url: str, *, timeout: float) -> None:
        assert timeout <= 5
        raise TimeoutError

    def download(name: str, file: str, **options: Any) -> str:
        asked.append(options)
        return f"cache/{name}/{file}"

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", silent)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub.network("owner/name") == Path("cache/owner/name/model.safetensors")
    assert asked == [{"local_files_only": True}]


def test_a_hub_that_says_no_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own words are told, not that it cannot be asked."""

    def refuse(name: str, file: str, **options: Any) -> str:
        assert options == {"local_files_only": False}
        raise OSError("403 Client Error: a gated repository\nwith more lines")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, *, timeout: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(InputError, match="no config.json from the hub: 403 Client Error: a gated repository$"):
        hub.directory("owner/name")


def test_a_hub_whose_client_hangs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up a host's name heeds no timeout, and clients try again: the answer to the first question is enough."""
    asked: list[str] = []

    def hang(url: str, *, timeout: float) -> None:
        asked.append(url)
        time.sleep(5)

    def download(name: str, file: str, **options: Any) -> str:
        assert options == {"local_files_only": True}
        return f"cache/{name}/{file}"

    monkeypatch.setattr(hub, "PATIENCE", 0.05)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", hang)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    started = time.monotonic()
    assert hub.directory("owner/name") == Path("cache/owner/name")
    assert hub.network("owner/other") == Path("cache/owner/other/model.safetensors")
    assert time.monotonic() - started < 2
    assert len(asked) == 2


# ---- data sets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`repository(*files)`: a hub with one data set; what was asked of it is in the list that comes back."""
    asked: list[dict[str, Any]] = []

    def make(*files: str) -> list[dict[str, Any]]:
        def listed(name: str, **options: Any) -> list[str]:
            asked.append({"name": name, **options})
            return list(files)

        def fetched(name: str, *, allow_patterns: list[str] | None, **options: Any) -> str:
            asked.append({"name": name, "wanted": allow_patterns, **options})
            for file in files:
                if allow_patterns is None or any(fnmatch(file, pattern) for pattern in allow_patterns):
                    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
                    (tmp_path / file).touch()
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "list_repo_files", listed)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
        return asked

    return make


@pytest.mark.parametrize(
    ("address", "revision", "below"),
    [
        ("hf://datasets/owner/name", None, ""),
        ("hf://datasets/owner/name/", None, ""),
        ("hf://datasets/owner/name@v1.0", "v1.0", ""),
        ("hf://datasets/owner/name@refs/convert/parquet/default", "refs/convert/parquet", "default"),
        ("hf://datasets/owner/name/a/b", None, "a/b"),
    ],
)
def test_a_data_set_is_fetched_by_its_address(
    address: str, revision: str, below: str, repository, tmp_path: Path
) -> None:
    """With its revision and a folder in it; only the files that hold the pictures."""
    home = f"{below}/" if below else ""
    asked = repository(
        f"{home}train.parquet", f"{home}x.tar", f"{home}dataset_info.json", "README.md", "other/y.parquet"
    )
    assert hub.data_set(address) == tmp_path / below
    assert [(one["name"], one["revision"]) for one in asked] == [("owner/name", revision)] * 2
    there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert there == {f"{home}train.parquet", f"{home}dataset_info.json", *([] if below else ["other/y.parquet"])}


def test_of_other_repositories_shards_archives_or_all_files_are_fetched(repository, tmp_path: Path) -> None:
    """A single archive is the data set."""
    repository("a/1.png", "a/2.png", "metadata.csv")
    assert hub.data_set("hf://datasets/owner/name") == tmp_path
    assert (tmp_path / "a/2.png").exists()
    repository("data/all.zip")
    assert hub.data_set("hf://datasets/owner/name") == tmp_path / "data/all.zip"
    repository("data/0.tar", "data/all.zip")
    assert hub.data_set("hf://datasets/owner/name") == tmp_path


@pytest.mark.parametrize("address", ["hf://owner/name", "hf://datasets/name", "hf://datasets/owner/name@", "hf://"])
def test_other_addresses_are_refused(address: str) -> None:
    """With one that would do."""
    with pytest.raises(InputError, match="expected an address such as hf://datasets/owner/name, got"):
        hub.data_set(address)


def test_without_the_hub_the_local_cache_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And one that says no is believed."""

    def silent(name: str, **options: Any) -> None:
        raise ConnectionError

    def cached(name: str, *, local_files_only: bool, **options: Any) -> str:
        assert local_files_only
        return str(tmp_path)

    def gone(name: str, **options: Any) -> str:
        raise FileNotFoundError("a long story\nin lines")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", silent)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert hub.data_set("hf://datasets/owner/name") == tmp_path
    with pytest.raises(InputError, match="there is no folder x$"):
        hub.data_set("hf://datasets/owner/name/x")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", gone)
    with pytest.raises(InputError, match="the data set owner/name: it is not in the local cache and the hub cannot be"):
        hub.data_set("hf://datasets/owner/name")
    monkeypatch.setattr(huggingface_hub, "list_repo_files", gone)
    with pytest.raises(InputError, match="cannot fetch the data set owner/name: a long story$"):
        hub.data_set("hf://datasets/owner/name")


def test_a_data_set_of_the_hub_is_loaded(repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the folder that it is fetched to."""
    for number in range(3):
        Image.new("RGB", (9, 9), (number, 9, 9)).save(tmp_path / f"{number}.png")
    repository("0.png", "1.png", "2.png")
    monkeypatch.setattr(Path, "touch", lambda path: None)
    loaded = data.load("hf://datasets/owner/name", height=8, width=8)
    assert len(loaded.train) == 2
