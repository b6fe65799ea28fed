"""The same over HTTP: functions that programs call by name, with JSON in and JSON out.

A picture is PNG in base64, with its settings inside; `docs/studio.md` shows calls from Python and from a shell.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from nextscale import images
from nextscale.errors import InputError
from nextscale.pipeline import Generated, Pipeline
from nextscale.web import actions, controls
from nextscale.web.actions import Asked, Edited


def add(pipe: Pipeline, limits: dict[str, Any]) -> None:
    """Add the functions to the page that is being built; `limits` are those of all that use the model."""

    def generate(
        label: str | int | None = None,
        prompt: str = "",
        negative_prompt: str = "",
        seed: int = 0,
        count: int = 1,
        guidance: float = 1.5,
        top_k: int = 900,
        top_p: float = 0.96,
        temperature: float = 1.0,
        smooth: bool = False,
    ) -> list[dict[str, Any]]:
        """Pictures of a class, by name or number, or of a prompt: a list of {"name", "png" in base64, "settings"}.

        Without either, of the first class; a prompt alone is of no class.
        """
        label = (len(pipe.classes) if prompt else 0) if label is None else label
        choosing = (guidance, top_k, top_p, temperature, smooth)
        asked = Asked.of(label, prompt, negative_prompt, seed, count, *choosing)
        return _answer(actions.generated(pipe, asked))

    def edit(
        picture: str,
        mask: str = "",
        label: str | int = len(pipe.classes),
        prompt: str = "",
        negative_prompt: str = "",
        seed: int = 0,
        count: int = 1,
        room: list[int] = [0, 0, 0, 0],  # noqa: B006  (a default that clients are shown)
        keep_scales: int = 0,
        feather: int = 0,
        guidance: float = 1.5,
        top_k: int = 900,
        top_p: float = 0.96,
        temperature: float = 1.0,
    ) -> list[dict[str, Any]]:
        """A picture with what the mask shows (white, or drawn on transparency) painted anew; both in base64.

        `room` is what to paint around it instead: left, top, right, bottom, in percent of a side.
        """
        if not isinstance(room, list) or len(room) != 4:
            raise InputError(f"room: expected four numbers, left, top, right and bottom, got {room!r}")
        asked = Asked.of(label, prompt, negative_prompt, seed, count, guidance, top_k, top_p, temperature, False)
        given = actions.fitted(pipe, actions.picture_of(picture, "picture").picture)
        edited = Edited.of(actions.work_of(pipe, given, mask, room), keep_scales, feather)
        return _answer(actions.repainted(pipe, asked, edited))

    def reconstruct(picture: str, through: int | None = None) -> dict[str, Any]:
        """A picture, in base64, through the tokens (of the first `through` scales): {"png", "psnr" in dB}."""
        given = actions.fitted(pipe, actions.picture_of(picture, "picture").picture)
        painted = images.to_pil(images.from_unit(pipe.reconstruct(given, through)[0]))
        error = images.psnr(*(images.from_pil(one)[None] for one in (painted, given)))
        return {"png": _base64(painted, None), "psnr": round(error.item(), 3)}

    def classes() -> list[str]:
        """The names of the classes, in the order of their numbers."""
        return list(pipe.classes)

    for act in (generate, edit, reconstruct):
        gr.api(controls.told(act), api_name=act.__name__, **limits)
    gr.api(classes, api_name="classes", queue=False)


def _answer(done: Generated) -> list[dict[str, Any]]:
    return [
        {"name": f"{request.stem}.png", "png": _base64(picture, request.notes), "settings": _settings(request)}
        for picture, request in zip(done.pil(), done.requests, strict=True)
    ]


def _settings(request: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(request).items() if value is not None}


def _base64(picture: Any, notes: Any) -> str:
    return images.data_uri(picture, notes=notes).partition(",")[2]
