"""Laws of the model that comes with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors
import torch
from tiny import TOKENIZER

from nextscale import MultiScaleVQVAE, Pipeline, images
from nextscale.cli import main
from nextscale.cli.models import tokenizer_alone
from nextscale.data import emoji
from nextscale.hub import DEFAULT_MODEL
from nextscale.pipeline import Request

ROOT = Path(__file__).resolve().parent.parent
MOST = 24e6  # bytes of weights, which whoever installs the package downloads


def test_it_is_small_and_stored_in_bfloat16() -> None:
    """And held in float32 where it is trained on."""
    files = sorted(DEFAULT_MODEL.glob("*.safetensors"))
    assert [file.stem for file in files] == ["tokenizer", "transformer"]
    assert sum(file.stat().st_size for file in files) <= MOST
    for file in files:
        with safetensors.safe_open(file, "pt") as stored:
            assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"BF16"}  # noqa: SIM118 (no dict)
    assert {weight.dtype for weight in MultiScaleVQVAE.load(DEFAULT_MODEL).parameters()} == {torch.float32}
    assert {weight.dtype for weight in Pipeline.load(precision="fp32").transformer.parameters()} == {torch.float32}


def test_it_paints_prompts_in_styles() -> None:
    """Without a directory to load from; a prompt and a style both change the picture."""
    pipe = Pipeline.load(precision="fp32")
    assert {"noto", "fluent flat", "twemoji"} <= {*pipe.classes}
    styles = ["noto", "noto", "icon park"]
    first, second, third = pipe.generate(styles, [0, 0, 0], prompts=["cat face", "red heart", "cat face"]).images
    assert first.shape == (3, 64, 64)
    assert not torch.equal(first, second)
    assert not torch.equal(first, third)


def test_commands_use_it_when_no_model_is_named(tmp_path: Path) -> None:
    """What they write says so."""
    assert main(["sample", "--prompt", "a rocket", "--label", "noto", "--out", str(tmp_path)]) == 0
    (picture,) = tmp_path.glob("*-seed0.png")
    request = Request.from_notes(images.notes(picture))
    assert (request.prompt, request.model) == ("a rocket", Pipeline.load().fingerprint)


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
