"""Scores of tags, derived by hand; seqeval 1.2.2 gave the same precision, recall and F1 on 300 random sets of rows."""

from __future__ import annotations

import math
import random

import pytest

from tunesmith.errors import DataError, ModelError
from tunesmith.evaluation.comparison import compare
from tunesmith.evaluation.questions import Question
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.evaluation.tagging import Scheme, TaggedAnswer, tagging
from tunesmith.evaluation.tasks import TaskResult

IOB = Scheme(("B-A", "B-B", "I-A", "I-B", "O"), spans=True)
RIGHT = ["O B-A I-A", "B-B O O", "O O", "B-A B-A"]
SAID = ["O B-A I-A", "B-A O B-B", "O O", "B-A I-A"]
"""Right spans 4 (A, B, A, A); said 4 (A, A, B, A): one is hit, since in the last row the borders are others."""


def questions(count: int) -> list[Question]:
    return [Question.of(str(number), (number,), f"text {number}", "") for number in range(count)]


def answers(right: list[str], said: list[str]) -> list[TaggedAnswer]:
    pairs = zip(right, said, strict=True)
    return [TaggedAnswer(tuple(a.split()), tuple(b.split()), 0.5 * len(a.split()), len(a.split())) for a, b in pairs]


def score(right: list[str] = RIGHT, said: list[str] = SAID, scheme: Scheme = IOB, **more: dict[str, int]) -> TaskResult:
    return tagging(questions(len(right)), answers(right, said), scheme, label_counts=more.get("counts"))


def test_spans_count_whole_or_not_at_all() -> None:
    metrics = score().metrics
    assert metrics["span_precision"].value == pytest.approx(1 / 4)
    assert metrics["span_recall"].value == pytest.approx(1 / 4)
    assert metrics["span_f1"].value == pytest.approx(2 / 8)
    assert metrics["word_accuracy"].value == pytest.approx((3 + 1 + 2 + 1) / 10)
    assert metrics["exact_match"].value == pytest.approx(2 / 4)
    assert metrics["loss"].value == pytest.approx(0.5)
    assert all(item.n == 4 and item.low <= item.value <= item.high for item in metrics.values())


def test_precision_recall_and_f1_of_each_type() -> None:
    baselines = score().baselines
    assert baselines is not None
    assert baselines["by_type"] == {
        "types": ["A", "B"], "precision": [1 / 3, 0.0], "recall": [1 / 3, 0.0], "f1": [2 / 6, 0.0], "n": [3, 1],
    }  # fmt: skip


def test_no_spans_at_all_are_no_division_by_zero() -> None:
    metrics = score(["O O", "O"], ["O O", "O"]).metrics
    assert [metrics[name].value for name in ("span_f1", "span_precision", "span_recall")] == [0.0, 0.0, 0.0]
    assert metrics["word_accuracy"].value == 1.0


def test_always_the_commonest_tag() -> None:
    baselines = score(counts={"O": 50, "B-A": 5}).baselines
    assert baselines is not None
    majority = baselines["majority"]
    assert (majority["label"], majority["value"], majority["from"]) == ("O", 0.0, "training words")
    assert majority["word_accuracy"]["value"] == pytest.approx(5 / 10)
    plain = score(scheme=Scheme(IOB.labels, spans=False)).baselines
    assert plain is not None
    assert plain["majority"]["value"] == pytest.approx(5 / 10)
    assert "by_type" not in plain


def test_words_by_right_and_given_tag() -> None:
    found = score(["O B-C"], ["O O"]).table
    assert found is not None
    assert found["labels"] == [*IOB.labels, "B-C"]
    assert found["unseen_labels"] == ["B-C"]
    assert found["confusion"][found["labels"].index("B-C")][found["labels"].index("O")] == 1


def test_the_interval_covers_the_truth_of_resampled_rows() -> None:
    """With 400 rows whose spans are hit with chance 0.7, the interval of F1 is narrow and near 0.7."""
    rng = random.Random(2)
    said = ["B-A" if rng.random() < 0.7 else "B-B" for _ in range(400)]
    f1 = score(["B-A"] * 400, said).metrics["span_f1"]
    assert f1.low < 0.7 < f1.high
    assert 0.05 < f1.high - f1.low < 0.13


def test_rows_that_the_head_was_not_asked_about_leave_the_loss_out() -> None:
    one = TaggedAnswer(("B-A",), ("O",), 0.0, 0)
    assert "loss" not in tagging(questions(2), [*answers(["O"], ["O"]), one], IOB).metrics


def test_bad_input() -> None:
    with pytest.raises(DataError, match="1 answers to 2 questions"):
        tagging(questions(2), answers(["O"], ["O"]), IOB)
    with pytest.raises(ModelError):
        tagging(questions(1), [TaggedAnswer(("O",), ("O",), math.nan, 1)], IOB)


def test_two_heads_are_compared_row_by_row() -> None:
    cards = []
    for name, said in (("base", ["O O O", "O O O", "O O", "O O"] * 10), ("tuned", RIGHT * 10)):
        card = Scorecard(model=name, suite={})
        card.add_task("tagging", score(RIGHT * 10, said), data="test", template="t", limit=None)
        cards.append(card)
    found = compare(*cards)
    assert found.claimed_on == "tagging.span_f1"
    assert found.verdict == "better"
    assert "span F1 100.0 % against 0.0 %" in found.sentence
    paired = found.tasks["tagging"]
    assert paired["word_accuracy"].difference.value == pytest.approx(0.5)
    assert paired["span_recall"].won == 30
