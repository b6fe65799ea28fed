"""The fields that tabs share, in the order in which `actions.Asked.of` takes them."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import gradio as gr

from nextscale.errors import InputError
from nextscale.pipeline import Request
from nextscale.web.actions import MOST_COUNT, MOST_SEED, Choosing

P = ParamSpec("P")
T = TypeVar("T")
Fields = list[gr.components.Component]
DEFAULT = Choosing()


def asking(classes: Sequence[str], *, count: int, label: int = 0) -> Fields:
    """Which pictures: class, seed, count; beginning with this class, or none where it is the number of them."""
    names = [*((name, number) for number, name in enumerate(classes)), ("no class", len(classes))]
    named = gr.Dropdown(names, value=label, label="Class", filterable=True)
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MOST_SEED, min_width=100)
        again = gr.Button("Random seed", size="sm", min_width=90, elem_classes="aside")
    again.click(lambda: random.randrange(2**31), None, seed, queue=False, api_visibility="private")
    return [named, seed, gr.Slider(1, MOST_COUNT, count, step=1, label="Pictures")]


def choosing(given: Choosing = DEFAULT) -> Fields:
    """How tokens are chosen."""
    return [
        gr.Slider(0, 10, given.guidance, step=0.1, label="Guidance", info="how strictly it follows the class; 0: not"),
        gr.Slider(0, 4096, given.top_k, step=1, label="Top-k", info="among so many codes; 0: all"),
        gr.Slider(0, 1, given.top_p, step=0.01, label="Top-p", info="of so much probability; 0: all"),
        gr.Slider(0, 2, given.temperature, step=0.05, label="Temperature", info="below 1 more typical"),
        gr.Checkbox(given.smooth, label="Smooth", info="mix codes: prettier, not for measuring"),
    ]


def refilled(request: Request) -> list[Any]:
    """What the fields show for a request; a schedule of guidance, which no slider holds, leaves that as it is."""
    guidance = gr.skip() if isinstance(request.guidance, tuple) else request.guidance
    told = (request.top_k, request.top_p, request.temperature, request.smooth)
    return [request.label, request.seed, 1, guidance, *told]


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
