"""The last look at a run: worse than the base on held-out rows and on its own."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.workshop.descent import risen


def metrics(held_out: list[float], training: list[float]) -> list[dict[str, Any]]:
    """Validation at the start and every five steps, a loss each step."""
    lines: list[dict[str, Any]] = [
        {"step": 5 * number, "validation_loss": value} for number, value in enumerate(held_out)
    ]
    return lines + [{"step": number + 1, "loss": value, "learning_rate": 1.0} for number, value in enumerate(training)]


@pytest.mark.parametrize(
    ("held_out", "training", "is_risen"),
    [
        ([8.5, 12.0, 19.5], [8.0, 8.5, 9.0, 9.5, 12.0, 14.0, 16.0, 17.0, 17.4, 17.4], True),
        ([8.5, 4.0, 1.0], [8.0, 8.5, 9.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 1.0], False),
        ([2.0, 3.0, 6.0], [2.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.1, 0.1, 0.01, 0.01], False),  # learnt by heart
        ([2.0, 2.3, 2.6], [2.0, 2.0, 2.0, 2.1, 2.1, 2.1, 2.2, 2.2, 2.2, 2.2], False),  # 2.6 < 2.0 · 1.1 + 0.5
        ([2.0, 2.3, 2.71], [2.0, 2.0, 2.0, 2.1, 2.1, 2.1, 2.2, 2.2, 2.2, 2.2], True),
        ([], [8.0] * 10, False),
        ([8.5], [8.0] * 10, False),
    ],
)
def test_worse_on_both_is_worse(held_out: list[float], training: list[float], is_risen: bool) -> None:
    assert (risen(metrics(held_out, training), 10) is not None) == is_risen


def test_the_result_counts_not_what_came_after_it() -> None:
    """With early stopping the best step is the result."""
    lines = metrics([8.5, 3.0, 19.5], [8.0, 7.0, 6.0, 5.0, 4.0, 6.0, 9.0, 12.0, 15.0, 18.0])
    assert risen(lines, 5) is None
    assert risen(lines, 10) is not None


def test_the_clause_names_both() -> None:
    said = risen(metrics([8.5, 12.0, 19.5], [8.0, 8.5, 9.0, 9.5, 12.0, 14.0, 16.0, 17.0, 17.4, 17.4]), 10)
    assert said == "the held-out loss rose from 8.5 to 19.5, that of training from 8.5 to 17.4"
