"""Any module as a feature network, and networks by the name of a Python callable.

Knows nothing of what is in the module: pictures go in, one row of numbers for each comes out. Shapes: B pictures, H W
pixels, D features.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from nextscale.checks import checked, fits
from nextscale.errors import InputError
from nextscale.features import inception
from nextscale.features.network import FeatureNetwork
from nextscale.files import checkpoint

Colours = tuple[float, float, float]


class Custom(FeatureNetwork):
    """Features: what the module gives. No maps, so that there is no spatial distance; no classifier, so no score."""

    channels = ()

    def __init__(self, module: nn.Module, *, name: str, side: int, mean: Colours, deviation: Colours) -> None:
        super().__init__(mean=mean, deviation=deviation)
        self.name, self.side, self.module = name, side, module
        self.requires_grad_(False).eval()
        device = next(iter(module.state_dict().values()), self.mean_311).device
        self.mean_311, self.deviation_311 = self.mean_311.to(device), self.deviation_311.to(device)
        self.dimensions = self._answered()
        self.fingerprint = self._fingerprint()

    def embed(self, pixels_B3HW: Tensor) -> Tensor:
        features_BD = self.module(pixels_B3HW)
        count = len(pixels_B3HW)
        if not isinstance(features_BD, Tensor) or features_BD.dim() != 2 or len(features_BD) != count:
            got = tuple(features_BD.shape) if isinstance(features_BD, Tensor) else type(features_BD).__name__
            raise InputError(f"{self.name}: expected features ({count}, D) of {count} pictures, got {got}")
        return features_BD.float()

    def activations(self, pixels_B3HW: Tensor) -> list[Tensor]:
        raise InputError(f"{self.name}: expected a network with inner maps, got one that gives features alone")

    @torch.no_grad()
    def _answered(self) -> int:
        """D, found by looking at two grey pictures."""
        pictures_B3HW = torch.zeros(2, 3, self.side, self.side, device=self.mean_311.device)
        try:
            features_BD: Tensor = self(pictures_B3HW)
        except InputError:
            raise
        except Exception as error:  # of a module that wants another size, dtype or call, it can be anything
            what = str(error).strip().partition("\n")[0] or type(error).__name__
            expected = f"a module of pictures {tuple(pictures_B3HW.shape)} float32"
            raise InputError(f"{self.name}: expected {expected}, got one that fails on them: {what}") from error
        return features_BD.shape[1]

    def _fingerprint(self) -> str:
        """Of the weights, of the class, and of how pictures are shifted and scaled."""
        kind = type(self.module)
        scaling = torch.stack([self.mean_311.flatten(), self.deviation_311.flatten()])
        weights = {name: value for name, value in self.state_dict().items() if isinstance(value, Tensor)}
        return checkpoint.fingerprint({**weights, f"{kind.__module__}.{kind.__qualname__} {self.side}": scaling})


@checked
def of_module(
    module: nn.Module,
    *,
    name: str,
    side: int = 224,
    mean: Colours = (0.485, 0.456, 0.406),
    deviation: Colours = (0.229, 0.224, 0.225),
) -> FeatureNetwork:
    """A feature network whose features are what `module` gives; it holds the module, frozen and in evaluation mode.

    Arguments:
        module: normalised pictures (B, 3, side, side) float32 -> (B, D) floating point.
        name: what stands beside every figure made with it. Whoever changes what the module computes and not its
            weights gives it another name: what it saw in references is kept under name and weights.
        side: pixels a side that pictures are resized to, bicubic and antialiased.
        mean: of the pixels that the module was trained on, red, green, blue, in [0, 1].
        deviation: likewise; pictures are shifted and scaled by the two.

    Raises `InputError` for a module that gives anything else, and for a name that is empty, not printable or
    Inception's, whose figures alone are called FID.
    """
    if not name.strip() or not name.isprintable() or name == inception.NAME:
        raise InputError(f"name: expected a name for the metrics, other than {inception.NAME}, got {name!r}")
    if side < 1:
        raise InputError(f"side: expected at least 1 pixel, got {side}")
    _check_colours("mean", mean)
    _check_colours("deviation", deviation)
    return Custom(module, name=name, side=side, mean=mean, deviation=deviation)


def _check_colours(name: str, values: Colours) -> None:
    """Raise `InputError` unless these are three finite numbers."""
    if len(list(values)) != 3 or not all(fits(value, float) and isfinite(value) for value in values):
        raise InputError(f"{name}: expected three finite numbers, for red, green and blue, got {values!r}")


def imported(path: str) -> FeatureNetwork:
    """The network that "package.module:attribute" names, or that the function without arguments of this name gives.

    Modules are looked for where Python looks for them, and in the working directory. Raises `InputError` when there is
    no such module or attribute, or it is anything else.
    """
    found = called("features", path)
    with working_directory():
        try:
            network = found() if callable(found) and not isinstance(found, nn.Module) else found
        except InputError:
            raise
        except Exception as error:  # it is the user's
            what = f"{type(error).__name__}: {error}"
            raise InputError(f"{path}: expected a function without arguments, got one that fails: {what}") from error
    if not isinstance(network, FeatureNetwork):
        expected = "a FeatureNetwork, such as features.of_module makes, or a function without arguments that gives one"
        raise InputError(f"{path}: expected {expected}, got {type(network).__name__}")
    return network


def called(option: str, path: str) -> Any:
    """What "package.module:attribute" names. Raises `InputError` when there is no such module or attribute."""
    module, _, attribute = path.partition(":")
    with working_directory():
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError, SyntaxError, ValueError) as error:  # the last of an empty name
            raise InputError(f"{option}: expected MODULE:FUNCTION that can be imported, got {path}: {error}") from error


@contextmanager
def working_directory() -> Iterator[None]:
    """Inside, modules in the working directory can be imported, as with `python -m`."""
    before, sys.path = sys.path, [*sys.path, os.getcwd()]
    try:
        yield
    finally:
        sys.path = before
