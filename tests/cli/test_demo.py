"""Laws of `nextscale demo`, in miniature: both stages in seconds, the page, and going on where it was stopped."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import signal
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Program

from nextscale import MultiScaleVQVAE, Pipeline, data
from nextscale.cli import main

pytestmark = pytest.mark.usefixtures("small")

HEADINGS = [
    "In short",
    "What the default model paints",
    "Samples",
    "Growing, scale by scale",
    "Held-out pictures through the tokenizer",
    "Codes in use on held-out pictures",
    "Curves",
    "Settings",
    "What to try next",
]


class Demo:
    """A demo of a second or two a stage, run once for all laws that only look."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.command = ["demo", "--minutes", "0.04", "--seed", "5", "--out", str(out)]
        self.status, self.output, self.errors = self.run("--json", str(out / "figures.json"))

    def run(self, *more: str) -> tuple[int, str, str]:
        with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as errors:
            status = main([*self.command, *more])
        return status, output.getvalue(), errors.getvalue()

    @property
    def page(self) -> str:
        return (self.out / "report.html").read_text(encoding="utf-8")

    @property
    def figures(self) -> dict[str, Any]:
        return json.loads((self.out / "figures.json").read_text())


@pytest.fixture(scope="module")
def demo(small: None, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(tmp_path_factory.mktemp("demo"))


def test_it_ends_well(demo: Demo) -> None:
    """Status 0, and nothing to complain about."""
    assert (demo.status, demo.errors) == (0, "")


def test_it_says_first_what_it_will_do_and_last_where_the_page_is(demo: Demo) -> None:
    """How long it takes, and that it may be stopped."""
    told = " ".join(demo.output.split())
    assert told.startswith("demo: trains a tokenizer, then a transformer")
    assert "about 0.04 minutes" in told.split("data:")[0]
    assert "Ctrl-C is safe" in told.split("data:")[0]
    assert "what the model that comes with nextscale paints is in" in told.split("data:")[0]
    assert demo.out.with_name(f"{demo.out.name}-default.png").is_file()
    assert f"report: {demo.out / 'report.html'}" in told


def test_output_is_plain_and_80_columns_wide(demo: Demo) -> None:
    """Where it is not a terminal; a path that is longer stays whole."""
    assert all(character.isprintable() or character == "\n" for character in demo.output)
    assert all(len(line) <= 80 or str(demo.out) in line for line in demo.output.splitlines())


def test_the_model_can_be_loaded_and_sampled(demo: Demo) -> None:
    """With the names of the nine classes."""
    pipe = Pipeline.load(demo.out, precision="fp32")
    assert pipe.classes == data.load("emoji", height=8, width=8).classes
    assert pipe.generate(["Flags"], [0]).images.shape == (1, 3, 8, 8)
    assert MultiScaleVQVAE.load(demo.out / "tokenizer").config == pipe.tokenizer.config


def test_the_page_fetches_nothing(demo: Demo) -> None:
    """Every picture is inside it; it works from a mail or a memory stick."""
    fetched = re.findall(r'(?:src|href|data|srcset)="([^"]*)"', demo.page) + re.findall(r"url\(([^)]*)\)", demo.page)
    assert len([value for value in fetched if value.startswith("data:image/png;base64,")]) >= 9 + 4 + 2
    assert all(value.startswith(("data:image/", "#")) for value in fetched)
    assert not re.search(r"<(script|link|iframe)", demo.page)
    assert "@import" not in demo.page


def test_the_page_has_every_section_and_class(demo: Demo) -> None:
    """In order; each class is a row of samples, and the paragraphs explain the words that are used."""
    assert re.findall(r"<h2>(.*?)</h2>", demo.page) == HEADINGS
    samples = unescape(demo.page.split("<h2>Samples</h2>")[1].split("<h2>")[0])
    names = re.findall(r'<span class="name">(.*?)</span>', samples)
    assert tuple(names) == Pipeline.load(demo.out).classes
    growing = demo.page.split("<h2>Growing, scale by scale</h2>")[1].split("<h2>")[0]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", growing) == ["1x1", "2x2", "3x3", "4x4"] * 4
    for word in ("scale is", "PSNR is", "Perplexity is", "unigram is", "Cross-entropy is"):
        assert word in demo.page


def test_the_page_says_how_to_get_the_same(demo: Demo) -> None:
    """Seeds, steps, budget, versions; commands that the program understands."""
    from nextscale import __version__
    from nextscale.cli import parse

    settings = re.sub(r"<.*?>", " ", demo.page.split("<h2>Settings</h2>")[1])
    assert "5 of training" in settings
    assert "0.04 minutes" in settings
    assert f"nextscale {__version__}, torch {torch.__version__}" in settings
    for stage, directory in (("tokenizer", demo.out / "tokenizer"), ("transformer", demo.out)):
        assert f"{stage} {json.loads((directory / 'run.json').read_text())['steps']}" in settings
    commands = unescape(demo.page.split("<pre>")[1].split("</pre>")[0]).splitlines()
    ours = [line for line in commands if line.startswith("nextscale ")]
    assert len(ours) >= 4
    for line in ours:
        import shlex

        assert parse(shlex.split(line)[1:]) is not None


def test_the_figures_are_those_of_the_model(demo: Demo) -> None:
    """In the JSON, on the console and on the page; measured here again with the files that were left."""
    figures, told = demo.figures, " ".join(demo.output.split())
    history = json.loads((demo.out / "history.json").read_text())
    held_out = data.load("emoji", height=8, width=8).validation
    pictures, labels = held_out.batch(range(len(held_out)))
    pipe = Pipeline.load(demo.out, precision="fp32")
    with torch.no_grad():
        tokens = pipe.tokenizer.encode(pictures)
        errors = (pipe.tokenizer.decode(tokens) - pictures).square().mean(dim=(1, 2, 3))
        logits = pipe.transformer(labels, pipe.tokenizer.teacher_inputs(tokens))
    cost = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens)
    psnr = float((10 * torch.log10(4 / errors)).mean())
    assert figures["tokenizer"]["psnr"] == pytest.approx(psnr, abs=0.02)  # both are validated in bfloat16
    assert figures["transformer"]["cross_entropy"] == pytest.approx(float(cost), abs=0.02)
    assert figures["transformer"]["unigram"] == history[-1]["unigram"]  # the console's table has it, too
    assert figures["minutes"] > 0
    for value, form in (
        (figures["tokenizer"]["psnr"], ".2f"),
        (figures["transformer"]["cross_entropy"], ".3f"),
        (figures["transformer"]["unigram"], ".3f"),
    ):
        assert format(value, form) in told
        assert format(value, form) in demo.page
    for k, size in enumerate(("1x1", "2x2", "3x3", "4x4"), start=1):
        used = f"{size}: {figures['tokenizer'][f'codes_used_scale_{k}']:.0f} of "
        assert used in told


def test_a_collapsed_scale_is_told(demo: Demo) -> None:
    """At the end on the console, and on the page, exactly where perplexity is below a handful."""
    few = [
        size
        for k, size in enumerate(("1x1", "2x2", "3x3", "4x4"), 1)
        if demo.figures["tokenizer"][f"perplexity_scale_{k}"] < 10
    ]
    assert re.findall(r"tokenizer:\s+scale\s+(\dx\d)\s+has\s+collapsed", demo.output) == few
    assert re.findall(r"scale\s+(\dx\d)\s+has\s+collapsed", demo.page) == few


@pytest.mark.slow
def test_a_second_run_says_it_is_finished(demo: Demo) -> None:
    """Both stages are reused, and the same page is written again in far less time."""
    weights = (demo.out / "transformer.safetensors").read_bytes()
    samples = demo.page.split("<h2>Curves</h2>")[0]
    status, output, errors = demo.run()
    assert (status, errors) == (0, "")
    told = " ".join(output.split())
    assert f"tokenizer: {demo.out / 'tokenizer'} is finished already" in told
    assert f"transformer: {demo.out} is finished already" in told
    assert not re.search(r"step \d", output)
    assert (demo.out / "transformer.safetensors").read_bytes() == weights
    assert demo.page.split("<h2>Curves</h2>")[0] == samples


@pytest.mark.slow
def test_json_may_go_to_stdout_alone(demo: Demo) -> None:
    """What people read goes to stderr then."""
    status, output, errors = demo.run("--json", "-")
    assert status == 0
    assert json.loads(output)["tokenizer"] == demo.figures["tokenizer"]
    assert "report:" in errors


def test_another_budget_in_the_same_directory_is_refused(demo: Demo) -> None:
    """One line, status 2, and the page stays."""
    before = demo.page
    status = main(["demo", "--minutes", "0.05", "--seed", "5", "--out", str(demo.out)])
    assert status == 2
    assert demo.page == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--minutes", "0"], "--minutes: expected more than 0, got 0"),
        (["--minutes", "nan"], "--minutes: expected more than 0, got nan"),
        (["--minutes", "long"], "--minutes: expected a number, got 'long'"),
        (["--out", "taken"], "--out: expected a directory, got taken"),
        (["--device", "abacus"], "abacus"),
        (["--steps", "3"], "unknown option --steps"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    nextscale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    """Before anything is trained."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    done = nextscale("demo", *arguments)
    assert (done.status, done.errors.count("\n")) == (2, 1)
    assert told in done.errors
    assert not list(tmp_path.rglob("state.pt"))


def interrupted(process: Program) -> tuple[int | None, str, str]:
    """By Ctrl-C, as soon as the transformer's steps are told."""
    for line in process.stdout:
        if line.startswith("transformer: step"):
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=100)
    return process.returncode, output, errors


@pytest.mark.slow
def test_ctrl_c_leaves_what_can_be_loaded_and_continued(nextscale, started, tmp_path: Path) -> None:
    """Stopped while the transformer trains: both models load; the same command ends the work and writes the page."""
    for minutes in (0.05, 0.1, 0.3, 1):  # on a busy machine its last step may be done before the signal reaches it
        command = ["demo", "--minutes", minutes, "--out", tmp_path / "demo"]
        status, output, errors = interrupted(started(*command))
        told = re.search(r"transformer: stopped at step (\d+) of (\d+)", output)
        if told and int(told[1]) < int(told[2]):
            break
        shutil.rmtree(tmp_path / "demo")
    assert told, output
    assert (status, errors) == (130, "nextscale: interrupted\n")
    assert not (tmp_path / "demo" / "report.html").exists()
    assert MultiScaleVQVAE.load(tmp_path / "demo" / "tokenizer")
    assert Pipeline.load(tmp_path / "demo").generate([0], [0]).images.isfinite().all()
    done = nextscale(*command)
    assert done.status == 0
    assert "tokenizer is finished already" in " ".join(done.output.split())
    first = re.search(r"transformer: step (\d+)/(\d+)", done.output)
    assert first
    assert int(first[1]) > int(told[1])
    decisions = json.loads((tmp_path / "demo" / "plan.json").read_text())["decisions"]
    assert {int(told[2]), int(first[2])} <= {each["total"] for each in decisions}  # it follows the machine's pace
    assert (tmp_path / "demo" / "report.html").exists()
