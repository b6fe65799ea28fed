"""Laws of benchmarks/editing.py: its figures are of the seam and of what is kept, and of nothing else."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from nextscale import VAR, MultiScaleVQVAE, Pipeline

PROGRAM = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "editing.py"))


@pytest.fixture
def holes() -> Tensor:
    """(1, 12, 12) bool: the right half but for its last column."""
    holes = torch.zeros(1, 12, 12, dtype=torch.bool)
    holes[..., 6:11] = True
    return holes


def test_a_step_over_the_border_is_the_energy_of_the_seam(holes: Tensor) -> None:
    """Steps elsewhere are not."""
    steps = torch.where(holes[:, None], 0.5, 0.2).expand(-1, 3, -1, -1)
    assert PROGRAM["seam"](steps, holes) == pytest.approx(0.09)
    assert PROGRAM["inside"](steps, holes) == 0
    within = torch.zeros(1, 3, 12, 12)
    within[..., 8:9] = 1
    assert PROGRAM["seam"](within, holes) == 0
    assert PROGRAM["inside"](within, holes) > 0


def test_the_error_is_of_what_is_kept(holes: Tensor) -> None:
    """Whatever was painted in the hole."""
    pictures = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    painted = torch.where(holes[:, None], 1 - pictures, pictures + 0.25)
    assert PROGRAM["kept_error"](painted, pictures, holes) == pytest.approx(0.25)


def test_the_table_tells_of_leaks(
    tokenizer: MultiScaleVQVAE,
    make_transformer: Callable[..., VAR],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Three pictures: none of ours change with what is hidden, the release's do; the sheet is made."""
    Pipeline(tokenizer, make_transformer(classes=9)).save(tmp_path / "model")
    sheet = tmp_path / "sheet.png"
    monkeypatch.setattr(sys, "argv", ["editing", str(tmp_path / "model"), "--count", "3", "--sheet", str(sheet)])
    assert PROGRAM["main"]() == 0
    leaks = {line[:26].strip(): line.split()[-1] for line in capsys.readouterr().out.splitlines()[3:]}
    assert leaks["ours"] == "0"
    assert leaks["the release's"] == "3"
    with Image.open(sheet) as image:
        assert image.width >= 8 * 128
