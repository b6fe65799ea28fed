"""Modules made of shapes alone, on the meta device, for weights that come later. Nothing is drawn for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


@contextmanager
def shapes_alone() -> Iterator[None]:
    """A context in which modules are made on the meta device.

    As `torch.device("meta")` alone, but that `nn.Embedding` asks for random numbers even there, for which torch imports
    its compiler: 1.3 s.
    """
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Leaves out what fills a tensor with normal numbers, as `nn.Embedding` does."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func is nn.init.normal_:
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)
