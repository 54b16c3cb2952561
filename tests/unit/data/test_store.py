"""The token store: what goes in comes out, memory-mapped, and torn files are noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.store import StoreWriter, TokenStore, TornStore
from tunesmith.records import Origin, Row, Text

TOKENS = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.booleans()), min_size=1, max_size=20)


def make_row(number: int, file: str = "a.jsonl", source: int = 0) -> Row:
    return Row(f"{number:016x}", Origin(file, number + 1), source, Text("x"))


def fill(folder: Path, documents: list[list[tuple[int, bool]]]) -> TokenStore:
    with StoreWriter(folder) as writer:
        for number, document in enumerate(documents):
            ids, trained = [item[0] for item in document], [item[1] for item in document]
            writer.add(make_row(number, file=f"{number % 3}.csv", source=number % 2), ids, trained)
    return TokenStore(folder)


@given(documents=st.lists(TOKENS, max_size=12))
def test_rows_come_out_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[tuple[int, bool]]]
) -> None:
    store = fill(tmp_path_factory.mktemp("store") / "s", documents)
    assert store.num_rows == len(documents)
    assert store.lengths.tolist() == [len(document) for document in documents]
    for number, document in enumerate(documents):
        ids, trained = store.row(number)
        assert (ids.dtype, trained.dtype) == (np.uint32, np.bool_)
        assert ids.tolist() == [item[0] for item in document]
        # The first token is never a target: nothing stands before it.
        assert trained.tolist() == [False, *(item[1] for item in document[1:])]
        assert store.origin(number) == Origin(f"{number % 3}.csv", number + 1)
        assert store.row_id(number) == f"{number:016x}"
        assert store.sources[number] == number % 2
        assert store.trained_lengths[number] == sum(item[1] for item in document[1:])
    assert store.num_tokens == sum(map(len, documents))
    assert store.num_trained == store.trained_lengths.sum()


def test_the_number_in_an_array_is_kept(tmp_path: Path) -> None:
    places = [Origin("a.json", 1, 1), Origin("a.json", 1, 2**31), Origin("b.jsonl", 2**40)]
    with StoreWriter(tmp_path / "s") as writer:
        for number, place in enumerate(places):
            writer.add(Row(f"{number:016x}", place, 0, Text("x")), [1, 2], [True, True])
    store = TokenStore(tmp_path / "s")
    assert [store.origin(index) for index in range(3)] == places
    assert str(store.origin(1)) == "a.json:1 (row 2147483648)"


def test_windows_carry_their_number_in_the_id(tmp_path: Path) -> None:
    row = make_row(255)
    with StoreWriter(tmp_path / "s") as writer:
        writer.add(row, [1, 2], [True, True], window=0)
        writer.add(row, [3, 4], [True, True], window=1)
        writer.add(Row(f"{2**63:016x}", row.origin, 0, row.record), [5, 6], [True, True])
    store = TokenStore(tmp_path / "s")
    assert [store.row_id(index) for index in range(3)] == [
        "00000000000000ff#0",
        "00000000000000ff#1",
        "8000000000000000",
    ]
    assert store.origin(1).line == 256


def test_rows_are_views_that_cannot_be_written(tmp_path: Path) -> None:
    store = fill(tmp_path / "s", [[(1, True), (2, True)]])
    ids, trained = store.row(0)
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 7
    with pytest.raises(ValueError, match="read-only"):
        trained[0] = True


@pytest.mark.parametrize("name", ["tokens.bin", "trained.bin", "rows.bin", "store.json"])
@pytest.mark.parametrize("how", ["missing", "short", "long"])
def test_a_torn_file_is_noticed(tmp_path: Path, name: str, how: str) -> None:
    fill(tmp_path / "s", [[(1, True), (2, True)], [(3, True)]])
    path = tmp_path / "s" / name
    payload = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(payload[:-4] if how == "short" else payload + b"{}..")
    with pytest.raises(TornStore):
        TokenStore(tmp_path / "s")


def test_a_row_table_of_other_rows_is_noticed(tmp_path: Path) -> None:
    fill(tmp_path / "a", [[(1, True), (2, True)], [(3, True)]])
    fill(tmp_path / "b", [[(1, True), (2, True)], [(3, True), (4, True)]])
    (tmp_path / "a" / "rows.bin").write_bytes((tmp_path / "b" / "rows.bin").read_bytes())
    with pytest.raises(TornStore, match="does not agree"):
        TokenStore(tmp_path / "a")


def test_ids_and_mask_of_different_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 ids beside 1"), StoreWriter(tmp_path / "s") as writer:
        writer.add(make_row(0), [1, 2], [True])
    assert not (tmp_path / "s" / "store.json").exists()
