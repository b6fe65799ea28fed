"""Laws of the tokenizer that comes with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors
import torch
from tiny import TOKENIZER

from nextscale import MultiScaleVQVAE, images
from nextscale.cli.models import DEFAULT_MODEL, tokenizer_alone
from nextscale.data import emoji

ROOT = Path(__file__).resolve().parent.parent
MOST = 24e6  # bytes of weights, which whoever installs the package downloads


def test_it_is_small_and_stored_in_bfloat16() -> None:
    """And held in float32."""
    (file,) = DEFAULT_MODEL.glob("*.safetensors")
    assert file.stat().st_size <= MOST
    with safetensors.safe_open(file, "pt") as stored:
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"BF16"}  # noqa: SIM118 (no dict)
    assert {weight.dtype for weight in MultiScaleVQVAE.load(DEFAULT_MODEL).parameters()} == {torch.float32}


@pytest.mark.slow
@torch.no_grad()
def test_it_has_learned_to_paint_what_it_sees() -> None:
    """Pictures of another set of drawings in 130 tokens, to 17 dB and more; an untrained one is at 8 or so."""
    tokenizer = tokenizer_alone(Path("default"))
    pictures, _ = emoji.load(height=64, width=64).validation.batch(range(8))
    painted = tokenizer.decode(tokenizer.encode(pictures))
    assert tokenizer.config.scales.total == 130
    assert images.psnr(painted, pictures).mean() > 17


def test_those_who_drew_what_it_has_learned_from_are_named() -> None:
    """As the script that makes the data writes it."""
    assert (DEFAULT_MODEL / "attribution.md").read_bytes() == (ROOT / "scripts/icon_pack_attribution.md").read_bytes()


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls a run so means it."""
    monkeypatch.chdir(tmp_path)
    MultiScaleVQVAE(TOKENIZER).save(Path("default"))
    assert tokenizer_alone(Path("default")).config == TOKENIZER
