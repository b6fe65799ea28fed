"""Laws of `evaluate generation --prompts held-out`: a table for people, JSON for programs, mistakes in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nextscale import Pipeline, features
from nextscale.data import figures
from nextscale.evaluation import attributes
from nextscale.evaluation.card import AlignmentCard

COMMAND = ["evaluate", "generation", "--device", "cpu", "--precision", "fp32", "--prompts", "held-out"]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 subjects, each in two styles, named after what they show."""
    root = tmp_path_factory.mktemp("drawings")
    for style in ("pen", "ink"):
        (root / style).mkdir()
        for number in range(120):
            pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            word = "".join("abcdefghij"[int(digit)] for digit in f"{number:03}")  # numbers are no words of a name
            Image.fromarray(pixels).save(root / style / f"thing-{word}.png")
    return root


@pytest.fixture(scope="module")
def reads(text_pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that reads text."""
    folder = tmp_path_factory.mktemp("reads")
    text_pipe.save(folder)
    return folder


@pytest.fixture
def call(
    nextscale: Callable[..., Any], reads: Path, drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """`call("--count", 2)`: four prompts of the drawings."""
    monkeypatch.setattr(features.FeatureNetwork, "side", 32)  # to be quick
    return lambda *options: nextscale(*COMMAND, "--model", reads, "--reference", drawings, *options)


@pytest.mark.slow
def test_a_table_and_a_card_fit_80_columns(call: Callable[..., Any], tmp_path: Path) -> None:
    """Of both kinds of prompts that there are, each beside its marks; JSON holds the same; a sheet shows the first."""
    file = tmp_path / "found.json"
    done = call("--captions", "names", "--count", 4, "--json", file, "--out", tmp_path / "out")
    assert (done.status, done.errors) == (0, "")
    assert max(len(line) for line in done.output.splitlines() if str(tmp_path.parent) not in line) <= 80
    assert "retrieval-EffNetLite0" in done.output
    found = json.loads(file.read_text(encoding="utf-8"))
    card = AlignmentCard.from_json(found["card"])
    assert card.prompts == {"seen": 4, "unseen combination": 4}
    assert (card.among, card.setting.guidance, card.first_seed) == (100, 1.5, 0)
    rows = {(row["kind"], row["whose"]): row["figures"] for row in found["rows"]}
    assert len(rows) == 6
    for kind in card.prompts:
        assert rows[kind, "real pictures"]["retrieval@1"]["value"] == 1  # both styles are the same picture here
        assert rows[kind, "other prompts"]["retrieval@1"]["value"] < 0.5
    with Image.open(tmp_path / "out" / "prompts.png") as sheet:
        assert sheet.size[0] > 500


@pytest.mark.slow
def test_json_alone_goes_to_stdout(call: Callable[..., Any]) -> None:
    """And is the same for the same seed, whatever the batch."""
    first, second = (call("--captions", "names", "--count", 2, "--json", "-", "--batch", batch) for batch in (1, 4))
    assert json.loads(first.output)["rows"] == json.loads(second.output)["rows"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of random weights."""
    pytest.importorskip("transformers")
    from evaluation.test_clip import make

    folder = tmp_path_factory.mktemp("clip")
    make(folder)
    return folder


@pytest.mark.slow
def test_a_clip_scores_pictures_beside_their_prompts(call: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    """Where its weights are named: a table of its own, the same in JSON, and the weights on the card."""
    file = tmp_path / "found.json"
    done = call("--captions", "names", "--count", 2, "--json", file, "--clip", clip)
    assert (done.status, done.errors) == (0, "")
    assert "CLIP score, 0 .. 100" in done.output
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [row["whose"] for row in found["clip"]] == ["the model", "real pictures", "other prompts"] * 2
    for row in found["clip"]:
        assert 0 <= row["figures"]["clip_score"]["low"] <= row["figures"]["clip_score"]["value"] <= 100
    used = AlignmentCard.from_json(found["card"]).clip
    assert used is not None
    assert (used.name, used.side) == (str(clip), 16)
    assert used.fingerprint in done.output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--clip", "nowhere"], "CLIP nowhere: expected one of the transformers library, got: no such folder"),
        (["--repeats", 2], "--repeats: expected 1 with --prompts, got 2"),
        (["--guidance", 1, 2], "--guidance: expected one value with --prompts, got 1.0 2.0"),
        (["--per-class"], "--per-class: expected without --prompts, got both"),
        (["--captions", "nowhere.csv"], "nowhere.csv"),
        ([], "captions"),  # none come with these pictures
    ],
)
def test_a_mistake_is_one_line(call: Callable[..., Any], options: list[object], told: str) -> None:
    """Status 2."""
    done = call(*options)
    assert (done.status, done.errors.count("\n")) == (2, 1)
    assert told in done.errors


def test_a_model_without_text_is_refused(
    nextscale: Callable[..., Any], pipe: Pipeline, drawings: Path, tmp_path: Path
) -> None:
    """It has no use for prompts."""
    pipe.save(tmp_path / "model")
    done = nextscale(*COMMAND, "--model", tmp_path / "model", "--reference", drawings)
    assert done.status == 2
    assert "--prompts: expected a model that reads text, got" in done.errors


@pytest.mark.slow
def test_figures_are_judged_by_their_attributes(
    nextscale: Callable[..., Any], reads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of seen and unseen pairs, beside real figures and other prompts; JSON holds the same."""
    pytest.importorskip("dicebear")
    monkeypatch.setattr(figures.Figure, "captions", lambda figure: (str(figure.number % 9),))  # 8 letters are read
    monkeypatch.setattr(attributes.learn, "__kwdefaults__", attributes.learn.__kwdefaults__ | {"steps": 2, "count": 9})
    file = tmp_path / "found.json"
    given = (*COMMAND, "--model", reads, "--reference", "figures", "--count", 3)
    done = nextscale(*given, "--json", file)
    assert (done.status, done.errors) == (0, "")
    assert max(map(len, done.output.splitlines())) <= 80
    assert "…" not in done.output
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert [(row["pairs"], row["whose"]) for row in rows] == [
        (pairs, whose) for pairs in ("seen", "unseen") for whose in ("the model", "real figures", "other prompts")
    ]
    for row in rows:
        assert list(row["shares"]) == ["kind", "colour", "part", "eyes", "mouth", "background", "all"]
        assert row["shares"]["all"]["count"] == 3
    done = nextscale(*given, "--out", tmp_path / "out")
    assert (done.status, done.errors.count("\n")) == (2, 1)
