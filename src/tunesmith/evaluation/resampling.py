"""Scores that are a function of sums over rows: calibration error, F1 over words, correlations. BCa intervals, paired tests.

Resampling rows is resampling the sums of their columns; a row left out is its columns subtracted.
Suffixes: N rows, C columns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tunesmith.evaluation.statistics import Floats, Score, bca_interval, bootstrap_p, resampled_sums

Statistic = Callable[[Floats], Floats]
"""Sums ``[..., C]`` to a value each ``[...]``; the last column counts the rows."""

BINS = 15
"""Bins of confidence, equally wide (Guo et al. 2017, arXiv 1706.04599)."""


def score_of_sums(columns_NC: Floats, statistic: Statistic, bounds: tuple[float, float], seed: int = 0) -> Score:
    """The statistic of all rows with its interval, which stays within ``bounds``."""
    columns_NC = _counted(columns_NC)
    n, total_C = len(columns_NC), columns_NC.sum(axis=0)
    value = float(statistic(total_C))
    if n == 1 or np.ptp(columns_NC, axis=0).max() == 0:
        return Score(value, value, value, n)
    low, high = bca_interval(value, statistic(resampled_sums(columns_NC, seed)), statistic(total_C - columns_NC))
    return Score(value, max(bounds[0], low), min(bounds[1], high), n)


def difference_of_sums(before_NC: Floats, after_NC: Floats, statistic: Statistic, seed: int = 0) -> tuple[Score, float]:
    """The statistic after minus before on the same rows, its interval, and a bootstrap p for no difference."""
    width = before_NC.shape[1] + 1
    columns_NC = np.hstack([_counted(before_NC), _counted(after_NC)])

    def difference(sums: Floats) -> Floats:
        return statistic(sums[..., width:]) - statistic(sums[..., :width])

    n, total_C = len(columns_NC), columns_NC.sum(axis=0)
    value = float(difference(total_C))
    changed = int(np.any(before_NC != after_NC, axis=1).sum())
    if n == 1 or changed == 0:
        return Score(value, value, value, n), 1.0
    replicates_B = difference(resampled_sums(columns_NC, seed))
    low, high = bca_interval(value, replicates_B, difference(total_C - columns_NC))
    return Score(value, low, high, n), bootstrap_p(value, replicates_B, changed)


def confidence_columns(confidence_N: Floats, right_N: Floats) -> Floats:
    """Confidence minus rightness of each row, in the column of its bin ``[N, BINS]``."""
    bins_N = np.minimum((confidence_N * BINS).astype(np.int64), BINS - 1)
    columns = np.zeros((len(confidence_N), BINS))
    columns[np.arange(len(confidence_N)), bins_N] = confidence_N - right_N
    return columns


def calibration_error(sums: Floats) -> Floats:
    """Expected calibration error: how far confidence is from the share that is right, over bins by their rows."""
    result: Floats = np.abs(sums[..., :-1]).sum(axis=-1) / sums[..., -1]
    return result


def f1_of_counts(sums: Floats) -> Floats:
    """F1 from hits, and answers plus references: ``2 hits / (answers + references)``; 0 where there are none."""
    hits, size = sums[..., 0], sums[..., 1]
    result: Floats = np.divide(2 * hits, size, out=np.zeros_like(hits), where=size > 0)
    return result


def share_of_counts(sums: Floats) -> Floats:
    """Hits over a size: precision, recall, or the share of words that are right; 0 where there are none."""
    hits, size = sums[..., 0], sums[..., 1]
    result: Floats = np.divide(hits, size, out=np.zeros_like(hits), where=size > 0)
    return result


def correlation_columns(one_N: Floats, other_N: Floats) -> Floats:
    """What Pearson's correlation needs of each row ``[N, 5]``, centred, since sums of squares lose digits."""
    x, y = one_N - one_N.mean(), other_N - other_N.mean()
    return np.stack([x, y, x * x, y * y, x * y], axis=1)


def correlation(sums: Floats) -> Floats:
    """Pearson's correlation; 0 where either side does not vary."""
    x, y, xx, yy, xy, n = np.moveaxis(sums, -1, 0)
    spread = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
    result: Floats = np.divide(xy - x * y / n, spread, out=np.zeros_like(spread), where=spread > 1e-12)
    return np.clip(result, -1.0, 1.0)


def ranks(values_N: Floats) -> Floats:
    """Ranks from 1, ties sharing their mean: Spearman's correlation is Pearson's of them."""
    order = np.argsort(values_N, kind="stable")
    _, inverse, counts = np.unique(values_N[order], return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shared = ends - (counts - 1) / 2
    found = np.empty(len(values_N))
    found[order] = shared[inverse]
    return found


def _counted(columns_NC: Floats) -> Floats:
    return np.hstack([columns_NC, np.ones((len(columns_NC), 1))])
