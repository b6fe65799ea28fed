"""Checkpoints of the public release, under the name that users import: the door to `nextscale.release`.

`load` makes a `Pipeline` of them, `export` is the exact reverse, `names` maps our tensor names to the release's.
"""

from nextscale.release.convert import export, load, names

__all__ = ["export", "load", "names"]
