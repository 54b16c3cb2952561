"""Which tasks are scored, under which names, and what is said before any model is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import DataError
from tunesmith.progress import SilentProgress
from tunesmith.recipe.codec import parse
from tunesmith.workshop.prepare import open_data
from tunesmith.workshop.scoring import Scoring, _distinct

RANKING = {"type": "label_ranking", "data": "validation"}


def _scoring(
    tmp_path: Path,
    *tasks: dict[str, Any],
    answers: tuple[str, ...] = ("yes", "no"),
    held_out: tuple[str, ...] = ("yes", "no"),
) -> Scoring:
    for name, said in (("train", answers * 4), ("held", held_out)):
        rows = [{"prompt": f"{name} question {number}", "completion": answer} for number, answer in enumerate(said)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "name": "x", "model": "tunesmith-base-8m", "data": {"train": "train.jsonl", "validation": "held.jsonl", "test": 0},
    }  # fmt: skip
    if tasks:
        values["evaluation"] = {"tasks": list(tasks)}
    recipe = parse(values).placed(tmp_path)
    data, renderer, _ = open_data(recipe)
    return Scoring(recipe.evaluation, data, renderer, 0, SilentProgress())


def test_a_name_that_the_recipe_gives_is_that_tasks_alone(tmp_path: Path) -> None:
    loss = {"type": "loss", "data": "validation"}
    scoring = _scoring(
        tmp_path, {"type": "exact_match", "data": "validation"}, {**loss, "name": "exact_match"}, loss, loss
    )
    assert {name: task.type for name, task in scoring.tasks.items()} == {
        "exact_match_validation": "exact_match", "exact_match": "loss", "loss": "loss", "loss_validation": "loss",
    }  # fmt: skip


def test_answers_that_are_no_labels_are_told(tmp_path: Path) -> None:
    held = ("yes", "no", "maybe ", "never", "maybe")
    scoring = _scoring(tmp_path, {**RANKING, "labels": ["yes", "no"]}, held_out=held)
    (note,) = [note for note in scoring.notes if "label" in note]
    assert note == (
        "label_ranking: of 5 rows 3 have an answer that is none of the labels ('maybe', 'never'): they count as wrong"
    )
    (unset,) = [note for note in _scoring(tmp_path, RANKING, held_out=held).notes if "label" in note]
    assert unset == note
    assert not [note for note in _scoring(tmp_path, RANKING).notes if "label" in note]


def test_labels_that_no_row_has_are_refused_by_key(tmp_path: Path) -> None:
    loss = {"type": "loss", "data": "validation"}
    with pytest.raises(
        DataError, match="no validation row has an answer that is one of the 2 labels; they have 'yes', 'no'"
    ) as caught:
        _scoring(tmp_path, loss, {**RANKING, "labels": ["Yes", "No"]})
    assert caught.value.where == "evaluation.tasks.1.labels"
    assert caught.value.hint


def test_white_space_makes_no_label(tmp_path: Path) -> None:
    scoring = _scoring(tmp_path, answers=("yes", "no", "yes "))
    assert scoring.data.labels == ["no", "yes"]
    assert scoring.data.label_counts == {"no": 4, "yes": 8}


def test_labels_that_case_tells_apart_are_one_where_it_does_not_count() -> None:
    assert _distinct(["No", "Yes", "no", "yes"], ignore_case=True) == ["No", "Yes"]
    assert _distinct(["No", "no"], ignore_case=False) == ["No", "no"]
    assert _distinct(None, ignore_case=True) is None


def test_documents_give_no_answers_to_compare(tmp_path: Path) -> None:
    for name in ("train", "held"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": f"{name} words {i}"}) + "\n" for i in range(4))
        )
    tasks = [{"type": kind, "data": "validation"} for kind in ("loss", "exact_match", "label_ranking")]
    recipe = parse(
        {
            "name": "x", "model": "tunesmith-base-8m", "objective": {"type": "clm"},
            "data": {"train": "train.jsonl", "validation": "held.jsonl", "test": 0}, "evaluation": {"tasks": tasks},
        }
    ).placed(tmp_path)  # fmt: skip
    data, renderer, _ = open_data(recipe)
    scoring = Scoring(recipe.evaluation, data, renderer, 0, SilentProgress())
    assert list(scoring.tasks) == ["loss"]
    left_out = [note for note in scoring.notes if "is left out: the validation rows are documents" in note]
    assert len(left_out) == 2
