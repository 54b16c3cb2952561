"""Scores of several seeds on the same rows: rows and seeds both vary, and an interval has to hold both.

Rows and seeds are resampled independently of each other and crossed (the pigeonhole bootstrap, Owen 2007, Annals of Applied
Statistics 1:386), which counts the variance between rows and that between seeds. Few seeds resampled show too little of theirs, (S - 1) / S
of it, which is made good. Suffixes: S seeds, N rows, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.evaluation.statistics import RESAMPLES, Floats, Score, bootstrap_p, checked, generator

_BLOCK = 1 << 21


@dataclass(frozen=True, slots=True)
class SeededRows:
    """One measure of the same rows under several seeds: totals over counts, such as nats over tokens, or hits over 1.

    Attributes:
        totals_SN: what each row scored under each seed.
        counts_N: what it is counted over; positive.
    """

    totals_SN: Floats
    counts_N: Floats

    @classmethod
    def of(cls, totals: Sequence[Sequence[float]], counts: Sequence[float]) -> SeededRows:
        """From plain numbers.

        Raises:
            ValueError: no seeds or rows, a number that is not finite, lists of other lengths, or a count that is not positive.
        """
        rows = [checked(row) for row in totals]
        counts_N = checked(counts)
        if not rows or any(len(row) != len(counts_N) for row in rows) or np.any(counts_N <= 0):
            raise ValueError("each seed needs a total of every row, and each row a positive count")
        return cls(np.stack(rows), counts_N)

    def by_seed(self) -> list[float]:
        """The score of each seed."""
        return [float(value) for value in self.totals_SN.sum(axis=1) / self.counts_N.sum()]

    def spread(self) -> float | None:
        """Standard deviation over seeds; None of one seed, which has none."""
        scores = self.by_seed()
        return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def seeded_score(rows: SeededRows, seed: int = 0, bounds: tuple[float, float] | None = None) -> Score:
    """Mean over seeds of the score, with the crossed bootstrap's 95 % interval, kept within ``bounds``; n is rows."""
    value = float(rows.totals_SN.sum(axis=1).mean() / rows.counts_N.sum())
    low, high = _interval(value, _replicates(rows, seed))
    if bounds is not None:
        low, high = max(bounds[0], low), min(bounds[1], high)
    return Score(value, low, high, len(rows.counts_N))


def seeded_difference(before: SeededRows, after: SeededRows, seed: int = 0) -> tuple[Score, float]:
    """After minus before on the same rows and seeds, its interval, and a two-sided p for no difference.

    Seeds pair as rows do: the same seed draws the same data order. Of one seed interval and p speak of rows alone.

    Raises:
        ValueError: other rows, counts or numbers of seeds on either side.
    """
    if before.totals_SN.shape != after.totals_SN.shape or not np.array_equal(before.counts_N, after.counts_N):
        raise ValueError("both sides need the same rows and as many seeds")
    change = SeededRows(after.totals_SN - before.totals_SN, after.counts_N)
    value = float(change.totals_SN.sum(axis=1).mean() / change.counts_N.sum())
    replicates_B = _replicates(change, seed)
    low, high = _interval(value, replicates_B)
    informative = int(np.count_nonzero(np.any(change.totals_SN != 0, axis=0)))
    return Score(value, low, high, len(change.counts_N)), bootstrap_p(value, replicates_B, informative)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for several comparisons with one reference (Holm 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _interval(value: float, replicates_B: Floats) -> tuple[float, float]:
    low, high = (float(part) for part in np.quantile(replicates_B, (0.025, 0.975)))
    return min(low, value), max(high, value)


def _replicates(rows: SeededRows, seed: int) -> Floats:
    """The score of every crossed resample ``[B]``."""
    num_seeds, num_rows = rows.totals_SN.shape
    mean_N = rows.totals_SN.mean(axis=0)
    stretch = math.sqrt(num_seeds / (num_seeds - 1)) if num_seeds > 1 else 1.0
    totals_SN = mean_N + stretch * (rows.totals_SN - mean_N)
    draws = generator(seed)
    found_B = np.empty(RESAMPLES)
    step = max(1, _BLOCK // num_rows)
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        picks_BN = draws.integers(0, num_rows, size=(size, num_rows), dtype=np.int64)
        times_BS = draws.multinomial(num_seeds, [1 / num_seeds] * num_seeds, size=size) / num_seeds
        totals_B = np.zeros(size)
        for index in range(num_seeds):
            totals_B += times_BS[:, index] * totals_SN[index][picks_BN].sum(axis=1)
        found_B[start : start + size] = totals_B / rows.counts_N[picks_BN].sum(axis=1)
    return found_B
