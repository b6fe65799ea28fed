"""Visual autoregressive modelling: images generated coarse to fine, one whole token map at a time.

The public names. All but the lightest are imported on first use, so that `nextscale --help` stays instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nextscale.errors import InputError
from nextscale.scales import Scales

if TYPE_CHECKING:
    from nextscale import data, features, official, presets
    from nextscale.pipeline import Pipeline
    from nextscale.tokenizer import MultiScaleVQVAE
    from nextscale.transformer import VAR

__version__ = "0.1.0"
__all__ = ["VAR", "InputError", "MultiScaleVQVAE", "Pipeline", "Scales", "data", "features", "official", "presets"]

_HOMES = {
    "Pipeline": "nextscale.pipeline",
    "MultiScaleVQVAE": "nextscale.tokenizer",
    "VAR": "nextscale.transformer",
}
_MODULES = ("data", "features", "official", "presets")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"nextscale.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'nextscale' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """What completion offers: the public names, without the modules that happen to be imported."""
    return __all__
