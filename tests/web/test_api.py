"""Laws of the studio's HTTP API, and docs/studio.md: its calls from Python and from a shell run, its commands parse."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nextscale import Pipeline, cli, images
from nextscale.pipeline import Request

PAGE = (Path(__file__).parents[2] / "docs" / "studio.md").read_text(encoding="utf-8")


def blocks(language: str) -> str:
    """The fenced blocks in one language, one after the other."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))


def there(text: str, address: str) -> str:
    """With the address of the studio under test."""
    assert "http://127.0.0.1:7860" in text
    return text.replace("http://127.0.0.1:7860", address.rstrip("/"))


def call(address: str, name: str, **values: Any) -> tuple[str, Any]:
    """The last event of a call and what it holds."""
    where = f"{address.rstrip('/')}/gradio_api/call/v2/{name}"
    body = json.dumps(values).encode()
    asked = urllib.request.Request(where, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        number = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{where}/{number}", timeout=60) as answer:
        event, data = answer.read().decode().strip().split("\n\n")[-1].splitlines()[:2]
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


@pytest.mark.slow
def test_the_python_runs(address: str, model: Pipeline, tmp_path: Path) -> None:
    """And leaves the picture that the model paints here."""
    done = subprocess.run(
        [sys.executable, "-c", there(blocks("python"), address)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    (file,) = tmp_path.glob("*.png")
    expected = model.generate(3, [7], guidance=2.0)
    assert images.open_rgb(file).tobytes() == expected.pil()[0].tobytes()
    assert Request.from_notes(images.notes(file)) == expected.requests[0]
    assert done.stdout.splitlines()[0] == str(list(model.classes))


@pytest.mark.skipif(shutil.which("curl") is None, reason="the shell's example needs curl")
def test_the_shell_s_calls_run(address: str, model: Pipeline, tmp_path: Path) -> None:
    """To the same picture."""
    subprocess.run(["bash", "-euc", there(blocks("sh"), address)], cwd=tmp_path, check=True, env={**os.environ})
    painted = images.open_rgb(tmp_path / "picture.png")
    assert painted.tobytes() == model.generate(3, [7], guidance=2.0).pil()[0].tobytes()


@pytest.mark.parametrize("line", [line for line in blocks("console").splitlines() if line.startswith("nextscale")])
def test_the_commands_parse(line: str) -> None:
    """The program's own."""
    assert cli.parse(shlex.split(line)[1:]) is not None


def test_a_mistake_over_http_is_an_error(address: str) -> None:
    """That says what was expected, and the next call works."""
    event, told = call(address, "generate", label="cow")
    assert event == "error"
    assert "label: expected one of" in json.dumps(told)
    assert call(address, "edit", picture="no base64!")[0] == "error"
    event, told = call(address, "classes")
    assert (event, told[0][0]) == ("complete", "Smileys & Emotion")


def test_requests_of_several_clients_are_all_answered(address: str, model: Pipeline) -> None:
    """Each with its own picture, whatever waits beside it."""
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda seed: call(address, "generate", label=seed % 9, seed=seed), range(12)))
    for seed, (event, ((painted,),)) in enumerate(answers):
        assert event == "complete"
        assert (painted["settings"]["seed"], painted["settings"]["label"]) == (seed, seed % 9)
        assert painted["settings"]["model"] == model.fingerprint
