"""Laws of the studio with a model that reads text: where its fields are, what the page and programs do with words."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from nextscale import Pipeline, images
from nextscale.pipeline import Request
from nextscale.web.sessions import Sessions

gr = pytest.importorskip("gradio", reason="the studio needs gradio")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Pipeline], Any]:
    """A page, not served; gradio leaves an event loop open where none runs, and playwright's runs in this thread."""
    from nextscale.web.studio import Studio, build

    folder = tmp_path_factory.mktemp("pages")

    async def built(pipe: Pipeline) -> Any:
        return build(Studio(pipe, Sessions(folder), folder))

    def elsewhere(pipe: Pipeline) -> Any:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(built(pipe))).result()

    return elsewhere


@pytest.fixture(scope="module")
def page(build: Callable[[Pipeline], Any], text_pipe: Pipeline) -> Any:
    """Of a model of classes and text."""
    return build(text_pipe)


def shown(page: Any, label: str) -> list[Any]:
    """The fields of this name that a person sees."""
    return [block for block in page.blocks.values() if getattr(block, "label", None) == label and block.visible]


def work_of(page: Any, field: Any) -> Any:
    """What the button below a field does."""
    (found,) = (act for act in page.fns.values() if field in act.inputs and len(act.inputs) > 5)
    return found


def program(page: Any, name: str) -> Callable[..., Any]:
    """What an HTTP call does."""
    return next(act.fn for act in page.fns.values() if act.api_name == name)


@pytest.mark.slow
def test_a_model_has_the_fields_of_what_it_knows(build: Callable[[Pipeline], Any], page: Any, pipe: Pipeline) -> None:
    """In the tabs that paint: words where it reads, and then no class at first; nobody sees a field of no use."""
    assert [len(shown(page, name)) for name in ("Class", "Prompt", "Negative prompt")] == [3, 3, 3]
    assert {field.value for field in shown(page, "Class")} == {5}
    assert "Use its prompt" in [getattr(block, "value", None) for block in page.blocks.values()]
    plain = build(pipe)
    assert [len(shown(plain, name)) for name in ("Class", "Prompt", "Negative prompt")] == [3, 0, 0]
    assert [field.value for field in shown(plain, "Class")] == [0, 5, 0]
    assert "Use its class" in [getattr(block, "value", None) for block in plain.blocks.values()]


def test_words_that_are_typed_are_painted(page: Any, text_pipe: Pipeline) -> None:
    """With what else the fields say, and the picture's file brings all of it back into them."""
    from nextscale.web import controls

    work = work_of(page, shown(page, "Prompt")[0])
    values = {field.label: field.value for field in work.inputs} | {"Prompt": "a red heart", "Seed": 7, "Pictures": 1}
    *_, (_, strip) = work.fn(SimpleNamespace(session_hash="one"), *values.values())
    request = Request.from_notes(images.notes(strip[0][0]))
    expected = text_pipe.generate(prompts="a red heart", seeds=[7], guidance=1.5)
    assert images.open_rgb(strip[0][0]).tobytes() == expected.pil()[0].tobytes()
    assert request == expected.requests[0]
    assert controls.refilled(text_pipe, request) == list(values.values())


def test_a_model_of_classes_takes_no_words_back(pipe: Pipeline, text_pipe: Pipeline) -> None:
    """Of a picture that another model painted: they would stand in fields that nobody sees."""
    from nextscale.web import controls

    request = text_pipe.generate("bee", prompts="a red heart", negative_prompt="cats").requests[0]
    assert controls.condition(text_pipe, request) == [1, "a red heart", "cats"]
    assert controls.condition(pipe, request) == [1, "", ""]


def test_programs_ask_in_words(page: Any, text_pipe: Pipeline) -> None:
    """A prompt alone is of no class, and nothing at all of the first; edits take words too."""
    generate, edit = program(page, "generate"), program(page, "edit")
    (painted,) = generate(prompt="a red heart", negative_prompt="cats", seed=3)
    expected = text_pipe.generate(prompts="a red heart", negative_prompt="cats", seeds=[3], guidance=1.5)
    assert opened(painted) == expected.pil()[0].tobytes()
    assert (painted["name"], painted["settings"]["prompt"]) == ("a-red-heart-seed3.png", "a red heart")
    assert generate()[0]["settings"]["name"] == "ant"
    assert generate(label="bee", prompt="a red heart")[0]["name"] == "1-bee-a-red-heart-seed0.png"
    (edited,) = edit(picture=painted["png"], prompt="a cat face", keep_scales=2)
    assert (edited["settings"]["prompt"], edited["settings"]["name"]) == ("a cat face", "no class")
    with pytest.raises(gr.Error, match="prompt: expected text, got 7"):
        generate(prompt=7)


def opened(painted: dict[str, Any]) -> bytes:
    """The pixels of an answer."""
    return images.open_rgb(io.BytesIO(base64.b64decode(painted["png"]))).tobytes()
