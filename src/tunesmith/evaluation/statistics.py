"""Scores with 95 % intervals and paired tests. Numpy only; everything is a function of its arguments and a seed.

Shares use Wilson's interval, paired shares Newcombe's, means and ratios a BCa bootstrap. Suffixes: N rows, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2_000
_NORMAL = NormalDist()
_Z = _NORMAL.inv_cdf(0.975)
_BLOCK = 1 << 21  # picks drawn at once: bounds memory and, being constant, keeps the stream of draws fixed
_LARGEST_EXPONENT = 700.0  # exp() of more overflows, and JSON has no infinity


@dataclass(frozen=True, slots=True)
class Score:
    """A measured value, its 95 % interval and the number of rows behind it."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        """Return the four fields as plain numbers."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Score:
        """Inverse of ``to_json``. Raises KeyError, TypeError or ValueError on another shape."""
        return cls(float(value["value"]), float(value["low"]), float(value["high"]), int(value["n"]))


def proportion(successes: int, n: int) -> Score:
    """Share of successes with Wilson's score interval, which stays inside [0, 1] and is honest at 0 and n.

    Raises:
        ValueError: n is not positive or successes are not within 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} is no share")
    share = successes / n
    shrink = 1 + _Z**2 / n
    centre = (share + _Z**2 / (2 * n)) / shrink
    half = _Z / shrink * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Score(share, low, high, n)


def mean_score(values: Sequence[float] | Floats, seed: int = 0, bounds: tuple[float, float] | None = None) -> Score:
    """Mean over rows with a BCa bootstrap interval (Efron and Tibshirani 1993, §14.3).

    BCa rather than the percentile interval, since losses are skewed and the percentile interval is off to first order
    in the skew; the price is one jackknife, which is closed-form here.

    Where all rows are equal (one row included) resampling shows no spread. With ``bounds`` the interval then says what
    Wilson's does for n of n: the unseen rows that differ may be a share u, so the mean may lie u of the way to either
    bound. Without bounds it is the value alone, and n says how little that is.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    values_N = checked(values)
    n = len(values_N)
    if np.ptp(values_N) == 0:
        return _constant(float(values_N[0]), n, bounds)
    return _ratio(values_N, np.ones(n), seed)


def ratio_score(totals: Sequence[float] | Floats, counts: Sequence[float] | Floats, seed: int = 0) -> Score:
    """Sum of totals over sum of counts (a loss per token) with a BCa interval from resampled rows; n is rows.

    Rows are resampled, not tokens: tokens of one row are not independent.

    Raises:
        ValueError: no rows, unequal lengths, a value that is not finite, or a count that is not positive.
    """
    totals_N, counts_N = checked(totals), checked(counts)
    if len(totals_N) != len(counts_N) or np.any(counts_N <= 0):
        raise ValueError("each row needs one total and one positive count")
    return _ratio(totals_N, counts_N, seed)


def exponential(score: Score) -> Score:
    """Perplexity of a loss in nats: value and interval through exp (monotone, so the coverage stays).

    Losses above 700 nats count as 700, so that the result is finite.
    """
    value, low, high = (math.exp(min(part, _LARGEST_EXPONENT)) for part in (score.value, score.low, score.high))
    return Score(value, low, high, score.n)


def mcnemar_midp(won: int, lost: int) -> float:
    """Two-sided mid-p McNemar test on discordant pairs (Fagerland, Lydersen and Laake 2013), exact in integers.

    p = 2 P(X <= k) - P(X = k) for X ~ Binomial(won + lost, 1/2) and k the smaller count; 1 without discordant pairs.

    Raises:
        ValueError: a count is negative.
    """
    if won < 0 or lost < 0:
        raise ValueError("counts of pairs are not negative")
    n, smaller = won + lost, min(won, lost)
    if won == lost:
        return 1.0
    term = tail = 1
    for k in range(smaller):
        term = term * (n - k) // (k + 1)
        tail += term
    return (2 * tail - term) / (1 << n)


def paired_proportions(both: int, won: int, lost: int, neither: int) -> Score:
    """Difference of paired shares, after minus before, with Newcombe's interval (1998, Stat. Med. 17:2635, method 10).

    Wilson's intervals of both shares are joined with their correlation (continuity-corrected). Chosen over a bootstrap
    because it keeps its coverage where one side is 0 % or 100 %, the usual case of an untuned base.

    Raises:
        ValueError: a count is negative or there are no pairs.
    """
    if min(both, won, lost, neither) < 0:
        raise ValueError("counts of pairs are not negative")
    n = both + won + lost + neither
    before, after = proportion(both + lost, n), proportion(both + won, n)
    spread = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    excess: float = both * neither - won * lost
    if excess > 0:
        excess = max(excess - n / 2, 0)
    phi = excess / math.sqrt(spread) if spread else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    value = after.value - before.value
    low = value - reach(after.value - after.low, before.high - before.value)
    high = value + reach(after.high - after.value, before.value - before.low)
    return Score(value, max(-1.0, low), min(1.0, high), n)


def paired_bootstrap(differences: Sequence[float] | Floats, seed: int = 0) -> tuple[Score, float]:
    """Mean of paired differences with a BCa interval, and a two-sided p for a mean of zero.

    The p is that of the studentised bootstrap centred on the observed mean (Efron and Tibshirani 1993, §16.4), counted
    as (1 + extreme) / (1 + resamples), and at least 2 / 2^m for m non-zero differences: the least that any test of
    signs could give, which keeps a handful of like rows from looking certain.

    Raises:
        ValueError: no differences, or one that is not finite.
    """
    values_N = checked(differences)
    return mean_score(values_N, seed), _centred_p(values_N, int(np.count_nonzero(values_N)), seed)


def ratio_difference(
    before: tuple[Sequence[float], Sequence[float]],
    after: tuple[Sequence[float], Sequence[float]],
    seed: int = 0,
    exponentiate: bool = False,
) -> tuple[Score, float]:
    """Difference of two ratios over the same rows, after minus before, each a pair of totals and counts.

    The interval is BCa over resampled rows; the p that of ``paired_bootstrap`` on each row's influence on the
    difference. With ``exponentiate`` the difference is of perplexities, and the p stays that of the losses.

    Raises:
        ValueError: as ``ratio_score``, or the rows do not pair.
    """
    parts = [checked(part) for part in (*before, *after)]
    if len({len(part) for part in parts}) != 1 or np.any(parts[1] <= 0) or np.any(parts[3] <= 0):
        raise ValueError("each row needs a total and a positive count on both sides")
    columns_NC = np.stack(parts, axis=1)
    sums_C = columns_NC.sum(axis=0)
    n = len(columns_NC)

    def statistic(sums: Floats) -> Floats:
        first, second = sums[..., 0] / sums[..., 1], sums[..., 2] / sums[..., 3]
        if exponentiate:
            first, second = (np.exp(np.minimum(part, _LARGEST_EXPONENT)) for part in (first, second))
        result: Floats = second - first
        return result

    value = float(statistic(sums_C))
    old, new = sums_C[0] / sums_C[1], sums_C[2] / sums_C[3]
    pull_N = n * ((parts[2] - new * parts[3]) / sums_C[3] - (parts[0] - old * parts[1]) / sums_C[1])
    p_value = _centred_p(pull_N + (new - old), int(np.count_nonzero(parts[2] * parts[1] != parts[0] * parts[3])), seed)
    if n == 1:
        return Score(value, value, value, n), p_value
    low, high = bca_interval(value, statistic(resampled_sums(columns_NC, seed)), statistic(sums_C - columns_NC))
    return Score(value, low, high, n), p_value


def bca_interval(value: float, replicates_B: Floats, jackknife_N: Floats) -> tuple[float, float]:
    """Bias-corrected and accelerated 95 % interval from bootstrap replicates and leave-one-out values.

    Stretched to hold ``value``, which it may miss by a hair on very discrete data.
    """
    size = len(replicates_B)
    below = (np.count_nonzero(replicates_B < value) + 0.5 * np.count_nonzero(replicates_B == value)) / size
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / size), 1 - 0.5 / size))
    centred_N = jackknife_N.mean() - jackknife_N
    scale = float(np.sum(centred_N**2)) ** 1.5
    acceleration = float(np.sum(centred_N**3)) / (6 * scale) if scale > 0 else 0.0
    # |acceleration| <= 1/6 and |bias| < 3.5, so the divisor stays positive
    shares = [_NORMAL.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in (-_Z, _Z)]
    low, high = (float(part) for part in np.quantile(replicates_B, shares))
    return min(low, value), max(high, value)


def bootstrap_p(difference: float, replicates_B: Floats, informative: int) -> float:
    """Two-sided p for a difference of zero from replicates centred on it, without studentising.

    ``informative`` is the number of rows that differ at all; p is at least 2 / 2^informative.
    """
    if difference == 0:
        return 1.0
    extreme = int(np.count_nonzero(np.abs(replicates_B - difference) >= abs(difference)))
    return _floored(extreme, len(replicates_B), informative)


def generator(seed: int) -> np.random.Generator:
    """Counter-based generator keyed by ``seed``: the same draws on every machine."""
    return np.random.Generator(np.random.Philox(key=seed))


def checked(values: Sequence[float] | Floats) -> Floats:
    """The values as an array. Raises ValueError where there are none, or one is not finite."""
    array_N = np.asarray(values, dtype=np.float64)
    if array_N.ndim != 1 or len(array_N) == 0 or not np.all(np.isfinite(array_N)):
        raise ValueError("a score needs at least one row, and finite numbers only")
    return array_N


def _constant(value: float, n: int, bounds: tuple[float, float] | None) -> Score:
    if bounds is None:
        return Score(value, value, value, n)
    unseen = proportion(0, n).high
    return Score(value, value - unseen * (value - bounds[0]), value + unseen * (bounds[1] - value), n)


def _ratio(totals_N: Floats, counts_N: Floats, seed: int) -> Score:
    n = len(totals_N)
    total, count = float(totals_N.sum()), float(counts_N.sum())
    value = total / count
    if n == 1 or np.ptp(totals_N / counts_N) == 0:
        return Score(value, value, value, n)
    sums_BC = resampled_sums(np.stack([totals_N, counts_N], axis=1), seed)
    low, high = bca_interval(value, sums_BC[:, 0] / sums_BC[:, 1], (total - totals_N) / (count - counts_N))
    return Score(value, low, high, n)


def resampled_sums(columns_NC: Floats, seed: int) -> Floats:
    """Column sums over rows drawn with replacement: ``[RESAMPLES, C]``."""
    n = len(columns_NC)
    rng = generator(seed)
    sums_BC = np.empty((RESAMPLES, columns_NC.shape[1]))
    step = max(1, _BLOCK // n)
    for start in range(0, RESAMPLES, step):
        stop = min(start + step, RESAMPLES)
        picks_BN = rng.integers(0, n, size=(stop - start, n), dtype=np.int64)
        for column in range(columns_NC.shape[1]):
            sums_BC[start:stop, column] = columns_NC[:, column][picks_BN].sum(axis=1)
    return sums_BC


def _centred_p(values_N: Floats, informative: int, seed: int) -> float:
    n, mean = len(values_N), float(values_N.mean())
    if mean == 0 or informative == 0:
        return 1.0
    error_N = values_N - mean
    if np.ptp(values_N) == 0:
        return _floored(0, RESAMPLES, informative)
    sums_BC = resampled_sums(np.stack([error_N, error_N**2], axis=1), seed)
    shift_B = np.abs(sums_BC[:, 0]) / n
    spread_B = np.sqrt(np.maximum(sums_BC[:, 1] / n - shift_B**2, 0))
    spread = math.sqrt(float(np.mean(error_N**2)))
    # |shift| / spread_B >= |mean| / spread, multiplied out: a resample without spread counts as extreme
    return _floored(int(np.count_nonzero(shift_B * spread >= abs(mean) * spread_B)), RESAMPLES, informative)


def _floored(extreme: int, size: int, informative: int) -> float:
    least = 2.0 ** (1 - min(informative, 1_000))
    return min(1.0, max((1 + extreme) / (1 + size), least))
