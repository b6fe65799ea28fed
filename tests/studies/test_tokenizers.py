"""Laws of the study of tokenizers, on toys: every kind is trained and judged, and killed anywhere it goes on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studies.toy import STEPS, asked, shared, study
from training import toy as toys

from nextscale import Pipeline
from nextscale.evaluation.card import Setting
from nextscale.files.checkpoint import read_json
from nextscale.studies import cells, tables
from nextscale.studies.pace import Steps
from nextscale.studies.tokenizers import COLUMNS, Tokenizers
from nextscale.studies.training import Watching
from nextscale.studies.variants import KINDS
from nextscale.training.loop import Event


def made(root: Path, found: Tokenizers) -> dict[str, Any]:
    """Figures by name, but for times; what failed is raised."""
    for event in cells.run(root, found.name, found.cells, found.work, estimate=found.estimate):
        assert not event.outcome.failure, event.outcome.failure
    outcomes = cells.outcomes(root, found.cells)
    assert all(outcome.results is not None for outcome in outcomes)
    return {
        outcome.cell.name: {key: value for key, value in outcome.results["figures"].items() if key != "seconds"}
        for outcome in outcomes
    }


def steps_made(root: Path) -> list[str]:
    """A watcher that counts steps, and the study it watches."""
    steps: list[str] = []

    def follow(name: str, events: Iterator[Event], out: Path) -> None:
        steps.extend(name for _ in events)

    made(root, study(Watching(training=follow), only=("vq",), dropout=(0.0,)))
    return steps


@pytest.mark.slow
def test_every_kind_is_trained_and_judged(root: Path) -> None:
    """With codes of 8 bits: all figures of the table, cards beside them, pictures, a plot with a point each."""
    found = study()
    figures = made(root, found)
    assert [*figures] == [name for kind in KINDS for name in (kind, f"{kind}-dropout")]
    keys = {column.key for column in COLUMNS} - {"seconds"}
    for name, each in figures.items():
        assert keys <= each.keys(), name
        assert each["tokens"]["value"] == 30
        assert each["bits_per_pixel"]["value"] == pytest.approx(each["bits"]["value"] / 64)
        assert 0 < each["usage"]["value"] <= 100
        assert each["generation_fd"]["low"] <= each["generation_fd"]["value"] <= each["generation_fd"]["high"]
    rows = tables.rows(cells.outcomes(root, found.cells))
    assert len(found.plot(rows).axes[0].containers) == 12
    shapes = {found.pictures(cell, root / cells.CELLS / cell.folder).shape for cell in found.cells}
    assert shapes == {(12, 3, 8, 8)}
    text = tables.markdown(rows, found.columns)
    assert len(text.splitlines()) == 14
    for cell in found.cells:
        result = read_json(root / cells.CELLS / cell.folder / cells.RESULT)["results"]
        assert result["generation"]["card"]["model"]["name"] == cell.name
        assert set(result["seconds"]) == {"tokenizer", "encoding", "transformer", "reconstruction", "generation"}


@pytest.mark.slow
def test_a_cell_is_made_of_finished_runs(root: Path) -> None:
    """Of as many steps as the study says, on tokens of its tokenizer; its model is found and used like any other."""
    found = study(only=("hbq",), dropout=(0.0,))
    made(root, found)
    (cell,) = found.cells
    folder = root / cells.CELLS / cell.folder
    runs = [read_json(folder / stage / "run.json") for stage in ("tokenizer", "model")]
    assert [(run["finished"], run["steps"]) for run in runs] == [(True, steps) for steps in STEPS]
    pipe = Pipeline.load(folder / "model")
    assert pipe.transformer.config.groups == (2,) * 8
    assert pipe.transformer.config.classes == 2
    assert found.pictures(cell, root / "nowhere") is None


@pytest.mark.slow
@pytest.mark.parametrize("place", [("tokenizer", 1), ("transformer", 2), ("encoding", 0), ("painting", 0)])
def test_a_study_that_is_killed_goes_on_to_the_same_figures(root: Path, tmp_path: Path, place: tuple[str, int]) -> None:
    """In the middle of either training, while it encodes, while it judges."""
    where, after = place

    def follow(name: str, events: Iterator[Event], out: Path) -> None:
        for _ in itertools.islice(events, after) if name == where else events:
            pass
        if name == where:
            raise KeyboardInterrupt

    class Killed(Watching):
        pass

    def bar(name: str) -> Any:
        if name == where:
            raise KeyboardInterrupt
        return Watching().bar(name)

    only = {"only": ("bsq",), "dropout": (0.1,)}
    with pytest.raises(KeyboardInterrupt):
        made(root, study(Watching(training=follow, bar=bar), **only))
    assert made(root, study(**only)) == made(tmp_path / "whole", study(**only))


@pytest.mark.slow
def test_another_way_to_judge_trains_nothing_anew(root: Path) -> None:
    """What was trained is found; other steps, views or recipes are other cells."""
    assert steps_made(root) == ["tokenizer"] * 3 + ["transformer"] * 3
    assert steps_made(root) == []
    steps: list[str] = []
    watching = Watching(training=lambda name, events, out: steps.extend(name for _ in events))
    only = {"only": ("vq",), "dropout": (0.0,)}
    figures = made(root, study(watching, **only, count=8, setting=Setting(0.0, 0, 0.9)))
    assert not steps
    assert figures["vq"]["precision"]
    first = study(**only).cells[0]
    for changes in ({"views": 2}, {"steps": Steps(3, 4)}, {"changes": ("optimization.batch=4",)}, {"seeds": (1,)}):
        assert study(**only, **changes).cells[0].folder != first.folder


@pytest.mark.slow
def test_several_seeds_make_a_row(root: Path) -> None:
    """With the deviation between them."""
    found = study(only=("fsq",), dropout=(0.0,), seeds=(0, 1))
    made(root, found)
    (row,) = tables.rows(cells.outcomes(root, found.cells))
    assert (row.done, row.cells) == (2, 2)
    assert row.values["psnr"].doubt > 0
    assert "deviation over seeds" in found.notes[-1]


def test_codes_that_no_cache_holds_are_encoded_as_they_come(root: Path) -> None:
    """20 bits a code: the transformer is trained from pictures."""
    from nextscale.studies import training
    from nextscale.studies.cells import Clock
    from nextscale.tokenizer import MultiScaleVQVAE

    common, tokenizer = shared(), MultiScaleVQVAE(toys.CORNERS)
    assert training.token_set(common, root, Clock(root), tokenizer, views=1, seed=0) is common.data


def test_what_is_told_of_a_cell() -> None:
    """In the list of what is to come, and below the table."""
    found = study(bits=(10,), only=("sphere",))
    assert found.about(found.cells[0]) == {"codes": "1,104 fixed", "tokens": 30, "bits": 303}
    assert found.estimate(found.cells[0]) > 0
    assert found.notes[0] == "data: toys, 18 pictures to train on, 6 held out"
    assert "3 steps of a tokenizer, 3 of a transformer of depth 1" in found.notes[1]
    assert asked().changes[0] in found.notes[1]
