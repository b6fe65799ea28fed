"""A run directory as a page: how far it is, its held-out figures along the run, and the pictures it showed.

Reads what `training.rundir` writes, while it is being written, and nothing outside of the folder it was given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from nextscale import images
from nextscale.errors import InputError
from nextscale.files.checkpoint import read_json
from nextscale.web import show

MOST_RUNS = 200
SHEETS = 4  # the newest sample sheets
DEPTH = 3  # folders below the given one


def found(root: Path) -> list[str]:
    """The runs below a folder by their relative names, the one that changed last first."""
    files = [file for depth in range(DEPTH + 1) for file in root.glob("/".join(["*"] * depth + ["run.json"]))]
    newest = sorted(files, key=lambda file: -_changed(file.parent))
    return [file.parent.relative_to(root).as_posix() for file in newest[:MOST_RUNS]]


def _changed(run: Path) -> float:
    times = [file.stat().st_mtime for name in ("history.json", "run.json") if (file := run / name).exists()]
    return max(times, default=0.0)


def page(root: Path, name: str | None) -> str:
    """One run. Raises `InputError` for none, and for what is no run below `root`."""
    if not name:
        return show.message(f"No run below {root} yet.")
    if name not in found(root):
        raise InputError(f"expected a run below {root}, got {name!r}")
    run = root / name
    state = read_json(run / "run.json")
    history = read_json(run / "history.json") if (run / "history.json").exists() else []
    parts = [_lead(name, state, history), _curves(history), _told(run), _figures(history), _data(run), _sheets(run)]
    return f'<div class="run">{"".join(parts)}</div>'


def _lead(name: str, state: Mapping[str, Any], history: Sequence[Mapping[str, float]]) -> str:
    step = state.get("steps") or (history[-1].get("step", 0) if history else 0)
    told = "finished" if state.get("finished") else "in progress"
    return f'<p role="status" aria-live="polite">{escape(name)}: {told}, step {step:,.0f}, {len(history)} checks</p>'


def _curves(history: Sequence[Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for check in history for name in check if name != "step"))
    curves = (show.curve(name, [(check["step"], check[name]) for check in history if name in check]) for name in names)
    return f'<div class="curves">{"".join(curves)}</div>'


def _told(run: Path) -> str:
    """The trainer's table, a row a scale, and its warnings."""
    file = run / "health.txt"
    told = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    return (
        f'<pre class="health" tabindex="0" aria-label="Health at the last check">{escape(told)}</pre>' if told else ""
    )


def _figures(history: Sequence[Mapping[str, float]]) -> str:
    """The first, the best and the last figure of each kind, and what is not finite."""
    if not history:
        return show.message("The first figures come with the first check on held-out pictures.")
    rows = []
    for name in history[-1]:
        values = [check[name] for check in history if name in check]
        finite = [value for value in values if math.isfinite(value)]
        if name != "step" and finite:
            lost = len(values) - len(finite)
            told = f"{lost} not finite" if lost else ""
            rows.append(
                (name, f"{finite[0]:.4g}", f"{min(finite):.4g}", f"{max(finite):.4g}", f"{finite[-1]:.4g}", told)
            )
    return show.table(
        ("figure", "first", "lowest", "highest", "last", ""), rows, caption="Figures on held-out pictures"
    )


def _data(run: Path) -> str:
    if not (run / "data.json").exists():
        return ""
    data = read_json(run / "data.json")
    told = f"{data['train']:,} pictures to train on, {data['validation']:,} held out, {len(data['classes'])} classes"
    broken = f", {len(data['broken'])} could not be read" if data["broken"] else ""
    return f"<p>{escape(told + broken)}</p>"


def _sheets(run: Path) -> str:
    files = sorted((run / "samples").glob(f"step-{'[0-9]' * 7}.png"))[-SHEETS:][::-1]
    sheets: list[tuple[Image.Image, str]] = []
    for file in files:
        sheets.append((images.open_rgb(file), f"step {int(file.stem.removeprefix('step-')):,}"))
    return show.sheets(sheets)
