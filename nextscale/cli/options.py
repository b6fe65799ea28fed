"""The options that several commands share, as types: the same name means the same thing everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

Model = Annotated[tuple[str, ...], tyro.conf.arg(metavar="DIR|HUB|VAE VAR", help_behavior_hint="")]
Depth = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
TokenizerRun = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Labels = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME|NUMBER", help_behavior_hint="")]
Pictures = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE", help_behavior_hint="")]
Directory = Annotated[Path, tyro.conf.arg(metavar="DIR")]
Batches = Annotated[tuple[int, ...], tyro.conf.arg(metavar="N", help_behavior_hint="(default: 1 4 16)")]
Count = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
Minutes = Annotated[float | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
Json = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
NetworkAndHeads = Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH|HUB [HEADS]", help_behavior_hint="")]
Threads = Count
Settings = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE", help_behavior_hint="")]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
