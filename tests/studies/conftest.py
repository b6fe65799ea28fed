"""Small presets for the studies of these tests, and a cache of their own for what judges see."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import toy

from nextscale import presets


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache of studies"))
    monkeypatch.setattr(presets, "get", toy.small)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a study goes."""
    return tmp_path / "study"
