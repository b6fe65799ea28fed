"""What the training commands share: how a run is watched, and what is said when it ends or is stopped."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nextscale.cli import memory
from nextscale.cli.output import console, say, wrapped
from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.training.loop import Event, Length

INTERRUPTED, MISTAKEN = 130, 2  # exit statuses of `nextscale.cli`
REMEDY = (
    "with another --out, try a lower optimization.learning_rate or a smaller optimization.clip (--set), or --precision "
    "fp32"
)


@contextmanager
def together(device: str) -> Iterator[str]:
    """Inside, the processes that torchrun started are one run, each on the device given; only rank 0 prints,
    also of an interruption.

    For commands that go on for long and take the same memory again and again.
    """
    from nextscale.machine import distributed
    from nextscale.machine.precision import find_device

    memory.keep_freed()
    found = find_device(device)
    with distributed.joined(found), open(os.devnull, "w") as nowhere, contextlib.ExitStack() as silence:
        if not distributed.is_first():
            silence.enter_context(contextlib.redirect_stdout(nowhere))
            silence.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield str(distributed.local_device(found))
        except KeyboardInterrupt:
            raise _once(KeyboardInterrupt(), INTERRUPTED) from None


def check_mirror(address: str | None) -> None:
    """Raise `InputError` for an address that no run can be copied to, before anything is read."""
    from nextscale.files import remote

    if address is not None:
        remote.check_writable(address)


def length(steps: int | None, minutes: float | None, *, default: Length) -> Length:
    """What `--steps` and `--minutes` say, or `default` when neither does. Raises `InputError` for both."""
    from nextscale.training.loop import Length

    if steps is not None and minutes is not None:
        raise InputError(f"expected --steps or --minutes, got both ({steps} and {minutes:g})")
    return default if steps is None and minutes is None else Length(steps=steps, minutes=minutes)


def watch(name: str, events: Iterator[Event], out: Path) -> None:
    """Follow a training to its end: one bar on a terminal, a few lines a check wherever the output goes.

    A warning is given when it first comes up, and again at the end. Raises `KeyboardInterrupt` when the run was stopped
    by a signal, having said how to go on, and `InputError` when it diverged, which the first of several processes says
    for all.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from nextscale.training.loop import Stopped

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed}/{task.total} steps  {task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
    )
    terminal = console()
    event, told = None, set[str]()
    try:
        with (
            warnings_said(),
            Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar,
        ):
            task = bar.add_task(name, total=None, figures="")
            for event in events:
                figures = f"loss {event.figures['loss']:.3f}  {event.figures['images_per_second']:.0f} images/s"
                bar.update(task, completed=event.step, total=event.total, figures=figures)
                for note in event.notes:
                    bar.console.print(wrapped(f"{name}: {note}"), soft_wrap=True)
                if event.validation:
                    bar.console.print("\n".join(_lines(name, event, told)), soft_wrap=True)
    except Stopped as stopped:
        step = f"step {event.step} of {event.total or '?'}" if event else "the start"
        kept = f"saved in {out}" if stopped.saved else f"whose weights are not finite; {_kept(out)}"
        say(f"{name}: stopped at {step}, {kept}; the same command continues")
        raise KeyboardInterrupt from None
    except FloatingPointError as error:
        raise _once(InputError(f"{error}: training diverged; {_kept(out)}; {REMEDY}"), MISTAKEN) from None
    if event is None:
        say(f"{name}: {out} is finished already, nothing to do")


@contextmanager
def warnings_said() -> Iterator[None]:
    """Inside, Python's warnings are lines for people."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *place, **more: say(f"warning: {message}")
        yield


def _kept(out: Path) -> str:
    """What a run that cannot go on has left."""
    if not (out / "state.pt").exists():
        return f"there is no checkpoint in {out} yet"
    return f"{out} keeps the last checkpoint before that"


def _once(error: BaseException, status: int) -> BaseException:
    """What to raise for something that all processes have come to: `error` in the first, whose message is told."""
    from nextscale.machine import distributed

    return error if distributed.is_first() else SystemExit(status)


def _lines(name: str, event: Event, told: set[str]) -> list[str]:
    """A check: its figures, its table, and those of its warnings that are not in `told`, where they are put."""
    warnings = [text for text in event.health.warnings if event.step == event.total or _kind(text) not in told]
    told |= {_kind(text) for text in warnings}
    told_now = (wrapped(f"warning: {text}") for text in warnings)
    return [_line(name, event), _step_line(event), *event.health.table, *told_now]


def _step_line(event: Event) -> str:
    """What the last step was like."""
    names = ("gradient_norm", "discriminator_accuracy", "adaptive_weight", "skipped")
    told = [f"{name.replace('_', ' ')} {event.figures[name]:.3g}" for name in names if event.figures.get(name)]
    return wrapped(f"last step: {', '.join(told)}")


def _kind(warning: str) -> str:
    """A warning without its figures."""
    return re.sub(r"[\d.,%]+", "", warning)


def _line(name: str, event: Event) -> str:
    """A check as one line that fits 80 columns: the loss and the first held-out figure."""
    figure, value = next(iter(event.validation.items()))
    held_out = f"{figure.replace('_', ' ')} {value:.3f}"
    return f"{name}: step {event.step}/{event.total}  loss {event.figures['loss']:.3f}  held out: {held_out}"
