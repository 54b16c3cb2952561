"""Small files that unpack to much, and long files without an end of line: bounded memory, bounded time, a clear error."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile.bounds import GENTLE, TELL, answer, measured
from tests.hostile.test_rows import GOOD, rows_of
from tunesmith.data.layout import Layout
from tunesmith.data.streams import FREE_BYTES, MAX_ITEM_BYTES, MOST_EXPANSION
from tunesmith.errors import DataError
from tunesmith.planning.row_sample import sample_file

READ = (
    TELL
    + """
from tunesmith.data.sources import read_rows
def count():
    number = sum(1 for row in read_rows(Path(sys.argv[1]), 'rows'))
    print(number, 'rows')
tell(count)
"""
)


def _gzip(path: Path, piece: bytes, times: int, head: bytes = b"") -> None:
    with gzip.open(path, "wb", compresslevel=9) as stream:
        stream.write(head)
        for _ in range(times):
            stream.write(piece)


def _zstandard(path: Path, piece: bytes, times: int, head: bytes = b"") -> None:
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(head)
        for _ in range(times):
            stream.write(piece)


@pytest.mark.parametrize("pack", [_gzip, _zstandard])
@pytest.mark.parametrize(
    ("name", "piece", "head"),
    [
        ("rows.txt", b"a" * (1 << 20), b""),
        ("rows.jsonl", b'{"text": "' + b"a" * 1_000_000 + b'"}\n', b""),
        ("rows.jsonl", b"a" * (1 << 20), b'{"text": "'),
        ("rows.json", b"a" * (1 << 20), b'[{"text": "'),
        ("rows.json", b'{"text": "' + b"a" * 1_000_000 + b'"},', b"["),
        ("rows.csv", b"a" * (1 << 20), b'text\n"'),
        ("rows.csv", b"a" * 1_000_000 + b"\n", b"text\n"),
    ],
)
def test_a_bomb_is_refused_in_bounded_memory(
    tmp_path: Path, pack: Callable[..., None], name: str, piece: bytes, head: bytes
) -> None:
    path = tmp_path / f"{name}{'.gz' if pack is _gzip else '.zst'}"
    pack(path, piece, 100, head)
    assert path.stat().st_size < (1 << 20)
    found = rows_of(path)
    assert isinstance(found, DataError)
    assert "MiB" in found.what
    said, peak = measured(READ, str(path), seconds=20, mebibytes=2048)
    assert "DataError" in said
    assert peak < 60 + 12 * (MAX_ITEM_BYTES >> 20)


def test_what_packs_as_text_does_is_read_whole(tmp_path: Path) -> None:
    """Rows that share most of their words, beyond what is free: far better packed than text is, and no bomb."""
    generator = np.random.default_rng(0)
    shared = generator.integers(97, 123, 2_000, dtype=np.uint8).tobytes()
    num_rows = 2 * FREE_BYTES // 2_000
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wb") as stream:
        for _ in range(num_rows):
            stream.write(b'{"text": "' + shared + generator.integers(97, 123, 60, dtype=np.uint8).tobytes() + b'"}\n')
    assert 20 < 2 * FREE_BYTES / path.stat().st_size < MOST_EXPANSION
    found = rows_of(path)
    assert isinstance(found, list)
    assert len(found) == num_rows


@GENTLE
@given(data=st.data(), suffix=st.sampled_from([".gz", ".zst"]))
def test_packed_files_with_bytes_changed_or_lost(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    name = data.draw(st.sampled_from(sorted(GOOD)))
    path = tmp_path / f"rows{name}{suffix}"
    (_gzip if suffix == ".gz" else _zstandard)(path, GOOD[name], 1)
    payload = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(payload) - 1))
    if data.draw(st.booleans()):
        payload[at] ^= data.draw(st.integers(1, 255))
    else:
        del payload[at:]
    path.write_bytes(payload)
    rows_of(path)
    answer(lambda: sample_file(path, path.name, 8, np.random.default_rng(0), Layout()))


def test_lines_and_values_have_a_longest_length(tmp_path: Path) -> None:
    """100 MB on one line."""
    for name, head in (
        ("rows.jsonl", b'{"text": "'),
        ("rows.json", b'[{"text": "'),
        ("rows.csv", b'text\n"'),
        ("row.json", b'{"text": "'),
    ):
        path = tmp_path / name
        with path.open("wb") as stream:
            stream.write(head)
            for _ in range(100):
                stream.write(b"a" * 1_000_000)
        said, peak = measured(READ, str(path), seconds=20, mebibytes=2048)
        assert "DataError" in said
        assert f"longer than {MAX_ITEM_BYTES >> 20} MiB" in said
        assert peak < 60 + 12 * (MAX_ITEM_BYTES >> 20)


def test_a_row_of_empty_lists_takes_no_more_than_its_share(tmp_path: Path) -> None:
    """The dearest JSON: 30 times its size in memory."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": [' + b"[]," * ((MAX_ITEM_BYTES - 100) // 3) + b"[]]}\n")
    said, peak = measured(READ, str(path), seconds=30, mebibytes=2048)
    assert said.startswith("1 rows")
    assert peak < 60 + 35 * (MAX_ITEM_BYTES >> 20)


def test_one_object_that_is_a_whole_file_is_no_longer_than_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b"{" + b",".join(b'"k%d": "%s"' % (number, b"a" * 1_000_000) for number in range(60)) + b"}")
    found = rows_of(path)
    assert isinstance(found, DataError)
    assert "a row is longer" in found.what


def test_a_row_of_a_table_over_many_lines_is_no_longer_either(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a,b\n" + (b'"' + b"x" * 1_000_000 + b'\n",') * 60 + b"\n")
    found = rows_of(path)
    assert isinstance(found, DataError)
    assert "a row is longer" in found.what


@pytest.mark.parametrize("kind", ["dictionary", "delta", "zeros", "nothing", "list", "long"])
def test_parquet_bombs(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rows.parquet"
    long = "x" * (1 << 20)
    if kind == "dictionary":
        texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), pa.array([long]))
        pq.write_table(pa.table({"text": texts}), path, store_schema=False)
    elif kind == "delta":
        pq.write_table(
            pa.table({"text": [long] * 64}), path, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"}
        )
    elif kind == "zeros":
        pq.write_table(pa.table({"text": [long] * 64}), path, compression="zstd", use_dictionary=False)
    elif kind == "nothing":
        pq.write_table(pa.table({"text": pa.nulls(20_000_000)}), path)
    elif kind == "list":
        pq.write_table(pa.table({"text": pa.array([[1] * 3_000_000])}), path)
    else:
        pq.write_table(pa.table({"text": [long * 20] * 2}), path, compression="none", use_dictionary=False)
    said, peak = measured(READ, str(path), seconds=20, mebibytes=3072)
    assert "DataError" in said
    assert any(word in said for word in ("unpacks to", "longer than"))
    assert peak < 500


def test_a_sample_of_a_bomb_or_of_one_long_line_is_bounded(tmp_path: Path) -> None:
    """Planning reads a few rows of every file."""
    bomb = tmp_path / "rows.jsonl.gz"
    _gzip(bomb, b"1\n" * (1 << 19), 15)
    assert bomb.stat().st_size < 1 << 18
    line = tmp_path / "line.jsonl"
    with line.open("wb") as stream:
        for _ in range(200):
            stream.write(b"a" * 1_000_000)
    deep = tmp_path / "deep.jsonl"
    deep.write_bytes(b'{"text": ' + b"[" * 500 + b"]" * 500 + b"}\n")
    code = (
        TELL
        + """
import numpy as np
from tunesmith.data.layout import Layout
from tunesmith.planning.row_sample import sample_file
for name in sys.argv[1:]:
    tell(lambda: sample_file(Path(name), 'rows', 8, np.random.default_rng(0), Layout()))
"""
    )
    said, peak = measured(code, str(bomb), str(line), str(deep), seconds=40, mebibytes=2048)
    assert len(said.splitlines()) == 3
    assert peak < 500


def test_an_unpacked_stream_is_a_whole_stream(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt.gz"
    _gzip(path, b"a line\n", 10_000)
    found = rows_of(path)
    assert isinstance(found, list)
    text = "".join(str(row.values["text"]) for row in found)
    assert text == "a line\n" * 10_000
    assert io.BytesIO(text.encode()).read(6) == b"a line"
