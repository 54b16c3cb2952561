"""Schedules at the steps where their formulas can be read off."""

from __future__ import annotations

import math

import pytest

from tunesmith.engine.options import TrainerOptions
from tunesmith.engine.schedules import rate_factor


def options(schedule: str, total: int = 110, warmup: int = 10) -> TrainerOptions:
    return TrainerOptions(total_steps=total, learning_rate=1.0, warmup_steps=warmup, schedule=schedule)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_warmup_is_linear_and_reaches_the_peak(schedule: str) -> None:
    chosen = options(schedule)
    assert [rate_factor(step, chosen) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rate_factor(10, chosen) == 1.0


def test_half_way_points() -> None:
    assert rate_factor(60, options("cosine")) == pytest.approx(0.5)
    assert rate_factor(85, options("cosine")) == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))
    assert rate_factor(60, options("linear")) == pytest.approx(0.5)
    assert rate_factor(109, options("constant")) == 1.0
    assert rate_factor(90, options("wsd")) == 1.0
    assert rate_factor(100, options("wsd")) == pytest.approx(0.5)


def test_slanted_triangle_is_ulmfits() -> None:
    """T = 100: cut = 10, p rises by a tenth a step, then falls over 90 steps; eta = (1 + 31 p) / 32."""
    chosen = options("slanted", total=100)
    assert rate_factor(0, chosen) == pytest.approx(1 / 32)
    assert rate_factor(5, chosen) == pytest.approx((1 + 31 * 0.5) / 32)
    assert rate_factor(10, chosen) == pytest.approx(1.0)
    assert rate_factor(55, chosen) == pytest.approx((1 + 31 * 0.5) / 32)


def test_no_warmup_starts_at_the_peak() -> None:
    assert rate_factor(0, options("cosine", warmup=0)) == 1.0
