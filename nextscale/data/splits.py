"""The names that people give to splits: `train`, `Training`, `train2017`, `val_images`, `validset`, `test` and more.

What a name says, and which of several names is taken. Looks at no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

Role = Literal["train", "validation", "test"]

_WORDS: Mapping[Role, str] = {
    "train": r"train|training|trainval",
    "validation": r"val|valid|validation|dev|devel|eval|evaluation|holdout|heldout",
    "test": r"test|testing|tests",
}
_AROUND = r"set|images?|imgs?|pictures?|photos?|data|dataset|split|part|samples?|large|full"  # tells no class
_FORMS = {role: re.compile(rf"(?:{words})(?:{_AROUND})?") for role, words in _WORDS.items()}


def role_of_word(word: str) -> Role | None:
    """What one word in small letters says, such as `valset`."""
    return next((role for role in get_args(Role) if _FORMS[role].fullmatch(word)), None)


def roles_of(name: str) -> set[Role]:
    """What the words of a name say, such as those of `photos-train-000.tar`."""
    return {role for word in words_of(name) if (role := role_of_word(word)) is not None}


def words_of(name: str) -> list[str]:
    """The words of letters in a name, small."""
    return re.findall(r"[a-z]+", name.lower())


def role_of_folder(name: str) -> Role | None:
    """What a folder's name says, if all of it is about a split: `train_images` is one, `test-pilots` a class."""
    if not re.fullmatch(r"[a-z0-9 _.()-]+", name.lower()):
        return None
    roles, words = roles_of(name), words_of(name)
    others = [word for word in words if role_of_word(word) is None and not re.fullmatch(_AROUND, word)]
    return next(iter(roles)) if len(roles) == 1 and not others else None


def first_choice(names: Iterable[str], role: Role) -> list[str]:
    """Those of a role, the plainest first: `val`, then `validation`, then others by name."""
    plain = ("train", "val", "validation", "test")
    found = [name for name in names if role_of_folder(name) == role]
    return sorted(found, key=lambda name: (plain.index(name) if name in plain else len(plain), name))
