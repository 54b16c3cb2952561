"""The parts of a run's wall time: all of it is accounted for, over a resume too."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.e2e.desk import Call, Write


def _times(folder: str) -> dict[str, float]:
    times: dict[str, float] = json.loads(Path(folder, "status.json").read_text())["times"]
    return times


def test_the_parts_are_the_whole(call: Call, write: Write) -> None:
    recipe = write(
        training__max_steps=6, training__epochs=None, training__evaluate_every=2, training__checkpoint_every=2
    )
    started = time.perf_counter()
    said = call("train", recipe, "--run", "run")
    elapsed = time.perf_counter() - started
    assert said.code == 0, said.err
    times = _times("run")
    assert set(times) == {
        "starting", "scoring", "writing", "computing", "input", "communication", "evaluation", "saving",
    }  # fmt: skip
    assert all(seconds > 0 for name, seconds in times.items() if name != "communication")
    assert times["communication"] == 0
    assert sum(times.values()) <= elapsed
    # from scoring the base to the report; attaching and checking lie between the parts
    total = json.loads(Path("run/status.json").read_text())["total_seconds"]
    assert 0.5 * total < sum(times.values()) - times["starting"] <= total
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "Where the time went" in page
    assert "TFLOP/s of planned arithmetic" in page


def test_an_interrupted_run_keeps_what_was_spent(call: Call, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.engine.trainer import Trainer

    recipe = write(
        training__max_steps=6, training__epochs=None, training__evaluate_every=2, training__checkpoint_every=2
    )
    whole = Trainer._one_step

    def cut(self: Trainer, step: object) -> object:
        if self.step == 4:
            self.times.seconds["evaluation"] += 100.0
            self.save()
            raise KeyboardInterrupt
        return whole(self, step)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_one_step", cut)
    assert call("train", recipe, "--run", "run").code == 130
    monkeypatch.setattr(Trainer, "_one_step", whole)
    assert call("train", recipe, "--run", "run").code == 0
    assert _times("run")["evaluation"] > 100
