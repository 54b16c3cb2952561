"""Seconds by part."""

from __future__ import annotations

import time

import pytest

from tunesmith.engine import stopwatch
from tunesmith.engine.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test moves."""
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    return now


def test_parts_add_up_and_an_inner_one_counts_for_the_outer(clock: list[float]) -> None:
    watch = Stopwatch()
    with watch.part("evaluation"):
        clock[0] += 2
        with watch.part("saving"):
            clock[0] += 3
    with watch.part("saving"):
        clock[0] += 1
    assert watch.seconds == {"input": 0, "communication": 0, "evaluation": 5, "saving": 1}


def test_a_part_that_fails_is_counted(clock: list[float]) -> None:
    watch = Stopwatch()

    def fail() -> None:
        with watch.part("input"):
            clock[0] += 4
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    with watch.part("saving"):
        clock[0] += 1
    assert (watch.seconds["input"], watch.seconds["saving"]) == (4, 1)


def test_items_are_timed_as_they_come_and_not_while_they_are_used(clock: list[float]) -> None:
    def slow() -> object:
        for number in range(3):
            clock[0] += 1
            yield number
        clock[0] += 10  # what the source does after its last item is waiting too

    watch = Stopwatch()
    found = []
    for item in watch.drawn("input", slow()):  # type: ignore[arg-type]
        clock[0] += 100
        found.append(item)
    assert found == [0, 1, 2]
    assert watch.seconds["input"] == 13


def test_computing_is_what_is_left_of_the_steps() -> None:
    watch = Stopwatch()
    watch.load({"input": 1.0, "communication": 2.0, "evaluation": 7.0, "saving": 4.0})
    assert watch.spent(10.0) == {"computing": 7.0, "input": 1.0, "communication": 2.0, "evaluation": 7.0, "saving": 4.0}
    assert watch.spent(2.0)["computing"] == 0.0


def test_it_measures_the_wall_clock() -> None:
    watch = Stopwatch(("nap",))
    with watch.part("nap"):
        time.sleep(0.05)
    assert 0.05 <= watch.seconds["nap"] < 5
