"""Laws of `nextscale evaluate generation`: a block for people, JSON for programs, mistakes in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processes import together

from nextscale import Pipeline, features, images
from nextscale.cli.generation_report import Sheet
from nextscale.cli.sheet import GAP, SIDE, Row, drawn
from nextscale.evaluation import reference
from nextscale.evaluation.card import Card

COMMAND = ["evaluate", "generation", "--device", "cpu", "--precision", "fp32"]
FIGURES = [
    "frechet_distance",
    "spatial_frechet_distance",
    "kernel_distance",
    "score",
    "precision",
    "recall",
    "density",
    "coverage",
]


@pytest.fixture(scope="module")
def tiny(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline of 8x8 pixels and five classes; look, do not touch."""
    folder = tmp_path_factory.mktemp("tiny")
    pipe.save(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """References are kept apart from those of the person who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(features.FeatureNetwork, "side", 32)  # to be quick
        yield


@pytest.fixture
def call(nextscale: Callable[..., Any], tiny: Path, pictures: Path) -> Callable[..., Any]:
    """`call("--batch", 2)`: ten pictures of the tiny model against a folder of 24."""
    given = [*COMMAND, "--model", tiny, "--reference", pictures]

    def run(*options: object) -> Any:
        count = [] if "--count" in options or "--per-class-count" in options else ["--per-class-count", 2]
        return nextscale(*given, *count, *options)

    return run


def values(done: Any) -> Any:
    assert (done.status, done.errors) == (0, "")
    return json.loads(done.output)


def test_network_of_ones_own_judges_without_score(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name of a function in the working directory; a misspelt one is one line."""
    (tmp_path / "judges_here.py").write_text(
        "from torch import nn\nfrom nextscale import features\n\n\ndef colours():\n"
        "    module = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())\n"
        "    return features.of_module(module, name='colours', side=8)\n"
    )
    monkeypatch.chdir(tmp_path)
    result = values(call("--json", "-", "--features", "judges_here:colours"))["results"][0]
    assert result["figures"].keys() == {*FIGURES} - {"score", "spatial_frechet_distance"}
    assert result["figures"]["frechet_distance"]["name"] == "FD-colours"
    assert result["card"]["network"]["resize"] == "bicubic, antialiased"
    done = call("--features", "judges_here:colors")
    assert done.status == 2
    assert "expected MODULE:FUNCTION that can be imported, got judges_here:colors" in done.errors
    assert done.errors.count("\n") == 1


@pytest.mark.slow
def test_figures_and_card_fit_80_columns(call: Callable[..., Any], tiny: Path, pictures: Path) -> None:
    """Each figure under the name of its network; no bar where there is no terminal."""
    done = call()
    assert (done.status, done.errors) == (0, "")
    lines = done.output.splitlines()
    assert max(len(line) for line in lines if str(tiny) not in line and str(pictures) not in line) <= 80
    assert all(character.isprintable() or character == "\n" for character in done.output)
    names = [line.split()[0] for line in lines if line.startswith("  ") and "-EffNetLite0  " in line]
    assert names == [
        f"{name}-EffNetLite0" for name in ("FD", "sFD", "KD", "score", "precision", "recall", "density", "coverage")
    ]
    assert "FID" not in done.output
    assert "10, 2 of each of 5 classes" in done.output
    assert "warning: FD-EffNetLite0 is made from 10 pictures, fewer than 50,000" in " ".join(done.output.split())


@pytest.mark.slow
def test_json_holds_figures_warnings_and_a_card(call: Callable[..., Any], tiny: Path, tmp_path: Path) -> None:
    """Beside the block in a file; alone on stdout."""
    file = tmp_path / "figures.json"
    beside, alone = call("--json", file), call("--json", "-")
    assert "FD-EffNetLite0" in beside.output
    found = json.loads(file.read_text(encoding="utf-8"))
    assert values(alone) == found
    assert set(found) == {"best", "results"}
    (result,) = found["results"]
    assert set(result) == {"figures", "per_class", "warnings", "card"}
    assert list(result["figures"]) == FIGURES
    assert result["figures"]["frechet_distance"]["name"] == "FD-EffNetLite0"
    card = Card.from_json(result["card"])
    assert (card.model.name, card.model.precision, card.per_class, card.pictures) == (str(tiny), "fp32", 2, 10)
    assert (card.setting.guidance, card.setting.top_k, card.setting.top_p) == (1.5, 900, 0.96)
    assert result["warnings"]


@pytest.mark.slow
def test_seeds_alone_decide(call: Callable[..., Any]) -> None:
    """The batch does not matter, the seed does."""
    first, other, moved = (
        values(call("--json", "-", *options))["results"][0]["figures"]
        for options in ([], ["--batch", 3], ["--seed", 10])
    )
    for key in FIGURES:
        assert first[key]["value"] == pytest.approx(other[key]["value"], rel=1e-4), key
    assert first["frechet_distance"]["value"] != pytest.approx(moved["frechet_distance"]["value"], rel=1e-4)


@pytest.mark.slow
def test_repetitions_have_seeds_of_their_own(call: Callable[..., Any], tmp_path: Path) -> None:
    """Each value is that of a run with those seeds; the block tells mean and deviation, files which seeds."""
    file = tmp_path / "figures.json"
    done = call("--repeats", 2, "--seed", 5, "--json", file, "--out", tmp_path)
    (both,) = json.loads(file.read_text(encoding="utf-8"))["results"]
    single = [values(call("--seed", seed, "--json", "-"))["results"][0]["figures"] for seed in (5, 15)]
    for key in FIGURES:
        expected = [figures[key]["value"] for figures in single]
        assert both["figures"][key]["repeats"] == pytest.approx(expected, rel=1e-6), key
        assert both["figures"][key]["value"] == pytest.approx(sum(expected) / 2)
    assert (both["card"]["repeats"], both["card"]["first_seed"]) == (2, 5)
    assert "seeds 5 .. 24" in done.output
    assert done.output.count("over 2 sets of seeds") >= len(FIGURES)
    assert sorted(sheet.name for sheet in tmp_path.glob("sheet*")) == ["sheet-seed15.png", "sheet-seed5.png"]


@pytest.mark.slow
def test_count_is_rounded_up_to_whole_classes(call: Callable[..., Any]) -> None:
    """Eleven pictures of five classes are fifteen."""
    (result,) = values(call("--count", 11, "--json", "-"))["results"]
    assert (result["card"]["pictures"], result["card"]["per_class"]) == (15, 3)


@pytest.mark.slow
def test_a_sweep_is_a_table_whose_best_is_marked(call: Callable[..., Any], tmp_path: Path) -> None:
    """All combinations, a plot, and a sheet and a file of samples each."""
    out, file = tmp_path / "out", tmp_path / "sweep.json"
    done = call("--guidance", 0, 2, "--top-k", 1, 50, "--out", out, "--json", file, "--save-npz")
    assert done.status == 0
    lines = done.output.splitlines()
    rows = [line for line in lines[2:7] if line.strip() and line.lstrip("* ")[0] in "02"]
    assert len(rows) == 4
    found = json.loads(file.read_text(encoding="utf-8"))
    distances = [result["figures"]["frechet_distance"]["value"] for result in found["results"]]
    assert found["best"] == distances.index(min(distances))
    assert [row.startswith("*") for row in rows] == [index == found["best"] for index in range(4)]
    assert max(len(line) for line in lines[:8]) <= 80
    with Image.open(out / "sweep.png") as plot:
        assert plot.size[0] > plot.size[1] > 300
    assert len(list(out.glob("sheet-*.png"))) == 4
    assert len(list(out.glob("samples-*.npz"))) == 4


@pytest.mark.slow
def test_a_value_may_be_one_of_each_scale(call: Callable[..., Any], tmp_path: Path) -> None:
    """A setting as others are: in the table, the card and the names of files."""
    out = tmp_path / "out"
    done = call("--guidance", 1, "0,1,2,1", "--guidance-until", 3, "--out", out, "--json", tmp_path / "json")
    assert (done.status, done.errors) == (0, "")
    results = json.loads((tmp_path / "json").read_text())["results"]
    cards = [Card.from_json(result["card"]) for result in results]
    third = 1 / 3
    assert [card.setting.guidance for card in cards] == [pytest.approx((0, third, 2 * third, 0)), (0, 1, 2, 0)]
    assert (out / "sheet-guidance0,1,2,0-top-k900-top-p0.96-temperature1.png").is_file()
    refused = call("--top-k", "1,2")
    assert (refused.status, refused.errors.count("\n")) == (2, 1)
    assert "top_k: expected one value, or one a scale, 4, got 2" in refused.errors


@pytest.mark.slow
def test_reach_and_step_guidance_are_columns_where_they_differ(call: Callable[..., Any], tmp_path: Path) -> None:
    """Only there; the card of a setting tells them."""
    out = tmp_path / "out"
    done = call("--reach", 1, 2, "--step-guidance", 0, 0.5, "--out", out, "--json", tmp_path / "json")
    assert (done.status, done.errors) == (0, "")
    results = json.loads((tmp_path / "json").read_text())["results"]
    settings = [Card.from_json(result["card"]).setting for result in results]
    assert [(setting.step_guidance, setting.reach) for setting in settings] == [(0, 1), (0, 2), (0.5, 1), (0.5, 2)]
    assert "guidance top-k top-p temp step reach" in " ".join(done.output.split())
    names = {file.name for file in out.glob("sheet-*")}
    assert "sheet-guidance1.5-top-k900-top-p0.96-temperature1-reach1.png" in names
    assert "sheet-guidance1.5-top-k900-top-p0.96-temperature1-step-guidance0.5-reach2.png" in names
    assert len({result["figures"]["frechet_distance"]["value"] for result in results}) == 4


@pytest.mark.slow
def test_maps_may_be_chosen_by_a_function(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card says by which, how many and where."""
    monkeypatch.chdir(tmp_path)
    Path("scores_here.py").write_text("def dark(step):\n    return -step.preview().mean(dim=(1, 2, 3))\n")
    plain, chosen = (
        json.loads(call("--json", "-", *options).output)["results"][0]
        for options in ([], ["--rerank", 3, "--rerank-by", "scores_here:dark"])
    )
    setting = Card.from_json(chosen["card"]).setting
    assert setting.rerank == "best of 3 maps at scales 0,1 by scores_here:dark"
    assert str(setting).endswith("temperature 1, best of 3 maps at scales 0,1 by scores_here:dark")
    assert chosen["figures"]["frechet_distance"] != plain["figures"]["frechet_distance"]
    assert Card.from_json(plain["card"]).setting.rerank is None


@pytest.mark.slow
def test_saved_samples_are_the_pictures_and_a_reference(call: Callable[..., Any], tmp_path: Path) -> None:
    """The sheet has a row of them beside each class's name."""
    assert call("--out", tmp_path, "--save-npz").status == 0
    stored = np.load(tmp_path / "samples.npz")
    assert (stored["arr_0"].shape, stored["arr_0"].dtype) == ((10, 8, 8, 3), np.uint8)
    rows = [
        Row(name, images.from_uint8(torch.from_numpy(stored["arr_0"][label::5]).permute(0, 3, 1, 2)))
        for label, name in enumerate(("ant", "bee", "cat", "dog", "eel"))
    ]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.tobytes() == drawn(rows).tobytes()
    assert reference.load(tmp_path / "samples.npz", size=(8, 8)).count == 10


def test_a_sheet_of_many_classes_shows_the_first_that_come(tmp_path: Path) -> None:
    """Sixteen rows of four at most, in the order of the classes, whoever comes first and however many."""
    sheet = Sheet(tmp_path / "sheet.png", [str(label) for label in range(1000)])
    for _ in range(6):
        sheet.add(torch.zeros(40, 3, 128, 128), [*range(39, 19, -1), *range(20)])
    assert sorted(sheet.rows) == list(range(24, 40))
    assert {len(row) for row in sheet.rows.values()} == {4}
    sheet.save()
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.height == 16 * SIDE + 15 * GAP


@pytest.mark.slow
def test_stored_samples_are_a_reference(nextscale: Callable[..., Any], tiny: Path, call: Callable[..., Any]) -> None:
    """Compared with itself the model is at distance zero."""
    out = tiny.parent / f"{tiny.name}-samples"
    call("--out", out, "--save-npz")
    given = [*COMMAND, "--model", tiny, "--reference", out / "samples.npz", "--per-class-count", 2, "--json", "-"]
    figures = values(nextscale(*given))["results"][0]["figures"]
    assert figures["frechet_distance"]["value"] == pytest.approx(0, abs=1e-4)
    assert figures["precision"]["value"] == figures["coverage"]["value"] == 1


@pytest.mark.slow
def test_a_reference_whose_labels_are_none_says_so(nextscale: Callable[..., Any], tiny: Path, tmp_path: Path) -> None:
    """In one line beside the figures, which need none."""
    levels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "logits.npz", arr_0=levels, arr_1=np.zeros((24, 5)))
    given = [*COMMAND, "--model", tiny, "--reference", tmp_path / "logits.npz", "--per-class-count", 2, "--json", "-"]
    done = nextscale(*given)
    told = f"reference: {tmp_path / 'logits.npz'}: without labels, since arr_1 is not (24,)"
    assert (done.status, " ".join(done.errors.split()).startswith(told)) == (0, True)
    assert json.loads(done.output)["results"]


@pytest.mark.slow
def test_a_mistake_is_one_line_and_status_2(
    nextscale: Callable[..., Any], tiny: Path, pictures: Path, tmp_path: Path
) -> None:
    """Nothing is written, nothing is on stdout."""
    missing, out = tmp_path / "missing", tmp_path / "out"
    given = ["--model", tiny, "--reference", pictures]
    cases: list[tuple[list[object], str]] = [
        (["--model", missing], str(missing)),
        (["--model", tiny, "--reference", missing], str(missing)),
        (["--model", tiny, "--reference", tmp_path / "missing.npz"], "missing.npz"),
        ([*given, "--split", "test"], "--split"),
        ([*given, "--features", "inception-v9"], "inception-v9"),
        ([*given, "--count", 5, "--per-class-count", 1], "expected --count or --per-class-count, got both"),
        ([*given, "--count", 0], "--count: expected at least 1, got 0"),
        ([*given, "--per-class-count", 0], "--per-class-count: expected at least 1, got 0"),
        ([*given, "--rejection", 0], "--rejection: expected a share above 0, at most 1, got 0"),
        ([*given, "--rejection", 0.5], "classifier: expected pictures of each of 5 classes, got 2 classes"),
        ([*given, "--per-class"], "--per-class: expected a reference with pictures of each of 5 classes"),
        ([*given, "--batch", 0], "--batch: expected at least 1, got 0"),
        ([*given, "--keep", 3], "--keep: expected at least 4, got 3"),
        ([*given, "--repeats", 0], "--repeats: expected at least 1, got 0"),
        ([*given, "--seed", -1], "--seed: expected at least 0, got -1"),
        ([*given, "--guidance"], "--guidance: expected at least one value, got none"),
        ([*given, "--guidance", "nan"], "guidance: expected a finite number"),
        ([*given, "--top-p", 0.5, 1.5], "top_p: expected 0 .. 1, got 1.5"),
        ([*given, "--top-k", "many"], "--top-k"),
        ([*given, "--json", tmp_path], "--json: expected a file, got the directory"),
        (["--reference", pictures, "--depth", 16], "--depth"),
        ([*given, "--smooth"], "unknown option --smooth"),
        ([*given, "--max-broken", 2], "--max-broken: expected a share from 0 to 1, got 2"),
        ([*given, "--list-broken", tmp_path], "--list-broken: expected a file to write"),
    ]
    for options, told in cases:
        done = nextscale(*COMMAND, *options, "--out", out)
        assert (done.status, done.output, done.errors.count("\n")) == (2, "", 1), options
        assert told in done.errors, done.errors
        assert not out.exists()


@pytest.mark.slow
def test_unreadable_pictures_are_left_out_as_far_as_allowed(
    nextscale: Callable[..., Any], tiny: Path, labelled: Path, tmp_path: Path
) -> None:
    """And named in a file; without being asked, a reference with holes is refused."""
    folder, listed = tmp_path / "reference", tmp_path / "broken.txt"
    shutil.copytree(labelled, folder)
    (folder / "class1" / "01.png").write_bytes(b"no picture")
    given = [*COMMAND, "--model", tiny, "--reference", folder, "--per-class-count", 2]
    done = nextscale(*given)
    assert (done.status, done.output) == (2, "")
    assert "01.png" in done.errors
    done = nextscale(*given, "--max-broken", 0.1, "--list-broken", listed)
    assert (done.status, done.errors) == (0, "")
    assert "reference: 1 pictures cannot be read" in " ".join(done.output.split())
    assert "24 pictures of 8x8" in " ".join(done.output.split())
    assert listed.read_text(encoding="utf-8").startswith("class1/01.png\t")


def test_samples_want_a_place(call: Callable[..., Any]) -> None:
    """`--save-npz` without `--out`."""
    done = call("--save-npz")
    assert (done.status, done.errors.count("\n")) == (2, 1)
    assert "--save-npz: expected --out" in done.errors


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tiny: Path, labelled: Path, tmp_path: Path) -> None:
    """Every figure to 1e-6 of itself, told once, plainly; with rejection sampling, which they also share."""
    given = [*COMMAND, "--model", tiny, "--reference", labelled, "--per-class-count", 2, "--batch", 4]
    given += ["--rejection", 0.5, "--per-class"]
    program, found = [Path(__file__).with_name("glance.py"), *given], []
    for processes in (1, 2):
        file, cache = tmp_path / f"{processes}.json", tmp_path / f"{processes}"
        environment = {"XDG_CACHE_HOME": str(cache), "COLUMNS": "80"}
        done = together(*program, "--json", file, processes=processes, strict=False, environment=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("  FD-EffNetLite0-re  ") == 1
        assert not set("\x1b\r") & set(done.stdout)
        found.append(json.loads(file.read_text(encoding="utf-8"))["results"][0])
    alone, shared = found
    assert alone["card"] == shared["card"]
    distances = [[each["frechet_distance"] for each in result["per_class"]] for result in found]
    assert distances[1] == pytest.approx(distances[0], rel=1e-6)
    for key in FIGURES:
        assert shared["figures"][key]["value"] == pytest.approx(alone["figures"][key]["value"], rel=1e-6), key


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five classes, 25 pictures of 8x8 pixels."""
    root = tmp_path_factory.mktemp("labelled")
    for number in range(25):
        folder = root / f"class{number % 5}"
        folder.mkdir(exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number:02}.png")
    return root


@pytest.mark.slow
def test_classes_are_judged_apart(nextscale: Callable[..., Any], tiny: Path, labelled: Path, tmp_path: Path) -> None:
    """A row each, by name, and a warning that they are few."""
    file = tmp_path / "figures.json"
    given = [*COMMAND, "--model", tiny, "--reference", labelled, "--per-class-count", 3]
    done = nextscale(*given, "--per-class", "--json", file)
    assert (done.status, done.errors) == (0, "")
    result = json.loads(file.read_text(encoding="utf-8"))["results"][0]
    assert [(each["label"], each["pictures"], each["reference"]) for each in result["per_class"]] == [
        (label, 3, 5) for label in range(5)
    ]
    assert {line.split()[0] for line in done.output.splitlines() if line} >= {"ant", "bee", "cat", "dog", "eel"}
    assert any("5 of 5 classes have as few as 3 pictures for 1,280 dimensions" in line for line in result["warnings"])


@pytest.mark.slow
def test_rejection_sampling_is_marked(nextscale: Callable[..., Any], tiny: Path, labelled: Path) -> None:
    """Every figure's name, and the card says how; the pictures are the surest, not the first."""
    given = [*COMMAND, "--model", tiny, "--reference", labelled, "--per-class-count", 2, "--json", "-"]
    plain, chosen = (
        values(nextscale(*given, *options))["results"][0] for options in ([], ["--rejection", 0.5, "--batch", 5])
    )
    assert all(figure["name"].endswith("-EffNetLite0-re") for figure in chosen["figures"].values())
    rejection = chosen["card"]["rejection"]
    assert (rejection["rate"], rejection["candidates"], chosen["card"]["pictures"]) == (0.5, 4, 10)
    assert any("flatter" in line for line in chosen["warnings"])
    assert plain["figures"]["frechet_distance"]["value"] != chosen["figures"]["frechet_distance"]["value"]
