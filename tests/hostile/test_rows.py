"""jsonl, json, csv, tsv, text and parquet of strangers: every row is a row or a reject, or the file is an error."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.hostile.bounds import GENTLE, answer
from tests.hostile.test_model_files import JSON
from tunesmith.data.bad_row import BadRow
from tunesmith.data.formats import FORMATS
from tunesmith.data.message_rows import MOST_TURNS
from tunesmith.data.rejects import RejectFile
from tunesmith.data.row_codec import rejected_to_json, to_line
from tunesmith.data.sources import READERS, read_rows
from tunesmith.data.streams import MOST_COLUMNS
from tunesmith.errors import DataError, TunesmithError
from tunesmith.json_values import MOST_DEPTH, loads
from tunesmith.recipe.data import SourceSection
from tunesmith.records import Origin, RawRow, Rejected

TEXTS = [suffix for suffix in READERS if suffix != ".parquet"]
GOOD = {
    ".jsonl": b'{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n',
    ".json": b'{"data": [{"prompt": "a", "completion": "b"}, {"prompt": "\\ud83d\\ude00"}], "n": [1]}',
    ".csv": b'prompt,completion\n"a ""quoted"", b",c\n"two\nlines",d\n',
    ".tsv": b"prompt\tcompletion\na\tb\n",
    ".txt": "Some text.\n\nMore of it: é, 日本.\n".encode(),
    ".ndjson": b'{"text": "x"}\n',
}


def rows_of(path: Path) -> list[RawRow | Rejected] | TunesmithError:
    """All rows of a file, each written as a line must be."""

    def read() -> list[RawRow | Rejected]:
        rows = list(read_rows(path, path.name))
        for row in rows:
            assert isinstance(row, RawRow | Rejected)
            to_line(rejected_to_json(row) if isinstance(row, Rejected) else row.values)
        return rows

    found: list[RawRow | Rejected] | TunesmithError = answer(read)
    if isinstance(found, TunesmithError):
        assert isinstance(found, DataError)
        assert found.where
        assert found.hint
    return found


@GENTLE
@given(payload=st.binary(max_size=200), suffix=st.sampled_from(TEXTS))
@example(payload=b"\x00" * 100, suffix=".csv")
@example(payload=b"\xff\xfe[\x00]\x00", suffix=".json")
@example(payload=b"\xef\xbb\xbf", suffix=".jsonl")
@example(payload=b'[{"a": 1}', suffix=".json")
@example(payload=b'{"a": ' + b"1" * 10_000 + b"}", suffix=".json")
@example(payload=b'"', suffix=".csv")
def test_any_bytes(tmp_path: Path, payload: bytes, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(payload)
    rows_of(path)


@GENTLE
@given(data=st.data(), suffix=st.sampled_from(sorted(GOOD)))
def test_good_files_with_bytes_changed_lost_or_doubled(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    payload = bytearray(GOOD[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(payload) - 1)))
        kind = data.draw(st.sampled_from(["change", "cut", "drop", "double"]))
        if kind == "change" and payload:
            payload[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del payload[at:]
        elif kind == "drop":
            del payload[at : at + 3]
        else:
            payload[at:at] = payload[at : at + 9]
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(payload)
    rows_of(path)


@GENTLE
@given(values=st.dictionaries(st.sampled_from(["messages", "tools", "prompt", "completion", "text", "label", "history", "conversations", "instruction", "output", "system", "input"]), JSON | st.lists(st.dictionaries(st.sampled_from(["role", "content", "from", "value", "tool_calls", "train", "weight", "type", "text"]), JSON | st.sampled_from(["user", "assistant", "system", "gpt", "human", "tool"]), max_size=4), max_size=4)), name=st.sampled_from(sorted(FORMATS)))  # fmt: skip
def test_any_row_in_any_format(values: dict[str, Any], name: str) -> None:
    def make() -> Any:
        try:
            return FORMATS[name](RawRow(Origin("rows.jsonl", 1), values), SourceSection(path="rows.jsonl"))
        except BadRow as fault:
            return fault

    made = answer(make)
    assert not isinstance(made, BadRow) or len(made.detail) < 500


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("depth", [MOST_DEPTH + 1, 900, 1_000_000])
def test_deep_nesting_is_a_fault_of_the_row_or_the_file(
    tmp_path: Path, opening: bytes, suffix: str, depth: int
) -> None:
    closing = b"]" if opening == b"[" else b"}"
    deep = opening * depth + (b"1" if opening != b"[" else b"") + closing * depth
    path = tmp_path / f"rows{suffix}"
    path.write_bytes((b'{"text": ' + deep + b"}\n") if suffix == ".jsonl" else b'[{"text": ' + deep + b"}]")
    found = rows_of(path)
    if isinstance(found, list):
        (row,) = found
        assert isinstance(row, Rejected)
        assert "too deeply" in row.detail
    else:
        assert "too deeply" in found.what


def test_json_text_within_a_row_nests_no_deeper_either() -> None:
    for name, column in (
        ("messages", "messages"),
        ("messages", "tools"),
        ("sharegpt", "conversations"),
        ("alpaca", "history"),
    ):
        values = {"messages": [], "conversations": [], "instruction": "x", "output": "y", column: "[" * 900 + "]" * 900}
        with pytest.raises(BadRow):
            FORMATS[name](RawRow(Origin("r", 1), values), SourceSection(path="r"))
    with pytest.raises(ValueError, match="too deeply"):
        loads("[" * 101 + "]" * 101)
    assert loads("[" * 100 + "]" * 100) is not None


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_table_of_very_many_columns(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    between = "," if suffix == ".csv" else "\t"
    path.write_text(between.join(f"c{number}" for number in range(MOST_COLUMNS + 1)) + "\n1\n", encoding="utf-8")
    found = rows_of(path)
    assert isinstance(found, DataError)
    assert f"{MOST_COLUMNS:,}" in found.what


def test_faults_do_not_repeat_a_long_header(tmp_path: Path) -> None:
    """10,000 columns of a long name and a million short rows would fill a disk with words about what they lack."""
    path = tmp_path / "rows.csv"
    header = ",".join(f"column_{number}_{'x' * 90}" for number in range(9_000))
    path.write_text(header + "\n" + "1\n" * 50, encoding="utf-8")
    found = rows_of(path)
    assert isinstance(found, list)
    assert all(isinstance(row, Rejected) and len(row.detail) < 500 for row in found)


def test_words_about_a_row_are_short(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"a": 1}]) + "x" * 10_000, encoding="utf-8")
    found = rows_of(path)
    assert isinstance(found, DataError)
    assert len(found.what) < 1_000
    with pytest.raises(BadRow) as caught:
        FORMATS["messages"](
            RawRow(Origin("r", 1), {"messages": [{"role": "x" * 100_000, "content": ""}]}), SourceSection(path="r")
        )
    assert len(caught.value.detail) < 500


def test_a_conversation_of_very_many_turns() -> None:
    turns = [{"role": "assistant" if turn % 2 else "user", "content": "x"} for turn in range(MOST_TURNS + 2)]
    with pytest.raises(BadRow, match="at most 1,000"):
        FORMATS["messages"](RawRow(Origin("r", 1), {"messages": turns}), SourceSection(path="r"))


def test_rejected_rows_fill_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.data.rejects.ROOM_BYTES", 1_000)
    stream = io.BytesIO()
    rejects = RejectFile(stream)
    for line in range(100):
        rejects.write(Rejected(Origin("rows.csv", line), "wrong_type", "why", {"column" * 50: "x"}))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == 100
    assert [line["line"] for line in lines] == list(range(100))
    assert 0 < sum(line["row"] is not None for line in lines) < 5
    assert len(stream.getvalue()) < 1_000 + 100 * 200
    assert len(rejects.notes()) == 1


PARQUET = io.BytesIO()
pq.write_table(
    pa.table(
        {
            "text": ["alpha", "beta", None],
            "n": [1, 2, 3],
            "tags": [["a"], [], None],
            "when": pa.array([0, 1, 2], pa.timestamp("us")),
        }
    ),
    PARQUET,
)


@settings(GENTLE, max_examples=150)
@given(data=st.data())
def test_parquet_with_bytes_changed_or_lost(tmp_path: Path, data: st.DataObject) -> None:
    payload = bytearray(PARQUET.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(payload) - 1))
        if data.draw(st.booleans()):
            payload[at] ^= data.draw(st.integers(1, 255))
        else:
            del payload[at : at + data.draw(st.integers(1, 40))]
    path = tmp_path / "rows.parquet"
    path.write_bytes(payload)
    rows_of(path)


@pytest.mark.parametrize(
    "array",
    [
        pa.array([2**60], pa.timestamp("us")), pa.array([2**62], pa.duration("ms")), pa.array([2**30], pa.date32()),
        pa.array([1], pa.timestamp("s", tz="Nowhere/Bad")), pa.array([1], pa.timestamp("ns")), pa.array([b"\xff"], pa.binary()),
        pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(bytes([0, 0, 0, 0, 2, 0, 0, 0])), pa.py_buffer(b"\xff\xfe")]),
    ],
    ids=["far time", "far duration", "far day", "no such zone", "nanoseconds", "binary", "not UTF-8"],
)  # fmt: skip
def test_values_that_python_cannot_hold_are_faults(tmp_path: Path, array: pa.Array) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": array}), path)
    found = rows_of(path)
    assert isinstance(found, DataError) or len(found) == 1


def test_one_bad_value_does_not_take_the_batch_with_it(tmp_path: Path) -> None:
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 2, 4, 6))
    texts = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(b"ok\xff\xfeok")])
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": texts}), path)
    found = rows_of(path)
    assert isinstance(found, list)
    assert [isinstance(row, Rejected) for row in found] == [False, True, False]
    assert [row.origin.line for row in found] == [1, 2, 3]


def test_the_csv_module_is_asked_for_strictness() -> None:
    """A NUL or a stray quote is a fault, not a silently joined field."""
    with pytest.raises(csv.Error):
        list(csv.reader(['a,"b"c\n'], strict=True))
