"""What `nextscale evaluate generation` gives: a block or a table, JSON, a sheet of pictures, a plot of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nextscale.cli.figures import tell, tell_card
from nextscale.cli.output import console, say, table, write_json

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from nextscale.evaluation.card import Setting
    from nextscale.evaluation.generation import Result

PICTURES = 64  # of the sheet
ROWS, COLUMNS = 16, 8  # likewise, at most
CLASSES = 20  # told; the JSON has them all
PLOT = "sweep.png"


def give(results: Sequence[Result], classes: Sequence[str], json: Path | None, out: Path | None) -> None:
    """All that was asked for, files first: what is printed may have nowhere to go."""
    from nextscale.evaluation.generation import best

    chosen = best(results)
    if out is not None and len(results) > 1 and "precision" in results[0].figures:
        _plot(out / PLOT, results, chosen)
    if json is not None:
        write_json(json, {"best": chosen, "results": [result.to_json() for result in results]})
    if str(json) != "-":
        if len(results) > 1:
            console().print(_rows(results, chosen), "", sep="\n")
        _block(results[chosen], classes)
    if out is not None and str(json) != "-":
        say(f"pictures{' and plot' if len(results) > 1 else ''} in {out}")


def named(file: str, setting: Setting | None, seed: int | None) -> str:
    """`samples.npz`; of several settings and seeds `samples-guidance1.5-top-k900-top-p0.96-temperature1-seed0.npz`."""
    stem, _, suffix = file.partition(".")
    if setting is not None:
        stem += "".join(f"-{name.replace(' ', '-')}{value}" for name, value in _told(setting).items())
    return f"{stem}.{suffix}" if seed is None else f"{stem}-seed{seed}.{suffix}"


# ---- for people ------------------------------------------------------------------------------------------------------


def _block(result: Result, classes: Sequence[str]) -> None:
    """The figures, the card, and what to keep in mind."""
    tell(result.figures.values())
    if result.per_class:
        console().print(_classes(result, classes), "", sep="\n")
    tell_card(result.card, result.warnings)


def _classes(result: Result, classes: Sequence[str]) -> Table:
    """A row a class; of many, those that are furthest from the reference."""
    furthest = sorted(result.per_class, key=lambda each: -each.frechet_distance)[:CLASSES]
    rows: list[tuple[object, ...]] = [
        (classes[each.label][:40], each.pictures, each.reference, f"{each.frechet_distance:.4f}") for each in furthest
    ]
    name = result.figures["frechet_distance"].name
    title = f"{name} class by class" + (f", the {CLASSES} furthest" if len(result.per_class) > CLASSES else "")
    return table(title, ("class",), ("pictures", "reference", "FD of the class"), rows)


def _rows(results: Sequence[Result], chosen: int) -> Table:
    """One row a setting; figures under short names, which the title completes."""
    shown = {"frechet_distance": "FD", "kernel_distance": "KD", "precision": "precision", "recall": "recall"}
    keys = [key for key in shown if key in results[0].figures]
    rows_of = _alike([result.card.setting for result in results])
    rows: list[tuple[object, ...]] = [
        (
            "*" if index == chosen else "",
            *rows_of[index].values(),
            *(f"{result.figures[key].value:.4f}" for key in keys),
        )
        for index, result in enumerate(results)
    ]
    name = results[0].figures["frechet_distance"].name
    short = {"temperature": "temp", "step guidance": "step"}
    names = (*(short.get(name, name) for name in rows_of[0]), *(shown[key] for key in keys))
    return table(f"{len(results)} settings, * the least {name}", ("",), names, rows)


def _told(setting: Setting) -> dict[str, str]:
    """Its values by their names; the last two only where they are not as usual."""
    from nextscale.evaluation.card import shown

    told = {"guidance": setting.guidance, "top-k": setting.top_k, "top-p": setting.top_p}
    told |= {"temperature": setting.temperature}
    told |= {"step guidance": setting.step_guidance} if setting.step_guidance else {}
    told |= {"reach": setting.reach} if setting.reach is not None else {}
    return {name: shown(value) for name, value in told.items()}


def _alike(settings: Sequence[Setting]) -> list[dict[str, str]]:
    """Those of several under the same names: all that one of them tells."""
    each = [_told(setting) for setting in settings]
    usual = {"step guidance": "0", "reach": "all"}
    names = [*_told(settings[0])][:4] + [name for name in usual if any(name in told for told in each)]
    return [{name: told.get(name, usual.get(name, "")) for name in names} for told in each]


# ---- pictures --------------------------------------------------------------------------------------------------------


class Sheet:
    """The first pictures that come, a row a class: of many classes, those that come first.

    Arguments:
        file: where it goes.
        classes: the name of each label.
    """

    def __init__(self, file: Path, classes: Sequence[str]) -> None:
        self.file, self.classes = file, classes
        self.most = min(COLUMNS, PICTURES // min(ROWS, len(classes)))  # in a row
        self.rows: dict[int, list[Tensor]] = {}

    def add(self, images_B3HW: Tensor, labels: Sequence[int]) -> None:
        """Pictures in [-1, 1] and the class of each."""
        for image, label in zip(images_B3HW.unbind(), labels, strict=True):
            if label in self.rows or len(self.rows) < ROWS:
                row = self.rows.setdefault(label, [])
                row += [image.cpu()] if len(row) < self.most else []

    def save(self) -> None:
        import torch

        from nextscale import images
        from nextscale.cli.sheet import Row, drawn

        rows = [Row(self.classes[label], torch.stack(row)) for label, row in sorted(self.rows.items())]
        images.save(self.file, drawn(rows))


def _plot(file: Path, results: Sequence[Result], chosen: int) -> None:
    """Distance against precision and against recall."""
    from nextscale.cli.sweep_plot import drawn
    from nextscale.files.durable import write_beside

    names, settings = _varied([result.card.setting for result in results])
    figure = drawn(results, settings, chosen=chosen, title=f"{names}; the star has the least distance")
    write_beside(file, lambda beside: figure.savefig(beside, format="png", metadata={"Software": None}))


def _varied(settings: Sequence[Setting]) -> tuple[str, list[str]]:
    """What differs between settings: its names, and its values in each."""
    each = _alike(settings)
    differ = [name for name in each[0] if len({told[name] for told in each}) > 1] or ["guidance"]
    return " / ".join(differ), [" / ".join(told[name] for name in differ) for told in each]
