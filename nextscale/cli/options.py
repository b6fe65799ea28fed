"""The options that several commands share, as types: the same name means the same thing everywhere."""

from __future__ import annotations

import dataclasses
import os
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    UnsupportedTypeAnnotationError,
)

Model = Annotated[tuple[str, ...], tyro.conf.arg(metavar="DIR|HUB|VAE VAR", help_behavior_hint="")]
Depth = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
TokenizerRun = Annotated[Path | None, tyro.conf.arg(metavar="DIR|VAE|default", help_behavior_hint="")]
TokenizerSource = Annotated[Path, tyro.conf.arg(metavar="DIR|VAE|default")]
TokenMaps = Annotated[tuple[str, ...], tyro.conf.arg(metavar="N|HxW", help_behavior_hint="")]
Labels = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME|NUMBER", help_behavior_hint="")]
Prompts = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
Encoder = Annotated[str | None, tyro.conf.arg(metavar="DIR|HUB", help_behavior_hint="")]
Indices = Annotated[tuple[int, ...], tyro.conf.arg(metavar="N", help_behavior_hint="")]
Pictures = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE", help_behavior_hint="")]
Directory = Annotated[Path, tyro.conf.arg(metavar="DIR")]
MirrorAddress = Annotated[str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="")]
Start = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Batches = Annotated[tuple[int, ...], tyro.conf.arg(metavar="N", help_behavior_hint="(default: 1 4 16)")]
Count = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
Share = Annotated[float | None, tyro.conf.arg(metavar="SHARE", help_behavior_hint="")]
Minutes = Annotated[float | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
EveryMinutes = Annotated[float, tyro.conf.arg(metavar="N")]
Times = Annotated[int, tyro.conf.arg(metavar="N")]
Json = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
NetworkAndHeads = Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH|HUB [HEADS]", help_behavior_hint="")]
Threads = Count
Settings = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE", help_behavior_hint="")]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
SamplingPrecision = Literal["auto", "fp32", "bf16", "fp16", "int8"]


class Each(tuple[Any, ...]):
    """A value for each scale, as it is typed: `0,1,1.5`."""

    __slots__ = ()

    def __str__(self) -> str:
        return ",".join(map(str, self))


def _per_scale(kind: type[int] | type[float], *, optional: bool = False) -> PrimitiveConstructorSpec[Any]:
    """One number for all scales, or one a scale with commas between; where it is optional, None is a default."""

    def parsed(words: list[str]) -> Any:
        values = [kind(word) for word in words[0].split(",")]
        return Each(values) if "," in words[0] else values[0]

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="N|N,N,...",
        instance_from_str=parsed,
        is_instance=lambda value: isinstance(value, kind | int | Each) or (optional and value is None),
        str_from_instance=lambda value: [str(value)],
    )


WholePerScale = Annotated[int | tuple[int, ...], _per_scale(int)]
NumberPerScale = Annotated[float | tuple[float, ...], _per_scale(float)]
Guided = Annotated[
    float | tuple[float, ...] | None,
    _per_scale(float, optional=True),
    tyro.conf.arg(help_behavior_hint="(default: 1.5, with prompts 6 at every scale)"),
]
Reach = Annotated[int | None, tyro.conf.arg(metavar="SCALES", help_behavior_hint="(default: all)")]
Maps = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
Function = Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION", help_behavior_hint="")]
AtScales = Annotated[tuple[int, ...], tyro.conf.arg(metavar="SCALE", help_behavior_hint="(default: the coarser half)")]
Until = Annotated[int | None, tyro.conf.arg(metavar="SCALE", help_behavior_hint="")]

WORDS = ("prompt", "negative_prompt")  # options that are text for a model
REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def may_be_left_out(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | UnsupportedTypeAnnotationError | None:
    """`X | None`, an option that may be left out, parses as X does; None is a default and never typed.

    tyro's own rule for unions puts the choices of X in the order of a set, so that messages differ from run to run.
    """
    if info.type_origin not in (Union, types.UnionType) or type(None) not in get_args(info.type):
        return None
    kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
    if len(kinds) > 1:
        return None
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], info.markers))
    if isinstance(spec, UnsupportedTypeAnnotationError):
        return spec
    return dataclasses.replace(
        spec,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
    )


def expanded(command: Any) -> Any:
    """The command with `~` and `$VAR` in its paths replaced, as a shell does not after `=` or inside quotes.

    Words for a model stay as they are: a $5 note is one.
    """
    paths = (field.name for field in dataclasses.fields(command) if field.name not in WORDS)
    values = {name: _expanded(getattr(command, name)) for name in paths}
    return dataclasses.replace(command, **values)


def _expanded(value: Any) -> Any:
    """Of a path, or of text that is one: it begins with `~` or has `$` in it; what is there as it was typed stays."""
    if isinstance(value, tuple) and not isinstance(value, Each):
        return tuple(map(_expanded, value))
    text = str(value)
    if not isinstance(value, str | Path) or not (text.startswith("~") or "$" in text) or os.path.lexists(text):
        return value
    return type(value)(os.path.expandvars(os.path.expanduser(text)) or text)  # an empty variable names no place
