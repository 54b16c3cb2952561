"""The ledger: its account, its threshold of faults, its sentences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.bad_row import REASONS
from tunesmith.data.faults import FaultExamples
from tunesmith.data.ledger import POLICY_REASONS, Ledger, Lengths, SourceCount, summarise
from tunesmith.errors import DataError
from tunesmith.records import Origin, Rejected


def make_ledger(rows_in: int, rejected: dict[str, int]) -> tuple[Ledger, FaultExamples]:
    ledger, examples = Ledger(rows_in=rows_in, rejected=rejected), FaultExamples()
    for line, reason in enumerate(rejected, 1):
        examples.add(Rejected(Origin("a.jsonl", line), reason, f"why {reason}"))
    return ledger, examples


def test_policy_reasons_are_reasons() -> None:
    assert set(REASONS) > POLICY_REASONS


def test_json_round_trip_keeps_everything() -> None:
    source = SourceCount("train", "a.csv", {"alpaca": 2}, rows_in=7, trained=3, held_out=2, rejected=2)
    ledger = Ledger(
        7, 3, 2, {"overlong": 1, "broken_json": 1}, 90, 40, 1, 1, 5, ["said"], [source], Lengths(1, 2, 3, 4)
    )
    plain = json.loads(json.dumps(ledger.to_json()))
    assert Ledger.from_json(plain) == ledger
    assert plain["share_trained"] == pytest.approx(40 / 90)
    assert ledger.balanced
    ledger.held_out += 1
    assert not ledger.balanced


def test_rejections_are_listed_most_frequent_first() -> None:
    ledger = Ledger(rejected={"broken_json": 1, "no_answer": 5, "empty_answer": 1})
    assert list(ledger.to_json()["rejected"]) == ["no_answer", "broken_json", "empty_answer"]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_lengths_are_lengths_that_occur(lengths: list[int]) -> None:
    ordered = sorted(lengths)
    result = summarise(np.array(lengths, dtype=np.int64))
    # Nearest rank: the ceil(p n)-th smallest.
    assert result.median == ordered[-(-len(ordered) // 2) - 1]
    assert result.p95 == ordered[-(-len(ordered) * 95 // 100) - 1]
    assert (result.min, result.max) == (ordered[0], ordered[-1])


def test_lengths_of_no_rows() -> None:
    assert summarise(np.empty(0, dtype=np.int64)) == Lengths(0, 0, 0, 0)


@pytest.mark.parametrize(
    ("rows_in", "faults", "share", "fine"),
    [
        (100, 1, 0.01, True),
        (100, 2, 0.01, False),
        (99, 1, 0.01, False),
        (100, 29, 0.29, True),
        (100, 30, 0.29, False),
        (10, 0, 0.0, True),
        (10, 1, 0.0, False),
        (10, 9, 1.0, True),
    ],
)
def test_the_border_of_tolerated_faults_is_exact(rows_in: int, faults: int, share: float, fine: bool) -> None:
    ledger, examples = make_ledger(rows_in, {"broken_json": faults} if faults else {})
    if fine:
        examples.check(ledger, share, Path("r.jsonl"))
    else:
        with pytest.raises(DataError, match=f"{faults} of {rows_in} rows are faulty"):
            examples.check(ledger, share, Path("r.jsonl"))


def test_rows_left_out_by_policy_are_no_faults() -> None:
    ledger, examples = make_ledger(
        100, {"overlong": 40, "duplicate_of_test": 30, "duplicate_of_validation": 20, "no_answer": 1}
    )
    examples.check(ledger, 0.01, Path("r.jsonl"))
    assert ledger.faults == 1


def test_the_refusal_shows_the_three_most_frequent_reasons_with_an_example() -> None:
    ledger, examples = make_ledger(
        100, {"role_order": 1, "broken_json": 4, "overlong": 50, "no_answer": 2, "empty_text": 3}
    )
    with pytest.raises(DataError) as caught:
        examples.check(ledger, 0.01, Path("r.jsonl"))
    lines = caught.value.what.splitlines()
    assert lines[0] == "10 of 100 rows are faulty (10 %), more than the 1 % of data.max_rejected:"
    assert lines[1:] == [
        "  broken_json, 4 rows: a.jsonl:2: why broken_json",
        "  empty_text, 3 rows: a.jsonl:5: why empty_text",
        "  no_answer, 2 rows: a.jsonl:4: why no_answer",
    ]
    assert caught.value.where == "a.jsonl:2"
    assert "r.jsonl" in caught.value.hint
    assert "data.max_rejected" in caught.value.hint


def test_all_rows_rejected_is_refused_whatever_the_threshold() -> None:
    ledger, examples = make_ledger(3, {"duplicate_of_test": 2, "no_answer": 1})
    with pytest.raises(DataError, match="all 3 rows were rejected"):
        examples.check(ledger, 1.0, Path("r.jsonl"))
