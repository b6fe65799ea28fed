"""The page: its tabs, and which button does which of `actions`.

One model for all pages, one job at a time: every event that uses it shares a concurrency group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from nextscale import images
from nextscale.errors import InputError
from nextscale.pipeline import Pipeline
from nextscale.web import actions, api, controls, runs, show, uploads
from nextscale.web.actions import Asked, Edited
from nextscale.web.controls import told, told_on_the_way
from nextscale.web.sessions import Kept, Session, Sessions

MODEL = {"concurrency_id": "model", "concurrency_limit": 1}
QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
REFRESH = 5.0  # seconds between two looks at a run


@dataclass(frozen=True)
class Studio:
    """What the page needs from outside."""

    pipe: Pipeline
    sessions: Sessions
    runs: Path
    """The folder whose runs the train tab shows."""


def build(studio: Studio) -> gr.Blocks:
    """The page; `serving` starts it."""
    with gr.Blocks(
        title="nextscale studio", analytics_enabled=False, fill_width=True, delete_cache=(300, 3600)
    ) as page:
        gr.HTML(_heading(studio.pipe), elem_id="heading")
        history = History.new()
        with gr.Tabs() as tabs:
            with gr.Tab("Generate", id="generate"):
                generating = _generate_tab(studio, history)
            with gr.Tab("Edit", id="edit"):
                editing = EditTab(studio, history)
            with gr.Tab("Reconstruct", id="reconstruct"):
                _reconstruct_tab(studio)
            with gr.Tab("Compare", id="compare"):
                _compare_tab(studio, history)
            with gr.Tab("Train", id="train"):
                _train_tab(studio, page)
        history.place(studio, tabs, generating, editing)
        api.add(studio.pipe, MODEL)
        page.unload(_closing(studio))
    page.queue(max_size=64)
    return page


def _closing(studio: Studio) -> Callable[[gr.Request], None]:
    def closed(request: gr.Request) -> None:
        studio.sessions.close(request.session_hash)

    return closed


def _heading(pipe: Pipeline) -> str:
    size, model = pipe.tokenizer.config, pipe.transformer.config
    told = (
        f"{size.height} × {size.width} pixels in {len(size.scales)} scales, {model.parameters / 1e6:.1f} M parameters"
    )
    reads = f"; reads prompts of up to {pipe.reader.tokens} pieces" if pipe.reader is not None else ""
    return f"<h1>nextscale studio</h1><p>{told}{reads}. Pictures grow coarse to fine, one token map at a time.</p>"


def _session(studio: Studio, request: gr.Request) -> Session:
    return studio.sessions.of(request.session_hash)


def _wire(studio: Studio, begin: gr.Button, stop: gr.Button, work: Callable[..., Any], **event: Any) -> Any:
    """`begin` runs `work` after it has taken back an earlier stop; `stop` ends it, in the queue too."""

    def fresh(request: gr.Request) -> None:
        _session(studio, request).stopped.clear()

    def halt(request: gr.Request) -> None:
        _session(studio, request).stopped.set()

    stop.click(halt, None, None, **QUIET)
    ready = begin.click(fresh, None, None, **QUIET)
    return ready.then(work, **event, **MODEL, show_progress="minimal", api_visibility="private")


# ---- history ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """The strip below the tabs, and what may be done with a picture of it."""

    strip: gr.Gallery
    dropped: gr.File
    chosen: gr.State
    """The path of a PNG."""
    about: gr.HTML

    @classmethod
    def new(cls) -> History:
        """Made before the tabs, which fill it, and shown below them."""
        strip = gr.Gallery(
            label="History",
            format="png",
            columns=8,
            fit_columns=False,
            height=150,
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="history",
            render=False,
        )
        dropped = gr.File(
            label="Drop a PNG of nextscale to restore its settings",
            file_types=["image"],
            height=110,
            elem_id="restore",
            render=False,
        )
        return cls(strip, dropped, gr.State(""), gr.HTML(elem_id="about", render=False))

    def place(self, studio: Studio, tabs: gr.Tabs, generating: controls.Fields, editing: EditTab) -> None:
        """Below the tabs."""
        with gr.Row():
            with gr.Column(scale=3):
                self.strip.render()
                self.about.render()
                with gr.Row():
                    every = gr.Button("Use all settings", size="sm", elem_id="use-all")
                    seed = gr.Button("Use its seed", size="sm")
                    what = "prompt" if studio.pipe.reader is not None else "class"
                    shows = gr.Button(f"Use its {what}", size="sm", elem_id="use-condition")
                    edit = gr.Button("Edit this picture", size="sm", elem_id="edit-this")
            with gr.Column(scale=1, min_width=220):
                self.dropped.render()
        fields = [*generating, *editing.fields]
        back = [tabs, *fields, *editing.canvas, self.about]
        self.strip.select(self._choose(studio), None, [self.chosen, self.about], **QUIET)
        self.dropped.upload(self._restore(studio, editing), self.dropped, [*back, self.chosen], **QUIET)
        every.click(self._recall(studio, editing), self.chosen, back, **QUIET)
        seeds = [fields[controls.CONDITION] for fields in (generating, editing.fields)]
        conditions = [field for fields in (generating, editing.fields) for field in fields[: controls.CONDITION]]
        seed.click(told(lambda file: [_asked(file).seed] * 2), self.chosen, seeds, **QUIET)
        shows.click(
            told(lambda file: controls.condition(studio.pipe, _asked(file)) * 2), self.chosen, conditions, **QUIET
        )
        edit.click(editing.take(studio), self.chosen, [tabs, *editing.canvas], **QUIET)

    def _choose(self, studio: Studio) -> Callable[..., Any]:
        @told
        def choose(event: gr.SelectData, request: gr.Request) -> tuple[str, str]:
            kept = _session(studio, request).pictures[event.index]
            about = actions.described(studio.pipe, kept.request) if kept.request else "Stopped early: no settings."
            return str(kept.file), show.status(about)

        return choose

    def _recall(self, studio: Studio, editing: EditTab) -> Callable[..., Any]:
        @told
        def recall(file: str, request: gr.Request) -> list[Any]:
            kept = next((one for one in _session(studio, request).pictures if str(one.file) == file), None)
            return _back(studio, editing, file, kept)

        return recall

    def _restore(self, studio: Studio, editing: EditTab) -> Callable[..., Any]:
        @told
        def restore(file: str) -> list[Any]:
            return [*_back(studio, editing, file, None), file]

        return restore


def _asked(file: str) -> Any:
    if not file:
        raise InputError("expected a picture of the history, got none: choose one first")
    return actions.request_in(file)


def _back(studio: Studio, editing: EditTab, file: str, kept: Kept | None) -> list[Any]:
    """Tab, fields of both tabs, canvas and words for a picture's settings."""
    request = _asked(file)
    told = actions.described(studio.pipe, request)
    filled = controls.refilled(studio.pipe, request)
    if request.edit is None:
        rest = [gr.skip()] * (len(editing.fields) + len(editing.canvas))
        return [gr.Tabs(selected="generate"), *filled, *rest, show.status(told)]
    canvas = editing.shown(kept.work.picture, kept.work.mask) if kept and kept.work else [gr.skip()] * 2
    details = [request.edit.get("keep_scales", 0), request.edit.get("feather", 0), 0, 0, 0, 0]
    if canvas[0] is None or not (kept and kept.work):
        told += " Its picture and mask are not in the file: drop the picture and brush again."
    return [gr.Tabs(selected="edit"), *[gr.skip()] * len(filled), *filled, *details, *canvas, show.status(told)]


# ---- tabs ------------------------------------------------------------------------------------------------------------


def _generate_tab(studio: Studio, history: History) -> controls.Fields:
    with gr.Row():
        with gr.Column(scale=1, min_width=270):
            fields = controls.asking(studio.pipe, count=4)
            begin, stop = controls.begin_and_stop("Generate")
            with gr.Accordion("How tokens are chosen", open=False):
                fields += controls.choosing()
        with gr.Column(scale=2, min_width=280):
            stage = gr.HTML(show.message("Pictures appear here, coarse to fine. Ctrl+Enter begins, Escape stops."))

    @told_on_the_way
    def work(*values: Any, request: gr.Request) -> Iterator[tuple[Any, Any]]:
        session, asked = _session(studio, request), _asking(studio, values)
        for shown in actions.generate(studio.pipe, session, asked):
            yield shown, gr.skip()
        yield gr.skip(), _strip(session)

    _wire(studio, begin, stop, _with_request(work), inputs=fields, outputs=[stage, history.strip])
    return fields


def _asking(studio: Studio, values: Sequence[Any]) -> Asked:
    """What the fields say; what is not read of it is shown in passing."""
    asked = Asked.of(*values)
    for remark in actions.remarks(studio.pipe, asked):
        gr.Info(remark)
    return asked


def _with_request(work: Callable[..., Any]) -> Callable[..., Any]:
    """gradio hands the request to a named parameter, after those of the page."""

    def handler(request: gr.Request, *values: Any) -> Iterator[Any]:
        yield from work(*values, request=request)

    return handler


def _strip(session: Session) -> list[tuple[str, str]]:
    return [(str(kept.file), kept.file.stem) for kept in session.pictures]


class EditTab:
    """A picture with a brush over it, room around it, and what is kept."""

    def __init__(self, studio: Studio, history: History) -> None:
        self.picture = gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=270):
                upload = gr.File(label="Picture", file_types=["image"], height=110, elem_id="edit-upload")
                self.board = gr.HTML(brush(None, None), elem_id="board")
                mask = gr.Textbox(visible=False)
            with gr.Column(scale=1, min_width=270):
                self.fields = controls.asking(studio.pipe, count=2, label=len(studio.pipe.classes))
                begin, stop = controls.begin_and_stop("Repaint")
                with gr.Accordion("Room around the picture", open=False):
                    room = [
                        gr.Slider(0, 100, 0, step=5, label=f"{side}, % of the side")
                        for side in ("Left", "Top", "Right", "Bottom")
                    ]
                with gr.Accordion("What is kept", open=False):
                    last = len(studio.pipe.transformer.config.scales)
                    keep = gr.Slider(0, last, 0, step=1, label="Scales kept", info="a variation: only finer ones anew")
                    feather = gr.Slider(0, 32, 0, step=1, label="Feather", info="pixels of soft edge")
                with gr.Accordion("How tokens are chosen", open=False):
                    self.fields += controls.choosing()
            with gr.Column(scale=1, min_width=270):
                stage = gr.HTML(show.message("Drop a picture, brush over what to repaint, and begin."))
        asked = list(self.fields)
        self.fields += [keep, feather, *room]
        self.canvas = [self.picture, self.board]
        upload.upload(self._upload(studio), upload, self.canvas, **QUIET)
        _wire(
            studio,
            begin,
            stop,
            _with_request(self._work(studio, len(asked))),
            inputs=[self.picture, mask, *self.fields],
            outputs=[stage, history.strip],
            js="(picture, mask, ...rest) => [picture, window.nextscaleMask(), ...rest]",
        )

    def _work(self, studio: Studio, asked: int) -> Callable[..., Any]:
        @told_on_the_way
        def work(
            picture: Image.Image | None, mask: str, *values: Any, request: gr.Request
        ) -> Iterator[tuple[Any, Any]]:
            keep, feather, *room = values[asked:]
            edited = Edited.of(actions.work_of(studio.pipe, picture, mask, room), keep, feather)
            session = _session(studio, request)
            for shown in actions.edit(studio.pipe, session, _asking(studio, values[:asked]), edited):
                yield shown, gr.skip()
            yield gr.skip(), _strip(session)

        return work

    def _upload(self, studio: Studio) -> Callable[..., Any]:
        @told
        def accept(file: str) -> list[Any]:
            upload = uploads.read(file)
            for remark in upload.remarks:
                gr.Info(remark)
            return self.shown(actions.fitted(studio.pipe, upload.picture), None)

        return accept

    def take(self, studio: Studio) -> Callable[..., Any]:
        """A picture of the history as the one to edit."""

        @told
        def taken(file: str) -> list[Any]:
            if not file:
                raise InputError("expected a picture of the history, got none: choose one first")
            picture = actions.fitted(studio.pipe, images.open_rgb(file))
            return [gr.Tabs(selected="edit"), *self.shown(picture, None)]

        return taken

    def shown(self, picture: Image.Image, mask: Image.Image | None) -> list[Any]:
        """The values of `canvas`."""
        return [picture, brush(picture, mask)]


def brush(picture: Image.Image | None, mask: Image.Image | None) -> str:
    """The board that `studio.js` paints on; its canvas is a mask of whole pixels."""
    if picture is None:
        return show.message("The picture to edit appears here.")
    drawn = f' data-mask="{images.data_uri(_red(mask))}"' if mask is not None else ""
    tools = "".join(
        f'<button type="button" data-tool="{tool}">{tool.capitalize()}</button>' for tool in ("undo", "clear", "invert")
    )
    erase = '<button type="button" data-tool="erase" aria-pressed="false">Erase</button>'
    width, height = (side * max(1, 512 // max(picture.size)) for side in picture.size)
    return (
        f'<div class="brush"><div class="canvas"><img src="{images.data_uri(picture)}" alt="picture to edit">'
        f'<canvas width="{width}" height="{height}" tabindex="0" aria-label="what to repaint"{drawn}></canvas></div>'
        f'<div class="tools"><label>Brush <input type="range" min="2" max="40" value="14"></label>{erase}{tools}</div>'
        "</div>"
    )


def _red(mask: Image.Image) -> Image.Image:
    """A mask as what the brush draws."""
    drawn = Image.new("RGBA", mask.size, (229, 72, 77, 0))
    drawn.putalpha(mask.convert("L"))
    return drawn


def _reconstruct_tab(studio: Studio) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=270):
            upload = gr.File(label="Picture", file_types=["image"], height=110, elem_id="reconstruct-upload")
        with gr.Column(scale=3, min_width=280):
            stage = gr.HTML(show.message("Drop a picture to see it through the tokens, coarse to fine."))

    @told
    def work(file: str) -> str:
        return actions.reconstruction(studio.pipe, uploads.read(file))

    upload.upload(work, upload, stage, **MODEL, show_progress="minimal", api_visibility="private")


def _compare_tab(studio: Studio, history: History) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=270):
            asked = controls.asking(studio.pipe, count=2)
            begin, stop = controls.begin_and_stop("Compare")
        stages, ways = [], []
        for name, given in (("A", actions.Choosing()), ("B", actions.Choosing(guidance=4.0))):
            with gr.Column(scale=1, min_width=270):
                with gr.Accordion(f"Setting {name}", open=False):
                    ways.append(controls.choosing(given))
                stages.append(gr.HTML(show.message(f"Setting {name}")))
    over = gr.HTML()

    @told_on_the_way
    def work(*values: Any, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        session, same = _session(studio, request), values[: controls.ASKING]
        first, second = (values[start : start + len(ways[0])] for start in (len(same), len(same) + len(ways[0])))
        both = _asking(studio, (*same, *first)), Asked.of(*same, *second)
        for shown in actions.compare(studio.pipe, session, both):
            yield *shown, gr.skip()
        yield gr.skip(), gr.skip(), gr.skip(), _strip(session)

    inputs = [*asked, *ways[0], *ways[1]]
    _wire(studio, begin, stop, _with_request(work), inputs=inputs, outputs=[*stages, over, history.strip])


def _train_tab(studio: Studio, page: gr.Blocks) -> None:
    with gr.Row():
        name = gr.Dropdown([], label=f"Run in {studio.runs.name or studio.runs}", scale=4, elem_id="run")
        look = gr.Button("Look again", size="sm", scale=1, min_width=90, elem_classes="aside")
    shown = gr.HTML(show.message("Choose a run to watch it."))
    timer = gr.Timer(REFRESH)

    @told
    def listed(chosen: str | None) -> tuple[Any, str]:
        names = runs.found(studio.runs)
        chosen = chosen if chosen in names else next(iter(names), None)
        return gr.Dropdown(names, value=chosen), runs.page(studio.runs, chosen)

    @told
    def again(chosen: str | None) -> str:
        return runs.page(studio.runs, chosen)

    page.load(listed, name, [name, shown], **QUIET)
    look.click(listed, name, [name, shown], **QUIET)
    name.input(again, name, shown, **QUIET)
    timer.tick(again, name, shown, **QUIET)
