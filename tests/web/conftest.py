"""The studio served in this process, with a small model, and a headless browser that looks at it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nextscale import Pipeline


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All at the beginning, where one of several processes takes them: one server and one browser, not two."""
    items.sort(key=lambda item: Path(__file__).parent not in item.path.parents)


@pytest.fixture(scope="session")
def model() -> Pipeline:
    """The shape of emoji-32, random weights."""
    pipe = Pipeline.from_preset("emoji-32", precision="fp32")
    pipe.classes = ("Smileys & Emotion", *(f"class {number}" for number in range(1, 9)))
    return pipe


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run, half way."""
    root = tmp_path_factory.mktemp("runs")
    run = root / "mine"
    run.mkdir()
    history = [{"step": 100.0 * n, "cross_entropy": 6 / n, "psnr": 12.0 + n} for n in range(1, 6)]
    (run / "run.json").write_text(json.dumps({"settings": {}, "finished": False}))
    (run / "history.json").write_text(json.dumps(history))
    (run / "data.json").write_text(json.dumps({"train": 1234, "validation": 56, "classes": ["a", "b"], "broken": []}))
    (run / "health.txt").write_text(
        "scale  size  usage\n    1   1x1  36/363\nwarning: a scale < the last one is not used\n"
    )
    (run / "samples").mkdir()
    Image.new("RGB", (64, 32), "#c05080").save(run / "samples" / "step-0000100.png")
    return root


@pytest.fixture(scope="session")
def address(model: Pipeline, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the studio, in a process of its own: `serve.py` says what is different from `nextscale web`."""
    pytest.importorskip("gradio", reason="the studio needs gradio")
    saved = tmp_path_factory.mktemp("model")
    model.save(saved)
    program = [sys.executable, Path(__file__).parent / "serve.py", "web", "--model", saved, "--runs", runs]
    more = ["--precision", "fp32", "--device", "cpu", "--port", free_port()]
    with subprocess.Popen(list(map(str, [*program, *more])), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Watched:
    """A page of the studio, what it complained about, and whom it asked."""

    def __init__(self, page: Any, address: str, query: str = "") -> None:
        self.page, self.address = page, address
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", lambda line: line.type == "error" and self.complaints.append(line.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda one: one.url.startswith("http") and self.hosts.add(one.url.split("/")[2]))
        page.goto(address + query)
        page.wait_for_selector("button.begin")

    def tab(self, name: str) -> None:
        """Open a tab; where it does not fit, it is in a menu."""
        tab = self.page.get_by_role("tab", name=name)
        if not tab.count():
            self.page.locator(".overflow-menu > button").click()
            tab = self.page.locator(".overflow-dropdown button", has_text=name)
        tab.first.click()

    def begin(self, name: str) -> None:
        """Press a button."""
        self.page.get_by_role("button", name=name, exact=True).click()

    def well(self) -> bool:
        """Nothing was complained about and nothing asked of anybody else."""
        assert self.complaints == []
        assert self.hosts == {self.address.split("/")[2]}
        return True


@pytest.fixture
def opened(address: str, browser: Any) -> Iterator[Callable[..., Watched]]:
    """`opened(width=390, scheme="dark")`: a new page."""
    contexts = []

    def new(*, width: int = 1280, scheme: str = "light") -> Watched:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        context.set_default_timeout(60_000)  # milliseconds; a busy machine is no fault
        return Watched(context.new_page(), address, f"?__theme={scheme}")

    yield new
    for context in contexts:
        context.close()


@pytest.fixture
def studio(opened: Callable[..., Watched]) -> Watched:
    """A new page at a desk's width."""
    return opened()
