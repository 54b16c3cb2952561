"""Where the time went, as the report says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.planning.ceilings import ceiling_tflops
from tunesmith.reports.facts import Facts
from tunesmith.reports.spent import spent

TIMES = {
    "starting": 5.0, "scoring": 20.0, "writing": 0.0, "computing": 60.0, "input": 1.0, "communication": 0.0,
    "evaluation": 10.0, "saving": 4.0,
}  # fmt: skip


def _facts(times: Any, machine: str = "some CPU") -> Facts:
    plan = {"flops": 3e14, "steps": 100, "machine": {"name": machine}}
    return Facts(folder=Path("run"), recipe={}, status={"times": times, "step": 50}, plan=plan)


def test_parts_fill_the_bar_and_say_their_share() -> None:
    found = spent(_facts(TIMES))
    assert found is not None
    assert found.whole == "1 min 40 s"
    assert [line[0] for line in found.lines] == ["starting", "scoring", "input", "computing", "evaluation", "saving"]
    assert dict((line[0], line[3]) for line in found.lines)["computing"] == "60.0 %"
    assert sum(part.width for part in found.parts) == pytest.approx(100, abs=0.01)


def test_the_hint_is_about_the_largest_waste() -> None:
    found = spent(_facts(TIMES))
    assert found is not None
    assert "scoring base and result (20 %)" in found.hint
    assert "limit of a task" in found.hint
    waiting = spent(_facts({**TIMES, "input": 300.0}))
    assert waiting is not None
    assert "waiting for input" in waiting.hint
    busy = spent(_facts({"computing": 95.0, "saving": 5.0}))
    assert busy is not None
    assert busy.hint == "Nearly all of it is computing."


def test_speed_is_the_arithmetic_of_the_steps_done_over_computing() -> None:
    """Half of 3e14 operations in 60 s: 2.5 TFLOP/s, of an H100's 989 that is 0.25 %."""
    found = spent(_facts(TIMES))
    assert found is not None
    assert found.speed == "Computing ran at 2.50 TFLOP/s of planned arithmetic."
    on_card = spent(_facts(TIMES, "NVIDIA H100 80GB HBM3"))
    assert on_card is not None
    assert "0.3 % of the 989" in on_card.speed


@pytest.mark.parametrize("times", [None, {}, "soon", {"computing": "fast"}, {"saving": 3.0}, {"computing": -1.0}])
def test_a_run_that_does_not_say_has_no_bar(times: Any) -> None:
    assert spent(_facts(times)) is None


def test_devices_are_told_apart_by_the_most_telling_name() -> None:
    assert ceiling_tflops("NVIDIA H100 PCIe") == 756
    assert ceiling_tflops("NVIDIA H200") == 989
    assert ceiling_tflops("AMD EPYC 9B14") is None
