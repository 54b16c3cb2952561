"""Tables and plain text: rows with their lines, cuts without loss, faults by name."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import tracemalloc
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.bad_row import REASONS
from tunesmith.data.layout import Layout
from tunesmith.data.sources import read_rows
from tunesmith.data.text_rows import PIECE_BYTES, WHOLE_TEXT_BYTES
from tunesmith.errors import DataError
from tunesmith.recipe.data import TextRow
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


def read(
    path: Path, row: TextRow = "file", *, header: bool = True
) -> tuple[list[tuple[int, dict]], list[tuple[int, str]]]:
    """(line, values) of the rows and (line, reason) of the rejects."""
    items = list(read_rows(path, "shown", Layout(row, header)))
    assert all(item.origin.file == "shown" for item in items)
    rejects = [item for item in items if isinstance(item, Rejected)]
    assert all(item.reason in REASONS and item.detail for item in rejects)
    rows = [(item.origin.line, dict(item.values)) for item in items if isinstance(item, RawRow)]
    return rows, [(item.origin.line, item.reason) for item in rejects]


def fault(path: Path, row: TextRow = "file") -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_rows(path, "shown", Layout(row)))
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


@pytest.mark.parametrize(("name", "by"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ",")])
def test_a_table_without_header_loses_no_row_and_has_numbered_columns(tmp_path: Path, name: str, by: str) -> None:
    text = f'3{by}"a\nb"{by}x\n\n1{by}c\n2{by}c{by}c\n'
    path = write(tmp_path / name, gzip.compress(text.encode()) if name.endswith(".gz") else text)
    rows, rejects = read(path, header=False)
    assert rows == [
        (1, {"column_1": "3", "column_2": "a\nb", "column_3": "x"}),
        (5, {"column_1": "2", "column_2": "c", "column_3": "c"}),
    ]
    assert rejects == [(4, "missing_column")]


def test_a_table_without_header_may_begin_with_a_faulty_row(tmp_path: Path) -> None:
    rows, rejects = read(write(tmp_path / "a.csv", b'caf\xe9,1\n"x"y,2\nb,3\n'), header=False)
    assert rows == [(3, {"column_1": "b", "column_2": "3"})]
    assert rejects == [(1, "wrong_encoding"), (2, "wrong_type")]


def test_a_header_that_could_be_a_row_says_so(tmp_path: Path) -> None:
    assert "header: false" in fault(write(tmp_path / "a.csv", "0,0,1\n0,1,1\n")).hint


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))), min_size=1))
def test_csv_reads_what_csv_writes(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        sheet = io.StringIO(newline="")
        csv.writer(sheet, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
        found, rejects = read(write(tmp_path / name, sheet.getvalue()))
        assert [tuple(values.values()) for _, values in found] == rows
        assert not rejects
        every, _ = read(tmp_path / name, header=False)
        assert [tuple(values.values()) for _, values in every] == [("a", "b"), *rows]


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
    monkeypatch.setattr("tunesmith.data.text_rows.WHOLE_TEXT_BYTES", 16_000)
    monkeypatch.setattr("tunesmith.data.text_rows.PIECE_BYTES", 1000)
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


BLANKS = "\ufeff\r\n \t\nOne,\r\n  still one.\r\n\u3000\r\nTwo.\n\n\x0c\n\u00a0\nThree é"
CUT = {
    "paragraph": [(3, "One,\r\n  still one."), (6, "Two."), (10, "Three é")],
    "line": [(3, "One,"), (4, "  still one."), (6, "Two."), (10, "Three é")],
}


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("row", ["paragraph", "line"])
def test_text_by_paragraph_or_line(tmp_path: Path, row: TextRow, packing: str) -> None:
    content = BLANKS.encode()
    shaped = {"": content, ".gz": gzip.compress(content), ".zst": zst(content)}[packing]
    rows, rejects = read(write(tmp_path / f"a.txt{packing}", shaped), row)
    assert [(line, values["text"]) for line, values in rows] == CUT[row]
    assert rejects == []


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="ab é\u2028\u00a0\x85\t\r\n", min_size=1).filter(lambda text: text.strip()))
def test_no_word_of_a_text_is_lost_and_every_row_stands_where_it_says(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.txt", text)
    every = text.split("\n")
    full = [number for number, line in enumerate(every, 1) if line.strip()]
    rows, _ = read(path, "line")
    assert [(line, values["text"]) for line, values in rows] == [(n, every[n - 1].rstrip("\r\n")) for n in full]
    parted, _ = read(path, "paragraph")
    assert [line for line, _ in parted] == [number for number in full if number - 1 not in full]
    kept = [(line + more, part) for line, values in parted for more, part in enumerate(values["text"].split("\n"))]
    assert [(line, part.rstrip("\r")) for line, part in kept] == [(n, every[n - 1].rstrip("\r")) for n in full]


@pytest.mark.parametrize("row", ["paragraph", "line"])
def test_bytes_that_are_not_utf8_cost_only_their_row(tmp_path: Path, row: TextRow) -> None:
    path = write(tmp_path / "a.txt", b"good\n\nbad \xe9\n\ngood again\n")
    assert read(path, row) == ([(1, {"text": "good"}), (5, {"text": "good again"})], [(3, "wrong_encoding")])
    (rejected,) = [item for item in read_rows(path, "shown", Layout(row)) if isinstance(item, Rejected)]
    assert "offset 10 " in rejected.detail
    assert rejected.values == "bad \\xe9"


def test_blank_text_holds_no_rows_by_paragraph_or_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", " \n\t\n")
    for row in ("paragraph", "line"):
        assert "holds no rows" in fault(path, row).what


def test_a_paragraph_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.data.text_rows.MAX_ITEM_BYTES", 1 << 20)
    error = fault(write(tmp_path / "a.txt", "head\n\n" + "a line of it\n" * 100_000), "paragraph")
    assert error.what == "a paragraph is longer than 1 MiB"
    assert error.where == "shown:3"
    assert "row: line" in error.hint


@pytest.mark.parametrize("row", ["paragraph", "line"])
def test_a_large_text_is_read_in_bounded_memory(tmp_path: Path, row: TextRow) -> None:
    path = write(tmp_path / "a.txt", "a line of some words\nand another\n\n" * 60_000)
    tracemalloc.start()
    number = sum(1 for _ in read_rows(path, "shown", Layout(row)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 60_000 * (1 if row == "paragraph" else 2)
    assert peak < 1 << 19, "the file has 2 MB"
