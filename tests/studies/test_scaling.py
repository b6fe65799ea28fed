"""Laws of the study of sizes, on toys: a family trained alike, laws over it, a size predicted before it is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from studies.toy import token_set
from training import toy as toys

from nextscale import VAR, InputError, MultiScaleVQVAE
from nextscale.bench.transformer import step_work
from nextscale.files.checkpoint import read_json
from nextscale.studies import cells, tables
from nextscale.studies.scaling import MEASURES, PREDICTION, Asked, Scaling, parameters, planned
from nextscale.studies.training import Training, Watching

SMALL = ("optimization.batch=4",)


def study(root: Path, *depths: int, hold_back: bool = False, watching: Watching | None = None) -> Scaling:
    """Of three steps."""
    tokenizer = MultiScaleVQVAE(toys.TOKENIZER)
    asked = Asked(preset="emoji-32", depths=depths, hold_back=hold_back, changes=SMALL)
    running = Training(precision="fp32", watching=watching or Watching())
    return planned(root, asked, running, tokenizer, token_set(tokenizer), steps=3)


def made(root: Path, found: Scaling) -> list[tables.Row]:
    for event in cells.run(root, found.name, found.cells, found.work, estimate=found.estimate):
        assert not event.outcome.failure, event.outcome.failure
    return tables.rows(cells.outcomes(root, found.cells))


@pytest.mark.slow
def test_sizes_are_trained_alike_and_the_largest_is_predicted_first(root: Path) -> None:
    """Laws over all but the one held back; the prediction is on the disk when its training begins."""
    there: dict[str, bool] = {}

    def follow(name: str, events, out: Path) -> None:
        there[out.parent.name.partition("-")[0]] = (root / PREDICTION).exists()
        list(events)

    found = study(root, 5, 1, 2, 3, 4, hold_back=True, watching=Watching(training=follow))
    rows = made(root, found)
    assert [row.name for row in rows] == ["d1", "d2", "d3", "d4", "d5"]
    assert there == {"d1": False, "d2": False, "d3": False, "d4": False, "d5": True}
    assert found.fits(rows).keys() == MEASURES.keys()
    told = read_json(root / PREDICTION)
    assert (told["name"], told["parameters"]) == ("d5", parameters(found.configs["d5"])[0])
    assert found.fits(rows[:4])["loss_all"].law == found.fits(rows)["loss_all"].law
    assert len(found.plot(rows).axes) == 4
    result = read_json(root / cells.CELLS / found.cells[0].folder / cells.RESULT)["results"]
    assert len(result["curve"]) == 3
    work = step_work(found.configs["d1"]).total * 4
    assert [point["compute"] * 1e15 for point in result["curve"]] == pytest.approx([work, 2 * work, 3 * work])
    assert result["figures"]["loss_all"]["value"] == result["curve"][-1]["loss_all"]
    runs = [read_json(root / cells.CELLS / cell.folder / "model" / "run.json") for cell in found.cells]
    assert {run["steps"] for run in runs} == {3}


def test_parameters_are_counted_without_embeddings_and_head_too() -> None:
    """Blocks and modulations; both counts are those of the model itself."""
    config = dataclasses.replace(toys.TRANSFORMER.of_depth(2), text=None)
    model = VAR(config)
    bare, every = parameters(config)
    assert every == sum(weight.numel() for weight in model.parameters())
    inside = sum(weight.numel() for weight in model.blocks.parameters())
    assert bare == inside + sum(weight.numel() for weight in model.head_modulation.parameters())


def test_minutes_become_steps_that_are_the_same_for_all(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a trial whose figures are kept; so many minutes are those of all sizes and seeds."""
    monkeypatch.setattr("nextscale.studies.scaling._tried", lambda found: {"d1": 1.0, "d2": 2.0})
    tokenizer = MultiScaleVQVAE(toys.TOKENIZER)
    asked = Asked(preset="emoji-32", depths=(1, 2), changes=SMALL, seeds=(0, 1))
    found = planned(root, asked, Training(), tokenizer, token_set(tokenizer), minutes=1.11)
    assert found.steps == 10
    assert sum(map(found.estimate, found.cells)) == pytest.approx(66)


@pytest.mark.parametrize("depths", [(), (0, 1), (2, 2)])
def test_depths_must_be_different_sizes(depths: tuple[int, ...]) -> None:
    """With what was expected and what came."""
    with pytest.raises(InputError, match="depths: expected different ones of 1 and more, got"):
        Asked(preset="emoji-32", depths=depths)
