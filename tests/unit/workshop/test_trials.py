"""Runs as processes: how each ends, and what is not run again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import Interrupted, RunError
from tunesmith.progress import SilentProgress
from tunesmith.workshop import trials as trials_module
from tunesmith.workshop.trials import Ended, Trial, Trials, threads_each

_SCRIPT = "import sys, time; print(sys.argv[2]); time.sleep(float(sys.argv[1])); sys.exit(int(sys.argv[3]))"


def _trial(name: str, code: int = 0, seconds: float = 0.0, said: str = "") -> Trial:
    return Trial(name, 1e-3, 0, (str(seconds), said, str(code)))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stand-ins for ``tunesmith train``: processes that say a word, sleep and end with a code."""
    commands: list[list[str]] = []
    real = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        commands.append(command)
        words = command[command.index("train") + 1 :]
        return real([sys.executable, "-c", _SCRIPT, *words[:3]], **options)

    monkeypatch.setattr(trials_module.subprocess, "Popen", popen)
    return commands


def test_each_runs_once_and_says_how_it_ended(tmp_path: Path, started: list[list[str]]) -> None:
    progress = SilentProgress()
    work = Trials(tmp_path, 2, None, progress)
    ended = work.run([_trial("good"), _trial("wild", 4, said="error: the loss is not finite")])
    assert ended["good--0.001--0"] == Ended("done")
    assert ended["wild--0.001--0"] == Ended("stopped", "the loss is not finite")
    assert "the loss is not finite" in progress.notes[0]
    work.run([_trial("good")])
    assert len(started) == 2
    assert started[0][-2:] == ["--run", str(tmp_path / "runs" / "good--0.001--0")]
    assert (tmp_path / "logs" / "good--0.001--0.txt").read_text().startswith("tunesmith train")


def test_they_run_side_by_side(tmp_path: Path, started: list[list[str]]) -> None:
    """Three sleepers of 1.5 s, together under 4 s where one after the other takes 4.5 s and more."""
    begun = time.monotonic()
    Trials(tmp_path, 3, 1, SilentProgress()).run([_trial(f"s{n}", seconds=1.5) for n in range(3)])
    assert time.monotonic() - begun < 4
    assert "machine.threads=1" in started[0]


def test_a_refusal_names_its_log(tmp_path: Path, started: list[list[str]]) -> None:
    with pytest.raises(RunError, match="exit code 2: the recipe is wrong") as error:
        Trials(tmp_path, 1, None, SilentProgress()).run([_trial("bad", 2, said="error: the recipe is wrong")])
    assert error.value.where == str(tmp_path / "logs" / "bad--0.001--0.txt")


def test_an_interrupted_run_interrupts_all(tmp_path: Path, started: list[list[str]]) -> None:
    with pytest.raises(Interrupted, match="was interrupted"):
        Trials(tmp_path, 2, None, SilentProgress()).run([_trial("cut", 130), _trial("slow", seconds=60)])
    assert len(started) == 2


def test_a_run_that_a_guard_stopped_before_is_not_tried_again(tmp_path: Path, started: list[list[str]]) -> None:
    folder = tmp_path / "runs" / "wild--0.001--0"
    folder.mkdir(parents=True)
    status = {"status": "stopped", "step": 3, "message": "the loss is not finite", "at": 0.0}
    (folder / "status.json").write_text(json.dumps(status), encoding="utf-8")
    ended = Trials(tmp_path, 1, None, SilentProgress()).run([_trial("wild")])
    assert ended["wild--0.001--0"].status == "stopped"
    assert started == []


def test_threads_are_shared_out() -> None:
    assert threads_each(1) is None
    assert threads_each(10_000) == 1
