"""The next-scale transformer and the cache its steps fill."""

from nextscale.transformer.cache import KeyValueCache, cache_bytes
from nextscale.transformer.layers import DropPath
from nextscale.transformer.model import VAR, Condition

__all__ = ["VAR", "Condition", "DropPath", "KeyValueCache", "cache_bytes"]
