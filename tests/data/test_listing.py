"""Laws of what a listing says of its classes."""

import pytest

from nextscale.data.listing import told_apart


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["ant", "bee"], ("ant", "bee")),
        (["ant", "bee", "ant", "ant"], ("ant", "bee", "ant~2", "ant~3")),
        (["ant", "ant", "ant~2", "ant"], ("ant", "ant~3", "ant~2", "ant~4")),
        (["ant~2", "ant", "ant"], ("ant~2", "ant", "ant~3")),
        (["caf\udce9", "caf\\xe9"], ("caf\\xe9", "caf\\xe9~2")),
    ],
)
def test_every_class_has_a_name_of_its_own(names: list[str], told: tuple[str, ...]) -> None:
    """Also where one is called like the second of another, or prints like it."""
    assert told_apart(names) == told
