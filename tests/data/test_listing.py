"""Laws of listings: classes are told apart, and what a listing says gives the fingerprints that it always gave."""

import io
import tarfile
from pathlib import Path

import pytest

from nextscale import data
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


def picture(level: int) -> bytes:
    """Of one colour, in bytes that no library decides."""
    return b"P6 4 5 255\n" + bytes([level, 2 * level, 255 - level]) * 20


def in_folders(root: Path) -> None:
    """Eight pictures of two classes, one of which is not in ASCII."""
    for number in range(8):
        path = root / ("cat", "d\u00f6g")[number % 2] / f"{number}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))


def in_a_shard(root: Path) -> None:
    """Eight of three classes."""
    root.mkdir()
    with tarfile.open(root / "a.tar", "w") as tar:
        for number in range(8):
            for name, content in ((f"{number}.ppm", picture(number)), (f"{number}.cls", str(number % 3).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("make", "train", "held_out"),
    [(in_folders, "7a273a2e4da0f905", "553bac3dbb06c5c8"), (in_a_shard, "9af3a5b4a462a0b7", "49ac9c73e433236b")],
)
def test_fingerprints_are_what_they_always_were(make, train: str, held_out: str, tmp_path: Path) -> None:
    """Runs and caches are continued where they are the same: these are stored, and other ones begin them anew."""
    make(tmp_path / "d")
    loaded = data.load(tmp_path / "d", height=4, width=4)
    assert (loaded.train.fingerprint, loaded.validation.fingerprint) == (train, held_out)
