"""Every reader yields each row once, with its line, and says what it cannot read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.bad_row import REASONS
from tunesmith.data.sources import expand, read_rows
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSection
from tunesmith.records import RawRow, Rejected

ROWS = [{"text": "first"}, {"text": "zweite Ü\n2"}, {"text": "третья 🙂"}]


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


def jsonl(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


# --- all kinds of files ------------------------------------------------------------------------------------------


def contents() -> dict[str, bytes]:
    sheet = io.StringIO(newline="")
    csv.writer(sheet).writerows([["text"], *([row["text"]] for row in ROWS)])
    table = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), table)
    return {
        "a.jsonl": jsonl(ROWS),
        "a.ndjson": jsonl(ROWS),
        "a.json": json.dumps(ROWS, indent=1).encode(),
        "escaped.json": json.dumps(ROWS).encode(),
        "wrapped.json": json.dumps({"version": 1, "data": ROWS, "n": {"a": [3]}}).encode(),
        "lines.json": jsonl(ROWS),
        "a.csv": sheet.getvalue().encode(),
        "a.tsv": sheet.getvalue().encode(),
        "a.parquet": table.getvalue().to_pybytes(),
    }


@pytest.mark.parametrize(
    ("name", "packing"),
    [(name, packing) for name in contents() for packing in ("", ".gz", ".zst") if not packing or name != "a.parquet"],
)
def test_every_kind_and_packing_gives_the_same_rows(tmp_path: Path, name: str, packing: str) -> None:
    content = contents()[name]
    shaped = {"": content, ".gz": gzip.compress(content), ".zst": zst(content)}[packing]
    rows, rejects = read(write(tmp_path / (name + packing), shaped))
    assert [values for _, values in rows] == ROWS
    assert not rejects


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "lines.json", "wrapped.json", "a.csv", "a.tsv"])
def test_a_byte_order_mark_is_left_out(tmp_path: Path, name: str) -> None:
    rows, rejects = read(write(tmp_path / name, b"\xef\xbb\xbf" + contents()[name]))
    assert [values for _, values in rows] == ROWS
    assert not rejects


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_utf16_is_named(tmp_path: Path, name: str) -> None:
    assert "UTF-16" in fault(write(tmp_path / name, '[{"text": "a"}]\n'.encode("utf-16"))).what


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "b.json", "c.json"])
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_a_file_without_rows_is_named(tmp_path: Path, name: str, packing: str) -> None:
    content = {"a.csv": b"text,label\n", "b.json": b"[]", "c.json": b'{"data": []}', "a.txt": b""}.get(name, b"\n \n")
    shaped = {"": content, ".gz": gzip.compress(content), ".zst": zst(content)}[packing]
    assert "no rows" in fault(write(tmp_path / (name + packing), shaped)).what


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_torn_packed_file_is_named(tmp_path: Path, packing: str) -> None:
    content = b"".join(b'{"text": "%d"}\n' % (number * number) for number in range(20_000))
    whole = gzip.compress(content) if packing == ".gz" else zst(content)
    assert "cannot be read" in fault(write(tmp_path / f"a.jsonl{packing}", whole[: len(whole) // 2])).what


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_is_not_what_its_suffix_says_is_named(tmp_path: Path, name: str) -> None:
    assert "cannot be read" in fault(write(tmp_path / name, b'{"text": "a"}\n' * 50)).what


# --- jsonl ------------------------------------------------------------------------------------------------------


def test_jsonl_rejects_faulty_lines_and_goes_on(tmp_path: Path) -> None:
    lines = [
        b'{"text": "a"}',
        b"",
        b'{"text": "b"',
        b"[1]",
        b"7",
        b"null",
        b'{"text": "caf\xe9"}',
        b'{"text": NaN}',
        b'{"text": "\\ud83d"}',
        b'{"text": "\\ud83d\\ude42"}\r',
        b"[" * 100_000,
        b'{"text": "last"}',
    ]
    rows, rejects = read(write(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert rows == [(1, {"text": "a"}), (10, {"text": "🙂"}), (12, {"text": "last"})]
    assert rejects == [
        (3, "broken_json"),
        (4, "wrong_type"),
        (5, "wrong_type"),
        (6, "wrong_type"),
        (7, "wrong_encoding"),
        (8, "broken_json"),
        (9, "wrong_encoding"),
        (11, "broken_json"),
    ]


def test_jsonl_names_jsons_own_message_and_the_byte(tmp_path: Path) -> None:
    items = list(read_rows(write(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": }\n{"a": "\xff"}\n'), "shown"))
    broken, encoding = items[1], items[2]
    assert isinstance(broken, Rejected)
    assert isinstance(encoding, Rejected)
    assert broken.detail.startswith("Expecting value")
    assert broken.values == '{"a": }'
    # 9 bytes of line 1, 8 of line 2, then {"a": " is 7 bytes long.
    assert "offset 24 " in encoding.detail
    assert "0xff" in encoding.detail


def test_jsonl_keeps_line_separators_within_text(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path / "a.jsonl", '{"text": "one\u2028two\u0085three"}\n{"text": "b"}\n'))
    assert rows == [(1, {"text": "one\u2028two\u0085three"}), (2, {"text": "b"})]


# --- json -------------------------------------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    rows=st.lists(
        st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), JSON_VALUES, max_size=4),
        min_size=1,
        max_size=6,
    ),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
)
def test_an_array_is_the_same_in_chunks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict], chunk: int, indent: int | None, ascii_only: bool
) -> None:
    monkeypatch.setattr("tunesmith.data.json_rows._CHUNK_BYTES", chunk)
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    found, rejects = read(write(tmp_path / "a.json", text))
    assert [values for _, values in found] == rows
    assert not rejects
    wrapped = json.dumps({"a": 1.5, "rows": rows, "z": {"b": [1]}}, indent=indent, ensure_ascii=ascii_only)
    assert [values for _, values in read(write(tmp_path / "b.json", wrapped))[0]] == rows


@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_an_array_knows_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("tunesmith.data.json_rows._CHUNK_BYTES", chunk)
    text = '\n[\n  {"a":\n   1},\n\n  3, {"a": "\\ud800"},\n {"a": 2}\n]\n'
    rows, rejects = read(write(tmp_path / "a.json", text))
    assert rows == [(3, {"a": 1}), (7, {"a": 2})]
    assert rejects == [(6, "wrong_type"), (6, "wrong_encoding")]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ('[\n{"a": 1},\n{"a": 1,,}\n]', "3 (row 2)", "Expecting property name"),
        ('[\n{"a": 1}\n{"a": 2}\n]', "3 (row 1)", "Expecting , or ]"),
        ('[\n{"a": 1},\n{"a": "x', "3 (row 2)", "cut off"),
        ('[\n{"a": 1},\n', "3 (row 2)", "cut off"),
        ('[\n{"a": 1}\n', "3 (row 1)", "cut off"),
        ('[{"a": 1}, {"a": 2}, {"a" 3}, {"a": 4}]', "1 (row 3)", "Expecting ':'"),
        ('{"version": 1, "data": [{"a": 1}, {"a" 2}]}', "1 (row 2)", "Expecting ':'"),
        ('[{"a": 1}]\n[2]', "2", "more text"),
        ('[\n{"a": NaN}]', "2 (row 1)", "NaN"),
        ('{"a": [{"b": 1}],\n"c": [{"b": 1}]}', "2", "two lists"),
        ('{"a": 1,\n}', "2", "found '}'"),
        ('"text"', "1", "starts with"),
        ("\n\nhello", "3", "starts with"),
        ("[" * 100_000, "1 (row 1)", "nested"),
    ],
)
@pytest.mark.parametrize("chunk", [1 << 16, 3])
def test_a_broken_array_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, place: str, message: str, chunk: int
) -> None:
    if len(text) < 1000:
        monkeypatch.setattr("tunesmith.data.json_rows._CHUNK_BYTES", chunk)
    error = fault(write(tmp_path / "a.json", text))
    assert message in error.what
    assert error.where == f"shown:{place}"


@pytest.mark.parametrize("wrapped", ["{}", '{{"version": 2, "data": {}}}'])
def test_elements_of_an_array_carry_their_number(tmp_path: Path, wrapped: str) -> None:
    text = wrapped.format('[{"a": 1}, 3, {"a": "\\ud800"},\n{"a": 2}]')
    items = list(read_rows(write(tmp_path / "a.json", text), "a.json"))
    assert [str(item.origin) for item in items] == [
        "a.json:1 (row 1)",
        "a.json:1 (row 2)",
        "a.json:1 (row 3)",
        "a.json:2 (row 4)",
    ]
    assert [isinstance(item, Rejected) for item in items] == [False, True, True, False]


@pytest.mark.parametrize("text", ['{"a": 1}\n{"a": 2}\n', '{"a": 1}'])
def test_rows_that_are_no_elements_have_no_number(tmp_path: Path, text: str) -> None:
    items = list(read_rows(write(tmp_path / "a.json", text), "a.json"))
    assert [str(item.origin) for item in items] == ["a.json:1", "a.json:2"][: len(items)]


def test_a_byte_of_an_array_that_is_not_utf8_is_refused_with_its_place(tmp_path: Path) -> None:
    error = fault(write(tmp_path / "a.json", b'[{"a": 1},\n{"a": "\xe9"}]'))
    assert "offset 18 " in error.what
    assert error.where == "shown:2"


def test_one_object_is_one_row_and_its_own_lists_are_not_rows(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}], "tools": []}
    for text in (json.dumps(row), json.dumps(row, indent=2)):
        assert read(write(tmp_path / "a.json", text))[0] == [(1, row)]
    assert read(write(tmp_path / "b.json", json.dumps({"data": [row]}, indent=2)))[0] == [(3, row)]


def test_json_lines_in_a_json_file_reject_line_by_line(tmp_path: Path) -> None:
    rows, rejects = read(write(tmp_path / "a.json", '\n{"a": [{"b": 1}]}\n{"a":\n{"a": 3}\n'))
    assert rows == [(2, {"a": [{"b": 1}]}), (4, {"a": 3})]
    assert rejects == [(3, "broken_json")]


def test_a_large_array_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("w") as stream:
        stream.write('{"data": [')
        for number in range(8_000):
            stream.write(("," if number else "") + json.dumps({"text": f"{number:06}" * 100}, indent=1))
        stream.write("]}")
    assert path.stat().st_size > 4_900_000
    tracemalloc.start()
    count = sum(1 for _ in read_rows(path, "shown"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 8_000
    assert peak < 1_000_000


# --- expand -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b.jsonl",
        "a.jsonl",
        "sub/c.csv",
        "sub/deep/d.jsonl.gz",
        "notes.md",
        "e.xml",
        "f.zip",
        "g.tar.gz",
        ".hidden.jsonl",
        ".git/x.json",
    ):
        write(tmp_path / name, "x")
    write(tmp_path / "empty.json", "")
    write(tmp_path / "odd[1].txt", "x")
    (tmp_path / "nothing").mkdir()
    for name in ("a.xml", "b.xml", "deep/c.XML", "README", ".hidden.md"):
        write(tmp_path.parent / f"{tmp_path.name}-other" / name, "x")
    return tmp_path


def names(path: str | list[str], folder: Path) -> list[str]:
    return [found.relative_to(folder).as_posix() for found in expand(SourceSection(path=path), folder)]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.jsonl", ["a.jsonl"]),
        (["b.jsonl", "a.jsonl"], ["b.jsonl", "a.jsonl"]),
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        (["b.jsonl", "*.jsonl"], ["b.jsonl", "a.jsonl"]),
        ("**/*.jsonl*", ["a.jsonl", "b.jsonl", "sub/deep/d.jsonl.gz"]),
        ("sub", ["sub/c.csv", "sub/deep/d.jsonl.gz"]),
        ("sub/../a.jsonl", ["sub/../a.jsonl"]),
        ("odd[1].txt", ["odd[1].txt"]),
    ],
)
def test_expand_finds_files_folders_and_globs(folder: Path, path: str | list[str], expected: list[str]) -> None:
    assert names(path, folder) == expected


def test_expand_takes_absolute_paths_and_folders_with_odd_names(folder: Path) -> None:
    odd = folder / "folder [x]"
    write(odd / "a.jsonl", "x")
    assert expand(SourceSection(path=str(folder / "*.jsonl")), Path("elsewhere")) == [
        folder / "a.jsonl",
        folder / "b.jsonl",
    ]
    assert expand(SourceSection(path="*.jsonl"), odd) == [odd / "a.jsonl"]


@pytest.mark.parametrize(
    ("path", "what", "hint"),
    [
        ("a.jsnl", "no such file", "`a.jsonl`"),
        ("sub/e.csv", "no such file", "`c.csv`"),
        ("subb/c.csv", "no such file", "`sub`"),
        ("zzz.jsonl", "no such file", "b.jsonl"),
        ("*.csv", "matches no file", "a.jsonl"),
        ("nothing", "no file of a known kind", "nothing in"),
        ("empty.json", "empty", "remove"),
        ("notes.md", "'.md'", ".parquet"),
        ("*.md", "'.md'", ".parquet"),
        ("e.xml", "XML is not supported", ".jsonl"),
        ("f.zip", "an archive is not read", "unpack it"),
        ("*.tar.gz", "an archive is not read", "unpack it"),
        ([], "no file", "glob"),
        ("", "empty", "glob"),
    ],
)
def test_expand_says_what_is_wrong_and_what_there_is(folder: Path, path: str | list[str], what: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        expand(SourceSection(path=path), folder)
    assert what in caught.value.what
    assert hint in caught.value.hint
    assert caught.value.where


def test_a_folder_without_known_files_says_what_it_holds(folder: Path) -> None:
    with pytest.raises(DataError, match="no file of a known kind") as caught:
        expand(SourceSection(path=f"../{folder.name}-other"), folder)
    assert "it holds files with .xml (3), no suffix (1); known:" in caught.value.hint


def test_a_packed_parquet_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet.gz", "x")
    with pytest.raises(DataError, match="not packed again"):
        expand(SourceSection(path="a.parquet.gz"), tmp_path)


def test_a_missing_file_is_named_when_it_is_read(tmp_path: Path) -> None:
    write(tmp_path / "data.jsonl", "x")
    assert "`data.jsonl`" in fault(tmp_path / "dat.jsonl").hint


TWICE = '{"text": "a", "label": "b", "text": "c"}'
NESTED = '{"messages": [{"role": "user", "content": "a", "content": "b"}]}'


@pytest.mark.parametrize(("broken", "key"), [(TWICE, "text"), (NESTED, "content"), ('{"a": 1, "a": 1}', "a")])
@pytest.mark.parametrize("kind", ["jsonl", "lines.json", "array.json", "wrapped.json"])
def test_a_key_twice_is_a_bad_row_and_the_others_are_read(tmp_path: Path, kind: str, broken: str, key: str) -> None:
    good = ['{"text": "x"}', '{"text": "y"}']
    lines = [broken, good[0], broken, good[1]]
    array = "[" + ",\n".join(lines) + "]"
    contents = {"array.json": array, "wrapped.json": f'{{"data": {array}}}'}
    items = list(read_rows(write(tmp_path / f"rows.{kind}", contents.get(kind, "\n".join(lines))), "shown"))
    assert [dict(item.values) for item in items if isinstance(item, RawRow)] == [{"text": "x"}, {"text": "y"}]
    rejects = [item for item in items if isinstance(item, Rejected)]
    assert [item.reason for item in rejects] == ["broken_json", "broken_json"]
    assert all(item.detail == f"the key `{key}` stands twice in one object" for item in rejects)


def test_a_key_twice_in_a_long_row_of_an_array_is_found_across_chunks(tmp_path: Path) -> None:
    long = json.dumps({"text": "word " * 40_000})[:-1] + ', "text": "b"}'
    rows, rejects = read(write(tmp_path / "a.json", f'[{long}, {{"text": "x"}}, {long}]'))
    assert [values for _, values in rows] == [{"text": "x"}]
    assert [reason for _, reason in rejects] == ["broken_json", "broken_json"]


@pytest.mark.parametrize("content", [TWICE, TWICE + "\n"])
def test_a_key_twice_in_the_one_row_of_a_file(tmp_path: Path, content: str) -> None:
    assert read(write(tmp_path / "a.json", content)) == ([], [(1, "broken_json")])
