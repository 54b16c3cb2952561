from __future__ import annotations

import json
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.evaluation import statistics
from tunesmith.evaluation.statistics import Score

quick = settings(deadline=None, derandomize=True, database=None, max_examples=60)
counts = st.tuples(*[st.integers(0, 60)] * 4).filter(any)
lists = st.lists(st.floats(-50, 50), min_size=1, max_size=30)


def test_score_survives_json():
    score = Score(0.5, 0.25, 0.75, 8)
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score


def test_wilson_by_hand():
    # z = 1.959964, 5 of 10: centre 0.5, half = z / (1 + z²/10) * sqrt(0.025 + z²/400)
    z = 1.959963984540054
    half = z / (1 + z * z / 10) * math.sqrt(0.025 + z * z / 400)
    assert statistics.proportion(5, 10) == Score(0.5, pytest.approx(0.5 - half), pytest.approx(0.5 + half), 10)


def test_wilson_at_the_ends_is_open_on_one_side_only():
    # at 0 of n the upper limit is z² / (n + z²)
    z2 = 1.959963984540054**2
    assert statistics.proportion(0, 160) == Score(0.0, 0.0, pytest.approx(z2 / (160 + z2)), 160)
    assert statistics.proportion(160, 160) == Score(1.0, pytest.approx(160 / (160 + z2)), 1.0, 160)


@quick
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_stays_within_bounds_and_mirrors(pair):
    successes, n = pair
    score, mirror = statistics.proportion(successes, n), statistics.proportion(n - successes, n)
    assert 0 <= score.low <= score.value <= score.high <= 1
    assert (mirror.low, mirror.high) == pytest.approx((1 - score.high, 1 - score.low))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_shares_of_nothing_are_refused(successes, n):
    with pytest.raises(ValueError, match="no share"):
        statistics.proportion(successes, n)


def test_mean_is_a_function_of_values_and_seed():
    values = np.linspace(0, 3, 31) ** 2
    first = statistics.mean_score(values, seed=4)
    assert first == statistics.mean_score(list(values), seed=4)
    assert first != statistics.mean_score(values, seed=5)
    assert first.value == pytest.approx(values.mean())
    assert first.low < first.value < first.high
    assert first.n == 31


def test_bootstrap_of_two_values_by_hand():
    # means of pairs drawn from {0, 1} are 0, 0.5, 1 with chances 1/4, 1/2, 1/4: any 95 % interval reaches both ends
    assert statistics.mean_score([0.0, 1.0]) == Score(0.5, 0.0, 1.0, 2)


def test_like_rows_have_no_interval_without_bounds_and_wilsons_with_them():
    assert statistics.mean_score([2.5]) == Score(2.5, 2.5, 2.5, 1)
    assert statistics.mean_score([2.5] * 9) == Score(2.5, 2.5, 2.5, 9)
    wilson = statistics.proportion(40, 40)
    assert statistics.mean_score([1.0] * 40, bounds=(0, 1)) == Score(1.0, pytest.approx(wilson.low), 1.0, 40)
    half = statistics.mean_score([0.5], bounds=(0, 1))
    assert half.low == pytest.approx(0.5 - 0.5 * statistics.proportion(0, 1).high)
    assert half.high == pytest.approx(1 - half.low)


def test_large_samples_are_drawn_in_blocks_that_fit_the_normal_interval():
    values = np.random.default_rng(0).normal(3, 2, size=5_000)  # 2,000 x 5,000 picks: several blocks
    score = statistics.mean_score(values)
    error = values.std() / math.sqrt(5_000)
    assert (score.low, score.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.2 * error
    )


def test_skew_moves_the_bca_interval_towards_the_tail():
    score = statistics.mean_score([1.0] * 30 + [20.0] * 2)
    assert score.high - score.value > score.value - score.low


def test_bca_limits_by_hand():
    # replicates 0.5, 1.5, … 999.5 and a value with 300 of them below: bias = Phi^-1(0.3), no acceleration, so the
    # limits are the quantiles Phi(2 bias -+ 1.96)
    normal = NormalDist()
    low, high = statistics.bca_interval(300.0, np.arange(1_000) + 0.5, np.zeros(5))
    expected = [normal.cdf(2 * normal.inv_cdf(0.3) + sign * 1.959964) for sign in (-1, 1)]
    assert (low, high) == pytest.approx((0.5 + 999 * expected[0], 0.5 + 999 * expected[1]), abs=1e-3)
    # leave-one-out values 0, 0, 3: centred 1, 1, -2, so the acceleration is -6 / (6 * 6^1.5)
    low, high = statistics.bca_interval(500.0, np.arange(1_000) + 0.5, np.array([0.0, 0.0, 3.0]))
    shares = [normal.cdf(z / (1 + z / 6**1.5)) for z in (-1.959964, 1.959964)]
    assert (low, high) == pytest.approx((0.5 + 999 * shares[0], 0.5 + 999 * shares[1]), abs=1e-3)


@quick
@given(lists)
def test_interval_holds_the_mean_and_mirrors(values):
    score, mirror = statistics.mean_score(values), statistics.mean_score([-value for value in values])
    assert score.low <= score.value <= score.high
    assert (mirror.low, mirror.high) == pytest.approx((-score.high, -score.low), abs=1e-9)


def test_ratio_weighs_tokens_and_equals_the_mean_for_equal_counts():
    score = statistics.ratio_score([10.0, 1.0], [10, 2])
    assert score.value == pytest.approx(11 / 12)
    values = [1.0, 2.0, 4.0, 8.0]
    assert statistics.ratio_score([5 * value for value in values], [5] * 4).low == pytest.approx(
        statistics.mean_score(values).low
    )


def test_ratio_refuses_empty_rows_and_infinities():
    for totals, sizes in (([1.0], [0]), ([1.0, 2.0], [1]), ([], []), ([math.inf], [1]), ([math.nan], [1])):
        with pytest.raises(ValueError):
            statistics.ratio_score(totals, sizes)


def test_perplexity_is_the_exponential_of_the_loss_and_finite():
    assert statistics.exponential(Score(math.log(20), math.log(18), math.log(25), 7)) == Score(
        pytest.approx(20), pytest.approx(18), pytest.approx(25), 7
    )
    assert math.isfinite(statistics.exponential(Score(5_000.0, 4_000.0, 6_000.0, 3)).high)


def test_midp_by_hand():
    # 0 against 5: 2 * 1/32 - 1/32; 1 against 3: 2 * (1 + 4)/16 - 4/16
    assert statistics.mcnemar_midp(5, 0) == 1 / 32
    assert statistics.mcnemar_midp(3, 1) == 6 / 16
    assert statistics.mcnemar_midp(0, 0) == 1.0
    assert statistics.mcnemar_midp(4, 4) == 1.0


@quick
@given(st.integers(0, 300), st.integers(0, 300))
def test_midp_is_a_symmetric_probability(won, lost):
    p_value = statistics.mcnemar_midp(won, lost)
    assert 0 < p_value <= 1
    assert p_value == statistics.mcnemar_midp(lost, won)
    if won > lost:
        assert statistics.mcnemar_midp(won + 1, lost) < p_value


def test_midp_of_many_thousand_pairs_is_no_overflow():
    assert statistics.mcnemar_midp(20_000, 0) == 0.0  # 2^-20000, below the smallest float
    assert 0.3 < statistics.mcnemar_midp(10_070, 9_930) < 0.35  # z = 0.99


@quick
@given(counts)
def test_newcombe_holds_the_difference_and_flips_when_sides_are_swapped(table):
    both, won, lost, neither = table
    score, swapped = statistics.paired_proportions(*table), statistics.paired_proportions(both, lost, won, neither)
    assert -1 <= score.low <= score.value <= score.high <= 1
    assert score.value == pytest.approx((won - lost) / sum(table))
    assert (swapped.low, swapped.high) == pytest.approx((-score.high, -score.low), abs=1e-12)


def test_newcombe_without_correlation_is_wilson_added_in_squares():
    # before 0 of n: phi is 0, and each limit joins two Wilson distances as the sides of a right angle
    before, after = statistics.proportion(0, 50), statistics.proportion(20, 50)
    score = statistics.paired_proportions(both=0, won=20, lost=0, neither=30)
    assert score.low == pytest.approx(0.4 - math.hypot(0.4 - after.low, before.high))
    assert score.high == pytest.approx(0.4 + (after.high - 0.4))


def test_paired_bootstrap_without_a_difference():
    assert statistics.paired_bootstrap([0.0] * 8) == (Score(0.0, 0.0, 0.0, 8), 1.0)


def test_paired_bootstrap_is_modest_about_a_few_like_rows():
    # five equal gains: no test of signs can give less than 2 / 2^5
    score, p_value = statistics.paired_bootstrap([1.0] * 5)
    assert (score.value, p_value) == (1.0, 2 / 2**5)
    assert statistics.paired_bootstrap([3.0])[1] == 1.0
    # zeros say nothing about the sign: three gains among a hundred rows are three
    assert statistics.paired_bootstrap([1.0] * 3 + [0.0] * 97)[1] >= 2 / 2**3


@quick
@given(lists)
def test_paired_bootstrap_flips_when_sides_are_swapped(differences):
    (score, p_value), (swapped, same) = (
        statistics.paired_bootstrap(differences),
        statistics.paired_bootstrap([-value for value in differences]),
    )
    assert p_value == same
    assert (swapped.low, swapped.high) == pytest.approx((-score.high, -score.low), abs=1e-9)


def test_paired_bootstrap_tells_a_shift_from_noise():
    noise = np.random.default_rng(1).normal(size=80)
    noise -= noise.mean()
    assert statistics.paired_bootstrap(noise + 0.02)[1] > 0.5
    score, p_value = statistics.paired_bootstrap(noise + 1.0)
    assert score.low > 0
    assert p_value == 1 / 2001  # no resample was as extreme


def test_ratio_difference_equals_the_paired_mean_for_unit_counts():
    before, after = [3.0, 2.5, 4.0, 3.5, 2.0], [2.0, 2.4, 3.9, 3.1, 2.2]
    ones = [1] * 5
    score, p_value = statistics.ratio_difference((before, ones), (after, ones), seed=3)
    mean, same = statistics.paired_bootstrap([b - a for a, b in zip(before, after, strict=True)], seed=3)
    assert (score.value, score.low, score.high) == pytest.approx((mean.value, mean.low, mean.high))
    assert p_value == same


def test_ratio_difference_of_perplexities():
    totals, sizes = [4.0, 9.0, 2.0], [2, 3, 1]
    half = [total - size * math.log(2) for total, size in zip(totals, sizes, strict=True)]
    score, _ = statistics.ratio_difference((totals, sizes), (half, sizes), exponentiate=True)
    assert score.value == pytest.approx(-math.exp(15 / 6) / 2)
    assert score.low <= score.value <= score.high < 0


def test_ratio_difference_of_equal_sides_is_nothing():
    side = ([4.0, 9.0, 2.0], [2, 3, 1])
    assert statistics.ratio_difference(side, side) == (Score(0.0, 0.0, 0.0, 3), 1.0)
