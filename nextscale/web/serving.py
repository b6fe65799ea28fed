"""The page as a server: for this machine alone unless told otherwise, nothing sent anywhere, its files removed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.pipeline import Pipeline

LOCAL = "127.0.0.1"
MOST_UPLOAD = "16mb"
MOST_STATES = 16  # pages and programs whose last values gradio holds; by itself ten thousand, pictures and all
PRIVATE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


@contextmanager
def served(pipe: Pipeline, *, runs: Path, host: str = LOCAL, port: int | None = None) -> Iterator[str]:
    """The page's address, while it is served.

    Arguments:
        runs: the folder whose runs may be watched.
        port: the first that is free from 7860 on when None.

    Raises `InputError` where gradio is not installed, and for an address that cannot be listened on.
    """
    with tempfile.TemporaryDirectory(prefix="nextscale-studio-") as folder:
        os.environ.update(PRIVATE, GRADIO_TEMP_DIR=folder)  # read when gradio is imported
        page = _page(pipe, Path(folder), runs)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                ssr_mode=False,
                quiet=True,
                inbrowser=False,
                prevent_thread_lock=True,
                max_file_size=MOST_UPLOAD,
                state_session_capacity=MOST_STATES,
                footer_links=[],
                run_history=False,
                pwa=False,
                enable_monitoring=False,
                theme=_theme(),
                head=f"<style>{_text('studio.css')}</style><script>{_text('studio.js')}</script>",  # as it is
            )
        except OSError:
            told = f"{host}:{port or 'any'}"
            raise InputError(f"expected a free port on an address of this machine, got {told}") from None
        try:
            yield address
        finally:
            page.close()


def _page(pipe: Pipeline, folder: Path, runs: Path):  # type: ignore[no-untyped-def]  # gradio's
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise InputError('the studio needs gradio: pip install "nextscale[web]"') from None
    from nextscale.web import sessions, studio

    return studio.build(studio.Studio(pipe, sessions.Sessions(folder / "pages"), runs))


def _theme():  # type: ignore[no-untyped-def]
    """Fonts of the machine it is seen on: nothing is fetched."""
    import gradio as gr

    sans, mono = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    theme = gr.themes.Base(primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=sans, font_mono=mono)
    return theme.set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300")


def _text(name: str) -> str:
    return (resources.files("nextscale.web") / name).read_text("utf-8")
