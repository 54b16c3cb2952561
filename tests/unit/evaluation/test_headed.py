"""Scores of heads against their definitions, scikit-learn and scipy; and paired comparisons of two heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as oracle

from tunesmith.errors import DataError, ModelError
from tunesmith.evaluation.comparison import compare
from tunesmith.evaluation.headed import classification, multi_label, probabilities, regression
from tunesmith.evaluation.questions import Question
from tunesmith.evaluation.resampling import (
    calibration_error,
    confidence_columns,
    difference_of_sums,
    ranks,
    score_of_sums,
)
from tunesmith.evaluation.scorecard import Scorecard

LABELS = ("a", "b", "c")
N = 60


def questions(references: list[str]) -> list[Question]:
    return [Question.of(f"{number:04d}", (number,), f"row {number}", said) for number, said in enumerate(references)]


def made(seed: int = 0, skill: float = 1.0) -> tuple[list[Question], np.ndarray, np.ndarray]:
    """Questions, their classes, and logits that favour the right class by ``skill``."""
    truth = np.random.default_rng(7).integers(0, 3, N)
    logits = np.random.default_rng(seed).normal(size=(N, 3))
    logits[np.arange(N), truth] += skill
    return questions([LABELS[k] for k in truth]), truth, logits


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits)
    return shares / shares.sum(1, keepdims=True)


def test_classification_has_the_scores_of_scikit_learn() -> None:
    asked, truth, logits = made()
    result = classification(asked, LABELS, logits)
    found = {name: score.value for name, score in result.metrics.items()}
    p = softmax(logits)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, p.argmax(1)))
    assert found["macro_f1"] == pytest.approx(oracle.f1_score(truth, p.argmax(1), average="macro"))
    assert found["loss"] == pytest.approx(oracle.log_loss(truth, p))
    assert found["brier"] == pytest.approx(np.square(p - np.eye(3)[truth]).sum(1).mean())
    for score in result.metrics.values():
        assert score.low <= score.value <= score.high
        assert score.n == N


def test_the_calibration_error_is_that_of_its_definition() -> None:
    asked, truth, logits = made()
    p = softmax(logits)
    confidence, right = p.max(1), p.argmax(1) == truth
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert classification(asked, LABELS, logits).metrics["calibration_error"].value == pytest.approx(expected)
    sure = np.full((N, 3), -20.0)
    sure[np.arange(N), truth] = 20.0
    assert classification(asked, LABELS, sure).metrics["calibration_error"].value == pytest.approx(0.0, abs=1e-9)


def test_a_reference_that_is_no_label_is_wrong_and_has_no_loss() -> None:
    asked, _, logits = made()
    strange = [*asked[:-1], Question.of("zzz", (1,), "row", "mauve")]
    result = classification(strange, LABELS, logits)
    assert result.rows[-1]["score"] == 0
    assert result.rows[-1]["brier"] == pytest.approx(1 + np.square(softmax(logits)[-1]).sum())
    assert "loss" not in result.metrics
    assert result.table is not None
    assert result.table["unseen_labels"] == ["mauve"]


def test_two_heads_are_compared_row_by_row() -> None:
    cards = []
    for name, (asked, _, logits) in (("base", made(1, 0.0)), ("tuned", made(2, 3.0))):
        card = Scorecard(model=name)
        card.add_task("classification", classification(asked, LABELS, logits), data="test")
        cards.append(card)
    found = compare(*cards)
    assert found.verdict == "better"
    assert found.claimed_on == "classification.accuracy"
    assert found.sentence.startswith("Tuned is better: classification ")
    paired = found.tasks["classification"]
    assert set(paired) == {"accuracy", "macro_f1", "brier", "calibration_error", "loss"}
    assert paired["brier"].difference.high < 0, "less is better"
    assert paired["calibration_error"].won == paired["calibration_error"].lost == 0, "no row has it by itself"
    for metric, pair in paired.items():
        assert pair.difference.value == pytest.approx(pair.after.value - pair.before.value), metric


def test_a_head_against_itself_is_no_evidence() -> None:
    asked, _, logits = made()
    cards = []
    for name in ("one", "other"):
        card = Scorecard(model=name)
        card.add_task("classification", classification(asked, LABELS, logits), data="test")
        cards.append(card)
    found = compare(*cards)
    assert found.verdict == "no evidence"
    assert all(pair.p_value == 1.0 for pair in found.tasks["classification"].values())


def test_regression_has_the_scores_of_scipy() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=N).round(1)  # rounded: ties
    said = values + generator.normal(size=N)
    result = regression(questions([str(value) for value in values]), values, said)
    found = {name: score.value for name, score in result.metrics.items()}
    assert found["mse"] == pytest.approx(np.square(said - values).mean())
    assert found["pearson"] == pytest.approx(stats.pearsonr(said, values).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(said, values).statistic)
    assert ranks(values).tolist() == stats.rankdata(values).tolist()
    assert result.baselines is not None
    assert result.baselines["mean"]["value"] == pytest.approx(values.var())


def test_numbers_are_compared_by_their_squared_error() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=N)
    cards = []
    for name, noise in (("base", 3.0), ("tuned", 0.1)):
        card = Scorecard(model=name)
        said = values + noise * generator.normal(size=N)
        card.add_task("regression", regression(questions([str(value) for value in values]), values, said), data="test")
        cards.append(card)
    found = compare(*cards)
    assert (found.verdict, found.claimed_on) == ("better", "regression.mse")
    assert "squared error 0.0" in found.sentence
    assert found.tasks["regression"]["pearson"].difference.low > 0


def test_the_intervals_cover_as_they_say() -> None:
    """Of many samples of a known calibration gap about 95 % of the differences' intervals hold the truth."""
    generator = np.random.default_rng(3)
    inside = 0
    for seed in range(60):
        confidence = np.full(200, 0.8)
        before, after = (generator.random(200) < share for share in (0.5, 0.65))
        columns = [confidence_columns(confidence, side.astype(float)) for side in (before, after)]
        score, _ = difference_of_sums(columns[0], columns[1], calibration_error, seed)
        inside += score.low <= -0.15 <= score.high
    assert inside >= 52


def test_a_constant_score_has_no_interval() -> None:
    columns = confidence_columns(np.full(10, 0.7), np.ones(10))
    score = score_of_sums(columns, calibration_error, (0.0, 1.0))
    assert (score.low, score.value, score.high) == pytest.approx((0.3, 0.3, 0.3))


def test_probabilities_sum_to_one_or_stand_alone() -> None:
    assert sum(probabilities([1000.0, 0.0, -5.0])) == pytest.approx(1.0)
    assert probabilities([0.0, 2.0], each=True) == pytest.approx([0.5, 1 / (1 + np.exp(-2))])


@pytest.mark.parametrize(
    ("change", "error"), [(lambda x: x[:-1], DataError), (lambda x: np.where(x == x.max(), np.nan, x), ModelError)]
)
def test_answers_that_are_too_few_or_not_finite_are_refused(change: Any, error: type[Exception]) -> None:
    asked, _, logits = made()
    with pytest.raises(error):
        classification(asked, LABELS, change(logits))


def test_several_labels_have_the_scores_of_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    hot = (generator.random((N, 3)) < 0.4).astype(float)
    logits = generator.normal(size=(N, 3)) + 2 * (hot - 0.5)
    result = multi_label(questions(["x"] * N), LABELS, hot, np.zeros(N), logits)
    found = {name: score.value for name, score in result.metrics.items()}
    assert found["micro_f1"] == pytest.approx(oracle.f1_score(hot, logits > 0, average="micro"))
    assert found["exact_match"] == pytest.approx(oracle.accuracy_score(hot, logits > 0))
    p = 1 / (1 + np.exp(-logits))
    assert found["loss"] == pytest.approx(-(hot * np.log(p) + (1 - hot) * np.log(1 - p)).mean())
    missed = multi_label(questions(["x"] * N), LABELS, hot, np.ones(N), logits)
    assert missed.metrics["exact_match"].value == 0
    assert missed.metrics["micro_f1"].value < found["micro_f1"]
