"""Visual autoregressive modelling: images generated coarse to fine, one whole token map at a time.

The public names. Those that need torch are imported on first use, so that `nextscale --help` stays instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nextscale import presets
from nextscale.errors import InputError
from nextscale.scales import Scales

if TYPE_CHECKING:
    from nextscale import official
    from nextscale.pipeline import Pipeline
    from nextscale.tokenizer import MultiScaleVQVAE
    from nextscale.transformer import VAR

__version__ = "0.1.0"
__all__ = ["VAR", "InputError", "MultiScaleVQVAE", "Pipeline", "Scales", "official", "presets"]

_LAZY = {
    "Pipeline": "nextscale.pipeline",
    "MultiScaleVQVAE": "nextscale.tokenizer",
    "VAR": "nextscale.transformer",
}


def __getattr__(name: str) -> Any:
    if name == "official":
        return import_module("nextscale.official")
    if name not in _LAZY:
        raise AttributeError(f"module 'nextscale' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
