"""The names that people give to splits: `train`, `Training`, `train2017`, `val_images`, `validset`, `test` and more.

What a name says, and which of several names is taken, of folders and of files that hold many pictures each. Looks at no
file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

Role = Literal["train", "validation", "test"]

_WORDS: Mapping[Role, str] = {
    "train": r"train|training|trainval",
    "validation": r"val|valid|validation|dev|devel|eval|evaluation|holdout|heldout",
    "test": r"test|testing|tests",
}
_AROUND = r"set|images?|imgs?|pictures?|photos?|data|dataset|split|part|samples?|large|full"  # tells no class
_HINT = re.compile(r"train|val|dev|test|hold|held", re.IGNORECASE)  # most folders are classes, and there may be many
_PLAIN = re.compile(r"[a-z0-9 _.()-]+", re.IGNORECASE)
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


def roles_of_folders(names: Iterable[str]) -> dict[str, Role]:
    """The folders that are called like splits, all of their names about that: `train_images`, but not `test-pilots`.

    What all of them share tells no class: `ilsvrc_train` beside `ilsvrc_val`.
    """
    words = {name: words_of(name) for name in names if _HINT.search(name) and _PLAIN.fullmatch(name)}
    called = {name: words[name] for name in words if len(roles_of(name)) == 1}
    shared = set.intersection(*map(set, called.values())) if len(called) > 1 else set()
    free = {name for name in called if all(_is_about_splits(word) or word in shared for word in called[name])}
    return {name: role for name in called if name in free for role in roles_of(name)}


def tells_no_class(folder: str) -> bool:
    """Whether a folder is called like what holds pictures of any class, such as `images`."""
    words = words_of(folder)
    return bool(words) and all(map(_is_about_splits, words))


def _is_about_splits(word: str) -> bool:
    return role_of_word(word) is not None or re.fullmatch(_AROUND, word) is not None


def first_choice(roles: Mapping[str, Role], role: Role) -> list[str]:
    """Those of a role, the plainest first: `val`, then `validation`, then others by name."""
    plain = ("train", "val", "validation", "test")
    found = [name for name in roles if roles[name] == role]
    return sorted(found, key=lambda name: (plain.index(name) if name in plain else len(plain), name))


class Sides(NamedTuple):
    """Files to train on, held-out ones if the names tell any, and how that is said."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    told: str


def sides_of(names: Sequence[str], *, share: str, one: str) -> Sides:
    """The files whose names say `train`, and those of the first of `val`, `validation`, others like these, `test`.

    Without both all are trained on but for a `share`; messages call a file `one`.
    """
    words = {name: words_of(name) for name in names}
    roles = {name: set(map(role_of_word, words[name])) for name in names}
    train = tuple(name for name in names if roles[name] - {None} == {"train"})
    ways: list[Callable[[str], bool]] = [
        lambda name: "val" in words[name],
        lambda name: "validation" in words[name],
        lambda name: "validation" in roles[name],
        lambda name: "test" in roles[name],
    ]
    held_out = next((found for way in ways if (found := tuple(filter(way, names)))), ())
    if not train or not held_out:
        alone = held_out and len(held_out) < len(names)
        told = [f"{counted(held_out)} trained on as well, as no {one} is called train"] if alone else []
        return Sides(tuple(names), (), "; ".join([share, *told]))
    used = {*train, *held_out}
    unused = [name for name in names if name not in used]
    told = [f"{counted(unused)} not used"] if unused else []
    return Sides(train, held_out, "; ".join([counted(held_out), *told]))


def counted(names: Sequence[str]) -> str:
    """The first of some names, and how many more."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"
