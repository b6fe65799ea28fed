"""`nextscale evaluate generation --prompts held-out --reference figures`: whether figures are what was asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nextscale.cli.output import bar, console, say, table, write_json
from nextscale.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from nextscale.evaluation.attributes import Judged, Share
    from nextscale.evaluation.card import Setting
    from nextscale.pipeline import Pipeline

EACH = 300  # prompts of seen and of unseen pairs when no number is given


@dataclass(frozen=True, kw_only=True)
class Painting:
    """What is painted, and how it is told."""

    pipe: Pipeline
    name: str
    """Of the model."""
    setting: Setting
    count: int | None
    seed: int
    batch: int
    json: Path | None


def ask(command: Painting, device: str) -> None:
    """Learn to read figures, have some painted, and tell how often each attribute is as asked for."""
    from nextscale import data
    from nextscale.evaluation import attributes
    from nextscale.machine import distributed

    if distributed.world() > 1:
        raise InputError(f"--reference figures: expected one process with --prompts, got {distributed.world()}")
    pipe = command.pipe
    height, width = pipe.tokenizer.config.height, pipe.tokenizer.config.width
    held_out = data.load("figures", height=height, width=width).validation
    with bar("training the attribute classifier") as told:
        reader = attributes.learn(height=height, width=width, device=device, progress=told)

    def paint(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        seeds = [command.seed + seed for seed in seeds]
        return pipe.generate(prompts=list(prompts), seeds=seeds, **command.setting.values).images * 2 - 1

    count = command.count or EACH
    with bar("painting") as told:
        judged = attributes.judge(reader, held_out, paint=paint, count=count, batch=command.batch, progress=told)
    _give(command, judged)


def _give(command: Painting, judged: Mapping[bool, Judged]) -> None:
    rows = [
        (pairs, whose, accuracy)
        for unseen, each in judged.items()
        for pairs in ["unseen" if unseen else "seen"]
        for whose, accuracy in (
            ("the model", each.generated),
            ("real figures", each.real),
            ("other prompts", each.others),
        )
        if accuracy is not None
    ]
    if command.json is not None:
        shown = [
            {"pairs": pairs, "whose": whose, "shares": {name: _plain(share) for name, share in accuracy.items()}}
            for pairs, whose, accuracy in rows
        ]
        setting = dataclasses.asdict(command.setting)
        about = {"model": command.name, "setting": setting, "first_seed": command.seed}
        write_json(command.json, {"rows": shown, **about})
    if str(command.json) == "-":
        return
    names = tuple(rows[0][2])
    told: list[tuple[object, ...]] = [
        (pairs, whose, *(_told(name, accuracy[name]) for name in names)) for pairs, whose, accuracy in rows
    ]
    console().print(
        table("attribute accuracy, ± half of the interval", ("pairs", "pictures of"), names, told), "", sep="\n"
    )
    say(f"{rows[0][2]['all'].count} prompts of either pairs, seeds from {command.seed}; {command.setting}")


def _told(name: str, share: Share) -> str:
    if name != "all":
        return f"{share.share:.2f}"
    return f"{share.share:.3f} ±{(share.interval.high - share.interval.low) / 2:.3f}"


def _plain(share: Share) -> dict[str, float]:
    return {"value": share.share, "low": share.interval.low, "high": share.interval.high, "count": share.count}
