"""Tasks of models with a head: what it said of each row in, scores with intervals and rows out.

Suffixes: N rows, K labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tunesmith.errors import DataError
from tunesmith.evaluation.questions import Question, check_questions
from tunesmith.evaluation.resampling import (
    calibration_error,
    confidence_columns,
    correlation,
    correlation_columns,
    f1_of_counts,
    ranks,
    score_of_sums,
)
from tunesmith.evaluation.statistics import Floats, mean_score, proportion, ratio_score
from tunesmith.evaluation.tasks import ClosedSet, Matching, TaskResult, check_finite, classified, majority, row_of

_SHARE = (0.0, 1.0)


def classification(
    questions: Sequence[Question],
    labels: Sequence[str],
    logits_NK: Floats,
    *,
    label_counts: Mapping[str, int] | None = None,
    seed: int = 0,
) -> TaskResult:
    """Accuracy, macro F1, log loss, Brier score and calibration error of a head that chooses one label.

    A reference that is none of the labels counts as wrong; the log loss is then left out, for it would be infinite.

    Args:
        questions: whose references are labels.
        labels: in the order of the head's outputs.
        logits_NK: what the head said of each question.
        label_counts: training rows of each label, for the majority baseline.
        seed: keys the bootstrap.

    Raises:
        DataError: no questions, an id twice, or another number of answers.
        ModelError: a logit that is not finite.
    """
    _check(questions, logits_NK, "classification")
    closed = ClosedSet.of([question.reference for question in questions], labels, Matching())
    assert closed is not None  # labels were given
    truth = closed.indices([question.reference for question in questions])
    rows = []
    log_NK = log_shares(logits_NK)
    for question, true, log_K in zip(questions, truth, log_NK, strict=True):
        best, known = int(log_K.argmax()), true < len(labels)
        row = row_of(question, labels[best], int(best == true))
        share_K = np.exp(log_K)
        row["confidence"] = float(share_K[best])
        row["brier"] = float(np.square(share_K).sum() + 1 - (2 * share_K[true] if known else 0.0))
        row |= {"nats": float(-log_K[true]) if known else None, "num_tokens": 1}
        rows.append(row)
    metrics = {"accuracy": proportion(sum(row["score"] for row in rows), len(rows))}
    metrics["macro_f1"], found = classified(rows, closed, seed)
    metrics["brier"] = mean_score([row["brier"] for row in rows], seed, bounds=(0.0, 2.0))
    confidence_N, right_N = (
        np.asarray([row[key] for row in rows], dtype=np.float64) for key in ("confidence", "score")
    )
    columns = confidence_columns(confidence_N, right_N)
    metrics["calibration_error"] = score_of_sums(columns, calibration_error, _SHARE, seed)
    if all(row["nats"] is not None for row in rows):
        metrics["loss"] = ratio_score([row["nats"] for row in rows], [1] * len(rows), seed)
    settings = {"type": "classification", "labels": closed.fingerprint()}
    return TaskResult(metrics, rows, settings, found, {"majority": majority(questions, closed, label_counts)})


def multi_label(
    questions: Sequence[Question],
    labels: Sequence[str],
    hot_NK: Floats,
    unknown_N: Floats,
    logits_NK: Floats,
    seed: int = 0,
) -> TaskResult:
    """Micro and macro F1, the share of rows that are right whole, and log loss, of a head that decides each label by itself.

    Args:
        questions: in the order of the rows.
        labels: in the order of the head's outputs.
        hot_NK: one where a row has a label, zero where not.
        unknown_N: labels of a row that the head does not have: they are missed.
        logits_NK: what the head said; above 0 it says yes.
        seed: keys the bootstrap.

    Raises:
        DataError: no questions, an id twice, or another number of answers.
        ModelError: a logit that is not finite.
    """
    _check(questions, logits_NK, "classification")
    said_NK = logits_NK > 0
    nats_N = (np.logaddexp(0, logits_NK) - hot_NK * logits_NK).mean(axis=1)
    rows = []
    for question, said_K, hot_K, unknown, nats in zip(questions, said_NK, hot_NK, unknown_N, nats_N, strict=True):
        answer = ", ".join(label for label, yes in zip(labels, said_K, strict=True) if yes)
        whole = bool((said_K == (hot_K > 0)).all()) and not unknown
        row = row_of(question, answer, int(whole))
        row |= {"word_hits": int((said_K * hot_K).sum()), "word_size": int(said_K.sum() + hot_K.sum() + unknown)}
        rows.append(row | {"nats": float(nats), "num_tokens": 1})
    pairs = np.asarray([[row["word_hits"], row["word_size"]] for row in rows], dtype=np.float64)
    metrics = {
        "micro_f1": score_of_sums(pairs, f1_of_counts, _SHARE, seed),
        "exact_match": proportion(sum(row["score"] for row in rows), len(rows)),
        "loss": ratio_score([row["nats"] for row in rows], [1] * len(rows), seed),
    }
    per_label = 2 * (said_NK * hot_NK).sum(0) / np.maximum(said_NK.sum(0) + hot_NK.sum(0), 1)
    found = {"labels": list(labels), "f1": [float(value) for value in per_label]}
    return TaskResult(metrics, rows, {"type": "classification", "labels": list(labels)}, baselines={"by_label": found})


def regression(questions: Sequence[Question], values_N: Floats, said_N: Floats, seed: int = 0) -> TaskResult:
    """Mean squared error, and Pearson's and Spearman's correlations, of a head that says a number.

    Args:
        questions: in the order of the numbers.
        values_N: the numbers that are right.
        said_N: what the head said.
        seed: keys the bootstrap.

    Raises:
        DataError: no questions, an id twice, or another number of answers.
        ModelError: an answer that is not finite.
    """
    _check(questions, said_N[:, None], "regression")
    rows = [
        row_of(question, f"{said:.6g}", None)
        | {"value": float(value), "said": float(said), "squared_error": float((said - value) ** 2)}
        for question, value, said in zip(questions, values_N, said_N, strict=True)
    ]
    metrics = {"mse": mean_score([row["squared_error"] for row in rows], seed)}
    pairs = {"pearson": (said_N, values_N), "spearman": (ranks(said_N), ranks(values_N))}
    for name, (one_N, other_N) in pairs.items():
        metrics[name] = score_of_sums(correlation_columns(one_N, other_N), correlation, (-1.0, 1.0), seed)
    mean = float(values_N.mean())
    baselines = {"mean": {"value": float(np.square(values_N - mean).mean()), "from": "references"}}
    return TaskResult(metrics, rows, {"type": "regression"}, baselines=baselines)


def _check(questions: Sequence[Question], logits_NK: Floats, task: str) -> None:
    check_questions(questions, task)
    if len(questions) != len(logits_NK):
        raise DataError(
            f"{len(logits_NK)} answers to {len(questions)} questions", where=task, hint="Give one answer for each row."
        )
    if not np.isfinite(logits_NK).all():
        check_finite([math.nan], task)


def log_shares(logits_NK: Floats) -> Floats:
    """Log-probabilities of the labels: log softmax of each row."""
    shifted = logits_NK - logits_NK.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def probabilities(logits_K: Sequence[float], *, each: bool = False) -> list[float]:
    """Shares of the labels that sum to 1, or with ``each`` the probability of every label by itself."""
    array = np.asarray(logits_K, dtype=np.float64)
    if each:
        return [float(value) for value in 1 / (1 + np.exp(-array))]
    return [float(value) for value in np.exp(log_shares(array[None])[0])]
