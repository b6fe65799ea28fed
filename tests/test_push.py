"""Laws of publishing: what goes to the hub comes back bit for bit, in one commit, with a page that tells the truth."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hub_stub import TOKEN, Hub, served
from huggingface_hub import constants
from PIL import Image

from nextscale import VAR, InputError, Pipeline, hub, modelcard
from nextscale.evaluation.alignment import Alignment, Row
from nextscale.evaluation.card import AlignmentCard, Card, Model, NetworkUsed, ReferenceUsed, Setting
from nextscale.evaluation.generation import Result
from nextscale.evaluation.judging import Figure
from nextscale.text.frozen import FrozenEncoder

# Of the client, which sends a file to httpx as `data`.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on loopback that the real client talks to, with a login and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served() as one:
        monkeypatch.setattr(constants, "ENDPOINT", one.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", one.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield one


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a training run leaves: the second stage, and the first inside."""
    settings = {"seed": 7, "recipe": {"batch": 32, "rates": [0.5, 1e-05]}, "init": "/home/me/secret/start", "no": None}
    for folder in (tmp_path / "run", tmp_path / "run" / "tokenizer"):
        folder.mkdir()
        record = {"settings": settings, "steps": 1200, "versions": [{"torch": "1"}, {"torch": "2.13"}]}
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "data.json").write_text(json.dumps({"train": 3414, "validation": 363, "classes": [], "broken": []}))
    return tmp_path / "run"


CARD = {
    "kept": 10_000,
    "network": NetworkUsed(name="EffNetLite0", fingerprint="0011", side=224, resize="bicubic", dimensions=1280),
    "versions": {"torch": "2.13.0"},
    "model": Model(
        name="runs/demo",
        fingerprint="0123",
        height=8,
        width=8,
        classes=5,
        codes=64,
        precision="fp32",
        device="cpu",
    ),
    "first_seed": 0,
}


def reference(name: str = "emoji") -> ReferenceUsed:
    return ReferenceUsed(name=name, fingerprint="abcd", pictures=None, height=8, width=8, fewest=None, most=None)


def figures(*, name: str = "FD-x", of: str = "emoji", setting: Setting | None = None) -> dict[str, Any]:
    """As `evaluate generation` writes them."""
    card = Card(**CARD, setting=setting or Setting(), per_class=400, reference=reference(of), rejection=None)
    figure = Figure(name=name, value=12.34567, low=12.0, high=13.0)
    return json.loads(json.dumps(Result(card=card, figures={"frechet_distance": figure}).to_json()))


def test_what_is_pushed_is_loaded_again_bit_for_bit(stub: Hub, pipe: Pipeline) -> None:
    """With the names of the classes; the pictures are the same."""
    assert pipe.push_to_hub("owner/tiny", samples=3) == f"{stub.address}/owner/tiny"
    again = Pipeline.load("owner/tiny", precision="fp32")
    assert (again.fingerprint, again.classes) == (pipe.fingerprint, pipe.classes)
    assert torch.equal(again.generate([1], [5]).images, pipe.generate([1], [5]).images)


def test_text_models_too(stub: Hub, text_pipe: Pipeline) -> None:
    """Vocabulary included; the samples show the prompts."""
    text_pipe.push_to_hub("owner/words", samples=2, prompts=["a red heart"])
    again = Pipeline.load("owner/words", precision="fp32")
    assert again.fingerprint == text_pipe.fingerprint
    page = stub.repositories["owner/words"]["README.md"].decode()
    assert "of a red heart: seeds from 0 on" in page
    assert "prompts=['a red heart']" in page


def test_where_a_frozen_encoder_lies_stays_at_home(stub: Hub, tokenizer: Any, transformer_config: Any) -> None:
    """Its name is told, and the model is loaded with the encoder's place on the other machine."""
    reader = FrozenEncoder("/home/me/secret/mini-encoder", 9, 12, "0123")
    model = VAR(transformer_config.reading(frozen=12, tokens=9))
    Pipeline(tokenizer, model, precision="fp32", reader=reader).push_to_hub("owner/frozen", samples=0)
    files = stub.repositories["owner/frozen"]
    assert not [name for name, content in files.items() if b"secret" in content]
    assert "| text encoder | mini-encoder, frozen, not part of this model |" in files["README.md"].decode()
    again = Pipeline.load("owner/frozen", precision="fp32")
    assert again.reader == dataclasses.replace(reader, source="mini-encoder")
    Pipeline(tokenizer, model, reader=dataclasses.replace(reader, source="owner/encoder")).push_to_hub(
        "owner/x", samples=0
    )
    assert b'"source": "owner/encoder"' in stub.repositories["owner/x"]["config.json"]


def test_all_files_are_one_commit(stub: Hub, pipe: Pipeline) -> None:
    """So that nobody ever loads parts of two models; a second push replaces the first."""
    pipe.push_to_hub("owner/tiny", samples=np.int64(1))  # type: ignore[arg-type]
    pipe.push_to_hub("owner/tiny", samples=0)
    weights = ["tokenizer.safetensors", "transformer.safetensors"]
    assert stub.commits == [
        ["README.md", "config.json", "samples.png", *weights],
        ["README.md", "config.json", *weights],
    ]
    assert sum(line.startswith("PUT") for line in stub.asked) == 2  # weights that are there are not sent again


def test_what_came_after_is_loaded_after(stub: Hub, pipe: Pipeline, make_transformer: Any) -> None:
    """The cache does not keep the model of before."""
    pipe.push_to_hub("owner/tiny", samples=0)
    Pipeline.load("owner/tiny")
    other = Pipeline(pipe.tokenizer, make_transformer(depth=2), classes=pipe.classes, precision="fp32")
    other.push_to_hub("owner/tiny", samples=0)
    assert Pipeline.load("owner/tiny", precision="fp32").fingerprint == other.fingerprint


def test_a_private_model_is_read_with_the_login_alone(
    stub: Hub, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made so, not turned so."""
    pipe.push_to_hub("owner/secret", samples=0, private=True)
    assert stub.private == {"owner/secret"}
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(InputError, match="no config.json from the hub"):
        hub.directory("owner/secret")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert Pipeline.load("owner/secret").classes == pipe.classes


def test_a_refusal_is_one_line_without_the_token(stub: Hub, pipe: Pipeline) -> None:
    """It says what would be needed."""
    stub.refuses = "owner/taken"
    with pytest.raises(
        InputError, match=r"cannot push owner/taken to the hub: .*403.*; expected `hf auth login`"
    ) as told:
        pipe.push_to_hub("owner/taken", samples=0)
    assert TOKEN not in str(told.value)
    assert stub.commits == []


def test_a_token_in_an_answer_is_blotted_out(stub: Hub) -> None:
    """Whoever wrote it there."""
    assert hub._refusal(ValueError(f"{TOKEN} has expired\nmore")) == "(token) has expired"
    assert hub._refusal(ValueError()) == "ValueError"


def test_without_a_login_nothing_is_asked(stub: Hub, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is painted for it."""
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(InputError, match="expected a login to push owner/tiny to the hub, got none: `hf auth login`"):
        pipe.push_to_hub("owner/tiny")
    assert stub.asked == []


def test_a_hub_that_does_not_answer_is_told(stub: Hub, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a model is written and pictures are painted."""
    monkeypatch.setattr(hub, "_answers", lambda name, file: False)
    with pytest.raises(InputError, match="expected an answer of the hub to push owner/tiny, got none"):
        pipe.push_to_hub("owner/tiny")


@pytest.mark.parametrize(
    "name", ["tiny", "a/b/c", "", "owner/na me", "https://example.com/owner/tiny", "o/" + "n" * 200]
)
def test_a_name_that_is_none_is_told(name: str, stub: Hub, pipe: Pipeline) -> None:
    """With what one looks like."""
    with pytest.raises(InputError, match="expected the name of a repository on the hub, owner/name, got"):
        pipe.push_to_hub(name)
    assert stub.asked == []


def test_out_writes_what_would_be_uploaded(pipe: Pipeline, tmp_path: Path) -> None:
    """Without a login; the directory is a model that `load` reads, with a page and a square of enlarged samples."""
    out = tmp_path / "page"
    assert pipe.push_to_hub("owner/tiny", samples=5, out=out) == str(out)
    assert Pipeline.load(out, precision="fp32").fingerprint == pipe.fingerprint
    with Image.open(out / "samples.png") as picture:
        assert picture.size == (3 * 128 + 8, 2 * 128 + 4)


# ---- the page --------------------------------------------------------------------------------------------------------


def page(pipe: Pipeline, **told: Any) -> str:
    return modelcard.page(pipe._facts("owner/tiny"), modelcard.Told(**told), "16 samples")


def test_the_page_begins_with_what_the_hub_reads(pipe: Pipeline, text_pipe: Pipeline) -> None:
    """As YAML; the licence only where it was given."""
    for model, task in ((pipe, "unconditional-image-generation"), (text_pipe, "text-to-image")):
        _, front, _ = page(model, license="cc-by-4.0").split("---\n", 2)
        told = yaml.safe_load(front)
        assert (told["library_name"], told["pipeline_tag"], told["license"]) == ("nextscale", task, "cc-by-4.0")
    assert "license:" not in page(pipe)


def test_the_python_of_the_page_runs(stub: Hub, pipe: Pipeline) -> None:
    """As a visitor of the hub would paste it."""
    pipe.push_to_hub("owner/tiny", samples=0)
    (block,) = re.findall(r"```python\n(.*?)```", stub.repositories["owner/tiny"]["README.md"].decode(), re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    assert len(list(Path("pictures").glob("*.png"))) == 1


def test_the_page_tells_data_and_recipe_of_both_stages(pipe: Pipeline, run: Path) -> None:
    """Every setting, the last versions, and of a path only what is no secret."""
    told = page(pipe, run=run)
    assert "3,414 training pictures and 363 held out." in told
    assert told.count("1,200 steps</summary>") == 2
    assert "| recipe.rates | 0.5, 1e-05 |" in told
    assert "| init | start |" in told
    assert "secret" not in told
    assert "| version of torch | 2.13 |" in told
    assert "| no |" not in told


def test_the_page_copies_figures_with_their_protocol(pipe: Pipeline, tmp_path: Path) -> None:
    """Of a sweep the best; the reference's name without its place; a setting for each scale is told as one."""
    (tmp_path / "card.json").write_text(json.dumps(figures(of="/home/me/a|b")))
    each = Setting(guidance=(0.0, 0.5, 1.5, 1.5))
    best = {"best": 1, "results": [figures(name="other"), figures(name="better", setting=each)]}
    (tmp_path / "sweep.json").write_text(json.dumps(best))
    told = page(pipe, figures=(tmp_path / "card.json", tmp_path / "sweep.json"))
    assert "| FD-x | 12.35 (12 … 13) |" in told
    assert "- pictures: 2,000" in told
    assert "- reference: a\\|b (fingerprint abcd)" in told
    assert "- sampling: guidance 1.5, top_k 900, top_p 0.96, temperature 1, step_guidance 0\n" in told
    assert "- sampling: guidance 0, 0.5, 1.5, 1.5, top_k 900" in told
    assert "fewer than 50,000: it falls as pictures are added" in told
    assert "better" in told
    assert "other" not in told


def test_rows_of_prompts_are_figures_too(pipe: Pipeline, tmp_path: Path) -> None:
    """Whose pictures and which kind of prompts stand behind the name."""
    card = AlignmentCard(**CARD, setting=Setting(), prompts={"seen": 9}, among=100, draws=8, reference=reference())
    figures = {"retrieval@1": Figure(name="retrieval@1", value=0.25)}
    row = Row(kind="seen", whose="the model's", prompts=9, figures=figures)
    (tmp_path / "words.json").write_text(json.dumps(Alignment(card=card, rows=(row,)).to_json()))
    assert "| retrieval@1, seen prompts, the model's | 0.25 |" in page(pipe, figures=(tmp_path / "words.json",))


@pytest.mark.parametrize("content", ["[]", "{}", '{"figures": {}}', '{"results": [], "best": 0}', "no JSON"])
def test_figures_that_are_none_are_told(content: str, pipe: Pipeline, tmp_path: Path) -> None:
    """In one line."""
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match="expected"):
        page(pipe, figures=(tmp_path / "x.json",))


def test_a_run_that_is_none_is_told(pipe: Pipeline, run: Path, tmp_path: Path) -> None:
    """Nothing there, or something else."""
    with pytest.raises(InputError, match="expected a file"):
        page(pipe, run=tmp_path)
    (run / "data.json").write_text("[]")
    with pytest.raises(InputError, match="whose data.json is none of ours"):
        page(pipe, run=run)
    (run / "run.json").write_text("{}")
    with pytest.raises(InputError, match="whose run.json is none of ours"):
        page(pipe, run=run)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"license": "the MIT one"}, "license: expected an identifier such as mit"),
        ({"samples": -1}, "samples: expected 0 .. 256, got -1"),
        ({"prompts": ["a cat"]}, "prompts: expected none for a model that reads none, got 'a cat'"),
    ],
)
def test_other_mistakes_are_told_before_anything_is_written(
    wrong: dict[str, Any], told: str, pipe: Pipeline, tmp_path: Path
) -> None:
    """Each in one line."""
    with pytest.raises(InputError, match=re.escape(told)):
        pipe.push_to_hub("owner/tiny", out=tmp_path / "page", **wrong)
    assert not (tmp_path / "page").exists()


def test_the_client_s_own_http_library_is_caught() -> None:
    """Whichever it is: a refused connection too, not only an answer of the hub."""
    found = hub._http_error()
    library = importlib.import_module(found.__module__.partition(".")[0])
    assert found is library.HTTPError
    assert issubclass(library.ConnectError, found)
