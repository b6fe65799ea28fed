"""Laws of `nextscale evaluate reconstruction`: a block for people, JSON for programs, mistakes in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from PIL import Image

from nextscale import MultiScaleVQVAE, features
from nextscale.cli.sheet import GAP, LINE, SIDE, font
from nextscale.evaluation.card import ReconstructionCard

COMMAND = ["evaluate", "reconstruction", "--device", "cpu"]
SETS = ["spatial_frechet_distance", "kernel_distance", "score", "precision", "recall", "density", "coverage"]
BOUNDED = ["psnr", "ssim", "perceptual_distance", "frechet_distance", "precision", "recall", "density", "coverage"]
RESULTS = [
    *("psnr", "ssim", "perceptual_distance", "frechet_distance"),
    *SETS,
    *("bits_per_pixel", "entropy_bits_per_pixel"),
]


@pytest.fixture(scope="module")
def tokenizer_run(tokenizer: MultiScaleVQVAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tokenizer of 8x8 pixels; look, do not touch."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@pytest.fixture(autouse=True)
def small_eyes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded network looks at 32 pixels, to be quick."""
    monkeypatch.setattr(features.FeatureNetwork, "side", 32)


@pytest.fixture
def call(nextscale: Callable[..., Any], tokenizer_run: Path, pictures: Path) -> Callable[..., Any]:
    """`call("--batch", 2)`: the command on a folder of 24 pictures."""
    return lambda *options: nextscale(*COMMAND, "--tokenizer", tokenizer_run, "--data", pictures, *options)


@pytest.mark.slow
def test_figures_scales_and_setting_fit_80_columns(call: Callable[..., Any], pictures: Path) -> None:
    """Each figure by its name, one row a scale, and what it was measured with."""
    done = call("--split", "train")
    assert (done.status, done.errors) == (0, "")
    lines = done.output.splitlines()
    assert max(len(line) for line in lines if str(pictures.parent) not in line) <= 80
    assert "…" not in done.output
    assert all(character.isprintable() or character == "\n" for character in done.output)
    names = [
        *("PSNR (dB)", "SSIM", "perceptual-EffNetLite0", "FD-EffNetLite0", "sFD-EffNetLite0", "KD-EffNetLite0"),
        *(f"{name}-EffNetLite0" for name in ("score", "precision", "recall", "density", "coverage")),
        *("bits per pixel", "bits, entropy-coded"),
    ]
    assert [line[:30].strip() for line in lines[: len(names)]] == names
    assert [line.split()[0] for line in lines if line[:3] in ("1x1", "2x2", "3x3", "4x4")] == [
        "1x1",
        "2x2",
        "3x3",
        "4x4",
    ]
    assert "FID" not in done.output.replace("FD-", "")


@pytest.mark.slow
def test_json_holds_every_figure_and_what_is_needed_to_repeat_it(
    call: Callable[..., Any], tokenizer_run: Path, pictures: Path, tmp_path: Path
) -> None:
    """Beside the block in a file; alone on stdout."""
    file = tmp_path / "figures.json"
    beside, alone = (call("--split", "train", "--json", place) for place in (file, "-"))
    assert "FD-EffNetLite0" in beside.output
    values = json.loads(file.read_text(encoding="utf-8"))
    assert json.loads(alone.output) == values
    assert all(type(values[name]) is float for name in RESULTS)
    assert list(values["figures"]) == RESULTS
    assert all(values["figures"][name]["value"] == values[name] for name in RESULTS)
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in map(values["figures"].get, BOUNDED))
    assert values["frechet_name"] == "FD-EffNetLite0"
    card = ReconstructionCard.from_json(values["card"])
    assert (card.tokenizer.name, card.split) == (str(tokenizer_run), "train")
    assert card.reference.name == f"{pictures}, train split"
    assert (card.network.name, card.perceptual.name, card.perceptual.learned) == ("EffNetLite0", "EffNetLite0", False)
    assert {"torch", "torchmetrics", "nextscale"} <= set(card.versions)
    assert [scale["size"] for scale in values["scales"]] == ["1x1", "2x2", "3x3", "4x4"]
    assert set(values["scales"][0]) == {"size", "tokens", "used", "possible", "perplexity", "residual", "psnr"}


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tokenizer_run: Path, pictures: Path, tmp_path: Path) -> None:
    """Every figure to 1e-6 of itself, of every scale too, told once, plainly."""
    program = [Path(__file__).with_name("glance.py"), *COMMAND, "--tokenizer", tokenizer_run, "--data", pictures]
    program += ["--split", "train", "--batch", 4, "--features", "efficientnet-lite0"]
    found = []
    for count in (1, 2):
        file, place = tmp_path / f"{count}.json", tmp_path / str(count)
        words = [*program, "--json", file, "--out", place]
        done = processes.together(*words, processes=count, strict=False, environment={"COLUMNS": "80"})
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("  FD-EffNetLite0  ") == 1
        assert not set("\x1b\r") & set(done.stdout)
        assert (place / "worst-and-best.png").exists()
        found.append(json.loads(file.read_text(encoding="utf-8")))
    alone, together = found
    assert alone["card"] == together["card"]
    for name in RESULTS:
        assert together[name] == pytest.approx(alone[name], rel=1e-6, abs=1e-9), name
        ours, theirs = ([values["figures"][name][end] or 0 for end in ("low", "high")] for values in found)
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7), name
    for ours, theirs in zip(together["scales"], alone["scales"], strict=True):
        assert ours.pop("size") == theirs.pop("size")
        assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.slow
def test_perceptual_network_may_be_another_with_heads(call: Callable[..., Any], tmp_path: Path) -> None:
    """As the trainer's: heads twice as heavy make the distance twice as large, and nothing else another."""
    counts = features.load().channels
    for weight, name in ((1.0, "ones.pth"), (2.0, "twos.pth")):
        heads = {f"lin{i}.model.1.weight": torch.full((1, count, 1, 1), weight) for i, count in enumerate(counts)}
        torch.save(heads, tmp_path / name)
    plain, once, twice = (
        json.loads(call("--json", "-", *options).output)
        for options in (
            [],
            ["--perceptual", "efficientnet-lite0", tmp_path / "ones.pth"],
            ["--perceptual", "efficientnet-lite0", tmp_path / "twos.pth"],
        )
    )
    assert twice["perceptual_distance"] == pytest.approx(2 * once["perceptual_distance"], rel=1e-5)
    assert once["perceptual_distance"] == pytest.approx(len(counts) * plain["perceptual_distance"], rel=1e-5)
    assert once["frechet_distance"] == plain["frechet_distance"]
    learned = [values["card"]["perceptual"]["learned"] for values in (plain, once, twice)]
    assert learned == [False, True, True]


@pytest.mark.slow
def test_splits_are_judged_apart(call: Callable[..., Any], pictures: Path) -> None:
    """Together they are all pictures; training pictures are said to be such."""
    held_out = json.loads(call("--json", "-").output)
    trained_on = json.loads(call("--json", "-", "--split", "train").output)
    assert held_out["pictures"] + trained_on["pictures"] == len(list(pictures.glob("*/*.png")))
    assert held_out["data_fingerprint"] != trained_on["data_fingerprint"]
    assert any("there to train on" in line for line in trained_on["warnings"])
    assert not any("there to train on" in line for line in held_out["warnings"])


@pytest.mark.slow
def test_figures_of_neighbours_want_four_pictures(call: Callable[..., Any]) -> None:
    """Of the two held out all others are told."""
    values = json.loads(call("--json", "-").output)
    assert values["pictures"] < 4
    missing = {"kernel_distance", "precision", "recall", "density", "coverage"}
    assert list(values["figures"]) == [name for name in RESULTS if name not in missing]


@pytest.mark.slow
def test_few_pictures_are_warned_of(call: Callable[..., Any]) -> None:
    """In the block as in the JSON, with their number."""
    done = call("--split", "train")
    count = json.loads(call("--json", "-", "--split", "train").output)["pictures"]
    text = " ".join(done.output.split())
    assert f"warning: FD-EffNetLite0 is made from {count} pictures, fewer than 50,000" in text
    assert "covariance is singular" in text


@pytest.mark.slow
def test_sheet_shows_the_worst_and_the_best_below_their_originals(call: Callable[..., Any], tmp_path: Path) -> None:
    """Four rows of eight pictures beside their names, originals below their distances."""
    done = call("--split", "train", "--out", tmp_path / "sheets")
    sheet = tmp_path / "sheets" / "worst-and-best.png"
    assert str(sheet) in done.output
    with Image.open(sheet) as picture:
        assert picture.height == 4 * SIDE + 3 * GAP + 2 * LINE
        assert picture.width > 8 * SIDE + 7 * GAP + font().getlength("reconstructed")


@pytest.mark.slow
def test_model_is_taken_for_its_tokenizer(nextscale: Callable[..., Any], model: Path, pictures: Path) -> None:
    """`--model DIR` and `--tokenizer DIR` of one directory are the same."""
    rest = ["--data", pictures, "--json", "-"]
    runs = [json.loads(nextscale(*COMMAND, option, model, *rest).output) for option in ("--model", "--tokenizer")]
    assert runs[0] == runs[1]
    assert (runs[0]["height"], runs[0]["width"]) == (32, 32)


@pytest.mark.slow
def test_a_mistake_is_one_line_and_status_2(
    nextscale: Callable[..., Any], tokenizer_run: Path, pictures: Path, tmp_path: Path
) -> None:
    """Nothing is written, nothing is on stdout."""
    missing, out = tmp_path / "missing", tmp_path / "out"
    given = ["--tokenizer", tokenizer_run, "--data", pictures]
    cases: list[tuple[list[object], str]] = [
        (["--tokenizer", missing], str(missing)),
        ([*given, "--model", tokenizer_run], "expected --model or --tokenizer, got both"),
        (["--tokenizer", tokenizer_run, "--data", missing], str(missing)),
        ([*given, "--split", "test"], "--split: expected one of 'validation', 'train', got 'test'"),
        ([*given, "--features", "inception-v9"], "inception-v9"),
        ([*given, "--batch", 0], "--batch: expected at least 1, got 0"),
        ([*given, "--keep", 3], "--keep: expected at least 4, got 3"),
        ([*given, "--perceptual", missing], str(missing)),
        ([*given, "--perceptual", "efficientnet-lite0", missing], str(missing)),
        ([*given, "--perceptual", "efficientnet-lite0", missing, missing], "at most one file of heads, got 2"),
        ([*given, "--device", "abacus"], "abacus"),
        ([*given, "--json", tmp_path], "--json: expected a file, got the directory"),
        ([*given, "--depth", 16], "--depth"),
        ([*given, "--seed", 1], "unknown option --seed"),
    ]
    for options, told in cases:
        device = [] if "--device" in options else ["--device", "cpu"]
        done = nextscale("evaluate", "reconstruction", *options, *device, "--out", out)
        assert (done.status, done.output, done.errors.count("\n")) == (2, "", 1), options
        assert told in done.errors, done.errors
        assert not out.exists()


def test_a_place_that_is_no_directory_is_refused_before_the_work(call: Callable[..., Any], tmp_path: Path) -> None:
    """`--out` names a file."""
    (tmp_path / "file").touch()
    done = call("--out", tmp_path / "file")
    assert (done.status, done.output, done.errors.count("\n")) == (2, "", 1)
    assert "--out: expected a directory" in done.errors


def test_group_has_help(nextscale: Callable[..., Any]) -> None:
    """`nextscale evaluate --help` lists all three."""
    shown = nextscale("evaluate", "--help")
    assert [line.split()[:2] for line in shown.output.splitlines() if line.startswith("  evaluate ")] == [
        ["evaluate", "reconstruction"],
        ["evaluate", "generation"],
        ["evaluate", "likelihood"],
    ]
    assert max(map(len, nextscale("--help").output.splitlines())) <= 80
