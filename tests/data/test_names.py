"""Laws of names in arrays: they come out as they went in, whatever they hold and however many are chosen."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.data import names as room
from nextscale.data.names import Names

FILE_NAMES = st.binary(max_size=9).map(os.fsdecode)


@given(st.lists(FILE_NAMES, max_size=9), st.integers(1, 4))
def test_names_come_out_as_they_went_in(given: list[str], chunk: int) -> None:
    """Also those that are not UTF-8, whatever number of them is looked at in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_CHUNK", chunk)
        names = Names(given)
        assert list(names) == given == [names[index] for index in range(len(given))]
        assert names == given
        assert pickle.loads(pickle.dumps(names)) == names
        assert names[::-2] == given[::-2]
        assert names + names[:1] == tuple(given + given[:1])


@given(st.lists(FILE_NAMES, min_size=1, max_size=9), st.lists(st.integers(0, 8), max_size=9), st.integers(1, 4))
def test_any_names_can_be_chosen_in_any_order(given: list[str], places: list[int], chunk: int) -> None:
    """More than once, too."""
    places = [place % len(given) for place in places]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_CHUNK", chunk)
        assert Names(given).chosen(np.array(places, dtype=np.int64)) == [given[place] for place in places]


def test_names_are_a_sequence() -> None:
    """Negative indices, slices, searching, an end, and equality with lists alone; their own words are short."""
    names = Names(["ant", "bee", "cat"])
    assert (names[-1], names.index("bee"), "dog" in names) == ("cat", 1, False)
    assert names == ("ant", "bee", "cat")
    assert names != ["ant", "bee"]
    assert names != "antbeecat"
    assert repr(names) == "Names(3: 'ant', 'bee', ...)"
    with pytest.raises(IndexError):
        names[3]


def test_what_cannot_be_printed_is_escaped_and_the_rest_is_not_copied() -> None:
    """The same as `printable` of each."""
    names = Names(["caf\udce9", "tab\t", "plain"])
    assert names.printable() == ["caf\\xe9", "tab\\t", "plain"]
    assert names[2:].printable() == ["plain"]
    plain = Names(["plain"])
    assert plain.printable() is plain
