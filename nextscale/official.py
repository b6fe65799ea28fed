"""Checkpoints of the public release, under the name that users import: the door to `nextscale.release`.

`load` makes a `Pipeline` of them, `load_tokenizer` a tokenizer of its file alone, `export` is the exact reverse of the
first, `names` maps our tensor names to the release's.
"""

from nextscale.release.convert import export, load, load_tokenizer, names

__all__ = ["export", "load", "load_tokenizer", "names"]
