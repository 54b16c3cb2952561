"""Scores over rows and seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunesmith.evaluation.seeds import SeededRows, holm, seeded_difference, seeded_score


def _rows(totals: list[list[float]]) -> SeededRows:
    return SeededRows.of(totals, [1.0] * len(totals[0]))


def test_the_score_is_the_mean_over_seeds_and_lies_in_its_interval() -> None:
    rows = _rows([[1, 0, 1, 1], [1, 0, 0, 1]])
    assert rows.by_seed() == [0.75, 0.5]
    assert rows.spread() == pytest.approx(0.25 / math.sqrt(2))
    score = seeded_score(rows, bounds=(0.0, 1.0))
    assert score.value == 0.625
    assert 0.0 <= score.low <= score.value <= score.high <= 1.0
    assert score.n == 4


def test_one_seed_has_no_spread() -> None:
    assert _rows([[1, 0]]).spread() is None


def test_the_interval_holds_the_variance_of_rows_and_that_of_seeds() -> None:
    """With total = row part + seed part, the variance of the mean is that of both parts, summed.

    Rows N = 400 with parts ±0.5 have variance 0.25 / 400; seeds S = 4 with parts ±0.1 have 4/3 · 0.01 / 4. The half width of
    a normal interval is 1.96 times the root of the sum, 0.123; the rows alone would give 0.049.
    """
    row_N = np.where(np.arange(400) % 2 == 0, 0.5, -0.5)
    seed_S = np.asarray([0.1, -0.1, 0.1, -0.1])
    rows = SeededRows(seed_S[:, None] + row_N[None, :], np.ones(400))
    score = seeded_score(rows)
    expected = 1.96 * math.sqrt(0.25 / 400 + 0.01 / 3)
    assert score.high - score.value == pytest.approx(expected, rel=0.15)
    assert score.value - score.low == pytest.approx(expected, rel=0.15)


def test_losses_are_per_token_not_per_row() -> None:
    rows = SeededRows.of([[2.0, 30.0]], [1.0, 10.0])
    assert seeded_score(rows).value == pytest.approx(32 / 11)


def test_a_difference_that_every_row_and_seed_shows_is_certain() -> None:
    before = _rows([[0.0] * 50, [0.0] * 50, [0.0] * 50])
    after = _rows([[1.0] * 50, [1.0] * 50, [1.0] * 50])
    difference, p_value = seeded_difference(before, after)
    assert (difference.value, difference.low, difference.high) == pytest.approx((1.0, 1.0, 1.0), rel=1e-12)
    assert p_value < 0.01


def test_equal_sides_differ_by_nothing() -> None:
    rows = _rows([[1, 0, 1], [0, 0, 1]])
    difference, p_value = seeded_difference(rows, rows)
    assert (difference.value, p_value) == (0.0, 1.0)


def test_seeds_that_disagree_are_no_evidence() -> None:
    """Over one seed 20 of 100 rows are won, over the other 20 lost: the mean is 0; over three, one seed's gain is noise."""
    base = [0.0] * 100
    won, lost = [1.0] * 20 + [0.0] * 80, [-1.0] * 20 + [0.0] * 80
    difference, p_value = seeded_difference(_rows([base] * 3), _rows([won, lost, won]))
    assert difference.low < 0 < difference.high
    assert p_value > 0.05


def test_sides_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="same rows"):
        seeded_difference(_rows([[1.0, 0.0]]), _rows([[1.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="positive count"):
        SeededRows.of([[1.0]], [0.0])


def test_holm_steps_down_in_the_given_order() -> None:
    """Smallest times 3, next times 2, largest times 1, never below the one before: 0.01, 0.04, 0.03 -> 0.03, 0.06, 0.06."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
