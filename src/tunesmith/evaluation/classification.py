"""Confusion matrix, per-class precision, recall and F1, and macro-F1 with its interval.

Answers that are none of the classes have index K, the column "(other)": they cost recall and nobody's precision.
Suffixes: K classes, B resamples, M distinct cells of truth and answers, G groups of counts by class (hits, support
and answers of each side), S cells of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.evaluation.statistics import (
    RESAMPLES,
    Floats,
    Score,
    bca_interval,
    bootstrap_p,
    generator,
    mean_score,
)

Counts = npt.NDArray[np.int64]

OTHER = "(other)"
_BLOCK = 1 << 21  # weights drawn at once: bounds memory


def confusion(truth: Sequence[int], predicted: Sequence[int], num_classes: int) -> Counts:
    """Rows counted by true class and answer: ``[K, K + 1]``, the last column for answers outside the classes.

    Raises:
        ValueError: unequal lengths, a true class not in 0..K-1 or an answer not in 0..K.
    """
    if len(truth) != len(predicted):
        raise ValueError("truth and answers differ in length")
    matrix = np.zeros((num_classes, num_classes + 1), dtype=np.int64)
    for true, answer in zip(truth, predicted, strict=True):
        if not (0 <= true < num_classes and 0 <= answer <= num_classes):
            raise ValueError(f"class {true} or answer {answer} is outside 0..{num_classes}")
        matrix[true, answer] += 1
    return matrix


def per_class(labels: Sequence[str], matrix: Counts) -> list[dict[str, Any]]:
    """Rows, precision, recall and F1 of each class; a share of nothing (0/0) is 0."""
    hits, support, answered = _margins(matrix)
    return [
        {
            "label": label,
            "n": int(support[k]),
            "precision": float(hits[k] / answered[k]) if answered[k] else 0.0,
            "recall": float(hits[k] / support[k]) if support[k] else 0.0,
            "f1": float(2 * hits[k] / (support[k] + answered[k])) if support[k] + answered[k] else 0.0,
        }
        for k, label in enumerate(labels)
    ]


def macro_f1(matrix: Counts) -> float:
    """Unweighted mean of F1 over the classes that occur, as truth or as answer; the others are left out."""
    return float(_macro(np.stack(_margins(matrix)).astype(np.float64)))


def table(labels: Sequence[str], matrix: Counts) -> dict[str, Any]:
    """The scorecard's table: labels, confusion (one column more than labels, see ``columns``), per-class figures."""
    return {
        "labels": list(labels),
        "columns": [*labels, OTHER],
        "confusion": matrix.tolist(),
        "per_class": per_class(labels, matrix),
    }


def macro_f1_score(truth: Sequence[int], predicted: Sequence[int], num_classes: int, seed: int = 0) -> Score:
    """Macro-F1 with a BCa interval over resampled rows.

    All right or all wrong leaves nothing to resample; the interval is then that of ``mean_score`` for like rows.
    """
    value = macro_f1(confusion(truth, predicted, num_classes))
    n = len(truth)
    hits = sum(true == answer for true, answer in zip(truth, predicted, strict=True))
    if hits in (0, n):
        return mean_score([float(hits > 0)] * n, seed, bounds=(0.0, 1.0))
    cells_M, counts_M = _cells(list(zip(truth, predicted, strict=True)))
    slots_GM = _slots(cells_M[:, 0], cells_M[:, 1], num_classes)
    replicates_B, jackknife_N = _bootstrap(slots_GM, counts_M, num_classes, seed, _macro)
    low, high = bca_interval(value, replicates_B, jackknife_N)
    return Score(value, max(0.0, low), min(1.0, high), n)


def macro_f1_difference(
    truth: Sequence[int], before: Sequence[int], after: Sequence[int], num_classes: int, seed: int = 0
) -> tuple[Score, float]:
    """Macro-F1 after minus before on the same rows, BCa interval and bootstrap p over resampled rows."""
    value = macro_f1(confusion(truth, after, num_classes)) - macro_f1(confusion(truth, before, num_classes))
    n = len(truth)
    changed = sum(old != new for old, new in zip(before, after, strict=True))
    cells_M, counts_M = _cells(list(zip(truth, before, after, strict=True)))
    if len(counts_M) == 1:
        return Score(value, value, value, n), bootstrap_p(value, np.full(RESAMPLES, value), changed)
    old_GM, new_GM = (_slots(cells_M[:, 0], cells_M[:, side], num_classes) for side in (1, 2))

    def statistic(sums: Floats) -> Floats:
        return _macro(sums[..., 3:, :]) - _macro(sums[..., :3, :])

    replicates_B, jackknife_N = _bootstrap(np.vstack([old_GM, new_GM]), counts_M, num_classes, seed, statistic)
    low, high = bca_interval(value, replicates_B, jackknife_N)
    return Score(value, low, high, n), bootstrap_p(value, replicates_B, changed)


def _margins(matrix: Counts) -> tuple[Counts, Counts, Counts]:
    classes = matrix.shape[0]
    return np.diagonal(matrix), matrix.sum(axis=1), matrix[:, :classes].sum(axis=0)


def _macro(sums_3K: Floats) -> Floats:
    """Macro-F1 of hits, support and answers by class: ``[..., 3, K]`` to ``[...]``."""
    hits, size = sums_3K[..., 0, :], sums_3K[..., 1, :] + sums_3K[..., 2, :]
    occurs = size > 0
    f1 = np.divide(2 * hits, size, out=np.zeros_like(hits), where=occurs)
    result: Floats = f1.sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1)
    return result


def _cells(rows: list[tuple[int, ...]]) -> tuple[Counts, Counts]:
    """Distinct rows in order of first sight, and how often each occurs: resampling these is resampling rows.

    The order does not depend on which side is called before, so that swapping the sides only flips signs.
    """
    counted: dict[tuple[int, ...], int] = {}
    for row in rows:
        counted[row] = counted.get(row, 0) + 1
    return np.array(list(counted), dtype=np.int64), np.array(list(counted.values()), dtype=np.int64)


def _slots(truth_M: Counts, answer_M: Counts, num_classes: int) -> Counts:
    """The class to whose hits, support and answers a row of each cell adds: ``[3, M]``; K where to none."""
    return np.stack([np.where(truth_M == answer_M, truth_M, num_classes), truth_M, answer_M])


def _bootstrap(
    slots_GM: Counts, counts_M: Counts, num_classes: int, seed: int, statistic: Callable[[Floats], Floats]
) -> tuple[Floats, Floats]:
    """Bootstrap replicates, and leave-one-out values repeated for the rows of each cell."""
    n, cells, groups = int(counts_M.sum()), len(counts_M), len(slots_GM)
    rng = generator(seed)

    def sums_of(weights_M: Counts) -> Floats:
        return np.stack([np.bincount(slots_M, weights_M, num_classes + 1) for slots_M in slots_GM])

    replicates = []
    step = max(1, _BLOCK // max(cells, groups * num_classes))
    for start in range(0, RESAMPLES, step):
        weights_BM = rng.multinomial(n, counts_M / n, size=min(step, RESAMPLES - start))
        sums_BGK = np.stack([sums_of(weights_M) for weights_M in weights_BM])[..., :num_classes]
        replicates.append(statistic(sums_BGK))
    totals_GK = sums_of(counts_M)
    left_out = []
    step = max(1, _BLOCK // totals_GK.size)
    for start in range(0, cells, step):
        slots_GS = slots_GM[:, start : start + step]
        sums_SGK = np.repeat(totals_GK[None], slots_GS.shape[1], axis=0)
        sums_SGK[np.arange(slots_GS.shape[1])[:, None], np.arange(groups)[None, :], slots_GS.T] -= 1
        left_out.append(statistic(sums_SGK[..., :num_classes]))
    return np.concatenate(replicates), np.repeat(np.concatenate(left_out), counts_M)
