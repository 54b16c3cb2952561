"""Rows for heads: text and target, labels in order, and the faults that are said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.data.head_batches import head_data
from tunesmith.data.prepared import Prepared
from tunesmith.data.targets import LabelBook, TargetStore, TargetWriter
from tunesmith.embedded import DEFAULT_MODEL
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.codec import parse
from tunesmith.workshop.headed import describe_head
from tunesmith.workshop.prepare import open_data

ROWS = [{"text": f"text number {number}", "label": ("red", "green", "blue")[number % 3]} for number in range(12)]


def prepared(
    folder: Path, rows: list[dict[str, Any]], test: list[dict[str, Any]] | None = None, **objective: Any
) -> Any:
    """Recipe, data and renderer of rows in a file."""
    for name, some in (("rows", rows), ("test", test or [])):
        lines = "".join(json.dumps(row) + "\n" for row in some)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    extra = {key: objective.pop(key) for key in ("overlong", "max_rejected") if key in objective}
    context = objective.pop("context", None)
    values = {
        "name": "heads", "model": {"name": DEFAULT_MODEL, "context": context},
        "data": {"train": "rows.jsonl", "validation": 0.0, "test": "test.jsonl" if test else 0.0, **extra},
        "objective": {"type": "classify", **objective},
    }  # fmt: skip
    recipe = parse(values).placed(folder)
    data, renderer, notes = open_data(recipe)
    return recipe, data, renderer, notes


def targets(recipe: Any, data: Prepared, split: Any = "train") -> Any:
    described = describe_head(recipe, data)
    return head_data(data, split, described.shape.task, described.labels)


def test_a_row_is_the_ids_of_its_text_and_its_class(tmp_path: Path) -> None:
    recipe, data, renderer, _ = prepared(tmp_path, ROWS)
    described, rows = describe_head(recipe, data), targets(recipe, data)
    assert described.labels == ("blue", "green", "red"), "sorted, whatever the order they were met in"
    assert data.label_counts == {"blue": 4, "green": 4, "red": 4}
    for row in range(12):
        assert rows.ids(row).tolist() == renderer.tokenizer.encode_document(f"text number {row}")
        assert described.labels[rows.classes(row)[0]] == ROWS[row]["label"]
    batch = rows.batch([3, 5], 0.5)
    assert batch.targets_S.tolist() == [2, 0]
    assert batch.scored_S.tolist() == [len(rows.ids(3)) - 1, len(rows.ids(3)) + len(rows.ids(5)) - 1]
    assert (batch.weights_S.tolist(), batch.document_S.tolist(), batch.progress) == ([1, 1], [0, 1], 0.5)


def test_conversations_of_one_question_are_read_as_texts(tmp_path: Path) -> None:
    plain = prepared(tmp_path, ROWS)
    (tmp_path / "other").mkdir()
    said = [
        {"messages": [{"role": "system", "content": "sort"}, {"role": "user", "content": row["text"]},
                      {"role": "assistant", "content": row["label"]}]}
        for row in ROWS
    ]  # fmt: skip
    chat = prepared(tmp_path / "other", said)
    one, other = (targets(*case[:2]) for case in (plain, chat))
    assert [one.ids(row).tolist() for row in range(12)] == [other.ids(row).tolist() for row in range(12)]
    assert [one.classes(row).tolist() for row in range(12)] == [other.classes(row).tolist() for row in range(12)]
    assert any("the system message is left out" in note for note in chat[3])


def test_given_labels_keep_their_order_and_refuse_others(tmp_path: Path) -> None:
    recipe, data, _, _ = prepared(tmp_path, ROWS, labels=["red", "blue", "green"])
    assert describe_head(recipe, data).labels == ("red", "blue", "green")
    strange = [*ROWS, {"text": "odd", "label": "mauve"}]
    with pytest.raises(DataError, match="unknown_label") as caught:
        prepared(tmp_path, strange, labels=["red", "blue", "green"])
    assert "'mauve' is none of those that `objective.labels` names" in str(caught.value)
    _, data, _, _ = prepared(tmp_path, strange, labels=["red", "blue", "green"], max_rejected=0.5)
    assert data.ledger.rejected == {"unknown_label": 1}


def test_a_given_label_that_no_training_row_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training row has the label 'mauve'") as caught:
        prepared(tmp_path, ROWS, labels=["red", "blue", "green", "mauve"])
    assert "labels of the training rows: blue, green, red" in caught.value.hint


def test_a_single_label_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a single label, 'red'"):
        prepared(tmp_path, [row for row in ROWS if row["label"] == "red"])


def test_documents_have_no_label(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no_answer"):
        prepared(tmp_path, [{"text": "a document"}] * 3)


def test_a_label_that_only_a_held_out_row_has_weighs_nothing(tmp_path: Path) -> None:
    test = [{"text": "seen", "label": "red"}, {"text": "unseen", "label": "mauve"}]
    recipe, data, _, _ = prepared(tmp_path, ROWS, test)
    batch = targets(recipe, data, "test").batch([0, 1])
    assert describe_head(recipe, data).labels == ("blue", "green", "red")
    assert (batch.targets_S.tolist(), batch.weights_S.tolist()) == ([2, 0], [1, 0])


def test_a_text_of_one_token_is_a_row(tmp_path: Path) -> None:
    recipe, data, _, _ = prepared(tmp_path, [*ROWS, {"text": "a", "label": "red"}])
    assert data.ledger.trained == 13
    assert len(targets(recipe, data).ids(12)) == 1


def test_overlong_texts_are_refused_or_truncated_by_name(tmp_path: Path) -> None:
    long = [*ROWS, {"text": "many words " * 30, "label": "red"}]
    with pytest.raises(DataError, match="longer than the context of 16 tokens"):
        prepared(tmp_path, long, context=16)
    recipe, data, _, notes = prepared(tmp_path, long, context=16, overlong="truncate")
    assert len(targets(recipe, data).ids(12)) == 16
    assert any("1 row was truncated" in note for note in notes)


def test_a_closing_token_is_kept_when_a_row_is_cut(tmp_path: Path, shared: Path) -> None:
    values = {
        "name": "heads", "model": {"name": str(shared / "models" / "tunesmith-encoder-8m"), "context": 16},
        "data": {"train": "rows.jsonl", "validation": 0.0, "test": 0.0, "overlong": "truncate"},
        "objective": {"type": "classify"},
    }  # fmt: skip
    rows = [*ROWS, {"text": "many words " * 30, "label": "red"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = parse(values).placed(tmp_path)
    data, renderer, _ = open_data(recipe)
    ids = targets(recipe, data).ids(12).tolist()
    whole = renderer.tokenizer.encode_document("many words " * 30)
    assert ids == [*whole[:15], whole[-1]]


def test_the_shape_of_the_head_shares_the_tokens_and_what_it_answers_does_not(tmp_path: Path) -> None:
    keys = [
        prepared(tmp_path, ROWS, **changes)[1].key
        for changes in ({}, {"head": "mlp", "pooling": "mean"}, {"labels": ["red", "blue", "green"]})
    ]
    assert keys[0] == keys[1] != keys[2]


def test_targets_come_back_as_they_were_written(tmp_path: Path) -> None:
    with TargetWriter(tmp_path, numbers=False) as writer:
        for row in ([3], [], [1, 2]):
            writer.add(row)
    store = TargetStore(tmp_path, 3, numbers=False)
    assert [store.row(row).tolist() for row in range(3)] == [[3], [], [1, 2]]
    assert store.row(0).dtype == np.int32
    book = LabelBook()
    assert [book.number(name) for name in ("b", "a", "b")] == [0, 1, 0]
    book.count(("a", "b"))
    book.save(tmp_path)
    assert (LabelBook.load(tmp_path).names, LabelBook.load(tmp_path).counts) == ({"b": 0, "a": 1}, {"a": 1, "b": 1})


def test_torn_targets_are_found(tmp_path: Path) -> None:
    from tunesmith.data.store import TornStore

    with TargetWriter(tmp_path, numbers=True) as writer:
        writer.add([0.5])
    with pytest.raises(TornStore, match="wrong size"):
        TargetStore(tmp_path, 2, numbers=True)
    (tmp_path / "targets.bin").write_bytes(b"")
    with pytest.raises(TornStore, match="wrong size"):
        TargetStore(tmp_path, 1, numbers=True)


@pytest.mark.parametrize("labels", [["red", " "], ["red", "red "], ["red"]])
def test_labels_are_two_or_more_and_different(labels: list[str]) -> None:
    with pytest.raises(RecipeError):
        parse(
            {
                "name": "x",
                "model": DEFAULT_MODEL,
                "data": {"train": "a"},
                "objective": {"type": "classify", "labels": labels},
            }
        )


def test_several_labels_come_as_lists_or_as_text(tmp_path: Path) -> None:
    rows = [
        {"text": "one", "label": ["red", "blue"]}, {"text": "two", "label": "blue, green,blue"}, {"text": "three", "label": []},
        {"text": "four", "label": "red"},
    ]  # fmt: skip
    recipe, data, _, _ = prepared(tmp_path, rows, multi_label=True)
    assert describe_head(recipe, data).labels == ("blue", "green", "red")
    assert data.label_counts == {"blue": 2, "green": 1, "red": 2}
    batch = targets(recipe, data).batch([0, 1, 2, 3])
    assert batch.extras["classes_S"].tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_another_separator(tmp_path: Path) -> None:
    rows = [{"text": "one", "label": "a, b|c"}, {"text": "two", "label": "c"}]
    recipe, data, _, _ = prepared(tmp_path, rows, multi_label=True, separator="|")
    assert describe_head(recipe, data).labels == ("a, b", "c")


def test_numbers_are_read_from_text_and_json(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "label": number / 4 if number % 2 else str(number / 4)} for number in range(8)]
    recipe, data, _, _ = prepared(tmp_path, rows, type="regress")
    assert describe_head(recipe, data).labels == ()
    batch = targets(recipe, data).batch([0, 1, 7])
    assert batch.extras["value_S"].tolist() == [0.0, 0.25, 1.75]
    with pytest.raises(DataError, match="the label 'many' is not a number"):
        prepared(tmp_path, [*rows, {"text": "x", "label": "many"}], type="regress")
    with pytest.raises(DataError, match="is not a number"):
        prepared(tmp_path, [*rows, {"text": "x", "label": "nan"}], type="regress")


def test_row_weights_weigh_in_the_loss(tmp_path: Path) -> None:
    rows = [row | {"w": 0.5 + number % 2} for number, row in enumerate(ROWS)]
    values = {
        "name": "heads", "model": DEFAULT_MODEL, "objective": {"type": "classify"},
        "data": {"train": [{"path": "rows.jsonl", "format": "labelled", "columns": {"weight": "w"}}], "validation": 0, "test": 0},
    }  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = parse(values).placed(tmp_path)
    data, _, _ = open_data(recipe)
    assert targets(recipe, data).batch([0, 1]).weights_S.tolist() == [0.5, 1.5]
