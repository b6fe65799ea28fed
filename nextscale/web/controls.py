"""The fields that tabs share, in the order in which `actions.Asked.of` takes them."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import gradio as gr

from nextscale.errors import InputError
from nextscale.pipeline import NO_CLASS, Pipeline, Request
from nextscale.web.actions import MOST_COUNT, MOST_PROMPT, MOST_SEED, Choosing

P = ParamSpec("P")
T = TypeVar("T")
Fields = list[gr.components.Component]
DEFAULT = Choosing()
CONDITION = 3  # of the fields: class, prompt, negative prompt
ASKING = 5  # those and seed, count


def asking(pipe: Pipeline, *, count: int, label: int | None = None) -> Fields:
    """Which pictures: class and prompts, as far as the model knows them, seed, count.

    Begins with the class of this number; when None with the first, or with none where there are prompts.
    """
    names = [*((name, number) for number, name in enumerate(pipe.classes)), (NO_CLASS, len(pipe.classes))]
    reads = pipe.reader is not None
    first = (len(pipe.classes) if reads else 0) if label is None else label
    words = {"max_length": MOST_PROMPT, "visible": reads}
    prompt = gr.Textbox("", label="Prompt", lines=2, placeholder="what is to be seen", elem_classes="prompt", **words)
    away = gr.Textbox("", label="Negative prompt", max_lines=1, placeholder="what it leads away from", **words)
    named = gr.Dropdown(names, value=first, label="Class", filterable=True, visible=not reads or len(pipe.classes) > 1)
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MOST_SEED, min_width=100)
        again = gr.Button("Random seed", size="sm", min_width=90, elem_classes="aside")
    again.click(lambda: random.randrange(2**31), None, seed, queue=False, api_visibility="private")
    return [named, prompt, away, seed, gr.Slider(1, MOST_COUNT, count, step=1, label="Pictures")]


def choosing(given: Choosing = DEFAULT) -> Fields:
    """How tokens are chosen."""
    return [
        gr.Slider(
            0, 10, given.guidance, step=0.1, label="Guidance", info="how strictly it follows what is asked; 0: not"
        ),
        gr.Slider(0, 4096, given.top_k, step=1, label="Top-k", info="among so many codes; 0: all"),
        gr.Slider(0, 1, given.top_p, step=0.01, label="Top-p", info="of so much probability; 0: all"),
        gr.Slider(0, 2, given.temperature, step=0.05, label="Temperature", info="below 1 more typical"),
        gr.Checkbox(given.smooth, label="Smooth", info="mix codes: prettier, not for measuring"),
    ]


def refilled(pipe: Pipeline, request: Request) -> list[Any]:
    """What the fields show for a request; values of single scales, which no slider holds, leave theirs as it is."""
    told = (request.guidance, request.top_k, request.top_p, request.temperature, request.smooth)
    shown = [gr.skip() if isinstance(value, tuple) else value for value in told]
    return [*condition(pipe, request), request.seed, 1, *shown]


def condition(pipe: Pipeline, request: Request) -> list[Any]:
    """Class, prompt and negative prompt; no words where this model reads none."""
    words = (request.prompt or "", request.negative_prompt or "") if pipe.reader is not None else ("", "")
    return [request.label, *words]


def begin_and_stop(what: str) -> tuple[gr.Button, gr.Button]:
    """The two buttons of a tab."""
    with gr.Row():
        begin = gr.Button(what, variant="primary", elem_classes="begin", min_width=110)
        stop = gr.Button("Stop", elem_classes="stop-work", min_width=80)
    return begin, stop


def told(act: Callable[P, T]) -> Callable[P, T]:
    """`InputError` as the page's own message, and as the answer to a program."""

    @functools.wraps(act)
    def acting(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return act(*args, **kwargs)
        except InputError as error:
            raise gr.Error(str(error), title="Not possible", print_exception=False) from None

    return acting


def told_on_the_way(act: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """Likewise of an iterator."""

    @functools.wraps(act)
    def acting(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        try:
            yield from act(*args, **kwargs)
        except InputError as error:
            raise gr.Error(str(error), title="Not possible", print_exception=False) from None

    return acting
