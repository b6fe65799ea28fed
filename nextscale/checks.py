"""What callers give, compared with the annotations of the function they call: `top_k: expected an integer, got 9.5`.

For the doors of the library alone, where a value of the wrong type would otherwise end deep inside, in words about
something else. Ranges, shapes and what lists hold stay with the functions. Needs no torch.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import inspect
import operator
import os
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union

from nextscale.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
WORDS = {int: "an integer", float: "a number", bool: "True or False", str: "text", type(None): "None"}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, with an `InputError` for arguments that its annotations do not allow.

    An integer or a number may be Python's, NumPy's or torch's, a list anything that can be iterated and is no text.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = _hints(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in hints:
                _check(name, value, hints[name])
        return function(*args, **kwargs)

    return call


def check_fields(instance: object) -> None:
    """Raise `InputError` unless the fields of a dataclass are of their types; for its `__post_init__`."""
    hints = _hints(type(instance))  # type: ignore[arg-type]  # classes are hashable
    for field in dataclasses.fields(instance):  # type: ignore[arg-type]
        _check(field.name, getattr(instance, field.name), hints[field.name])


@functools.cache
def _hints(function: Any) -> dict[str, Any]:
    """Looked up at the first call, when all modules are there."""
    return typing.get_type_hints(function)


def _check(name: str, value: Any, hint: Any) -> None:
    if not fits(value, hint):
        raise InputError(f"{name}: expected {_told(hint)}, got {reprlib.repr(value)}")
    if Path in typing.get_args(hint) and isinstance(value, str | Path):
        check_place(name, value)


def check_place(name: str, path: str | Path) -> None:
    """Raise `InputError` for what no file can be called; whether there is one is not asked."""
    try:
        os.stat(path)
    except ValueError as error:
        raise InputError(f"{name}: expected a path, got {reprlib.repr(str(path))} ({error})") from None
    except OSError as error:
        pattern = any(letter in str(path) for letter in "{*")  # of shards, which may be longer than a name
        if error.errno == errno.ENAMETOOLONG and not pattern:
            raise InputError(f"{name}: expected a path, got {reprlib.repr(str(path))} ({error.strerror})") from None


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that is meant; of one that is not known here, it is."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return _is_for_the_function(hint) or any(fits(value, one) for one in typing.get_args(hint))
    if origin is Literal:
        return any(isinstance(value, type(one)) and value == one for one in typing.get_args(hint))
    if origin is not None:
        return _fits_generic(value, origin)
    if hint is int:
        return not isinstance(value, bool) and _takes(operator.index, value)
    if hint is float:
        return not isinstance(value, str | bytes | bool) and _takes(float, value)
    if hint is bool:
        return type(value).__name__ in ("bool", "bool_")  # NumPy's
    return not isinstance(hint, type) or isinstance(value, hint)


def _is_for_the_function(union: Any) -> bool:
    """Whether it is one thing or a list of them, as labels and pictures are: the function has better words for it."""
    origins = [typing.get_origin(one) for one in typing.get_args(union) if one is not type(None)]
    return len(origins) > 1 and Sequence in origins


def _fits_generic(value: Any, origin: Any) -> bool:
    """Containers of any content: `Mapping`, `Callable`, and lists of all kinds, tensors and arrays among them."""
    if origin is Callable or not isinstance(origin, type):
        return callable(value)
    if issubclass(origin, Mapping):
        return isinstance(value, origin)
    return not isinstance(value, str | bytes | Mapping) and _takes(iter, value)


def _takes(function: Callable[[Any], object], value: Any) -> bool:
    try:
        function(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last of torch's, for what is no number
        return False
    return True


def _told(hint: Any) -> str:
    """A type in words."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_told, typing.get_args(hint))))
    if origin is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if origin is not None:
        return _told_generic(origin)
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _told_generic(origin: Any) -> str:
    if origin is Callable or not isinstance(origin, type):
        return "a function"
    return "a mapping" if issubclass(origin, Mapping) else "a list"
