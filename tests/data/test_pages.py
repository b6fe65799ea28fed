"""Laws of pages: a value that is read alone is the one that pyarrow reads, however the file was written."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.data import pages
from nextscale.data.arrow import Cells, File
from nextscale.errors import InputError

PAIR = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def column(count: int, *, nulls: bool, seed: int = 0) -> list[bytes | None]:
    """Texts of bytes of many lengths, some more than once."""
    drawn = random.Random(seed)
    values: list[bytes | None] = [drawn.randbytes(drawn.choice([0, 1, 30, 900])) for _ in range(count // 2 + 1)]
    values += drawn.choices(values, k=count - len(values))
    drawn.shuffle(values)
    return [None if nulls and drawn.random() < 0.3 else value for value in values]


def written(path: Path, values: list[bytes | None], *, paired: bool = False, **options: Any) -> Path:
    """A column `image` as pyarrow writes it, pages of some 2 kB."""
    cells = [{"bytes": value, "path": "x"} for value in values] if paired else values
    table = pa.table({"number": range(len(values)), "image": pa.array(cells, PAIR if paired else pa.binary())})
    small = {"data_page_size": 2000, "write_batch_size": 7, "row_group_size": 90}
    pyarrow.parquet.write_table(table, path, **{**small, **options})
    return path


def all_values(path: Path) -> list[bytes | None]:
    """By pages alone."""
    found = File(path).pages("image")
    assert found is not None
    return [value for number in range(len(found.starts) - 1) for value in found.read(number)]


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("paired", [False, True])
def test_values_are_those_that_were_written(
    codec: str, version: str, dictionary: bool, paired: bool, tmp_path: Path
) -> None:
    """In pages of both versions, packed or not, plain or through a dictionary, that may end too soon; with gaps."""
    values = column(200, nulls=True)
    options = {"compression": codec, "data_page_version": version, "use_dictionary": dictionary}
    path = written(tmp_path / "x.parquet", values, paired=paired, dictionary_pagesize_limit=9000, **options)
    assert all_values(path) == values
    found = File(path).pages("image")
    assert found is not None
    assert len(found.starts) > 6


def test_values_that_must_be_there_have_no_levels(tmp_path: Path) -> None:
    """A column without gaps by its schema, alone and in a struct."""
    values = column(50, nulls=False)
    one = pa.field("image", pa.binary(), nullable=False)
    pair = pa.field("image", pa.struct([pa.field("bytes", pa.binary(), nullable=False)]), nullable=False)
    for field, cells in ((one, values), (pair, [{"bytes": value} for value in values])):
        table = pa.table([pa.array(cells, field.type)], schema=pa.schema([field]))
        pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
        assert all_values(tmp_path / "x.parquet") == values


def test_statistics_in_headers_may_be_long(tmp_path: Path) -> None:
    """As those of long values."""
    values = [bytes([number]) * 9000 for number in range(40)]
    for compression in ("none", "snappy"):
        options = {"compression": compression, "use_dictionary": False, "data_page_size": 1}
        pyarrow.parquet.write_table(
            pa.table({"image": pa.array(values, pa.binary())}), tmp_path / "x.parquet", write_batch_size=1, **options
        )
        assert all_values(tmp_path / "x.parquet") == values


@pytest.mark.parametrize(
    "options",
    [
        {"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY"}},
        {"use_dictionary": False, "column_encoding": {"image": "DELTA_LENGTH_BYTE_ARRAY"}},
    ],
)
def test_what_is_written_otherwise_is_left_to_pyarrow(options: dict[str, Any], tmp_path: Path) -> None:
    """And gives the same cells."""
    values = column(60, nulls=True)
    path = written(tmp_path / "x.parquet", values, **options)
    assert File(path).pages("image") is None
    cells = Cells()
    assert [cells(path, "image", row) for row in range(60)] == values
    lists = pa.table({"image": pa.array([[b"a"], [b"b", b"c"]])})
    pyarrow.parquet.write_table(lists, tmp_path / "lists.parquet")
    assert File(tmp_path / "lists.parquet").pages("image") is None


def test_cells_are_read_in_any_order_and_kept_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several files and columns; what was read last is at hand."""
    from nextscale.data import arrow

    monkeypatch.setattr(arrow, "MEMORY", 5000)
    values = column(200, nulls=False)
    paths = [written(tmp_path / f"{n}.parquet", values[n:] + values[:n]) for n in range(2)]
    cells, drawn = Cells(), random.Random(0)
    for _ in range(300):
        file, row = drawn.randrange(2), drawn.randrange(200)
        assert cells(paths[file], "image", row) == (values[file:] + values[:file])[row]
        assert sum(slot.bytes for slot in cells._kept.values()) <= 5000 or len(cells._kept) == 1
    assert cells(paths[0], "number", 7) == 7


@given(st.integers(0, 20), st.lists(st.integers(0, 2**20 - 1), max_size=70))
@settings(deadline=None)
def test_runs_of_numbers_come_out_as_they_went_in(width: int, numbers: list[int]) -> None:
    """Written here in groups of eight, bit by bit, and one by one."""
    numbers = [number % (1 << width) for number in numbers]
    padded = numbers + [0] * (-len(numbers) % 8)
    bits = [number >> bit & 1 for number in padded for bit in range(width)]
    packed = (
        bytes([len(padded) // 8 << 1 | 1]) + np.packbits(np.array(bits, dtype=np.uint8), bitorder="little").tobytes()
    )
    assert pages._runs(packed, width, len(numbers)) == numbers
    singly = b"".join(b"\2" + number.to_bytes((width + 7) // 8, "little") for number in numbers)
    assert pages._runs(singly, width, len(numbers)) == numbers


def test_any_damage_is_a_clear_end(tmp_path: Path) -> None:
    """No exception but those of damaged files, whatever bytes are changed, and nothing that takes for ever."""
    drawn = random.Random(0)
    for paired in (False, True):
        path = written(tmp_path / "x.parquet", column(120, nulls=True), paired=paired)
        whole = path.read_bytes()
        for _ in range(150):
            content = bytearray(whole)
            for _ in range(drawn.choice([1, 1, 5])):
                content[drawn.randrange(len(content))] = drawn.randrange(256)
            path.write_bytes(content)
            cells = Cells()
            for row in range(0, 120, 11):
                with suppress(OSError, InputError):
                    assert isinstance(cells(path, "image", row), bytes | dict | None)
