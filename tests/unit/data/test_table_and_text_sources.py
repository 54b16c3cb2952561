"""Tables and plain text: rows with their lines, cuts without loss, faults by name."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.bad_row import REASONS
from tunesmith.data.sources import PIECE_BYTES, WHOLE_TEXT_BYTES, read_rows
from tunesmith.errors import DataError
from tunesmith.records import RawRow, Rejected


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def zst(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def read(path: Path) -> tuple[list[tuple[int, dict]], list[tuple[int, str]]]:
    """(line, values) of the rows and (line, reason) of the rejects."""
    items = list(read_rows(path, "shown"))
    assert all(item.origin.file == "shown" for item in items)
    rejects = [item for item in items if isinstance(item, Rejected)]
    assert all(item.reason in REASONS and item.detail for item in rejects)
    rows = [(item.origin.line, dict(item.values)) for item in items if isinstance(item, RawRow)]
    return rows, [(item.origin.line, item.reason) for item in rejects]


def fault(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_rows(path, "shown"))
    assert caught.value.where.startswith("shown")
    assert caught.value.hint
    return caught.value


# --- csv and tsv ------------------------------------------------------------------------------------------------


def test_csv_lines_are_right_with_quoted_line_ends(tmp_path: Path) -> None:
    text = 'text,label\r\n"a\r\nb, ""c""",1\r\n\r\nlast,2\r\n'
    rows, rejects = read(write(tmp_path / "a.csv", text))
    assert rows == [(2, {"text": 'a\r\nb, "c"', "label": "1"}), (5, {"text": "last", "label": "2"})]
    assert not rejects


def test_csv_rejects_short_long_and_badly_quoted_rows(tmp_path: Path) -> None:
    text = b'a,b,c\n1,2\n1,2,3,4\n1,2,3\n"x"y,2,3\n"m\nn"o,2,3\n\xff,2,3\n4,5,6'
    items = list(read_rows(write(tmp_path / "a.csv", text), "shown"))
    found = [(item.origin.line, item.reason if isinstance(item, Rejected) else "") for item in items]
    assert found == [
        (2, "missing_column"),
        (3, "wrong_type"),
        (4, ""),
        (5, "wrong_type"),
        (6, "wrong_type"),
        (8, "wrong_encoding"),
        (9, ""),
    ]
    assert "lacks: c" in items[0].detail  # type: ignore[union-attr]
    assert "lines 6 to 7" in items[4].detail  # type: ignore[union-attr]
    assert f"offset {text.index(0xFF)} " in items[5].detail  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", 'a,b\n1,2\n"3,4\n5,6\n', "never closed"),
        ("a.csv", "a,a\n1,2\n", "twice: a"),
        ("a.csv", "a;b\n1;2\n", "separator"),
        ("a.tsv", "a,b\n1,2\n", "separator"),
        ("a.csv", '"a"b,c\n1,2\n', "header"),
    ],
)
def test_csv_files_that_cannot_be_told_apart_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    assert message in fault(write(tmp_path / name, text)).what


def test_an_open_quote_is_named_by_its_line(tmp_path: Path) -> None:
    assert fault(write(tmp_path / "a.csv", 'a,b\n1,2\n"3,4\n5,6\n')).where == "shown:3"


def test_a_long_field_and_columns_without_names(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path / "a.csv", f",text\n0,{'x' * 1_000_000}\n"))
    assert rows == [(2, {"column_1": "0", "text": "x" * 1_000_000})]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))), min_size=1))
def test_csv_reads_what_csv_writes(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        sheet = io.StringIO(newline="")
        csv.writer(sheet, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
        found, rejects = read(write(tmp_path / name, sheet.getvalue()))
        assert [tuple(values.values()) for _, values in found] == rows
        assert not rejects


# --- parquet ----------------------------------------------------------------------------------------------------


def test_parquet_values_become_plain(tmp_path: Path) -> None:
    table = {
        "messages": [[{"role": "user", "content": "a"}], []],
        "when": [datetime.datetime(2026, 1, 2, 3, 4), None],
        "price": [Decimal("1.50"), None],
        "score": [float("nan"), 0.5],
        "blob": [b"text", "ü".encode()],
    }
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    rows, rejects = read(path)
    assert not rejects
    assert [line for line, _ in rows] == [1, 2]
    assert rows[0][1] == {
        "messages": [{"role": "user", "content": "a"}],
        "when": "2026-01-02T03:04:00",
        "price": "1.50",
        "score": None,
        "blob": "text",
    }
    assert json.loads(json.dumps(rows[1][1], allow_nan=False))["score"] == 0.5


def test_parquet_bytes_that_are_no_text_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"blob": [b"\xff", b"a"]}), path)
    assert read(path) == ([(2, {"blob": "a"})], [(1, "wrong_encoding")])


# --- txt --------------------------------------------------------------------------------------------------------


def test_a_text_file_is_one_document_with_its_blank_lines(tmp_path: Path) -> None:
    text = "One.\r\n\r\nTwo.\n\n\nThree"
    assert read(write(tmp_path / "a.txt", b"\xef\xbb\xbf" + text.encode())) == ([(1, {"text": text})], [])


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("paragraph", ["Wörter und Wörter.\nZeile\n\n", "ünbroken ", "Zeile ü\n"])
def test_a_long_text_is_cut_without_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paragraph: str, packing: str
) -> None:
    monkeypatch.setattr("tunesmith.data.sources.WHOLE_TEXT_BYTES", 16_000)
    monkeypatch.setattr("tunesmith.data.sources.PIECE_BYTES", 1000)
    text = paragraph * (32_000 // len(paragraph.encode()))
    content = text.encode()
    shaped = {"": content, ".gz": gzip.compress(content), ".zst": zst(content)}[packing]
    rows, rejects = read(write(tmp_path / f"a.txt{packing}", shaped))
    assert not rejects
    assert "".join(values["text"] for _, values in rows) == text
    assert len(rows) > 4
    at = 1
    for line, values in rows:
        assert line == at
        at += values["text"].count("\n")
    if paragraph.endswith("\n\n"):
        assert all(values["text"].endswith("\n\n") for _, values in rows)
        assert all(len(values["text"].encode()) <= 1000 + 100 for _, values in rows)
    assert all(len(values["text"].encode()) <= 5 * 1000 + 4 for _, values in rows)


def test_the_sizes_of_texts_are_as_documented(tmp_path: Path) -> None:
    assert (WHOLE_TEXT_BYTES, PIECE_BYTES) == (1024 * 1024, 64 * 1024)
    paragraph = "x" * 62 + "\n\n"
    assert len(read(write(tmp_path / "a.txt", paragraph * 16_384))[0]) == 1
    assert len(read(write(tmp_path / "a.txt", paragraph * 16_385))[0]) == 17


def test_text_that_is_not_utf8_is_rejected_where_it_stands(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", b"caf\xe9")) == ([], [(1, "wrong_encoding")])
    good = ("line\n\n" * (WHOLE_TEXT_BYTES // 6 + 1)).encode()
    path = write(tmp_path / "b.txt", good + b"\xe9\n" + good)
    items = list(read_rows(path, "shown"))
    bad = [item for item in items if isinstance(item, Rejected)]
    assert len(bad) == 1
    assert f"offset {len(good)} " in bad[0].detail
    assert len(items) > 10
