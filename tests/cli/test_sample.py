"""Laws of `nextscale sample`."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from nextscale import VAR, MultiScaleVQVAE, Pipeline, images
from nextscale.cli.sheet import GAP, LINE, Row, drawn
from nextscale.config import TransformerConfig
from nextscale.machine.int8 import multiplies_int8_fast


def read(file: Path) -> torch.Tensor:
    return images.from_uint8(images.uint8_from_pil(images.open_rgb(file)))


def names(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()}


def test_one_file_a_picture_and_a_grid(nextscale, model: Path, tmp_path: Path) -> None:
    """Names carry class and seed; picture i of the request has seed N + i."""
    done = nextscale("sample", "--model", model, "--label", "0", "7", "--count", 2, "--seed", 5, "--out", tmp_path)
    assert done.status == 0, done.errors
    pictures = {"0-smileys-emotion-seed5", "0-smileys-emotion-seed6", "7-class-7-seed7", "7-class-7-seed8"}
    assert names(tmp_path) == {f"{name}.png" for name in (*pictures, "grid")}
    assert images.open_rgb(tmp_path / "7-class-7-seed8.png").size == (32, 32)


@pytest.mark.slow
def test_every_class_once_unless_asked_otherwise(nextscale, model: Path, tmp_path: Path) -> None:
    """In order, so that the seeds are those of the classes' numbers."""
    assert nextscale("sample", "--model", model, "--out", tmp_path).status == 0
    assert names(tmp_path) == {"0-smileys-emotion-seed0.png", "grid.png"} | {
        f"{number}-class-{number}-seed{number}.png" for number in range(1, 9)
    }


def test_a_class_may_be_given_by_name(nextscale, model: Path, tmp_path: Path) -> None:
    """The same picture as by number."""
    for label, folder in (("Smileys & Emotion", "name"), ("0", "number")):
        assert nextscale("sample", "--model", model, "--label", label, "--out", tmp_path / folder).status == 0
    name, number = (tmp_path / folder / "0-smileys-emotion-seed0.png" for folder in ("name", "number"))
    assert name.read_bytes() == number.read_bytes()


@pytest.mark.slow
def test_a_number_is_a_name_where_a_class_is_called_so(nextscale, model: Path, tmp_path: Path) -> None:
    """Which is said where the number of another class may have been meant; --label-index is always the number."""
    config = json.loads((model / "config.json").read_text())
    numbered = tmp_path / "numbered"
    shutil.copytree(model, numbered)
    (numbered / "config.json").write_text(json.dumps(config | {"classes": list("123456789")}))

    def painted(*options: object) -> tuple[str, str]:
        done = nextscale("sample", "--model", numbered, *options, "--out", tmp_path / "out")
        assert done.status == 0, done.errors
        (picture,) = names(tmp_path / "out") - {"grid.png"}
        shutil.rmtree(tmp_path / "out")
        return picture, done.errors

    told = "nextscale: note: --label 3 is the class called 3, of number 2; --label-index 3 is the one called 4\n"
    assert painted("--label", "3") == ("2-3-seed0.png", told)
    assert painted("--label-index", "3") == ("3-4-seed0.png", "")
    assert painted("--label", "9") == ("8-9-seed0.png", "")
    assert painted("--label", "0") == ("0-1-seed0.png", "")


def test_classes_by_name_and_by_number_go_together(nextscale, model: Path, tmp_path: Path) -> None:
    """Names first."""
    done = nextscale("sample", "--model", model, "--label-index", 2, 1, "--label", "class 7", "--out", tmp_path)
    assert done.status == 0, done.errors
    assert names(tmp_path) == {f"{n}-class-{n}-seed{seed}.png" for seed, n in enumerate((7, 2, 1))} | {"grid.png"}


def test_growing_adds_a_strip_of_every_scale(nextscale, model: Path, tmp_path: Path) -> None:
    """Six scales of 32 pixels under their names, each pixel drawn as 4 x 4; the last is the picture."""
    assert nextscale("sample", "--model", model, "--label", "1", "--growing", "--out", tmp_path).status == 0
    strip = images.open_rgb(tmp_path / "1-class-1-seed0-growing.png")
    assert strip.size == (6 * 128 + 5 * GAP, 128 + LINE)
    picture = images.open_rgb(tmp_path / "1-class-1-seed0.png").resize((128, 128), Image.Resampling.NEAREST)
    left = 5 * (128 + GAP)
    assert strip.crop((left, LINE, left + 128, LINE + 128)).tobytes() == picture.tobytes()


def test_a_file_holds_the_grid_alone(nextscale, model: Path, tmp_path: Path) -> None:
    """`--out FILE.png` writes that file and no other."""
    done = nextscale("sample", "--model", model, "--label", "1", "2", "--out", tmp_path / "two.png")
    assert done.status == 0
    assert names(tmp_path) == {"two.png"}
    assert images.open_rgb(tmp_path / "two.png").size == (2 * 128 + GAP, 128 + LINE)


@pytest.mark.slow
def test_several_of_a_class_are_a_row_beside_its_name(nextscale, model: Path, tmp_path: Path) -> None:
    """And pictures of different classes stand below theirs; the pictures are those of the single files."""
    given = ["--model", model, "--label", "1", "2", "--out", tmp_path]
    assert nextscale("sample", *given, "--count", 3).status == 0
    grid = images.open_rgb(tmp_path / "grid.png")
    rows = [
        Row(f"class {label}", torch.stack([read(tmp_path / f"{label}-class-{label}-seed{seed}.png") for seed in seeds]))
        for label, seeds in ((1, range(3)), (2, range(3, 6)))
    ]
    assert grid.tobytes() == drawn(rows).tobytes()
    assert nextscale("sample", *given).status == 0
    pictures = torch.stack([read(tmp_path / f"{label}-class-{label}-seed{label - 1}.png") for label in (1, 2)])
    expected = drawn([Row("", pictures, ["class 1", "class 2"])])
    assert images.open_rgb(tmp_path / "grid.png").tobytes() == expected.tobytes()


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".PNG"])
def test_a_file_of_one_picture_is_that_picture(nextscale, model: Path, tmp_path: Path, suffix: str) -> None:
    """In the format of its suffix, no folder of that name; a folder that has such a name stays one."""
    file = tmp_path / f"one{suffix}"
    assert nextscale("sample", "--model", model, "--label", "1", "--out", file).status == 0
    with Image.open(file) as picture:
        assert picture.size == (32, 32)
        assert picture.format == {".jpg": "JPEG", ".webp": "WEBP", ".PNG": "PNG"}[suffix]
    assert list(tmp_path.iterdir()) == [file]
    (tmp_path / "folder.jpg").mkdir()
    assert nextscale("sample", "--model", model, "--label", "1", "--out", tmp_path / "folder.jpg").status == 0
    assert {path.name for path in (tmp_path / "folder.jpg").iterdir()} == {"1-class-1-seed0.png", "grid.png"}


def test_the_printed_command_paints_the_same_pictures(nextscale, model: Path, tmp_path: Path) -> None:
    """Whatever options were given."""
    first = [
        "--model",
        model,
        "--label",
        "Smileys & Emotion",
        "--seed",
        3,
        "--top-k",
        50,
        "--smooth",
        "--out",
        tmp_path,
    ]
    done = nextscale("sample", *first)
    before = (tmp_path / "grid.png").read_bytes()
    (tmp_path / "grid.png").unlink()
    again = shlex.split(done.output.splitlines()[-1].removeprefix("again: "))
    assert again[:2] == ["nextscale", "sample"]
    assert nextscale(*again[1:]).output == done.output
    assert (tmp_path / "grid.png").read_bytes() == before


def test_values_of_each_scale_are_typed_with_commas(nextscale, model: Path, tmp_path: Path) -> None:
    """They are in the picture's note and in the command that is printed, and `--like` paints it again."""
    drawn = ["--top-k", "0,2,2,9,9,0", "--temperature", "1,1,1,1,1,0"]
    guided = ["--guidance", "0,0,0.5,1,2,1", "--guidance-until", 5]
    done = nextscale("sample", "--model", model, "--label", 3, *guided, *drawn, "--out", tmp_path)
    assert (done.status, done.errors) == (0, "")
    assert "--guidance 0.0,0.0,0.5,1.0,2.0,1.0 --guidance-until 5 --top-k 0,2,2,9,9,0 --temperature 1.0," in done.output
    (file,) = tmp_path.glob("3-*.png")
    told = json.loads(Image.open(file).text["nextscale"])
    assert told["guidance"] == [0, 0, 0.5, 1, 2, 0]
    assert (told["top_k"], told["temperature"]) == ([0, 2, 2, 9, 9, 0], [1, 1, 1, 1, 1, 0])
    again = nextscale("sample", "--model", model, "--like", file, "--out", tmp_path / "again.png")
    assert "the same pixels as" in again.output


def test_step_guidance_and_reach_are_told_and_repeated(nextscale, model: Path, tmp_path: Path) -> None:
    """In the printed command and the note."""
    given = ["--step-guidance", "0.5", "--reach", 2]
    done = nextscale("sample", "--model", model, "--label", 3, *given, "--out", tmp_path)
    assert (done.status, done.errors) == (0, "")
    assert "--step-guidance 0.5 --reach 2" in done.output
    (file,) = tmp_path.glob("3-*.png")
    told = json.loads(Image.open(file).text["nextscale"])
    assert (told["step_guidance"], told["reach"]) == (0.5, 2)
    again = nextscale("sample", "--model", model, "--like", file, "--out", tmp_path / "again.png")
    assert "the same pixels as" in again.output


SCORES = """
def bright(step):
    return step.preview().mean(dim=(1, 2, 3))

def wrong(step):
    return step.previews()
"""


@pytest.mark.slow
def test_maps_are_chosen_by_a_function_of_ones_own(
    nextscale, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a module in the working directory; told in the note, and repeated with the same function."""
    monkeypatch.chdir(tmp_path)
    Path("scores_of_mine.py").write_text(SCORES)
    chosen = ["--rerank", 4, "--rerank-by", "scores_of_mine:bright", "--rerank-scales", 0, 1, 2, 3]
    done = nextscale("sample", "--model", model, "--label", 3, *chosen, "--out", "out")
    assert (done.status, done.errors) == (0, "")
    assert "--rerank 4 --rerank-by scores_of_mine:bright --rerank-scales 0 1 2 3" in done.output
    (file,) = Path("out").glob("3-*.png")
    told = json.loads(Image.open(file).text["nextscale"])
    assert told["rerank"] == {"scales": [0, 1, 2, 3], "count": 4, "by": "scores_of_mine:bright"}
    assert nextscale("sample", "--model", model, "--label", 3, "--out", "plain").status == 0
    assert not torch.equal(read(file), read(Path("plain") / file.name))
    again = ["sample", "--model", model, "--like", file, "--out", "again.png"]
    assert "the same pixels as" in nextscale(*again, "--rerank-by", "scores_of_mine:bright").output
    refused = nextscale(*again)
    assert "expected a score, the function scores_of_mine:bright that chose its maps" in refused.errors


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rerank", 4], "--rerank: expected N maps and --rerank-by MODULE:FUNCTION, got one without the other"),
        (["--rerank-scales", 1], "--rerank: expected N maps and --rerank-by MODULE:FUNCTION"),
        (["--rerank", 4, "--rerank-by", "nowhere_at_all:bright"], "--rerank-by: expected MODULE:FUNCTION that can be"),
        (["--rerank", 4, "--rerank-by", "scores_of_mine"], "--rerank-by: expected MODULE:FUNCTION that can be"),
        (["--rerank", 4, "--rerank-by", "scores_of_mine:wrong"], "got one that fails: AttributeError"),
        (["--rerank", 4, "--rerank-by", "math:pi"], "--rerank-by: expected a function of a Step, got math:pi"),
        (["--rerank", 0, "--rerank-by", "scores_of_mine:bright"], "rerank: expected count of 1 or more, got 0"),
        (
            ["--rerank", 4, "--rerank-by", "scores_of_mine:bright", "--rerank-scales", 6],
            "rerank: expected scales of 0 .. 5, got 6",
        ),
    ],
)
def test_functions_that_cannot_choose_are_refused(
    nextscale, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], told: str
) -> None:
    """In one line, whatever they raise."""
    monkeypatch.chdir(tmp_path)
    Path("scores_of_mine.py").write_text(SCORES)
    done = nextscale("sample", "--model", model, "--label", 3, *arguments)
    assert (done.status, done.errors.count("\n")) == (2, 1)
    assert told in done.errors


def test_nothing_but_two_lines_is_printed(nextscale, model: Path, tmp_path: Path) -> None:
    """No trace of a progress bar where there is no terminal."""
    done = nextscale("sample", "--model", model, "--label", "1", "--out", tmp_path)
    assert done.errors == ""
    assert done.output.count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "missing"], "missing"),
        (["--model", "MODEL", "--label", "10"], "expected 0 .. 8"),
        (["--model", "MODEL", "--label", "-1"], "-1"),
        (["--model", "MODEL", "--label", "unheard-of"], "unheard-of"),
        (["--model", "MODEL", "--label", "clas 7"], "did you mean class 7"),
        (["--model", "MODEL", "--label-index", "10"], "expected 0 .. 8"),
        (["--model", "MODEL", "--label-index", "-1"], "-1"),
        (["--model", "MODEL", "--label-index", "seven"], "seven"),
        (["--model", "MODEL", "--top-p", "2"], "top_p: expected 0 .. 1, got 2.0"),
        (["--model", "MODEL", "--top-k", "1,2"], "top_k: expected one value, or one a scale, 6, got 2"),
        (["--model", "MODEL", "--guidance", "1,2"], "guidance: expected one weight a scale, 6, got 2"),
        (["--model", "MODEL", "--guidance", "1,x"], "--guidance: expected a number, got 'x'"),
        (["--model", "MODEL", "--guidance", "1,"], "--guidance: expected a number, got ''"),
        (["--model", "MODEL", "--reach", "0"], "reach: expected 1 scale or more, got 0"),
        (["--model", "MODEL", "--step-guidance", "1,2"], "step_guidance: expected one value, or one a scale, 6, got 2"),
        (["--model", "MODEL", "--guidance-until", "7"], "guidance_until: expected a scale, 0 .. 6, got 7"),
        (["--model", "MODEL", "--device", "abacus"], "abacus"),
        (["--count", "0"], "--count: expected at least 1, got 0"),
        (["--batch", "0"], "--batch: expected at least 1, got 0"),
        (["--seed", "-1"], "--seed: expected at least 0, got -1"),
        (["--growing", "--out", "one.png"], "--growing: expected a directory as --out"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    nextscale, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    """And no picture is left behind."""
    monkeypatch.chdir(tmp_path)
    done = nextscale("sample", *(str(model) if word == "MODEL" else word for word in arguments))
    assert (done.status, done.output, done.errors.count("\n")) == (2, "", 1)
    assert told in done.errors
    assert not list(tmp_path.rglob("*.png"))


def test_an_out_that_is_a_file_is_a_mistake(nextscale, model: Path, tmp_path: Path) -> None:
    """A directory cannot be made where a file lies."""
    (tmp_path / "taken").touch()
    done = nextscale("sample", "--model", model, "--label", "1", "--out", tmp_path / "taken")
    assert (done.status, done.errors.count("\n")) == (2, 1)
    assert "--out: expected a directory" in done.errors


def test_a_picture_is_painted_again_by_what_it_tells(nextscale, model: Path, tmp_path: Path) -> None:
    """Whatever else is asked for along with it is refused; so is a picture that tells nothing."""
    given = ["--model", model, "--label", 7, "--seed", 5, "--guidance", 3, "--top-k", 40, "--temperature", 0.8]
    assert nextscale("sample", *given, "--out", tmp_path / "first").status == 0
    picture = tmp_path / "first" / "7-class-7-seed5.png"
    done = nextscale("sample", "--model", model, "--like", picture, "--out", tmp_path / "again.png")
    assert (done.status, done.errors) == (0, "")
    assert done.output == f"{tmp_path / 'again.png'}: the same pixels as {picture}\n"
    assert (tmp_path / "again.png").read_bytes() == picture.read_bytes()
    refused = nextscale("sample", "--model", model, "--like", picture, "--seed", 3)
    assert (refused.status, refused.errors.count("\n")) == (2, 1)
    assert f"--like: expected the settings in {picture} alone, got --seed" in refused.errors
    assert nextscale("sample", *given, "--no-metadata", "--out", tmp_path / "silent").status == 0
    silent = tmp_path / "silent" / "7-class-7-seed5.png"
    assert (images.notes(silent), silent.stat().st_size < picture.stat().st_size) == ({}, True)
    refused = nextscale("sample", "--model", model, "--like", silent)
    assert (refused.status, refused.errors.count("\n")) == (2, 1)
    assert f"--like {silent}: expected a picture that tells what it was painted from" in refused.errors


def test_int8_is_told_and_painted_again(nextscale, model: Path, tmp_path: Path) -> None:
    """The picture's note says in what it was computed, and --like takes it."""
    if not multiplies_int8_fast(torch.device("cpu")):
        pytest.skip("this processor has neither AMX nor AVX512-VNNI")
    given = ["--model", model, "--device", "cpu", "--label", 7, "--precision", "int8"]
    assert nextscale("sample", *given, "--out", tmp_path).status == 0
    picture = tmp_path / "7-class-7-seed0.png"
    assert json.loads(images.notes(picture)["nextscale-model"])["precision"] == "int8"
    done = nextscale("sample", "--model", model, "--device", "cpu", "--like", picture, "--out", tmp_path / "again.png")
    assert (done.status, done.errors) == (0, "")
    assert done.output.endswith(f": the same pixels as {picture}\n")


def test_int8_is_refused_where_it_is_slow(nextscale, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, before anything is painted."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    done = nextscale("sample", "--model", model, "--device", "cpu", "--precision", "int8")
    assert (done.status, done.output, done.errors.count("\n")) == (2, "", 1)
    assert "precision: int8 expected a CPU with AMX or AVX512-VNNI, got a processor without either" in done.errors


@pytest.mark.slow
def test_pictures_of_two_models_are_not_mixed(
    nextscale, pipe: Pipeline, tokenizer: MultiScaleVQVAE, transformer_config: TransformerConfig, tmp_path: Path
) -> None:
    """The same model adds to its own; pictures without a model's name, and others, are left alone."""
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "out"
    pipe.save(first)
    Pipeline(tokenizer, VAR(transformer_config), classes=pipe.classes, precision="fp32").save(second)
    out.mkdir()
    Image.new("RGB", (8, 8)).save(out / "0-old-seed3.png")
    (out / "1-no-picture-seed3.png").write_text("text")
    for seed, precision in ((0, "fp32"), (1, "bf16")):
        words = ("--label", 0, "--seed", seed, "--out", out, "--precision", precision)
        assert nextscale("sample", "--model", first, *words).status == 0
    before = {file.name for file in out.iterdir()}
    done = nextscale("sample", "--model", second, "--label", 0, "--seed", 2, "--out", out)
    assert (done.status, done.errors.count("\n")) == (2, 1)
    assert (
        f"expected a folder for pictures of this model, got {out}, which holds 0-ant-seed0.png of another"
        in done.errors
    )
    assert {file.name for file in out.iterdir()} == before
    assert nextscale("sample", "--model", second, "--label", 0, "--out", out / "one.png").status == 0


@pytest.mark.parametrize(("asked", "said"), [(("--top-k", 600), True), (("--top-k", 512), False), ((), False)])
def test_more_codes_than_there_are_is_said(nextscale, model: Path, tmp_path: Path, asked: tuple, said: bool) -> None:
    """Not of the default, which is that of larger models."""
    done = nextscale("sample", "--model", model, "--label", 0, "--out", tmp_path, *asked)
    told = "nextscale: note: --top-k 600: the codebook has 512 codes, all are taken\n"
    assert (done.status, done.errors) == (0, told if said else "")
