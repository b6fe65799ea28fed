"""`nextscale convert`, and everything that `--model` may name."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity import golden
from PIL import Image
from safetensors.torch import load_file

from nextscale import MultiScaleVQVAE, Pipeline, official
from nextscale.release import files as release_files


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The golden model as the release's two files, under the names they have in its repository."""
    folder = tmp_path_factory.mktemp("release")
    files = folder / "vae_ch160v4096z32.pth", folder / "var_d2.pth"
    for file, state in zip(files, golden.states(), strict=True):
        release_files.write(file, state)
    return files


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, out of reach of the hub itself."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def store(cache: Path, name: str, *files: Path) -> None:
    """As the hub's own client lays out a downloaded repository."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    for file in files:
        (repository / "snapshots" / ("0" * 40) / file.name).symlink_to(file)


def same_weights(one: Pipeline, other: Pipeline) -> bool:
    """Every tensor of the release's format, bit for bit."""
    pairs = zip(official.export(one), official.export(other), strict=True)
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_there_and_back_loses_nothing(nextscale, release, tmp_path, suffix):
    """The release's files to a directory, the directory to the release's files."""
    directory, files = tmp_path / "ours", (tmp_path / f"vae{suffix}", tmp_path / f"var{suffix}")
    assert nextscale("convert", "--model", *release, "--out", directory).status == 0
    assert same_weights(Pipeline.load(directory, precision="fp32"), golden.pipeline())
    done = nextscale("convert", "--model", directory, "--out", *files)
    assert done.status == 0
    assert str(files[1]) in done.output
    assert same_weights(official.load(*files, precision="fp32"), golden.pipeline())


def test_what_files_do_not_tell_can_be_said(nextscale, tmp_path):
    """Rectangles and the heads of plain attention."""
    import dataclasses

    from nextscale import VAR, MultiScaleVQVAE, Scales

    scales = Scales([1, (1, 2), (2, 3)])
    tokenizer = MultiScaleVQVAE(dataclasses.replace(golden.TOKENIZER, scales=scales, multipliers=(1,)))
    config = dataclasses.replace(golden.TRANSFORMER, scales=scales, width=48, heads=3, normalized_attention=False)
    pipe = Pipeline(tokenizer, VAR(config), precision="fp32")
    pipe.save(tmp_path / "ours")
    files = tmp_path / "vae.pth", tmp_path / "var.pth"
    assert nextscale("convert", "--model", tmp_path / "ours", "--out", *files).status == 0
    told = ("--scales", "1", "1x2", "2x3", "--num-heads", "3")
    assert nextscale("convert", "--model", *files, *told, "--out", tmp_path / "again").status == 0
    again = Pipeline.load(tmp_path / "again", precision="fp32")
    assert again.transformer.config == config
    assert same_weights(again, pipe)


@pytest.mark.slow
def test_the_tokenizer_s_file_alone_becomes_a_directory_and_goes_back(nextscale, release, tmp_path):
    """With its token maps told; what has no transformer needs one file."""
    vae, ours, back = release[0], tmp_path / "ours", tmp_path / "back.safetensors"
    done = nextscale("convert", "--model", vae, "--scales", 1, 2, 3, 4, "--out", ours)
    assert (done.status, done.errors) == (0, "")
    assert " of a tokenizer in " in done.output
    assert MultiScaleVQVAE.load(ours).config == golden.TOKENIZER
    assert nextscale("convert", "--model", ours, "--out", back).status == 0
    assert all(torch.equal(tensor, golden.states()[0][name]) for name, tensor in load_file(back).items())


@pytest.mark.slow
def test_the_tokenizer_s_file_alone_serves_wherever_a_tokenizer_does(nextscale, release, tmp_path, monkeypatch):
    """Reconstructing, encoding, training on its tokens; --scales for directories is refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise").mkdir()
    for number in range(8):
        Image.effect_noise((64, 64), 50 + number).convert("RGB").save(tmp_path / "noise" / f"{number}.png")
    told = ("--tokenizer", release[0], "--scales", 1, 2, 3, 4)
    assert nextscale("reconstruct", "noise/0.png", *told).status == 0
    assert nextscale("reconstruct", "noise/0.png", "--model", *told[1:]).status == 0
    assert nextscale("encode", "noise", *told, "--out", "tokens").status == 0
    preset = ("--data", "tokens", "--depth", 1, "--steps", 1, "--batch", 2, "--out", "run")
    done = nextscale("train", "transformer", *told, *preset)
    assert (done.status, done.errors) == (0, "")
    assert Pipeline.load("run", precision="fp32").tokenizer.config == golden.TOKENIZER
    done = nextscale("reconstruct", "noise/0.png", "--tokenizer", "run", "--scales", 1)
    assert "--scales: expected with a file in the release's format, got run" in done.errors


@pytest.mark.slow
def test_what_loading_leaves_out_is_a_note(nextscale, tmp_path):
    """A line on stderr; with --weights ema the running average is what is converted."""
    vae, var = golden.states()
    torch.save(
        {"vae": vae, "model": {n: t + 1 if n == "pos_start" else t for n, t in var.items()}, "ema": var},
        tmp_path / "both.pt",
    )
    done = nextscale("convert", "--model", tmp_path / "both.pt", "--out", tmp_path / "plain")
    assert done.status == 0
    assert done.errors.startswith("nextscale: note: ")
    assert done.errors.count("\n") == 1
    assert "weights='ema' takes their running average (ema)" in done.errors
    done = nextscale("convert", "--model", tmp_path / "both.pt", "--weights", "ema", "--out", tmp_path / "averaged")
    assert "has no running average (ema) of the tokenizer, its plain weights are taken" in done.errors
    assert same_weights(Pipeline.load(tmp_path / "averaged", precision="fp32"), golden.pipeline())


def test_a_model_that_is_there_is_not_replaced(nextscale, release, tmp_path):
    """A directory with a model or a run, a file; unless it is said."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    golden.pipeline().save(tmp_path / "ours")
    (tmp_path / "vae.pth").write_text("precious")
    for out in (["run"], ["ours"], ["vae.pth", "var.pth"], ["var.pth", "vae.pth"]):
        arguments = ("convert", "--model", *release, "--out", *(tmp_path / name for name in out))
        done = nextscale(*arguments)
        assert done.status == 2
        assert "--out: expected no model there yet, or --overwrite, got" in done.errors
        assert done.errors.count("\n") == 1
    assert (tmp_path / "vae.pth").read_text() == "precious"
    assert not (tmp_path / "var.pth").exists()
    assert nextscale(*arguments, "--overwrite").status == 0
    assert (tmp_path / "vae.pth").stat().st_size > 1000


@pytest.mark.parametrize("way", ["folder", "hub"])
def test_a_depth_is_asked_for_where_there_are_several(nextscale, release, cache, tmp_path, way):
    """And those that are there are named, in their order."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for depth in (16, 4, 30):
        (folder / f"var_d{depth}.pth").write_bytes(b"")
    (folder / "vae_ch160v4096z32.pth").write_bytes(b"")
    store(cache, "FoundationVision/var", *folder.iterdir())
    model = folder if way == "folder" else "FoundationVision/var"
    for command in ("sample", "convert"):
        done = nextscale(command, "--model", model, "--out", tmp_path / "out")
        assert done.status == 2
        assert f"--depth: expected one of 4, 16, 30, the release's transformers in {model}, got none" in done.errors


@pytest.mark.slow
def test_classes_get_the_names_of_a_file(nextscale, release, tmp_path):
    """A line each; a directory holds them, the release's files do not."""
    names = [f"n{number:08}" for number in range(golden.TRANSFORMER.classes)]
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(names))
    arguments = ("convert", "--model", *release, "--classes", file, "--out")
    assert nextscale(*arguments, tmp_path / "ours").status == 0
    assert Pipeline.load(tmp_path / "ours", precision="fp32").classes == tuple(names)
    for model, out, said in [
        (release, ["a.pth", "b.pth"], "--classes: expected a directory as --out"),
        ((release[0], "--scales", 1, 2, 3, 4), ["a"], "--classes: expected a model with a transformer"),
    ]:
        done = nextscale("convert", "--model", *model, "--classes", file, "--out", *(tmp_path / name for name in out))
        assert done.status == 2
        assert said in done.errors
        assert not (tmp_path / out[0]).exists()


@pytest.mark.slow
def test_every_way_to_name_a_model_paints_the_same_picture(nextscale, release, cache, tmp_path):
    """Files of the release, a folder or repository of them, a trainer's checkpoint, our directory, our repository."""
    trainer = tmp_path / "ar-ckpt-last.pth"
    vae, var = golden.states()
    torch.save({"trainer": {"vae_local": vae, "var_wo_ddp": var}}, trainer)
    ours = tmp_path / "ours"
    golden.pipeline().save(ours)
    store(cache, "FoundationVision/var", *release)
    store(cache, "someone/emoji", *ours.iterdir())
    ways = [
        release,
        (release[0].parent, "--depth", 2),
        (release[0].parent,),
        ("FoundationVision/var", "--depth", 2),
        (trainer,),
        (ours,),
        ("someone/emoji",),
    ]
    pictures = []
    for number, way in enumerate(ways):
        out = tmp_path / f"{number}.png"
        done = nextscale("sample", "--model", *way, "--label", 3, "--precision", "fp32", "--out", out)
        assert (done.status, done.errors) == (0, ""), way
        pictures.append(out.read_bytes())
    assert set(pictures) == {pictures[0]}


@pytest.mark.slow
def test_reconstruct_takes_the_release_s_files(nextscale, release, tmp_path):
    """Its tokenizer is what is used."""
    from nextscale import images

    images.save(tmp_path / "picture.png", golden.picture()[0])
    done = nextscale("reconstruct", tmp_path / "picture.png", "--model", *release, "--out", tmp_path / "out")
    assert done.status == 0
    assert (tmp_path / "out" / "picture.png").exists()


@pytest.mark.slow
def test_a_name_is_found_in_the_cache_without_a_network(release, cache):
    """In a process of its own, told where the cache is in the way the hub's client documents."""
    store(cache, "FoundationVision/var", *release)
    out = cache.parent / "picture.png"
    arguments = ["sample", "--model", "FoundationVision/var", "--depth", "2", "--label", "3", "--out", str(out)]
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", "nextscale", *arguments], env=environment, check=True, cwd=cache.parent)
    assert out.exists()


class Dangerous:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.slow
def test_a_mistake_is_one_line_and_status_2(nextscale, release, cache, tmp_path):
    """Broken files, files that do not fit, names that lead nowhere; nothing in a pickle is run."""
    vae, var = release
    bad = {name: tmp_path / f"{name}.pth" for name in ("truncated", "text", "code", "other")}
    bad["truncated"].write_bytes(var.read_bytes()[:5000])
    bad["text"].write_text("not found")
    bad["code"].write_bytes(pickle.dumps(Dangerous(tmp_path / "owned")))
    state = golden.states()[0]
    torch.save({**state, "quantize.embedding.weight": state["quantize.embedding.weight"][:, :8].clone()}, bad["other"])
    store(cache, "FoundationVision/var", vae)
    for arguments, said in [
        (["sample", "--model", vae, bad["truncated"]], "truncated.pth"),
        (["sample", "--model", bad["text"], var], "text.pth"),
        (["sample", "--model", bad["code"], var], "code.pth"),
        (["sample", "--model", bad["other"], var], "code_channels 8 and 16"),
        (["sample", "--model", var, vae], "expected a transformer"),
        (["sample", "--model", vae, var, vae], "got 3 values"),
        (["sample", "--model", vae, var, "--depth", 2], "--depth: expected with one"),
        (["sample", "--model", "FoundationVision/var", "--depth", 16], "no var_d16.pth from the hub"),
        (["sample", "--model", "FoundationVision/var"], "no config.json from the hub"),
        (["sample", "--model", "nobody/nothing"], "expected a model directory or a hub name, got nobody/nothing"),
        (["convert", "--out", tmp_path / "a"], "--model: expected"),
        (["convert", "--model", vae, var], "--out: expected"),
        (["convert", "--model", vae, var, "--out", tmp_path / "a.pth"], "--out: expected"),
        (["convert", "--model", vae, var, "--out", tmp_path / "a.pth", tmp_path / "b"], "--out: expected"),
        (["convert", "--model", vae, var, "--out", tmp_path / "a.pth", tmp_path / "a.pth"], "--out: expected"),
        (["convert", "--model", vae, var, "--scales", "1x", "--out", tmp_path / "a"], "got '1x'"),
        (["convert", "--model", vae, var, "--scales", 1, 2, 3, 5, "--out", tmp_path / "a"], "expected maps of 1, 4"),
        (["convert", "--model", vae, var, "--num-heads", 7, "--out", tmp_path / "a"], "num_heads: expected 2"),
    ]:
        done = nextscale(*arguments)
        assert done.status == 2, arguments
        assert said in done.errors, arguments
        assert done.errors.count("\n") == 1, arguments
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "a").exists()
