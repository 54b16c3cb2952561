"""The order of an epoch follows from (seed, epoch) and the weights alone."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.ordering import epoch_order

MASK = 2**64 - 1


def philox(counter: int, key: tuple[int, int]) -> list[int]:
    """Four words of Philox4x64-10, written from the paper (Salmon et al. 2011, section 3.3)."""
    words = [(counter >> (64 * place)) & MASK for place in range(4)]
    first, second = key
    for _ in range(10):
        low = words[0] * 0xD2E7470EE14C6C93
        high = words[2] * 0xCA5A826395121157
        words = [(high >> 64) ^ words[1] ^ first, high & MASK, (low >> 64) ^ words[3] ^ second, low & MASK]
        first, second = (first + 0x9E3779B97F4A7C15) & MASK, (second + 0xBB67AE8584CAA73B) & MASK
    return words


def test_the_order_is_the_documented_function_of_seed_and_epoch() -> None:
    seed, epoch, num_rows = 7, 3, 10
    # The counter is one before the first block is drawn.
    words = [word for block in range(1, 4) for word in philox(block, (seed, epoch))][:num_rows]
    assert epoch_order(num_rows, seed, epoch).tolist() == sorted(range(num_rows), key=lambda index: words[index])


@given(st.integers(0, 300), st.integers(-5, 2**63), st.integers(0, 50))
def test_an_epoch_is_a_permutation_that_repeats(num_rows: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_rows, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_rows))
    assert np.array_equal(order, epoch_order(num_rows, seed, epoch))
    assert np.array_equal(order, epoch_order(num_rows, seed, epoch, np.ones(num_rows)))


def test_seeds_and_epochs_differ() -> None:
    orders = {tuple(epoch_order(100, seed, epoch).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_every_place_is_as_likely_for_a_row() -> None:
    # The place of row 0 among 10 over 2,000 epochs: 200 each, standard deviation sqrt(2000 · 0.1 · 0.9) = 13.4.
    places = np.bincount(
        [int(np.flatnonzero(epoch_order(10, 1, epoch) == 0)[0]) for epoch in range(2000)], minlength=10
    )
    assert np.abs(places - 200).max() < 5 * 13.4


def counts(num_rows: int, epoch: int, weights: np.ndarray) -> np.ndarray:
    return np.bincount(epoch_order(num_rows, 11, epoch, weights), minlength=num_rows)


def test_weight_two_is_twice_and_a_half_is_the_other_half_each_epoch() -> None:
    weights = np.array([2.0] * 4 + [0.5] * 10 + [1.0] * 3)
    first, second = counts(17, 0, weights), counts(17, 1, weights)
    assert first[:4].tolist() == second[:4].tolist() == [2] * 4
    assert first[4:14].sum() == second[4:14].sum() == 5
    assert (first + second)[4:14].tolist() == [1] * 10
    assert first[14:].tolist() == second[14:].tolist() == [1] * 3


@given(
    st.sampled_from(["0.1", "0.25", "0.3", "0.5", "0.75", "1.0", "1.5", "2.0", "2.2", "3.0"]),
    st.integers(1, 40),
    st.integers(0, 30),
)
def test_weight_p_over_q_is_p_times_in_any_q_epochs(weight: str, num_rows: int, start: int) -> None:
    exact = Fraction(weight)
    weights = np.full(num_rows, float(weight))
    each = [counts(num_rows, epoch, weights) for epoch in range(start, start + exact.denominator)]
    assert np.sum(each, axis=0).tolist() == [exact.numerator] * num_rows
    for seen in each:
        assert set(seen.tolist()) <= {int(exact), -int(-exact // 1)}
        assert abs(int(seen.sum()) - num_rows * exact) < 1


def test_rows_of_a_fractional_weight_are_not_the_first_ones() -> None:
    seen = counts(1000, 0, np.full(1000, 0.5))
    # 500 of 1,000 drawn without order: the first half holds 250, standard deviation sqrt(1000 / 16) = 7.9.
    assert abs(int(seen[:500].sum()) - 250) < 5 * 7.9


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_weights_that_mean_nothing_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError):
        epoch_order(2, 0, 0, np.array(weights))
