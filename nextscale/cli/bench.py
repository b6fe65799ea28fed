"""What the bench commands share: checks, threads, what was measured on, and the lines below the tables."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextscale.cli.output import at_least, at_most, say
from nextscale.errors import InputError

if TYPE_CHECKING:
    import torch

MOST_BATCH, MOST_THREADS = 1 << 16, 1 << 12


def check(batch: tuple[int, ...], repeats: int, count: int | None) -> None:
    """What can be known to be wrong before torch is imported."""
    if not batch:
        raise InputError("--batch: expected at least one size, got none")
    for size in batch:
        at_least("--batch", 1, size)
        at_most("--batch", MOST_BATCH, size)
    at_least("--repeats", 1, repeats)
    if count is not None:
        at_least("--threads", 1, count)
        at_most("--threads", MOST_THREADS, count)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads inside, as many as before after it; torch's own choice when None."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def setting(device: torch.device, arithmetic: str, preset: str, repeats: int) -> dict[str, Any]:
    """What was measured and on what, as plain JSON values."""
    import torch

    from nextscale import __version__

    return {
        "preset": preset,
        "device": str(device),
        "hardware": _hardware(device),
        "threads": torch.get_num_threads(),
        "precision": arithmetic,
        "repeats": repeats,
        "torch": torch.__version__,
        "nextscale": __version__,
    }


def tell(setting: dict[str, Any]) -> None:
    """The setting in a line or two."""
    count = setting["threads"]
    say(
        f"{setting['preset']}, random weights, {setting['precision']}; {setting['hardware']}, "
        f"{count} thread{'s' if count > 1 else ''}, torch {setting['torch']}; median of {setting['repeats']}"
    )


def _hardware(device: Any) -> str:
    """The name of the chip."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
