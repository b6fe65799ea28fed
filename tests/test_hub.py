"""Laws of hub names: what is one, and how long the hub is waited for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from nextscale import InputError, hub


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
