from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.evaluation import classification
from tunesmith.evaluation.statistics import proportion

quick = settings(deadline=None, derandomize=True, database=None, max_examples=20)
K = 4
rows = st.lists(st.tuples(st.integers(0, K - 1), st.integers(0, K), st.integers(0, K)), min_size=1, max_size=40)

# three classes and "(other)": a a b b c -> a b b (other) c
TRUTH, ANSWERS = [0, 0, 1, 1, 2], [0, 1, 1, 3, 2]


def test_confusion_by_hand():
    matrix = classification.confusion(TRUTH, ANSWERS, 3)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]]


def test_per_class_by_hand():
    table = classification.table(["a", "b", "c"], classification.confusion(TRUTH, ANSWERS, 3))
    assert table["columns"] == ["a", "b", "c", "(other)"]
    assert table["per_class"] == [
        {"label": "a", "n": 2, "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)},
        {"label": "b", "n": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5},
        {"label": "c", "n": 1, "precision": 1.0, "recall": 1.0, "f1": 1.0},
    ]


def test_macro_f1_leaves_out_only_classes_that_never_occur():
    assert classification.macro_f1(classification.confusion(TRUTH, ANSWERS, 3)) == pytest.approx((2 / 3 + 0.5 + 1) / 3)
    # a fourth class that is neither asked nor answered changes nothing ("(other)" is then index 4)
    wider = [answer if answer < 3 else 4 for answer in ANSWERS]
    assert classification.macro_f1(classification.confusion(TRUTH, wider, 4)) == pytest.approx((2 / 3 + 0.5 + 1) / 3)
    # one that is answered, though never right, counts with F1 0
    assert classification.macro_f1(classification.confusion([0, 0], [0, 1], 3)) == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize(("truth", "answers"), [([0], [0, 1]), ([3], [0]), ([0], [4]), ([-1], [0])])
def test_impossible_classes_are_refused(truth, answers):
    with pytest.raises(ValueError):
        classification.confusion(truth, answers, 3)


def test_macro_f1_interval_of_all_right_and_all_wrong_is_wilsons():
    right = classification.macro_f1_score([0, 1] * 10, [0, 1] * 10, 2)
    assert (right.value, right.high, right.low) == (1.0, 1.0, pytest.approx(proportion(20, 20).low))
    wrong = classification.macro_f1_score([0, 1] * 10, [2] * 20, 2)
    assert (wrong.value, wrong.low, wrong.high) == (0.0, 0.0, pytest.approx(proportion(0, 20).high))


def test_macro_f1_bootstrap_equals_resampling_rows():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, K, size=150)
    answers = np.where(rng.random(150) < 0.7, truth, rng.integers(0, K + 1, size=150))
    score = classification.macro_f1_score(truth.tolist(), answers.tolist(), K)
    picks = rng.integers(0, 150, size=(1_500, 150))
    plain = [
        classification.macro_f1(classification.confusion(truth[p].tolist(), answers[p].tolist(), K)) for p in picks
    ]
    # percentile limits of a plain bootstrap: BCa moves them by little here
    expected = np.quantile(plain, [0.025, 0.975])
    assert (score.low, score.high) == pytest.approx(tuple(expected), abs=0.2 * (expected[1] - expected[0]))


@quick
@given(rows)
def test_macro_f1_interval_holds_the_value(cells):
    truth, answers, _ = zip(*cells, strict=True)
    score = classification.macro_f1_score(truth, answers, K)
    assert 0 <= score.low <= score.value <= score.high <= 1


@quick
@given(rows)
def test_swapping_sides_flips_the_difference(cells):
    truth, before, after = zip(*cells, strict=True)
    score, p_value = classification.macro_f1_difference(truth, before, after, K)
    swapped, same = classification.macro_f1_difference(truth, after, before, K)
    assert p_value == pytest.approx(same)
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx((-score.value, -score.high, -score.low))


def test_no_change_is_no_evidence():
    score, p_value = classification.macro_f1_difference(TRUTH, ANSWERS, ANSWERS, 3)
    assert (score.low, score.value, score.high, p_value) == (0, 0, 0, 1)


def test_clear_gain_is_evident_and_a_single_row_is_not():
    truth = [0, 1, 2] * 20
    score, p_value = classification.macro_f1_difference(truth, [3] * 60, truth, 3)
    assert score.low > 0
    assert p_value < 0.01
    assert classification.macro_f1_difference([0], [1], [0], 2)[1] == 1.0
