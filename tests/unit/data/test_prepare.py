"""Preparing data: every row accounted for, splits, duplicates, overlong rows, refusals, and the cache."""

from __future__ import annotations

import csv
import errno
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith import files
from tunesmith.data import builder as builder_module
from tunesmith.data import length_bound
from tunesmith.data import overlong as overlong_policy
from tunesmith.data import prepare as prepare_module
from tunesmith.data.bad_row import BadRow
from tunesmith.data.cache_key import cache_root
from tunesmith.data.prepare import load_cached, prepare
from tunesmith.data.prepared import Prepared
from tunesmith.data.splitting import input_key
from tunesmith.data.store import TokenStore
from tunesmith.data.token_roles import TOKEN_ROLES
from tunesmith.errors import DataError
from tunesmith.recipe.codec import parse
from tunesmith.recipe.objectives import ClmSection
from tunesmith.recipe.root import Recipe
from tunesmith.records import Labelled, Record, Text


@dataclass(frozen=True)
class Examined:
    ids: list[int]
    trained: list[bool]
    roles: bytes
    warnings: list[str]


class WordTokenizer:
    """One token a word."""

    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]


class WordRenderer:
    """One token a word: its length. The answer is trained, of a document every word. `BOOM` fails, `MUTE` trains nothing."""

    def __init__(self, mark: str = "words") -> None:
        self.mark = mark
        self.calls = 0
        self.tokenizer = WordTokenizer()

    def examine(self, record: Record) -> Examined:
        self.calls += 1
        if isinstance(record, Text):
            question, answer = "", record.text
        elif isinstance(record, Labelled):
            question, answer = record.text, record.label
        else:
            question = " ".join(message.content for message in record.messages[:-1])
            answer = record.messages[-1].content
        if "BOOM" in question + answer:
            raise BadRow("template_failed", "boom")
        words = question.split() + answer.split()
        trained = [False] * len(question.split()) + ["MUTE" not in question] * len(answer.split())
        asked, said = ("user", "assistant") if question else ("text", "text")
        codes = [TOKEN_ROLES.index(asked)] * len(question.split()) + [TOKEN_ROLES.index(said)] * len(answer.split())
        warnings = ["it asks twice"] if "again" in str(record) else []
        return Examined([len(word) for word in words], trained, bytes(codes), warnings)

    def reference(self, record: Record) -> str:
        assert not isinstance(record, Text)
        return record.label if isinstance(record, Labelled) else record.messages[-1].content

    def fingerprint(self) -> str:
        return self.mark


class Bench:
    """A recipe's folder with its own cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.said: list[str] = []
        self.renderer = WordRenderer()

    def jsonl(self, name: str, rows: Sequence[Any]) -> None:
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        (self.folder / name).write_text(text, encoding="utf-8")

    def recipe(self, **data: Any) -> Recipe:
        data = {"train": "train.jsonl", "validation": 0.0, "test": 0.0, **data}
        return parse({"name": "r", "model": "tunesmith-base-8m", "data": data}).placed(self.folder)

    def prepare(self, context: int = 64, verify: bool = False, **data: Any) -> Prepared:
        result = prepare(self.recipe(**data), self.renderer, context, self.cache, self.said.append, verify=verify)
        assert result.ledger.balanced
        return result


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def chat(prompt: str, completion: str = "a fine answer", **extra: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **extra}


def questions(number: int, start: int = 0) -> list[dict[str, Any]]:
    return [chat(f"question number {index}") for index in range(start, start + number)]


def lines_of(store: TokenStore | None) -> list[int]:
    return [] if store is None else [store.origin(index).line for index in range(store.num_rows)]


def rejects(prepared: Prepared) -> list[dict[str, Any]]:
    return [json.loads(line) for line in prepared.rejected_path.read_text(encoding="utf-8").splitlines()]


# --- the account -------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[int], Any]] = {
    "good": lambda index: chat(f"question number {index}"),
    "repeat": lambda index: chat("Question  NUMBER 0"),
    "broken_json": lambda index: '{"prompt": "torn',
    "empty_answer": lambda index: chat(f"empty {index}", ""),
    "template_failed": lambda index: chat(f"BOOM {index}"),
    "nothing_trained": lambda index: chat(f"MUTE {index}"),
    "overlong": lambda index: chat(f"long {index} " + "word " * 40),
}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(st.sampled_from(list(KINDS)), max_size=40),
    held=st.lists(st.sampled_from(list(KINDS)), max_size=8),
    test=st.sampled_from([0.0, 0.3, "test.jsonl"]),
    validation=st.sampled_from([0.0, 0.2, "validation.jsonl"]),
)
def test_every_row_is_trained_held_out_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], held: list[str], test: Any, validation: Any
) -> None:
    bench = Bench(tmp_path_factory.mktemp("mix"))
    # A first row that tells the format, a last one whose hash is known to train.
    rows = [KINDS[kind](index + 1) for index, kind in enumerate(kinds)]
    bench.jsonl("train.jsonl", [chat("question number 1000"), *rows, *questions(12, 2000)])
    bench.jsonl(
        "test.jsonl", [chat("question number 0"), *(KINDS[kind](index + 500) for index, kind in enumerate(held))]
    )
    bench.jsonl(
        "validation.jsonl",
        [chat("question number 700"), *(KINDS[kind](index + 800) for index, kind in enumerate(held))],
    )
    result = bench.prepare(context=20, test=test, validation=validation, overlong="drop", max_rejected=1.0)
    ledger = result.ledger
    num_held = (1 + len(held)) * sum(isinstance(item, str) for item in (test, validation))
    assert ledger.rows_in == 13 + len(rows) + num_held
    assert ledger.rows_in == ledger.trained + ledger.held_out + sum(ledger.rejected.values())
    assert len(rejects(result)) == sum(ledger.rejected.values())
    assert result.train.num_rows == ledger.trained
    assert len(result.rows("test")) == ledger.test_rows == (result.test.num_rows if result.test else 0)
    assert len(result.rows("validation")) == ledger.validation_rows
    assert sum(item.rows_in for item in ledger.per_source) == ledger.rows_in
    for kind in ("broken_json", "empty_answer", "template_failed", "nothing_trained", "overlong"):
        expected = kinds.count(kind) + held.count(kind) * (num_held // (1 + len(held)))
        assert ledger.rejected.get(kind, 0) == expected
    # No training row shares its input with a held-out row.
    held_inputs = {input_key(row.record) for split in ("test", "validation") for row in result.rows(split)}
    training = {"question number 1000", *(f"question number {index}" for index in range(2000, 2012))}
    assert ledger.trained <= len(kinds) + len(training)
    source = [
        json.loads(line) for line in (bench.folder / "train.jsonl").read_text().splitlines() if "torn" not in line
    ]
    trained = {result.train.origin(index).line for index in range(result.train.num_rows)}
    assert len(trained) == ledger.trained
    all_lines = (bench.folder / "train.jsonl").read_text().splitlines()
    assert source
    assert not held_inputs & {
        " ".join(json.loads(all_lines[line - 1])["prompt"].casefold().split()) for line in trained
    }


def test_the_ledger_counts_tokens_lengths_and_sources(bench: Bench) -> None:
    bench.jsonl("train.jsonl", [chat("one two", "three"), chat("a b c d", "e f g")])
    bench.jsonl("test.jsonl", [chat("x y", "z")])
    ledger = bench.prepare(test="test.jsonl").ledger
    assert (ledger.tokens, ledger.trained_tokens, ledger.share_trained) == (10, 4, 0.4)
    assert ledger.tokens_by_role == {"user": {"tokens": 6, "trained": 0}, "assistant": {"tokens": 4, "trained": 4}}
    assert (ledger.lengths.min, ledger.lengths.median, ledger.lengths.max) == (3, 3, 7)
    assert [(item.role, item.path, item.rows_in, item.trained, item.held_out) for item in ledger.per_source] == [
        ("test", "test.jsonl", 1, 0, 1),
        ("train", "train.jsonl", 2, 2, 0),
    ]
    assert ledger.per_source[0].formats == {"prompt-completion": 1}
    assert any("train.jsonl" in note and "prompt-completion" in note for note in ledger.notes)
    assert not any("holds no row" in note for note in ledger.notes)


def test_rejected_rows_are_written_with_file_line_reason_and_row(bench: Bench) -> None:
    bench.jsonl("train.jsonl", [*questions(2), chat("why BOOM \ud800"), '{"prompt": "torn'])
    result = bench.prepare(max_rejected=0.5)
    first, second = rejects(result)
    assert (first["file"], first["line"]) == ("train.jsonl", 3)
    assert {first["reason"], second["reason"]} <= {"template_failed", "wrong_encoding", "broken_json"}
    assert (second["line"], second["reason"]) == (4, "broken_json")
    assert second["row_number"] is None
    assert second["detail"]
    assert "2 faulty rows were rejected" in " ".join(result.ledger.notes)


def test_rows_of_an_array_on_one_line_are_told_apart(bench: Bench) -> None:
    rows = [*questions(3), chat("why BOOM"), chat("question number 1"), 7]
    (bench.folder / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    (bench.folder / "test.json").write_text(json.dumps([chat("the same"), chat("the same")]), encoding="utf-8")
    result = bench.prepare(train="train.json", test="test.json", max_rejected=0.5)
    assert {(item["file"], item["line"], item["row_number"], item["reason"]) for item in rejects(result)} == {
        ("train.json", 1, 4, "template_failed"),
        ("train.json", 1, 6, "wrong_type"),
    }
    assert [str(result.train.origin(index)) for index in range(4)] == [f"train.json:1 (row {n})" for n in (1, 2, 3, 5)]
    assert [str(row.origin) for row in result.rows("test")] == ["test.json:1 (row 1)", "test.json:1 (row 2)"]
    # Evaluation pairs answers by the id of their row.
    ids = [row.id for row in result.rows("test")] + [result.train.row_id(index) for index in range(4)]
    assert len(set(ids)) == 6
    with pytest.raises(DataError) as caught:
        bench.prepare(train="train.json")
    assert caught.value.where == "train.json:1 (row 4)"
    assert "template_failed, 1 row: train.json:1 (row 4): boom" in caught.value.what


def test_held_out_rows_come_back_whole(bench: Bench) -> None:
    turns = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "was ist das? „ja“"},
        {"role": "assistant", "content": "gut"},
    ]
    bench.jsonl("train.jsonl", [{"messages": [{"role": "user", "content": "q"}, turns[2]]}])
    bench.jsonl("test.jsonl", [{"messages": turns, "tools": [{"type": "function", "function": {"name": "f"}}]}])
    result = bench.prepare(test="test.jsonl")
    (row,) = result.rows("test")
    assert (row.origin.file, row.origin.line, row.source) == ("test.jsonl", 1, 0)
    assert [message.content for message in row.record.messages] == ["be kind", "was ist das? „ja“", "gut"]
    assert row.record.tools == ({"type": "function", "function": {"name": "f"}},)
    assert result.test is not None
    assert result.test.row_id(0) == row.id
    with pytest.raises(ValueError, match="not kept"):
        result.rows("train")


def test_warnings_of_the_renderer_are_counted_over_the_kept_rows(bench: Bench) -> None:
    bench.jsonl("train.jsonl", [*questions(3), chat("ask again"), chat("and again"), chat("again BOOM")])
    assert "in 2 rows: it asks twice" in bench.prepare(max_rejected=0.5).ledger.notes


def test_named_columns_are_not_called_unused(bench: Bench) -> None:
    bench.jsonl("train.jsonl", [{"q": f"question {index}", "a": "answer"} for index in range(5)])
    source = {"path": "train.jsonl", "format": "prompt-completion", "columns": {"prompt": "q", "completion": "a"}}
    assert "train.jsonl: format prompt-completion, columns as named" in bench.prepare(train=source).ledger.notes


def test_progress_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder_module, "PROGRESS_ROWS", 10)
    bench.jsonl("train.jsonl", questions(25))
    bench.prepare()
    assert [line for line in bench.said if line.startswith("read")] == ["read 10 rows", "read 20 rows"]


# --- splits and duplicates ----------------------------------------------------------------------------------------


def test_splits_do_not_move_when_data_grows(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(200))
    small = bench.prepare(validation=0.2, test=0.2)
    bench.jsonl("train.jsonl", [*questions(200), *questions(100, 200)])
    large = bench.prepare(validation=0.2, test=0.2)
    assert large.ledger.trained > small.ledger.trained
    for split in ("train", "validation", "test"):
        before, after = lines_of(getattr(small, split)), lines_of(getattr(large, split))
        assert 10 < len(before) < len(after)
        assert [line for line in after if line <= 200] == before
    # Binomial: 200 rows at 0.2 are 40 with a deviation of 5.7.
    assert abs(small.ledger.test_rows - 40) < 25


def test_fractions_split_repeated_inputs_to_one_side(bench: Bench) -> None:
    bench.jsonl("train.jsonl", [chat(f"Question {index % 40}", f"answer {index}") for index in range(200)])
    result = bench.prepare(validation=0.2, test=0.3)
    inputs = {split: {input_key(row.record) for row in result.rows(split)} for split in ("validation", "test")}
    assert inputs["validation"]
    assert inputs["test"]
    assert not inputs["validation"] & inputs["test"]
    assert result.ledger.rejected == {}
    assert result.ledger.held_out == 5 * (len(inputs["validation"]) + len(inputs["test"]))


@pytest.mark.parametrize("validation", [0.2, {"fraction": 0.2, "group_by": "customer"}])
def test_groups_stay_on_one_side_and_do_not_leak_inputs(bench: Bench, validation: Any) -> None:
    rows = [chat(f"question {index}", customer=index % 30) for index in range(150)]
    rows += [chat("the same for all", customer=index) for index in range(30)]
    bench.jsonl("train.jsonl", rows)
    result = bench.prepare(validation=validation, test={"fraction": 0.3, "group_by": "customer"})
    groups = {row.group for row in result.rows("test")}
    assert 0 < len(groups) < 30
    trained = {rows[line - 1]["customer"] for line in lines_of(result.train)}
    assert not groups & {str(customer) for customer in trained}
    shared = sum(rows[row.origin.line - 1]["prompt"] == "the same for all" for row in result.rows("test"))
    assert shared == len(groups)
    assert result.ledger.rejected == {"duplicate_of_test": 30 - shared}
    if isinstance(validation, dict):
        assert not {row.group for row in result.rows("validation")} & {str(customer) for customer in trained}


def test_grouping_by_a_column_that_is_not_there_lists_the_columns(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(5))
    with pytest.raises(DataError, match="no such column") as caught:
        bench.prepare(test={"fraction": 0.2, "group_by": "customer"})
    assert "`prompt`, `completion`" in caught.value.hint
    bench.jsonl("train.jsonl", [chat("q", customer=1), chat("r")])
    with pytest.raises(DataError, match="missing_column, 1 row:"):
        bench.prepare(test={"fraction": 0.2, "group_by": "customer"})


def test_fractions_that_leave_nothing_are_refused(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(5))
    with pytest.raises(DataError, match=r"add up to 1\.1"):
        bench.prepare(test=0.5, validation=0.6)


def duplicated(bench: Bench) -> None:
    bench.jsonl("test.jsonl", [chat("Where is my order?"), chat("other test")])
    bench.jsonl("validation.jsonl", [chat("other validation"), chat("OTHER test")])
    bench.jsonl(
        "train.jsonl", [*questions(5), chat("where  is my ORDER?", "a different answer"), chat("Other Validation")]
    )


def test_duplicates_are_dropped_and_counted(bench: Bench) -> None:
    duplicated(bench)
    result = bench.prepare(test="test.jsonl", validation="validation.jsonl")
    assert result.ledger.rejected == {"duplicate_of_test": 2, "duplicate_of_validation": 1}
    assert lines_of(result.train) == [1, 2, 3, 4, 5]
    assert [row.origin.line for row in result.rows("validation")] == [1]
    assert {(item["file"], item["line"], item["reason"]) for item in rejects(result)} == {
        ("validation.jsonl", 2, "duplicate_of_test"),
        ("train.jsonl", 6, "duplicate_of_test"),
        ("train.jsonl", 7, "duplicate_of_validation"),
    }
    notes = " ".join(result.ledger.notes)
    assert "1 train row has the same input as a test row: dropped" in notes
    assert "1 validation row has the same input as a test row: dropped" in notes


def test_duplicates_as_errors_name_the_first_pair(bench: Bench) -> None:
    duplicated(bench)
    with pytest.raises(DataError) as caught:
        bench.prepare(test="test.jsonl", duplicates="error")
    assert "train.jsonl:6" in caught.value.what
    assert "test.jsonl:1" in caught.value.what
    assert "data.duplicates" in caught.value.hint
    assert not list(bench.cache.glob("*"))


def test_duplicates_can_be_kept_and_it_is_said(bench: Bench) -> None:
    duplicated(bench)
    result = bench.prepare(test="test.jsonl", validation="validation.jsonl", duplicates="keep")
    assert result.ledger.rejected == {}
    assert (result.ledger.trained, result.ledger.validation_rows) == (7, 2)
    assert "1 train row has the same input as a test row: kept" in " ".join(result.ledger.notes)


def test_duplicates_of_a_grouped_test_as_errors_name_the_held_out_row(bench: Bench) -> None:
    bench.jsonl("train.jsonl", [chat("the same", customer=index) for index in range(40)])
    with pytest.raises(DataError, match=r"train.jsonl:\d+ \(train\) has the same input as train.jsonl:\d+ \(test\)"):
        bench.prepare(test={"fraction": 0.3, "group_by": "customer"}, duplicates="error")


def test_a_validation_source_wins_over_a_test_fraction(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(60))
    bench.jsonl("validation.jsonl", questions(60))
    with pytest.raises(DataError, match="no row is left to train on: of 120 rows 60 are held out and 60 rejected"):
        bench.prepare(test=0.5, validation="validation.jsonl")
    bench.jsonl("validation.jsonl", questions(30))
    result = bench.prepare(test=0.5, validation="validation.jsonl")
    assert result.ledger.rejected == {"duplicate_of_validation": 30}
    assert {row.origin.line for row in result.rows("test")} <= set(range(31, 61))


@pytest.mark.parametrize("how", ["same", "glob", "link"])
def test_a_file_in_two_sources_is_refused(bench: Bench, how: str) -> None:
    bench.jsonl("train.jsonl", questions(5))
    other = {"same": "train.jsonl", "glob": "*.jsonl", "link": "link.jsonl"}[how]
    if how == "link":
        (bench.folder / "link.jsonl").symlink_to(bench.folder / "train.jsonl")
    with pytest.raises(DataError, match="read twice") as caught:
        bench.prepare(test=other)
    assert "weight" in caught.value.hint


def test_overlapping_globs_of_one_source_are_read_once(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(5))
    assert bench.prepare(train={"path": ["train.jsonl", "*.jsonl"]}).ledger.rows_in == 5


def test_sources_are_numbered_and_limited(bench: Bench) -> None:
    bench.jsonl("a.jsonl", questions(30))
    bench.jsonl("b.jsonl", questions(3, 100))
    result = bench.prepare(train=[{"path": "a.jsonl", "limit": 20}, {"path": "b.jsonl", "weight": 2.0}])
    assert result.train.sources.tolist() == [0] * 20 + [1] * 3
    assert any("a.jsonl: reading ended at 20 rows" in note for note in result.ledger.notes)


# --- text files ---------------------------------------------------------------------------------------------------


def book(bench: Bench, paragraphs: int = 60) -> None:
    text = "\n\n".join(f"Paragraph {index} tells of\nthe sea." for index in range(paragraphs))
    (bench.folder / "book.txt").write_text(text, encoding="utf-8")


def test_a_text_by_paragraph_can_be_held_out(bench: Bench) -> None:
    book(bench)
    result = bench.prepare(train={"path": "book.txt", "row": "paragraph"}, validation=0.2, test=0.2)
    assert result.ledger.rows_in == 60
    assert result.ledger.validation_rows > 3
    assert result.ledger.test_rows > 3
    assert {(line - 1) % 3 for line in lines_of(result.train)} == {0}
    assert not any("held out" in note for note in result.ledger.notes)
    lines = bench.prepare(train={"path": "book.txt", "row": "line"}, validation=0.2, test=0.2)
    # "the sea." is the same line each time and falls on one side as a whole.
    assert lines.ledger.rows_in == 120
    assert lines.key != result.key


def test_a_table_without_header_is_trained_whole(bench: Bench) -> None:
    (bench.folder / "train.tsv").write_text("".join(f"text {index}\t{index % 2}\n" for index in range(20)))
    source = {"path": "train.tsv", "header": False, "columns": {"text": "column_1", "label": "column_2"}}
    result = bench.prepare(train=source)
    assert (result.ledger.rows_in, result.ledger.trained, result.labels) == (20, 20, ["0", "1"])
    with pytest.raises(DataError) as caught:
        bench.prepare(train={"path": "train.tsv", "columns": source["columns"]})
    assert caught.value.hint


@pytest.mark.parametrize("validation", [0.05, 0.0])
def test_a_fraction_of_one_document_is_said_to_hold_nothing_out(bench: Bench, validation: float) -> None:
    book(bench)
    result = bench.prepare(train="book.txt", validation=validation, test=0.01)
    assert (result.ledger.trained, result.ledger.held_out) == (1, 0)
    said = " ".join(result.ledger.notes)
    names = "validation or test" if validation else "test"
    assert f"nothing is held out for {names}: a .txt file is one document" in said
    assert "(book.txt); set data.train.0.row to `paragraph` or `line`" in said
    assert "holds no row" not in said


def test_an_empty_split_is_said_where_rows_were_asked_for(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(3))
    bench.jsonl("test.jsonl", [chat("a question", "")])
    notes = bench.prepare(test="test.jsonl", validation=0.0001, max_rejected=1.0).ledger.notes
    assert [note.partition(":")[0] for note in notes if "holds no row" in note] == [
        "the validation split holds no row", "the test split holds no row",
    ]  # fmt: skip
    assert not any("holds no row" in note for note in bench.prepare().ledger.notes)


def test_a_document_that_is_held_out_whole_names_the_key(bench: Bench) -> None:
    book(bench)
    with pytest.raises(DataError, match="no row is left to train on") as caught:
        bench.prepare(train="book.txt", test=0.999)
    assert "data.train.0.row" in caught.value.hint


def test_the_rows_of_other_files_are_not_cut(bench: Bench) -> None:
    book(bench)
    bench.jsonl("train.jsonl", questions(5))
    with pytest.raises(DataError) as caught:
        bench.prepare(train=[{"path": "book.txt", "row": "line"}, {"path": ["train.jsonl"], "row": "line"}])
    assert caught.value.what == "`row: line` cuts .txt files, and train.jsonl is none"
    assert caught.value.where == "recipe r [data.train.1.row]"
    assert "remove `row`" in caught.value.hint
    assert caught.value.exit_code == 2
    with pytest.raises(DataError) as caught:
        bench.prepare(train={"path": ["book.txt"], "header": False})
    assert caught.value.what == "`header: false` is for .csv and .tsv files, and book.txt is none"
    assert caught.value.where == "recipe r [data.train.0.header]"


# --- overlong rows ------------------------------------------------------------------------------------------------


def overlong(bench: Bench) -> None:
    bench.jsonl("train.jsonl", [chat("short one"), chat("word " * 30, "end"), chat("few words", "word " * 30)])


@pytest.mark.parametrize("policy", [None, "error"])
def test_overlong_conversations_are_an_error_that_names_them(bench: Bench, policy: str | None) -> None:
    overlong(bench)
    with pytest.raises(DataError) as caught:
        bench.prepare(context=16, overlong=policy)
    assert (
        "2 rows are longer than the context of 16 tokens: train.jsonl:2 (31 tokens), train.jsonl:3 (32 tokens)"
        in str(caught.value)
    )
    assert all(word in caught.value.hint for word in ("drop", "split", "truncate"))
    assert caught.value.exit_code == 2


def test_overlong_rows_can_be_dropped(bench: Bench) -> None:
    overlong(bench)
    result = bench.prepare(context=16, overlong="drop")
    assert result.ledger.rejected == {"overlong": 2}
    assert lines_of(result.train) == [1]
    assert "2 rows are longer than the context of 16 tokens: left out" in " ".join(result.ledger.notes)


def test_overlong_rows_can_be_truncated_where_something_trained_remains(bench: Bench) -> None:
    overlong(bench)
    result = bench.prepare(context=16, overlong="truncate")
    assert result.ledger.rejected == {"overlong": 1}
    assert lines_of(result.train) == [1, 3]
    assert result.train.lengths.tolist() == [5, 16]
    assert "1 row was truncated to the first 16 tokens" in " ".join(result.ledger.notes)


def _far_too_long(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length_bound, "LONG_CHARACTERS", 300)
    bench.jsonl("train.jsonl", [*questions(3), chat("BOOM " * 200)])


def test_a_row_far_too_long_is_left_out_unrendered_and_no_fault(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    _far_too_long(bench, monkeypatch)
    result = bench.prepare(context=16, overlong="drop", max_rejected=0.0)
    assert result.ledger.rejected == {"overlong": 1}
    assert bench.renderer.calls == 3
    (line,) = result.rejected_path.read_text().splitlines()
    assert json.loads(line)["detail"] == "1,013 characters, more than 25 tokens; the context is 16"
    with pytest.raises(DataError, match=r"train.jsonl:4 \(more than 25 tokens\)"):
        bench.prepare(context=16)
    with pytest.raises(DataError, match="a conversation of more than 25 tokens"):
        bench.prepare(context=16, overlong="split")


def test_a_row_to_be_truncated_is_rendered_where_a_template_may_write_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    _far_too_long(bench, monkeypatch)
    assert bench.prepare(context=16, overlong="truncate", max_rejected=1.0).ledger.rejected == {"template_failed": 1}
    monkeypatch.setattr(overlong_policy, "MAX_CHARACTERS", 900)
    again = bench.prepare(context=15, overlong="truncate", max_rejected=0.0)
    assert again.ledger.rejected == {"overlong": 1}


@pytest.mark.parametrize(
    ("policy", "rejected", "calls"), [("drop", {"overlong": 1}, 1), ("split", {}, 2), ("truncate", {}, 2)]
)
def test_documents_far_too_long_are_cut_or_left_out_unrendered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, policy: str, rejected: dict[str, int], calls: int
) -> None:
    monkeypatch.setattr(length_bound, "LONG_CHARACTERS", 300)
    bench.jsonl("train.jsonl", [{"text": "word " * 200}, {"text": "rather short"}])
    recipe = bench.recipe(overlong=policy).model_copy(update={"objective": ClmSection()})
    result = prepare(recipe, bench.renderer, 16, bench.cache, bench.said.append)
    assert (result.ledger.rejected, bench.renderer.calls) == (rejected, calls)


def test_overlong_conversations_cannot_be_split(bench: Bench) -> None:
    overlong(bench)
    with pytest.raises(DataError, match="plain documents only") as caught:
        bench.prepare(context=16, overlong="split")
    assert caught.value.where == "train.jsonl:2"
    bench.jsonl("train.jsonl", [chat("short one")])
    assert bench.prepare(context=16, overlong="split").ledger.trained == 1


@pytest.mark.parametrize("policy", [None, "split"])
def test_long_documents_become_windows_without_loss(bench: Bench, policy: str | None) -> None:
    words = [
        ["w" * (1 + (index * number) % 7) for index in range(length)]
        for number, length in enumerate((5, 16, 17, 50), 1)
    ]
    bench.jsonl("train.jsonl", [{"text": " ".join(document)} for document in words])
    result = bench.prepare(context=16, overlong=policy)
    assert (result.ledger.rows_in, result.ledger.trained, result.ledger.windows) == (4, 4, 1 + 1 + 2 + 4)
    for line, document in enumerate(words, 1):
        rows = [index for index in range(result.train.num_rows) if result.train.origin(index).line == line]
        stored = np.concatenate([result.train.row(index)[0] for index in rows])
        assert stored.tolist() == [len(word) for word in document]
        ids = [result.train.row_id(index) for index in rows]
        suffixes = [item.partition("#")[2] for item in ids]
        assert suffixes == ([""] if len(rows) == 1 else [str(number) for number in range(len(rows))])
        assert len({item.partition("#")[0] for item in ids}) == 1
    assert result.train.lengths.max() <= 16
    assert "2 documents longer than 16 tokens became 6 windows" in " ".join(result.ledger.notes)


@pytest.mark.parametrize(("policy", "tokens"), [("drop", None), ("truncate", 16)])
def test_long_documents_follow_the_other_policies(bench: Bench, policy: str, tokens: int | None) -> None:
    bench.jsonl("train.jsonl", [{"text": "a short one"}, {"text": "word " * 40}])
    result = bench.prepare(context=16, overlong=policy)
    assert result.train.lengths.tolist() == ([3] if tokens is None else [3, tokens])


def test_the_policy_holds_for_held_out_rows(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(3))
    bench.jsonl("test.jsonl", [chat("fine"), chat("word " * 40)])
    with pytest.raises(DataError, match=r"test.jsonl:2 \(43 tokens\)"):
        bench.prepare(context=16, test="test.jsonl")
    result = bench.prepare(context=16, test="test.jsonl", overlong="drop")
    assert len(result.rows("test")) == 1


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "fine"), [(1, True), (2, False)])
def test_one_per_cent_of_faults_is_the_border(bench: Bench, bad: int, fine: bool) -> None:
    bench.jsonl("train.jsonl", [*questions(100 - bad), *(chat(f"BOOM {index}") for index in range(bad))])
    if fine:
        assert bench.prepare().ledger.rejected == {"template_failed": 1}
        return
    with pytest.raises(DataError, match="2 of 100 rows are faulty") as caught:
        bench.prepare()
    assert "template_failed, 2 rows: train.jsonl:99: boom" in caught.value.what
    kept = list((bench.cache / "rejected").iterdir())
    assert [path.name in caught.value.hint for path in kept] == [True]
    assert [json.loads(line)["line"] for line in kept[0].read_text().splitlines()] == [99, 100]
    assert {path.name for path in bench.cache.iterdir()} <= {"rejected", "sources.json"}


def test_all_rows_rejected_is_refused(bench: Bench) -> None:
    bench.jsonl("train.jsonl", [chat("BOOM 1"), chat("BOOM 2")])
    with pytest.raises(DataError, match="all 2 rows were rejected"):
        bench.prepare(max_rejected=1.0)


def test_no_training_row_left_is_refused(bench: Bench) -> None:
    bench.jsonl("train.jsonl", [chat("the same"), chat("The Same")])
    bench.jsonl("test.jsonl", [chat("the same")])
    with pytest.raises(DataError, match="no row is left to train on: of 3 rows 1 are held out and 2 rejected"):
        bench.prepare(test="test.jsonl")


# --- labels -------------------------------------------------------------------------------------------------------


def test_a_closed_set_of_answers_becomes_labels(bench: Bench) -> None:
    rows = [chat(f"question {index}", ["refund", "order", "order"][index % 3]) for index in range(30)]
    bench.jsonl("train.jsonl", rows)
    bench.jsonl("test.jsonl", [chat("test question", "unseen")])
    result = bench.prepare(test="test.jsonl")
    assert result.labels == ["order", "refund"]
    assert result.label_counts == {"order": 20, "refund": 10}


@pytest.mark.parametrize(
    ("num_labels", "rows_each", "closed"),
    [(256, 3, True), (257, 3, False), (10, 2, False), (1, 50, False), (2, 3, True)],
)
def test_the_borders_of_a_closed_set(bench: Bench, num_labels: int, rows_each: int, closed: bool) -> None:
    rows = [chat(f"question {index}", f"label {index % num_labels}") for index in range(num_labels * rows_each)]
    bench.jsonl("train.jsonl", rows)
    result = bench.prepare()
    assert (result.labels is not None) == closed
    assert len(result.label_counts) == (num_labels if closed else 0)


def test_conversations_of_several_turns_give_no_labels(bench: Bench) -> None:
    turns = [("user", "a"), ("assistant", "yes"), ("user", "b"), ("assistant", "no")]
    bench.jsonl("train.jsonl", [{"messages": [{"role": role, "content": text} for role, text in turns]}] * 9)
    assert bench.prepare().labels is None


# --- the cache ----------------------------------------------------------------------------------------------------


def test_the_second_time_nothing_is_rendered(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(10))
    first = bench.prepare(test=0.3)
    calls = bench.renderer.calls
    second = bench.prepare(test=0.3)
    assert bench.renderer.calls == calls
    assert (second.key, second.ledger) == (first.key, first.ledger)
    assert second.rows("test") == first.rows("test")
    assert bench.said[-1].startswith("using cached tokens")


def test_what_changes_tokens_changes_the_key(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(10))
    keys = {bench.prepare().key, bench.prepare(context=32).key, bench.prepare(test=0.5).key}
    bench.renderer = WordRenderer("another template")
    keys.add(bench.prepare().key)
    bench.jsonl("train.jsonl", questions(11))
    keys.add(bench.prepare().key)
    assert len(keys) == 5


def damage(folder: Path, how: str) -> None:
    if how == "meta missing":
        (folder / "meta.json").unlink()
    elif how == "meta torn":
        (folder / "meta.json").write_text('{"key')
    elif how == "tokens short":
        path = folder / "train" / "tokens.bin"
        path.write_bytes(path.read_bytes()[:-4])
    elif how == "rejects missing":
        (folder / "rejected.jsonl").unlink()
    elif how == "ledger foreign":
        path = folder / "ledger.json"
        path.write_text("[]".ljust(path.stat().st_size))


def test_a_bit_that_turned_in_any_file_is_found_and_built_anew(bench: Bench) -> None:
    """Sizes are as they were, and JSON stays JSON: hashes and the seal alone tell."""
    bench.jsonl("train.jsonl", questions(10))
    folder = bench.prepare(validation=0.3).folder
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path.name for path in whole} >= {
        "tokens.bin",
        "trained.bin",
        "rows.bin",
        "validation.jsonl",
        "ledger.json",
        "meta.json",
    }
    for path, payload in whole.items():
        if not payload:
            continue
        digits = (
            [at for at, byte in enumerate(payload) if chr(byte).isdigit()]
            if path.suffix != ".bin"
            else [len(payload) // 2]
        )
        rotten = bytearray(payload)
        rotten[digits[-1]] ^= 1
        path.write_bytes(bytes(rotten))
        bench.said.clear()
        bench.prepare(validation=0.3)
        assert any("torn" in line and "anew" in line for line in bench.said), path.name
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == whole


@pytest.mark.parametrize("how", ["meta missing", "meta torn", "tokens short", "rejects missing", "ledger foreign"])
def test_a_torn_cache_is_built_anew_and_said(bench: Bench, how: str) -> None:
    bench.jsonl("train.jsonl", questions(10))
    first = bench.prepare()
    before = [first.train.row(index)[0].tolist() for index in range(10)]
    damage(first.folder, how)
    assert load_cached(bench.recipe(), bench.renderer, 64, bench.cache) is None
    again = bench.prepare()
    assert [again.train.row(index)[0].tolist() for index in range(10)] == before
    assert any("torn" in line and "anew" in line for line in bench.said)
    assert [path for path in bench.cache.iterdir() if path.name.startswith(".")] == []


def test_load_cached_builds_and_writes_nothing(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(10))
    assert load_cached(bench.recipe(), bench.renderer, 64, bench.cache) is None
    assert not bench.cache.exists()
    built = bench.prepare()
    cached = load_cached(bench.recipe(), bench.renderer, 64, bench.cache)
    assert cached is not None
    assert cached.ledger == built.ledger


def test_load_cached_does_not_hash_large_files_it_does_not_know(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.jsonl("train.jsonl", questions(10))
    bench.prepare()
    monkeypatch.setattr(prepare_module, "_HASH_UNASKED_BYTES", 10)
    # Written a moment ago: its hash is not remembered.
    assert load_cached(bench.recipe(), bench.renderer, 64, bench.cache) is None
    settle(bench.folder / "train.jsonl")
    bench.prepare()
    assert load_cached(bench.recipe(), bench.renderer, 64, bench.cache) is not None


def settle(path: Path, moment: float = 1_700_000_000.0) -> None:
    os.utime(path, (moment, moment))


def test_size_and_time_shortcut_the_hash_and_verify_does_not(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(10))
    settle(bench.folder / "train.jsonl")
    first = bench.prepare()
    text = (bench.folder / "train.jsonl").read_text()
    (bench.folder / "train.jsonl").write_text(text.replace("number 3", "number X"))
    settle(bench.folder / "train.jsonl")
    assert bench.prepare().key == first.key
    verified = bench.prepare(verify=True)
    assert verified.key != first.key
    assert bench.prepare().key == verified.key


def test_a_file_written_a_moment_ago_is_not_trusted_by_its_time(bench: Bench) -> None:
    now = time.time()
    bench.jsonl("train.jsonl", questions(10))
    settle(bench.folder / "train.jsonl", now)
    first = bench.prepare()
    bench.jsonl("train.jsonl", [chat("QUESTION number 0"), *questions(9, 1)])
    settle(bench.folder / "train.jsonl", now)
    assert bench.prepare().key != first.key


def test_a_torn_index_is_said_and_written_anew(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(10))
    settle(bench.folder / "train.jsonl")
    first = bench.prepare()
    (bench.cache / "sources.json").write_text('{"a": [1')
    assert bench.prepare().key == first.key
    assert any("sources.json is torn" in line for line in bench.said)
    assert len(json.loads((bench.cache / "sources.json").read_text())) == 1


def test_a_file_that_changes_while_it_is_read_is_refused(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(10))

    class Meddler(WordRenderer):
        def examine(self, record: Record) -> Examined:
            if self.calls == 5:
                bench.jsonl("train.jsonl", questions(20))
            return super().examine(record)

    bench.renderer = Meddler()
    with pytest.raises(DataError, match="changed while it was read"):
        bench.prepare()
    assert list(bench.cache.glob("*")) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_disk_that_cannot_be_written_names_the_way_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    bench.jsonl("train.jsonl", questions(10))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("tunesmith.data.store.write_json", refuse)
    with pytest.raises(DataError, match="cannot be written") as caught:
        bench.prepare()
    assert "TUNESMITH_CACHE" in caught.value.hint
    assert caught.value.exit_code == 2
    assert list(bench.cache.glob("*")) == []


def test_a_cache_root_that_is_no_folder_is_refused(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(10))
    bench.cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cannot be written") as caught:
        bench.prepare()
    assert caught.value.where == str(bench.cache)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes to read-only folders")
def test_a_read_only_cache_root_is_refused_and_one_with_the_tokens_serves_them(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(10))
    first = bench.prepare()
    bench.cache.chmod(0o555)
    try:
        settle(bench.folder / "train.jsonl")
        assert bench.prepare().key == first.key
        assert any("not remembered" in line for line in bench.said)
        with pytest.raises(DataError, match="cannot be written"):
            bench.prepare(context=32)
    finally:
        bench.cache.chmod(0o755)


def _prepare_with_little_room(folder: Path, results: Any) -> None:
    """Every file of this process ends at 2,000 bytes, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        Bench(folder).prepare()
    except DataError as error:
        results.put(str(error))


def test_a_write_that_fails_half_way_leaves_nothing(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(300))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=_prepare_with_little_room, args=(bench.folder, results))
    child.start()
    message = results.get(timeout=60)
    child.join()
    assert child.exitcode == 0
    assert "the token cache cannot be written: File too large" in message
    assert "TUNESMITH_CACHE" in message
    assert list(bench.cache.iterdir()) == []


def test_a_target_that_appears_meanwhile_is_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.jsonl("train.jsonl", questions(10))
    other = Bench(bench.folder)
    original = files.new_folder

    def slow(target: Path) -> Any:
        monkeypatch.setattr(prepare_module, "new_folder", original)
        # Another process, whose temporary folder has another name, is faster.
        monkeypatch.setattr(files.os, "getpid", lambda: 1)
        assert other.prepare().folder == target
        monkeypatch.undo()
        return original(target)

    monkeypatch.setattr(prepare_module, "new_folder", slow)
    result = bench.prepare()
    assert result.ledger.trained == 10
    assert any("another process" in line for line in bench.said)
    assert [path for path in bench.cache.iterdir() if path.name.startswith(".")] == []


def _prepare_in_child(folder: Path, results: Any) -> None:
    results.put(Bench(folder).prepare(test=0.2).ledger.trained)


def test_processes_that_prepare_at_once_agree(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(300))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    children = [context.Process(target=_prepare_in_child, args=(bench.folder, results)) for _ in range(3)]
    for child in children:
        child.start()
    counts = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(set(counts)) == 1
    assert len([path for path in bench.cache.iterdir() if path.is_dir()]) == 1


def test_leftovers_of_killed_builds_go_after_a_day(bench: Bench) -> None:
    bench.jsonl("train.jsonl", questions(10))
    old, young = ".old.1-00000000.tmp", ".young.2-00000000.tmp"
    for name, age in ((old, 2 * 86400), (young, 60)):
        (bench.cache / name).mkdir(parents=True)
        settle(bench.cache / name, time.time() - age)
    bench.prepare()
    assert not (bench.cache / old).exists()
    assert (bench.cache / young).exists()
    assert any(old in line for line in bench.said)


def test_the_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("TUNESMITH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "tunesmith"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "tunesmith"


def test_other_formats_go_the_same_way(bench: Bench) -> None:
    with (bench.folder / "train.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows([f"text {index}", ["a", "b"][index % 2]] for index in range(20))
    result = bench.prepare(train="train.csv")
    assert result.labels == ["a", "b"]
    assert result.ledger.per_source[0].formats == {"labelled": 1}


def test_preparing_needs_no_torch() -> None:
    code = "import sys, tunesmith.data.prepare; assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
