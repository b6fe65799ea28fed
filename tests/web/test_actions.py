"""Laws of what the buttons do, without a page: frames, stopping, history, masks, settings, runs."""

from __future__ import annotations

import json
import re
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale import Pipeline, images
from nextscale.errors import InputError
from nextscale.pipeline import Generated, Request
from nextscale.web import actions, runs, sessions, show
from nextscale.web.actions import Asked, Choosing, Edited
from nextscale.web.painting import Frame, frames
from nextscale.web.sessions import Session, Sessions, Work


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path / "page")


def asked(**changes: Any) -> Asked:
    given = {"label": "cat", "prompt": None, "negative_prompt": None, "seed": 5, "count": 2, "choosing": Choosing()}
    return Asked(**given | changes)


def test_frames_are_the_previews_of_a_stream(pipe: Pipeline) -> None:
    """One a scale, then what was generated, the same as without frames."""
    *painted, done = frames(lambda callback: pipe.generate("cat", [3], callback=callback), threading.Event())
    assert isinstance(done, Generated)
    assert torch.equal(done.tokens, pipe.generate("cat", [3]).tokens)
    for frame, step in zip(painted, pipe.stream("cat", [3]), strict=True):
        assert isinstance(frame, Frame)
        assert torch.equal(frame.images, step.preview())
    assert [frame.size for frame in painted] == list(pipe.transformer.config.scales)


def test_work_ends_with_the_page_that_asked_for_it(pipe: Pipeline) -> None:
    """No thread goes on once the iterator is closed; what goes wrong in it is raised to who loops."""
    before = threading.active_count()
    with closing(frames(lambda callback: pipe.generate(0, [0], callback=callback), threading.Event())) as painted:
        next(painted)
    assert threading.active_count() == before
    with pytest.raises(InputError, match="label: expected one of"):
        list(frames(lambda callback: pipe.generate("cow", [0], callback=callback), threading.Event()))
    assert threading.active_count() == before


def test_stopped_work_keeps_its_pictures_without_settings(pipe: Pipeline, session: Session) -> None:
    """And the next request is not stopped; work that waits is stopped before it begins."""
    shown = actions.generate(pipe, session, asked())
    next(shown)
    session.stopped.set()
    assert "Stopped after scale" in list(shown)[-1]
    assert [images.notes(kept.file) for kept in session.pictures] == [{}, {}]
    assert not session.stopped.is_set()
    session.stopped.set()
    assert list(actions.generate(pipe, session, asked())) == [show.message("Stopped before the first scale.")]
    assert "2 pictures" in list(actions.generate(pipe, session, asked()))[-1]


def test_a_stop_ends_both_sides_of_a_comparison(pipe: Pipeline, session: Session) -> None:
    """What stands on one side stays; the other is not begun."""
    shown = actions.compare(pipe, session, (asked(), asked(choosing=Choosing(guidance=4.0))))
    next(shown)
    session.stopped.set()
    first, second, over = list(shown)[-1]
    assert "Stopped after scale" in first
    assert (second, over) == (show.message("Stopped before the first scale."), "")
    assert not session.stopped.is_set()


def test_a_comparison_ends_with_each_pair_under_a_slider(pipe: Pipeline, session: Session) -> None:
    """Both pictures under their names and settings; a handle with a name that screen readers say."""
    *_, (first, second, over) = actions.compare(pipe, session, (asked(), asked(choosing=Choosing(guidance=4.0))))
    for which, page in (("A", first), ("B", second)):
        for seed in (5, 6):
            (source,) = re.findall(rf'<img src="([^"]+)" alt="cat, seed {seed}">', page)
            assert f'<img src="{source}" alt="cat, seed {seed}, setting {which}" class="{which}">' in over
    assert re.findall('type="range".*? aria-label="([^"]+)"', over) == [
        f"cat, seed {seed}: how much of A covers B, in %" for seed in (5, 6)
    ]


def test_prompts_are_painted_told_and_taken_back(text_pipe: Pipeline, session: Session) -> None:
    """As by the pipeline; the file knows them, the line below the history tells them, and the fields show them."""
    words = asked(label=5, prompt="a red heart", negative_prompt="cats")
    assert 'alt="a red heart, seed 5"' in list(actions.generate(text_pipe, session, words))[-1]
    expected = text_pipe.generate(prompts="a red heart", seeds=[5, 6], negative_prompt="cats", guidance=1.5)
    assert images.open_rgb(session.pictures[1].file).tobytes() == expected.pil()[0].tobytes()
    request = actions.request_in(session.pictures[1].file)
    assert request == expected.requests[0]
    assert actions.described(text_pipe, request).startswith("a red heart, not cats, seed 5, guidance 1.5")
    work = Work(_green(), None)
    list(actions.edit(text_pipe, session, words, Edited(work, keep_scales=2)))
    assert session.pictures[0].request.prompt == "a red heart"  # type: ignore[union-attr]


def test_what_a_prompt_is_too_long_for_is_told(text_pipe: Pipeline, pipe: Pipeline) -> None:
    """Before it is painted; of a negative prompt too, of a model of classes nothing."""
    long = "a red heart " * 4
    (told,) = actions.remarks(text_pipe, asked(prompt=long, negative_prompt="cats"))
    assert told == f"“{long[:40]}…” has 12 pieces, of which the first 8 are read"
    assert len(actions.remarks(text_pipe, asked(prompt=long, negative_prompt=long))) == 2
    assert actions.remarks(pipe, asked(prompt=long)) == []


def test_pictures_of_the_history_are_painted_again(pipe: Pipeline, session: Session) -> None:
    """Their files tell everything; the newest comes first; the oldest are removed."""
    list(actions.generate(pipe, session, asked(count=3)))
    assert [kept.request.seed for kept in session.pictures if kept.request] == [7, 6, 5]
    request = actions.request_in(session.pictures[0].file)
    assert pipe.repeat(request).pil()[0].tobytes() == images.open_rgb(session.pictures[0].file).tobytes()
    oldest = session.pictures[-1].file
    for _ in range(sessions.MOST_PICTURES // 3):
        list(actions.generate(pipe, session, asked(count=3)))
    assert len(session.pictures) == sessions.MOST_PICTURES
    assert not oldest.exists()
    assert len(list(session.folder.rglob("*.png"))) == sessions.MOST_PICTURES


def test_pages_are_bounded_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page that was idle for longest goes first, its work stopped and its files gone."""
    monkeypatch.setattr(sessions, "MOST_SESSIONS", 2)
    pages = Sessions(tmp_path / "pages")
    first, second = pages.of("a"), pages.of("b")
    first.keep_unfinished([Image.new("RGB", (4, 4))], [_request()], 0)
    assert pages.of("a") is first
    pages.of("c")
    assert second.stopped.is_set()
    assert not first.stopped.is_set()
    pages.close("a")
    pages.close("a")
    assert (len(pages), list(tmp_path.rglob("*.png"))) == (1, [])


def _request() -> Request:
    return Request(0, "ant", 1, 1.5, 900, 0.96, 1.0, False, "float32", "0" * 16)


def test_an_edit_repaints_what_was_brushed(pipe: Pipeline, session: Session) -> None:
    """Red on transparency, at any size; the rest comes back to the bit, as from `Pipeline.edit`."""
    picture = Image.new("RGB", (8, 8), (10, 200, 90))
    drawn = Image.new("RGBA", (64, 64))
    drawn.paste((229, 72, 77, 255), (32, 0, 64, 64))
    work = actions.work_of(pipe, picture, images.data_uri(drawn), (0, 0, 0, 0))
    list(actions.edit(pipe, session, asked(count=1), Edited.of(work, 0, 0)))
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    expected = pipe.edit(picture, mask, "cat", [5]).pil()[0]
    assert images.open_rgb(session.pictures[0].file).tobytes() == expected.tobytes()
    assert session.pictures[0].work is work


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda pipe: actions.work_of(pipe, None, "", (0, 0, 0, 0)), "expected a picture to edit, got none"),
        (lambda pipe: actions.work_of(pipe, _green(), _white(), (0, 5, 0, 0)), "got both"),
        (lambda pipe: actions.work_of(pipe, _green(), "", (0, 5, 0, -1)), "room: expected a whole number, 0 .. 400"),
        (lambda pipe: Edited.of(Work(_green(), None), 0, 0), "expected something to repaint"),
        (lambda pipe: actions.mask_of("data:image/png;base64,%%%"), "in base64, got other text"),
        (lambda pipe: Asked.of(None, "", "", 0, 1, 1, 0, 0, 1, False), "label: expected the name of a class"),
        (lambda pipe: Asked.of(0, "", "", None, 1, 1, 0, 0, 1, False), "seed: expected a number, got None"),
        (lambda pipe: Asked.of(0, "", "", 0, 9, 1, 0, 0, 1, False), "count: expected a whole number, 1 .. 8, got 9"),
        (lambda pipe: Asked.of(0, "", "", 0.5, 1, 1, 0, 0, 1, False), "seed: expected a whole number"),
        (lambda pipe: Asked.of(0, "", "", 0, 1, float("nan"), 0, 0, 1, False), "guidance: expected a number"),
        (lambda pipe: Asked.of(0, 7, "", 0, 1, 1, 0, 0, 1, False), "prompt: expected text, got 7"),
        (lambda pipe: Asked.of(0, "", "a" * 2001, 0, 1, 1, 0, 0, 1, False), "negative_prompt: expected at most 2000"),
        (
            lambda pipe: list(actions.frames(lambda c: actions.generated(pipe, asked(prompt="a")), threading.Event())),
            "this model reads no text",
        ),
    ],
)
def test_mistakes_are_told(pipe: Pipeline, make: Any, told: str) -> None:
    """In a line, before anything is painted."""
    with pytest.raises(InputError, match=told):
        make(pipe)


def _green() -> Image.Image:
    return Image.new("RGB", (8, 8), "green")


def _white() -> str:
    return images.data_uri(Image.new("RGB", (8, 8), "white"))


def test_another_model_s_picture_is_told_apart(pipe: Pipeline) -> None:
    """Its settings can still be taken; a class that is not there cannot."""
    assert "Another model made it (0000000000000000)" in actions.described(pipe, _request())
    with pytest.raises(InputError, match="expected a class of this model, 0 .. 5, got 9"):
        actions.described(pipe, Request(9, "x", 1, 1.5, 9, 0.9, 1.0, False, "float32", "0"))


def test_equal_tokens_have_equal_colours() -> None:
    """And a map of n codes has about n colours."""
    tokens = torch.arange(64).repeat(2).view(8, 16)
    pixels = show.token_map(tokens)
    assert pixels.size == (16, 8)
    assert pixels.crop((0, 0, 16, 4)).tobytes() == pixels.crop((0, 4, 16, 8)).tobytes()
    assert len(np.unique(np.asarray(pixels).reshape(-1, 3), axis=0)) > 60


def test_names_of_others_are_text(pipe: Pipeline, tmp_path: Path) -> None:
    """A class or a run called like a tag stays a name."""
    page = show.done([_saved(tmp_path / "a.png")], ["<b>'\""], told="<i>")
    assert "<b>" not in page
    assert "<i>" not in page


def _saved(file: Path) -> Path:
    images.save(file, _green())
    return file


def test_only_runs_below_the_folder_are_shown(tmp_path: Path) -> None:
    """Whatever name is asked for; figures that are not finite are counted, not drawn."""
    inside, outside = tmp_path / "runs" / "deep" / "mine", tmp_path / "other"
    for run in (inside, outside):
        run.mkdir(parents=True)
        (run / "run.json").write_text('{"finished": true, "steps": 20}')
    history = [{"step": 10, "loss": 2.0}, {"step": 20, "loss": float("nan")}, {"step": 30, "loss": 1.0}]
    (inside / "history.json").write_text(json.dumps(history))
    root = tmp_path / "runs"
    assert runs.found(root) == ["deep/mine"]
    page = runs.page(root, "deep/mine")
    assert "<td>loss</td><td>2</td><td>1</td><td>2</td><td>1</td><td>1 not finite</td>" in page
    assert "deep/mine: finished, step 20, 3 checks" in page
    with pytest.raises(InputError, match="expected a run below"):
        runs.page(root, "../other")
    assert "No run below" in runs.page(root, None)
