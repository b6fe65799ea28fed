"""The documentation as a site: its figures are drawn by the package, and its search answers what people ask."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
ASKED = {  # what somebody types, and a word of the heading that answers it
    "4 % accuracy normal": "accuracy",
    "loss does not fall": "fall below",
    "FID does not match": "FID",
    "coarse scale collapsed": "collapsed",
    "checkpoint does not load": "checkpoint",
    "out of memory": "memory",
    "loss NaN": "NaN",
    "slow on a CPU": "slow",
    "another picture on another machine": "another machine",
    "samples worse than reconstructions": "worse",
    "reconstructions blurred": "blurred",
    "samples look alike": "alike",
    "guidance does nothing": "nothing",
    "prompt ignored": "ignored",
}


@pytest.mark.slow
def test_the_figures_are_those_that_the_script_draws(tmp_path: Path) -> None:
    """Of the same names and sizes; to the pixel only with the same matplotlib and fonts."""
    spec = importlib.util.spec_from_file_location("draw_figures", ROOT / "scripts" / "draw_figures.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    drawn = {path.name: path for path in script.write(tmp_path)}
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs").glob("*.md"))
    assert drawn.keys() == set(re.findall(r"\]\(figures/([\w.-]+)\)", pages))
    for name, path in drawn.items():
        kept = ROOT / "docs" / "figures" / name
        assert kept.stat().st_size < 150_000
        with Image.open(kept) as old, Image.open(path) as new:
            assert old.size == new.size


class Quiet(SimpleHTTPRequestHandler):
    """Logs nothing."""

    def log_message(self, *told: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def address(once: Callable[..., Path]) -> Iterator[str]:
    """Of the site, built without a warning."""
    pytest.importorskip("mkdocs", reason="the site needs mkdocs")
    built = once("site", _build)
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(built))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def _build(folder: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    around = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=around, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def page(address: str, browser: Any) -> Iterator[Any]:
    """Its first page in a browser as wide as a phone."""
    opened = browser.new_page(viewport={"width": 390, "height": 844})
    yield opened
    opened.close()


@pytest.mark.slow
def test_no_page_is_wider_than_a_phone_or_asks_another_host(page: Any, address: str) -> None:
    """Tables and code scroll inside the page; the site works offline."""
    hosts, wide = set(), []
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    for path in (ROOT / "docs").glob("*.md"):
        page.goto(f"{address}/{'' if path.stem == 'index' else path.stem}")
        extra = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        wide += [path.stem] if extra > 0 else []
    assert hosts == {address.removeprefix("http://")}
    assert wide == []


@pytest.mark.slow
def test_the_search_answers_what_people_ask(page: Any, address: str) -> None:
    """One query each; the answer is a section of the first page that is found."""
    page.goto(address)
    page.set_viewport_size({"width": 1280, "height": 900})
    missed = {}
    for query, word in ASKED.items():
        page.goto(f"{address}/?q={query.replace('%', '%25')}")
        first = page.locator(".md-search-result__item").first
        first.wait_for(state="attached")
        headings = first.locator("h1, h2").all_inner_texts()
        if headings[:1] != ["Troubleshooting"] or not any(word in heading for heading in headings):
            missed[query] = headings
    assert missed == {}
