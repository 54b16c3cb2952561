"""Weights of rows: read from the column that is named, told, stored, and counted in the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.loops import MemoryStore
from tests.tiny import documents
from tests.unit.data.test_prepare import Bench, chat, rejects
from tunesmith.data.bad_row import BadRow
from tunesmith.data.formats import detect
from tunesmith.data.loader import PackedStream, StreamOptions, make_batch
from tunesmith.data.row_weights import WeightTally, row_weight
from tunesmith.errors import DataError
from tunesmith.records import Origin, RawRow


@pytest.mark.parametrize(
    ("value", "weight"), [(1, 1.0), (0, 0.0), (0.25, 0.25), ("2.5", 2.5), (" 3 ", 3.0), (10**6, 1e6), ("1e-3", 1e-3)]
)
def test_numbers_and_their_text_are_weights(value: Any, weight: float) -> None:
    assert row_weight({"w": value, "text": "a"}, {"weight": "w"}) == weight


@pytest.mark.parametrize(
    "value", [-1, -1e-9, math.nan, math.inf, -math.inf, 10**7, 10**400, None, "", "much", "nan", True, [1], {"a": 1}]
)
def test_what_is_no_weight_is_a_fault_that_shows_it(value: Any) -> None:
    with pytest.raises(BadRow) as caught:
        row_weight({"w": value}, {"weight": "w"})
    assert caught.value.reason == "wrong_weight"
    assert repr(value)[:20] in caught.value.detail
    assert "0 to 1,000,000" in caught.value.detail


def test_a_column_is_a_weight_only_where_it_is_named() -> None:
    assert row_weight({"weight": -5}, {}) == 1.0
    with pytest.raises(BadRow, match="missing_column: no column `w`; the columns are: weight"):
        row_weight({"weight": 1}, {"weight": "w"})


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"text": "a", "w": 1}, "text"),
        ({"text": "a", "label": "b", "w": 1}, "labelled"),
        ({"prompt": "a", "completion": "b", "w": 1}, "prompt-completion"),
        ({"messages": [{"role": "user", "content": "a"}], "w": 1}, "messages"),
        ({"instruction": "a", "output": "b", "w": 1}, "alpaca"),
    ],
)
def test_the_format_is_told_by_the_other_columns(values: dict[str, Any], name: str) -> None:
    first = [RawRow(Origin("f.jsonl", 1), values)]
    assert detect(first, "f.jsonl", {"weight": "w"}) == name


def test_every_format_with_named_columns_may_name_a_weight() -> None:
    first = [RawRow(Origin("f.jsonl", 1), {"q": "a", "a": "b", "w": 1})]
    assert detect(first, "f.jsonl", {"prompt": "q", "completion": "a", "weight": "w"}) == "prompt-completion"


# --- prepared -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def source(**columns: str) -> dict[str, Any]:
    return {"path": "train.jsonl", "columns": columns}


def test_weights_are_stored_told_and_bad_ones_rejected(bench: Bench) -> None:
    rows = [chat(f"question {number}", w=weight) for number, weight in enumerate([1, 0, 2.5, "0.5", -1, None, "x"])]
    bench.jsonl("train.jsonl", rows)
    prepared = bench.prepare(train=[source(weight="w")], max_rejected=1.0)
    assert prepared.train.weights.tolist() == [1.0, 0.0, 2.5, 0.5]
    assert prepared.ledger.rejected == {"wrong_weight": 3}
    assert [item["line"] for item in rejects(prepared)] == [5, 6, 7]
    (said,) = [note for note in prepared.ledger.notes if "columns.weight" in note]
    assert said.startswith("training rows weigh 0 to 2.5 in the loss, 1 on average (columns.weight); 1 of them weigh 0")


def test_no_word_and_ones_where_no_column_is_named(bench: Bench) -> None:
    bench.jsonl("train.jsonl", [chat("question one", weight=7), chat("question two", weight=-7)])
    prepared = bench.prepare(train=[source(prompt="prompt", completion="completion")])
    assert prepared.train.weights.tolist() == [1.0, 1.0]
    assert not any("weigh" in note for note in prepared.ledger.notes)


def test_every_window_of_a_cut_document_weighs_what_the_document_does(bench: Bench) -> None:
    bench.jsonl("train.jsonl", [{"text": "word " * 10, "w": 3}, {"text": "one word more", "w": 1}])
    prepared = bench.prepare(context=6, train=[source(weight="w")])
    assert prepared.train.weights.tolist() == [3.0, 3.0, 1.0]


def test_a_missing_column_is_refused_with_the_nearest(bench: Bench) -> None:
    bench.jsonl("train.jsonl", [chat("question one", weights=1)])
    with pytest.raises(DataError) as caught:
        bench.prepare(train=[source(weight="weight")])
    assert "no column `weight`" in caught.value.what
    assert "did you mean `weights`?" in caught.value.hint
    assert caught.value.where == "train.jsonl:1"


def test_rows_that_all_weigh_nothing_are_refused(bench: Bench) -> None:
    bench.jsonl("train.jsonl", [chat(f"question {number}", w=0) for number in range(3)])
    with pytest.raises(DataError, match="all 3 training rows weigh 0"):
        bench.prepare(train=[source(weight="w")])


def test_equal_weights_other_than_one_are_told() -> None:
    tally = WeightTally()
    tally.add(2.0)
    tally.add(2.0)
    assert tally.notes() == [
        "training rows weigh 2 to 2 in the loss, 2 on average (columns.weight); validation and test are not weighted"
    ]


# --- batches ------------------------------------------------------------------------------------------------------


def test_a_documents_weight_stands_at_each_of_its_targets() -> None:
    made = make_batch(documents([3, 5, 2]), range(3), weights=[2.0, 0.0, 0.5])
    assert made.weights_S.tolist() == [2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.5]
    assert make_batch(documents([3, 5, 2]), range(3)).weights_S.tolist() == [1.0] * 7


@pytest.mark.parametrize("cut", [{"atom_tokens": 4096}, {"atom_tokens": 16}, {"micro_batch_size": 1}], ids=str)
def test_the_stream_gives_each_row_its_weight_however_it_is_cut(cut: dict[str, int]) -> None:
    store = MemoryStore([5, 9, 12, 3, 7, 8])
    store.weights = np.arange(6, dtype=np.float32)
    options: Callable[..., StreamOptions] = StreamOptions
    stream = PackedStream(store, options(**{"batch_size": 4, "total_steps": 3, "atom_tokens": 64, "seed": 1, **cut}))  # type: ignore[arg-type]
    seen = set()
    for step in stream:
        for made in step:
            for place, weight in zip(made.document_S.tolist(), made.weights_S.tolist(), strict=True):
                assert weight == made.rows[place]
                seen.add(made.rows[place])
    assert seen == set(range(6))
