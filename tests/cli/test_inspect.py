"""Laws of `nextscale inspect` and `nextscale evaluate likelihood`: sheets, tables, JSON, mistakes in one line."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale import Pipeline, Scales, data, features, images
from nextscale.cli import inspect
from nextscale.cli.inspect_sheet import Neighbour, Sheet, density, painted

NAMES = ["ant", "bee", "cat", "dog", "eel"]


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


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the model's classes, two splits of three pictures each."""
    root = tmp_path_factory.mktemp("own")
    for number in range(30):
        folder = root / ("train" if number < 15 else "val") / NAMES[number % 5]
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number:02}.png")
    return root


@pytest.fixture
def call(nextscale: Callable[..., Any], tiny: Path, tmp_path: Path) -> Callable[..., Any]:
    """`call(picture, "--label", 0)`."""
    given = ["--model", tiny, "--device", "cpu", "--precision", "fp32", "--out", tmp_path / "out"]
    return lambda *options: nextscale("inspect", *options, *given)


def likelihoods(pipe: Pipeline, split: data.Pictures) -> torch.Tensor:
    """-log p of each picture of a split under its own class, seen as in training."""
    pictures, labels = split.batch(range(len(split)))
    return -pipe.log_likelihood(pictures / 2 + 0.5, [split.classes[label] for label in labels.tolist()]).images


def values(done: Any) -> Any:
    assert (done.status, done.errors) == (0, "")
    return json.loads(done.output)


# ---- inspect ---------------------------------------------------------------------------------------------------------


def test_a_picture_becomes_a_sheet_a_table_and_figures(
    call: Callable[..., Any], pipe: Pipeline, own: Path, tmp_path: Path
) -> None:
    """The figures are those of the library; JSON has every token."""
    picture = own / "val" / "cat" / "17.png"
    done = call(picture, "--label", "cat", "--json", tmp_path / "figures.json")
    assert (done.status, done.errors) == (0, "")
    assert max(len(line) for line in done.output.splitlines() if str(tmp_path) not in line) <= 80
    (found,) = json.loads((tmp_path / "figures.json").read_text())
    expected = pipe.log_likelihood(Image.open(picture), "cat")
    assert found["nats"] == pytest.approx(float(-expected.images[0]), abs=1e-3)
    assert found["bits_per_pixel"] == pytest.approx(float(expected.bits_per_pixel[0]), abs=1e-4)
    assert found["tokens"] == pytest.approx((-expected.tokens[0]).tolist(), abs=1e-3)
    assert found["entropy"] == pytest.approx(expected.entropy[0].tolist(), abs=1e-3)
    assert [row["nats"] for row in found["scales"]] == pytest.approx((-expected.scales[0]).tolist(), abs=1e-3)
    assert [row["size"] for row in found["scales"]] == ["1x1", "2x2", "3x3", "4x4"]
    assert (found["label"], found["prompt"], found["condition"], found["standing"]) == (2, None, "as asked", None)
    told = pipe.classify(Image.open(picture)).probabilities[0].tolist()
    assert found["classes"] == pytest.approx(dict(zip(NAMES, told, strict=True)), abs=1e-4)
    assert "17.png as cat (as asked):" in done.output
    for row in found["scales"]:
        assert f"{row['nats']:.2f}" in done.output
    sheet = images.open_rgb(tmp_path / "out" / "17-inspected.png")
    assert sheet.width > 5 * 128
    assert sheet.height > 3 * 128


def test_without_a_label_the_likeliest_class_is_taken(call: Callable[..., Any], pipe: Pipeline, own: Path) -> None:
    """Of all, or of those that are named."""
    picture = own / "val" / "cat" / "17.png"
    told = pipe.classify(Image.open(picture))
    (found,) = values(call(picture, "--json", "-"))
    assert (found["label"], found["condition"]) == (int(told.best[0]), "the likeliest class")
    (found,) = values(call(picture, "--label", "ant", "eel", "--json", "-"))
    assert found["label"] == (0 if told.log_likelihoods[0, 0] >= told.log_likelihoods[0, 4] else 4)
    assert list(found["classes"]) in (["ant", "eel"], ["eel", "ant"])
    assert sum(found["classes"].values()) == pytest.approx(1)


def test_a_picture_of_ours_tells_what_it_shows(
    call: Callable[..., Any], nextscale: Callable[..., Any], tiny: Path, tmp_path: Path
) -> None:
    """Unless something else is asked."""
    painted_as = ["sample", "--model", tiny, "--label", "dog", "--out", tmp_path / "painted", "--device", "cpu"]
    assert nextscale(*painted_as).status == 0
    (picture,) = (tmp_path / "painted").glob("3-dog-*.png")
    (found,) = values(call(picture, "--json", "-"))
    assert (found["label"], found["condition"]) == (3, "as the picture tells")
    (found,) = values(call(picture, "--label-index", 0, "--json", "-"))
    assert (found["label"], found["condition"]) == (0, "as asked")


def test_many_classes_are_not_tried(call: Callable[..., Any], own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is said, with what to do."""
    monkeypatch.setattr(inspect, "MOST_CLASSES", 4)
    done = call(own / "val" / "cat" / "17.png")
    assert "taken as of no class, as 5 are many to try; --label says what it shows" in " ".join(done.output.split())
    assert "as no class (as no class was given)" in " ".join(done.output.split())
    assert "classes:" not in done.output


@pytest.mark.slow
def test_data_tells_the_nearest_pictures_and_what_is_usual(
    call: Callable[..., Any], pipe: Pipeline, own: Path, tmp_path: Path
) -> None:
    """Of a training picture the nearest is itself; no held-out picture is as near to one."""
    known, new = own / "train" / "bee" / "06.png", own / "val" / "bee" / "21.png"
    done = call(known, new, "--data", own, "--json", tmp_path / "figures.json")
    assert (done.status, done.errors) == (0, "")
    first, second = json.loads((tmp_path / "figures.json").read_text())
    nearest = first["standing"]["neighbours"][0]
    assert nearest["name"].endswith("06.png")
    assert (nearest["distance"], first["standing"]["held_out_nearer"]) == (0, 0)
    assert nearest["psnr"] > 100
    assert len(first["standing"]["neighbours"]) == 5
    assert second["standing"]["neighbours"][0]["distance"] > nearest["distance"]
    assert second["standing"]["held_out_nearer"] > 0
    train = data.load(own, height=8, width=8).train
    less_likely = (likelihoods(pipe, train) > second["nats"]).double().mean().item()
    assert second["standing"]["less_likely_trained_on"] == pytest.approx(less_likely, abs=1e-6)
    assert "nearest training picture:" in done.output
    assert "likelier a token than" in done.output
    plain = values(call(known, "--data", own, "--compare", 0, "--json", "-"))
    assert plain[0]["standing"]["less_likely_trained_on"] is None


def test_prompts_are_candidates_too(
    nextscale: Callable[..., Any], text_pipe: Pipeline, own: Path, tmp_path: Path
) -> None:
    """Of several the likeliest; with a class, of that class."""
    text_pipe.save(tmp_path / "reads")
    picture, words = own / "val" / "cat" / "17.png", ["a red heart", "a cat face"]
    given = ["--model", tmp_path / "reads", "--precision", "fp32", "--out", tmp_path / "out", "--json", "-"]
    (found,) = values(nextscale("inspect", picture, "--prompt", *words, *given))
    told = text_pipe.classify(Image.open(picture), prompts=words)
    assert found["prompt"] == words[int(told.best[0])]
    assert found["classes"] == pytest.approx(dict(zip(words, told.probabilities[0].tolist(), strict=True)), abs=1e-4)
    (found,) = values(nextscale("inspect", picture, "--label", "dog", "--prompt", words[0], *given))
    expected = text_pipe.log_likelihood(Image.open(picture), "dog", words[0])
    assert found["nats"] == pytest.approx(float(-expected.images[0]), abs=1e-3)
    assert len(found["classes"]) == 5


def test_a_sheet_never_takes_the_place_of_a_picture(
    nextscale: Callable[..., Any], tiny: Path, own: Path, tmp_path: Path
) -> None:
    """Written beside it, two of one name each under their own."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(own / "val" / "cat" / "17.png", tmp_path / folder / "cat.png")
    before = (tmp_path / "a" / "cat.png").read_bytes()
    pictures = [tmp_path / "a" / "cat.png", tmp_path / "b" / "cat.png"]
    assert nextscale("inspect", *pictures, "--model", tiny, "--out", tmp_path / "a").status == 0
    assert (tmp_path / "a" / "cat.png").read_bytes() == before
    assert {file.name for file in (tmp_path / "a").iterdir()} == {
        "cat.png",
        "cat-inspected.png",
        "cat-2-inspected.png",
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "PICTURE: expected at least one file, got none"),
        (["PICTURE", "--label", "fish"], "label: expected one of ant"),
        (["PICTURE", "--prompt", "a heart"], "prompts: expected labels, since this model reads no text"),
        (["PICTURE", "--captions", "own"], "--captions: expected with --data, got it alone"),
        (["PICTURE", "--labels", "none"], "--labels: expected with --data, got it alone"),
        (["PICTURE", "--caption-column", "text"], "--caption-column: expected with --data, got it alone"),
        (["PICTURE", "--outside-files"], "--outside-files: expected with --data, got it alone"),
        (["PICTURE", "--data", "nowhere"], "nowhere"),
        (["PICTURE", "--data", "OWN", "--label-column", "kind"], "kind"),
        (["PICTURE", "--batch", "0"], "--batch: expected at least 1, got 0"),
        (["PICTURE", "--compare", "-1"], "--compare: expected at least 0, got -1"),
        (["missing.png"], "missing.png"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    call: Callable[..., Any], own: Path, tmp_path: Path, arguments: list[str], told: str
) -> None:
    """And no sheet is left behind."""
    places = {"PICTURE": str(own / "val" / "cat" / "17.png"), "OWN": str(own)}
    done = call(*(places.get(word, word) for word in arguments))
    assert (done.status, done.errors.count("\n")) == (2, 1)
    assert told in done.errors
    assert not list(tmp_path.rglob("*-inspected.png"))


# ---- the sheet -------------------------------------------------------------------------------------------------------


def test_density_spreads_each_token_over_its_pixels() -> None:
    """Its sum over pixels is the sum over tokens; where the tokens are dear, pixels are."""
    maps = [torch.tensor([[8.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])]
    whole = density(maps, (4, 4))
    assert whole.sum().item() == pytest.approx(12)
    assert whole[0, 0].item() == pytest.approx(8 / 16 + 1 / 4)
    assert whole[3, 3].item() == pytest.approx(8 / 16 + 3 / 4)


def test_a_sheet_grows_with_what_is_known() -> None:
    """Neighbours are a row, classes a bar each, lines a line each."""
    sizes = Scales([1, 2])
    maps = [torch.rand(1, 1), torch.rand(2, 2)]
    given: dict[str, Any] = {"stages": torch.zeros(3, 3, 8, 8), "sizes": sizes, "surprise": maps, "entropy": maps}
    plain = painted(Sheet(lines=["one"], most=math.log(64), **given))
    neighbour = Neighbour(name="cat 😀", distance=1.5, decibels=20.0, image=torch.zeros(3, 8, 8))
    more = painted(
        Sheet(
            lines=["one", "two"],
            most=math.log(64),
            neighbours=[neighbour] * 2,
            classes=[("a class with a name that is far too long for its place", 0.9), ("other", 0.1)],
            **given,
        )
    )
    assert more.height > plain.height + 128 + 2 * 20
    assert more.width >= plain.width


# ---- evaluate likelihood ---------------------------------------------------------------------------------------------


@pytest.fixture
def judge(nextscale: Callable[..., Any], tiny: Path, own: Path) -> Callable[..., Any]:
    """`judge("--classify")`: on the folder of the model's classes."""
    given = ["--model", tiny, "--data", own, "--device", "cpu", "--precision", "fp32"]
    return lambda *options: nextscale("evaluate", "likelihood", *given, *options)


def test_likelihoods_of_both_splits_and_the_gap(
    judge: Callable[..., Any], pipe: Pipeline, own: Path, tmp_path: Path
) -> None:
    """The figures are means of the library's; tables fit 80 columns."""
    done = judge("--json", tmp_path / "figures.json")
    assert (done.status, done.errors) == (0, "")
    assert max(len(line) for line in done.output.splitlines() if str(own.parent.parent) not in line) <= 80
    found = json.loads((tmp_path / "figures.json").read_text())
    means, there = {}, data.load(own, height=8, width=8)
    for name, split in (("held_out", there.validation), ("trained_on", there.train)):
        nats = likelihoods(pipe, split)
        means[name] = nats.mean().item() / 30
        assert found[name]["nats_per_picture"]["value"] == pytest.approx(nats.mean().item(), abs=1e-3)
        assert found[name]["pictures"] == 15
        assert [row["tokens"] for row in found[name]["scales"]] == [1, 4, 9, 16]
    gap = found["gap"]["nats_per_token"]
    assert gap["value"] == pytest.approx(means["held_out"] - means["trained_on"], abs=1e-4)
    assert gap["low"] < gap["value"] < gap["high"]
    assert 0 <= found["gap"]["auc"]["value"] <= 1
    assert "classification" not in found
    assert (found["setting"]["classes"], found["setting"]["captions"]) == ("own", "none")
    for words in ("held out, 15 pictures", "trained on, 15 pictures", "gap, nats a token", "their own class"):
        assert words in " ".join(done.output.split())
    assert values(judge("--json", "-")) == found


def test_classes_by_likelihood_beside_the_nearest_neighbour(
    judge: Callable[..., Any], pipe: Pipeline, own: Path, tmp_path: Path
) -> None:
    """On evenly spread pictures of the held-out part."""
    done = judge("--classify", "--count", 10, "--batch", 7, "--json", tmp_path / "figures.json")
    found = json.loads((tmp_path / "figures.json").read_text())["classification"]
    held_out = data.load(own, height=8, width=8).validation
    chosen, labels = held_out.batch([place * 15 // 10 for place in range(10)])
    hits = pipe.classify(chosen / 2 + 0.5).best == labels
    assert found["accuracy"]["value"] == pytest.approx(hits.double().mean().item())
    assert len(found["through"]) == 4
    assert found["through"][-1] == found["accuracy"]["value"]
    assert found["nearest_network"] == "EffNetLite0"
    assert 0 <= found["nearest_neighbour"]["value"] <= 1
    assert found["most_frequent"] == pytest.approx(0.2)
    text = " ".join(done.output.split())
    for words in ("right class", "nearest neighbour, EffNetLite0", "by the first 1, 2, ... scales alone"):
        assert words in text


def test_strangers_are_of_no_class(nextscale: Callable[..., Any], tiny: Path, pictures: Path, tmp_path: Path) -> None:
    """Which is said; to classify them is refused."""
    shutil.copytree(pictures, tmp_path / "strangers")
    (tmp_path / "strangers" / "cat").rename(tmp_path / "strangers" / "fox")
    pictures = tmp_path / "strangers"
    given = ["evaluate", "likelihood", "--model", tiny, "--data", pictures, "--count", 5]
    done = nextscale(*given)
    assert (done.status, done.errors) == (0, "")
    assert "no class, as the model does not know theirs" in " ".join(done.output.split())
    refused = nextscale(*given, "--classify")
    assert (refused.status, refused.errors.count("\n")) == (2, 1)
    assert "--classify: expected data of the model's own classes, two or more, got dog, fox" in refused.errors


def test_models_that_read_are_warned_of_missing_words(
    nextscale: Callable[..., Any], text_pipe: Pipeline, own: Path, tmp_path: Path
) -> None:
    """And take captions where they are asked to."""
    text_pipe.save(tmp_path / "reads")
    given = ["evaluate", "likelihood", "--model", tmp_path / "reads", "--data", own, "--count", 5]
    plain = nextscale(*given)
    assert "warning: the model reads text and was asked without" in " ".join(plain.output.split())
    hearts = enumerate(sorted(own.rglob("*.png")))
    rows = "".join(f"{file.relative_to(own)},heart {number}\n" for number, file in hearts)
    (tmp_path / "captions.csv").write_text(f"file,caption\n{rows}")
    words = nextscale(*given, "--captions", tmp_path / "captions.csv")
    assert (words.status, words.errors) == (0, "")
    text = " ".join(words.output.split())
    assert "their own class, their first caption" in text
    assert "gain by captions, nats a token" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--count", "0"], "--count: expected at least 1, got 0"),
        (["--batch", "0"], "--batch: expected at least 1, got 0"),
        (["--data", "nowhere"], "nowhere"),
        (["--json", "."], "--json: expected a file, got the directory ."),
    ],
)
def test_mistakes_of_evaluate_likelihood_are_one_line(
    nextscale: Callable[..., Any], tiny: Path, own: Path, arguments: list[str], told: str
) -> None:
    """With status 2."""
    data = [] if "--data" in arguments else ["--data", own]
    done = nextscale("evaluate", "likelihood", "--model", tiny, *data, *arguments)
    assert (done.status, done.output, done.errors.count("\n")) == (2, "", 1)
    assert told in done.errors
