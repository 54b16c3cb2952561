"""Numbers as a person reads them."""

from __future__ import annotations

import math

import pytest

from tunesmith.evaluation.pairing import Paired
from tunesmith.evaluation.statistics import Score
from tunesmith.evaluation.verdict import verdict_of
from tunesmith.reports import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (27.149, "27.1"),
        (0.00118, "0.00118"),
        (1240.4, "1,240"),
        (-0.05, "−0.0500"),
        (2.5e-5, "2.50e-5"),
        (None, "–"),
    ],
)
def test_numbers_keep_three_places(value, text):
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.42 s"), (38.2, "38 s"), (131, "2 min 11 s"), (3599.9, "1 h 00 min"), (11100, "3 h 05 min"), (None, "–")],
)
def test_durations(seconds, text):
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1024, "1.00 KiB"), (412 * 2**20, "412 MiB"), (2**31, "2.00 GiB")],
)
def test_sizes(num_bytes, text):
    assert wording.size(num_bytes) == text


def test_shares_differences_and_chances():
    assert wording.percent(0.781) == "78.1 %"
    assert wording.points(-0.0874) == "−8.7 points"
    assert wording.points(0.469) == "+46.9 points"
    assert wording.chance(1e-9) == "p < 0.001"
    assert wording.chance(0.41) == "p = 0.41"
    assert wording.chance(0.0123) == "p = 0.012"


@pytest.mark.parametrize("p_value", [0.0, 1e-9, 9e-4, 0.001, 0.0012, 0.0499, 0.05, 0.0999, 0.1, 0.41, 1.0])
def test_the_page_and_the_verdict_say_a_chance_alike(p_value):
    before, after, difference = (Score(value, value - 0.1, value + 0.1, 40) for value in (0.6, 0.5, -0.1))
    paired = Paired(before, after, difference, p_value, "mid-p McNemar", 1, 5, 19, 15, 34)
    _, _, sentence = verdict_of({"exact_match": {"exact_match": paired}}, (), "Tuned")
    assert sentence.endswith(f"(−10.0 points, 95 % −20.0 to 0.0, n = 40, {wording.chance(p_value)})")


@pytest.mark.parametrize("value", [None, True, "3", [1], math.nan, math.inf])
def test_only_finite_numbers_are_numbers(value):
    assert wording.as_number(value) is None


def test_an_excerpt_counts_what_it_leaves_out():
    assert wording.excerpt("abcdef", 4) == ("abcd", 2)
    assert wording.excerpt("abcd", 4) == ("abcd", 0)
    assert wording.excerpt(None, 4) == ("", 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01 00:00:00"),
        (951_782_400, "2000-02-29 00:00:00"),  # 11,016 days of 86,400 s since 1970
        (1795351821.25, "2026-11-22 12:50:21"),
        (-1, "–"),
        (1e300, "–"),
        (None, "–"),
        ("2026", "–"),
    ],
)
def test_times_are_read_by_the_clock(seconds, text):
    assert wording.clock(seconds) == text
