"""The first number in which two runs differ."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.registry.repetition import NOTHING, Difference, first_difference

LINES: list[dict[str, Any]] = [
    {"step": 1, "layers": {"a": {"ratio": 0.5}, "b": {"ratio": 0.25}}},
    {"step": 1, "loss": 0.1, "grad_norm": 1.0, "learning_rate": 1e-3, "tokens": 10, "seconds": 3.0, "tokens_per_second": 3.3},
    {"step": 1, "validation_loss": 2.0, "validation_tokens": 5},
    {"step": 2, "loss": None, "grad_norm": 1.5, "learning_rate": 1e-3, "tokens": 20, "seconds": 3.0, "tokens_per_second": 3.3},
]  # fmt: skip


def _changed(number: int, **values: Any) -> list[dict[str, Any]]:
    return [{**line, **(values if index == number else {})} for index, line in enumerate(LINES)]


def test_times_do_not_count_and_order_of_lines_neither() -> None:
    assert first_difference(LINES, _changed(1, seconds=9.0, tokens_per_second=1.0)) is None
    assert first_difference(LINES, LINES[::-1]) is None


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (_changed(1, loss=0.1 + 2**-55, grad_norm=2.0), Difference(1, "loss", 0.1, 0.1 + 2**-55)),
        (_changed(1, grad_norm=2.0, tokens=11), Difference(1, "grad_norm", 1.0, 2.0)),
        (_changed(3, loss=1.0), Difference(2, "loss", None, 1.0)),
        (_changed(2, validation_loss=2.5), Difference(1, "validation_loss", 2.0, 2.5)),
        (_changed(0, layers={"a": {"ratio": 0.5}, "b": {"ratio": 0.0}}), Difference(1, "layers: b: ratio", 0.25, 0.0)),
        (_changed(3, refused_by="spike"), Difference(2, "refused_by", NOTHING, "spike")),
        (LINES[:3], Difference(2, "the line", "a line", NOTHING)),
        ([*LINES, {"step": 3, "validation_loss": 1.0}], Difference(3, "the validation", NOTHING, "a line")),
        (_changed(3, loss=1.0)[:1] + _changed(3, loss=1.0)[2:], Difference(1, "the line", "a line", NOTHING)),
    ],
)
def test_the_first_difference_is_found_with_both_values(found: list[dict[str, Any]], expected: Difference) -> None:
    assert first_difference(LINES, found) == expected


def test_a_difference_is_told_with_all_digits() -> None:
    assert str(Difference(7, "grad_norm", 0.1, 0.1 + 2**-55)) == "step 7: grad norm 0.1 -> 0.10000000000000003"
