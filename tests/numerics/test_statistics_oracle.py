"""Intervals, tests and class scores against scipy, scikit-learn and published worked examples."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.evaluation import classification, statistics


@pytest.mark.parametrize("n", [1, 2, 7, 40, 3080])
def test_wilson_equals_scipy(n):
    stats = pytest.importorskip("scipy.stats")
    for successes in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
        score = statistics.proportion(successes, n)
        assert (score.low, score.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("won", "lost"), [(7, 1), (0, 5), (3, 3), (160, 101), (40, 0), (900, 1000)])
def test_midp_equals_scipy_binomial(won, lost):
    binom = pytest.importorskip("scipy.stats").binom
    n, k = won + lost, min(won, lost)
    expected = 1.0 if won == lost else 2 * binom.cdf(k, n, 0.5) - binom.pmf(k, n, 0.5)
    assert statistics.mcnemar_midp(won, lost) == pytest.approx(expected, rel=1e-9)


def test_midp_of_fagerlands_example():
    # Bentur et al. 2009 as analysed by Fagerland, Lydersen and Laake 2013: 7 and 1 discordant pairs, mid-p 0.0391
    assert round(statistics.mcnemar_midp(7, 1), 4) == 0.0391


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # (both, won, lost, neither), after minus before
        # Cavo et al. 2012 in the tests of the R package contingencytables: -0.1186 to -0.0046 for before minus after
        ((59, 16, 6, 80), (0.0046, 0.1186)),
        # Newcombe 1998, table II, method 10: 36, 12, 2, 0
        ((36, 12, 2, 0), (0.0569, 0.3404)),
    ],
)
def test_newcombe_of_published_examples(table, expected):
    score = statistics.paired_proportions(*table)
    assert (round(score.low, 4), round(score.high, 4)) == expected


@pytest.mark.parametrize("seed", [0, 1])
def test_bca_of_a_mean_agrees_with_scipy(seed):
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(5).lognormal(size=60)
    score = statistics.mean_score(values, seed)
    # 40,000 resamples there: what remains is the noise of our 2,000, a few hundredths of the interval's width
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, method="BCa", rng=np.random.default_rng(1), vectorized=True
    ).confidence_interval
    width = expected.high - expected.low
    assert score.value == pytest.approx(values.mean())
    assert score.low == pytest.approx(expected.low, abs=0.06 * width)
    assert score.high == pytest.approx(expected.high, abs=0.06 * width)


def test_bca_of_a_ratio_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(6)
    counts = rng.integers(1, 200, size=50)
    totals = counts * rng.gamma(4, 0.6, size=50)
    score = statistics.ratio_score(totals, counts)
    expected = stats.bootstrap(
        (totals, counts),
        lambda a, b, axis=-1: a.sum(axis=axis) / b.sum(axis=axis),
        n_resamples=40_000,
        method="BCa",
        paired=True,
        vectorized=True,
        rng=np.random.default_rng(2),
    ).confidence_interval
    width = expected.high - expected.low
    assert score.value == pytest.approx(totals.sum() / counts.sum())
    assert (score.low, score.high) == pytest.approx((expected.low, expected.high), abs=0.06 * width)


def test_paired_p_agrees_with_the_t_test_on_normal_differences():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(7)
    for shift in (0.0, 0.15, 0.3):
        differences = rng.normal(shift, 1, size=120)
        expected = stats.ttest_1samp(differences, 0).pvalue
        assert statistics.paired_bootstrap(differences)[1] == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("classes", [2, 5, 77])
def test_class_scores_equal_scikit_learn(classes):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(classes)
    truth = rng.integers(0, classes, size=400)
    answers = np.where(rng.random(400) < 0.6, truth, rng.integers(0, classes + 1, size=400))
    matrix = classification.confusion(truth.tolist(), answers.tolist(), classes)
    assert (matrix == metrics.confusion_matrix(truth, answers, labels=range(classes + 1))[:classes]).all()
    rows = classification.per_class([str(k) for k in range(classes)], matrix)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truth, answers, labels=range(classes), zero_division=0
    )
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1), ("n", support)):
        np.testing.assert_allclose([row[name] for row in rows], expected, rtol=1e-12)
    present = sorted(set(truth) | set(answers) - {classes})
    expected = metrics.f1_score(truth, answers, labels=present, average="macro", zero_division=0)
    assert classification.macro_f1(matrix) == pytest.approx(expected, rel=1e-12)


def _coverage(intervals, truth):
    return np.mean([score.low <= truth <= score.high for score in intervals])


@pytest.mark.slow
@pytest.mark.parametrize("chances", [(0.0, 0.7, 0.0, 0.3), (0.1, 0.15, 0.05, 0.7), (0.7, 0.1, 0.1, 0.1)])
@pytest.mark.parametrize("n", [40, 160])
def test_paired_difference_covers(chances, n):
    draws = np.random.default_rng(11).multinomial(n, chances, size=4_000)
    coverage = _coverage([statistics.paired_proportions(*map(int, draw)) for draw in draws], chances[1] - chances[2])
    # 95 % nominal; simulation error 3 standard errors is 1 point, discreteness and the continuity correction the rest
    assert 0.93 <= coverage <= 0.995


@pytest.mark.slow
def test_midp_keeps_its_level():
    draws = np.random.default_rng(12).multinomial(160, (0.5, 0.1, 0.1, 0.3), size=4_000)
    refused = np.mean([statistics.mcnemar_midp(int(won), int(lost)) < 0.05 for _, won, lost, _ in draws])
    assert 0.03 <= refused <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("n", [40, 160])
def test_bootstrap_of_skewed_losses_covers(n):
    rng = np.random.default_rng(13)
    mean = np.exp(0.5 * 0.6**2)  # of a lognormal with sigma 0.6
    scores = [statistics.mean_score(rng.lognormal(0, 0.6, size=n), seed) for seed in range(400)]
    assert 0.91 <= _coverage(scores, mean) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 12, 60])
def test_paired_bootstrap_keeps_its_level(n):
    rng = np.random.default_rng(14)
    p_values = [statistics.paired_bootstrap(rng.normal(size=n), seed)[1] for seed in range(600)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.08


@pytest.mark.slow
def test_macro_f1_covers():
    classes, rng = 6, np.random.default_rng(15)

    def draw(size):
        truth = rng.integers(0, classes, size=size)
        right = rng.random(size) < 0.5 + 0.08 * truth
        return truth, np.where(right, truth, rng.integers(0, classes + 1, size=size))

    true = classification.macro_f1(classification.confusion(*map(list, draw(400_000)), classes))
    scores = [classification.macro_f1_score(*map(list, draw(160)), classes, seed) for seed in range(300)]
    assert 0.90 <= _coverage(scores, true) <= 0.98
