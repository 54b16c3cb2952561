"""A run that makes no progress: stopped with a checkpoint where the loop answers, ended where it does not, said in both."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.desk import Call, Write, torn
from tests.e2e.processes import ended, events, lines, result, started
from tunesmith.workshop import fitting
from tunesmith.workshop.watching import MetricsHook

RUN = Path("runs/desk")
BLOCKED = """
import ctypes, functools
from tunesmith.workshop import fitting
from tunesmith.workshop.watching import MetricsHook
fitting.WatchdogOptions = functools.partial(fitting.WatchdogOptions, grace_seconds=0.2, look_every_seconds=0.02)
really, mutex = MetricsHook.after_step, ctypes.create_string_buffer(256)
def blocked_for_ever(self, facts):
    really(self, facts)
    if facts.step == 6:
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
MetricsHook.after_step = blocked_for_ever
"""


def _recipe(write: Write, **guards: Any) -> str:
    return write(
        training__max_steps=8, training__checkpoint_every=3, training__evaluate_every=100, training__guards=guards
    )


def test_a_step_that_is_slow_and_comes_back_is_saved_and_stopped(
    desk: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(write, stall_minutes=0.01)
    assert call("train", recipe, "--run", "whole").code == 0
    options = functools.partial(fitting.WatchdogOptions, floor_seconds=0.3, grace_seconds=30.0, look_every_seconds=0.02)
    monkeypatch.setattr(fitting, "WatchdogOptions", options)
    really = MetricsHook.after_step

    def slow(self: MetricsHook, facts: Any) -> None:
        really(self, facts)
        if facts.step == 6:
            _sleep_in_a_frame_of_this_name(2.0)

    monkeypatch.setattr(MetricsHook, "after_step", slow)
    said = call("train", recipe, "--json").refuses(
        4, "stopped by no progress for 1 s after step 6 of 8; a checkpoint is saved", "stacks-*.txt", "same command"
    )
    assert said.json["status"] == "stopped"
    found = [
        (line["kind"], line["step"]) for line in lines(RUN / "events.jsonl") if line["kind"] in ("slow_step", "stalled")
    ]
    assert found == [("slow_step", 6), ("stalled", 6)]
    assert events(RUN, "stalled")[0].endswith("in step 7; where every thread stands: stacks-7.txt")
    assert "_sleep_in_a_frame_of_this_name" in (RUN / "stacks-7.txt").read_text()
    assert "Slow step" in _report(call)
    monkeypatch.setattr(MetricsHook, "after_step", really)
    assert call("train", recipe, "training.guards.stall_minutes=5").code == 0
    assert result(RUN) == result(Path("whole"))
    assert torn(desk) == []


def _sleep_in_a_frame_of_this_name(seconds: float) -> None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        time.sleep(0.01)


def _report(call: Call) -> str:
    assert call("report", RUN).code == 0
    return (RUN / "report.html").read_text(encoding="utf-8")


def test_a_step_blocked_in_a_call_of_c_is_ended_and_the_run_goes_on_later(desk: Path, call: Call, write: Write) -> None:
    recipe = _recipe(write, stall_minutes=0.01)
    assert call("train", recipe, "--run", "whole").code == 0
    with started(desk, "train", recipe, code=BLOCKED) as process:
        code, _, err = ended(process)
    assert code == 4, err
    assert "and the loop did not answer; the newest checkpoint stays" in err
    status = json.loads((RUN / "status.json").read_text(encoding="utf-8"))
    assert status["status"] == "stopped"
    assert "no progress for" in status["message"]
    assert call("runs", "list", "--json").json["runs"][0]["status"] == "stopped"
    assert len(events(RUN, "stopped")) == 1
    assert "blocked_for_ever" in (RUN / "stacks-7.txt").read_text()
    assert call("train", recipe, "training.guards.stall_minutes=null").code == 0
    assert "resumed from the checkpoint of step 3 of 8" in events(RUN, "resumed")
    assert result(RUN) == result(Path("whole"))
